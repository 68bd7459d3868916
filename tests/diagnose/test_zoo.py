"""Networks of other packages, with no wrapper and in three lines each; each page is written and read back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_papers.diagnose import Report, diagnose
from lit_papers.interactions.players import TokenPlayers


def check(report: Report, folder: Path, measured: set[str]) -> None:
    page = report.save(folder / "page")
    found = json.loads(page.with_suffix(".json").read_text())
    status = {lens["name"]: lens["status"] for lens in found["lenses"]}
    reasons = {finding.name: finding.reason for finding in report.findings}
    assert measured <= {name for name, how in status.items() if how == "measured"}, reasons
    assert "failed" not in status.values(), reasons


def images(side: int, count: int = 48, classes: int = 3) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, side, side, generator=generator)
    return DataLoader(TensorDataset(x, torch.arange(count) % classes), 12)


@pytest.mark.slow
def test_torchvision_on_a_folder_of_images(tmp_path: Path) -> None:
    """At 224 pixels in a minute: less is measured, and the page says so."""
    torchvision = pytest.importorskip("torchvision")
    for place in range(60):
        folder = tmp_path / "images" / f"class{place % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
        torchvision.io.write_jpeg(pixels, str(folder / f"{place}.jpg"))
    transform = torchvision.transforms.Compose([torchvision.transforms.Resize(224), torchvision.transforms.ToTensor()])
    data = torchvision.datasets.ImageFolder(tmp_path / "images", transform)
    network = torchvision.models.resnet18(num_classes=3)
    report = diagnose(network, DataLoader(data, 16, shuffle=True), minutes=1)
    check(report, tmp_path, {"collapse", "head", "cost"})
    assert float(report.provenance["cost"].split()[0]) < 75
    assert any(finding.reduced or finding.status == "left out" for finding in report.findings)


@pytest.mark.packages
def test_a_vision_transformer_of_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3)
    wanted = ["collapse", "central_path", "head", "cost", "similarity"]
    report = diagnose(network, images(32), images(32), lenses=wanted, minutes=10)
    check(report, tmp_path, set(wanted))
    assert len(report["similarity"].histories["validation"][0]) > 12  # every block


@pytest.mark.packages
def test_a_classifier_of_token_sequences(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    network = transformers.BertForSequenceClassification(config)
    ids, labels = torch.randint(0, 40, (48, 8)), torch.arange(48) % 3
    rows = [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]
    report = diagnose(
        network, DataLoader(rows, batch_size=12), unpack=lambda batch: (batch["input_ids"], batch["labels"]),
        players=TokenPlayers(8, mask_token=0), minutes=10,
    )  # fmt: skip
    check(report, tmp_path, {"collapse", "head", "cost", "interactions", "similarity", "loss_slice"})


@pytest.mark.packages
def test_a_task_of_torchgeo(tmp_path: Path) -> None:
    trainers = pytest.importorskip("torchgeo.trainers")
    task = trainers.ClassificationTask(model="resnet18", weights=None, in_channels=3, num_classes=3, lr=1e-3)
    rows = [{"image": x, "label": y} for x, y in images(32).dataset]
    wanted = ["collapse", "head", "cost", "strides", "similarity"]
    report = diagnose(task, DataLoader(rows, 12), DataLoader(rows, 12), lenses=wanted, minutes=10)
    check(report, tmp_path, set(wanted))


@pytest.mark.slow
def test_a_graph_network_on_pairs(tmp_path: Path) -> None:
    geometric = pytest.importorskip("torch_geometric")
    from torch_geometric.loader import DataLoader as GraphLoader

    from lit_papers.datamodules import GraphPairs

    class GIN(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = geometric.nn.GIN(1, 8, 2)
            self.head = nn.Linear(8, 2)

        def forward(self, data: Any) -> torch.Tensor:
            hidden = self.body(data.x, data.edge_index)
            return self.head(geometric.nn.global_add_pool(hidden, data.batch))

    graphs = [graph for pair in GraphPairs("atlas").pairs[:8] for graph in (pair.first, pair.second)]
    for place, graph in enumerate(graphs):
        graph.x, graph.y = torch.ones(graph.num_nodes, 1), torch.tensor([place % 2])
    report = diagnose(
        GIN(), GraphLoader(graphs, 8), call=lambda network, batch: (network(batch), batch.y), minutes=10,
    )  # fmt: skip
    check(report, tmp_path, {"separation", "collapse"})
    numbers = report["separation"].histories["train"][-1]
    assert numbers["separated"] == numbers["ceiling/cr"] == 0  # all pairs are beyond message passing
    assert numbers["total"] == 26

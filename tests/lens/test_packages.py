"""Networks of other packages, as their users train them; nothing is downloaded, and none of them is a dependency."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_papers.callbacks import CentralPath, NeuralCollapse
from lit_papers.neural_collapse.functional import class_statistics, variability_collapse
from lit_papers.neural_collapse.lens import CollapseLens

pytestmark = [
    pytest.mark.packages,
    # a few images of noise, before networks that know nothing: the class means are chance, as the warning says
    pytest.mark.filterwarnings("ignore:neural collapse. half or more of the spread"),
]


def nc1(features: Tensor, targets: Tensor, classes: int) -> float:
    return float(variability_collapse(class_statistics(features, targets, classes)))


def images(classes: int = 3, side: int = 32) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(24, 3, side, side, generator=generator), torch.arange(24) % classes)


def fit(module: LightningModule, loader: Any, folder: Path, *callbacks: Any, val: Any = None) -> None:
    Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=list(callbacks),
    ).fit(module, loader, val)  # fmt: skip


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "mobilenetv3_small_050", "convnext_atto"])
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    seed_everything(0)
    network = timm.create_model(name, num_classes=3, **({"img_size": 32} if "vit" in name else {})).eval()
    data = images()
    numbers = CollapseLens()(network, DataLoader(data, batch_size=8))
    x, y = data.tensors
    with torch.no_grad():
        features = network.forward_head(network.forward_features(x), pre_logits=True)
    assert numbers["nc1"] == pytest.approx(nc1(features, y, 3), rel=1e-3)


def test_a_language_model_called_by_keywords(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")

    class Task(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            config = transformers.BertConfig(
                vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                max_position_embeddings=16, num_labels=3,
            )  # fmt: skip
            self.model = transformers.BertForSequenceClassification(config)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss: Tensor = self.model(**batch).loss
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    seed_everything(0)
    ids, labels = torch.randint(0, 40, (24, 8)), torch.arange(24) % 3
    mask = torch.ones(8, dtype=torch.long)
    rows = [{"input_ids": i, "attention_mask": mask, "labels": y} for i, y in zip(ids, labels, strict=True)]
    module, callback, path = Task(), NeuralCollapse(), CentralPath()
    fit(module, DataLoader(rows, batch_size=8), tmp_path, callback, path)
    with torch.no_grad():
        pooled = module.model.eval().bert(ids).pooler_output
    assert callback.history[-1]["nc1"] == pytest.approx(nc1(pooled, labels, 3), rel=1e-3)
    assert "ratio" not in path.history[-1]


def test_low_rank_adapters(tmp_path: Path) -> None:
    lora = pytest.importorskip("loralib")

    class Task(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(lora.Linear(6, 8, r=2), nn.ReLU())
            self.head = lora.Linear(8, 3, r=2)
            lora.mark_only_lora_as_trainable(self)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.head(self.body(batch[0])), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.5)

    trained = []
    data = TensorDataset(torch.randn(24, 6, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3)
    for callbacks in ([], [NeuralCollapse()]):
        seed_everything(1)
        module = Task()
        fit(module, DataLoader(data, batch_size=8, shuffle=True), tmp_path, *callbacks)
        trained.append({key: value.clone() for key, value in module.state_dict().items()})
    torch.testing.assert_close(*trained, rtol=0, atol=0)


def test_torchgeo(tmp_path: Path) -> None:
    trainers = pytest.importorskip("torchgeo.trainers")
    seed_everything(0)
    task = trainers.ClassificationTask(model="resnet18", weights=None, in_channels=3, num_classes=3, lr=1e-3)
    x, y = images().tensors
    rows = [{"image": image, "label": label} for image, label in zip(x, y, strict=True)]
    callback = NeuralCollapse()
    fit(task, DataLoader(rows, batch_size=8), tmp_path, callback, val=DataLoader(rows, batch_size=8))
    with torch.no_grad():
        features = task.model.eval().forward_head(task.model.forward_features(x), pre_logits=True)
    assert callback.history[-1]["nc1"] == pytest.approx(nc1(features, y, 3), rel=1e-3)

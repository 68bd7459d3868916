"""Separation of pairs of graphs, measured in a project that has never heard of us."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GIN, GINEConv, global_add_pool

from lit_papers.callbacks import SeparationPower
from lit_papers.expressiveness.graphs import named_pair
from lit_papers.expressiveness.lens import SeparationLens
from lit_papers.lens import NotApplicable
from tests import guest

PAIRS = [named_pair("hexagon-triangles"), named_pair("decalin-bicyclopentyl")]
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "compiled": {"compiled": True},
    "accumulated": {"accumulate_grad_batches": 4},
    "fast_dev_run": {"fast_dev_run": True},
    "max_steps": {"max_epochs": -1, "max_steps": 9},
}


class Graphs(guest.ForeignModule):
    """Looks at graphs as well, when it is handed a batch of them."""

    def __init__(self, random: bool = True) -> None:
        super().__init__(random)
        self.gin = GIN(1, 4, 2, 3)

    def forward(self, images: Any) -> Any:
        if isinstance(images, Batch):
            return self.gin(images.x, images.edge_index)
        return super().forward(images)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        ones = torch.ones(3, 1, dtype=self.head.weight.dtype)
        return super().training_step(batch, batch_index) + self.gin(ones, edges).square().mean()


@pytest.fixture(autouse=True)
def _strangers_have_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "ForeignModule", Graphs)


def power(**options: Any) -> SeparationPower:
    return SeparationPower(PAIRS, readout="sum", relabelings=2, **options)


@pytest.mark.parametrize("setting", SETTINGS)
def test_training_is_bit_identical(setting: str, tmp_path: Path) -> None:
    guest.check_leaves_no_trace(lambda: [power()], tmp_path, **SETTINGS[setting])


def test_two_processes_record_what_one_does(tmp_path: Path) -> None:
    histories = []
    for processes in (1, 2):
        seed_everything(3)
        strategy = DDPStrategy(process_group_backend="gloo", start_method="fork") if processes == 2 else "auto"
        callbacks = [power(), guest.WriteHistories(tmp_path / f"of_{processes}")]
        trainer = guest.foreign_trainer(tmp_path, callbacks, devices=processes, strategy=strategy, precision="64-true")
        trainer.fit(Graphs(random=False).double())
        histories += [json.loads(path.read_text()) for path in sorted((tmp_path / f"of_{processes}").glob("*.json"))]
    assert len(histories) == 3
    guest.compare_histories(histories[0], histories[1], 0)
    guest.compare_histories(histories[1], histories[2], 0)


def test_history_logs_and_figure(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    callback = power(epochs=2)
    trainer = guest.foreign_trainer(tmp_path, [callback], logger=logger, max_epochs=4)
    trainer.fit(Graphs())
    assert [entry["epoch"] for entry in callback.history] == [2, 4]
    entry = callback.history[-1]
    counts = {
        "separated": 0, "total": 2, "unreliable": 0, "grey": 0, "ceiling/cr": 0, "ceiling/2-fwl": 2, "part/all": 0,
    }  # fmt: skip
    assert entry == entry | counts
    assert entry["control"] < 100
    assert set(trainer.callback_metrics) >= {f"separation/{key}" for key in counts}
    assert (Path(logger.log_dir) / "separation.png").stat().st_size > 5_000
    assert callback.report is not None
    (validated,) = guest.foreign_trainer(tmp_path, [power()]).validate(Graphs(), verbose=False)
    assert validated["separation/total"] == 2


def test_a_resumed_history_is_the_uninterrupted_one(tmp_path: Path) -> None:
    guest.check_resume(lambda: [power()], tmp_path, {"every_n_epochs": 1})


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(NotApplicable, match="no pairs of graphs"):
        guest.foreign_trainer(tmp_path, [SeparationPower()]).fit(Graphs())
    for arguments in ({"epochs": 0}, {"relabelings": 1}, {"level": "tuple"}, {"every_n_epochs": 2}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            SeparationPower(PAIRS, **arguments)
    with pytest.raises(RuntimeError, match="nothing to plot"):
        power().plot()


RING = torch.tensor([[*range(6), *range(1, 6), 0], [*range(1, 6), 0, *range(6)]])


class Project(LightningModule):
    """A graph classifier; ``kind`` says what is special about it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.steps = kind, 0
        width = {"7 features": 7, "embedding": 16}.get(kind, 1)
        self.embedding, self.added = nn.Embedding(28, 16), nn.Linear(16, 16)
        self.conv = GINEConv(nn.Linear(width, 16), edge_dim=1) if kind == "edge_attr" else GIN(width, 16, 2, 16)
        self.head = nn.Linear(16, 1 if kind == "output (B,)" else 2)

    def output(self, data: Any) -> Tensor:
        x = self.embedding(data.x.squeeze(-1)) if self.kind == "embedding" else data.x
        h = self.conv(x, data.edge_index, *([data.edge_attr] if self.kind == "edge_attr" else []))
        if self.kind == "float32 in forward":
            h = h + self.added(torch.ones(data.num_nodes, 16))
        return self.head(global_add_pool(h, data.batch)).squeeze(-1)

    def training_step(self, data: Any, index: int) -> Tensor:
        self.steps += 1
        out = self.output(data)
        return (
            nn.functional.mse_loss(out, data.y.float()) if out.ndim == 1 else nn.functional.cross_entropy(out, data.y)
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Called(Project):
    def forward(self, data: Any) -> Tensor:
        return self.output(data)


def graph_loader(kind: str) -> DataLoader:
    x = torch.randint(0, 28, (6, 1)) if kind == "embedding" else torch.ones(6, 7 if kind == "7 features" else 1)
    graphs = [Data(x=x, edge_index=RING, edge_attr=torch.ones(12, 1), y=torch.tensor([i % 2])) for i in range(8)]
    return DataLoader(graphs, batch_size=4, shuffle=True)


def weights_after_fit(module: Project, callbacks: list[Any], folder: Path) -> dict[str, Tensor]:
    seed_everything(1)
    trainer = guest.foreign_trainer(folder, callbacks, max_epochs=2)
    trainer.fit(module, graph_loader(module.kind))
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("kind", ["7 features", "embedding", "edge_attr", "output (B,)", "float32 in forward"])
def test_strange_projects_are_measured(kind: str, tmp_path: Path) -> None:
    states = []
    for callbacks in ([], [power := SeparationPower(PAIRS, relabelings=2)]):
        seed_everything(0)
        states.append(weights_after_fit(Called(kind), callbacks, tmp_path))
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    assert [entry["total"] for entry in power.history] == [2, 2]
    assert all(entry["separated"] == entry["unreliable"] == 0 for entry in power.history)


def test_what_cannot_be_called_is_refused_before_the_first_step(tmp_path: Path) -> None:
    module = Project("no forward")
    with pytest.raises(NotApplicable, match="call="):
        guest.foreign_trainer(tmp_path, [SeparationPower(PAIRS, relabelings=2)]).fit(module, graph_loader(module.kind))
    assert module.steps == 0
    callback = SeparationPower(PAIRS, relabelings=2, call=lambda module, batch: (module.output(batch), batch.y))
    guest.foreign_trainer(tmp_path, [callback], max_epochs=1).fit(module, graph_loader(module.kind))
    assert callback.history[0]["separated"] == 0


def test_features_come_from_a_training_graph_with_edges(tmp_path: Path) -> None:
    lone = Data(x=torch.ones(1, 1), edge_index=torch.zeros(2, 0, dtype=torch.int64), edge_attr=torch.zeros(0, 1))
    lone.y = torch.tensor([0])
    graphs = [lone, *graph_loader("edge_attr").dataset]
    measured = SeparationPower(PAIRS, relabelings=2)
    guest.foreign_trainer(tmp_path, [measured], max_epochs=1).fit(Called("edge_attr"), DataLoader(graphs, batch_size=4))
    assert measured.history[-1]["total"] == 2
    refused = SeparationPower([(HeteroData(), HeteroData())], relabelings=2)
    with pytest.raises(NotApplicable, match="to_homogeneous"):
        guest.foreign_trainer(tmp_path, [refused]).fit(Called("edge_attr"), graph_loader("edge_attr"))


def test_the_lens_works_without_a_trainer() -> None:
    lens = SeparationLens(PAIRS, relabelings=2, readout="sum")
    numbers = lens(GIN(1, 8, 2, 4))
    assert numbers["ceiling/2-fwl"] == 2
    assert numbers["separated"] == 0

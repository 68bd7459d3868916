"""Separation of pairs of graphs, measured in a project that has never heard of us."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch_geometric.data import Batch
from torch_geometric.nn import GIN

from lit_papers.callbacks import SeparationPower
from lit_papers.expressiveness.graphs import named_pair
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
        callbacks = [power(), guest._WriteHistories(tmp_path / f"of_{processes}")]
        trainer = guest.foreign_trainer(tmp_path, callbacks, devices=processes, strategy=strategy, precision="64-true")
        trainer.fit(Graphs(random=False).double())
        histories += [json.loads(path.read_text()) for path in sorted((tmp_path / f"of_{processes}").glob("*.json"))]
    assert len(histories) == 3
    assert histories[0] == histories[1] == histories[2]


def test_history_logs_and_figure(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    callback = power(every_n_epochs=2)
    trainer = guest.foreign_trainer(tmp_path, [callback], logger=logger, max_epochs=4)
    trainer.fit(Graphs())
    assert [epoch for epoch, _ in callback.history] == [2, 4]
    numbers = callback.history[-1][1]
    assert numbers == {
        "separation/separated": 0, "separation/total": 2, "separation/unreliable": 0, "separation/grey": 0,
        "separation/ceiling/cr": 0, "separation/ceiling/2-fwl": 2, "separation/part/all": 0,
    }  # fmt: skip
    assert set(trainer.callback_metrics) >= set(numbers)
    assert (Path(logger.log_dir) / "separation_power.png").stat().st_size > 5_000
    assert callback.report is not None
    (validated,) = guest.foreign_trainer(tmp_path, [power()]).validate(Graphs(), verbose=False)
    assert validated["separation/total"] == 2


def test_a_resumed_history_is_the_uninterrupted_one(tmp_path: Path) -> None:
    seed_everything(3)
    whole = power()
    saver = ModelCheckpoint(tmp_path / "saved", filename="{epoch}", save_top_k=-1, every_n_epochs=1)
    guest.foreign_trainer(tmp_path, [whole, saver]).fit(Graphs(random=False))
    checkpoints = sorted((tmp_path / "saved").glob("*.ckpt"))
    assert len(checkpoints) == 3
    for checkpoint in checkpoints:
        resumed = power()
        guest.foreign_trainer(tmp_path, [resumed]).fit(Graphs(random=False), ckpt_path=checkpoint, weights_only=True)
        assert resumed.history == whole.history


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="no pairs of graphs"):
        guest.foreign_trainer(tmp_path, [SeparationPower()]).fit(Graphs())
    for arguments in ({"every_n_epochs": 0}, {"relabelings": 1}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            SeparationPower(PAIRS, **arguments)
    with pytest.raises(RuntimeError, match="nothing to plot"):
        power().plot()

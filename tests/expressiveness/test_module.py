"""Training graph networks in a real Trainer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_papers.datamodules import GraphPairs
from lit_papers.expressiveness.kmpnn import KMPNN
from lit_papers.expressiveness.module import SeparationModule
from lit_papers.local_sgd import LocalSGDStrategy


def module(out_channels: int = 10, objective: Any = "classification") -> SeparationModule:
    seed_everything(0, verbose=False)
    network = KMPNN(1, 1, 4, out_channels, 1, batch_norm=True)
    return SeparationModule(network, objective=objective, lr=0.01, weight_decay=0.0)


def trainer(folder: Path, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder}
    return Trainer(**{**defaults, **quiet, **options})


@pytest.fixture
def data() -> GraphPairs:
    return GraphPairs("csl", batch_size=6, indices=range(9))  # three batches


def test_a_checkpoint_of_an_epochs_last_batch_is_recalibrated(data: GraphPairs, tmp_path: Path) -> None:
    """Callbacks save theirs before the module's ``on_train_batch_end``."""
    saver = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=3)
    trained = module()
    trainer(tmp_path, callbacks=[saver], enable_checkpointing=True).fit(trained, data)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(saved, trained.state_dict(), rtol=0, atol=0)


def test_an_epoch_cut_short_by_steps_is_recalibrated_too(data: GraphPairs, tmp_path: Path) -> None:
    trained = module()
    trainer(tmp_path, max_epochs=-1, max_steps=2).fit(trained, data)
    norms = [layer for layer in trained.modules() if isinstance(layer, torch.nn.BatchNorm1d)]
    untouched = module()
    trainer(tmp_path, max_epochs=-1, max_steps=2, limit_train_batches=2).fit(untouched, data)
    others = [layer for layer in untouched.modules() if isinstance(layer, torch.nn.BatchNorm1d)]
    for norm, other in zip(norms, others, strict=True):
        torch.testing.assert_close(norm.running_mean, other.running_mean)
    assert not trained._recent


class Write(Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(logged))


def test_processes_that_average_at_the_epochs_end_are_recalibrated_on_the_average(
    data: GraphPairs, tmp_path: Path
) -> None:
    strategy = LocalSGDStrategy(sync_every=2, start_method="fork")
    trainer(tmp_path, max_epochs=3, devices=2, strategy=strategy, callbacks=[Write(tmp_path)]).fit(module(), data)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["val/loss"] < 3, "that of a guess is 2.3; with each process' own statistics it was thousands"


def test_outputs_and_targets_of_a_regression_must_be_as_many(data: GraphPairs, tmp_path: Path) -> None:
    trainer(tmp_path).fit(module(1, "regression"), data)
    with pytest.raises(ValueError, match=r"a target for each output; got 6 for \(6, 2\)"):
        trainer(tmp_path).fit(module(2, "regression"), data)

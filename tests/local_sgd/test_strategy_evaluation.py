"""Validation and checkpoints see the mean of the ranks; resuming continues each rank where it was."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from lit_papers.local_sgd import LocalSGDStrategy, RandomReshufflingSampler
from lit_papers.local_sgd.loading import ResumableLoader
from tests.local_sgd.small import BATCH, Classifier, Validated, difference, fit, local_sgd, pairs, same, trainer


class Watched(Validated):
    """Notes local weights before, during and after the first validation."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.notes: dict[str, Any] = {}

    def copy(self) -> dict[str, Tensor]:
        return {key: value.clone() for key, value in self.state_dict().items()}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_index: int) -> None:  # validation is next
        if self.trainer.global_step == 4:
            self.notes["before"] = self.copy()

    def on_validation_epoch_start(self) -> None:
        if self.trainer.global_step == 4:
            self.notes["during"] = self.copy()

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        if self.trainer.global_step == 4:
            self.notes["after"] = self.copy()


class SwapsIn(Callback):
    """A moving average of the weights that is validated in their place, as people write it themselves."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.average = {name: value.detach().clone() for name, value in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        for name, value in pl_module.named_parameters():
            self.average[name].lerp_(value.detach(), 0.2)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.before = {name: value.detach().clone() for name, value in pl_module.named_parameters()}
        for name, value in pl_module.named_parameters():
            value.data.copy_(self.average[name])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, value in pl_module.named_parameters():
            value.data.copy_(self.before[name])


@pytest.mark.filterwarnings("ignore:.*have the shapes of the weights")
def test_a_callback_that_swaps_weights_for_validation_changes_no_training() -> None:
    options: dict[str, Any] = {"sync_every": 5, "sync_on_epoch_end": False}
    swapped = fit(Validated(), local_sgd(**options), callbacks=[SwapsIn()], val_check_interval=2)
    plain = fit(Validated(), local_sgd(**options), val_check_interval=2)
    for ours, theirs in zip(swapped, plain, strict=True):
        assert same(ours["weights"], theirs["weights"])


class Resumable(Validated):
    """Notes the weights that it was last validated with."""

    def train_dataloader(self) -> Any:
        data = pairs(2)
        return ResumableLoader(data, BATCH, sampler=RandomReshufflingSampler(data))

    def validation_step(self, batch: Any, batch_index: int) -> None:
        self.notes = {"validated with": {key: value.clone() for key, value in self.state_dict().items()}}


class KeepsOn(SwapsIn):
    """Goes on with its average."""

    average: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.average is None:
            super().on_train_start(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average = state_dict["average"]


@pytest.mark.filterwarnings("ignore:.*have the shapes of the weights")
@pytest.mark.parametrize("sync_on_epoch_end", [True, False])
def test_an_average_that_a_callback_keeps_itself_is_one_on_all_ranks(sync_on_epoch_end: bool, tmp_path: Path) -> None:
    """And goes on in mid-round as it was."""
    options: dict[str, Any] = {"sync_every": 5, "sync_on_epoch_end": sync_on_epoch_end}
    often: dict[str, Any] = {"val_check_interval": 2, "max_epochs": 3}
    saver = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=9)
    whole = fit(Resumable(), local_sgd(**options), callbacks=[KeepsOn(), saver], **often)
    path = tmp_path / "step=9.ckpt"
    resumed = fit(Resumable(), local_sgd(**options), callbacks=[KeepsOn()], ckpt_path=path, **often)
    assert same(whole[0]["validated with"], whole[1]["validated with"])
    assert not same(whole[0]["validated with"], whole[0]["weights"])
    for before, after in zip(whole, resumed, strict=True):
        assert same(before["weights"], after["weights"])
        assert same(before["validated with"], after["validated with"])


class OnTheFirstRankAlone(SwapsIn):
    """Averages in a module, where its file is written."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.model = deepcopy(pl_module.network) if trainer.is_global_zero else None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.model is not None:
            for kept, value in zip(self.model.parameters(), pl_module.network.parameters(), strict=True):
                kept.data.lerp_(value.detach(), 0.2)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pass

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pass


@pytest.mark.filterwarnings("ignore:.*are there on some ranks only")
def test_a_model_that_the_first_rank_alone_keeps_is_no_hang() -> None:
    kept = fit(Validated(), local_sgd(sync_every=5), callbacks=[OnTheFirstRankAlone()], val_check_interval=2)
    plain = fit(Validated(), local_sgd(sync_every=5), val_check_interval=2)
    for ours, theirs in zip(kept, plain, strict=True):
        assert same(ours["weights"], theirs["weights"])


@pytest.mark.parametrize("norm", [False, True])
def test_validation_in_mid_round_sees_the_mean_and_changes_nothing(norm: bool) -> None:
    options: dict[str, Any] = {"sync_every": 3, "average_optimizer_state": True}
    with_validation = fit(Watched(norm=norm), local_sgd(**options), val_check_interval=2)
    without = fit(Classifier(norm=norm), local_sgd(**options))
    for ours, theirs in zip(with_validation, without, strict=True):
        assert same(ours["weights"], theirs["weights"])
        assert ours["n_syncs"] == theirs["n_syncs"]
        assert same(ours["before"], ours["after"])
    first, second = with_validation
    assert not same(first["before"], second["before"])
    mean = {
        key: (first["before"][key] + second["before"][key]) / 2 if first["before"][key].is_floating_point()
        else first["before"][key]
        for key in first["before"]
    }  # fmt: skip
    for rank in with_validation:
        assert difference(rank["during"], mean) <= 1e-7


def test_each_rank_validates_its_own_where_asked() -> None:
    first, second = fit(Watched(), local_sgd(sync_every=3, eval_weights="local"), val_check_interval=2)
    assert same(first["during"], first["before"])
    assert same(second["during"], second["before"])
    assert not same(first["during"], second["during"])


class Steady(Classifier):
    """Loads with a loader that knows its position; its weights after each batch are noted."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.notes: dict[str, Any] = {}

    def train_dataloader(self) -> Any:
        data = pairs(self.trainer.world_size)
        return ResumableLoader(data, BATCH, sampler=RandomReshufflingSampler(data), num_workers=self.workers)


class SteadyValidated(Steady):
    def validation_step(self, batch: Any, batch_index: int) -> None:
        self.log("val/loss", self.network(batch[0]).sum(), sync_dist=True)

    def val_dataloader(self) -> Any:
        return DataLoader(pairs(self.trainer.world_size, 1), BATCH)


class NoteLocal(Callback):
    """Notes each rank's weights after step 13, when the checkpoint of the test is written."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == 13:
            pl_module.notes["local"] = {key: value.clone() for key, value in pl_module.state_dict().items()}


STRATEGIES: dict[str, dict[str, Any]] = {
    "plain": {"sync_every": 3},
    "warm-up": {"sync_every": 4, "warmup_steps": 3},
    "local buffers": {"sync_every": 3, "average_buffers": False},
    "averaged state": {"sync_every": 4, "average_optimizer_state": True},
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("options", STRATEGIES)
def test_resumed_in_mid_round_is_bitwise_uninterrupted(options: str, workers: int, tmp_path: Path) -> None:
    if workers and options != "plain":
        pytest.skip("workers change the loading alone")
    module: dict[str, Any] = {"optimizer": "adam", "norm": True, "workers": workers}
    saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=13, save_top_k=-1)
    whole = fit(Steady(**module), local_sgd(**STRATEGIES[options]), callbacks=[saver, NoteLocal()], max_epochs=3)
    (path,) = (tmp_path / "saved").glob("*step=13.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    locals_ = [rank["local"] for rank in whole]
    assert not same(*locals_), "saved in mid-round"
    for key, value in checkpoint["state_dict"].items():
        if value.is_floating_point() and ("running" not in key or options != "local buffers"):
            mean = (locals_[0][key] + locals_[1][key]) / 2
            torch.testing.assert_close(value, mean, rtol=0, atol=1e-7)
    assert checkpoint["local_sgd"]["consistent"]
    assert checkpoint["local_sgd"]["local_step"] == 13

    torch.manual_seed(99)
    again = fit(Steady(**module), local_sgd(**STRATEGIES[options]), ckpt_path=path, max_epochs=3)
    for resumed, uninterrupted in zip(again, whole, strict=True):
        assert same(resumed["weights"], uninterrupted["weights"])
        torch.testing.assert_close(resumed["optimizers"], uninterrupted["optimizers"], rtol=0, atol=0)
        for counter in ("local_step", "n_syncs", "bytes_communicated", "global_step", "epoch"):
            assert resumed[counter] == uninterrupted[counter], counter


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("sync_on_epoch_end", [True, False])
def test_resumed_at_an_epochs_end_is_bitwise_uninterrupted(
    workers: int, sync_on_epoch_end: bool, tmp_path: Path
) -> None:
    """With an ordinary loader."""
    options: dict[str, Any] = {"sync_every": 3, "sync_on_epoch_end": sync_on_epoch_end}
    saver = ModelCheckpoint(tmp_path / "saved", filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    module: dict[str, Any] = {"optimizer": "momentum", "norm": True, "workers": workers}
    whole = fit(Classifier(**module), local_sgd(**options), callbacks=[saver], max_epochs=4)
    again = fit(
        Classifier(**module), local_sgd(**options), ckpt_path=tmp_path / "saved/epoch=1.ckpt", max_epochs=4, folder="b"
    )
    for resumed, uninterrupted in zip(again, whole, strict=True):
        assert same(resumed["weights"], uninterrupted["weights"])
        assert resumed["n_syncs"] == uninterrupted["n_syncs"]


def test_a_checkpoint_saved_while_validating_in_mid_round(tmp_path: Path) -> None:
    """`ModelCheckpoint` saves while the average is in place; the ranks' own weights must be in the file too."""
    saver = ModelCheckpoint(tmp_path / "saved", filename="{step}", save_top_k=-1)
    options: dict[str, Any] = {"val_check_interval": 4, "max_epochs": 3}
    whole = fit(SteadyValidated(), local_sgd(sync_every=3), callbacks=[saver], **options)
    saved = sorted((tmp_path / "saved").glob("*.ckpt"))
    assert len(saved) == 6
    for path in saved[:-1]:
        again = fit(SteadyValidated(), local_sgd(sync_every=3), ckpt_path=path, folder="b", **options)
        for resumed, uninterrupted in zip(again, whole, strict=True):
            assert same(resumed["weights"], uninterrupted["weights"]), path.name


def test_another_number_of_processes_starts_from_the_average(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=4, save_top_k=-1)
    fit(Steady(), local_sgd(sync_every=3), callbacks=[saver], max_epochs=1)
    path = next((tmp_path / "saved").glob("*step=4.ckpt"))
    average = torch.load(path, weights_only=True)["state_dict"]

    class Stopped(Steady):
        def on_train_start(self) -> None:
            self.notes["start"] = {key: value.clone() for key, value in self.state_dict().items()}
            self.trainer.should_stop = True

    with pytest.warns(UserWarning, match="this checkpoint is of 2 processes, now there are 1"):
        (alone,) = fit(Stopped(), LocalSGDStrategy(sync_every=3), processes=1, ckpt_path=path)
    assert same(alone["start"], average)


def test_validates_without_a_fit() -> None:
    runner = trainer(local_sgd())
    (metrics,) = runner.validate(Validated(), verbose=False)
    assert metrics["val/loss"] > 0

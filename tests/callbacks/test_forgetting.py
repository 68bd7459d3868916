"""The forgetting evaluator in a stranger's project with three validation loaders."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, Subset

from lit_papers.callbacks import Forgetting
from lit_papers.continual import metrics
from lit_papers.continual.tasks import TaskEvents
from tests import guest

TASKS = 3
METRIC = "foreign/accuracy"


class ForeignStream(guest.ForeignModule):
    """A stranger with a validation loader for each of three tasks, who may synchronise what is logged or not."""

    def __init__(self, random: bool = True, sync: bool = False) -> None:
        super().__init__(random)
        self.sync = sync

    def validation_step(self, batch: Any, batch_index: int, dataloader_idx: int = 0) -> None:
        right = (self(batch["image"])[0].argmax(1) == batch["label"]).to(self.head.weight.dtype).mean()
        self.log(METRIC, right, sync_dist=self.sync)

    def val_dataloader(self) -> Any:
        data = guest.ForeignData(self.head.weight.dtype)
        return [DataLoader(Subset(data, range(16 * i, 16 * i + 16)), batch_size=4) for i in range(TASKS)]


@pytest.fixture
def three_loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest checks, on a stranger with a stream."""
    monkeypatch.setattr(guest, "ForeignModule", ForeignStream)


def guests(epochs: int = 1) -> list[Callback]:
    return [Forgetting(METRIC, epochs_per_task=epochs)]


def function(module: LightningModule) -> list[float]:
    """A stranger's own evaluation, which is not careful with modes and random numbers."""
    torch.rand(3)
    images = guest.ForeignData(module.head.weight.dtype).images
    with torch.no_grad():
        return [module(images[16 * i : 16 * i + 16])[0].softmax(1)[:, 0].mean().item() for i in range(TASKS)]


def functional_guests(epochs: int = 1) -> list[Callback]:
    return [Forgetting(epochs_per_task=epochs, evaluate=function)]


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "compiled": {"compiled": True},
    "fast_dev_run": {"fast_dev_run": True},
    "max_steps": {"max_epochs": -1, "max_steps": 9},
}


@pytest.mark.filterwarnings("ignore:Forgetting. no validation took place")  # max_steps cuts an epoch
@pytest.mark.usefixtures("three_loaders")
@pytest.mark.parametrize("make", [guests, functional_guests])
@pytest.mark.parametrize("setting", SETTINGS)
def test_training_is_bit_identical(make: guest.MakeCallbacks, setting: str, tmp_path: Path) -> None:
    guest.check_leaves_no_trace(make, tmp_path, **SETTINGS[setting])


@pytest.mark.usefixtures("three_loaders")
@pytest.mark.parametrize("make", [guests, functional_guests])
def test_two_processes_record_what_one_does(make: guest.MakeCallbacks, tmp_path: Path) -> None:
    guest.check_two_processes(make, tmp_path)


@pytest.mark.usefixtures("three_loaders")
@pytest.mark.parametrize("make", [guests, functional_guests])
@pytest.mark.parametrize("at_epoch_end", [True, False])
def test_resumed_is_uninterrupted(make: guest.MakeCallbacks, at_epoch_end: bool, tmp_path: Path) -> None:
    guest.check_resume(lambda: make(2), tmp_path, {"save_on_train_epoch_end": at_epoch_end})


class Scripted(LightningModule):
    """Logs the accuracies it is told to, whatever it learns."""

    def __init__(self, script: list[list[float]], name: str = "acc") -> None:
        super().__init__()
        self.script = script
        self.name = name
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.layer(batch[0]).sum()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        epoch = -1 if self.trainer.state.fn == "validate" else self.current_epoch
        self.log(self.name, self.script[epoch][dataloader_idx])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        return DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 1)), batch_size=2)

    def val_dataloader(self) -> Any:
        return [self.train_dataloader() for _ in self.script[0]]


SCRIPT = [
    [0.1, 0.1, 0.1],
    [0.9, 0.4, 0.3],
    [0.2] * 3,
    [0.92, 0.85, 0.35],
    [0.3] * 3,
    [0.7, 0.95, 0.88],
    [0.5, 0.45, 0.33],
]


def fit(folder: Path, callback: Forgetting, module: LightningModule, **options: Any) -> Trainer:
    seed_everything(0, verbose=False)
    trainer = guest.foreign_trainer(folder, [callback], **{"max_epochs": 6, **options})
    trainer.fit(module)
    return trainer


def test_the_matrix_is_what_was_logged_at_the_ends_of_tasks(tmp_path: Path) -> None:
    callback = Forgetting("acc", epochs_per_task=2)
    module = Scripted(SCRIPT)
    logger = CSVLogger(tmp_path)
    trainer = guest.foreign_trainer(tmp_path, [callback], max_epochs=6, logger=logger, log_every_n_steps=1)
    trainer.validate(module, verbose=False)
    trainer.fit(module)
    torch.testing.assert_close(callback.matrix, torch.tensor([SCRIPT[1], SCRIPT[3], SCRIPT[5]]))
    assert callback.average_accuracy == pytest.approx(0.843333, abs=1e-6)
    assert callback.forgetting == pytest.approx(0.11, abs=1e-6)
    assert callback.backward_transfer == pytest.approx(-0.05, abs=1e-6)
    assert callback.forward_transfer == pytest.approx(-0.015, abs=1e-6)
    assert trainer.callback_metrics["continual/accuracy"].item() == pytest.approx(0.843333, abs=1e-6)
    assert trainer.callback_metrics["continual/accuracy_task_1"].item() == pytest.approx(0.95)
    assert [entry["epoch"] for entry in callback.history] == [2, 4, 6]
    logger.save()
    written = Path(logger.log_dir)
    assert "continual/forward_transfer" in (written / "metrics.csv").read_text().splitlines()[0]
    assert (written / "continual.png").stat().st_size > 0
    axis = callback.plot().axes[0]
    assert axis.get_ylabel() == "after task"
    assert {text.get_text() for text in axis.texts} >= {"90", "95", "88"}


def test_a_checkpoint_can_watch_it(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, monitor="continual/accuracy", mode="max", save_top_k=1, every_n_epochs=2)
    trainer = guest.foreign_trainer(
        tmp_path, [Forgetting("acc", 2), saver], max_epochs=6, check_val_every_n_epoch=2, num_sanity_val_steps=0
    )
    trainer.fit(Scripted(SCRIPT))
    assert "epoch=1" in saver.best_model_path  # 0.9 on the one task seen


def test_one_loader_has_a_plain_name(tmp_path: Path) -> None:
    callback = Forgetting("acc", epochs_per_task=6)
    fit(tmp_path, callback, Scripted([[row[0]] for row in SCRIPT]))
    assert callback.matrix.tolist() == [[pytest.approx(0.7)]]
    assert callback.forgetting == 0
    assert torch.tensor(callback.forward_transfer).isnan()


def test_nothing_is_known_at_first() -> None:
    callback = Forgetting("acc", 1)
    assert callback.matrix.shape == (0, 0)
    names = ("average_accuracy", "forgetting", "backward_transfer", "forward_transfer")
    assert all(math.isnan(getattr(callback, name)) for name in names)
    with pytest.raises(RuntimeError, match="nothing to plot"):
        callback.plot()


def test_a_skipped_validation_leaves_its_row(tmp_path: Path) -> None:
    class Skip(Callback):
        def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
            trainer.check_val_every_n_epoch = 100 if trainer.current_epoch == 3 else 1

    callback = Forgetting("acc", epochs_per_task=2)
    with pytest.warns(UserWarning, match="end of task 1") as warned:
        guest.foreign_trainer(tmp_path, [callback, Skip()], max_epochs=6).fit(Scripted(SCRIPT))
    assert sum("stays NaN" in str(warning.message) for warning in warned) == 1
    assert callback.matrix[1].isnan().all()
    assert callback.matrix[2].tolist() == pytest.approx(SCRIPT[5])
    assert callback.forgetting == pytest.approx(metrics.forgetting(callback.matrix).item())
    with pytest.warns(UserWarning, match="end of task 0"):
        fit(tmp_path, Forgetting("acc", 2), Scripted(SCRIPT), limit_val_batches=0)


def test_more_tasks_than_loaders(tmp_path: Path) -> None:
    callback = Forgetting("acc", epochs_per_task=1)
    with pytest.warns(UserWarning, match="more than 3 tasks"):
        fit(tmp_path, callback, Scripted(SCRIPT))
    assert callback.matrix.shape == (3, 3)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max, max_past, first"):
        Forgetting(convention="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`epochs_per_task`"):
        Forgetting(epochs_per_task=0)
    with pytest.raises(MisconfigurationException, match="`epochs_per_task`"):
        fit(tmp_path, Forgetting("acc"), Scripted(SCRIPT))
    with pytest.raises(MisconfigurationException, match=r"'other/dataloader_idx_0'.* there are acc/dataloader_idx_0"):
        fit(tmp_path, Forgetting("other", 2), Scripted(SCRIPT))


def test_ranks_that_did_not_synchronise_are_averaged(tmp_path: Path) -> None:
    class PerRank(Scripted):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log(self.name, float(self.global_rank))

    class Check(Callback):
        def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
            assert trainer.callbacks[0].matrix[0].tolist() == [0.5] * 3

    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork")
    guest.foreign_trainer(tmp_path, [Forgetting("acc", 2), Check()], max_epochs=2, devices=2, strategy=strategy).fit(
        PerRank(SCRIPT)
    )


ROWS = [[0.9, 0.1, 0.1], [0.6, 0.9, 0.1], [0.3, 0.5, 0.9]]
NAN = math.nan


class ByTask(Scripted):
    """Logs row t of a script while task t is trained, whatever the epochs."""

    def __init__(self, rows: list[list[float]] = ROWS, name: str = "acc") -> None:
        super().__init__(rows, name)
        self.task = 0

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log(self.name, self.script[self.task][dataloader_idx])


def run(folder: Path, callbacks: list[Callback], module: LightningModule, epochs: int, **options: Any) -> Trainer:
    trainer = guest.foreign_trainer(folder, callbacks, max_epochs=epochs, **options)
    trainer.fit(module)
    return trainer


def check_rows(callback: Forgetting, rows: list[list[float]] = ROWS) -> None:
    torch.testing.assert_close(callback.matrix, torch.tensor(rows), equal_nan=True)
    assert [entry["task"] for entry in callback.history] == list(range(len(rows)))


@pytest.mark.parametrize("options", [{"epochs_per_task": 2}, {"fit_per_task": True}], ids=str)
def test_a_fit_for_each_task(options: dict[str, Any], tmp_path: Path) -> None:
    callback, module = Forgetting("acc", **options), ByTask()
    for task in range(3):
        module.task = task
        run(tmp_path, [callback], module, 2)
    check_rows(callback)
    assert [(entry["fit"], entry["epoch"]) for entry in callback.history] == [(0, 2), (1, 2), (2, 2)]
    assert (callback.average_accuracy, callback.forgetting) == (pytest.approx(1.7 / 3), pytest.approx(0.5))
    other = ByTask([[0.2] * 3] * 3)  # a second seed: nothing of the first is left
    run(tmp_path, [callback], other, 2)
    assert callback.matrix.shape == (3, 3)
    torch.testing.assert_close(callback.matrix[0], torch.full((3,), 0.2))
    assert callback.matrix[1:].isnan().all()
    assert len(callback.history) == 1


def test_early_stopping_ends_tasks(tmp_path: Path) -> None:
    """After three of ten epochs, though nobody says that a fit is a task."""
    callback, module = Forgetting("acc", epochs_per_task=10), ByTask()
    for task in range(3):
        module.task = task
        stop = EarlyStopping("acc/dataloader_idx_0", patience=2, mode="max")
        assert run(tmp_path, [callback, stop], module, 10).current_epoch == 3
    check_rows(callback)


def test_one_trainer_with_more_epochs_each_time(tmp_path: Path) -> None:
    """A task may also be cut in the middle and go on in the next fit."""
    callback, module = Forgetting("acc", epochs_per_task=2), ByTask()
    trainer = guest.foreign_trainer(tmp_path, [callback], max_epochs=0)
    for epochs, task in ((1, 0), (2, 0), (4, 1), (5, 2), (6, 2)):
        module.task = task
        trainer.fit_loop.max_epochs = epochs
        trainer.fit(module)
        assert len(callback.history) == epochs // 2
    check_rows(callback)


def test_a_cut_task_counts_when_another_trainer_begins(tmp_path: Path) -> None:
    callback, module = Forgetting("acc", epochs_per_task=5), ByTask()
    for task in range(3):
        module.task = task
        run(tmp_path, [callback], module, 3)
    torch.testing.assert_close(callback.matrix[:2], torch.tensor(ROWS[:2]))
    assert callback.matrix[2].isnan().all()  # nobody has said that the last one is over


def test_loaders_that_come_with_their_task(tmp_path: Path) -> None:
    class Growing(ByTask):
        def val_dataloader(self) -> Any:
            return [self.train_dataloader() for _ in range(self.current_epoch + 1)]

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("acc", ROWS[self.current_epoch][dataloader_idx])

    callback = Forgetting("acc", epochs_per_task=1)
    run(tmp_path, [callback], Growing(), 3, reload_dataloaders_every_n_epochs=1, num_sanity_val_steps=0)
    check_rows(callback, [[0.9, NAN, NAN], [0.6, 0.9, NAN], [0.3, 0.5, 0.9]])
    assert callback.forgetting == pytest.approx(0.5)


@pytest.mark.parametrize("metric", ["acc_task{}", "acc_task{task}", [f"acc_task{i}" for i in range(3)]], ids=str)
def test_names_of_ones_own(metric: Any, tmp_path: Path) -> None:
    class Named(Scripted):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            value = self.script[self.current_epoch][dataloader_idx]
            self.log(f"acc_task{dataloader_idx}", value, add_dataloader_idx=False)

    callback = Forgetting(metric, epochs_per_task=1)
    run(tmp_path, [callback], Named(ROWS), 3)
    check_rows(callback)


def test_a_validation_has_no_numbers_of_an_earlier_one(tmp_path: Path) -> None:
    """Lightning keeps what was logged before; a stranger who logs the task that runs would have forgotten nothing."""

    class Current(Scripted):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            task = self.current_epoch
            self.log(f"acc_task{task}", self.script[task][task], add_dataloader_idx=False)

        def val_dataloader(self) -> Any:
            return self.train_dataloader()

    callback = Forgetting("acc_task{task}", epochs_per_task=1)
    run(tmp_path, [callback], Current(ROWS), 3)
    known = torch.eye(3, dtype=torch.bool)
    torch.testing.assert_close(callback.matrix[known], torch.tensor(ROWS)[known])
    assert callback.matrix[~known].isnan().all()
    assert math.isnan(callback.forgetting)


def test_a_task_whose_metric_is_not_logged_has_no_row(tmp_path: Path) -> None:
    class Silent(Scripted):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            if self.current_epoch != 1:
                super().validation_step(batch, batch_idx, dataloader_idx)

    callback = Forgetting("acc", epochs_per_task=1)
    with pytest.warns(UserWarning, match="none that logged `metric`"):
        run(tmp_path, [callback], Silent(ROWS), 3)
    assert callback.matrix[1].isnan().all()
    assert callback.matrix[2].tolist() == pytest.approx(ROWS[2])


def test_names_that_count_from_one_are_refused(tmp_path: Path) -> None:
    class FromOne(Scripted):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            value = self.script[self.current_epoch][dataloader_idx]
            self.log(f"acc_task{dataloader_idx + 1}", value, add_dataloader_idx=False)

    with pytest.raises(MisconfigurationException, match=r"tasks count from 0.*give the list of names"):
        run(tmp_path, [Forgetting("acc_task{}", epochs_per_task=1)], FromOne(ROWS), 3)
    callback = Forgetting([f"acc_task{task}" for task in (1, 2, 3)], epochs_per_task=1)
    run(tmp_path, [callback], FromOne(ROWS), 3)
    check_rows(callback)


def test_validating_a_trained_network_gives_no_baseline(tmp_path: Path) -> None:
    callback, module = Forgetting("acc", fit_per_task=True), ByTask()
    for task in range(3):
        module.task = task
        trainer = run(tmp_path, [callback], module, 1)
        trainer.validate(module, verbose=False)
    check_rows(callback)
    assert callback.baseline is None
    assert math.isnan(callback.forward_transfer)


def test_evaluating_an_earlier_checkpoint_loses_no_rows(tmp_path: Path) -> None:
    """Lightning restores callbacks in `validate` and `test` too; a callback without rows still takes them."""
    callback, saver = Forgetting("acc", epochs_per_task=1), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer = run(tmp_path, [callback, saver], Scripted(ROWS), 3, enable_checkpointing=True)
    path, history = tmp_path / "epoch=0.ckpt", list(callback.history)
    trainer.validate(Scripted(ROWS), ckpt_path=path, verbose=False)
    check_rows(callback)
    assert callback.history == history
    fresh = Forgetting("acc", epochs_per_task=1)
    guest.foreign_trainer(tmp_path, [fresh]).validate(Scripted(ROWS), ckpt_path=path, verbose=False)
    torch.testing.assert_close(fresh.matrix[0], torch.tensor(ROWS[0]))


def test_a_metric_that_should_fall(tmp_path: Path) -> None:
    losses = [[0.2, 2.3, 2.3], [1.9, 0.2, 2.3], [2.5, 1.8, 0.2]]
    callback = Forgetting("acc", 1, mode="min", baseline=[2.3] * 3)
    trainer = run(tmp_path, [callback], Scripted(losses), 3)
    assert callback.forgetting == pytest.approx((2.3 + 1.6) / 2)
    assert callback.backward_transfer == pytest.approx(-(2.3 + 1.6) / 2)
    assert callback.forward_transfer == pytest.approx(0.0)
    assert trainer.callback_metrics["continual/value"].item() == pytest.approx(1.5)
    assert "%" not in callback.plot().axes[0].get_title()
    refused = Forgetting("acc", 1)
    with pytest.raises(MisconfigurationException, match=r"2\.3 is no accuracy.*`mode='min'`"):
        run(tmp_path, [refused], Scripted(losses), 3)


def test_steps_and_evaluation_while_a_task_runs(tmp_path: Path) -> None:
    """An online stream: one epoch of six steps, a task of two, a validation after each; accuracy at any time."""

    class Online(Scripted):
        def train_dataloader(self) -> Any:
            return DataLoader(torch.utils.data.TensorDataset(torch.ones(12, 1)), batch_size=2)

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("acc", self.script[self.global_step - 1][dataloader_idx])

    script = [[0.5, 0.1, 0.1], ROWS[0], [0.7, 0.5, 0.1], ROWS[1], [0.4, 0.6, 0.2], ROWS[2]]
    callback = Forgetting("acc", steps_per_task=2)
    run(tmp_path, [callback], Online(script), 1, val_check_interval=1, num_sanity_val_steps=0)
    check_rows(callback)
    seen = [0.5, 0.9, 0.6, 0.75, 0.4, 1.7 / 3]
    assert callback.average_anytime_accuracy == pytest.approx(sum(seen) / 6)


def test_you_say_when_a_task_ends(tmp_path: Path) -> None:
    events = TaskEvents()
    callback, module = Forgetting("acc", tasks=events), ByTask()
    for task in range(3):
        module.task = task
        events.begin_task()
        trainer = run(tmp_path, [callback], module, 1)
        trainer.validate(module, verbose=False)
        events.end_task()
    check_rows(callback)
    with pytest.raises(ValueError, match="`epochs_per_task` and `tasks` all say"):
        Forgetting(epochs_per_task=1, tasks=events)


def test_a_stream_with_a_fit_for_each_task(tmp_path: Path) -> None:
    class Stream(LightningDataModule):
        fit_per_task, total_epochs, task = True, 1, -1

        def setup(self, stage: str) -> None:
            self.task += stage == "fit"

        def task_of(self, epoch: int) -> int:
            return self.task

        def train_dataloader(self) -> Any:
            return module.train_dataloader()

        def val_dataloader(self) -> Any:
            return module.val_dataloader()

    callback, module, data = Forgetting("acc"), ByTask(), Stream()
    for task in range(3):
        module.task = task
        guest.foreign_trainer(tmp_path, [callback], max_epochs=2).fit(module, datamodule=data)
    check_rows(callback)

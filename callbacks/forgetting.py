"""How well every task of a stream is known after each one, and what was forgotten."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lit_papers.callbacks.record import Record, nothing_yet
from lit_papers.continual import metrics
from lit_papers.lens import Subject
from lit_papers.plotting import log_table, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Forgetting(Record):
    """Fills the task-accuracy matrix of any training that goes through tasks, and logs what it says.

    Attach it to any LightningModule that logs a metric for several validation loaders, one a task::

        trainer = Trainer(callbacks=[Forgetting("val/accuracy", epochs_per_task=10)])

    At the validation of each task's last epoch it reads the metric of every loader, row t of the matrix; without
    validation loaders, ``evaluate`` gives the row. After each row all loggers and ``trainer.callback_metrics`` (so that
    ``ModelCheckpoint`` can watch them) get ``continual/accuracy``, ``continual/forgetting``,
    ``continual/backward_transfer``, ``continual/forward_transfer`` (where a baseline is known) and
    ``continual/accuracy_task_{i}``. At the end of fit the matrix is drawn beside the logs.

    A row whose validation did not take place (``limit_val_batches=0``, a resume from the last batch of an epoch) stays
    NaN, with one warning. Processes record the mean of what each has. ``trainer.validate(...)`` before ``fit`` records
    the baseline of forward transfer.

    Args:
        metric: what the module logs for each validation loader, as named in ``self.log``; in [0, 1].
        epochs_per_task: epochs of each task, or simply every how many epochs to evaluate; None asks the data module's
            ``task_of(epoch)``, as `lit_papers.datamodules.TaskSequence` has it.
        convention: of forgetting, ``"max"``, ``"max_past"`` or ``"first"``; see
            `lit_papers.continual.metrics.forgetting`.
        baseline: accuracy of the untrained network on each task.
        evaluate: instead of validation loaders, a function from the module to the accuracies on all tasks; it runs in
            evaluation mode, on every process, and once before training, for the baseline.
        name: prefix of keys and name of the figure; give each of several instances its own.

    Attributes:
        history: one dict a row, with ``epoch`` (1-based), ``task`` (0-based) and what was logged; kept in checkpoints.

    Raises:
        ValueError: an argument is out of its range.
        MisconfigurationException: nothing says where tasks end (at ``setup``), or the metric is not logged (then).
    """

    def __init__(
        self,
        metric: str = "val/knn_accuracy",
        epochs_per_task: int | None = None,
        convention: Literal["max", "max_past", "first"] = "max",
        baseline: Sequence[float] | None = None,
        evaluate: Callable[[Any], Sequence[float]] | None = None,
        name: str = "continual",
    ) -> None:
        super().__init__(name)
        metrics.check_convention(convention)
        if epochs_per_task is not None and epochs_per_task < 1:
            raise ValueError(f"`epochs_per_task` must be at least 1, got {epochs_per_task}")
        self.metric = metric
        self.epochs_per_task = epochs_per_task
        self.convention = convention
        self.baseline = None if baseline is None else [float(value) for value in baseline]
        self.evaluate = evaluate
        self._rows: dict[int, list[float]] = {}

    def begin_anew(self) -> None:
        """Forget the matrix of another network."""
        super().begin_anew()
        self._rows = {}

    # -- what it knows -------------------------------------------------------------------------------------------

    @property
    def matrix(self) -> Tensor:
        """Accuracy on task i (column) after task t (row), float ``(T, T)``; NaN until known, ``(0, 0)`` at first."""
        size = max((len(row) for row in self._rows.values()), default=0)
        matrix = torch.full((size, size), math.nan)
        for task, row in self._rows.items():
            matrix[task] = torch.tensor(row)
        return matrix

    @property
    def average_accuracy(self) -> float:
        """On the tasks seen, now; NaN before the first row."""
        return metrics.average_accuracy(self.matrix).item() if self._rows else math.nan

    @property
    def forgetting(self) -> float:
        """By ``convention``, now; NaN before the first row."""
        return metrics.forgetting(self.matrix, self.convention).item() if self._rows else math.nan

    @property
    def backward_transfer(self) -> float:
        """Now; NaN before the first row."""
        return metrics.backward_transfer(self.matrix).item() if self._rows else math.nan

    @property
    def forward_transfer(self) -> float:
        """Now; NaN before the first row and without a baseline."""
        if not self._rows or self.baseline is None:
            return math.nan
        return metrics.forward_transfer(self.matrix, self.baseline).item()

    # -- when it looks -------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a training whose tasks are not known to end."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self.epochs_per_task is None and not hasattr(_datamodule(trainer), "task_of"):
            raise MisconfigurationException(
                "Forgetting does not know when a task ends: give `epochs_per_task`, or a datamodule with `task_of`"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the baseline by ``evaluate``; after a resume, tell which rows are missing."""
        if self.evaluate is not None and self.baseline is None and trainer.global_step == 0:
            self.baseline = self._evaluated(trainer, pl_module)
        self._warn_of_gaps(trainer, trainer.current_epoch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read a row, at the end of a task; before training, the baseline."""
        if trainer.sanity_checking or self.evaluate is not None:
            return
        if trainer.state.fn == "validate":
            if not self._rows:
                self.baseline = self._read(trainer)
            return
        task = self._task_that_ends(trainer, trainer.current_epoch)
        if task is not None:
            self._record(trainer, task, self._read(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask ``evaluate`` for a row, at the end of a task."""
        task = self._task_that_ends(trainer, trainer.current_epoch)
        if task is not None and self.evaluate is not None:
            self._record(trainer, task, self._evaluated(trainer, pl_module))
        self._warn_of_gaps(trainer, trainer.current_epoch + 1)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the matrix beside the logs, and give it to loggers that take tables."""
        self._warn_of_gaps(trainer, trainer.current_epoch)
        super().on_fit_end(trainer, pl_module)
        if trainer.is_global_zero and self._rows:
            columns = ["after task", *(f"accuracy on task {task}" for task in range(len(self.matrix)))]
            rows = [[task, *row] for task, row in enumerate(self.matrix.tolist())]
            log_table(trainer, "accuracy_matrix", columns, rows)

    def state_dict(self) -> dict[str, Any]:
        """Rows, baseline and history, in plain types."""
        return {**super().state_dict(), "rows": self._rows, "baseline": self.baseline}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the matrix of the run that is resumed."""
        self._rows = dict(state_dict["rows"])
        self.baseline = state_dict["baseline"]
        super().load_state_dict(state_dict)

    def plot(self) -> Figure:
        """The matrix as a heat map, its numbers in %.

        Raises:
            RuntimeError: there is no row yet.
            ImportError: matplotlib is missing.
        """
        if not self._rows:
            raise nothing_yet(type(self).__name__)
        percent = 100 * self.matrix
        tasks = len(percent)
        figure, (axis,) = new_figure(1, 1)
        side = max(3.6, 0.42 * tasks)
        figure.set_size_inches(side + 1, side)
        low = min(90.0, 10 * (percent[~percent.isnan()].min().item() // 10))  # or a good stream would be all black
        image = axis.imshow(percent.numpy(), cmap="Greys", vmin=low, vmax=100)
        for row, column in (~percent.isnan()).nonzero().tolist():
            value = percent[row, column].item()
            axis.text(
                column, row, f"{value:.0f}", ha="center", va="center", fontsize=8,
                color="white" if value > low + 0.55 * (100 - low) else "black",
            )  # fmt: skip
        axis.set_xticks(range(tasks))
        axis.set_yticks(range(tasks))
        axis.set_xlabel("evaluated on task")
        axis.set_ylabel("after task")
        axis.set_title(f"A = {100 * self.average_accuracy:.1f} %, F = {100 * self.forgetting:.1f} points", fontsize=10)
        figure.colorbar(image, ax=axis, label="accuracy (%)", shrink=0.8)
        return figure

    # -- how -----------------------------------------------------------------------------------------------------

    def _task_that_ends(self, trainer: Trainer, epoch: int) -> int | None:
        """The task whose last epoch this is, counted from 0."""
        if self.epochs_per_task is not None:
            task, left = divmod(epoch + 1, self.epochs_per_task)
            return task - 1 if left == 0 else None
        data = _datamodule(trainer)
        task = int(data.task_of(epoch))
        total = getattr(data, "total_epochs", trainer.max_epochs)
        return task if epoch + 1 == total or data.task_of(epoch + 1) != task else None

    def _read(self, trainer: Trainer) -> list[float]:
        loaders = len(trainer.num_val_batches)
        if trainer.state.fn == "validate":
            loaders = len(trainer.validate_loop.max_batches)
        keys = [f"{self.metric}/dataloader_idx_{i}" for i in range(loaders)] if loaders > 1 else [self.metric]
        found = trainer.callback_metrics
        missing = [key for key in keys if key not in found]
        if missing:
            raise MisconfigurationException(
                f"Forgetting found no metric {missing[0]!r} at the end of a task: `metric`={self.metric!r} must be "
                f"logged for each validation loader; there are {', '.join(sorted(found)) or 'none'}"
            )
        return self._shared(trainer, [float(found[key]) for key in keys])

    def _evaluated(self, trainer: Trainer, pl_module: LightningModule) -> list[float]:
        assert self.evaluate is not None  # noqa: S101
        subject = Subject(pl_module, trainer=trainer, reads=None)
        with subject.quiet(), subject.twin() as network, subject.precision():
            row = [float(value) for value in self.evaluate(network)]
        return self._shared(trainer, row)

    def _shared(self, trainer: Trainer, row: list[float]) -> list[float]:
        """The mean over processes: where the module synchronised, each has it already."""
        if trainer.world_size == 1:
            return row
        values = torch.tensor(row, dtype=torch.float64, device=trainer.strategy.root_device)
        return list(trainer.strategy.reduce(values, reduce_op="mean").tolist())

    def _record(self, trainer: Trainer, task: int, row: list[float]) -> None:
        if task >= len(row):
            self.warn_once(f"more than {len(row)} tasks have ended, but only {len(row)} are evaluated: not recorded")
            return
        self._rows[task] = row
        logged = {
            "accuracy": self.average_accuracy,
            "forgetting": self.forgetting,
            "backward_transfer": self.backward_transfer,
            "forward_transfer": self.forward_transfer,
            **{f"accuracy_task_{i}": value for i, value in enumerate(row)},
        }
        if self.baseline is None:
            del logged["forward_transfer"]
        # a validation in the middle of the epoch may have written the row already
        self.history = [entry for entry in self.history if entry["task"] != task]
        self.keep(trainer, logged, more={"task": task})

    def _warn_of_gaps(self, trainer: Trainer, epochs: int) -> None:
        ended = {self._task_that_ends(trainer, epoch) for epoch in range(epochs)} - {None}
        limit = len(self.matrix) or len(ended)
        missing = sorted(task for task in ended if task is not None and task not in self._rows and task < limit)
        if missing:
            self.warn_once(
                f"no validation took place at the end of task {missing[0]}, so its row of the matrix stays NaN; let "
                "`check_val_every_n_epoch` divide the epochs of a task"
            )


def _datamodule(trainer: Trainer) -> Any:
    return getattr(trainer, "datamodule", None)

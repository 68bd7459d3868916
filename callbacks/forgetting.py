"""How well every task of a stream is known after each one, and what was forgotten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import LightningModule, Trainer

from lit_papers.callbacks.record import Record, nothing_yet
from lit_papers.continual.figures import accuracy_matrix_figure
from lit_papers.continual.task_clock import TaskClock
from lit_papers.continual.task_matrix import TaskMatrix
from lit_papers.continual.task_rows import TaskRows
from lit_papers.continual.tasks import TaskEvents
from lit_papers.plotting import log_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Forgetting(Record):
    """Fills the task-accuracy matrix of any training that goes through tasks, and logs what it says.

    A task ends after so many epochs or steps, with the fit (also where early stopping ends it), when the data module's
    ``task_of(epoch)`` says so, or when you say so by ``tasks``. Several fits of one module are one stream.

    At the validation that ends a task it reads the metric of every task, row t of the matrix, NaN where that logs none.
    Then all loggers and ``trainer.callback_metrics`` get ``accuracy`` (``value`` in mode ``"min"``), ``forgetting``,
    ``backward_transfer``, ``anytime_accuracy``, ``forward_transfer`` (with a baseline) and ``accuracy_task_{i}``, after
    ``continual/``. Processes record their mean. ``trainer.validate(...)`` before ``fit`` records the baseline.

    Args:
        metric: what the module logs for each validation loader; a template of the names, such as
            ``"val/acc_task{task}"``; or the list of names. In [0, 1], unless ``mode="min"``.
        epochs_per_task: epochs of each task.
        convention: of forgetting, see `lit_papers.continual.metrics.forgetting`.
        baseline: the metric of the untrained network on each task.
        evaluate: from a copy, in evaluation mode, to all accuracies; such as `lit_papers.continual.lens.SeenAccuracy`.
        name: prefix of keys and name of the figure; give each of several instances its own.
        mode: ``"min"`` for a metric that should fall.
        steps_per_task: optimizer steps of each task; let ``val_check_interval`` divide them.
        fit_per_task: every fit is a task, however many epochs it has.
        tasks: whose events end tasks instead.

    Attributes:
        history: one dict a row, with ``epoch`` (1-based), ``task`` (0-based) and what was logged; in checkpoints.

    Raises:
        ValueError: an argument is out of its range, or two say when tasks end.
        MisconfigurationException: nothing says when tasks end; the metric is not logged, or no accuracy.
    """

    def __init__(
        self,
        metric: str | Sequence[str] = "val/knn_accuracy",
        epochs_per_task: int | None = None,
        convention: Literal["max", "max_past", "first"] = "max",
        baseline: Sequence[float] | None = None,
        evaluate: Callable[[Any], Sequence[float]] | None = None,
        name: str = "continual",
        mode: Literal["max", "min"] = "max",
        steps_per_task: int | None = None,
        fit_per_task: bool = False,
        tasks: TaskEvents | None = None,
    ) -> None:
        super().__init__(name)
        clock = TaskClock(epochs_per_task, steps_per_task, fit_per_task, tasks)
        results = TaskMatrix(mode, convention, baseline)
        self.rows = TaskRows(metric, evaluate, clock, results, self._keep_row, self.warn_once)

    matrix = property(attrgetter("rows.matrix.tensor"), doc="Metric on task i (column) after task t (row), ``(T, T)``.")
    baseline = property(attrgetter("rows.matrix.baseline"), doc="The metric of the untrained network, or None.")
    average_accuracy = property(attrgetter("rows.matrix.average"), doc="On the tasks seen, now.")
    average_anytime_accuracy = property(attrgetter("rows.matrix.anytime"), doc="Its mean over all validations.")
    forgetting = property(attrgetter("rows.matrix.forgetting"), doc="By ``convention``, now.")
    backward_transfer = property(attrgetter("rows.matrix.backward_transfer"), doc="Now; better is positive.")
    forward_transfer = property(attrgetter("rows.matrix.forward_transfer"), doc="Now; NaN without a baseline.")

    def begin_anew(self) -> None:
        """Forget the matrix of another network."""
        super().begin_anew()
        self.rows.clear()

    def plot(self) -> Figure:
        """The matrix as a heat map; accuracies in %."""
        if not self.history:
            raise nothing_yet(type(self).__name__)
        metric = None if self.rows.matrix.mode == "max" else str(self.rows.metric)
        return accuracy_matrix_figure(self.matrix, self.average_accuracy, self.forgetting, metric)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a training whose tasks are not known to end."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.rows.attach(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a task, or go on with one."""
        self.rows.begin_fit(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the task that is due."""
        self.rows.begin_epoch(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """End a task of so many steps, now that its validation is over."""
        self.rows.begin_step(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell what this validation logs from what an earlier one did."""
        self.rows.begin_validation(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the metric of all tasks."""
        self.rows.validated(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the task, if this epoch was its last."""
        self.rows.end_epoch(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the task that the fit was, or that was stopped early."""
        self.rows.end_fit(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the matrix beside the logs, and give it to loggers that take tables."""
        super().on_fit_end(trainer, pl_module)
        if trainer.is_global_zero and self.history:
            columns = ["after task", *(f"accuracy on task {task}" for task in range(len(self.matrix)))]
            log_table(trainer, "accuracy_matrix", columns, [[t, *row] for t, row in enumerate(self.matrix.tolist())])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the trainer."""
        self.rows.detach()

    def state_dict(self) -> dict[str, Any]:
        """Rows, baseline, history and where in the stream it is, in plain types."""
        return {**super().state_dict(), **self.rows.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the matrix of the run that is resumed."""
        super().load_state_dict(state_dict)
        self.rows.load_state_dict(state_dict)

    def _keep_row(self, trainer: Trainer, task: int, epoch: int, row: list[float]) -> None:
        """Keep what a row says, instead of what another validation in the same epoch said."""
        self.history = [entry for entry in self.history if (entry["fit"], entry["task"]) != (self.fit, task)]
        self.keep(trainer, self.rows.matrix.summary(row), epoch=epoch, more={"task": task})

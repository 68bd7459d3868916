"""How well every task of a stream is known after each one, and what was forgotten."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lit_papers.callbacks.record import Record, nothing_yet
from lit_papers.continual.figures import accuracy_matrix_figure
from lit_papers.continual.task_clock import TaskClock
from lit_papers.continual.task_matrix import TaskMatrix
from lit_papers.continual.tasks import TaskEvents
from lit_papers.lens import Subject
from lit_papers.plotting import log_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_TASKS = 1000  # that a template is tried for


class Forgetting(Record):
    """Fills the task-accuracy matrix of any training that goes through tasks, and logs what it says.

    Attach it to any LightningModule that logs a metric for each task::

        trainer = Trainer(callbacks=[Forgetting("val/accuracy", epochs_per_task=10)])

    A task ends after so many epochs or steps, with the fit (also where early stopping ends it), when the data module's
    ``task_of(epoch)`` says so, or when you say so by ``tasks``. Several fits of one module, by one trainer or by
    several, are one stream; another module begins anew.

    At the validation that ends a task it reads the metric of every task, row t of the matrix; what is not logged, as of
    tasks whose loader is not there yet, is NaN. Without validation loaders, ``evaluate`` gives the row. After each row
    all loggers and ``trainer.callback_metrics`` (so that ``ModelCheckpoint`` can watch them) get
    ``continual/accuracy``, ``continual/forgetting``, ``continual/backward_transfer``, ``continual/anytime_accuracy``
    (over all validations so far), ``continual/forward_transfer`` (where a baseline is known) and
    ``continual/accuracy_task_{i}``; with ``mode="min"`` ``value`` stands for ``accuracy``.

    A row whose validation did not take place (``limit_val_batches=0``, a resume from the last batch of an epoch) stays
    NaN, with one warning. Processes record the mean of what each has. ``trainer.validate(...)`` before ``fit`` records
    the baseline of forward transfer.

    Args:
        metric: what the module logs for each validation loader, as named in ``self.log``; or a template of the names of
            all tasks, such as ``"val/acc_task{task}"``; or the list of their names. In [0, 1], unless ``mode="min"``.
        epochs_per_task: epochs of each task, or simply every how many epochs to evaluate; without it and the other
            three, the data module's ``task_of(epoch)`` is asked, as `lit_papers.datamodules.TaskSequence` has it.
        convention: of forgetting, ``"max"``, ``"max_past"`` or ``"first"``; see
            `lit_papers.continual.metrics.forgetting`.
        baseline: the metric of the untrained network on each task.
        evaluate: instead of validation loaders, a function from the module to the accuracies on all tasks, such as
            `lit_papers.continual.lens.SeenAccuracy`; it gets a copy in evaluation mode, on every process, and once
            before training, for the baseline.
        name: prefix of keys and name of the figure; give each of several instances its own.
        mode: ``"min"`` for a metric that should fall: forgetting is then its rise.
        steps_per_task: optimizer steps of each task; let ``val_check_interval`` divide them.
        fit_per_task: every fit is a task, however many epochs it has.
        tasks: whose events end tasks, where neither epochs, steps nor fits do.

    Attributes:
        history: one dict a row, with ``epoch`` (1-based), ``task`` (0-based) and what was logged; kept in checkpoints.

    Raises:
        ValueError: an argument is out of its range, or two say when tasks end.
        MisconfigurationException: nothing says where tasks end (at ``setup``), the metric is not logged (at the end of
            the first task), or it is no accuracy (at the first validation that shows it).
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
        if not isinstance(metric, str) and (not metric or not all(isinstance(one, str) for one in metric)):
            raise ValueError(f"`metric` must be a name, a template or a list of names, got {metric!r}")
        self.metric = metric if isinstance(metric, str) else list(metric)
        self.evaluate = evaluate
        self.clock = TaskClock(epochs_per_task, steps_per_task, fit_per_task, tasks)
        self.clock.listen(end=self._task_ended)
        self.results = TaskMatrix(mode, convention, baseline)
        self._last: tuple[int, list[float]] | None = None  # epoch and row of the last validation in it
        self._trainer: Trainer | None = None
        self._validated: tuple[weakref.ref[LightningModule], list[float]] | None = None

    def begin_anew(self) -> None:
        """Forget the matrix of another network."""
        super().begin_anew()
        self.results.clear()
        self.clock.clear()
        self._last = None

    # -- what it knows -------------------------------------------------------------------------------------------

    @property
    def matrix(self) -> Tensor:
        """The metric on task i (column) after task t (row), float ``(T, T)``; NaN until known, ``(0, 0)`` at first."""
        return self.results.tensor

    @property
    def baseline(self) -> list[float] | None:
        """The metric of the untrained network on each task, if it is known."""
        return self.results.baseline

    @property
    def average_accuracy(self) -> float:
        """On the tasks seen, now; NaN before the first row."""
        return self.results.average

    @property
    def average_anytime_accuracy(self) -> float:
        """On the tasks seen, averaged over all validations of the stream (Koh et al. 2022)."""
        return self.results.anytime

    @property
    def forgetting(self) -> float:
        """By ``convention``, now; NaN before the first row."""
        return self.results.forgetting

    @property
    def backward_transfer(self) -> float:
        """Now, better is positive; NaN before the first row."""
        return self.results.backward_transfer

    @property
    def forward_transfer(self) -> float:
        """Now, better is positive; NaN before the first row and without a baseline."""
        return self.results.forward_transfer

    def plot(self) -> Figure:
        """The matrix as a heat map; accuracies in %.

        Raises:
            RuntimeError: there is no row yet.
            ImportError: matplotlib is missing.
        """
        if not self.results.rows:
            raise nothing_yet(type(self).__name__)
        metric = None if self.results.mode == "max" else str(self.metric)
        return accuracy_matrix_figure(self.matrix, self.average_accuracy, self.forgetting, metric)

    # -- when it looks -------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a training whose tasks are not known to end."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._trainer = trainer
            if self.baseline is None and self._validated is not None and self._validated[0]() is pl_module:
                self.results.baseline = self._validated[1]
            self.clock.check(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the baseline by ``evaluate``; begin a task, or go on with one."""
        if self.evaluate is not None and self.baseline is None and trainer.global_step == 0:
            self.results.baseline = self._evaluated(trainer, pl_module)
        if self.clock.begin_fit(trainer):
            baseline = self.baseline
            self.results.clear()
            self.clock.clear()
            self.results.baseline = baseline
        self._last = None
        self.clock.catch_up(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a task; what was validated in an earlier epoch is not what it ends with."""
        self._last = None
        self.clock.catch_up(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """End a task of so many steps, now that its validation is over."""
        if self.clock.by_steps and self.clock.is_last(trainer):
            self._end(trainer, pl_module)
            self.clock.catch_up(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the metric of all tasks: a row, at the end of a task; before training, the baseline."""
        if trainer.sanity_checking or self.evaluate is not None:
            return
        if trainer.state.fn == "fit":
            row = self._read(trainer, needed=self.clock.is_last(trainer))
            self._note(trainer, row, trainer.current_epoch + 1)
        elif (row := self._read(trainer, needed=not self.results.rows)) is not None:  # of `trainer.validate`
            self._validated = (weakref.ref(pl_module), row)
            if self.clock.foreign and self.clock.events.running:
                self._last = trainer.current_epoch, row
            elif not self.results.rows and (self._module is None or self._module() is pl_module):
                self.results.baseline = row

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the task, if this epoch was its last."""
        if not self.clock.by_steps and self.clock.is_last(trainer):
            self._end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the task that the fit was, or that was stopped early."""
        if self.clock.ends_with_fit(trainer):
            self._end(trainer, pl_module, by_fit=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the matrix beside the logs, and give it to loggers that take tables."""
        super().on_fit_end(trainer, pl_module)
        if trainer.is_global_zero and self.results.rows:
            columns = ["after task", *(f"accuracy on task {task}" for task in range(len(self.matrix)))]
            rows = [[task, *row] for task, row in enumerate(self.matrix.tolist())]
            log_table(trainer, "accuracy_matrix", columns, rows)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the trainer, unless it is you who says when tasks end: that may come later."""
        if not self.clock.foreign:
            self._trainer = None

    def state_dict(self) -> dict[str, Any]:
        """Rows, baseline, history and where in the stream it is, in plain types."""
        return {**super().state_dict(), **self.results.state_dict(), "clock": self.clock.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the matrix of the run that is resumed."""
        super().load_state_dict(state_dict)
        self.results.load_state_dict(state_dict)
        self.clock.load_state_dict(state_dict["clock"])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_trainer": None, "_validated": None}  # as what the base leaves out

    # -- how -----------------------------------------------------------------------------------------------------

    def _end(self, trainer: Trainer, pl_module: LightningModule, by_fit: bool = False) -> None:
        """End the running task; `_task_ended` hears of it."""
        self._trainer = trainer
        if self.evaluate is not None:
            self._note(trainer, self._evaluated(trainer, pl_module), trainer.current_epoch + (not by_fit))
        if not by_fit:
            self._last = None  # its row is recorded, or there was no validation when it ended
        self.clock.events.end_task()

    def _task_ended(self, task: int) -> None:
        """Record what was validated last; or say that nothing was."""
        last, self._last = self._last, None
        trainer, module = self._trainer, self._module() if self._module is not None else None
        if self.clock.foreign and self.evaluate is not None and trainer is not None and module is not None:
            last = trainer.current_epoch, self._evaluated(trainer, module)
        if last is not None and trainer is not None:
            self._record(trainer, task, *last)
        elif task not in self.results.rows and task < max(map(len, self.results.rows.values()), default=task + 1):
            self.warn_once(
                f"no validation took place at the end of task {task}, so its row of the matrix stays NaN; let "
                "`check_val_every_n_epoch` divide the epochs of a task"
            )

    def _note(self, trainer: Trainer, row: list[float] | None, epoch: int) -> None:
        """Keep a row in case the task ends with it; record it, if that is known now."""
        if row is None:
            return
        fault = self.results.fault_of(row)
        if fault is not None and not self.results.rows:
            raise MisconfigurationException(f"Forgetting: `metric`={self.metric!r}: {fault}")
        if fault is not None:
            self.warn_once(f"{self.metric!r}: {fault}; the row is left out")
            return
        self._last, task = (epoch, row), self.clock.events.task
        self.results.evaluated(task, row)
        if self.clock.is_last(trainer):  # in time for callbacks that watch metrics; the last of several stays
            self._record(trainer, task, epoch, row)

    def _record(self, trainer: Trainer, task: int, epoch: int, row: list[float]) -> None:
        if task >= len(row):
            self.warn_once(f"more than {len(row)} tasks have ended, but only {len(row)} are evaluated: not recorded")
            return
        self.results.rows[task] = row
        # a validation in the middle of the epoch may have written the row already
        self.history = [entry for entry in self.history if (entry["fit"], entry["task"]) != (self.fit, task)]
        self.keep(trainer, self.results.summary(row), epoch=epoch, more={"task": task})

    def _read(self, trainer: Trainer, needed: bool) -> list[float] | None:
        """The metric of all tasks, NaN where it was not logged; None if it was for none, and need not be."""
        found, keys = trainer.callback_metrics, self._keys(trainer)
        if any(key in found for key in keys):
            return self._shared(trainer, [float(found[key]) if key in found else math.nan for key in keys])
        if not needed:
            return None
        raise MisconfigurationException(
            f"Forgetting found no metric {keys[0]!r} at the end of a task: `metric`={self.metric!r} must be "
            f"logged for each validation loader; there are {', '.join(sorted(found)) or 'none'}"
        )

    def _keys(self, trainer: Trainer) -> list[str]:
        if not isinstance(self.metric, str):
            return self.metric
        if "{" in self.metric:
            names = [self.metric.format(task, i=task, task=task) for task in range(_MOST_TASKS)]
            there = [task for task, name in enumerate(names) if name in trainer.callback_metrics]
            return names[: max(there, default=0) + 1]
        validating = trainer.state.fn == "validate"
        loaders = len(trainer.validate_loop.max_batches if validating else trainer.num_val_batches)
        return [f"{self.metric}/dataloader_idx_{i}" for i in range(loaders)] if loaders > 1 else [self.metric]

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

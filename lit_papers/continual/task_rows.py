"""What was evaluated last before a task ended: a row of the task-accuracy matrix."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer

from lit_papers.continual.task_clock import TaskClock
from lit_papers.continual.task_matrix import TaskMatrix
from lit_papers.lens import Subject

_MOST_TASKS = 1000  # that a template is tried for


class TaskRows:
    """Fills a task-accuracy matrix from the validations, or the evaluations, of any training.

    Args:
        metric: the name, a template of names or all names of what is logged for each task.
        evaluate: instead of it, a function from the module to the accuracies on all tasks.
        clock: says when a task ends.
        matrix: to fill.
        keep: called with trainer, task, epoch and row when a row is known; once more if it changes.
        warn: called with what a user should know.

    Raises:
        ValueError: ``metric`` is neither a name nor names.
    """

    def __init__(
        self,
        metric: str | Sequence[str],
        evaluate: Callable[[Any], Sequence[float]] | None,
        clock: TaskClock,
        matrix: TaskMatrix,
        keep: Callable[[Trainer, int, int, list[float]], None],
        warn: Callable[[str], None],
    ) -> None:
        if not isinstance(metric, str) and (not metric or not all(isinstance(one, str) for one in metric)):
            raise ValueError(f"`metric` must be a name, a template or a list of names, got {metric!r}")
        self.metric = metric if isinstance(metric, str) else list(metric)
        self.evaluate, self.clock, self.matrix = evaluate, clock, matrix
        self._keep, self._warn = keep, warn
        self._last: tuple[int, list[float]] | None = None  # epoch and row of the last validation in it
        self._trainer: Trainer | None = None
        self._module: weakref.ref[LightningModule] | None = None
        self._validated: tuple[weakref.ref[LightningModule], list[float]] | None = None  # before any fit
        self._stale: dict[str, Any] = {}  # what was logged before the validation that runs
        clock.listen(end=self._task_ended)

    def clear(self) -> None:
        """Forget the matrix of another network, or of another stream."""
        self.matrix.clear()
        self.clock.clear()
        self._last = None

    def attach(self, trainer: Trainer, module: LightningModule) -> None:
        """Before a fit: refuse one whose tasks are not known to end; take the baseline that was validated before.

        Raises:
            MisconfigurationException: nothing says where tasks end.
        """
        self._trainer, self._module = trainer, weakref.ref(module)
        if self.matrix.baseline is None and self._validated is not None and self._validated[0]() is module:
            self.matrix.baseline = self._validated[1]
        self.clock.check(trainer)

    def detach(self) -> None:
        """Let go of the trainer, unless it is the user who says when tasks end: that may come later."""
        if not self.clock.foreign:
            self._trainer = None

    def begin_fit(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure the baseline by ``evaluate``; begin a stream, or go on with one."""
        if self.evaluate is not None and self.matrix.baseline is None and trainer.global_step == 0:
            self.matrix.baseline = self._evaluated(trainer, module)
        if self.clock.begin_fit(trainer):
            baseline = self.matrix.baseline
            self.clear()
            self.matrix.baseline = baseline
        self.begin_epoch(trainer)

    def begin_epoch(self, trainer: Trainer) -> None:
        """Begin the task that is due; what was validated in an earlier epoch is not what it ends with."""
        self._last = None
        self.clock.catch_up(trainer)

    def begin_validation(self, trainer: Trainer) -> None:
        """Mark what is logged already: Lightning keeps it where a validation logs nothing of the name."""
        self._stale = {key: copy.copy(value) for key, value in trainer.callback_metrics.items()}
        trainer.callback_metrics.update(self._stale)

    def validated(self, trainer: Trainer, module: LightningModule) -> None:
        """Read the metric of all tasks, a row where the task ends with it; before training, the baseline.

        Raises:
            MisconfigurationException: it is not logged at the end of the first task, or it is no accuracy.
        """
        if trainer.sanity_checking or self.evaluate is not None:
            return
        if trainer.state.fn == "fit":
            row = self._read(trainer, needed=self.clock.is_last(trainer) and not self.matrix.rows)
            self._note(trainer, row, trainer.current_epoch + 1)
        elif (row := self._read(trainer, needed=not self.matrix.rows)) is not None:  # of `trainer.validate`
            trained = self._module is not None and self._module() is module
            if not trained:
                self._validated = (weakref.ref(module), row)
            if self.clock.foreign and self.clock.events.running:
                self._last = trainer.current_epoch, row
            elif self._module is None and not self.matrix.rows:
                self.matrix.baseline = row

    def begin_step(self, trainer: Trainer, module: LightningModule) -> None:
        """End a task of so many steps, now that its validation is over, and begin the next."""
        if self.clock.by_steps and self.clock.is_last(trainer):
            self._end(trainer, module)
            self.clock.catch_up(trainer)

    def end_epoch(self, trainer: Trainer, module: LightningModule) -> None:
        """End the task, if this epoch was its last."""
        if not self.clock.by_steps and self.clock.is_last(trainer):
            self._end(trainer, module)

    def end_fit(self, trainer: Trainer, module: LightningModule) -> None:
        """End the task that the fit was, or that was stopped early."""
        if self.clock.ends_with_fit(trainer):
            self._end(trainer, module, by_fit=True)

    def _end(self, trainer: Trainer, module: LightningModule, by_fit: bool = False) -> None:
        """End the running task with the last row; the clock's events tell us of it as of a foreign one."""
        self._trainer = trainer
        if self.evaluate is not None:
            self._note(trainer, self._evaluated(trainer, module), trainer.current_epoch + (not by_fit))
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
        elif task not in self.matrix.rows and task < max(map(len, self.matrix.rows.values()), default=task + 1):
            self._warn(
                f"no validation took place at the end of task {task}, or none that logged `metric`, so its row of the "
                "matrix stays NaN; let `check_val_every_n_epoch` divide the epochs of a task"
            )

    def _note(self, trainer: Trainer, row: list[float] | None, epoch: int) -> None:
        """Keep a row in case the task ends with it; record it, if that is known now."""
        if row is None:
            return
        fault = self.matrix.fault_of(row)
        if fault is not None and not self.matrix.rows:
            raise MisconfigurationException(f"Forgetting: `metric`={self.metric!r}: {fault}")
        if fault is not None:
            self._warn(f"{self.metric!r}: {fault}; the row is left out")
            return
        self._last, task = (epoch, row), self.clock.events.task
        self.matrix.evaluated(task, row)
        if self.clock.is_last(trainer):  # in time for callbacks that watch metrics; the last of several stays
            self._record(trainer, task, epoch, row)

    def _record(self, trainer: Trainer, task: int, epoch: int, row: list[float]) -> None:
        if task >= len(row):
            self._warn(f"more than {len(row)} tasks have ended, but only {len(row)} are evaluated: not recorded")
            return
        self.matrix.rows[task] = row
        self._keep(trainer, task, epoch, row)

    def _read(self, trainer: Trainer, needed: bool) -> list[float] | None:
        """The metric of all tasks, NaN where it was not logged; None if it was for none, and need not be."""
        logged, keys = trainer.callback_metrics, self._keys(trainer)
        found = {key: logged[key] for key in keys if key in logged and logged[key] is not self._stale.get(key)}
        if found:
            return _shared(trainer, [float(found[key]) if key in found else math.nan for key in keys])
        if not needed:
            return None
        raise MisconfigurationException(
            f"Forgetting found no metric {keys[0]!r} at the end of a task: `metric`={self.metric!r} must be "
            f"logged for each validation loader; there are {', '.join(sorted(logged)) or 'none'}"
        )

    def _keys(self, trainer: Trainer) -> list[str]:
        if not isinstance(self.metric, str):
            return self.metric
        if "{" in self.metric:
            names = [self.metric.format(task, i=task, task=task) for task in range(_MOST_TASKS)]
            there = [task for task, name in enumerate(names) if name in trainer.callback_metrics]
            if there and there[0] == 1 and not self.matrix.rows and self.clock.events.task <= 0:
                raise MisconfigurationException(
                    f"Forgetting: `metric`={self.metric!r}: tasks count from 0, but {names[1]!r} is logged and no "
                    f"{names[0]!r}: give the list of names"
                )
            return names[: max(there, default=0) + 1]
        validating = trainer.state.fn == "validate"
        loaders = len(trainer.validate_loop.max_batches if validating else trainer.num_val_batches)
        return [f"{self.metric}/dataloader_idx_{i}" for i in range(loaders)] if loaders > 1 else [self.metric]

    def _evaluated(self, trainer: Trainer, module: LightningModule) -> list[float]:
        assert self.evaluate is not None  # noqa: S101
        subject = Subject(module, trainer=trainer, reads=None)
        with subject.quiet(), subject.twin() as network, subject.precision():
            row = [float(value) for value in self.evaluate(network)]
        return _shared(trainer, row)

    def state_dict(self) -> dict[str, Any]:
        """Rows, baseline and where in the stream it is, in plain types."""
        return {**self.matrix.state_dict(), "clock": self.clock.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the rows of the run that is resumed."""
        self.matrix.load_state_dict(state)
        self.clock.load_state_dict(state["clock"])

    def __getstate__(self) -> dict[str, Any]:
        # weak references do not travel
        return {**self.__dict__, "_trainer": None, "_module": None, "_validated": None, "_stale": {}}


def _shared(trainer: Trainer, row: list[float]) -> list[float]:
    """The mean over processes: where the module synchronised, each has it already."""
    if trainer.world_size == 1:
        return row
    values = torch.tensor(row, dtype=torch.float64, device=trainer.strategy.root_device)
    return list(trainer.strategy.reduce(values, reduce_op="mean").tolist())

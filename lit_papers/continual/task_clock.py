"""When tasks end in a Trainer's training: after epochs, steps or fits, by a stream, or when somebody says so."""

from collections.abc import Callable
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from lit_papers.continual.tasks import TaskEvents


class TaskClock:
    """Raises the task events of trainings that do not raise them.

    Several fits of one network, by one trainer or by several, are one stream: a fit that starts at epoch 0 begins the
    next task. Without any argument the data module's ``task_of(epoch)`` says which task an epoch belongs to.

    Args:
        epochs: of each task.
        steps: optimizer steps of each task.
        fit: every fit is a task.
        events: of somebody else, who says when tasks end.

    Attributes:
        events: where tasks begin and end.

    Raises:
        ValueError: an argument is out of its range, or several are given.
    """

    def __init__(
        self, epochs: int | None = None, steps: int | None = None, fit: bool = False, events: TaskEvents | None = None
    ) -> None:
        given = {"epochs_per_task": epochs, "steps_per_task": steps, "fit_per_task": fit or None, "tasks": events}
        for name, value in (("epochs_per_task", epochs), ("steps_per_task", steps)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        told = [f"`{name}`" for name, value in given.items() if value is not None]
        if len(told) > 1:
            raise ValueError(f"{' and '.join(told)} all say when a task ends: give one of them")
        self.events = TaskEvents() if events is None else events
        self.foreign = events is not None
        self._epochs, self._steps, self._fit = epochs, steps, fit
        self._by_stream = not told
        self._start = 0  # epoch or step at which the running task began

    def check(self, trainer: Trainer) -> None:
        """Refuse a training whose tasks are not known to end.

        Raises:
            MisconfigurationException: nothing says so.
        """
        if self._by_stream and not hasattr(_datamodule(trainer), "task_of"):
            raise MisconfigurationException(
                "Forgetting does not know when a task ends: give `epochs_per_task`, `steps_per_task`, `fit_per_task` "
                "or `tasks`, or a datamodule with `task_of`"
            )

    def clear(self) -> None:
        """Begin with the first task again, unless somebody else counts."""
        if not self.foreign:
            self.events.load_state_dict({"task": -1, "running": False})
        self._start = 0

    @property
    def by_steps(self) -> bool:
        """Whether a task is so many steps."""
        return self._steps is not None

    def begin_fit(self, trainer: Trainer) -> bool:
        """End what an earlier fit had left running, where this one starts anew.

        Returns:
            Whether a stream begins that was over: its tasks are counted from 0 again.
        """
        if self.foreign or trainer.current_epoch or trainer.global_step:
            return False
        if self.events.running:
            self.events.end_task()
        self._start = 0
        return self._by_stream and self.events.task >= int(_datamodule(trainer).task_of(0))

    def is_last(self, trainer: Trainer) -> bool:
        """Whether this epoch, or the steps so far, are the last of the running task."""
        if self.foreign or self._fit or not self.events.running:
            return False
        epoch = trainer.current_epoch
        if self._steps is not None:
            return trainer.global_step - self._start >= self._steps
        if self._epochs is not None:
            return epoch + 1 - self._start >= self._epochs
        data = _datamodule(trainer)
        if getattr(data, "fit_per_task", False):
            return False
        over = epoch + 1 == getattr(data, "total_epochs", trainer.max_epochs)
        return over or int(data.task_of(epoch + 1)) > int(data.task_of(epoch))

    def catch_up(self, trainer: Trainer) -> None:
        """Begin the task that is due; end those whose end a resume has skipped."""
        events, epoch = self.events, trainer.current_epoch
        if self.foreign:
            return
        if self._by_stream:
            task = int(_datamodule(trainer).task_of(epoch))
            if events.task < 0:  # of several tasks at once only the last begins
                events.begin_task(task)
            events.reach(task)
            if not events.running and epoch < getattr(_datamodule(trainer), "total_epochs", epoch + 1):
                events.begin_task(task)
            return
        while self._epochs and events.running and epoch - self._start >= self._epochs:
            self._start += self._epochs
            events.begin_task()
        if not events.running:
            events.begin_task()
            self._start = trainer.global_step if self._steps is not None else epoch

    def ends_with_fit(self, trainer: Trainer) -> bool:
        """Whether the end of the fit ends the running task: a fit is one, or it was stopped early."""
        if self.foreign or not self.events.running:
            return False
        own = self._fit or (self._by_stream and getattr(_datamodule(trainer), "fit_per_task", False))
        now = trainer.global_step if self._steps is not None else trainer.current_epoch
        return own or (trainer.should_stop and now > self._start) or (self.by_steps and self.is_last(trainer))

    def listen(self, end: Callable[[int], None]) -> None:
        """Call a function of the task's number whenever one ends."""
        self.events.listen(end=end)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        return {**self.events.state_dict(), "start": self._start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up again."""
        self.events.load_state_dict(state)
        self._start = state["start"]


def _datamodule(trainer: Trainer) -> Any:
    return getattr(trainer, "datamodule", None)

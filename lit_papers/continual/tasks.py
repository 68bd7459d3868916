"""Which task a training is in: one owner, which tells who listens when tasks begin and end."""

from collections.abc import Callable
from typing import Any

Listener = Callable[[int], None]


class TaskEvents:
    """Tasks as events: the one place that knows which task runs, and which ran last.

    Whoever knows that a task is over says so: a stream by its schedule, a fit that is a task, early stopping, a count
    of steps, or you. Learners and callbacks `listen` and do nothing else to know it. Tasks are counted from 0.

    Attributes:
        task: the one that runs or, between tasks, ran last; -1 before the first.
        running: whether it runs.

    >>> events = TaskEvents()
    >>> events.listen(begin=lambda task: print("begin", task), end=lambda task: print("end", task))
    >>> events.begin_task()
    begin 0
    >>> events.reach(2)
    end 0
    begin 1
    end 1
    begin 2
    >>> events.reach(2), events.end_task()
    end 2
    (None, None)
    """

    def __init__(self) -> None:
        self.task = -1
        self.running = False
        self._begin: list[Listener] = []
        self._end: list[Listener] = []

    def listen(self, begin: Listener | None = None, end: Listener | None = None) -> None:
        """Call functions of the task's number when one begins, and when it ends."""
        self._begin += [begin] if begin else []
        self._end += [end] if end else []

    def begin_task(self, task: int | None = None) -> None:
        """Begin a task, the next if it is not named; one that still runs ends first.

        Raises:
            ValueError: ``task`` is negative.
        """
        if task is not None and task < 0:
            raise ValueError(f"`task` must be at least 0, got {task}")
        if self.running:
            self.end_task()
        self.task = self.task + 1 if task is None else task
        self.running = True
        for listener in self._begin:
            listener(self.task)

    def end_task(self) -> None:
        """End the task that runs.

        Raises:
            RuntimeError: none does.
        """
        if not self.running:
            raise RuntimeError("no task runs: `begin_task` comes first")
        for listener in self._end:
            listener(self.task)
        self.running = False  # last, so that a checkpoint written by a listener has the task to do again

    def reach(self, task: int) -> None:
        """End and begin tasks, one after the other, until this one has begun; nothing, if it has."""
        while self.task < task:
            self.begin_task()

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        return {"task": self.task, "running": self.running}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up again, silently: who listened then has saved what it did."""
        self.task, self.running = state["task"], state["running"]

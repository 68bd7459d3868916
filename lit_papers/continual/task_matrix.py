"""A task-accuracy matrix that grows row by row, and what it says now."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lit_papers.continual import metrics

_ROUNDING = 1e-6


class TaskMatrix:
    """Row t has the metric on all tasks after task t; rows may be missing, and grow with the tasks.

    Args:
        mode: ``"min"`` for a metric that should fall: forgetting is then its rise.
        convention: of forgetting, see `lit_papers.continual.metrics.forgetting`.
        baseline: the metric of the untrained network on each task.

    Attributes:
        rows: by task, the metric on each task; NaN where it was not evaluated.
        baseline: as given, or found later.

    Raises:
        ValueError: an argument is out of its range.

    >>> matrix = TaskMatrix("min")
    >>> matrix.rows = {0: [0.2], 1: [1.5, 0.3]}
    >>> round(matrix.forgetting, 6), round(matrix.average, 6)
    (1.3, 0.9)
    """

    def __init__(
        self,
        mode: Literal["max", "min"] = "max",
        convention: metrics.Convention = "max",
        baseline: Sequence[float] | None = None,
    ) -> None:
        metrics.check_convention(convention)
        if mode not in ("max", "min"):
            raise ValueError(f"`mode` must be 'max' or 'min', got {mode!r}")
        self.mode = mode
        self.convention = convention
        self._given = None if baseline is None else [float(value) for value in baseline]
        self.clear()

    def clear(self) -> None:
        """Forget everything but the arguments."""
        self.rows: dict[int, list[float]] = {}
        self.baseline = self._given
        self._anytime: list[float] = []

    @property
    def tensor(self) -> Tensor:
        """Float ``(T, T)``: on task i (column) after task t (row); NaN until known, ``(0, 0)`` at first."""
        size = max((max(len(row), task + 1) for task, row in self.rows.items()), default=0)
        matrix = torch.full((size, size), math.nan)
        for task, row in self.rows.items():
            matrix[task, : len(row)] = torch.tensor(row)
        return matrix

    @property
    def _gain(self) -> Tensor:
        return self.tensor if self.mode == "max" else -self.tensor

    @property
    def average(self) -> float:
        """Over the tasks seen, now; NaN before the first row."""
        return metrics.average_accuracy(self.tensor).item() if self.rows else math.nan

    @property
    def anytime(self) -> float:
        """The average over the tasks seen, averaged over all evaluations of the stream; NaN before the first."""
        return sum(self._anytime) / len(self._anytime) if self._anytime else math.nan

    @property
    def forgetting(self) -> float:
        """Now; NaN before the first row."""
        return metrics.forgetting(self._gain, self.convention).item() if self.rows else math.nan

    @property
    def backward_transfer(self) -> float:
        """Now, positive where later tasks helped; NaN before the first row."""
        return metrics.backward_transfer(self._gain).item() if self.rows else math.nan

    @property
    def forward_transfer(self) -> float:
        """Now, positive where earlier tasks helped; NaN before the first row, and without a baseline of all tasks."""
        if not self.rows or self.baseline is None or len(self.baseline) != len(self.tensor):
            return math.nan  # loaders that came later were not there before training
        sign = 1 if self.mode == "max" else -1
        return metrics.forward_transfer(self._gain, [sign * value for value in self.baseline]).item()

    def fault_of(self, row: Sequence[float]) -> str | None:
        """What is wrong with numbers that should be accuracies; None for nothing."""
        wrong = [value for value in row if value == value and not -_ROUNDING <= value <= 1 + _ROUNDING]
        if self.mode == "min" or not wrong:
            return None
        return (
            f"{wrong[0]:.4g} is no accuracy, which is in [0, 1]: give `mode='min'` for a metric that should fall, and "
            "divide one in per cent by 100"
        )

    def evaluated(self, task: int, row: Sequence[float]) -> None:
        """Count an evaluation while a task runs."""
        seen = [value for value in row[: task + 1] if value == value]
        if seen:
            self._anytime.append(sum(seen) / len(seen))

    def summary(self, row: Sequence[float]) -> dict[str, float]:
        """What is logged after a row, by name; without what is not known."""
        what = "accuracy" if self.mode == "max" else "value"
        found = {
            what: self.average,
            "forgetting": self.forgetting,
            "backward_transfer": self.backward_transfer,
            "forward_transfer": self.forward_transfer,
            f"anytime_{what}": self.anytime,
        }
        if self.baseline is None:
            del found["forward_transfer"]
        return found | {f"{what}_task_{i}": float(value) for i, value in enumerate(row) if value == value}

    def state_dict(self) -> dict[str, Any]:
        """Plain types, for a checkpoint."""
        return {"rows": self.rows, "baseline": self.baseline, "anytime": self._anytime}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what a checkpoint has."""
        self.rows, self.baseline = dict(state["rows"]), state["baseline"]
        self._anytime = list(state["anytime"])

"""What a stream of tasks leaves behind: accuracy, forgetting and transfer of a task-accuracy matrix.

Row t of the matrix holds the accuracies on all tasks after training on task t; NaN where nothing was evaluated. The
last row that is not all NaN is "now", and only its task and those before it count.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

Matrix = Tensor | Sequence[Sequence[float]]
"""Also an array of NumPy."""
Convention = Literal["max", "max_past", "first"]


def average_accuracy(matrix: Matrix) -> Tensor:
    r"""Accuracy on the tasks seen, now: :math:`A = \mathrm{mean}_{i \le t} R_{t,i}` (Madaan et al., section 5).

    Args:
        matrix: accuracies in [0, 1], ``(T, T)`` or its first rows.

    Returns:
        Scalar tensor, in [0, 1].

    Raises:
        ValueError: the matrix has no row with a number, or not the shape of one.

    >>> average_accuracy(torch.tensor([[0.9, 0.4], [0.7, 0.8]]))
    tensor(0.7500)
    """
    rows = _until_now(matrix)
    return rows[-1, : len(rows)].mean()


def average_incremental_accuracy(matrix: Matrix) -> Tensor:
    r"""Accuracy on the tasks seen, averaged over the stream: :math:`\mathrm{mean}_t \mathrm{mean}_{i \le t} R_{t,i}`.

    Rows that were never evaluated are left out.

    Args:
        matrix: accuracies in [0, 1], ``(T, T)`` or its first rows.

    Returns:
        Scalar tensor, in [0, 1].

    Raises:
        ValueError: the matrix has no row with a number, or not the shape of one.

    >>> average_incremental_accuracy(torch.tensor([[0.9, 0.4], [0.7, 0.8]]))
    tensor(0.8250)
    """
    rows = _until_now(matrix)
    return torch.stack([row[: t + 1].mean() for t, row in enumerate(rows)]).nanmean()


def forgetting(matrix: Matrix, convention: Convention = "max") -> Tensor:
    r"""How much worse the earlier tasks are than they were, averaged over them.

    ==============  ===========================================================================
    ``"max"``       best so far, now included, less now: >= 0 (the paper, mammoth)
    ``"max_past"``  best before now, less now: negative where the last task helped
    ``"first"``     right after its own task, less now (the authors' code, avalanche)
    ==============  ===========================================================================

    A task whose past was not evaluated is left out; NaN if that is true of all. Under ``"max"`` its best is that of
    now, and it counts as not forgotten.

    Args:
        matrix: accuracies in [0, 1], ``(T, T)`` or its first rows.
        convention: what "they were" means.

    Returns:
        Scalar tensor, in [-1, 1]; 0 while there is one task.

    Raises:
        ValueError: the convention is unknown, or the matrix has no row with a number, or not the shape of one.

    >>> forgetting(torch.tensor([[0.9, 0.4], [0.7, 0.8]]))
    tensor(0.2000)
    """
    check_convention(convention)
    rows = _until_now(matrix)
    now = len(rows) - 1
    if now == 0:
        return rows.new_zeros(())
    if convention == "first":
        before = rows.diagonal()[:now]
    else:
        last = now if convention == "max_past" else now + 1
        # NaN must not win the maximum
        before = torch.stack([rows[i:last, i].nan_to_num(-torch.inf).max() for i in range(now)])
    lost = before - rows[now, :now]
    return lost[lost.isfinite()].mean()


def backward_transfer(matrix: Matrix) -> Tensor:
    r"""What later tasks did to earlier ones: :math:`\mathrm{mean}_{i<t} (R_{t,i} - R_{i,i})`, forgetting if negative.

    Args:
        matrix: accuracies in [0, 1], ``(T, T)`` or its first rows.

    Returns:
        Scalar tensor, in [-1, 1]; 0 while there is one task.

    Raises:
        ValueError: the matrix has no row with a number, or not the shape of one.

    >>> backward_transfer(torch.tensor([[0.9, 0.4], [0.7, 0.8]]))
    tensor(-0.2000)
    """
    return -forgetting(matrix, "first") + 0.0  # no negative zero


def forward_transfer(matrix: Matrix, baseline: Tensor | Sequence[float]) -> Tensor:
    r"""What earlier tasks did for later ones: :math:`\mathrm{mean}_{0<i \le t} (R_{i-1,i} - b_i)`.

    Args:
        matrix: accuracies in [0, 1], ``(T, T)`` or its first rows.
        baseline: accuracy of the untrained network on each task, ``(T,)``.

    Returns:
        Scalar tensor, in [-1, 1]; 0 while there is one task, NaN where a row is missing.

    Raises:
        ValueError: there is not one baseline for each task, or the matrix has no row with a number.

    >>> forward_transfer(torch.tensor([[0.9, 0.6], [0.7, 0.8]]), torch.tensor([0.5, 0.5]))
    tensor(0.1000)
    """
    rows = _until_now(matrix)
    untrained = torch.as_tensor(baseline, dtype=rows.dtype, device=rows.device)
    if untrained.shape != rows.shape[1:]:
        raise ValueError(f"`baseline` must have one number for each of {rows.shape[1]} tasks, got {len(untrained)}")
    if len(rows) == 1:
        return rows.new_zeros(())
    return (rows.diagonal(1)[: len(rows) - 1] - untrained[1 : len(rows)]).mean()


def check_convention(convention: str) -> None:
    """Raise a ValueError that lists the conventions of `forgetting` unless this is one."""
    if convention not in get_args(Convention):
        raise ValueError(f"`convention` must be one of {', '.join(get_args(Convention))}, got {convention!r}")


def _until_now(matrix: Matrix) -> Tensor:
    """The rows up to the last with a number."""
    matrix = torch.as_tensor(matrix)
    if matrix.dim() != 2 or len(matrix) > matrix.shape[1]:
        raise ValueError(f"`matrix` must be (T, T) or its first rows, got {tuple(matrix.shape)}")
    known = (~matrix.isnan()).any(dim=1).nonzero()
    if not len(known):
        raise ValueError("`matrix` has no number yet: evaluate after a task first")
    rows = matrix[: int(known[-1]) + 1]
    return rows if rows.is_floating_point() else rows.float()


class TaskAccuracy(Metric):
    """The task-accuracy matrix, counted sample by sample and over all processes.

    Args:
        num_tasks: T, at least 1.

    Raises:
        ValueError: ``num_tasks`` is below 1.

    >>> accuracy = TaskAccuracy(2)
    >>> accuracy.update(torch.tensor([1, 0]), torch.tensor([1, 1]), after=0, task=0)
    >>> accuracy.compute()
    tensor([[0.5000,    nan],
            [   nan,    nan]])
    """

    full_state_update = False
    correct: Tensor
    total: Tensor

    def __init__(self, num_tasks: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_tasks < 1:
            raise ValueError(f"`num_tasks` must be at least 1, got {num_tasks}")
        for name in ("correct", "total"):
            self.add_state(name, torch.zeros(num_tasks, num_tasks, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor, after: int, task: int) -> None:
        """Count predictions.

        Args:
            preds: predicted classes, ``(N,)``.
            target: true classes, ``(N,)``.
            after: the task that was trained last, 0-based: the row.
            task: the task of the samples, 0-based: the column.

        Raises:
            ValueError: the shapes differ, or there is no such task.
        """
        if preds.shape != target.shape:
            raise ValueError(f"`preds` {tuple(preds.shape)} and `target` {tuple(target.shape)} must have one shape")
        for name, index in (("after", after), ("task", task)):
            if not 0 <= index < len(self.total):
                raise ValueError(f"`{name}` must be in 0..{len(self.total) - 1}, got {index}")
        self.correct[after, task] += (preds == target).sum()
        self.total[after, task] += target.numel()

    def compute(self) -> Tensor:
        """The matrix, float ``(T, T)``; NaN where no sample was seen."""
        return self.correct / self.total

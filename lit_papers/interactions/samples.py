"""Which samples to measure on: files of a class lie together, so the first ones would be of one class."""

import torch
from torch import Tensor

READ = 4  # times as many samples as are wanted should be read, so that all classes are among them


def balanced(labels: Tensor, wanted: int, seed: int = 0) -> Tensor:
    """Samples of all classes, as many of each as there are, in an order that ``seed`` alone decides.

    Args:
        labels: of all samples, int64, ``(N,)``.
        wanted: how many samples; all, if there are fewer.
        seed: of the order.

    Returns:
        Their places, int64, ``(min(N, wanted),)``; any first part of them is balanced too.

    >>> labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    >>> labels[balanced(labels, 4)].sort().values
    tensor([0, 1, 1, 2])
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = labels.cpu()[order]
    by_class = shuffled.argsort(stable=True)
    sizes = torch.unique_consecutive(shuffled[by_class], return_counts=True)[1]
    begin = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    turn = torch.empty_like(order)  # the how-manieth of its class each sample is
    turn[by_class] = torch.arange(len(labels)) - begin
    return order[turn.argsort(stable=True)[:wanted]]

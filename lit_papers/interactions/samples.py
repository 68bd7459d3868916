"""Which samples to measure on: files of a class lie together, so the first ones would be of one class."""

import torch
from torch import Tensor

from lit_papers.lens import NotApplicable, class_indices

READ = 4  # times as many samples as are wanted should be read, so that all classes are among them


def labelled(x: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Samples that have a class, and their class indices.

    Args:
        x: all samples, ``(N, ...)``.
        targets: of any form that `lit_papers.lens.class_indices` takes; of two classes also the floats 0 and 1 that the
            loss of one logit wants, ``(N,)`` or ``(N, 1)``. A negative label says that there is none.
        classes: C.

    Returns:
        ``(M, ...)``, and int64 ``(M,)``.

    Raises:
        NotApplicable: targets are no classes, one is outside [0, C), or there is none.

    >>> labelled(torch.zeros(3, 2), torch.tensor([1.0, 0.0, 1.0]), classes=2)[1]
    tensor([1, 0, 1])
    """
    one_logit = classes == 2 and targets.shape in ((len(targets),), (len(targets), 1))
    if one_logit and targets.is_floating_point() and bool(((targets == 0) | (targets == 1)).all()):
        targets = targets.long()
    y = class_indices(targets, classes)
    if bool((y >= classes).any()):
        raise NotApplicable(f"a target is {int(y.max())}, outside [0, {classes}); pass `unpack`")
    if not bool((y >= 0).any()):
        raise NotApplicable("no sample has a class (all labels are negative): pass `dataloader` or `unpack`")
    return x[y >= 0], y[y >= 0]


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

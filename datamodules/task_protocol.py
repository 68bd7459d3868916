"""Which classes make a task, and how far boundaries between tasks are blurred."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from operator import index
from typing import SupportsIndex

import numpy as np
import torch

from lit_papers.datamodules.task_images import ImageSource
from lit_papers.datamodules.task_stream import TaskImages


def class_groups_of(
    labels: Sequence[int],
    num_tasks: int,
    order: Sequence[int] | None = None,
    sizes: Sequence[int] | None = None,
    groups: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """The classes of each task.

    Args:
        labels: all there are, ascending.
        num_tasks: T.
        order: of the classes; None is ascending.
        sizes: classes of each task; None is the same number for all.
        groups: the answer itself.

    Raises:
        TypeError: a number is not whole.
        ValueError: they do not fit the labels.

    >>> class_groups_of(range(5), 2, sizes=[3, 2])
    [[0, 1, 2], [3, 4]]
    """
    if groups is not None:
        found = [_whole("class_groups", group) for group in groups]
        named = [label for group in found for label in group]
        unknown = sorted(set(named) - set(labels))
        if unknown or len(set(named)) < len(named) or not all(found):
            what = (
                f"{unknown} are not among {list(labels)}" if unknown else "a class is named twice, or a group is empty"
            )
            raise ValueError(f"`class_groups` must be groups of classes, each in one: {what}")
        return found
    classes = list(labels) if order is None else _whole("class_order", order)
    if sorted(classes) != list(labels):
        raise ValueError(f"`class_order` must name each of the classes {list(labels)} once, got {classes}")
    if sizes is None:
        if len(classes) % num_tasks:
            raise ValueError(
                f"`num_tasks`={num_tasks} does not divide the {len(classes)} classes: give `classes_per_task`"
            )
        sizes = [len(classes) // num_tasks] * num_tasks
    sizes = _whole("classes_per_task", sizes)
    if min(sizes) < 1 or sum(sizes) != len(classes):
        raise ValueError(f"`classes_per_task`={list(sizes)} must be positive and sum to the {len(classes)} classes")
    ends = np.cumsum([0, *sizes]).tolist()
    return [classes[first:last] for first, last in pairwise(ends)]


def _whole(name: str, numbers: Iterable[SupportsIndex]) -> list[int]:
    """Numbers of any whole type, as NumPy's, as Python's."""
    try:
        return [index(number) for number in numbers]
    except TypeError:
        raise TypeError(f"`{name}` must have whole numbers, got {numbers!r}") from None


def of_classes(source: ImageSource, classes: Sequence[int]) -> TaskImages:
    """The images of some classes, in their order."""
    rows = torch.isin(source.labels, torch.tensor(list(classes))).nonzero().flatten()
    return TaskImages(source, rows)


def blurred(tasks: Sequence[TaskImages], share: float, seed: int) -> list[TaskImages]:
    """Give a share of the images of each class of a task away, evenly to the other tasks (Bang et al. 2021).

    Args:
        tasks: of one source.
        share: of the images of each class, rounded to whole images, in [0, 1).
        seed: of the choice.

    Returns:
        Tasks that have the same images together, in the order of the source.
    """
    kept: list[list[torch.Tensor]] = [[] for _ in tasks]
    for number, task in enumerate(tasks):
        others = [other for other in range(len(tasks)) if other != number]
        for label in torch.unique(task.labels).tolist():
            rows = task.rows[task.labels == label]
            generator = np.random.default_rng([seed, number, label % 2**32])
            rows = rows[torch.from_numpy(generator.permutation(len(rows)))]
            given = round(share * len(rows)) if others else 0
            kept[number].append(rows[given:])
            for place, row in enumerate(torch.split(rows[:given], 1)):
                kept[others[(place + label) % len(others)]].append(row)
    return [TaskImages(task.source, torch.cat(rows).sort().values) for task, rows in zip(tasks, kept, strict=True)]

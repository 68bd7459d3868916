"""Training and validation splits: stratified, and decided by the seed alone."""

from typing import Any

import torch
from torch import Tensor

from lit_papers.datamodules.images import check_integer


def split_by_class(
    targets: Tensor, *, val_fraction: float = 0.0, samples_per_class: int | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Draw a validation split, and a training split from what remains, class by class.

    The validation split does not depend on ``samples_per_class``, and fewer samples are a subset of more.
    Only ``seed`` matters, never the global random state.

    Args:
        targets: int64, ``(N,)``.
        val_fraction: share of each class that goes to validation, in [0, 1); if positive, at least one image
            of each class goes there and at least one remains.
        samples_per_class: train on this many images of each class; None is all that remain.
        seed: of the draw.

    Returns:
        Indices of training and of validation images, int64, ascending and disjoint.

    Raises:
        ValueError: a class has too few images.

    >>> train, val = split_by_class(torch.tensor([0, 1] * 5), val_fraction=0.2)
    >>> len(train), len(val)
    (8, 2)
    """
    train, val = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    for label, members in shuffled_classes(targets, seed):
        count = len(members)
        held_out = min(max(1, round(val_fraction * count)), count - 1) if val_fraction > 0 else 0
        if val_fraction > 0 and held_out == 0:
            raise ValueError(f"class {label} has 1 image, which `val_fraction`={val_fraction} cannot split")
        if samples_per_class is not None and samples_per_class > count - held_out:
            raise ValueError(
                f"`samples_per_class`={samples_per_class}, but class {label} has {count - held_out} images "
                f"to train on ({count}, of which {held_out} are held out for validation)"
            )
        val.append(members[:held_out])
        train.append(members[held_out:][:samples_per_class])
    return torch.cat(train).sort().values, torch.cat(val).sort().values


def shuffled_classes(targets: Tensor, seed: int) -> list[tuple[int, Tensor]]:
    """Each class that occurs, with the indices of its images in an order drawn from ``seed`` alone."""
    generator = torch.Generator().manual_seed(seed)
    classes = []
    for label in torch.unique(targets).tolist():
        members = torch.nonzero(targets == label).flatten()
        classes.append((label, members[torch.randperm(len(members), generator=generator)]))
    return classes


def check_split_arguments(val_fraction: Any, samples_per_class: Any) -> None:
    """Raise an error that names the argument unless ``split_by_class`` can work with both."""
    if isinstance(val_fraction, bool) or not isinstance(val_fraction, int | float):
        raise TypeError(f"`val_fraction` must be a number, got {val_fraction!r} ({type(val_fraction).__name__})")
    if not 0 <= val_fraction < 1:
        raise ValueError(f"`val_fraction` must be at least 0 and below 1, got {val_fraction}")
    if samples_per_class is not None:
        check_integer("samples_per_class", samples_per_class, least=1)

"""Which rows an objective is of: every epoch must train on the same ones, with the same values."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, SubsetRandomSampler

from lit_papers.lens import NotApplicable, Subject, Unpack, unpack_batch
from lit_papers.lens import data as readings


def pair(batch: Any, unpack: Unpack | None) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a batch, one tensor each.

    Raises:
        NotApplicable: they are not.
    """
    x, y = (unpack or unpack_batch)(batch)
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise NotApplicable(f"ConvexGap: batches must give one tensor each, got {type(x).__name__}; pass `unpack`")
    return x, y


def check_rows_stay(subject: Subject) -> None:
    """Refuse loaders of which epochs train on other rows, or on some more often than on others.

    Raises:
        NotApplicable: it is one, or it cannot be told.
    """
    loader = subject.loader
    if not isinstance(loader, DataLoader):
        raise NotApplicable("ConvexGap: which rows are trained on is known of a DataLoader only: pass `dataloader`")
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        sampler: Any = getattr(loader.batch_sampler, "sampler", None)
    else:
        sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler.sampler
    inner = getattr(getattr(sampler, "dataset", None), "_sampler", None)  # as Lightning wraps it for several processes
    sampler = sampler if inner is None else inner
    if isinstance(sampler, (list, tuple, range)):
        if len(set(sampler)) != len(sampler):
            raise NotApplicable("ConvexGap: the sampler repeats samples: pass `dataloader`, with each once")
        return
    shuffled_once = (
        type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(sampler.data_source)
    )
    known = type(sampler) in (SequentialSampler, SubsetRandomSampler) or shuffled_once
    distributed = type(sampler).__module__.startswith(("lightning.", "torch.utils.data.distributed"))
    if not known and not distributed:
        raise NotApplicable(
            f"ConvexGap: {type(sampler).__name__} may draw other samples each epoch, or some more often than others: "
            "there is no one objective; pass `dataloader`, the data that it stands for"
        )
    trainer = subject.trainer
    fixed = type(sampler) is SequentialSampler or (distributed and not getattr(sampler, "shuffle", True))
    if trainer is None or subject.passed or fixed or readings.training_limit(trainer) is None:
        return
    if trainer.num_training_batches < len(loader):  # both of one process
        raise NotApplicable(
            "ConvexGap: a part of a shuffled epoch is other samples each time (limit_train_batches): pass `dataloader`"
        )


def check_values_stay(subject: Subject) -> None:
    """Refuse samples that have other values when they are read again, as augmented ones do.

    Raises:
        NotApplicable: they have.
    """
    with subject.quiet():
        first, again = (pair(subject.to_device(batch), subject.unpack) for batch in readings.read_twice(subject.loader))
    if not all(torch.equal(one, other) for one, other in zip(first, again, strict=True)):
        raise NotApplicable(
            "ConvexGap: the same samples have other values when they are read again (augmentation), so there is no one "
            "objective; pass `dataloader`, with those that a bound shall be of"
        )


def number_of_rows(loader: Any) -> int | None:
    """Number of samples of a loader's data set; None where it has no length."""
    return readings.length(getattr(loader, "dataset", None))

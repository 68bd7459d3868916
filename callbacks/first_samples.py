"""The samples that a callback measures on: the same ones in every epoch and on every process."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lit_papers.callbacks.guest import Unpack


def first_samples(trainer: Trainer, wanted: int, dataloader: Any, unpack: Unpack) -> tuple[Tensor, Tensor]:
    """Read the first samples of the validation set, whole on every process.

    Args:
        trainer: the stranger's trainer; its strategy moves batches to the device.
        wanted: how many samples; all, if there are fewer.
        dataloader: samples in a fixed order, the same on every process; None takes the validation set (the first, if
            there are several) without shuffling.
        unpack: from a batch to (argument of forward, class indices).

    Returns:
        Inputs ``(N, ...)`` and classes int64 ``(N,)``.

    Raises:
        ValueError: there are no samples in a fixed order; the message names ``dataloader``.
        TypeError: a batch has no single tensor as input or no class indices; the message names ``unpack``.
    """
    loader = dataloader if dataloader is not None else _validation_set(trainer, wanted)
    inputs, targets = [], []
    for raw in loader:
        # the strategy runs the stranger's own transfer hooks
        batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(raw))
        x, y = unpack(batch)
        if not isinstance(x, Tensor):
            raise TypeError(
                f"interactions need one tensor per batch to mask, got {type(x).__name__}; pass `unpack`, a "
                "function from a batch to (tensor for forward, class indices)"
            )
        if not isinstance(y, Tensor) or y.is_floating_point() or y.ndim != 1:
            found = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise TypeError(
                f"interactions need one class index per sample (integers of shape (N,)), got {found}; pass "
                "`unpack` to turn targets into classes"
            )
        inputs.append(x.detach().clone())  # a loader may reuse its memory
        targets.append(y.long())
        if sum(map(len, targets)) >= wanted:
            break
    if not targets:
        raise ValueError("`dataloader` has no sample to measure on")
    return torch.cat(inputs)[:wanted], torch.cat(targets)[:wanted]


def _validation_set(trainer: Trainer, wanted: int) -> Iterable[Any]:
    """The validation set in order; a process must not see its share alone, as the indices name the samples."""
    loaders: Any = trainer.val_dataloaders
    if loaders is None:  # until validation first runs, and for ever if it is switched off
        source = trainer.fit_loop.epoch_loop.val_loop._data_source
        loaders = source.dataloader() if source.is_defined() else None
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, Sequence):
        loaders = loaders[0] if loaders else None
    if loaders is None:
        raise ValueError("there is no validation set to measure on: pass `dataloader`")
    if not isinstance(loaders, DataLoader) or isinstance(loaders.dataset, IterableDataset):
        raise ValueError(
            "the validation set cannot be read in a fixed order (an iterable dataset, or not a DataLoader): pass "
            "`dataloader`, which yields the same samples in the same order on every process"
        )
    size = loaders.batch_size
    if loaders.batch_sampler is not None:  # else the dataset's items are batches
        size = min(size or 1, wanted)
    return DataLoader(loaders.dataset, batch_size=size, collate_fn=loaders.collate_fn)

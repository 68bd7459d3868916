"""Batches of a stream of tasks: shuffled, shared out and resumable by number alone, read when they are due."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_papers.datamodules.task_images import ImageSource

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class TaskImages:
    """The images of one task, by their numbers in a source.

    Attributes:
        source: has them, and others.
        rows: their numbers, int64 ``(N,)``.
    """

    source: ImageSource
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> Tensor:
        """int64, ``(N,)``."""
        return self.source.labels[self.rows]

    @property
    def images(self) -> Tensor:
        """All of them at once, ``(N, C, H, W)``: for few."""
        return self.source.fetch(self.rows)


class _Batches(Dataset[Batch]):
    """Item i is batch i, whichever process reads it.

    A data set that draws random numbers gets them keyed by seed, epoch and batch, so that neither a resume nor the
    number of workers changes an image.
    """

    def __init__(self, data: TaskImages, parts: list[Tensor], key: tuple[int, ...]) -> None:
        self.data, self.parts, self.key = data, parts, key

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> Batch:
        rows = self.data.rows[self.parts[index]]
        source = self.data.source
        if source.in_memory:
            return source.fetch(rows), source.labels[rows]
        with _keyed(*self.key, index):
            return source.fetch(rows), source.labels[rows]


@contextmanager
def _keyed(*key: int) -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - data sets draw from it
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def _read(batches: _Batches, first: int, num_workers: int) -> Iterator[Batch]:
    if num_workers == 0:
        yield from (batches[index] for index in range(first, len(batches)))
        return
    # a generator of its own: the loader would take a number from the one that training draws from
    yield from DataLoader(
        batches, batch_size=None, sampler=range(first, len(batches)), num_workers=num_workers,
        generator=torch.Generator(),
    )  # fmt: skip


class EvaluationBatches:
    """All images in a fixed order, or a rank's share of them.

    Lightning puts no sampler into a loader that is no ``DataLoader``; its own pads, so that images would count twice.

    Args:
        data: the images.
        batch_size: images in a batch.
        rank: of this process.
        processes: that share the images; each takes every so many.
        num_workers: processes that read; 0 reads in this one.
    """

    def __init__(
        self, data: TaskImages, batch_size: int, rank: int = 0, processes: int = 1, num_workers: int = 0
    ) -> None:
        self.data = data
        self.batch_size = batch_size
        self.rows = torch.arange(rank, len(data), processes)
        self.num_workers = num_workers

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return _read(_Batches(self.data, list(torch.split(self.rows, self.batch_size)), (0, 0)), 0, self.num_workers)


class TrainingBatches:
    """One epoch's shuffled batches, which go on in the middle after a resume.

    The order comes from seed and epoch alone. Rank r of W takes the r-th part of each global batch, so that the
    ranks' batches, one after the other, are the batch of one process. A last batch too small for batch norm, with
    fewer than two images on each process, is left out.

    Args:
        data: the images of the epoch's task.
        batch_size: images in a batch on each process.
        seed: of the order.
        epoch: of the order.
        rank: of this process.
        processes: that share a batch.
        num_workers: processes that read; 0 reads in this one.
    """

    def __init__(
        self,
        data: TaskImages,
        batch_size: int,
        seed: int,
        epoch: int,
        rank: int = 0,
        processes: int = 1,
        num_workers: int = 0,
    ) -> None:
        self.data = data
        self.epoch = epoch
        self.num_workers = num_workers
        entropy = np.random.SeedSequence([seed, epoch]).generate_state(1)[0]
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(int(entropy)))
        batches = list(torch.split(order, batch_size * processes))
        self.dropped = len(batches.pop()) if len(batches[-1]) < 2 * processes else 0
        shares = [rows.tensor_split(processes)[rank] for rows in batches]
        self._batches = _Batches(data, shares, (seed, epoch + 1, rank))
        self.position = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        first = self.position if self.position < len(self) else 0
        for number, batch in enumerate(_read(self._batches, first, self.num_workers), start=first + 1):
            self.position = number  # before the batch is used: what is saved during it has it behind it
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where this epoch is; Lightning saves it in every checkpoint."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the epoch was, if it is this one."""
        if state["epoch"] == self.epoch:
            self.position = state["position"]

"""Batches of images in memory for a stream of tasks: shuffled, shared out and resumable by number alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class TaskImages:
    """The images of one task.

    Attributes:
        images: uint8, ``(N, C, H, W)``.
        labels: int64, ``(N,)``.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def _parts(rows: Tensor, size: int) -> list[Tensor]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


class EvaluationBatches:
    """All images in a fixed order, or a rank's share of them.

    Lightning puts no sampler into a loader that is no ``DataLoader``; its own pads, so that images would count twice.

    Args:
        data: the images.
        batch_size: images in a batch.
        rank: of this process.
        processes: that share the images; each takes every so many.
    """

    def __init__(self, data: TaskImages, batch_size: int, rank: int = 0, processes: int = 1) -> None:
        self.data = data
        self.batch_size = batch_size
        self.rows = torch.arange(rank, len(data), processes)

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in _parts(self.rows, self.batch_size):
            yield self.data.images[rows], self.data.labels[rows]


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
    """

    def __init__(
        self, data: TaskImages, batch_size: int, seed: int, epoch: int, rank: int = 0, processes: int = 1
    ) -> None:
        self.data = data
        self.epoch = epoch
        self.rank = rank
        self.processes = processes
        entropy = np.random.SeedSequence([seed, epoch]).generate_state(1)[0]
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(int(entropy)))
        batches = _parts(order, batch_size * processes)
        self.dropped = len(batches.pop()) if len(batches[-1]) < 2 * processes else 0
        self.batches = batches
        self.position = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        first = self.position if self.position < len(self) else 0
        for position in range(first, len(self)):
            rows = self.batches[position].tensor_split(self.processes)[self.rank]
            self.position = position + 1  # before the batch is used: what is saved during it has it behind it
            yield self.data.images[rows], self.data.labels[rows]

    def state_dict(self) -> dict[str, Any]:
        """Where this epoch is; Lightning saves it in every checkpoint."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the epoch was, if it is this one."""
        if state["epoch"] == self.epoch:
            self.position = state["position"]

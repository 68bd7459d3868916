"""A data loader that goes on in the middle of an epoch."""

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, Sampler, SequentialSampler

from lit_papers.local_sgd.samplers import EpochSampler

T = TypeVar("T", covariant=True)


class ResumableLoader(DataLoader[T]):
    """A `DataLoader` whose position is in Lightning's checkpoints, so that mid-epoch resume sees the right batches.

    Lightning saves and loads the state of any loader that has one; with an ordinary loader a run resumed in the middle
    of an epoch begins the epoch's data again. With a sampler of this package, what was already seen is skipped in the
    sampler, and nothing is loaded twice. Going on draws nothing from the global random stream, as a loader that begins
    would: dropout in the network goes on where it was. Random transforms in workers do not: their streams are new.

    Args:
        dataset: map-style.
        batch_size: samples a batch.
        sampler: one of this package's; PyTorch's `DistributedSampler` and `SequentialSampler`, which
            ``Trainer(overfit_batches=...)`` puts in its place, have a fixed order as well.
        options: as for `DataLoader`, by name: ``num_workers``, ``collate_fn``, ``drop_last`` and the like.

    Raises:
        ValueError: the sampler has no fixed order, or batches are not made from ``batch_size``.

    >>> from lit_papers.local_sgd import RandomReshufflingSampler
    >>> loader = ResumableLoader(range(6), 2, RandomReshufflingSampler(range(6), 1, 0))
    >>> batches = iter(loader)
    >>> first, state = next(batches), loader.state_dict()
    >>> rest = [batch.tolist() for batch in batches]
    >>> loader.load_state_dict(state)
    >>> [batch.tolist() for batch in loader] == rest
    True
    """

    def __init__(self, dataset: Any, batch_size: int = 1, sampler: Sampler[int] | None = None, **options: Any) -> None:
        if not isinstance(sampler, (EpochSampler, DistributedSampler, SequentialSampler)):
            raise ValueError(
                f"sampler must be one of lit_papers.local_sgd's, got {type(sampler).__name__}: others have no fixed "
                "order to go on in"
            )
        super().__init__(dataset, batch_size, sampler=sampler, **options)
        if type(self.batch_sampler) is not BatchSampler:
            raise ValueError("batch_size must be an integer and batch_sampler be left out: positions count batches")
        self._order = sampler
        self._served = 0  # batches of the present epoch
        self._skipped = 0  # batches to leave out of the next one

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]  # DataLoader promises its own iterator class
        """This epoch's batches, after those seen before the run was interrupted.

        The order is drawn with the first batch, after Lightning has set the epoch.
        """
        self._served, self._skipped = self._skipped, 0
        if not self._served:
            batches = super().__iter__()
        else:
            assert self.batch_size is not None  # noqa: S101
            with torch.random.fork_rng(devices=[]):  # the loader draws a seed for workers, which was drawn before
                if isinstance(self._order, EpochSampler):
                    self._order.skip(min(self._served * self.batch_size, len(self._order)))
                batches = super().__iter__()
                if not isinstance(self._order, EpochSampler):
                    for _ in range(self._served):
                        next(batches, None)
        for batch in batches:
            self._served += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Batches of this epoch that were handed out; 0 at its end."""
        return {"batches": self._served % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next iteration after so many batches."""
        self._skipped = state["batches"]

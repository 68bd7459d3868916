"""The paper's ways to go through the components of M machines: two kinds of shuffling, and independent draws."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sized

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed import get_rank, get_world_size, is_available, is_initialized
from torch.utils.data import DistributedSampler


class EpochSampler(DistributedSampler[int], ABC):
    """One order of ``N`` local indices an epoch, a pure function of class, seed, epoch, rank, machines and N.

    Subclasses of `DistributedSampler` are left in place by Lightning, others are replaced.
    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int | None = None,
        rank: int | None = None,
        seed: int = 0,
        partition: bool = True,
    ) -> None:
        distributed = is_available() and is_initialized()
        if num_replicas is None:
            num_replicas = get_world_size() if distributed else 1
        if rank is None:
            rank = get_rank() if distributed else 0
        if num_replicas < 1:
            raise ValueError(f"num_replicas must be at least 1, got {num_replicas}")
        if len(dataset) < (num_replicas if partition else 1):
            raise ValueError(f"dataset has {len(dataset)} samples, fewer than num_replicas={num_replicas}")
        super().__init__(dataset, num_replicas, rank, seed=seed)  # type: ignore[arg-type]  # asks for a Dataset
        self.partition = partition
        self.num_samples = len(dataset) // num_replicas if partition else len(dataset)
        self.total_size = self.num_samples * num_replicas
        self._start = 0
        if partition and self.total_size < len(dataset):
            rank_zero_warn(
                f"the last {len(dataset) - self.total_size} of {len(dataset)} samples are never drawn: "
                f"num_replicas={num_replicas} machines get {self.num_samples} each"
            )

    @abstractmethod
    def local_order(self) -> Tensor:
        """This epoch's order on this machine: int64, shape ``(N,)``, values in [0, N)."""

    def __iter__(self) -> Iterator[int]:
        """Indices into the dataset, in this epoch's order."""
        start, self._start = self._start, 0
        offset = self.rank * self.num_samples if self.partition else 0
        return iter((self.local_order()[start:] + offset).tolist())

    def __len__(self) -> int:
        """Indices an epoch, N."""
        return self.num_samples

    def skip(self, samples: int) -> None:
        """Leave out so many first indices of the next iteration, once; used to resume in the middle of an epoch.

        Args:
            samples: from 0 to N.

        Raises:
            ValueError: outside that range.
        """
        if not 0 <= samples <= self.num_samples:
            raise ValueError(f"samples must lie in [0, {self.num_samples}], got {samples}")
        self._start = samples

    def _generator(self, *, of_all_ranks: bool = False) -> torch.Generator:
        """A stream of its own for every key: `seed + epoch + rank` would repeat one order in another place."""
        rank = -1 if of_all_ranks else self.rank
        key = (type(self).__name__, self.seed, self.epoch, rank, self.num_replicas, self.num_samples)
        digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


class RandomReshufflingSampler(EpochSampler):
    """RR: each machine goes through its own N samples, in a new independent permutation every epoch.

    This is the shuffling of minibatch and local RR (Yun, Rajput & Sra, ICLR 2022). PyTorch's
    `DistributedSampler` instead deals the whole data set out anew every epoch.

    Args:
        dataset: anything with a length.
        num_replicas: number of machines M; None for that of the process group, 1 without one.
        rank: this machine, in [0, M); None for that of the process group.
        seed: of all orders.
        partition: True: machine r owns the indices [rN, (r+1)N), N = len(dataset) // M, and the tail is dropped;
            False: every machine has all N = len(dataset) (the paper's homogeneous case).

    Raises:
        ValueError: fewer samples than machines, or ``rank`` outside [0, M).

    >>> sampler = RandomReshufflingSampler(range(8), num_replicas=2, rank=1)
    >>> sorted(sampler)
    [4, 5, 6, 7]
    """

    def local_order(self) -> Tensor:
        """A permutation of [0, N), unrelated between ranks and epochs; int64, shape ``(N,)``."""
        return torch.randperm(self.num_samples, generator=self._generator())


class SynchronizedShufflingSampler(EpochSampler):
    r"""SyncShuf: one permutation an epoch for all machines, rotated by another multiple of N/M on each.

    At any position the M machines hold M different components, so that N/M consecutive positions cover all N (Yun,
    Rajput & Sra, ICLR 2022). Permutation and rotation come from the shared seed: nothing is sent.

    .. math:: \sigma_m[i] = \sigma[(i + \tfrac{N}{M} \pi[m]) \bmod N]

    Args:
        dataset: as for `RandomReshufflingSampler`; likewise the other arguments.
        num_replicas: M; it must divide N.
        rank: this machine.
        seed: of all orders.
        partition: whether each machine owns N samples of its own, or all have the same N.

    Raises:
        ValueError: M does not divide N, fewer samples than machines, or ``rank`` outside [0, M).

    >>> first, second = (list(SynchronizedShufflingSampler(range(4), 2, r, partition=False)) for r in (0, 1))
    >>> sorted(first[:2] + second[:2]), second == first[2:] + first[:2]
    ([0, 1, 2, 3], True)
    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int | None = None,
        rank: int | None = None,
        seed: int = 0,
        partition: bool = True,
    ) -> None:
        super().__init__(dataset, num_replicas, rank, seed, partition)
        if self.num_samples % self.num_replicas:
            raise ValueError(
                f"synchronized shuffling needs num_replicas={self.num_replicas} to divide the {self.num_samples} "
                "samples of each machine: drop some samples or change the number of machines"
            )

    def local_order(self) -> Tensor:
        """The common permutation from this machine's offset on; int64, shape ``(N,)``."""
        generator = self._generator(of_all_ranks=True)
        sigma = torch.randperm(self.num_samples, generator=generator)
        pi = torch.randperm(self.num_replicas, generator=generator)
        return sigma.roll(-(self.num_samples // self.num_replicas) * int(pi[self.rank]))


class WithReplacementSampler(EpochSampler):
    """WR: N independent uniform draws from the machine's N samples an epoch, as most theory assumes.

    Args:
        dataset: as for `RandomReshufflingSampler`; likewise the other arguments.
        num_replicas: number of machines M.
        rank: this machine.
        seed: of all draws.
        partition: whether each machine owns N samples of its own, or all have the same N.

    Raises:
        ValueError: fewer samples than machines, or ``rank`` outside [0, M).

    >>> len(list(WithReplacementSampler(range(8), num_replicas=2, rank=0)))
    4
    """

    def local_order(self) -> Tensor:
        """Independent draws from [0, N), unrelated between ranks and epochs; int64, shape ``(N,)``."""
        return torch.randint(self.num_samples, (self.num_samples,), generator=self._generator())

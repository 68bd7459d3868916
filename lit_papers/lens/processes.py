"""What the processes of a training tell each other while something is measured."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


class Processes:
    """This process among all that train together; one alone where nothing is distributed.

    Speaks through ``torch.distributed`` itself, as a strategy's ``reduce`` may mean something else (local SGD).

    Args:
        device: where the backend communicates, as NCCL does on GPUs only.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.size = dist.get_world_size() if together else 1
        self._device = torch.device(device)

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum over all processes, on each; the shape and dtype of ``numbers``."""
        if self.size == 1:
            return numbers
        total = numbers.detach().to(self._device, copy=True)
        dist.all_reduce(total)
        return total.to(numbers.device)

    def any_and_all(self, flags: list[bool]) -> tuple[list[bool], list[bool]]:
        """For each flag, whether it is set on some process, and whether on all."""
        counts = self.sum(torch.tensor(flags, dtype=torch.int64)).tolist()
        return [count > 0 for count in counts], [count == self.size for count in counts]

    @contextmanager
    def same_fate(self, what: str = "measuring") -> Iterator[None]:
        """Raise on every process what was raised on one, which alone would leave the others waiting for it.

        Args:
            what: was being done; for the message on the other processes.

        Raises:
            Exception: what the body raised; RuntimeError on the other processes.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        if not self.any_and_all([failure is None])[1][0]:
            raise failure or RuntimeError(f"{what} failed on another process; its error tells why")

"""What the ranks tell each other before they average, so that a difference is an error and never a hang."""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from lit_papers.local_sgd.averaging import group_size


class Occasion(IntEnum):
    """What a rank wants to average for."""

    ROUND = 0
    WARMUP = 1
    EVALUATION = 2
    CHECKPOINT = 3
    TRAINING_END = 4


class Leaving(IntEnum):
    """Whether a rank leaves the training loop after this averaging."""

    NO = 0
    EPOCH = 1
    TRAINING = 2


class Greeting(NamedTuple):
    """One rank's row of the handshake: seven integers."""

    occasion: int
    rounds: int
    numbers: int
    steps: int
    leaving: int
    state_numbers: int
    requeue: int

    def __str__(self) -> str:
        """For people."""
        wants = Occasion(self.occasion).name.lower().replace("_", " ")
        staying = ("", ", out of data", ", training over")[self.leaving]
        return f"{wants} after {self.rounds} rounds and {self.steps} steps, {self.numbers} numbers{staying}"


def exchange(own: Greeting, device: torch.device, group: dist.ProcessGroup | None, *, even: bool) -> list[Greeting]:
    """Gather the rows of a group, one small all-gather, and compare them.

    Args:
        own: this rank's row.
        device: that the backend communicates from.
        group: processes that are about to average; None for all.
        even: whether all must have made as many steps, and leave the loop together.

    Returns:
        The rows by rank of the group.

    Raises:
        RuntimeError: they differ in occasion, rounds or numbers, or in steps or leaving where ``even``.
    """
    mine = torch.tensor(own, dtype=torch.int64, device=device)
    rows = [torch.empty_like(mine) for _ in range(group_size(group))]
    dist.all_gather(rows, mine, group=group)
    greetings = [Greeting(*row.tolist()) for row in rows]
    if len({greeting[:3] for greeting in greetings}) > 1:
        raise RuntimeError(
            "the ranks disagree at an averaging step of local SGD:\n" + _table(greetings) + "\nEach rank must step its "
            "optimizers on the same batches, validate and save at the same time, and train the same parameters."
        )
    if even and len({(greeting.steps, greeting.leaving) for greeting in greetings}) > 1:
        raise RuntimeError(
            "some ranks end an epoch before the others:\n" + _table(greetings) + "\nGive each rank as many batches, or "
            "pass uneven_inputs='stop' to end the epoch for all when the first runs out of data."
        )
    return greetings


def compare_settings(settings: Mapping[str, Any], *, even: bool) -> None:
    """Check once, before the first step, that all ranks run the same thing.

    Args:
        settings: by name; ``batches``, the number of batches an epoch, may differ unless ``even``.
        even: whether ``batches`` must agree.

    Raises:
        RuntimeError: a setting differs; the message lists its value on every rank.
    """
    gathered: list[Any] = [None] * group_size()
    dist.all_gather_object(gathered, dict(settings))
    for name in settings:
        values = [each[name] for each in gathered]
        if all(value == values[0] for value in values):
            continue
        if name != "batches":
            raise RuntimeError(f"{name} must be the same on every rank, got {values}")
        if even:
            raise RuntimeError(
                f"the ranks have different numbers of training batches: {values}. Give each as many, for instance by "
                "limit_train_batches, or pass uneven_inputs='stop' to end the epoch when the first runs out of data."
            )


def _table(greetings: list[Greeting]) -> str:
    return "\n".join(f"  rank {rank}: {greeting}" for rank, greeting in enumerate(greetings))

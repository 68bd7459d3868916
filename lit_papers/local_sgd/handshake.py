"""What the ranks tell each other before they average, so that a difference is an error and never a hang."""

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
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
    STEP_WITHIN_NODE = 5


class Leaving(IntEnum):
    """Whether a rank leaves the training loop after this averaging."""

    NO = 0
    EPOCH = 1
    TRAINING = 2


class Greeting(NamedTuple):
    """One rank's row of the handshake: integers."""

    occasion: int
    rounds: int
    numbers: int
    steps: int
    leaving: int
    state_numbers: int
    requeue: int
    moved: int
    rate: int
    rates: int

    def __str__(self) -> str:
        """For people."""
        wants = Occasion(self.occasion).name.lower().replace("_", " ")
        staying = ("", ", out of data", ", training over")[self.leaving]
        return f"{wants} after {self.rounds} rounds and {self.steps} steps, {self.numbers} numbers{staying}"


def exchange(
    own: Greeting,
    device: torch.device,
    group: dist.ProcessGroup | None,
    *,
    even: bool,
    wait: Callable[[dist.Work], None] | None = None,
) -> list[Greeting]:
    """Gather the rows of a group, one small all-gather, and compare them.

    Args:
        own: this rank's row.
        device: that the backend communicates from.
        group: processes that are about to average; None for all.
        even: whether all must have made as many steps, and leave the loop together.
        wait: for the others, who may be late; None for as long as the group's time-out.

    Returns:
        The rows by rank of the group.

    Raises:
        RuntimeError: they differ in occasion, rounds or numbers, or in steps or leaving where ``even``.
    """
    mine = torch.tensor(own, dtype=torch.int64, device=device)
    rows = [torch.empty_like(mine) for _ in range(group_size(group))]
    work = dist.all_gather(rows, mine, group=group, async_op=True)
    assert work is not None  # noqa: S101
    if wait is None:
        work.wait()
    else:
        wait(work)
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


def needs_all_ranks(what: str) -> RuntimeError:
    """The error where a rank asks all others for something in a batch that some may not have."""
    return RuntimeError(
        f"uneven_inputs='stop' and {what} in a training batch exclude each other: ranks that ran out of data would "
        "never answer. It is asked for by self.log(..., on_step=True, sync_dist=True), a metric's compute(), Timer and "
        "the like: log without sync_dist, or with on_step=False, on_epoch=True, and a metric as it is"
    )


def rate_numbers(rates: Sequence[float]) -> tuple[int, int]:
    """The bits of the first learning rate, and a digest of all."""
    if not rates:
        return 0, 0
    bits: int = struct.unpack("<q", struct.pack("<d", rates[0]))[0]
    digest = hashlib.blake2b(struct.pack(f"<{len(rates)}d", *rates), digest_size=7).digest()
    return bits, int.from_bytes(digest, "little")


def differing_rates(greetings: Sequence[Greeting]) -> str | None:
    """What to tell the user where learning rates differ between the ranks; None where they do not."""
    if len({greeting.rates for greeting in greetings}) == 1:
        return None
    first = [struct.unpack("<d", struct.pack("<q", greeting.rate))[0] for greeting in greetings]
    found = f"{first}" if len(set(first)) > 1 else f"{first} in the first parameter group, others in another"
    return (
        f"the learning rates of the ranks differ: {found}. Local SGD averages weights of steps of unlike length. Where "
        "ReduceLROnPlateau decides, let it monitor a metric that is the same on all ranks: "
        "self.log(..., sync_dist=True)"
    )


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

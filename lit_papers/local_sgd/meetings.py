"""The moments at which the ranks of a fit hear of each other: handshakes, and what each learns in one."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lit_papers.local_sgd.averaging import group_size
from lit_papers.local_sgd.handshake import Greeting, Leaving, Occasion, differing_rates, exchange, rate_numbers
from lit_papers.local_sgd.inventory import Inventory, learning_rates
from lit_papers.local_sgd.peers import Peers
from lit_papers.local_sgd.round import Round


class Meetings:
    """One rank's side of all meetings of a fit.

    Args:
        trainer: of this rank.
        rounds: where it is.
        inventory: of its module and callbacks.
        device: that its backend communicates from.
        even: whether all ranks must have as many batches.

    Attributes:
        just_met: whether all ranks are at the same batch, and nothing was broadcast since.
        requeue_asked: whether this rank got SLURM's signal.
        requeue_agreed: whether all ranks know that some rank did.
    """

    def __init__(
        self, trainer: Trainer, rounds: Round, inventory: Inventory, device: torch.device, *, even: bool
    ) -> None:
        self._trainer = trainer
        self._round = rounds
        self._inventory = inventory
        self._device = device
        self._even = even
        self._peers: Peers | None = None
        self._told: set[str] = set()  # what the user was warned of
        self.just_met = True
        self.requeue_asked = False
        self.requeue_agreed = False

    def begin(self, node: int, advice: Callable[[], str]) -> None:
        """Give signs of life from now on; every rank must call it.

        Args:
            node: number of this rank's node.
            advice: for the user, where a rank is gone.
        """
        if group_size() > 1:
            self._peers = Peers(node, advice)

    def close(self) -> None:
        """Stop giving them."""
        if self._peers is not None:
            self._peers.close()
            self._peers = None

    def explain(self, error: BaseException) -> None:
        """Say who is gone in the message of an error by which a collective failed."""
        failed = isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL"))
        if failed and self._peers is not None:
            error.args = (f"{error}\n{self._peers.explain(self._peers.lost())}",)

    def met_since(self) -> bool:
        """Whether all ranks are at the same batch; True once after each meeting of all of them."""
        met, self.just_met = self.just_met, False
        return met

    def greet(
        self,
        occasion: Occasion,
        numbers: int,
        leaving: Leaving = Leaving.NO,
        group: dist.ProcessGroup | None = None,
        state_numbers: int = 0,
    ) -> tuple[Leaving, bool]:
        """Meet the ranks of a group that are about to average.

        Args:
            occasion: what for.
            numbers: how many each is about to give.
            leaving: whether this rank leaves the training loop.
            group: of processes; None for all.
            state_numbers: how many numbers of optimizer state there are to average here.

        Returns:
            What the rank that leaves most does, and whether all have as much optimizer state.

        Raises:
            RuntimeError: the ranks disagree, or one is gone.
        """
        if group_size(group) == 1:
            return leaving, True
        optimizers = self._trainer.optimizers
        small = occasion in (Occasion.WARMUP, Occasion.STEP_WITHIN_NODE)
        own = Greeting(
            occasion,
            self._round.n_syncs,
            numbers,
            self._round.local_step,
            leaving,
            state_numbers,
            self.requeue_asked,
            0 if small else self._inventory.look(optimizers),
            *rate_numbers(learning_rates(optimizers)),
        )
        wait = None if self._peers is None else self._peers.wait
        greetings = exchange(own, self._device, group, even=self._even, wait=wait)
        if len({greeting.moved for greeting in greetings}) > 1:
            gathered: list[Any] = [None] * len(greetings)
            dist.all_gather_object(gathered, self._inventory.whereabouts(optimizers), group=group)
            self._inventory.agree(gathered)
            if self._inventory.lonely:
                self._warn_once(
                    "lonely",
                    f"{', '.join(self._inventory.lonely)} change in training and are there on some ranks only, so they "
                    "follow the weights of those ranks, and no average: keep them on every rank",
                )
        if group is None:
            self.requeue_agreed = any(greeting.requeue for greeting in greetings)
        trouble = differing_rates(greetings)
        # schedulers of an epoch's end have stepped on the ranks that know of it
        if trouble is not None and len({greeting.leaving for greeting in greetings}) == 1:
            self._warn_once("learning rates", trouble)
        told = Leaving(max(greeting.leaving for greeting in greetings))
        return told, len({greeting.state_numbers for greeting in greetings}) == 1

    def tell_what_moves(self) -> None:
        """Tell once which buffers move and are not averaged, and which copies of the weights are."""
        copies = self._inventory.moving_copies(self._trainer.optimizers)
        if copies:
            self._warn_once(
                "copies",
                f"{', '.join(copies)} have the shapes of the weights and change in training: they are averaged over "
                "the ranks where a round ends with an epoch, and for validation and checkpoints, as moving averages of "
                "the weights need to be. What is to stay each rank's own must have another shape: flatten it",
            )
        names = [] if self._inventory.average_buffers is False else self._inventory.moving_buffers()
        if names:
            self._warn_once(
                "buffers",
                f"the buffers {', '.join(names)} change in training and stay each rank's own: only running statistics "
                "of normalisation layers are averaged. Checkpoints hold the first rank's. To average them too, pass "
                "LocalSGDStrategy(average_buffers=<a function of a buffer's name and value>)",
            )

    def _warn_once(self, what: str, message: str) -> None:
        if what not in self._told:
            self._told.add(what)
            rank_zero_warn(message)

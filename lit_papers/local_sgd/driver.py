"""The rounds of a fit: which batch ends one, and what is averaged then."""

from typing import Literal

from lightning.pytorch import Trainer
from torch import Tensor

from lit_papers.local_sgd import internals
from lit_papers.local_sgd.averaging import group_size, numbers_in
from lit_papers.local_sgd.handshake import Leaving, Occasion, needs_all_ranks
from lit_papers.local_sgd.inventory import Inventory, matching_state, trained_parameters
from lit_papers.local_sgd.meetings import Meetings
from lit_papers.local_sgd.round import Due, Round
from lit_papers.local_sgd.stand_in import StandIn


class RoundDriver:
    """Drives a `Round` through the batches of a Trainer; `RoundHooks` tells it where the loop is.

    Args:
        trainer: of this rank.
        rounds: that are driven.
        inventory: of the rank's module and callbacks.
        meetings: with the other ranks, before each average.
        stand_in: that makes them equal at the end.
        average_optimizer_state: as of the strategy, like the rest.
        sync_on_epoch_end: whether a round ends with the epoch.
        uneven_inputs: where some rank runs out of batches.
        within_node: whether a node trains as one.

    Attributes:
        in_batch: whether this rank is in a training batch, where others may have none.
        stepped: whether an optimizer stepped in this batch.
    """

    def __init__(
        self,
        trainer: Trainer,
        rounds: Round,
        inventory: Inventory,
        meetings: Meetings,
        stand_in: StandIn,
        *,
        average_optimizer_state: bool,
        sync_on_epoch_end: bool,
        uneven_inputs: Literal["error", "stop"],
        within_node: str,
    ) -> None:
        self._trainer = trainer
        self._round = rounds
        self._inventory = inventory
        self._meetings = meetings
        self._stand_in = stand_in
        self._average_optimizer_state = average_optimizer_state
        self._sync_on_epoch_end = sync_on_epoch_end
        self.stops_together = uneven_inputs == "stop"
        self._node_is_one = within_node != "local"
        self.in_batch = False
        self.stepped = False
        self._collectives_before: int | None = None  # the batch, where it must have none

    def begin_batch(self) -> None:
        """From here on this rank may be alone at its batch."""
        self.in_batch = True
        may_have_none = self.stops_together and group_size() > 1 and not self._round.in_warmup
        self._collectives_before = internals.collectives_so_far() if may_have_none else None

    def end_batch(self, leaving: Leaving) -> Leaving:
        """Count the batch's step, and end the round if it is due.

        Args:
            leaving: whether this rank leaves the loop now.

        Returns:
            What the rank that leaves most does, as far as this rank was told.

        Raises:
            RuntimeError: the ranks disagree, or the batch asked for an answer of ranks that may have none.
        """
        if self._collectives_before not in (None, internals.collectives_so_far()):
            raise needs_all_ranks("a collective of torch.distributed")  # at the first batch, which all ranks have
        stepped, self.stepped = self.stepped, False
        in_warmup = self._round.in_warmup
        self._round.count(stepped=stepped)
        if in_warmup:
            return self._end_warmup_batch(stepped, leaving)
        if self._node_is_one and self._trainer.num_training_batches == float("inf"):
            # a rank that is out of data must say so before its node waits for its gradients
            self._meetings.greet(Occasion.STEP_WITHIN_NODE, 0, leaving, self._round.groups.node)
        over = bool(leaving) and (self.stops_together or (self._sync_on_epoch_end and self._round.weights_apart))
        due = self._round.due(stepped=stepped, over=over)
        if due is not None:
            return self._end_round(leaving, due, over=over)
        return leaving

    def end_epoch(self) -> None:
        """End the round with the epoch, where its last batch did not."""
        self.in_batch = False
        if self._round.weights_apart and (self._sync_on_epoch_end or self.stops_together):
            self._end_round(Leaving.EPOCH, self._round.everything, over=True)

    def end_training(self) -> None:
        """Make all ranks equal."""
        if self._round.weights_apart:
            self._end_round(Leaving.TRAINING, self._round.everything, over=True, occasion=Occasion.TRAINING_END)
        elif group_size() > 1 and (self._round.batches_apart or self._round.models_apart):
            self._stand_in.stay(Occasion.TRAINING_END)
        self._round.batches_apart = self._round.models_apart = False

    def _end_warmup_batch(self, stepped: bool, leaving: Leaving) -> Leaving:
        if stepped:
            self._meetings.just_met = True
            if not self._round.in_warmup:
                self._round.begin(trained_parameters(self._trainer.optimizers))
        told, _ = self._meetings.greet(Occasion.WARMUP, 0, leaving)  # streams may end apart
        return told

    def _end_round(self, leaving: Leaving, due: Due, *, over: bool, occasion: Occasion = Occasion.ROUND) -> Leaving:
        optimizers = self._trainer.optimizers
        group = None if due.everywhere else self._round.groups.node
        several = group_size(group) > 1
        parameters = trained_parameters(optimizers)
        buffers = self._inventory.statistics()
        alike: list[Tensor] = matching_state(optimizers) if self._average_optimizer_state else []
        told = leaving
        if several:
            numbers = self._round.numbers(parameters, due) + numbers_in(buffers)
            told, state_is_alike = self._meetings.greet(occasion, numbers, leaving, group, numbers_in(alike))
            over = over or (bool(told) and self.stops_together)  # for all, where one is out of data
            if not state_is_alike:  # a scaler skipped the first step on some rank
                alike = []
            alike = [*alike, *self._inventory.followers(optimizers)]
            alike += self._inventory.moving_models(optimizers) if over else []
        self._round.end(parameters, due, alike=alike, others=buffers)
        if over:
            self._round.models_apart = False
        if due.everywhere:
            self._meetings.just_met = True
        if several:
            self._meetings.tell_what_moves()
        return told

"""The average of all ranks in the place of each rank's own values: to evaluate, to save, and to end on."""

from lightning.pytorch import Trainer
from torch import Tensor

from lit_papers.local_sgd.averaging import group_size, numbers_in
from lit_papers.local_sgd.handshake import Occasion
from lit_papers.local_sgd.inventory import Inventory, trained_parameters
from lit_papers.local_sgd.meetings import Meetings
from lit_papers.local_sgd.round import Round


class StandIn:
    """Puts the average in place without ending a round, and each rank's own values back bit for bit.

    Args:
        trainer: of this rank.
        rounds: what has moved since all ranks were equal.
        inventory: of its module and callbacks.
        meetings: all ranks meet before each average.
    """

    def __init__(self, trainer: Trainer, rounds: Round, inventory: Inventory, meetings: Meetings) -> None:
        self._trainer = trainer
        self._round = rounds
        self._inventory = inventory
        self._meetings = meetings
        self._own_values: list[tuple[Tensor, Tensor]] | None = None

    @property
    def is_in_place(self) -> bool:
        """Whether the module holds the average now."""
        return self._own_values is not None

    def put(self, occasion: Occasion) -> None:
        """Put the average in place; every rank must call it."""
        alike, others = self._differing(occasion)
        self._own_values = [(tensor, tensor.detach().clone()) for tensor in (*alike, *others)]
        self._round.average_in_place(alike, others)

    def put_back(self) -> None:
        """Put this rank's own values back, where the average is in place."""
        own_values, self._own_values = self._own_values, None
        for tensor, value in own_values or ():
            tensor.detach().copy_(value)

    def stay(self, occasion: Occasion) -> None:
        """Make all ranks equal for good; every rank must call it."""
        self._round.average_in_place(*self._differing(occasion))

    def own_values(self) -> dict[int, Tensor]:
        """From the identity of a tensor that the average replaces now to this rank's own value."""
        return {id(tensor): value for tensor, value in self._own_values or ()}

    def _differing(self, occasion: Occasion) -> tuple[list[Tensor], list[Tensor]]:
        """What has moved on some rank since all were equal; all ranks greet each other first.

        Returns:
            What is the same within a node that trains as one, and what is not.
        """
        rounds, inventory, optimizers = self._round, self._inventory, self._trainer.optimizers
        # what all ranks know alike, as it decides whether they meet
        has_models = inventory.common_models or bool(inventory.moving_models(optimizers))
        models_apart = rounds.models_apart and has_models
        if group_size() == 1 or not (rounds.weights_apart or rounds.batches_apart or models_apart):
            return [], []
        weights = trained_parameters(optimizers) if rounds.weights_apart else []
        buffers = inventory.statistics() if rounds.batches_apart else []
        self._meetings.greet(occasion, numbers_in([*weights, *buffers]))
        followers = inventory.followers(optimizers) if rounds.batches_apart else []
        models = inventory.moving_models(optimizers) if rounds.models_apart else []
        return [*weights, *followers, *models], buffers

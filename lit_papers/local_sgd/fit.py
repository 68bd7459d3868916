"""What a strategy needs for one fit, and forgets with it."""

from typing import TYPE_CHECKING, NamedTuple

from lightning.pytorch import Callback, Trainer

from lit_papers.local_sgd.checkpoints import RankCheckpoints
from lit_papers.local_sgd.driver import RoundDriver
from lit_papers.local_sgd.inventory import Inventory
from lit_papers.local_sgd.meetings import Meetings
from lit_papers.local_sgd.round import Round
from lit_papers.local_sgd.stand_in import StandIn

if TYPE_CHECKING:
    from lit_papers.local_sgd.strategy import LocalSGDStrategy


class Fit(NamedTuple):
    """Who does what in a fit; each knows those above it."""

    inventory: Inventory
    meetings: Meetings
    stand_in: StandIn
    driver: RoundDriver
    checkpoints: RankCheckpoints


def begin_fit(options: "LocalSGDStrategy", rounds: Round, trainer: Trainer) -> Fit:
    """Make them anew, for the trainer's module and callbacks."""
    callbacks: list[Callback] = list(trainer.callbacks)  # type: ignore[attr-defined]
    device = options.root_device
    inventory = Inventory(trainer.lightning_module, callbacks, options.average_buffers)
    meetings = Meetings(trainer, rounds, inventory, device, even=options.uneven_inputs == "error")
    stand_in = StandIn(trainer, rounds, inventory, meetings)
    driver = RoundDriver(
        trainer,
        rounds,
        inventory,
        meetings,
        stand_in,
        average_optimizer_state=options.average_optimizer_state,
        sync_on_epoch_end=options.sync_on_epoch_end,
        uneven_inputs=options.uneven_inputs,
        within_node=options.within_node,
    )
    checkpoints = RankCheckpoints(trainer, rounds, inventory, stand_in, options.rank_state, options.checkpoint_io)
    return Fit(inventory, meetings, stand_in, driver, checkpoints)

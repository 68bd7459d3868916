"""When local SGD's rounds end: the first callback of the trainer tells the strategy how far the loop is."""

from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_papers.local_sgd.handshake import Leaving
from lit_papers.local_sgd.requeue import RequeueAfterRound

if TYPE_CHECKING:
    from lit_papers.local_sgd.strategy import LocalSGDStrategy


class RoundHooks(Callback):
    """Calls the strategy where Lightning gives strategies no hook; first of all callbacks, so that they see averages.

    Args:
        strategy: whose rounds these are.
    """

    def __init__(self, strategy: "LocalSGDStrategy") -> None:
        self._strategy = strategy

    @staticmethod
    def add_to(trainer: Trainer, strategy: "LocalSGDStrategy") -> None:
        """Put ours around a trainer's callbacks; a requeue saves what the last of them has done."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it in a connector
        callbacks.insert(0, RoundHooks(strategy))
        callbacks.append(RequeueAfterRound(strategy))

    @staticmethod
    def remove_from(trainer: Trainer) -> None:
        """Take those of this or an earlier fit out of a trainer, with what they changed in its loops."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it in a connector
        callbacks[:] = [callback for callback in callbacks if not isinstance(callback, (RoundHooks, RequeueAfterRound))]
        trainer.fit_loop.epoch_loop.__dict__.pop("_broadcast_sigterm_tensor", None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the ranks' settings, and keep the loop from communicating on each batch."""
        loop = trainer.fit_loop.epoch_loop
        broadcast = loop._broadcast_sigterm_tensor  # a collective before each batch: only where the ranks just met

        def broadcast_where_the_ranks_met() -> None:
            if self._strategy.ranks_just_met():
                broadcast()

        loop._broadcast_sigterm_tensor = broadcast_where_the_ranks_met  # type: ignore[method-assign]
        self._strategy.start_training(trainer)
        self._validate_at_the_last_batch(trainer)  # a resumed epoch does not start again

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep to it where the loaders were made anew."""
        self._validate_at_the_last_batch(trainer)

    def _validate_at_the_last_batch(self, trainer: Trainer) -> None:
        """Where an epoch may end anywhere, no batch count decides on validation: some ranks would hang in it."""
        if self._strategy.uneven_inputs == "stop":
            trainer.val_check_batch = float("inf")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step, and average where a round is over."""
        told = self._strategy.end_batch(leaving(trainer))
        if told == Leaving.NO or self._strategy.uneven_inputs == "error":
            return
        loop = trainer.fit_loop.epoch_loop
        if not loop._num_ready_batches_reached():
            # Lightning steps epoch-wise schedulers before this hook, on the ranks that knew
            loop.batch_progress.is_last_batch = True
            loop.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        loop.batch_progress.is_last_batch = True
        if told == Leaving.TRAINING:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Average where the epoch ended otherwise than with the loader's last batch."""
        self._strategy.end_epoch()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Average whatever is still different between the ranks."""
        self._strategy.end_training()


def leaving(trainer: Trainer) -> Leaving:
    """Whether this rank's training loop is over after the present batch."""
    loop = trainer.fit_loop.epoch_loop
    out_of_steps = 0 <= loop.max_steps <= loop.global_step
    if out_of_steps or (trainer.should_stop and trainer.fit_loop._can_stop_early):
        return Leaving.TRAINING
    return Leaving.EPOCH if loop._num_ready_batches_reached() else Leaving.NO

"""When local SGD's rounds end: the first callback of the trainer tells how far the loop is."""

from collections.abc import Callable
from typing import Any

from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_papers.local_sgd import internals
from lit_papers.local_sgd.driver import RoundDriver
from lit_papers.local_sgd.handshake import Leaving
from lit_papers.local_sgd.meetings import Meetings
from lit_papers.local_sgd.requeue import RequeueAfterRound


class RoundHooks(Callback):
    """Tells the driver where Lightning gives strategies no hook; first of all callbacks, so that they see averages.

    Args:
        driver: of the rounds.
        meetings: of the ranks.
        start_training: called before the first step.
        start_validation: called before each validation of the fit.
    """

    def __init__(
        self,
        driver: RoundDriver,
        meetings: Meetings,
        start_training: Callable[[Trainer], None],
        start_validation: Callable[[], None],
    ) -> None:
        self._driver = driver
        self._meetings = meetings
        self._start_training = start_training
        self._start_validation = start_validation

    @staticmethod
    def add_to(
        trainer: Trainer,
        driver: RoundDriver,
        meetings: Meetings,
        environment: ClusterEnvironment | None,
        start_training: Callable[[Trainer], None],
        start_validation: Callable[[], None],
    ) -> None:
        """Put ours around a trainer's callbacks; a requeue saves what the last of them has done."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it in a connector
        callbacks.insert(0, RoundHooks(driver, meetings, start_training, start_validation))
        callbacks.append(RequeueAfterRound(meetings, environment))

    @staticmethod
    def remove_from(trainer: Trainer) -> None:
        """Take those of this or an earlier fit out of a trainer, with what they changed in its loops."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it in a connector
        callbacks[:] = [callback for callback in callbacks if not isinstance(callback, (RoundHooks, RequeueAfterRound))]
        internals.broadcast_sigterm_always(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the ranks' settings, and keep the loop from communicating on each batch."""
        internals.broadcast_sigterm_only(trainer, self._meetings.met_since)
        self._start_training(trainer)
        self._validate_at_the_last_batch(trainer)  # a resumed epoch does not start again

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep to it where the loaders were made anew."""
        self._validate_at_the_last_batch(trainer)

    def _validate_at_the_last_batch(self, trainer: Trainer) -> None:
        """Where an epoch may end anywhere, no batch count decides on validation: some ranks would hang in it."""
        if self._driver.stops_together:
            trainer.val_check_batch = float("inf")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """From here on this rank may be alone at its batch."""
        self._driver.begin_batch()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step, and average where a round is over."""
        told = self._driver.end_batch(leaving(trainer))
        if told == Leaving.NO or not self._driver.stops_together:
            return
        internals.end_epoch_here(trainer)
        if told == Leaving.TRAINING:
            trainer.should_stop = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All ranks validate together."""
        self._driver.in_batch = False
        self._start_validation()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Average where the epoch ended otherwise than with the loader's last batch."""
        self._driver.end_epoch()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Average whatever is still different between the ranks."""
        self._driver.end_training()


def leaving(trainer: Trainer) -> Leaving:
    """Whether this rank's training loop is over after the present batch."""
    loop = trainer.fit_loop.epoch_loop
    out_of_steps = 0 <= loop.max_steps <= loop.global_step
    if out_of_steps or (trainer.should_stop and internals.may_stop(trainer)):
        return Leaving.TRAINING
    return Leaving.EPOCH if internals.out_of_batches(trainer) else Leaving.NO

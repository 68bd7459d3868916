"""SLURM's requeue signal under local SGD: save where the ranks have met, not where the signal found them."""

import signal
import threading
from collections.abc import Callable
from typing import Any

from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_papers.local_sgd.internals import is_auto_requeue
from lit_papers.local_sgd.meetings import Meetings


class RequeueAfterRound(Callback):
    """Puts Lightning's auto-requeue off until every rank knows of it; last of all callbacks, so that all have finished.

    Lightning saves inside the signal's handler. There the ranks of local SGD are at different batches, and a
    checkpoint needs all of them. Here the handler only takes a note, the next handshake over all ranks passes it on
    (so a signal that reaches one rank is enough), and the checkpoint is written after that batch.

    A user's own handler of the signal stays in place, as it does in Lightning.

    Args:
        meetings: that pass it on.
        environment: that names the signal.
    """

    def __init__(self, meetings: Meetings, environment: ClusterEnvironment | None) -> None:
        self._meetings = meetings
        self._environment = environment
        self._save_and_requeue: Callable[[int, Any], None] | None = None
        self._signal = signal.Signals.SIGTERM  # replaced by the one that the environment names

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the handler's place."""
        environment = self._environment
        if trainer.world_size == 1 or not isinstance(environment, SLURMEnvironment) or not environment.auto_requeue:
            return
        if environment.requeue_signal is None or threading.current_thread() is not threading.main_thread():
            return
        handler = signal.getsignal(environment.requeue_signal)
        if callable(handler) and is_auto_requeue(handler):
            self._signal, self._save_and_requeue = environment.requeue_signal, handler
            signal.signal(self._signal, self._take_note)

    def _take_note(self, number: int, frame: Any) -> None:
        self._meetings.requeue_asked = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and ask SLURM for another turn, on all ranks at the same batch."""
        if self._meetings.requeue_agreed and self._save_and_requeue is not None:
            self._meetings.requeue_asked = self._meetings.requeue_agreed = False
            self._save_and_requeue(self._signal, None)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put Lightning's handler back."""
        if self._save_and_requeue is not None:
            signal.signal(self._signal, self._save_and_requeue)
            self._save_and_requeue = None

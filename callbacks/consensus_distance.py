"""How far the ranks of local SGD drift apart in each round, and what keeping them together has cost."""

from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer

from lit_papers.callbacks.record import Record, nothing_yet
from lit_papers.local_sgd import LocalSGDStrategy
from lit_papers.plotting import STYLES, log_scale, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DISTANCE, _RELATIVE, _BYTES = "consensus_distance", "relative_consensus_distance", "bytes_communicated"


class ConsensusDistance(Record):
    r"""Logs the drift between the ranks at each averaging of `LocalSGDStrategy`, before they are averaged.

    .. math:: \frac{1}{M} \sum_m \|x_m - \bar x\|^2

    over all trained parameters: the price of a long sync interval in local SGD (Yun, Rajput & Sra, ICLR 2022). Attach
    it beside the strategy::

        trainer = Trainer(strategy=LocalSGDStrategy(sync_every=8), callbacks=[ConsensusDistance()])

    At each averaging every logger gets, at ``step=trainer.global_step`` and whatever ``log_every_n_steps`` is,
    ``local_sgd/consensus_distance`` (squared distance), ``local_sgd/relative_consensus_distance`` (divided by the
    squared norm of the average, 0 if that is 0) and ``local_sgd/bytes_communicated`` (payload per rank so far). It
    costs one all-reduce of a single number a round, and never changes training.

    Args:
        name: prefix of keys and name of the figure.

    Attributes:
        history: one dict an averaging with ``step`` and these three keys without prefix; kept in checkpoints.

    Raises:
        MisconfigurationException: at the start of fit, if the strategy is another one.
    """

    def __init__(self, name: str = "local_sgd") -> None:
        super().__init__(name)
        self._seen = 0  # averagings that are in the history, or were before this callback came

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask the strategy to measure."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            if not isinstance(trainer.strategy, LocalSGDStrategy):
                raise MisconfigurationException(
                    "ConsensusDistance needs Trainer(strategy=LocalSGDStrategy(...)): under "
                    f"{type(trainer.strategy).__name__} the ranks never drift apart"
                )
            trainer.strategy.track_drift = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin where the strategy is: at 0, or where a resumed run was saved."""
        self._seen = _strategy(trainer).n_syncs

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the round that this batch ended, if it did."""
        self._record(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record a round that the end of the epoch ended."""
        self._record(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record a round that the end of training ended."""
        self._record(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let a later fit without this callback measure nothing."""
        if stage == "fit":
            _strategy(trainer).track_drift = False

    def _record(self, trainer: Trainer) -> None:
        strategy = _strategy(trainer)
        if strategy.n_syncs == self._seen or strategy.drift is None:
            return
        self._seen = strategy.n_syncs
        distance, norm = strategy.drift.tolist()
        measured = {
            _DISTANCE: distance,
            _RELATIVE: distance / norm if norm > 0 else 0.0,
            _BYTES: float(strategy.bytes_communicated),
        }
        self.keep(trainer, measured)

    def plot(self) -> "Figure":
        """Drift against optimizer steps, log scale, and bytes on a second axis.

        Raises:
            RuntimeError: nothing was averaged yet.
        """
        if not self.history:
            raise nothing_yet(type(self).__name__)
        figure, (ax,) = new_figure(1, 1)
        steps = [entry["step"] for entry in self.history]
        ax.plot(steps, [entry[_DISTANCE] for entry in self.history], markersize=4, label="drift", **STYLES[0])
        ax.set(xlabel="optimizer step", ylabel=r"drift $\frac{1}{M}\sum_m \|x_m - \bar{x}\|^2$")
        log_scale(ax)
        ax.grid(alpha=0.3, which="both")
        megabytes = [entry[_BYTES] / 1e6 for entry in self.history]
        sent = ax.twinx()
        sent.plot(steps, megabytes, markersize=3, label="sent", **STYLES[1])
        sent.set_ylabel("megabytes given to all-reduces by each rank")
        lines = [*ax.lines, *sent.lines]
        ax.legend(lines, [str(line.get_label()) for line in lines])
        return figure


def _strategy(trainer: Trainer) -> LocalSGDStrategy:
    assert isinstance(trainer.strategy, LocalSGDStrategy), "checked in setup"  # noqa: S101
    return trainer.strategy

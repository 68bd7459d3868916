"""How a trial tells its study about the metric."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from lit_papers.tuning.assignment import LOGGED, PRUNED, VALUE, Assignment, open_study


class ReportToStudy(EarlyStopping):
    """Leaves the last value of a metric with the study, and ends the training when the study's pruner says so.

    The n-th epoch that logs a value is the n-th step of the trial, as it is the n-th iteration to W&B. Trials are
    compared after ``min_iter * eta^k`` steps, so only those are written to the database; the whole curve is in the
    trial's ``metrics.csv``. An `EarlyStopping`, as Lightning calls those last: after the module, which may log the
    metric at the epoch's end.

    Args:
        assignment: the trial, and the metric.
    """

    def __init__(self, assignment: Assignment) -> None:
        super().__init__(monitor=assignment.metric)
        self.assignment = assignment
        self._before: Tensor | None = None
        self._steps = 0
        self._rung = assignment.min_iter

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the trial; on the first process only."""
        from optuna.trial import Trial

        if trainer.is_global_zero:
            self._trial = Trial(open_study(self.assignment), self.assignment.trial_id)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the value of earlier epochs: one that is logged anew will be another tensor."""
        self._before = trainer.callback_metrics.get(self.monitor)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with the other trials, and stop on all processes alike."""
        if self._rung is None:
            return
        # every process takes part in both, in every epoch: to read a metric is to average it over the processes
        value = trainer.callback_metrics.get(self.monitor)
        falls_behind = trainer.is_global_zero and self._falls_behind(value, self._rung)
        if trainer.strategy.broadcast(falls_behind):
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the end of the epoch."""

    def _falls_behind(self, value: Tensor | None, rung: int) -> bool:
        if value is None or value is self._before:
            return False
        self._steps += 1
        if self._steps < rung:
            return False
        self._rung = rung * self.assignment.eta
        self._trial.report(value.item(), step=self._steps)
        falls_behind: bool = self._trial.should_prune()
        if falls_behind:
            self._trial.set_user_attr(PRUNED, True)
        return falls_behind

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the last value, or the names that were logged instead."""
        metrics = trainer.callback_metrics
        if not trainer.is_global_zero:
            return
        if self.monitor in metrics:
            self._trial.set_user_attr(VALUE, metrics[self.monitor].item())
        else:
            self._trial.set_user_attr(LOGGED, sorted(metrics))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the checkpoints of a trial are those of any run."""
        return {}

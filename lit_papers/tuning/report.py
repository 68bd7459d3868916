"""How a trial tells its study about the metric."""

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_papers.tuning.trial import LOGGED, PRUNED, VALUE, Assignment, open_study


class ReportToStudy(Callback):
    """Reports each newly logged value of a metric, and ends the training when the study's pruner says so.

    The n-th logged value is the n-th step of the trial, as it is the n-th iteration to W&B. A metric that the module
    logs in its own ``on_train_epoch_end`` is reported one epoch late.

    Args:
        assignment: the trial, and the metric.
    """

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self._last: Tensor | None = None
        self._reports = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the trial; on the first process only."""
        from optuna.trial import Trial

        if trainer.is_global_zero:
            self._trial = Trial(open_study(self.assignment), self.assignment.trial_id)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and stop on all processes alike."""
        falls_behind = trainer.is_global_zero and self._report(trainer)
        # every process takes part in every epoch, whether the metric is known to it or not
        if self.assignment.min_iter is not None and trainer.strategy.broadcast(falls_behind):
            trainer.should_stop = True

    def _report(self, trainer: Trainer) -> bool:
        value = trainer.callback_metrics.get(self.assignment.metric)
        if value is None or value is self._last:  # a value logged anew is a new tensor
            return False
        self._last = value
        self._reports += 1
        self._trial.report(value.item(), step=self._reports)
        falls_behind: bool = self._trial.should_prune()
        if falls_behind:
            self._trial.set_user_attr(PRUNED, True)
        return falls_behind

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the last value, or the names that were logged instead."""
        if not trainer.is_global_zero:
            return
        value = trainer.callback_metrics.get(self.assignment.metric)
        if value is None:
            self._trial.set_user_attr(LOGGED, sorted(trainer.callback_metrics))
        else:
            self._trial.set_user_attr(VALUE, value.item())

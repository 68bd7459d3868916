"""A trial tells its study what was logged, when it was logged, and stops when it falls behind."""

from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from lit_papers.tuning.assignment import LOGGED, PRUNED, VALUE, Assignment
from lit_papers.tuning.report import ReportToStudy
from lit_papers.tuning.storage import open_storage


class Logs(LightningModule):
    """Logs ``offset + epoch`` in every ``every``-th epoch, on the first process only; and a mean over processes."""

    def __init__(self, offset: float, every: int = 1, stage: str = "train") -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.offset, self.every, self.stage = offset, every, stage

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.stage == "train":
            self._log()
        self.log("mean", 1.0, on_epoch=True, on_step=False, sync_dist=True)
        return self.layer(batch).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.stage == "validation":
            self._log()

    def on_train_epoch_end(self) -> None:
        if self.stage == "epoch end":
            self._log()

    def _log(self) -> None:
        if self.current_epoch % self.every == 0 and self.trainer.is_global_zero:
            self.log("score", self.offset + self.current_epoch, on_epoch=True, on_step=False, rank_zero_only=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(assignment: Assignment, module: LightningModule, **options: Any) -> Trainer:
    loader = DataLoader(torch.ones(4, 1), batch_size=2)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[ReportToStudy(assignment)], **options,
    )  # fmt: skip
    trainer.fit(module, loader, loader)
    return trainer


def assign(folder: Path, min_iter: int | None = None, metric: str = "score") -> tuple[optuna.Study, Assignment]:
    url = f"sqlite:///{folder / 'study.db'}"
    study = optuna.create_study(study_name="s", storage=open_storage(url), load_if_exists=True)
    trial = study.ask()
    return study, Assignment(url, "s", trial._trial_id, metric, min_iter, eta=3)


@pytest.mark.parametrize("stage", ["train", "validation", "epoch end"])
def test_counts_what_is_logged_and_writes_the_rungs(stage: str, tmp_path: Path) -> None:
    """Logged after epochs 0, 2, 4 and 6: four steps, as W&B counts them, of which 1 and 3 are rungs."""
    study, assignment = assign(tmp_path, min_iter=1)
    fit(assignment, Logs(10.0, every=2, stage=stage), max_epochs=8)
    assert study.trials[0].intermediate_values == {1: 10.0, 3: 14.0}
    assert study.trials[0].user_attrs == {VALUE: 16.0}


def test_without_pruning_only_the_end_is_written(tmp_path: Path) -> None:
    study, assignment = assign(tmp_path)
    fit(assignment, Logs(10.0), max_epochs=3)
    assert study.trials[0].intermediate_values == {}
    assert study.trials[0].user_attrs == {VALUE: 12.0}


def test_an_unknown_metric_leaves_the_names_of_the_others(tmp_path: Path) -> None:
    study, assignment = assign(tmp_path, metric="scor")
    fit(assignment, Logs(0.0), max_epochs=1)
    assert study.trials[0].user_attrs == {LOGGED: ["mean", "score"]}


def test_hyperband_stops_where_the_pruner_of_wandb_would(tmp_path: Path) -> None:
    """min_iter 2 and eta 3: compared after values 2 and 6; of two only the better one goes on."""
    study, first = assign(tmp_path, min_iter=2)
    fit(first, Logs(0.0), max_epochs=8)
    assert list(study.trials[0].intermediate_values) == [2, 6]
    study.tell(0, study.trials[0].user_attrs[VALUE])
    _, second = assign(tmp_path, min_iter=2)
    fit(second, Logs(100.0), max_epochs=8)
    assert list(study.trials[1].intermediate_values) == [2]
    assert study.trials[1].user_attrs == {PRUNED: True, VALUE: 101.0}


def test_the_rungs_are_those_of_wandb() -> None:
    """W&B compares after min_iter * eta^k logged values; so does the pruner."""
    pruner = optuna.pruners.SuccessiveHalvingPruner(2, reduction_factor=3)
    study = optuna.create_study(pruner=pruner)
    rungs = []
    trial = study.ask()
    for step in range(1, 60):
        before = len(study.trials[0].system_attrs)
        trial.report(1.0, step)
        assert not trial.should_prune()
        if len(study.trials[0].system_attrs) > before:
            rungs.append(step)
    assert rungs == [2, 6, 18, 54]


def test_two_processes_report_once_and_stop_together(tmp_path: Path) -> None:
    study, first = assign(tmp_path, min_iter=1)
    fit(first, Logs(0.0), max_epochs=1)
    _, second = assign(tmp_path, min_iter=1)
    assert second.trial_id != first.trial_id
    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork")
    trainer = fit(second, Logs(5.0), max_epochs=50, devices=2, strategy=strategy)
    assert study.trials[1].intermediate_values == {1: 5.0}
    assert study.trials[1].user_attrs[PRUNED]
    assert trainer.callback_metrics["score"] == 5.0

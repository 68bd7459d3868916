"""What a search draws, on a study whose answers are known."""

from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from lit_papers.tuning.figures import history, importance, parallel_coordinates, write_figures
from lit_papers.tuning.results import table
from lit_papers.tuning.sweep_file import Choice, Range, Sweep

SPACE = {"model.lr": Range(0.01, 1.0, log=True), "model.loss": Choice(("mse", None)), "seed": Range(0.0, 1.0)}
DISTRIBUTIONS = {
    "model.lr": FloatDistribution(0.01, 1.0, log=True),
    "model.loss": CategoricalDistribution(["mse", None]),
    "seed": FloatDistribution(0.0, 1.0),
}


def make(maximize: bool = True) -> tuple[optuna.Study, Sweep]:
    """The metric is the logarithm of the learning rate and nothing else; every fifth trial was stopped early."""
    study = optuna.create_study(direction="maximize" if maximize else "minimize")
    draw = np.random.default_rng(0)
    for i in range(20):
        lr = float(10 ** draw.uniform(-2, 0))
        params = {"model.lr": lr, "model.loss": ["mse", None][i % 2], "seed": float(draw.uniform())}
        state = TrialState.PRUNED if i % 5 == 4 else TrialState.COMPLETE
        value = 3 + float(np.log10(lr))
        study.add_trial(create_trial(state=state, value=value, params=params, distributions=DISTRIBUTIONS))
    return study, Sweep("known", "random", "val/accuracy", maximize, SPACE, {}, ())


@pytest.mark.parametrize("maximize", [True, False])
def test_history_and_its_best(maximize: bool) -> None:
    study, sweep = make(maximize)
    (axis,) = history(study, sweep).axes
    trials, early, best = axis.lines
    assert len(trials.get_xdata()) == 16
    assert len(early.get_xdata()) == 4
    values = list(trials.get_ydata())
    expected = [(max if maximize else min)(values[: i + 1]) for i in range(16)]
    assert list(best.get_ydata()) == expected
    assert axis.get_xlabel() == "trial"
    assert "val/accuracy" in axis.get_ylabel()


@pytest.mark.parametrize("maximize", [True, False])
def test_the_best_line_is_the_darkest_and_on_top(maximize: bool) -> None:
    study, sweep = make(maximize)
    (axis,) = parallel_coordinates(study, sweep).axes
    lines = [line for line in axis.lines if len(line.get_xdata()) == 4]
    assert len(lines) == 16
    ends = [line.get_ydata()[-1] for line in lines]  # the metric is the last column
    assert ends == sorted(ends, reverse=not maximize)
    assert float(lines[-1].get_color()) == 0.0
    assert [label.get_text() for label in axis.get_xticklabels()] == ["lr", "loss", "seed", "val/accuracy"]


def test_importance_finds_the_parameter_that_matters() -> None:
    study, sweep = make()
    figure = importance(study, sweep)
    assert figure is not None
    (axis,) = figure.axes
    shares = {
        label.get_text(): bar.get_width() for label, bar in zip(axis.get_yticklabels(), axis.patches, strict=True)
    }
    assert shares["lr"] > 0.7
    assert sum(shares.values()) == pytest.approx(1)


def test_few_or_equal_trials(tmp_path: Path) -> None:
    study, sweep = make()
    few = optuna.create_study()
    for trial in study.trials[:1]:
        few.add_trial(trial)
    assert importance(few, sweep) is None
    assert [path.name for path in write_figures(tmp_path, few, sweep)] == ["history.png", "parallel_coordinates.png"]


def test_table_says_what_became_of_each() -> None:
    study, sweep = make()
    shown = table(study, sweep)
    assert [column.header for column in shown.columns] == ["trial", "val/accuracy", "lr", "loss", "seed", "seconds"]
    assert shown.row_count == 15
    assert shown.caption == "and 5 more"
    assert next(iter(shown.columns[0].cells)) == str(study.best_trial.number)

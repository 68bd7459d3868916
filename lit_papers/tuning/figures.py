"""Three figures of a search: how it went, which values went with which result, and which parameter mattered."""

import math
from io import BytesIO
from pathlib import Path

import numpy as np
import optuna
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.distributions import CategoricalDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lit_papers.files import write_whole
from lit_papers.plotting import STYLES, new_figure
from lit_papers.tuning.results import format_value, short_names
from lit_papers.tuning.sweep_file import Sweep


def write_figures(folder: Path, study: Study, sweep: Sweep) -> list[Path]:
    """Draw the search into ``history.png``, ``parallel_coordinates.png`` and ``importance.png``.

    Args:
        folder: where they go.
        study: at least one of its trials is complete.
        sweep: names metric and parameters.

    Returns:
        The files; without the importance where it is not defined, see `importance`.
    """
    figures = {"history": history(study, sweep), "parallel_coordinates": parallel_coordinates(study, sweep)}
    bars = importance(study, sweep)
    if bars is not None:
        figures["importance"] = bars
    for name, figure in figures.items():
        png = BytesIO()
        figure.savefig(png, format="png")
        write_whole(folder / f"{name}.png", png.getvalue())  # other searches may share the folder
    return [folder / f"{name}.png" for name in figures]


def history(study: Study, sweep: Sweep) -> Figure:
    """The metric of each trial in the order they were begun, and the best up to then."""
    figure, (axis,) = new_figure(1, 1)
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    pruned = study.get_trials(deepcopy=False, states=[TrialState.PRUNED])
    numbers, values = _numbers_and_values(complete)
    best = (np.maximum if sweep.maximize else np.minimum).accumulate(values)
    axis.plot(numbers, values, **{**STYLES[0], "linestyle": "none"}, label="trial")
    if pruned:
        early = [trial for trial in pruned if trial.value is not None and math.isfinite(trial.value)]
        axis.plot(*_numbers_and_values(early), color="grey", linestyle="none", marker="x", label="stopped early")
    axis.step(numbers, best, where="post", **{**STYLES[1], "marker": ""}, label="best so far")
    axis.set(xlabel="trial", ylabel=f"{sweep.metric} (last value)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if _spans_decades(values):
        axis.set_yscale("log")
    axis.legend()
    return figure


def parallel_coordinates(study: Study, sweep: Sweep) -> Figure:
    """One line per complete trial through its parameters and its metric; the better, the darker."""
    trials = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    names = short_names(list(sweep.space))
    figure, (axis,) = new_figure(1, 1)
    figure.set_size_inches(2.0 + 1.6 * (len(names) + 1), 4.0)
    columns = [_positions(trials, key) for key in names]
    values = _numbers_and_values(trials)[1]
    columns.append(_scaled(np.array(values), log=_spans_decades(values)))
    heights = np.stack([positions for positions, _ in columns], axis=1)
    rank = np.argsort(np.argsort(-np.array(values) if sweep.maximize else values))
    worse = rank / max(1, len(trials) - 1)
    for i in np.argsort(-worse):  # the best lie on top
        axis.plot(heights[i], color=str(0.85 * worse[i]), linewidth=0.8 + 1.7 * (1 - worse[i]))
    for x, (_, ticks) in enumerate(columns):
        axis.axvline(x, color="black", linewidth=0.6)
        for height, label in ticks.items():
            axis.annotate(
                label, (x, height), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.9, "pad": 0.5},
            )  # fmt: skip
    axis.set(xlim=(-0.1, len(columns) - 0.6), yticks=[])
    axis.set_xticks(range(len(columns)), [*names.values(), sweep.metric])
    axis.spines[["left", "right", "top", "bottom"]].set_visible(False)
    axis.set_title(f"{sweep.name}: dark is {'high' if sweep.maximize else 'low'} {sweep.metric}", fontsize=10)
    return figure


def importance(study: Study, sweep: Sweep) -> Figure | None:
    """Share of the metric's variance over the search space that each parameter explains (fANOVA).

    Returns:
        The figure; None where fewer than two complete trials, or trials that are all equally good, explain nothing.
    """
    trials = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if len({trial.value for trial in trials}) < 2:
        return None
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    names = short_names(list(sweep.space))
    figure, (axis,) = new_figure(1, 1)
    ordered = sorted(shares, key=lambda key: shares[key])
    bars = axis.barh([names[key] for key in ordered], [shares[key] for key in ordered], color="0.6", edgecolor="black")
    axis.bar_label(bars, fmt="%.2f", padding=3)
    axis.set(xlabel=f"share of the variance of {sweep.metric}\n(fANOVA on {len(trials)} trials)", xlim=(0, 1.12))
    return figure


def _numbers_and_values(trials: list[FrozenTrial]) -> tuple[list[int], list[float]]:
    return [trial.number for trial in trials], [trial.value for trial in trials if trial.value is not None]


def _spans_decades(values: list[float]) -> bool:
    return min(values) > 0 and max(values) > 30 * min(values)


def _positions(trials: list[FrozenTrial], key: str) -> tuple[np.ndarray, dict[float, str]]:
    distribution = trials[0].distributions[key]
    if isinstance(distribution, CategoricalDistribution):
        choices = distribution.choices
        heights = np.linspace(0, 1, len(choices)) if len(choices) > 1 else np.array([0.5])
        labels = {float(height): format_value(choice) for height, choice in zip(heights, choices, strict=True)}
        return heights[[choices.index(trial.params[key]) for trial in trials]], labels
    values = np.array([trial.params[key] for trial in trials], dtype=float)
    return _scaled(values, log=getattr(distribution, "log", False))


def _scaled(values: np.ndarray, log: bool) -> tuple[np.ndarray, dict[float, str]]:
    """Heights in [0, 1], and what the ends and the middle stand for."""
    scaled = np.log(values) if log else values
    low, high = float(scaled.min()), float(scaled.max())
    if low == high:
        return np.full(len(values), 0.5), {0.5: format_value(float(values[0]))}
    ticks = {height: low + height * (high - low) for height in (0.0, 0.5, 1.0)}
    labels = {height: format_value(float(np.exp(at) if log else at)) for height, at in ticks.items()}
    return (scaled - low) / (high - low), labels

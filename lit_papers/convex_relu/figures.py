"""Figures of the callback, and of the claims: these are drawn of outcomes, which have ``values`` and an ``arm``."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_papers.plotting import STYLES, log_scale, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SMALLEST = 1e-12  # where a logarithmic axis ends


def plot_gap(history: Sequence[Mapping[str, Any]]) -> "Figure":
    """Distance from the optimum on a log scale, and the largest correlation over beta, against the epoch."""
    figure, (distance, ratio) = new_figure(1, 2)
    epochs = [entry["epoch"] for entry in history]
    shown = {"gap": "objective - optimum", "certified_gap": "objective - certified bound"}
    shown["bank_gain"] = "objective - optimum on own patterns"
    for style, (key, label) in zip(STYLES, shown.items(), strict=False):
        if key in history[-1]:
            heights = [entry.get(key, math.nan) for entry in history]
            distance.plot(epochs, heights, markersize=3, label=label, **style)
    log_scale(distance)
    distance.set(xlabel="epoch", ylabel="distance (units of the objective)")
    distance.legend()
    ratio.plot(epochs, [entry.get("sup_ratio", math.nan) for entry in history], markersize=3, **STYLES[0])
    ratio.axhline(1.0, color="grey", linestyle=":", linewidth=1)
    ratio.set(xlabel="epoch", ylabel=r"$\max_u |\nu^T (X u)_+|\; /\; \beta$")
    log_scale(ratio)
    for axes in (distance, ratio):
        axes.grid(alpha=0.3)
    return figure


def paths(outcomes: Sequence[Any]) -> "Figure":
    """Distance from the optimum along the path from four random networks, of the first seed."""
    figure, (axes,) = new_figure(1, 1)
    curves = np.reshape(outcomes[0].values["heights"], (4, -1))
    times = np.linspace(0, 1, curves.shape[1])
    for style, curve in zip(STYLES, curves, strict=False):
        axes.plot(times, curve.clip(_SMALLEST), **{**style, "marker": None})
    axes.set(
        xlabel="time along the path", ylabel="(objective - optimum) / loss at zero", yscale="log", ylim=(1e-6, None)
    )
    axes.grid(alpha=0.3)
    return figure


def optimal_set(outcomes: Sequence[Any]) -> "Figure":
    """All optimal networks on the corners of a square: masses of vertices, and of random points between them."""
    figure, (axes,) = new_figure(1, 1)
    found = outcomes[0].values
    count = int(found["neurons"])
    masses, vertices = (np.reshape(found[name], (-1, count)) for name in ("masses", "vertices"))
    positions = np.arange(1, count + 1)
    axes.plot(positions, masses.T, color="0.75", linewidth=0.8)
    for index, (style, vertex) in enumerate(zip(STYLES, vertices, strict=False)):
        axes.plot(positions, vertex, label=f"vertex {index + 1}", **style)
    axes.set_xticks(positions)
    axes.set(xlabel="optimal neuron", ylabel=r"mass $|u||\alpha|$ (no unit)", ylim=(None, 1.2 * vertices.max()))
    axes.legend(loc="upper center", ncols=2)
    axes.grid(alpha=0.3)
    return figure


def optimality_test(outcomes: Sequence[Any]) -> "Figure":
    """Left, the correlation of every unit neuron with the optimal residual; right, what the test costs."""
    figure, (circle, cost) = new_figure(1, 2)
    found = outcomes[0].values
    circle.plot(np.linspace(-180, 180, len(found["around"])), found["around"], color="black")
    circle.axhline(1.0, color="tab:red", linestyle="--", linewidth=1, label="bound")
    circle.plot(found["degrees"], found["at_neurons"], "o", color="tab:blue", label="optimal neurons")
    circle.set(
        xlabel="direction of the neuron (degrees)", ylabel=r"$|\nu^T (X u)_+|\; /\; \beta$", xlim=(-180, 180),
        ylim=(0, 1.3),
    )  # fmt: skip
    circle.legend(fontsize=8, loc="upper center", ncols=2)
    for style, outcome in zip(STYLES, outcomes, strict=False):
        cost.plot(outcome.values["samples"], outcome.values["test_seconds"], label=f"seed {outcome.seed}", **style)
    cost.set(xlabel="samples, in 3 dimensions", ylabel="CPU time of the test [s]", xscale="log", yscale="log")
    cost.set_xticks(found["samples"], [f"{n:.0f}" for n in found["samples"]])
    cost.set_xticks([], minor=True)
    cost.legend(fontsize=8)
    for axes in (circle, cost):
        axes.grid(alpha=0.3)
    return figure


def valleys(outcomes: Sequence[Any]) -> "Figure":
    """Median distance from the optimum after training, against the width: a line an optimizer, seeds as points."""
    figure, (axes,) = new_figure(1, 1)
    names = {
        "half": "half of the\nnarrowest",
        "narrowest": "narrowest\noptimum",
        "twice": "twice that",
        "wide": "n + 1",
    }
    positions = range(len(names))
    for style, arm in zip(STYLES, dict.fromkeys(outcome.arm for outcome in outcomes), strict=False):
        rows = [[o.values[f"{name}_gap"] for name in names] for o in outcomes if o.arm == arm]
        gaps = np.clip(rows, _SMALLEST, None)  # (seeds, widths)
        axes.plot(positions, gaps.T, **{**style, "linestyle": "", "alpha": 0.5})
        axes.plot(positions, np.exp(np.log(gaps).mean(0)), label=arm, **{**style, "marker": None})
    axes.set_xticks(positions, list(names.values()))
    axes.set(xlabel="width", ylabel="median distance / loss at zero", yscale="log")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure

"""Errors over epochs, machines, components or the sync interval, with the exponents of the theorems."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lit_papers.local_sgd.exponents import Panel, panel_of
from lit_papers.local_sgd.theory import fit_loglog_slope
from lit_papers.plotting import STYLES, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_AXIS_LABELS: dict[str, str] = {
    "epochs": "epochs K",
    "machines": "machines M",
    "components": "components on a machine N",
    "sync_every": "sync interval B",
}


def exponents_figure(outcomes: Sequence[Any]) -> Figure:
    """What `claims.exponents` measured with several seeds.

    Args:
        outcomes: of a claim; each has ``point["panel"]`` and the values of `claims.exponents`.

    Raises:
        ImportError: matplotlib is missing.
    """
    panel = panel_of(outcomes[0].point["panel"])
    errors = {
        curve.key: [
            statistics.fmean(values)
            for values in zip(*(outcome.values[f"{curve.key}_errors"] for outcome in outcomes), strict=True)
        ]
        for curve in panel.curves
    }
    return panel_figure(panel, errors)


def panel_figure(panel: Panel, errors: Mapping[str, Sequence[float]]) -> Figure:
    """Errors and fitted lines, each beside a thin grey line of the exponent that the theory gives.

    Args:
        panel: what was measured.
        errors: by the key of a curve, at each value of the panel.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure, (axis,) = new_figure(1, 1)
    figure.set_size_inches(6.4, 4.4)  # the legend is wide
    for curve in panel.curves:
        style, found = STYLES[curve.style], errors[curve.key]
        x = [value - curve.offset for value in panel.values]
        slope = fit_loglog_slope(x, found)
        fitted = _power_law(x, found, slope)
        label = f"{curve.label}: {_rounded(slope)} ({curve.exponent})"
        axis.plot(x, [fitted(value) for value in x], color=style["color"], linestyle=style["linestyle"])
        axis.plot(x, found, color=style["color"], linestyle="", marker=style["marker"], markersize=4.5)
        axis.plot([], [], label=label, **{**style, "markersize": 4.5})
        middle = len(x) // 2
        theory = [found[middle] * (value / x[middle]) ** curve.exponent for value in x]
        axis.plot(x, theory, color="0.6", linewidth=0.8, zorder=0)
    axis.plot([], [], color="0.6", linewidth=0.8, label="exponent of the theory, in brackets")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(panel.values, [str(value) for value in panel.values])
    axis.set_xlabel(_AXIS_LABELS[panel.variable])
    axis.set_ylabel("error F(x) - F*")
    fixed = {"machines": "M", "components": "N", "epochs": "K", "sync_every": "B"}
    axis.set_title(", ".join(f"{fixed[key]} = {panel.settings[key]}" for key in panel.settings), fontsize=9)
    axis.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)
    return figure


def _rounded(slope: float) -> str:
    return f"{round(slope, 2) + 0.0:.2f}"  # adding 0 takes the sign off -0.0


def _power_law(x: Sequence[float], y: Sequence[float], slope: float) -> Callable[[float], float]:
    """The fitted line in log-log space, as a function."""
    level = sum(math.log(b) - slope * math.log(a) for a, b in zip(x, y, strict=True)) / len(x)
    return lambda value: math.exp(level + slope * math.log(value))

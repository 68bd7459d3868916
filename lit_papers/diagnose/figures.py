"""What a page shows of one moment, and of several over steps."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lit_papers.lens import Lens
from lit_papers.neural_collapse import figures as collapse_figures
from lit_papers.plotting import STYLES, log_scale, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

History = Sequence[Mapping[str, Any]]


def collapse_over_depth(lens: Lens, histories: Mapping[str, History]) -> "Figure | None":
    """Collapse block by block, each data set a line; of one data set, moments from light to dark."""
    if not any(key.endswith("/nc1") for history in histories.values() for key in history[-1]):
        return None
    named: dict[str | None, History] = dict(histories.items())
    return collapse_figures.depth(named)


def signal_to_noise(history: History) -> "Figure | None":
    """Signal-to-noise ratios of the last moment, largest first."""
    ratios = [value for value in history[-1]["snr"] if value == value]
    if not ratios:
        return None
    figure, (axis,) = new_figure(1, 1)
    axis.plot(range(1, len(ratios) + 1), ratios, markersize=4, **STYLES[0])
    axis.set(xlabel="direction between classes", ylabel="signal-to-noise ratio $\\omega_j$")
    log_scale(axis)
    axis.grid(alpha=0.3, which="both")
    return figure


def strides(lens: Lens, histories: Mapping[str, History]) -> "Figure":
    """Strides of the last moment, by layer: those that are learned, or those that could be."""
    last = next(iter(histories.values()))[-1]
    found = {key.replace("/stride_", ", ").removesuffix("/stride"): last[key] for key in last if "/stride" in key}
    figure, (axis,) = new_figure(1, 1)
    figure.set_figheight(max(2.0, 0.8 + 0.2 * len(found)))
    axis.barh(list(found), list(found.values()), color="0.5")
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=7)
    axis.set(xlabel="stride")
    return figure


def over_steps(
    histories: Mapping[str, History], rows: Sequence[tuple[str, str, str | None]], columns: int = 3
) -> "Figure | None":
    """A small panel for each number against the step, with error bars; several data sets share the panels.

    Args:
        histories: of each data set, entries with ``step``.
        rows: key, label and key of the standard error of each number.
        columns: of panels.

    Returns:
        None where no number was found twice.
    """
    drawn = [row for row in rows if any(_known(history, row[0]) > 1 for history in histories.values())]
    if not drawn:
        return None
    columns = min(columns, len(drawn))
    figure, axes = new_figure(-(-len(drawn) // columns), columns)
    for axis, (key, label, error) in zip(axes, drawn, strict=False):
        for (data, history), style in zip(histories.items(), STYLES, strict=False):
            values = [entry.get(key, math.nan) for entry in history]
            bars = [_finite(entry.get(error, 0.0)) for entry in history] if error else None
            axis.errorbar([e["step"] for e in history], values, bars, markersize=4, capsize=2, label=data, **style)
        axis.set(xlabel="step", ylabel=label if len(label) < 40 else f"{label[:38]} ...")
        axis.yaxis.label.set_fontsize(8)
        axis.grid(alpha=0.3)
        if len(histories) > 1:
            axis.legend(fontsize="small")
    for axis in axes[len(drawn) :]:
        axis.set_visible(False)
    return figure


def _known(history: History, key: str) -> int:
    return sum(1 for entry in history if _finite(entry.get(key, math.nan)) == entry.get(key, math.nan))


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0

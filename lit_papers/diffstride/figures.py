"""Strides, map sizes and cost over training, and accuracy against cost of several networks."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lit_papers.plotting import STYLES, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = {"d": "depth", "h": "height", "w": "width"}
_LINES = {"d": ":", "h": "-", "w": "--"}


def complexity_figure(history: Sequence[Mapping[str, Any]]) -> "Figure":
    """Strides, map sizes and cost against optimizer steps.

    Args:
        history: at least one entry with ``step`` and the keys of `lit_papers.diffstride.lens.stride_numbers`.

    Returns:
        A figure of three panels; height is drawn solid, width dashed, depth dotted, each layer in its own shade.
    """
    figure, (left, middle, right) = new_figure(1, 3)
    from matplotlib.ticker import MaxNLocator  # after `new_figure`, which says what to install

    steps = [entry["step"] for entry in history]
    keys = [key for entry in history[:1] for key in entry if "/stride_" in key]
    names = list(dict.fromkeys(key.rpartition("/")[0] for key in keys))
    for key in keys:
        name, _, axis = key.rpartition("/")
        style = _style(names.index(name), len(names), axis[-1])
        strides = [entry.get(key, float("nan")) for entry in history]
        sizes = [entry.get(key.replace("/stride_", "/map_"), float("nan")) for entry in history]
        left.plot(steps, strides, label=f"{name}, {AXES[axis[-1]]}", **style)
        middle.step(steps, sizes, where="post", **style)
    left.set(xlabel="optimizer step", ylabel="stride")
    left.legend(fontsize="x-small")
    middle.set(xlabel="optimizer step", ylabel="map size behind the layer (points)")
    middle.yaxis.set_major_locator(MaxNLocator(integer=True))
    right.plot(steps, [entry["gmacs"] for entry in history], color="black")
    right.set(xlabel="optimizer step", ylabel=r"cost of a sample ($10^9$ multiply-adds)")
    right.set_ylim(bottom=0)
    for panel in (left, middle, right):
        panel.grid(alpha=0.3)
    return figure


def accuracy_against_cost(outcomes: Sequence[Any]) -> "Figure":
    """A point for each way of training, its error bar the standard deviation over seeds.

    Args:
        outcomes: of runs, each with ``arm``, whose first word tells the marker, and ``values`` with ``accuracy`` and
            ``gmacs`` (at the end of training).
    """
    figure, (axis,) = new_figure(1, 1)
    figure.set_size_inches(6.4, 4.4)
    kinds = list(dict.fromkeys(outcome.arm.split()[0] for outcome in outcomes))
    costs = [outcome.values["gmacs"] for outcome in outcomes]
    for arm in dict.fromkeys(outcome.arm for outcome in outcomes):
        runs = [outcome.values for outcome in outcomes if outcome.arm == arm]
        accuracies = [100 * values["accuracy"] for values in runs]
        spread = statistics.stdev(accuracies) if len(runs) > 1 else math.nan
        cost, mean = 1e3 * statistics.fmean(values["gmacs"] for values in runs), statistics.fmean(accuracies)
        style = STYLES[kinds.index(arm.split()[0]) % len(STYLES)]
        axis.errorbar(cost, mean, spread, **{**style, "linestyle": "none"}, capsize=3)
        left = cost > 1e3 * (min(costs) + max(costs)) / 2  # the name lies towards the middle
        place = {"xytext": (-5, 4), "ha": "right"} if left else {"xytext": (5, 4)}
        axis.annotate(arm, (cost, mean), **place, textcoords="offset points", fontsize="x-small")
    axis.set(xlabel=r"cost of a sample after training ($10^6$ multiply-adds)", ylabel="accuracy (%)")
    axis.margins(x=0.25)
    axis.grid(alpha=0.3, which="both")
    return figure


def cost_figure(numbers: Mapping[str, Any], most: int = 25) -> "Figure":
    """Multiply-adds by layer in the order of running, and what each downsampling keeps of a map.

    Args:
        numbers: as `lit_papers.diffstride.network_lens.CostLens` gives them.
        most: layers to draw; of more, the dearest.

    Returns:
        A figure of one panel, or of two where there is downsampling.
    """
    costs = {key.removesuffix("/gmacs"): value for key, value in numbers.items() if key.endswith("/gmacs")}
    kept = {key.removesuffix("/kept"): value for key, value in numbers.items() if key.endswith("/kept")}
    dearest = sorted(costs, key=lambda name: -costs[name])[:most]
    shown = [name for name in costs if name in dearest]
    figure, axes = new_figure(1, 2 if kept else 1)
    figure.set_figheight(max(2.4, 0.8 + 0.16 * max(len(shown), len(kept))))
    axes[0].barh(shown, [1e3 * costs[name] for name in shown], color="0.5")
    whole = f"the {most} dearest of {len(costs)}" if len(costs) > most else "all that cost something"
    axes[0].set(xlabel="multiply-adds of a sample [millions]", title=f"layers: {whole}")
    if kept:
        axes[1].barh(list(kept), [100 * share for share in kept.values()], color="white", edgecolor="black", hatch="//")
        axes[1].set(xlabel="points of the map that stay [%]", title="downsampling")
    for axis in axes:
        axis.invert_yaxis()
        axis.tick_params(axis="y", labelsize=7)
        axis.title.set_fontsize(9)
    return figure


def _style(index: int, layers: int, axis: str) -> dict[str, Any]:
    shade = 0.7 * index / max(layers - 1, 1)  # from black to light grey
    return {"color": (shade, shade, shade), "linestyle": _LINES[axis]}

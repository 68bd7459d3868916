"""Strength of interactions over a training, and of several networks beside each other, drawn."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lit_papers.plotting import STYLES, log_scale, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

History = Sequence[Mapping[str, Any]]


def strength(history: History, n_players: int) -> "Figure":
    """J against order, S against order (log), and J as a map of orders by measured epochs.

    Args:
        history: entries of `lit_papers.interactions.lens.InteractionLens`, each with ``epoch``.
        n_players: of the game.
    """
    figure, (relative, raw, over_time) = new_figure(1, 3)
    largest = max(1, n_players - 2)
    _curves(relative, history, "relative", largest)
    relative.set(ylabel="relative strength J")
    relative.axhline(1.0, color="0.6", linewidth=0.8, zorder=0)
    relative.set_ylim(bottom=0)
    _curves(raw, history, "strength", largest)
    last = history[-1]
    raw.plot(_places(last, largest), last["noise_floor"], color="0.5", linestyle=":", label="noise floor")
    raw.legend(fontsize=8)
    raw.set(ylabel="strength S [log-odds]")
    log_scale(raw)
    _map(figure, over_time, history, n_players - 2)
    return figure


def of_arms(outcomes: Sequence[Any]) -> "Figure":
    """J and S of each order, of networks trained in several ways, and their accuracies; thin lines are single seeds.

    Args:
        outcomes: of runs, each with ``arm``, and ``values`` by name: ``J_<m>``, ``J_untrained_<m>``, ``S_<m>`` and
            ``floor_<m>`` for each order m, ``val_acc``, and perhaps ``under_attack``.
    """
    figure, (relative, raw, accuracy) = new_figure(1, 3)
    arms = _by_arm(outcomes)
    for style, (arm, runs) in zip(STYLES, arms.items(), strict=False):
        for axis, key in ((relative, "J_"), (raw, "S_")):
            for run in runs if len(runs) > 1 else []:
                axis.plot(*_curve([run], key), color=style["color"], linewidth=0.5, alpha=0.6)
            axis.plot(*_curve(runs, key), label=arm, markersize=4, **style)
        raw.plot(*_curve(runs, "floor_"), color=style["color"], linestyle=":", linewidth=1)
    relative.plot(*_curve(outcomes, "J_untrained_"), color="0.5", linewidth=3, zorder=0, label="untrained")
    relative.axhline(1.0, color="0.6", linewidth=0.8, zorder=0)
    relative.set(xlabel="order of interaction m / (n - 2)", ylabel="relative strength J")
    relative.set_ylim(bottom=0)
    relative.legend(fontsize=8)
    raw.set(xlabel="order of interaction m / (n - 2)", ylabel="strength S [log-odds]; dotted: floor")
    log_scale(raw)
    lowest = min((value for run in outcomes for value in _curve([run], "S_")[1] if value > 0), default=1.0)
    raw.set_ylim(bottom=lowest / 20)  # where all contexts are evaluated the floor is rounding, far below
    for style, (key, label) in zip(STYLES, (("val_acc", "clean"), ("under_attack", "under attack")), strict=False):
        for place, runs in enumerate(arms.values()):
            values = [run.values[key] for run in runs if key in run.values]
            if values:
                accuracy.plot([place] * len(values), values, style["marker"], color=style["color"], alpha=0.6, ms=4)
                name = label if place == 0 else None
                mean = statistics.fmean(values)
                accuracy.plot([place], [mean], style["marker"], color=style["color"], ms=9, mfc="none", label=name)
    accuracy.set_xticks(range(len(arms)), list(arms))
    accuracy.set(ylabel="accuracy", ylim=(0, 1.05), xlim=(-0.5, len(arms) - 0.5))
    accuracy.legend(fontsize=8, loc="center")
    for axis in (relative, raw, accuracy):
        axis.grid(alpha=0.3, which="both")
    return figure


def gradients(outcomes: Sequence[Any]) -> "Figure":
    """How strongly each order is pulled at, measured beside the theory.

    Args:
        outcomes: of `lit_papers.interactions.claims.gradient_of_each_order`.
    """
    figure, (axis,) = new_figure(1, 1)
    for style, (arm, runs) in zip(STYLES[1:], _by_arm(outcomes).items(), strict=False):
        curves = [run.values["measured"] for run in runs]
        mean = [statistics.fmean(values) for values in zip(*curves, strict=True)]
        axis.plot(runs[0].values["share"], mean, label=f"measured, {arm}" if arm else "measured", markersize=4, **style)
    first = outcomes[0].values
    axis.plot(first["share"], first["theory"], label="theory", markersize=4, **STYLES[0])
    axis.set(xlabel="order of interaction m / (n - 2)", ylabel="gradient by that of order 0", yscale="log")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    return figure


def _by_arm(outcomes: Sequence[Any]) -> dict[str, list[Any]]:
    return {arm: [each for each in outcomes if each.arm == arm] for arm in dict.fromkeys(o.arm for o in outcomes)}


def _curve(runs: Sequence[Any], prefix: str) -> tuple[list[float], list[float]]:
    """Mean over runs of the values named ``<prefix><m>``, over m by the largest."""
    names = {name.removeprefix(prefix): name for name in runs[0].values if name.startswith(prefix)}
    orders = sorted(int(order) for order in names if order.isdigit())
    mean = [statistics.fmean(run.values[f"{prefix}{order}"] for run in runs) for order in orders]
    return [order / max(1, orders[-1]) for order in orders], mean


def _curves(axis: "Axes", history: History, key: str, largest: int) -> None:
    """A curve for each measured epoch: the darker the later, the control dashed, the last with band and errors."""
    low, high, error = f"{key}_low", f"{key}_high", f"{key}_error"
    key = "relative_strength" if key == "relative" else key
    last = history[-1]
    axis.fill_between(
        _places(last, largest),
        last[low],
        last[high],
        color="0.85",
        linewidth=0,
        zorder=0,
        label="95 % band of the last",
    )
    axis.errorbar(_places(last, largest), last[key], _finite(last[error]), fmt="none", ecolor="0.4", capsize=2)
    trained = [entry for entry in history if entry["epoch"] > 0]
    for entry in history:
        if entry["epoch"] == 0:
            axis.plot(_places(entry, largest), entry[key], label="untrained", markersize=4, **STYLES[1])
    for entry, color in zip(trained, _shades(len(trained)), strict=True):
        first_or_last = entry is trained[0] or entry is trained[-1]
        label = f"after epoch {entry['epoch']}" if first_or_last else None
        marker = "o" if entry is trained[-1] else None
        axis.plot(_places(entry, largest), entry[key], color=color, label=label, marker=marker, markersize=4)
    axis.set(xlabel="order of interaction m / (n - 2)")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)


def _map(figure: "Figure", axis: "Axes", history: History, largest: int) -> None:
    table = [entry["relative_strength"] for entry in history]
    image = axis.imshow(list(zip(*table, strict=True)), origin="lower", aspect="auto", cmap="Greys", vmin=0.0)
    every = max(1, len(table) // 8)  # more labels would run into each other
    axis.set_xticks(range(0, len(table), every), [str(entry["epoch"]) for entry in history[::every]])
    orders = history[-1]["orders"]
    axis.set_yticks(range(len(orders)), [f"{m:.0f}" for m in orders])
    axis.set(xlabel="epoch (0 is untrained)", ylabel=f"order of interaction m (n - 2 = {largest})")
    figure.colorbar(image, ax=axis, label="J (blank: not resolved)")


def _finite(errors: Sequence[float]) -> list[float]:
    return [0.0 if error != error else error for error in errors]


def _places(entry: Mapping[str, Any], largest: int) -> list[float]:
    return [m / largest for m in entry["orders"]]


def _shades(count: int) -> list[Any]:
    """Colours of the epochs, light to dark, so that grey tells their order too."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.85 * (1 - k / (count - 1)) if count > 1 else 0.0) for k in range(count)]

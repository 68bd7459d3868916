"""Strength of interactions over a training, drawn."""

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

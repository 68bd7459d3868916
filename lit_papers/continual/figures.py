"""What layers see, as pictures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lit_papers.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def accuracy_matrix_figure(matrix: Tensor, average: float, forgetting: float, metric: str | None = None) -> Figure:
    """What was known of each task after each, as a heat map; dark is good.

    Args:
        matrix: ``(T, T)``, row t after task t; NaN, where nothing is known, stays empty.
        average: of the tasks seen, for the title.
        forgetting: likewise.
        metric: name of what should fall; None if the matrix has accuracies in [0, 1], which are shown in %.

    Returns:
        A figure of one axis.

    Raises:
        ImportError: matplotlib is missing.
    """
    shown = 100 * matrix if metric is None else matrix
    known = shown[~shown.isnan()]
    if metric is None:
        # or a good stream would be all black
        low, high, colours = min(90.0, 10 * (known.min().item() // 10)), 100.0, "Greys"
        title = f"A = {100 * average:.1f} %, F = {100 * forgetting:.1f} points"
    else:
        low, high, colours = known.min().item(), known.max().item(), "Greys_r"
        title = f"mean = {average:.3g}, F = {forgetting:.3g}"
    tasks = len(shown)
    figure, (axis,) = new_figure(1, 1)
    side = max(3.6, 0.42 * tasks)
    figure.set_size_inches(side + 1, side)
    image = axis.imshow(shown.numpy(), cmap=colours, vmin=low, vmax=high)
    for row, column in (~shown.isnan()).nonzero().tolist():
        value = shown[row, column].item()
        share = (value - low) / ((high - low) or 1)
        dark = share > 0.55 if metric is None else share < 0.45
        text = f"{value:.0f}" if metric is None else f"{value:.2g}"
        axis.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axis.set_xticks(range(tasks))
    axis.set_yticks(range(tasks))
    axis.set_xlabel("evaluated on task")
    axis.set_ylabel("after task")
    axis.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axis, label="accuracy (%)" if metric is None else metric, shrink=0.8)
    return figure


def accuracy_lines_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """The accuracy on each task, in %, over epochs.

    Args:
        history: entries with ``epoch`` and ``accuracy_task_i`` in [0, 1], NaN where a task was not seen.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure, (axis,) = new_figure(1, 1)
    keys = [key for key in history[-1] if key.startswith("accuracy_task_")]
    for number, key in enumerate(keys):
        values = [100 * entry.get(key, float("nan")) for entry in history]
        grey = str(0.65 * number / max(1, len(keys) - 1))
        epochs = [entry["epoch"] for entry in history]
        axis.plot(epochs, values, marker="osD^v"[number % 5], markersize=4, color=grey, label=f"task {number}")
    axis.set_xlabel("epoch")
    axis.set_ylabel("accuracy over all classes seen (%)")
    axis.legend(fontsize=8)
    return figure


def comparison_figure(outcomes: Sequence[Any]) -> Figure:
    """Average accuracy and forgetting of each method: a circle a seed, a line at their mean.

    Args:
        outcomes: of a claim; the arm of each is its method, its values have ``accuracy`` and ``forgetting`` in [0, 1].

    Raises:
        ImportError: matplotlib is missing.
    """
    figure, axes = new_figure(1, 2)
    methods = list(dict.fromkeys(outcome.arm for outcome in outcomes))
    figure.set_size_inches(8, 1.2 + 0.35 * len(methods))
    for axis, key, label in zip(
        axes, ("accuracy", "forgetting"), ("average accuracy (%)", "forgetting (points)"), strict=True
    ):
        for place, method in enumerate(methods):
            values = [100 * outcome.values[key] for outcome in outcomes if outcome.arm == method]
            axis.plot(values, [place] * len(values), "o", color="black", fillstyle="none")
            axis.plot(statistics.mean(values), place, "|", color="black", markersize=18)
        axis.set_yticks(range(len(methods)), methods if key == "accuracy" else [""] * len(methods))
        axis.set_ylim(len(methods) - 0.5, -0.5)
        axis.set_xlabel(label)
        axis.grid(axis="x", linewidth=0.4)
    axes[0].set_ylabel("method")
    return figure


def feature_map_figure(features: Mapping[str, Tensor], sample: int = 0, channels: int = 6) -> Figure:
    """The strongest maps of each layer for one image, as in the paper's visualisation of what is forgotten.

    Args:
        features: maps by layer, ``(N, C, H, W)``, as from `lit_papers.continual.similarity.layer_features`.
        sample: which image.
        channels: maps of each layer, those with the largest mean magnitude first.

    Returns:
        A figure with a row for each layer.

    Raises:
        ValueError: a layer's output is no map, or there is no such image.
        ImportError: matplotlib is missing.
    """
    for name, maps in features.items():
        if maps.dim() != 4:
            raise ValueError(f"the output of {name} is {tuple(maps.shape)}, not maps (N, C, H, W)")
        if not 0 <= sample < len(maps):
            raise ValueError(f"`sample` must be in 0..{len(maps) - 1}, got {sample}")
    figure, axes = new_figure(len(features), channels)
    figure.set_size_inches(1.1 * channels + 0.6, 1.25 * len(features))
    for row, (name, maps) in enumerate(features.items()):
        mine = maps[sample].detach().float().cpu()  # (C, H, W)
        strongest = mine.abs().mean(dim=(1, 2)).argsort(descending=True)[:channels].tolist()
        for column in range(channels):
            axis = axes[row * channels + column]
            axis.set_xticks([])
            axis.set_yticks([])
            if column == 0:
                axis.set_ylabel(name, fontsize=8)
            if column >= len(strongest):
                axis.set_visible(False)
                continue
            axis.imshow(mine[strongest[column]].numpy(), cmap="Greys_r")
            axis.set_title(f"channel {strongest[column]}", fontsize=7)
    return figure

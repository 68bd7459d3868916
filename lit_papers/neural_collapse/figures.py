"""Histories of neural collapse and of the central path, drawn."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lit_papers.plotting import STYLES, log_scale, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = ("loss", "ls", "nc1", "nc23", "perp")
History = Sequence[Mapping[str, Any]]
Histories = Mapping[str | None, History]


def collapse(histories: Histories) -> "Figure":
    """Six panels against epoch: error, NC1 (log), norms, angles, self-duality and NC4.

    Args:
        histories: for each data set (None where there is one without a name) entries of
            `lit_papers.neural_collapse.lens.CollapseLens`, each with ``epoch``. Several share the panels.
    """
    panels: list[tuple[str, dict[str, str]]] = [
        ("error [share of samples]", {"train_error": ""}),
        ("NC1: tr($\\Sigma_W \\Sigma_B^+$)", {"nc1": ""}),
        (
            "NC2: std/mean of norms",
            {"nc2_equinorm_means": "class means", "nc2_equinorm_weights": "classifier rows"},
        ),
        (
            "NC2: mean |cos + 1/(C-1)|",
            {"nc2_max_angle_means": "class means", "nc2_max_angle_weights": "classifier rows"},
        ),
        ("NC3: $\\|W^T/|W| - M/|M|\\|^2$", {"nc3_self_duality": ""}),
        ("NC4: share not nearest mean", {"nc4_ncc_mismatch": ""}),
    ]
    figure, axes = new_figure(2, 3)
    for axis, (title, lines) in zip(axes, panels, strict=True):
        styles = itertools.cycle(STYLES)
        drawn = False
        for place, (data, history) in enumerate(histories.items()):
            for key, label in lines.items():
                if place and key.endswith("weights"):
                    continue  # the classifier is the same, whatever data it is measured beside
                values = [entry.get(key, math.nan) for entry in history]
                # unnamed where there is nothing to tell apart
                name = ", ".join(filter(None, (data if not key.endswith("weights") else None, label)))
                axis.plot([e["epoch"] for e in history], values, markersize=4, label=name or None, **next(styles))
                drawn = drawn or any(value == value for value in values)
                if key.startswith("nc4"):
                    _band(axis, history)
        if not drawn:
            axis.text(0.5, 0.5, "not measured", ha="center", transform=axis.transAxes)
        axis.set(xlabel="epoch", ylabel=title)
        log_scale(axis) if "nc1" in lines else axis.set_ylim(bottom=0)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize="small")
        axis.grid(alpha=0.3)
    return figure


def _band(axis: Any, history: History) -> None:
    """Two standard errors around a share that was estimated from a sample."""
    errors = [entry.get("nc4_standard_error", 0.0) for entry in history]
    if any(error > 0 for error in errors):
        shares = [entry["nc4_ncc_mismatch"] for entry in history]
        low = [max(0.0, share - 2 * error) for share, error in zip(shares, errors, strict=True)]
        high = [share + 2 * error for share, error in zip(shares, errors, strict=True)]
        axis.fill_between([e["epoch"] for e in history], low, high, color="0.5", alpha=0.3, linewidth=0)


def depth(histories: Histories) -> "Figure":
    """Five panels against depth: NC1 (log), norms, angles, effective rank and nearest-mean decisions.

    Of one data set at most five moments from the first to the last, light to dark; of several the last moment of each.

    Args:
        histories: as for `collapse`, measured with ``layers``.

    Raises:
        RuntimeError: no layers were measured.
    """
    panels = {
        "nc1": "NC1: tr($\\Sigma_W \\Sigma_B^+$)",
        "nc2_equinorm_means": "NC2: std/mean of norms, means",
        "nc2_max_angle_means": "NC2: mean |cos + 1/(C-1)|, means",
        "effective_rank": "effective rank [directions]",
        "nc4_ncc_mismatch": "NC4: share not nearest mean",
    }
    first = next(iter(histories.values()))
    names = [key.removesuffix("/nc1") for key in first[-1] if key.endswith("/nc1")]
    if not names:
        raise RuntimeError("there is nothing to draw over depth: measure with `layers`")
    lines: list[tuple[str, Mapping[str, Any], dict[str, Any]]] = []
    if len(histories) > 1:
        lines = [(str(data), h[-1], style) for (data, h), style in zip(histories.items(), itertools.cycle(STYLES))]
    else:
        chosen = sorted({round(place * (len(first) - 1) / 4) for place in range(5)})
        for number, place in enumerate(chosen):
            grey = f"{0.75 * (1 - (number + 1) / len(chosen)):.2f}"
            style = {**STYLES[number % len(STYLES)], "color": grey}
            lines.append((f"epoch {first[place]['epoch']}", first[place], style))
    figure, axes = new_figure(2, 3)
    places = range(len(names) + 1)
    common = _common_start(names)
    labels = [name.removeprefix(common) for name in names] + ["features"]
    for axis, (key, title) in zip(axes, panels.items(), strict=False):
        for label, entry, style in lines:
            values = [entry.get(f"{name}/{key}", math.nan) for name in names] + [entry.get(key, math.nan)]
            axis.plot(places, values, markersize=4, label=label, **style)
        axis.set(ylabel=title, xticks=places)
        axis.set_xticklabels(labels, rotation=90, fontsize=7)
        log_scale(axis) if key == "nc1" else axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[-1].axis("off")
    axes[-1].legend(*axes[0].get_legend_handles_labels(), loc="center", title="depth: input to classifier")
    return figure


def _common_start(names: Sequence[str]) -> str:
    """The dotted path that all names begin with, with its last dot."""
    parts = [name.split(".")[:-1] for name in names]
    shared = itertools.takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))
    return "".join(f"{level[0]}." for level in shared)


def central_path(history: History) -> "Figure":
    """Loss and its parts (log), their ratio, and the signal-to-noise ratios with a slope-1/4 guide (log-log).

    Args:
        history: entries of `lit_papers.neural_collapse.lens.CentralPathLens`, each with ``epoch``.
    """
    by_mse = "loss" in history[-1]
    figure, axes = new_figure(1, 3 if by_mse else 1)
    epochs = [entry["epoch"] for entry in history]
    if by_mse:
        labels = ("loss", "least squares", "of which NC1", "of which NC2/3", "deviation $L_\\perp$")
        for key, label, style in zip(PARTS, labels, STYLES, strict=True):
            axes[0].plot(epochs, [e.get(key, math.nan) for e in history], markersize=4, label=label, **style)
        axes[0].set(xlabel="epoch", ylabel="MSE loss [per sample]")
        log_scale(axes[0])
        axes[0].legend(fontsize="small")
        axes[1].plot(epochs, [e.get("ratio", math.nan) for e in history], markersize=4, **STYLES[0])
        axes[1].set(xlabel="epoch", ylabel="$L_\\perp$ / least squares")
        log_scale(axes[1])
    axis = axes[-1]
    snr = torch.tensor([entry["snr"] for entry in history])  # (T, r)
    for values in snr.T:
        axis.plot(epochs, values, color="0.4", linewidth=0.9, marker=".", markersize=4)
    axis.set(xlabel="epoch", ylabel="SNR singular values $\\omega_j$", xscale="log")
    log_scale(axis)
    if torch.isfinite(snr[-1]).all():
        guide = [float(snr[-1].median()) * (epoch / epochs[-1]) ** 0.25 for epoch in epochs]
        axis.plot(epochs, guide, color="tab:red", linestyle="--", label="slope 1/4")
        axis.legend()
    elif not torch.isfinite(snr).any():
        axis.text(0.5, 0.5, "$\\Sigma_W$ is singular", ha="center", transform=axis.transAxes)
    for axis in axes:
        axis.grid(alpha=0.3, which="both")
    return figure

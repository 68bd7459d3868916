"""Histories of neural collapse and of the central path, drawn."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lit_papers.plotting import STYLES, log_scale, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = ("loss", "ls", "nc1", "nc23", "perp")
History = Sequence[Mapping[str, Any]]


def collapse(history: History) -> "Figure":
    """Six panels against epoch: error, NC1 (log), norms, angles, self-duality and NC4.

    Args:
        history: entries of `lit_papers.neural_collapse.lens.CollapseLens`, each with ``epoch``.
    """
    panels: list[tuple[str, dict[str, str]]] = [
        ("train error [share of samples]", {"train_error": ""}),
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
    epochs = [entry["epoch"] for entry in history]
    for axis, (title, lines) in zip(axes, panels, strict=True):
        for style, (key, label) in zip(STYLES, lines.items(), strict=False):
            values = [entry.get(key, math.nan) for entry in history]
            axis.plot(epochs, values, markersize=4, label=label or None, **style)
            if all(value != value for value in values):
                axis.text(0.5, 0.5, "not measured", ha="center", transform=axis.transAxes)
        axis.set(xlabel="epoch", ylabel=title)
        log_scale(axis) if "nc1" in lines else axis.set_ylim(bottom=0)
        if len(lines) > 1:
            axis.legend()
        axis.grid(alpha=0.3)
    return figure


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

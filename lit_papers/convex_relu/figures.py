"""``python -m lit_papers.convex_relu.figures``: the landscape in four figures and a table, in about a minute."""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from lit_papers.convex_relu.arrangements import enumerate_arrangements
from lit_papers.convex_relu.landscape import path_to_optimum
from lit_papers.convex_relu.networks import objective, optimal_set
from lit_papers.convex_relu.optimal_set import OptimalSet
from lit_papers.convex_relu.programs import solve_relu_program
from lit_papers.plotting import STYLES, log_scale, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTHS = (2, 3, 4, 6, 10, 20, 50)


class Problem(NamedTuple):
    """Data of a training problem with the squared loss, and all its optima."""

    x: Tensor
    y: Tensor
    optimal: OptimalSet
    optimum: float


def solve(x: Tensor, y: Tensor, beta: float) -> Problem:
    """Enumerate, solve and describe."""
    solution = solve_relu_program(x, y, beta, enumerate_arrangements(x))
    return Problem(x, y, optimal_set(x, y, solution), solution.objective)


def gaussian(n: int = 10, d: int = 3, beta: float = 0.5, seed: int = 101) -> Problem:
    """The problem of the configuration ``convex_relu/toy``."""
    draw = np.random.default_rng(seed)
    x = torch.from_numpy(draw.standard_normal((n, d)))
    return solve(x, torch.from_numpy(draw.standard_normal(n)), beta)


def square(beta: float = 0.3) -> Problem:
    """A constant on the corners of a square: two neurons back to back fit it, in two ways, and so do their mixtures."""
    x = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return solve(x, torch.ones(4, dtype=torch.float64), beta)


def plot_path(problem: Problem, *, starts: int = 4, seed: int = 0) -> "Figure":
    """Distance from the optimum along the path from random networks of width n + 1."""
    figure, (axes,) = new_figure(1, 1)
    n, d = problem.x.shape
    generator = torch.Generator().manual_seed(seed)
    times = np.linspace(0, 1, 400)
    for style in STYLES[:starts]:
        weight = torch.randn(n + 1, d, dtype=torch.float64, generator=generator)
        alpha = torch.randn(n + 1, dtype=torch.float64, generator=generator)
        path = path_to_optimum(problem.x, problem.y, weight, alpha, problem.optimal)
        gaps = (path.losses(len(times)) - problem.optimum).clamp_min(1e-12)
        axes.plot(times, gaps, **{**style, "marker": None})
    axes.set(xlabel="time along the path", ylabel="objective - optimum", yscale="log", ylim=(1e-6, None))
    axes.grid(alpha=0.3)
    return figure


def plot_polytope(problem: Problem, *, seed: int = 0) -> "Figure":
    """All optimal networks: masses of vertices, and of random points between them, per optimal neuron."""
    figure, (axes,) = new_figure(1, 1)
    optimal = problem.optimal
    samples = optimal.sample_masses(30, generator=torch.Generator().manual_seed(seed))
    positions = np.arange(len(optimal.signs))
    axes.plot(positions, samples.T, color="0.75", linewidth=0.8)
    for index, (style, vertex) in enumerate(zip(STYLES, optimal.vertices(), strict=False)):
        axes.plot(positions, vertex, label=f"vertex {index + 1}", **style)
    names = [
        ("+" if sign > 0 else "-") + str(tuple(round(value, 2) + 0.0 for value in direction.tolist()))
        for direction, sign in zip(optimal.directions, optimal.signs, strict=True)
    ]
    axes.set_xticks(positions, names, fontsize=8)
    axes.set(xlabel="optimal neuron: output sign and direction", ylabel=r"mass $|u||\alpha|$ (no unit)")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def plot_certificate(problem: Problem) -> "Figure":
    """Correlation of every unit neuron with the residual of the optimum, for data in the plane.

    Raises:
        ValueError: the data are not two-dimensional.
    """
    if problem.x.shape[1] != 2:
        raise ValueError(f"the circle of unit neurons needs two features, got {problem.x.shape[1]}.")
    figure, (axes,) = new_figure(1, 1)
    angles = torch.linspace(-math.pi, math.pi, 2001, dtype=torch.float64)
    units = torch.stack([angles.cos(), angles.sin()], 1)
    optimal = problem.optimal
    heights = (optimal.output - problem.y) @ (problem.x @ units.T).clamp_min(0) / optimal.beta
    axes.plot(angles.rad2deg(), heights.abs(), color="black", label=r"$|\nu^T (X u)_+|\; /\; \beta$")
    axes.axhline(1.0, color="tab:red", linestyle="--", linewidth=1, label="bound")
    at = torch.atan2(optimal.directions[:, 1], optimal.directions[:, 0]).rad2deg()
    axes.plot(at, torch.ones_like(at), "o", color="tab:blue", label="optimal neurons")
    borders = torch.atan2(problem.x[:, 0], -problem.x[:, 1]).rad2deg()
    for border in torch.cat([borders, (borders + 360) % 360 - 180]).tolist():
        axes.axvline(border, color="0.85", linewidth=0.8, zorder=0)
    axes.set(xlabel="direction of the neuron (degrees)", ylabel=r"correlation over $\beta$", xlim=(-180, 180))
    axes.legend(fontsize=8)
    return figure


def train_widths(problem: Problem, optimizer: str, *, seeds: int = 5, steps: int = 4000) -> dict[int, Tensor]:
    """Train networks of several widths on the full batch, with a cosine schedule.

    Returns:
        For each width the final objectives less the optimum, (seeds,).
    """
    gaps = {}
    beta, d = problem.optimal.beta, problem.x.shape[1]
    for width in track(WIDTHS, description=f"training with {optimizer}"):
        generator = torch.Generator().manual_seed(width)
        weight = torch.randn(seeds, width, d, dtype=torch.float64, generator=generator) / d**0.5
        alpha = torch.randn(seeds, width, dtype=torch.float64, generator=generator) / width**0.5
        parameters = [weight.requires_grad_(), alpha.requires_grad_()]
        kind = torch.optim.Adam(parameters, lr=0.02) if optimizer == "adam" else torch.optim.SGD(parameters, lr=0.02)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(kind, steps)
        together = torch.func.vmap(lambda u, a: objective(problem.x, problem.y, u, a, beta))
        for _ in range(steps):
            kind.zero_grad()
            together(weight, alpha).sum().backward()  # type: ignore[no-untyped-call]  # the networks share nothing: one backward trains all
            kind.step()
            schedule.step()
        gaps[width] = together(weight, alpha).detach() - problem.optimum
    return gaps


def plot_widths(results: dict[str, dict[int, Tensor]], min_width: int) -> "Figure":
    """Final distance from the optimum against the width, each run a point and the medians joined."""
    figure, (axes,) = new_figure(1, 1)
    for style, (name, gaps) in zip(STYLES, results.items(), strict=False):
        for width, values in gaps.items():
            axes.plot([width] * len(values), values.clamp_min(1e-12), **{**style, "linestyle": "", "alpha": 0.4})
        medians = [float(values.median().clamp_min(1e-12)) for values in gaps.values()]
        axes.plot(list(gaps), medians, label=name, **{**style, "marker": None})
    axes.axvline(min_width, color="grey", linestyle=":", label="narrowest optimum")
    axes.set(xlabel="width (neurons)", ylabel="objective - optimum", xscale="log", yscale="log")
    axes.set_xticks(WIDTHS, [str(width) for width in WIDTHS])
    axes.set_xticks([], minor=True)
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


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


def main(arguments: list[str] | None = None) -> None:
    """Draw the figures into a folder, and print the table of widths."""
    parser = argparse.ArgumentParser(prog="python -m lit_papers.convex_relu.figures", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/convex_relu/figures"), help="folder for the figures")
    parser.add_argument("--steps", type=int, default=4000, help="gradient steps of each network (default 4000)")
    parser.add_argument("--seeds", type=int, default=5, help="networks of each width (default 5)")
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.seeds < 1:
        parser.error("--steps and --seeds must be at least 1")
    options.out.mkdir(parents=True, exist_ok=True)
    toy, corners = gaussian(), square()
    plot_path(toy).savefig(options.out / "path.png")
    plot_polytope(corners).savefig(options.out / "polytope.png")
    plot_certificate(gaussian(n=12, d=2, beta=0.3)).savefig(options.out / "certificate.png")
    results = {name: train_widths(toy, name, seeds=options.seeds, steps=options.steps) for name in ("adam", "sgd")}
    plot_widths(results, toy.optimal.min_width).savefig(options.out / "widths.png")
    print(f"optimum {toy.optimum:.10f}, narrowest optimal network {toy.optimal.min_width} neurons\n")
    print("| width | " + " | ".join(f"{name}: median gap (best - worst)" for name in results) + " |")
    print("|---|" + "---|" * len(results))
    for width in WIDTHS:
        cells = [
            f"{gaps[width].median():.1e} ({gaps[width].min():.1e} - {gaps[width].max():.1e})"
            for gaps in results.values()
        ]
        print(f"| {width} | " + " | ".join(cells) + " |")
    print(f"\nfigures in {options.out}")


if __name__ == "__main__":
    main()

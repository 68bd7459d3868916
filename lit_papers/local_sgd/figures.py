"""The exponents of the theorems against measured ones: ``python -m lit_papers.local_sgd.figures --out slopes.png``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lit_papers.local_sgd.theory import (
    Algorithm,
    HeterogeneousQuadratic,
    LowerBoundFunction,
    Sampling,
    SkewedQuadratic,
    exact_suboptimality,
    fit_loglog_slope,
    simulate,
)
from lit_papers.plotting import STYLES, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Variable = Literal["epochs", "machines", "components", "sync_every"]
_AXIS_LABELS: dict[str, str] = {
    "epochs": "epochs K",
    "machines": "machines M",
    "components": "components on a machine N",
    "sync_every": "sync interval B",
}


@dataclass(frozen=True)
class Curve:
    """One line of a panel: an algorithm, and the exponent that the theory gives it.

    Attributes:
        label: what the legend calls it.
        algorithm: see `lit_papers.local_sgd.theory.simulate`.
        sampling: likewise.
        style: which of `lit_papers.plotting.STYLES`; the same algorithm looks the same in all panels.
        exponent: of the error in the panel's variable, from the leading term of the bounds.
        settings: what differs from the panel's; ``sync_every`` 0 stands for ``N``.
        function: what is minimised.
        offset: taken from the variable before the slope is fitted.
    """

    label: str
    algorithm: Algorithm
    sampling: Sampling
    style: int
    exponent: int
    settings: dict[Variable, int] = field(default_factory=dict)
    function: LowerBoundFunction = field(default_factory=SkewedQuadratic)
    offset: int = 0


@dataclass(frozen=True)
class Panel:
    """Curves over one variable.

    Attributes:
        variable: what is varied.
        values: what it takes.
        settings: the other three.
        curves: what is compared.
    """

    variable: Variable
    values: tuple[int, ...]
    settings: dict[Variable, int]
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class Measured:
    """A measured curve.

    Attributes:
        curve: what was measured.
        errors: mean error at each value of the panel.
        slope: fitted exponent.
        slope_error: its standard error, from the spread of the runs; 0 where nothing is random.
    """

    curve: Curve
    errors: tuple[float, ...]
    slope: float
    slope_error: float


_Kind = tuple[Algorithm, Sampling, int]  # with the line style
_WR = Curve("minibatch WR", "minibatch", "with_replacement", 0, -1)
_RR: _Kind = ("minibatch", "reshuffle", 1)
_SYNC: _Kind = ("minibatch", "synchronized", 2)
_LOCAL: _Kind = ("local", "reshuffle", 3)
_RARE: _Kind = ("local", "reshuffle", 4)

PANELS: tuple[Panel, ...] = (
    Panel(
        "epochs",
        (40, 80, 160, 320),
        {"machines": 4, "components": 32, "sync_every": 4},
        (
            _WR,
            Curve("minibatch RR", *_RR, -2),
            Curve("minibatch SyncShuf", *_SYNC, -2),
            Curve("local RR", *_LOCAL, -2),
            Curve("local RR, B = N", *_RARE, -2, {"sync_every": 0}),
        ),
    ),
    Panel(
        "machines",
        (1, 2, 4, 8, 16),
        {"components": 128, "epochs": 150, "sync_every": 4},
        (
            _WR,
            Curve("minibatch RR", *_RR, -1),
            Curve("minibatch SyncShuf", *_SYNC, -2),
            Curve("local RR, B = 2", *_LOCAL, -1, {"sync_every": 2}),
            Curve("local RR, B = N", *_RARE, 0, {"sync_every": 0}),
        ),
    ),
    Panel(
        "components",
        (32, 64, 128, 256),
        {"machines": 4, "epochs": 100, "sync_every": 4},
        (
            _WR,
            Curve("minibatch RR", *_RR, -1),
            Curve("minibatch SyncShuf", *_SYNC, -1),
            Curve("local RR, M = 256", *_LOCAL, -2, {"machines": 256}),  # MB >> N: the drift term leads
            Curve("local RR, B = N", *_RARE, -1, {"sync_every": 0}),
        ),
    ),
    Panel(
        "sync_every",
        (2, 4, 8, 16, 32),
        {"machines": 64, "components": 128, "epochs": 150},
        (
            Curve("minibatch RR", *_RR, 0),
            Curve("local RR", *_LOCAL, 1),
            # the drift of a round is exact here, and proportional to B - 1 = 0 where nobody drifts
            Curve("local, unequal machines, in B - 1", *_RARE, 2, {}, HeterogeneousQuadratic(), 1),
        ),
    ),
)


def measure(
    panel: Panel, *, samples: int = 3072, seed: int = 0, done: Callable[[], None] = lambda: None
) -> list[Measured]:
    r"""Simulate every curve of a panel with :math:`\eta = 6 / (\mu N K)` from :math:`x_0 = 0`, and fit its slope.

    Args:
        panel: what to measure.
        samples: machines simulated at each point, that is runs times ``M``; at least 8 runs are made.
        seed: of all draws.
        done: called after every point.

    Returns:
        One entry for each curve.
    """
    measured = []
    for curve in panel.curves:
        errors, relative = [], []
        for value in panel.values:
            mean, standard_error = _error(
                {**panel.settings, **curve.settings, panel.variable: value}, curve, samples, seed
            )
            errors.append(mean)
            relative.append(standard_error / mean)
            done()
        x = [value - curve.offset for value in panel.values]
        log_x = [math.log(value) for value in x]
        mean_x = sum(log_x) / len(log_x)
        pull = [value - mean_x for value in log_x]  # weight of each log error in the fitted slope, unscaled
        spread = math.sqrt(sum((p * r) ** 2 for p, r in zip(pull, relative, strict=True))) / sum(p * p for p in pull)
        measured.append(Measured(curve, tuple(errors), fit_loglog_slope(x, errors), spread))
    return measured


def slope_figure(measured: Sequence[Sequence[Measured]], panels: Sequence[Panel] = PANELS) -> Figure:
    """Errors and fitted lines, each beside a thin grey line of the exponent that the theory gives.

    Args:
        measured: what `measure` returned for each panel.
        panels: the panels, in the same order.

    Returns:
        A figure with two panels a row.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure, axes = new_figure(math.ceil(len(panels) / 2), 2)
    for axis, panel, lines in zip(axes, panels, measured, strict=False):
        for line in lines:
            curve = line.curve
            style = STYLES[curve.style]
            x = [value - curve.offset for value in panel.values]
            middle = len(x) // 2
            fitted = _power_law(x, line.errors, line.slope)
            label = f"{curve.label}: {_rounded(line.slope)} ({curve.exponent})"
            axis.plot(x, [fitted(value) for value in x], color=style["color"], linestyle=style["linestyle"])
            axis.plot(x, line.errors, color=style["color"], linestyle="", marker=style["marker"], markersize=4.5)
            axis.plot([], [], label=label, **{**style, "markersize": 4.5})
            theory = [line.errors[middle] * (value / x[middle]) ** curve.exponent for value in x]
            axis.plot(x, theory, color="0.6", linewidth=0.8, zorder=0)
        axis.plot([], [], color="0.6", linewidth=0.8, label="exponent of the theory, in brackets")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(panel.values, [str(value) for value in panel.values])
        axis.set_xlabel(_AXIS_LABELS[panel.variable])
        axis.set_ylabel("error F(x) - F*")
        fixed = {"machines": "M", "components": "N", "epochs": "K", "sync_every": "B"}
        axis.set_title(", ".join(f"{fixed[key]} = {panel.settings[key]}" for key in panel.settings), fontsize=9)
        axis.legend(fontsize=6.5, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all panels with a progress bar, write the figure, print the table of exponents."""
    parser = argparse.ArgumentParser(prog="python -m lit_papers.local_sgd.figures", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("slopes.png"), help="figure to write (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=3072, help="machines simulated a point (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all draws (default: %(default)s)")
    options = parser.parse_args(arguments)
    with Progress() as progress:
        task = progress.add_task("simulating", total=sum(len(panel.values) * len(panel.curves) for panel in PANELS))
        measured = [
            measure(panel, samples=options.samples, seed=options.seed, done=lambda: progress.advance(task))
            for panel in PANELS
        ]
    slope_figure(measured, PANELS).savefig(options.out, dpi=100)
    table = Table("in", "algorithm", "theory", "measured")
    for panel, lines in zip(PANELS, measured, strict=True):
        table.add_section()
        for line in lines:
            found = _rounded(line.slope) + (f" ± {line.slope_error:.2f}" if line.slope_error else " (exact)")
            table.add_row(panel.variable, line.curve.label, str(line.curve.exponent), found)
    console = Console()
    console.print(table)
    console.print(f"figure {options.out}", soft_wrap=True, highlight=False, markup=False)


def _error(settings: dict[Variable, int], curve: Curve, samples: int, seed: int) -> tuple[float, float]:
    """Mean error and its standard error."""
    machines, components, epochs = settings["machines"], settings["components"], settings["epochs"]
    sync_every = settings["sync_every"] or components
    step_size = 6 / (curve.function.mu * components * epochs)
    if isinstance(curve.function, HeterogeneousQuadratic):
        exact = exact_suboptimality(
            curve.function, curve.algorithm, curve.sampling,
            machines=machines, components=components, epochs=epochs, sync_every=sync_every, step_size=step_size,
        )  # fmt: skip
        return exact, 0.0
    runs = max(8, samples // machines)
    errors = simulate(
        curve.function, curve.algorithm, curve.sampling,
        machines=machines, components=components, epochs=epochs, sync_every=sync_every, step_size=step_size,
        runs=runs, seed=seed,
    )  # fmt: skip
    return errors.mean().item(), errors.std().item() / math.sqrt(runs)


def _rounded(slope: float) -> str:
    return f"{round(slope, 2) + 0.0:.2f}"  # adding 0 takes the sign off -0.0


def _power_law(x: Sequence[float], y: Sequence[float], slope: float) -> Callable[[float], float]:
    """The fitted line in log-log space, as a function."""
    level = sum(math.log(b) - slope * math.log(a) for a, b in zip(x, y, strict=True)) / len(x)
    return lambda value: math.exp(level + slope * math.log(value))


if __name__ == "__main__":
    main()

"""Exponents of the error in epochs, machines, components and sync interval: the theorems' and measured ones."""

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from lit_papers.local_sgd.theory import (
    Algorithm,
    HeterogeneousQuadratic,
    LowerBoundFunction,
    Sampling,
    SkewedQuadratic,
    UnlikeSkewedQuadratic,
    exact_suboptimality,
    simulate,
)

Variable = Literal["epochs", "machines", "components", "sync_every"]


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

    @property
    def key(self) -> str:
        """The label as a name.

        >>> Curve("local RR, B = N", "local", "reshuffle", 4, -2).key
        'local_rr_b_n'
        """
        return re.sub(r"[^a-z0-9]+", "_", self.label.lower()).strip("_")


@dataclass(frozen=True)
class Panel:
    """Curves over one variable.

    Attributes:
        name: of the panel.
        variable: what is varied.
        values: what it takes.
        settings: the other three.
        curves: what is compared.
    """

    name: str
    variable: Variable
    values: tuple[int, ...]
    settings: dict[Variable, int]
    curves: tuple[Curve, ...]


_Kind = tuple[Algorithm, Sampling, int]  # with the line style
_WR = Curve("minibatch WR", "minibatch", "with_replacement", 0, -1)
_RR: _Kind = ("minibatch", "reshuffle", 1)
_SYNC: _Kind = ("minibatch", "synchronized", 2)
_LOCAL: _Kind = ("local", "reshuffle", 3)
_RARE: _Kind = ("local", "reshuffle", 4)
_UNLIKE: _Kind = ("minibatch", "synchronized", 3)

PANELS: tuple[Panel, ...] = (
    Panel(
        "epochs",
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
        "machines",
        (1, 4, 16),
        {"components": 128, "epochs": 100, "sync_every": 4},
        (
            _WR,
            Curve("minibatch RR", *_RR, -1),
            Curve("minibatch SyncShuf", *_SYNC, -2),
            Curve("local RR, B = 2", *_LOCAL, -1, {"sync_every": 2}),
            Curve("local RR, B = N", *_RARE, 0, {"sync_every": 0}),
        ),
    ),
    Panel(
        "unlike_machines",
        "machines",
        (1, 4, 16),
        {"components": 128, "epochs": 100, "sync_every": 4},
        (
            Curve("minibatch RR, like machines", *_RR, -1),
            Curve("minibatch SyncShuf, like machines", *_SYNC, -2),
            Curve("minibatch SyncShuf, unlike machines", *_UNLIKE, -1, {}, UnlikeSkewedQuadratic()),
        ),
    ),
    Panel(
        "components",
        "components",
        (32, 64, 128),
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
        "interval",
        "sync_every",
        (2, 8, 32),
        {"machines": 64, "components": 128, "epochs": 100},
        (
            Curve("minibatch RR", *_RR, 0),
            Curve("local RR", *_LOCAL, 1),
            # the drift of a round is exact here, and proportional to B - 1 = 0 where nobody drifts
            Curve("local, unequal machines, in B - 1", *_RARE, 2, {}, HeterogeneousQuadratic(), 1),
        ),
    ),
)


def measure(panel: Panel, *, samples: int = 1024, seed: int = 0) -> dict[str, list[float]]:
    r"""Simulate every curve of a panel with :math:`\eta = 6 / (\mu N K)` from :math:`x_0 = 0`.

    Args:
        panel: what to measure.
        samples: machines simulated at each point, that is runs times ``M``; at least 8 runs are made.
        seed: of all draws.

    Returns:
        By the key of a curve its mean error at each value of the panel.
    """
    return {
        curve.key: [
            _error({**panel.settings, **curve.settings, panel.variable: value}, curve, samples, seed)
            for value in panel.values
        ]
        for curve in panel.curves
    }


def _error(settings: dict[Variable, int], curve: Curve, samples: int, seed: int) -> float:
    machines, components, epochs = settings["machines"], settings["components"], settings["epochs"]
    sync_every = settings["sync_every"] or components
    step_size = 6 / (curve.function.mu * components * epochs)
    if isinstance(curve.function, HeterogeneousQuadratic):
        return exact_suboptimality(
            curve.function, curve.algorithm, curve.sampling,
            machines=machines, components=components, epochs=epochs, sync_every=sync_every, step_size=step_size,
        )  # fmt: skip
    errors = simulate(
        curve.function, curve.algorithm, curve.sampling,
        machines=machines, components=components, epochs=epochs, sync_every=sync_every, step_size=step_size,
        runs=max(8, math.ceil(samples / machines)), seed=seed,
    )  # fmt: skip
    return errors.mean().item()


def panel_of(name: str) -> Panel:
    """The panel of a name.

    Raises:
        ValueError: there is none.
    """
    found = [panel for panel in PANELS if panel.name == name]
    if not found:
        raise ValueError(f"`panel` must be one of {', '.join(panel.name for panel in PANELS)}, got {name!r}")
    return found[0]

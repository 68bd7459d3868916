"""Where a network stands in the loss landscape: globally optimal, stationary, or neither.

The tests are of the theory's exact conditions, with a certified distance from the optimum. For the continuous path from
any wide enough network down to a global minimum see `path_to_optimum`.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_papers.convex_relu.arrangements import Arrangements, check_arrangements, distinct_lines
from lit_papers.convex_relu.certificates import dual_bound, dual_norm
from lit_papers.convex_relu.networks import network_output, objective
from lit_papers.convex_relu.optimal_set import OptimalSet
from lit_papers.convex_relu.path import NetworkPath, path_to_optimum
from lit_papers.convex_relu.problem import (
    Loss,
    check_beta,
    check_features,
    check_network,
    check_targets,
    import_scipy_optimize,
    loss_gradient,
)

__all__ = [
    "NetworkPath",
    "OptimalityReport",
    "WidthBounds",
    "clarke_residual",
    "global_optimality",
    "is_stationary",
    "path_to_optimum",
    "width_bounds",
]


@dataclass(frozen=True)
class OptimalityReport:
    """How far a network is from the global optimum over all widths.

    Attributes:
        is_global: the certified gap is within tolerance.
        objective: of the network.
        lower_bound: on the objective of any network of any width.
        gap: objective - lower_bound, at least 0 up to rounding.
        sup_ratio: largest correlation of a unit neuron with the residual, over beta (or its upper bound where not all
            patterns are known): 1 at the optimum, above 1 where a neuron should be added.
        balance_error: largest difference of a neuron's two norms.
        direction: (d,) the unit neuron with the largest correlation among the given patterns. Adding
            ``(sqrt(e) direction, sqrt(e) sign)`` changes the objective by ``e beta (1 - its ratio)`` for small e.
        sign: its output sign.
        exact: all patterns were searched; False leaves the enumeration-free bound.
    """

    is_global: bool
    objective: float
    lower_bound: float
    gap: float
    sup_ratio: float
    balance_error: float
    direction: Tensor | None
    sign: int | None
    exact: bool


def global_optimality(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    alpha: Tensor,
    beta: float,
    arrangements: Arrangements | None = None,
    *,
    loss: Loss = "squared",
    tol: float = 1e-6,
) -> OptimalityReport:
    """Test whether a network is globally optimal, in polynomial time for data of fixed rank.

    It is if and only if it is balanced, all its neurons have correlation exactly beta with the residual, and no unit
    neuron has more. The objective minus the dual bound measures all three.

    Args:
        x: data, (n, d).
        y: targets, (n,).
        weight: hidden neurons, (m, d); any width, none included.
        alpha: output weights, (m,).
        beta: strength of the weight decay.
        arrangements: all patterns make the test exact. With some of them, or None, the bound needs no patterns and is
            looser: True is still a proof, False is not.
        loss: of the outputs.
        tol: gap, relative to the objective or to 1 where that is larger, that counts as none.

    Raises:
        ValueError: the data, the network or the arrangements are malformed.
    """
    x, y, weight, alpha, beta = _checked(x, y, weight, alpha, beta, loss)
    nu = loss_gradient(network_output(x, weight, alpha), y, loss)
    found = None if arrangements is None else dual_norm(x, nu, check_arrangements(arrangements, x))
    exact = arrangements is not None and arrangements.exact
    sup = found.value if found is not None and exact else dual_norm(x, nu).value
    value = float(objective(x, y, weight, alpha, beta, loss=loss))
    bound = dual_bound(y, nu, sup, beta, loss=loss)
    errors = (weight.norm(dim=1) - alpha.abs()).abs()
    return OptimalityReport(
        is_global=value - bound <= tol * max(1.0, abs(value)),
        objective=value,
        lower_bound=bound,
        gap=value - bound,
        sup_ratio=sup / beta,
        balance_error=float(errors.max()) if len(errors) else 0.0,
        direction=None if found is None else found.direction,
        sign=None if found is None else found.sign,
        exact=exact,
    )


def clarke_residual(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    alpha: Tensor,
    beta: float,
    *,
    loss: Loss = "squared",
    zero_tol: float = 1e-7,
) -> float:
    """Distance of 0 from the Clarke subdifferential, the largest over neurons and layers; 0 at stationary points.

    Trained neurons sit on activation boundaries, where autograd's gradient is not small. Here the gates of samples at
    the boundary may be anything in [0, 1], and the best are found by bounded least squares. That is the subdifferential
    if those rows of `x` are independent, and contains it otherwise.

    Args:
        x: data, (n, d).
        y: targets, (n,).
        weight: hidden neurons, (m, d).
        alpha: output weights, (m,).
        beta: strength of the weight decay.
        loss: of the outputs.
        zero_tol: ``|x_k . u| <= zero_tol |x_k| |u|`` is at the boundary.

    Raises:
        ValueError: the data or the network are malformed.
    """
    x, y, weight, alpha, beta = _checked(x, y, weight, alpha, beta, loss)
    optimize = import_scipy_optimize()
    nu = loss_gradient(network_output(x, weight, alpha), y, loss)
    worst = 0.0
    for neuron, out in zip(weight, alpha, strict=True):
        inner = x @ neuron
        near = inner.abs() <= zero_tol * x.norm(dim=1) * neuron.norm()
        outer = float((nu @ inner.clamp_min(0) + beta * out).abs())
        on = (inner > 0) & ~near
        fixed = out * (x[on].T @ nu[on]) + beta * neuron
        free = out * (x[near] * nu[near, None]).T
        if near.any() and bool(free.abs().max() > 0):
            answer = optimize.lsq_linear(free.numpy(), -fixed.numpy(), bounds=(0.0, 1.0), method="bvls", tol=1e-14)
            fixed = fixed + free @ torch.from_numpy(answer.x)
        worst = max(worst, outer, float(fixed.norm()))
    return worst


def is_stationary(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    alpha: Tensor,
    beta: float,
    *,
    kind: Literal["clarke", "directional"] = "clarke",
    loss: Loss = "squared",
    tol: float = 1e-6,
    zero_tol: float = 1e-7,
) -> bool:
    """Whether a network is a stationary point of the training objective.

    `clarke`: 0 is in the Clarke subdifferential. `directional`, which is stronger: no direction descends either; the
    kinks of boundary neurons are convex. A Clarke stationary point can sit on a concave kink, as on a ridge.

    Args:
        x: data, (n, d).
        y: targets, (n,).
        weight: hidden neurons, (m, d).
        alpha: output weights, (m,).
        beta: strength of the weight decay.
        kind: of stationarity.
        loss: of the outputs.
        tol: residual that counts as none.
        zero_tol: as in `clarke_residual`.

    Raises:
        ValueError: the data, the network or `kind` are malformed.
    """
    if kind not in ("clarke", "directional"):
        raise ValueError(f"kind must be 'clarke' or 'directional'; got {kind!r}.")
    if clarke_residual(x, y, weight, alpha, beta, loss=loss, zero_tol=zero_tol) > tol:
        return False
    if kind == "clarke":
        return True
    x, y, weight, alpha, beta = _checked(x, y, weight, alpha, beta, loss)
    nu = loss_gradient(network_output(x, weight, alpha), y, loss)
    lengths = x.norm(dim=1)
    _, members, _, _ = distinct_lines(x.numpy())
    line = torch.from_numpy(members)
    for neuron, out in zip(weight, alpha, strict=True):
        if neuron.norm() == 0 or out == 0:
            continue
        near = ((x @ neuron).abs() <= zero_tol * lengths * neuron.norm()) & (lengths > 0)
        for index in line[near].unique():  # type: ignore[no-untyped-call]  # samples on one line make one kink
            same = near & (line == index)
            if out.sign() * (nu[same] * lengths[same]).sum() < -tol * lengths[same].max():
                return False
    return True


class WidthBounds(NamedTuple):
    """Numbers of neurons that matter for a problem's landscape.

    Attributes:
        min_width: of the narrowest optimal network.
        max_irreducible_width: of the widest optimal network that cannot lose a neuron; None if there are too many atoms
            to tell.
        no_spurious_valley: from this width on, every network has a non-increasing path to a global minimum.
    """

    min_width: int
    max_irreducible_width: int | None
    no_spurious_valley: int


def width_bounds(optimal: OptimalSet) -> WidthBounds:
    """Widths of the optimal networks, and the width without spurious valleys."""
    widest = None
    if len(optimal.signs) <= 14:
        vertices = optimal.vertices()
        widest = int((vertices > 0).sum(1).max()) if len(vertices) else 0
    return WidthBounds(optimal.min_width, widest, len(optimal.output) + 1)


def _checked(
    x: Tensor, y: Tensor, weight: Tensor, alpha: Tensor, beta: float, loss: Loss
) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    x = check_features(x)
    weight, alpha = check_network(x, weight, alpha)
    return x, check_targets(y, x, loss), weight, alpha, check_beta(beta)

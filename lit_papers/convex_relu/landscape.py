"""Where a network stands in the loss landscape: globally optimal, stationary, or neither.

The tests are of the theory's exact conditions, with a certified distance from the optimum. For the continuous path from
any wide enough network down to a global minimum see `path_to_optimum`.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_papers.convex_relu.arrangements import Arrangements, check_arrangements, distinct_lines
from lit_papers.convex_relu.certificates import enumeration_free, largest
from lit_papers.convex_relu.losses import Loss, loss_gradient, loss_value
from lit_papers.convex_relu.networks import network_output
from lit_papers.convex_relu.optimal_set import OptimalSet
from lit_papers.convex_relu.path import NetworkPath, path_to_optimum
from lit_papers.convex_relu.problem import Problem, check_features, import_scipy_optimize

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
    bias: Tensor | None = None,
    tol: float = 1e-6,
) -> OptimalityReport:
    """Test whether a network is globally optimal, in polynomial time for data of fixed rank.

    It is if and only if it is balanced, all its neurons have correlation exactly beta with the residual, and no unit
    neuron has more. The objective minus the dual bound measures all three.

    Args:
        x: data, (n, d).
        y: targets, (n,), or (n, k) for k outputs.
        weight: hidden neurons, (m, d); any width, none included.
        alpha: output weights, (m,) or (m, k).
        beta: strength of the weight decay.
        arrangements: all patterns make the test exact for one output. With some of them, or None, the bound needs no
            patterns and is looser: True is still a proof, False is not.
        loss: of the outputs.
        bias: output bias, a scalar or (k,), which is not decayed; None for networks without.
        tol: gap, relative to the loss of the network without neurons, that counts as none.

    Raises:
        ValueError: the data, the network or the arrangements are malformed, or the arrangements are of other data.
    """
    problem = Problem.of(x, y, beta, loss=loss, output_bias=bias is not None)
    if arrangements is not None:
        check_arrangements(arrangements, check_features(x))
    return report(problem, weight, alpha, arrangements, bias=bias, tol=tol)


def report(
    problem: Problem,
    weight: Tensor,
    alpha: Tensor,
    arrangements: Arrangements | None = None,
    *,
    bias: Tensor | None = None,
    tol: float = 1e-6,
) -> OptimalityReport:
    """`global_optimality` for a problem, and patterns, that were checked before."""
    weight, alpha = problem.scaled(weight, alpha)
    outputs = network_output(problem.x, weight, alpha)
    norms, sizes = weight.norm(dim=1), _sizes(alpha)
    reached = outputs + _scaled_bias(problem, bias)
    value = float(
        loss_value(reached, problem.y, problem.loss, problem.weights)
        + 0.5 * problem.beta * (norms.square().sum() + sizes.square().sum())
    )
    nu = problem.dual(outputs)
    found = None if arrangements is None else largest(problem.x, nu, arrangements)
    exact = arrangements is not None and arrangements.exact
    sup = found.value if found is not None and exact else enumeration_free(problem.x, nu)
    bound = problem.bound(nu, sup)
    errors = (norms - sizes).abs()
    return OptimalityReport(
        is_global=value - bound <= tol * problem.at_zero,
        objective=problem.unit * value,
        lower_bound=problem.unit * bound,
        gap=problem.unit * (value - bound),
        sup_ratio=sup / problem.beta,
        balance_error=float(problem.unscaled(errors, errors)[0].max()) if len(errors) else 0.0,
        direction=None if found is None else found.direction,
        sign=None if found is None else found.sign,
        exact=exact and problem.num_outputs == 1,
    )


def clarke_residual(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    alpha: Tensor,
    beta: float,
    *,
    loss: Loss = "squared",
    bias: Tensor | None = None,
    zero_tol: float = 1e-7,
) -> float:
    """Distance of 0 from the Clarke subdifferential, the largest over neurons and layers; 0 at stationary points.

    Trained neurons sit on activation boundaries, where autograd's gradient is not small. Here the gates of samples at
    the boundary may be anything in [0, 1], and the best are found by bounded least squares. That is the subdifferential
    if those rows of `x` are independent, and contains it otherwise.

    Args:
        x: data, (n, d).
        y: targets, (n,) or (n, k).
        weight: hidden neurons, (m, d).
        alpha: output weights, (m,) or (m, k).
        beta: strength of the weight decay.
        loss: of the outputs.
        bias: output bias, which is not decayed; None for networks without.
        zero_tol: ``|x_k . u| <= zero_tol |x_k| |u|`` is at the boundary.

    Raises:
        ValueError: the data or the network are malformed.
    """
    problem = Problem.of(x, y, beta, loss=loss, output_bias=bias is not None)
    residual = stationarity(problem, weight, alpha, bias=bias, zero_tol=zero_tol)
    scale: float = (problem.x_unit / problem.y_unit) ** 0.5
    return residual * problem.unit * scale


def stationarity(
    problem: Problem, weight: Tensor, alpha: Tensor, *, bias: Tensor | None = None, zero_tol: float = 1e-7
) -> float:
    """`clarke_residual` in the units of a problem that was checked before."""
    optimize = import_scipy_optimize()
    x, beta = problem.x, problem.beta
    weight, alpha = problem.scaled(weight, alpha)
    nu = _gradient(problem, weight, alpha, bias)
    outer = (x @ weight.T).clamp_min(0).T @ nu + beta * alpha
    worst = float(_sizes(outer).max()) if len(outer) else 0.0
    if bias is not None:
        worst = max(worst, float(nu.sum(0).abs().max()))
    pulls = nu @ alpha.T if nu.ndim == 2 else nu[:, None] * alpha  # (n, m)
    for neuron, pull in zip(weight, pulls.T, strict=True):
        inner = x @ neuron
        near = inner.abs() <= zero_tol * x.norm(dim=1) * neuron.norm()
        on = (inner > 0) & ~near
        fixed = x[on].T @ pull[on] + beta * neuron
        free = (x[near] * pull[near, None]).T
        if near.any() and bool(free.abs().max() > 0):
            answer = optimize.lsq_linear(free.numpy(), -fixed.numpy(), bounds=(0.0, 1.0), method="bvls", tol=1e-14)
            fixed = fixed + free @ torch.from_numpy(answer.x)
        worst = max(worst, float(fixed.norm()))
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
        tol: residual that counts as none, relative to ``sqrt(beta * loss of the network without neurons)``, the size of
            a gradient of this problem.
        zero_tol: as in `clarke_residual`.

    Raises:
        ValueError: the data, the network or `kind` are malformed, or `directional` is asked of several outputs.
    """
    if kind not in ("clarke", "directional"):
        raise ValueError(f"kind must be 'clarke' or 'directional'; got {kind!r}.")
    problem = Problem.of(x, y, beta, loss=loss)
    scale = (problem.beta * problem.at_zero) ** 0.5
    if stationarity(problem, weight, alpha, zero_tol=zero_tol) > tol * scale:
        return False
    if kind == "clarke":
        return True
    if problem.num_outputs > 1:
        raise ValueError("kind='directional' is of networks with one output.")
    weight, alpha = problem.scaled(weight, alpha)
    nu = _gradient(problem, weight, alpha, None)
    rows = problem.x
    lengths = rows.norm(dim=1)
    _, members, _, _ = distinct_lines(rows.numpy())
    line = torch.from_numpy(members)
    for neuron, out in zip(weight, alpha, strict=True):
        if neuron.norm() == 0 or out == 0:
            continue
        near = ((rows @ neuron).abs() <= zero_tol * lengths * neuron.norm()) & (lengths > 0)
        for index in line[near].unique():  # type: ignore[no-untyped-call]  # samples on one line make one kink
            same = near & (line == index)
            if out.sign() * (nu[same] * lengths[same]).sum() < -tol * max(problem.beta, float(nu.norm())):
                return False
    return True


def _sizes(alpha: Tensor) -> Tensor:
    """How large each neuron's output weights are, (m,)."""
    return alpha.abs() if alpha.ndim == 1 else alpha.norm(dim=1)


def _scaled_bias(problem: Problem, bias: Tensor | None) -> Tensor:
    if bias is None:
        return problem.y.new_zeros(problem.y.shape[1:])
    bias = torch.as_tensor(bias).detach().to("cpu", torch.float64).reshape(problem.y.shape[1:])
    return (bias - problem.y_shift) / problem.y_unit


def _gradient(problem: Problem, weight: Tensor, alpha: Tensor, bias: Tensor | None) -> Tensor:
    outputs = network_output(problem.x, weight, alpha) + _scaled_bias(problem, bias)
    return loss_gradient(outputs, problem.y, problem.loss, problem.weights)


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

"""Lower bounds on the optimal value that hold whatever produced them.

The dual of training is ``max_nu -loss*(nu)`` subject to ``g(nu) <= beta``, with the dual norm
``g(nu) = max_{|u| <= 1} |nu^T (x u)_+|``. Any `nu` at all, scaled into the feasible set, gives a lower bound; the
gradient of the loss at a network's outputs gives one that is tight when the network is optimal.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lit_papers.convex_relu.arrangements import Arrangements, check_arrangements
from lit_papers.convex_relu.cones import project_on_cones
from lit_papers.convex_relu.losses import Loss, dual_value
from lit_papers.convex_relu.problem import Problem, check_features

_FIRST = 128  # blocks that are projected before anything is known of the largest
_ENTRIES = 2**22  # of a temporary matrix
_LARGEST_APART = 1e11  # multiplications for a bound of each output, of which it is a little tighter; some ten seconds


class DualNorm(NamedTuple):
    """The largest correlation of `nu` with a unit ReLU neuron.

    Attributes:
        value: ``max |nu^T (x u)_+|`` over unit `u` in the cones of the patterns; an upper bound of the maximum over
            all `u` if no patterns were given.
        direction: (d,) the maximising unit neuron; zero where `value` is.
        sign: output sign +1 or -1 with which adding that neuron lowers the loss.
        pattern: column of its pattern.
    """

    value: float
    direction: Tensor | None = None
    sign: int | None = None
    pattern: int | None = None


class Prices(NamedTuple):
    """The best neuron of each (pattern, sign) block that matters, in falling order of its correlation with `nu`.

    Attributes:
        columns: (k,) patterns.
        signs: (k,) output signs.
        vectors: (k, d) unit neurons; zero where `values` is.
        values: (k,) correlations.
        sup: certified upper bound on the correlation of any block, listed or not.
    """

    columns: Tensor
    signs: Tensor
    vectors: Tensor
    values: Tensor
    sup: float


def price(x: Tensor, nu: Tensor, arrangements: Arrangements, *, least: float | None = None) -> Prices:
    """Price (pattern, sign) blocks: project ``-sign x^T D nu`` on each block's cone.

    For one block the length of the projection is the largest correlation of a unit neuron in it, and the length of
    ``x^T D nu`` bounds it. So blocks are taken in falling order of that bound, more at a time, until what is left
    cannot matter.

    Args:
        x: data, CPU float64, (n, d).
        nu: dual variable, (n,).
        arrangements: the patterns.
        least: list all blocks that reach this much. None lists those that might be the largest.
    """
    num_patterns = len(arrangements)
    gates = arrangements.patterns
    pull = torch.cat([x.T @ (part.to(x.dtype) * nu[:, None]) for part in gates.split(_columns(x), 1)], 1).T  # type: ignore[no-untyped-call]
    pull = torch.cat([-pull, pull])  # rows 0..p-1 stand for sign +1, p..2p-1 for sign -1
    bounds = pull.norm(dim=1)
    order = bounds.argsort(descending=True, stable=True)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    wanted, start = 0.0 if least is None else least, 0
    count = _FIRST if least is None else int((bounds >= least).sum())
    while start < len(order) and float(bounds[order[start]]) >= wanted:
        chosen = order[start : start + min(count, _columns(x))]
        side = torch.where(gates[:, chosen % num_patterns].T, 1.0, -1.0).to(x.dtype)
        points, upper = project_on_cones(pull[chosen], side, x, least=wanted)
        found.append((chosen, points, upper))
        if least is None:
            wanted = max(wanted, float(upper.max()))
        start, count = start + len(chosen), 2 * count
    blocks, points, values = (
        (torch.cat(part) for part in zip(*found, strict=True)) if found else (order[:0], pull[:0], bounds[:0])
    )
    rest = float(bounds[order[start]]) if start < len(order) else 0.0
    falling = values.argsort(descending=True, stable=True)
    falling = falling[values[falling] >= wanted]
    blocks, points, lengths = blocks[falling], points[falling], values[falling]
    return Prices(
        blocks % num_patterns,
        torch.where(blocks < num_patterns, 1.0, -1.0).to(x.dtype),
        points / torch.where(lengths > 0, lengths, 1.0)[:, None],
        lengths,
        max(float(values.max()) if len(values) else 0.0, rest if least is not None else 0.0)
        + _between(x, nu, arrangements),
    )


def _between(x: Tensor, nu: Tensor, arrangements: Arrangements) -> float:
    """By how much a neuron between two hyperplanes that were taken for one can have more correlation."""
    if arrangements.merged is None:
        return 0.0
    sizes = nu.abs() if nu.ndim == 1 else nu.norm(dim=1)
    return float((sizes * x.norm(dim=1)) @ arrangements.merged)


def dual_norm(x: Tensor, nu: Tensor, arrangements: Arrangements | None = None) -> DualNorm:
    """Maximise ``|nu^T (x u)_+|`` over the unit ball, exactly over the given patterns.

    Without patterns, ``(t)_+ = (t + |t|) / 2`` and Cauchy-Schwarz give an upper bound for data of any size.

    Args:
        x: data, (n, d).
        nu: dual variable, (n,), or (n, k) for k outputs, of which the norm is taken: an upper bound only.
        arrangements: the patterns to search; None for the upper bound.

    Raises:
        ValueError: `x` or `nu` is malformed, or the arrangements are of other data.
    """
    x = check_features(x)
    nu = _check_dual(nu, x)
    if arrangements is None:
        return DualNorm(enumeration_free(x, nu))
    check_arrangements(arrangements, x)
    return largest(x, nu, arrangements)


def largest(x: Tensor, nu: Tensor, arrangements: Arrangements) -> DualNorm:
    """`dual_norm` over patterns, of data that were checked before."""
    if nu.ndim == 2:
        return DualNorm(min(_over_patterns(x, nu, arrangements), enumeration_free(x, nu)))
    prices = price(x, nu, arrangements)
    if len(prices.values) == 0:
        return DualNorm(prices.sup, x.new_zeros(x.shape[1]), 1, 0)
    return DualNorm(prices.sup, prices.vectors[0], int(prices.signs[0]), int(prices.columns[0]))


def enumeration_free(x: Tensor, nu: Tensor) -> float:
    """Upper bound on the dual norm for data of any size: ``(t)_+ = (t + |t|) / 2`` and Cauchy-Schwarz."""
    if nu.ndim == 1:
        slope = float((x.T @ nu).norm())
        return 0.5 * slope + 0.5 * max(_bend(x, (-sign * nu).clamp_min(0)) for sign in (1.0, -1.0))
    # v^T nu^T |x u| for unit v: with weights |nu_k|, one factor depends on v and one on u
    sizes = nu.norm(dim=1)
    scaled = nu / torch.where(sizes > 0, sizes, 1.0).sqrt()[:, None]
    together = 0.5 * float(torch.linalg.matrix_norm(nu.T @ x, ord=2)) + 0.5 * float(
        torch.linalg.matrix_norm(scaled, ord=2) * torch.linalg.matrix_norm(sizes.sqrt()[:, None] * x, ord=2)
    )
    if nu.shape[1] * x.numel() * x.shape[1] > _LARGEST_APART:
        return together
    return min(together, math.hypot(*(enumeration_free(x, column) for column in nu.T)))


def _bend(x: Tensor, against: Tensor) -> float:
    spread = torch.linalg.eigvalsh(x.T @ (against[:, None] * x))[-1].clamp_min(0)
    return float((against.sum() * spread).sqrt())


def _over_patterns(x: Tensor, nu: Tensor, arrangements: Arrangements) -> float:
    """Upper bound for several outputs: the largest singular value of ``nu^T D x``, or the outputs one by one."""
    apart = math.hypot(*(price(x, column, arrangements).sup for column in nu.T))
    together = 0.0
    for part in arrangements.patterns.split(max(1, _columns(x) // nu.shape[1]), 1):  # type: ignore[no-untyped-call]
        maps = torch.einsum("nk,np,nd->pkd", nu, part.to(x.dtype), x)
        together = max(together, float(torch.linalg.matrix_norm(maps, ord=2).max()))
    return min(apart, together + _between(x, nu, arrangements))


def dual_bound(y: Tensor, nu: Tensor, sup: float, beta: float, *, loss: Loss = "squared") -> float:
    """Lower bound on the optimal value, without an output bias, from any dual variable.

    Args:
        y: targets, (n,) or (n, k).
        nu: any dual variable, shaped as `y`: for the logistic loss within its domain, ``0 <= -y nu <= 1``.
        sup: the dual norm of `nu`, or an upper bound of it.
        beta: strength of the weight decay.
        loss: of the outputs.

    Returns:
        The dual value of the best feasible multiple of `nu`; `nu` itself is one where ``sup <= beta``.
    """
    y = torch.as_tensor(y).detach().to("cpu", torch.float64)
    nu = torch.as_tensor(nu).detach().to("cpu", torch.float64)
    problem = Problem.of(y.new_ones(len(y), 1), y, beta, loss=loss)
    if not float(dual_value(nu, y, loss)) > -math.inf:
        raise ValueError(f"nu lies outside the domain of the conjugate of the {loss} loss.")
    nu_unit = problem.unit / problem.y_unit
    return problem.unit * problem.bound(nu / nu_unit, sup / nu_unit)


def gated_norms(x: Tensor, nu: Tensor, patterns: Tensor) -> Tensor:
    """``|x^T D_i nu|`` for each pattern, (p,): the dual norm of gated neurons, whose cones are the whole space."""
    norms: Tensor = (x.T @ (patterns.to(x.dtype) * nu[:, None])).norm(dim=0)
    return norms


def _columns(x: Tensor) -> int:
    """How many patterns a temporary matrix may hold."""
    return max(1, _ENTRIES // len(x))


def _check_dual(nu: Tensor, x: Tensor) -> Tensor:
    nu = torch.as_tensor(nu).detach().to("cpu", torch.float64)
    if nu.ndim not in (1, 2) or len(nu) != len(x) or not nu.isfinite().all():
        raise ValueError(f"nu must hold one finite number for each of the {len(x)} samples; got {tuple(nu.shape)}.")
    return nu[:, 0] if nu.ndim == 2 and nu.shape[1] == 1 else nu

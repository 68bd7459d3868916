"""Lower bounds on the optimal value that hold whatever produced them.

The dual of training is ``max_nu -loss*(nu)`` subject to ``g(nu) <= beta``, with the dual norm
``g(nu) = max_{|u| <= 1} |nu . (x u)_+|``. Any `nu` at all, scaled into the feasible set, gives a lower bound; the
gradient of the loss at a network's outputs gives one that is tight when the network is optimal.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lit_papers.convex_relu.arrangements import Arrangements, check_arrangements
from lit_papers.convex_relu.problem import Loss, check_features, dual_value, project_on_cone

_CHUNK = 2**22  # entries of a temporary matrix
_SLACK = 1e-10


class DualNorm(NamedTuple):
    """The largest correlation of `nu` with a unit ReLU neuron.

    Attributes:
        value: ``max |nu . (x u)_+|`` over unit `u` in the cones of the patterns; an upper bound of the maximum over
            all `u` if no patterns were given.
        direction: (d,) the maximising unit neuron; zero where `value` is.
        sign: output sign +1 or -1 with which adding that neuron lowers the loss.
        pattern: column of its pattern.
    """

    value: float
    direction: Tensor | None = None
    sign: int | None = None
    pattern: int | None = None


def dual_norm(x: Tensor, nu: Tensor, arrangements: Arrangements | None = None) -> DualNorm:
    """Maximise ``|nu . (x u)_+|`` over the unit ball, exactly over the given patterns.

    For one pattern and sign the maximum is the length of a projection on the pattern's cone. ``|x^T D nu|`` bounds it:
    one matrix product dismisses most patterns, a few projected-gradient steps most others, and non-negative least
    squares settles the rest. Without patterns, ``(t)_+ = (t + |t|) / 2`` and Cauchy-Schwarz give an upper bound for
    data of any size (typically 1.3 to 2.4 times the maximum).

    Args:
        x: data, (n, d).
        nu: dual variable, (n,).
        arrangements: the patterns to search; None for the upper bound.

    Raises:
        ValueError: `x` or `nu` is malformed, or the arrangements are of other data.
    """
    x = check_features(x)
    nu = _check_dual(nu, x)
    if arrangements is None:
        return DualNorm(max(_enumeration_free(x, nu, sign) for sign in (1.0, -1.0)))
    check_arrangements(arrangements, x)
    weighted = arrangements.patterns.to(x.dtype) * nu[:, None]
    centre = x.T @ weighted  # (d, p)
    # columns 0..p-1 stand for sign +1, p..2p-1 for sign -1
    pull = torch.cat([-centre, centre], 1)
    upper = pull.norm(dim=0)
    num_patterns = len(arrangements)
    if upper.max() == 0:
        return DualNorm(0.0, torch.zeros(x.shape[1], dtype=x.dtype), 1, 0)
    best = _reached(x, nu, pull, upper) if arrangements.exact else 0.0
    left = (upper >= best * (1 - _SLACK)).nonzero()[:, 0]
    if len(left) > 32:
        lengths = _shorten(x, arrangements.patterns[:, left % num_patterns], pull[:, left])
        upper[left] = torch.minimum(upper[left], lengths)
    order = left[upper[left].argsort(descending=True)].tolist()
    found = DualNorm(0.0, torch.zeros(x.shape[1], dtype=x.dtype), 1, order[0] % num_patterns)
    for column in order:
        if upper[column] < max(best, found.value) * (1 - _SLACK):
            break
        index = column % num_patterns
        rows = torch.where(arrangements.patterns[:, index, None], x, -x)
        inside = project_on_cone(pull[:, column], rows)
        value = float(inside.norm())
        if value > found.value:
            found = DualNorm(value, inside / value, 1 if column < num_patterns else -1, index)
    return found


class CorrelatedNeurons(NamedTuple):
    """The best neuron of each block that reaches a threshold.

    Attributes:
        directions: (k, d) unit neurons; signs: (k,) output signs; values: (k,) correlations.
    """

    directions: Tensor
    signs: Tensor
    values: Tensor


def correlated_neurons(x: Tensor, nu: Tensor, arrangements: Arrangements, threshold: float) -> CorrelatedNeurons:
    """Find the best neuron of every (pattern, sign) block whose correlation with `nu` is at least `threshold` > 0."""
    centre = x.T @ (arrangements.patterns.to(x.dtype) * nu[:, None])
    pull = torch.cat([-centre, centre], 1)
    left = (pull.norm(dim=0) >= threshold).nonzero()[:, 0]
    if len(left):
        left = left[_shorten(x, arrangements.patterns[:, left % len(arrangements)], pull[:, left]) >= threshold]
    neurons, signs = [], []
    for column in left.tolist():
        rows = torch.where(arrangements.patterns[:, column % len(arrangements), None], x, -x)
        inside = project_on_cone(pull[:, column], rows)
        if inside.norm() >= threshold:
            neurons.append(inside)
            signs.append(1.0 if column < len(arrangements) else -1.0)
    found = torch.stack(neurons) if neurons else x.new_zeros(0, x.shape[1])
    values = found.norm(dim=1)
    return CorrelatedNeurons(found / values[:, None], torch.tensor(signs, dtype=x.dtype), values)


class Prices(NamedTuple):
    """The blocks whose neurons correlate most with `nu`.

    Attributes:
        columns: (k,) patterns; signs: (k,) output signs; values: (k,) correlations, in falling order.
        sup: upper bound on the correlation of any block.
    """

    columns: Tensor
    signs: Tensor
    values: Tensor
    sup: float


def price(x: Tensor, nu: Tensor, arrangements: Arrangements, beta: float, count: int) -> Prices:
    """Find up to `count` (pattern, sign) blocks that a neuron should be added in: those that exceed `beta` most.

    `x` and `nu` are CPU float64. This is `dual_norm` that stops early.
    """
    centre = x.T @ (arrangements.patterns.to(x.dtype) * nu[:, None])
    pull = torch.cat([-centre, centre], 1)
    upper = pull.norm(dim=0)
    left = (upper > beta).nonzero()[:, 0]
    if len(left):
        lengths = _shorten(x, arrangements.patterns[:, left % len(arrangements)], pull[:, left])
        upper[left] = torch.minimum(upper[left], lengths)
    found: list[tuple[float, int]] = []
    for column in left[upper[left].argsort(descending=True)].tolist():
        # sorted by upper bounds: once `count` values are above what is left, they are the largest
        if upper[column] <= beta or (len(found) >= count and upper[column] <= sorted(found)[-count][0]):
            break
        rows = torch.where(arrangements.patterns[:, column % len(arrangements), None], x, -x)
        upper[column] = project_on_cone(pull[:, column], rows).norm()
        if upper[column] > beta:
            found.append((float(upper[column]), column))
        if len(found) >= 2 * count:
            break
    found = sorted(found, reverse=True)[:count]
    columns = torch.tensor([column for _, column in found], dtype=torch.long)
    return Prices(
        columns % len(arrangements),
        torch.where(columns < len(arrangements), 1.0, -1.0).to(x.dtype),
        torch.tensor([value for value, _ in found], dtype=x.dtype),
        float(upper.max()),
    )


def dual_bound(y: Tensor, nu: Tensor, sup: float, beta: float, *, loss: Loss = "squared") -> float:
    """Lower bound on the optimal value from any dual variable.

    Args:
        y: targets, (n,).
        nu: any dual variable, (n,): for the logistic loss within its domain, ``0 <= -y nu <= 1``.
        sup: the dual norm of `nu`, or an upper bound of it.
        beta: strength of the weight decay.
        loss: of the outputs.

    Returns:
        The dual value of the best feasible multiple of `nu` (squared), or of the largest one up to 1 (logistic).
    """
    y = torch.as_tensor(y).detach().to("cpu", torch.float64)
    nu = torch.as_tensor(nu).detach().to("cpu", torch.float64)
    if nu.norm() == 0:
        return float(dual_value(nu, y, loss))
    reach = beta / sup if sup > 0 else float("inf")
    if loss == "squared":
        step = float(-(nu @ y) / nu.square().sum())
        return float(dual_value(max(-reach, min(reach, step)) * nu, y, loss))
    return float(dual_value(min(1.0, reach) * nu, y, loss))


def gated_norms(x: Tensor, nu: Tensor, patterns: Tensor) -> Tensor:
    """``|x^T D_i nu|`` for each pattern, (p,): the dual norm of gated neurons, whose cones are the whole space."""
    norms: Tensor = (x.T @ (patterns.to(x.dtype) * nu[:, None])).norm(dim=0)
    return norms


def _check_dual(nu: Tensor, x: Tensor) -> Tensor:
    nu = torch.as_tensor(nu).detach().to("cpu", torch.float64)
    if nu.shape != (len(x),) or not nu.isfinite().all():
        raise ValueError(f"nu must hold one finite number for each of the {len(x)} samples; got {tuple(nu.shape)}.")
    return nu


def _enumeration_free(x: Tensor, nu: Tensor, sign: float) -> float:
    against = (-sign * nu).clamp_min(0)
    spread = torch.linalg.eigvalsh(x.T @ (against[:, None] * x))[-1].clamp_min(0)
    return float(0.5 * (x.T @ nu).norm() + 0.5 * (against.sum() * spread).sqrt())


def _reached(x: Tensor, nu: Tensor, pull: Tensor, upper: Tensor) -> float:
    """A value that some unit neuron does reach: a lower bound that lets most patterns be dismissed."""
    num_patterns = pull.shape[1] // 2
    best, neuron, sign = 0.0, None, 1.0
    for block in torch.arange(pull.shape[1]).tensor_split(-(-pull.shape[1] // max(1, _CHUNK // len(x)))):
        units = pull[:, block] / upper[block].clamp_min(torch.finfo(x.dtype).tiny)
        signs = torch.where(block < num_patterns, 1.0, -1.0)
        values = -signs * (nu @ (x @ units).clamp_min(0))
        top = int(values.argmax())
        if values[top] > best:
            best, neuron, sign = float(values[top]), units[:, top], float(signs[top])
    while neuron is not None:  # climb: the best neuron of the pattern where the last one lies
        active = x @ neuron > 0
        inside = project_on_cone(-sign * (x[active].T @ nu[active]), torch.where(active[:, None], x, -x))
        if inside.norm() <= best * (1 + 1e-12):
            break
        neuron = inside / inside.norm()
        reached = float(-sign * (nu @ (x @ neuron).clamp_min(0)))
        if reached <= best * (1 + 1e-12):
            break
        best = reached
    return best


def _shorten(x: Tensor, patterns: Tensor, pull: Tensor, steps: int = 60) -> Tensor:
    """Upper bounds on the projections' lengths: any non-negative multipliers give one, good ones a tight one."""
    step = 1.0 / torch.linalg.matrix_norm(x, ord=2).square()
    lengths = []
    for block in torch.arange(pull.shape[1]).tensor_split(-(-pull.shape[1] // max(1, _CHUNK // len(x)))):
        side = torch.where(patterns[:, block], 1.0, -1.0).to(x.dtype)
        multipliers = torch.zeros_like(side)
        ahead, momentum = multipliers, 1.0
        for _ in range(steps):  # accelerated projected gradient
            residual = pull[:, block] + x.T @ (side * ahead)
            following = (ahead - step * side * (x @ residual)).clamp_min(0)
            next_momentum = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            ahead = following + (momentum - 1) / next_momentum * (following - multipliers)
            multipliers, momentum = following, next_momentum
        lengths.append((pull[:, block] + x.T @ (side * multipliers)).norm(dim=0))
    return torch.cat(lengths)

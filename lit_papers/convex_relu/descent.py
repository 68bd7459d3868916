"""Beyond enumeration: a network of a few dozen neurons for data of any size, with an interval [bound, value].

Columns of the convex program are not listed but found: neurons with too much correlation with the residual, climbed to
from many directions. They join the network, all weights descend together, and so on until no climb finds another or the
time is up. Where descent stalls at kinks and the data are small, the convex program on the network's own patterns goes
on. What is returned is a true objective and a certified bound, not a certified optimum.
"""

import itertools
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_papers.convex_relu.arrangements import network_arrangements
from lit_papers.convex_relu.certificates import enumeration_free
from lit_papers.convex_relu.losses import Loss, loss_gradient, loss_value
from lit_papers.convex_relu.networks import merge_neurons, to_network
from lit_papers.convex_relu.problem import Problem, import_scipy_optimize
from lit_papers.convex_relu.relaxation import relaxed_bound
from lit_papers.convex_relu.solvers import solve

_CLIMBERS = 128
_JOIN = 16  # neurons that join at once
_PART = 2000  # samples that are enough to climb on at first
_SCATTERED = 64  # random neurons that join first where samples are many
_STALLED = 1e-2  # of the loss at zero: a round that gains less has met kinks
_SMALL_PROGRAM = 100_000  # entries, n x d x p, of a program that is solved in a fraction of a second


@dataclass(frozen=True, eq=False)
class Descent:
    """A network, what it reaches, and what no network can.

    Attributes:
        weight: (m, d); alpha: (m,) or (m, k); bias: a scalar or (k,), zero if the problem has none.
        objective: of the network.
        lower_bound: on the objective of any network of any width.
        sup_ratio: the largest correlation of a neuron that was found, over beta: above 1, adding it would help.
        rounds: of the search, at least 1.
        seconds: of wall-clock time that were used.
        relative_gap: (objective - lower_bound) over the loss of the network without neurons.
    """

    weight: Tensor
    alpha: Tensor
    bias: Tensor
    objective: float
    lower_bound: float
    sup_ratio: float
    rounds: int
    seconds: float
    relative_gap: float

    @property
    def gap(self) -> float:
        """Certified distance from the global optimum."""
        return self.objective - self.lower_bound


def descend(
    x: Tensor,
    y: Tensor,
    beta: float,
    *,
    loss: Loss = "squared",
    weights: Tensor | None = None,
    output_bias: bool = False,
    seconds: float = 10.0,
    max_iter: int = 50,
    start: tuple[Tensor, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Descent:
    """Find a good network for data of any size, and a lower bound.

    Args:
        x: data, (n, d).
        y: targets, (n,) or (n, k); labels as `Problem.of` takes them.
        beta: strength of the weight decay, positive.
        loss: of the outputs.
        weights: of the samples, positive, (n,).
        output_bias: add a bias to the outputs, not decayed.
        seconds: of wall-clock time, about; neurons join once even where that takes longer.
        max_iter: rounds in which neurons join, and a quarter of the steps of the bound; a limit on the work that does
            not depend on the machine.
        start: weight (m, d) and alpha (m,) or (m, k) of a network to begin with, such as that of a neighbouring beta.
        generator: of the directions that are climbed from.

    Raises:
        ValueError: the data are malformed.
    """
    problem = Problem.of(x, y, beta, loss=loss, weights=weights, output_bias=output_bias)
    return search(problem, seconds=seconds, max_iter=max_iter, start=start, generator=generator)


def search(
    problem: Problem,
    *,
    seconds: float = 10.0,
    max_iter: int = 50,
    start: tuple[Tensor, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Descent:
    """`descend` on a problem that was checked before."""
    begin = time.monotonic()
    generator = generator or torch.Generator().manual_seed(0)
    deadline, last = begin + 0.8 * seconds, begin + seconds
    x, y, beta = problem.x, problem.y, problem.beta
    weight, alpha = x.new_zeros(0, x.shape[1]), y.new_zeros(0, *y.shape[1:])
    if start is not None:
        weight, alpha = problem.scaled(*start)
    value, ratio = problem.at_zero, float("inf")
    best, rounds = (weight[:0], alpha[:0]), 1
    for count in itertools.count():
        outputs = (x @ weight.T).clamp_min(0) @ alpha
        neurons, outs, values = climb(x, problem.dual(outputs), generator, weight)
        ratio = float(values[0]) / beta if len(values) else 0.0
        if count == max_iter or (count and time.monotonic() > deadline):
            break
        rounds = count + 1
        joining = values > beta * (1 + 1e-4)
        following = value
        if joining.any():
            neurons, outs = neurons[joining], outs[joining]
            if count == 0 and len(x) > _PART:
                # the correlation with many samples is smooth, and has few peaks: too few neurons to descend from
                more, their_outs = _scattered(x, problem.dual(outputs), generator)
                neurons, outs = torch.cat([neurons, more]), torch.cat([outs, their_outs])
            mass = _first_mass(problem, outputs, (x @ neurons.T).clamp_min(0) @ outs, len(neurons))
            weight, alpha = torch.cat([weight, mass**0.5 * neurons]), torch.cat([alpha, mass**0.5 * outs])
        if len(weight) and (joining.any() or count == 0):
            weight, alpha, following = _descend(problem, weight, alpha, deadline, least=0 if count else 200)
            weight, alpha = _tidy(weight, alpha)
        # that no neuron would join says nothing where descent has stopped at kinks
        if value - following < _STALLED * problem.at_zero or count + 1 == max_iter:
            weight, alpha, following = _on_own_patterns(problem, weight, alpha, following)
        gained, value = value - following, min(value, following)
        if gained > 0:
            best = weight, alpha
        # a round that gained nothing found the neurons it has: their gradients are what is left
        if gained < 1e-6 * problem.at_zero:
            break
    weight, alpha = best
    outputs = (x @ weight.T).clamp_min(0) @ alpha
    value = float(problem.value(outputs) + 0.5 * beta * (weight.square().sum() + alpha.square().sum()))
    nu = problem.dual(outputs)
    bound = problem.bound(nu, enumeration_free(x, nu))
    if bound < value - 1e-9 * problem.at_zero:
        left = max(last - time.monotonic(), 0.1 * seconds)
        bound = max(bound, relaxed_bound(problem, nu, seconds=left, steps=4 * max_iter))
    bias = problem.bias(outputs) * problem.y_unit + problem.y_shift
    gap = max(value - bound, 0.0) / problem.at_zero if problem.at_zero > 0 else 0.0
    took = time.monotonic() - begin
    user = problem.unscaled(weight, alpha)
    return Descent(*user, bias, problem.unit * value, problem.unit * bound, ratio, rounds, took, gap)


def _first_mass(problem: Problem, outputs: Tensor, change: Tensor, count: int) -> float:
    """The mass of joining neurons, the same for all, that lowers the objective most: the best of a few dozen."""
    most = problem.at_zero / (problem.beta * count)  # more would cost more than there is to gain
    masses = [most * 0.5**power for power in range(30)]
    values = [float(problem.value(outputs + mass * change)) + problem.beta * mass * count for mass in masses]
    return masses[int(np.argmin(values))]


def _scattered(x: Tensor, nu: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random unit neurons (c, d), and unit output weights (c,) or (c, k) that lower the loss."""
    units = torch.randn(_SCATTERED, x.shape[1], generator=generator, dtype=x.dtype)
    units = torch.nn.functional.normalize(units, dim=1)
    pulls = -((x @ units.T).clamp_min(0).T @ nu.reshape(len(nu), -1))
    return units, torch.nn.functional.normalize(pulls, dim=1).reshape(len(units), *nu.shape[1:])


def climb(
    x: Tensor, nu: Tensor, generator: torch.Generator, known: Tensor, *, steps: int = 40
) -> tuple[Tensor, Tensor, Tensor]:
    """Climb to unit neurons that correlate most with `nu`, locally; of many samples, on a part of them first.

    Args:
        x: data, (n, d).
        nu: dual variable, (n,) or (n, k).
        generator: of random directions to begin with.
        known: neurons (m, d), from which the climb begins too.
        steps: most of them.

    Returns:
        Neurons (c, d), no two alike, unit output weights (c,) or (c, k) that lower the loss, and correlations (c,) in
        falling order.
    """
    flat = nu.reshape(len(nu), -1)
    rows = x[torch.randint(len(x), (_CLIMBERS // 4,), generator=generator)]
    random = torch.randn(_CLIMBERS, x.shape[1], generator=generator, dtype=x.dtype)
    starts = torch.cat([random, rows, -rows, (x.T @ flat).T, -(x.T @ flat).T, known[:_CLIMBERS]])
    units = torch.nn.functional.normalize(starts[starts.norm(dim=1) > 0], dim=1)
    if len(x) > _PART:
        part = torch.randperm(len(x), generator=generator)[:_PART]
        units, _, _ = _climbed(x[part], nu[part], units, steps)
    return _climbed(x, nu, units, steps)


def _climbed(x: Tensor, nu: Tensor, units: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    flat = nu.reshape(len(nu), -1)
    units = units.clone()
    outs = torch.nn.functional.normalize(-((x @ units.T).clamp_min(0).T @ flat), dim=1)
    reach = torch.ones(len(units), dtype=x.dtype)

    def correlation(at: Tensor, out: Tensor) -> Tensor:
        return -((x @ at.T).clamp_min(0) * (flat @ out.T)).sum(0)

    values = correlation(units, outs)
    for _ in range(steps):
        uphill = -(((x @ units.T > 0) * (flat @ outs.T)).T @ x)
        moved = torch.nn.functional.normalize(
            torch.lerp(units, torch.nn.functional.normalize(uphill, dim=1), reach[:, None]), dim=1
        )
        pulled = torch.nn.functional.normalize(-((x @ moved.T).clamp_min(0).T @ flat), dim=1)
        if flat.shape[1] == 1:
            pulled = outs  # a sign: the other one is another climb's
        following = correlation(moved, pulled)
        better = following > values * (1 + 1e-9)
        units[better], outs[better], values[better] = moved[better], pulled[better], following[better]
        reach = torch.where(better, reach, reach / 2)
        if not (reach > 1e-3).any():
            break
    chosen: list[int] = []
    for index in values.argsort(descending=True, stable=True).tolist():
        near = (units[chosen] - units[index]).norm(dim=1) < 1e-2
        if values[index] > 0 and not bool(near.any()):
            chosen.append(index)
        if len(chosen) == _JOIN:
            break
    return units[chosen], outs[chosen].reshape(len(chosen), *nu.shape[1:]), values[chosen]


def _descend(
    problem: Problem, weight: Tensor, alpha: Tensor, deadline: float, least: int
) -> tuple[Tensor, Tensor, float]:
    """L-BFGS on all weights and the output bias at once, until it is done or the time is up after `least` steps."""
    x, y, beta = problem.x, problem.y, problem.beta
    shapes = [weight.shape, alpha.shape]
    sizes = [weight.numel(), alpha.numel()]
    bias = problem.bias((x @ weight.T).clamp_min(0) @ alpha)
    free = problem.output_bias

    def objective(flat: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        u, a, c = torch.from_numpy(flat).split([*sizes, len(flat) - sum(sizes)])  # type: ignore[no-untyped-call]
        u, a = u.view(shapes[0]), a.view(shapes[1])
        hidden = (x @ u.T).clamp_min(0)
        outputs = hidden @ a + (c.view(bias.shape) if free else 0.0)
        value = loss_value(outputs, y, problem.loss, problem.weights) + 0.5 * beta * (
            u.square().sum() + a.square().sum()
        )
        nu = loss_gradient(outputs, y, problem.loss, problem.weights)
        pulls = nu @ a.T if nu.ndim == 2 else nu[:, None] * a
        slopes = [(((hidden > 0) * pulls).T @ x + beta * u).reshape(-1), (hidden.T @ nu + beta * a).reshape(-1)]
        if free:
            slopes.append(nu.sum(0).reshape(-1))
        scale = 1 / problem.at_zero
        return float(value) * scale, (torch.cat(slopes) * scale).numpy()

    counter = itertools.count(1)

    def late(_: object) -> None:
        if next(counter) > least and time.monotonic() > deadline:
            raise StopIteration

    begin = torch.cat([weight.reshape(-1), alpha.reshape(-1), *([bias.reshape(-1)] if free else [])]).numpy()
    options = {"maxiter": 500, "maxfun": 1000, "ftol": 1e-11, "gtol": 1e-9, "maxcor": 20}
    answer = import_scipy_optimize().minimize(
        objective, begin, jac=True, method="L-BFGS-B", callback=late, options=options
    )
    u, a, _ = torch.from_numpy(np.asarray(answer.x)).split([*sizes, len(begin) - sum(sizes)])  # type: ignore[no-untyped-call]
    return u.view(shapes[0]).clone(), a.view(shapes[1]).clone(), float(answer.fun) * problem.at_zero


def _on_own_patterns(problem: Problem, weight: Tensor, alpha: Tensor, value: float) -> tuple[Tensor, Tensor, float]:
    """The best network on the patterns of this one and those beside them, if that is small enough to solve."""
    if problem.num_outputs > 1 or len(alpha) * problem.x.numel() > _SMALL_PROGRAM or not bool(weight.any()):
        return weight, alpha, value
    patterns = network_arrangements(problem.x, weight)
    if len(patterns) * problem.x.numel() > _SMALL_PROGRAM:
        return weight, alpha, value
    solution = solve(problem, patterns, max_iter=20)
    if solution.value >= value:
        return weight, alpha, value
    return *problem.scaled(*to_network(solution)), solution.value


def _tidy(weight: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Drop neurons without mass; merge those of one direction, where there is one output."""
    sizes = alpha.abs() if alpha.ndim == 1 else alpha.norm(dim=1)
    masses = weight.norm(dim=1) * sizes
    there = masses > 1e-8 * masses.sum()
    weight, alpha = weight[there], alpha[there]
    return merge_neurons(weight, alpha) if alpha.ndim == 1 else (weight, alpha)

"""The paper's claims as numbers: what ``python -m lit_papers reproduce convex_relu`` calls.

Each function draws a problem from its seed and returns plain values; distances from the optimum are relative to the
loss of the network without neurons.
"""

import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_papers.convex_relu.arrangements import Arrangements, enumerate_arrangements, network_arrangements
from lit_papers.convex_relu.landscape import clarke_residual, global_optimality, path_to_optimum
from lit_papers.convex_relu.networks import objective, optimal_set, to_network
from lit_papers.convex_relu.solution import ConvexSolution
from lit_papers.convex_relu.solvers import solve_relu

REACHED = 1e-3  # what counts as the optimum after so many gradient steps
_BETA = 0.5


class Instance(NamedTuple):
    """Gaussian data with their patterns and their optimum (squared loss)."""

    x: Tensor
    y: Tensor
    patterns: Arrangements
    solution: ConvexSolution
    at_zero: float  # loss of the network without neurons


def instance(seed: int, n: int = 10, d: int = 3, beta: float = _BETA) -> Instance:
    """Draw and solve."""
    draw = np.random.default_rng(seed)
    x, y = torch.from_numpy(draw.standard_normal((n, d))), torch.from_numpy(draw.standard_normal(n))
    patterns = enumerate_arrangements(x)
    return Instance(x, y, patterns, solve_relu(x, y, beta, patterns), float(0.5 * y.square().sum()))


def train(
    problem: Instance, widths: Sequence[int], seed: int, *, steps: int, optimizer: Literal["adam", "sgd"] = "adam"
) -> tuple[Tensor, Tensor]:
    """Train networks of these widths side by side on the full batch, with a cosine schedule.

    Returns:
        weight (networks, m, d) and alpha (networks, m) for the largest width m, the others with neurons at zero, which
        stay there.
    """
    generator = torch.Generator().manual_seed(seed)
    x, y, beta = problem.x, problem.y, problem.solution.beta
    width = torch.tensor(widths)
    there = (torch.arange(max(widths)) < width[:, None]).to(x.dtype)  # (networks, m)
    weight = torch.randn(*there.shape, x.shape[1], dtype=x.dtype, generator=generator) / x.shape[1] ** 0.5
    alpha = torch.randn(there.shape, dtype=x.dtype, generator=generator) / width[:, None] ** 0.5
    weight, alpha = weight * there[:, :, None], alpha * there
    kind = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
    stepper = kind([weight, alpha], lr=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(stepper, steps)
    for _ in range(steps):  # gradients by hand: on ten samples, autograd would take most of the time
        hidden = (x @ weight.mT).relu_()  # (networks, n, m)
        residual = torch.baddbmm(-y[:, None], hidden, alpha[:, :, None])  # (networks, n, 1)
        pulls = (hidden > 0) * residual * alpha[:, None, :]
        weight.grad = torch.add(pulls.mT @ x, weight, alpha=beta)
        alpha.grad = torch.add((hidden.mT @ residual)[:, :, 0], alpha, alpha=beta)
        stepper.step()
        schedule.step()
    return weight, alpha


def values(problem: Instance, weight: Tensor, alpha: Tensor) -> Tensor:
    """Objectives (starts,) of networks side by side."""
    outputs = ((problem.x @ weight.mT).relu() @ alpha[:, :, None])[:, :, 0]  # (starts, n)
    penalty = weight.square().sum((1, 2)) + alpha.square().sum(1)
    found: Tensor = 0.5 * (outputs - problem.y).square().sum(1) + 0.5 * problem.solution.beta * penalty
    return found


def gaps(problem: Instance, weight: Tensor, alpha: Tensor) -> Tensor:
    """Relative distances (starts,) from the optimum."""
    return (values(problem, weight, alpha) - problem.solution.objective) / problem.at_zero


def optimum_is_convex(seed: int, *, width: int = 30, starts: int = 8, steps: int = 4000) -> dict[str, float]:
    """Train wide networks beside the convex program: the best comes to its optimum, and none below its bound."""
    problem = instance(seed)
    found = gaps(problem, *train(problem, [width] * starts, seed, steps=steps))
    lower = (problem.solution.objective - problem.solution.lower_bound) / problem.at_zero
    back = float(objective(problem.x, problem.y, *to_network(problem.solution), problem.solution.beta))
    return {
        "proven": problem.solution.relative_gap,
        "mapped": abs(back - problem.solution.objective) / problem.at_zero,
        "best": float(found.min()),
        "below": max(0.0, -float(found.min()) - lower),
    }


def valleys(
    seed: int, *, starts: int = 16, steps: int = 8000, optimizer: Literal["adam", "sgd"] = "adam"
) -> dict[str, float]:
    """Share of trained networks that come to the optimum, at widths from half the narrowest optimum to n + 1."""
    problem = instance(seed)
    narrowest = optimal_set(problem.x, problem.y, problem.solution).min_width
    widths = {
        "half": max(narrowest // 2, 1),
        "narrowest": narrowest,
        "twice": 2 * narrowest,
        "wide": len(problem.x) + 1,
    }
    networks = train(
        problem, [w for w in widths.values() for _ in range(starts)], seed, steps=steps, optimizer=optimizer
    )
    found: dict[str, float] = {"width": float(narrowest)}
    for name, distances in zip(widths, gaps(problem, *networks).split(starts), strict=True):
        found[name] = float((distances < REACHED).double().mean())
        found[f"{name}_gap"] = float(distances.median())
    return found


def stationary_points(seed: int, *, width: int = 3, starts: int = 8, steps: int = 20_000) -> dict[str, Any]:
    """Where narrow networks end: the distance from the optimum, and from that of the program on their own patterns."""
    problem = instance(seed)
    weight, alpha = train(problem, [width] * starts, seed, steps=steps)
    beta = problem.solution.beta
    own, residuals = [], []
    for u, a in zip(weight, alpha, strict=True):
        value = float(objective(problem.x, problem.y, u, a, beta))
        alive = u.norm(dim=1) * a.abs() > 1e-6
        program = solve_relu(problem.x, problem.y, beta, network_arrangements(problem.x, u[alive], flip_tol=0.0))
        own.append((value - program.objective) / problem.at_zero)
        residuals.append(clarke_residual(problem.x, problem.y, u, a, beta, zero_tol=1e-4))
    distances = gaps(problem, weight, alpha)
    return {
        "above": float(distances.mean()),
        "own": max(own),
        "below_own": max(0.0, -min(own)),
        "residual": max(residuals),
        "above_each": distances.tolist(),
        "own_each": own,
    }


def descending_paths(seed: int, *, starts: int = 20, points: int = 300) -> dict[str, Any]:
    """The path from random networks of width n + 1: how much the objective ever rises on it, and where it ends."""
    problem = instance(seed)
    optimal = optimal_set(problem.x, problem.y, problem.solution)
    n, d = problem.x.shape
    generator = torch.Generator().manual_seed(seed)
    curves = []
    for _ in range(starts):
        start = (torch.randn(n + 1, *shape, dtype=torch.float64, generator=generator) for shape in ((d,), ()))
        curves.append(path_to_optimum(problem.x, problem.y, *start, optimal).losses(points))
    heights = (torch.stack(curves) - problem.solution.objective) / problem.at_zero
    return {
        "rise": float(heights.diff(dim=1).max().clamp_min(0)),
        "start": float(heights[:, 0].mean()),
        "end": float(heights[:, -1].abs().max()),
        "heights": heights[:4].flatten().tolist(),  # of four of them, one after the other
    }


def optimal_networks(seed: int, *, samples: int = 30) -> dict[str, Any]:
    """Networks drawn from the set of all optima, of Gaussian data and of a square, whose optima are many.

    The square is a constant on its corners: two neurons back to back fit it, in two ways, and so do their mixtures.
    """
    corners = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    constant, patterns = torch.ones(4, dtype=torch.float64), enumerate_arrangements(corners)
    square = Instance(corners, constant, patterns, solve_relu(corners, constant, 0.3, patterns), 2.0)
    source = torch.Generator().manual_seed(seed)
    off = []
    for problem in (instance(seed), square):
        optimal = optimal_set(problem.x, problem.y, problem.solution)
        drawn = optimal.sample_masses(samples, generator=source)
        for masses in drawn:
            value = objective(problem.x, problem.y, *optimal.network(masses), problem.solution.beta)
            off.append(abs(float(value) - problem.solution.objective) / problem.at_zero)
    vertices = optimal.vertices()
    return {
        "off": max(off),
        "num_vertices": float(len(vertices)),
        "neurons": float(len(optimal.signs)),
        "masses": drawn.flatten().tolist(),
        "vertices": vertices.flatten().tolist(),
    }


def optimality_test(seed: int, *, d: int = 3, sizes: Sequence[int] = (8, 16, 32, 64)) -> dict[str, Any]:
    """What the test of global optimality costs as samples are added, and whether it decides rightly.

    It is asked about the optimum, and about that with a neuron taken away or turned, or scaled. For data in the plane,
    also what it looks at: the correlation with the optimal residual, over beta, of unit neurons all around.
    """
    seconds, patterns, wrong = [], [], 0
    for n in sizes:
        problem = instance(seed, n, d)
        weight, alpha = to_network(problem.solution)
        turned = weight.clone()
        turned[0] = turned[0].roll(1)
        changed = [(weight[1:], alpha[1:]), (turned, alpha), (1.05 * weight, alpha)]
        for optimum, network in [(True, (weight, alpha)), *((False, each) for each in changed)]:
            start = time.process_time()
            given = enumerate_arrangements(problem.x)  # of which the test is made
            answer = global_optimality(problem.x, problem.y, *network, problem.solution.beta, given)
            if optimum:
                seconds.append(time.process_time() - start)
            wrong += answer.is_global != optimum
        patterns.append(float(len(problem.patterns)))
    plane = instance(seed, 12, 2, 0.3)
    weight, alpha = to_network(plane.solution)
    residual = (plane.x @ weight.T).relu() @ alpha - plane.y

    def correlations(units: Tensor) -> Tensor:
        return (residual @ (plane.x @ units.T).relu()).abs() / plane.solution.beta

    angles = torch.linspace(-torch.pi, torch.pi, 721, dtype=torch.float64)
    return {
        "samples": [float(n) for n in sizes],
        "patterns": patterns,
        "test_seconds": seconds,
        "wrong": float(wrong),
        "around": correlations(torch.stack([angles.cos(), angles.sin()], 1)).tolist(),
        "at_neurons": correlations(torch.nn.functional.normalize(weight, dim=1)).tolist(),
        "degrees": torch.atan2(weight[:, 1], weight[:, 0]).rad2deg().tolist(),
    }

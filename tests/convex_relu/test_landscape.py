"""Global, stationary, or neither; and the way down from anywhere."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_papers.convex_relu.arrangements import enumerate_arrangements, sample_arrangements
from lit_papers.convex_relu.landscape import (
    clarke_residual,
    global_optimality,
    is_stationary,
    path_to_optimum,
    width_bounds,
)
from lit_papers.convex_relu.networks import objective, optimal_set, split_neuron
from tests.convex_relu.small import EXACT, load, normal, solved


@pytest.mark.parametrize("name", EXACT)
def test_reference_optima_are_global(name: str) -> None:
    problem = load(name)
    x, y, beta, weight, alpha = (problem[key] for key in ("x", "y", "beta", "weight", "alpha"))
    patterns = enumerate_arrangements(x)
    report = global_optimality(x, y, weight, alpha, beta, patterns)
    assert report.is_global
    assert report.exact
    assert report.gap == pytest.approx(0, abs=1e-9)
    if len(alpha):
        assert report.sup_ratio == pytest.approx(1, abs=1e-6)
        split = split_neuron(weight, alpha, 0, [0.3, 0.7])
        assert global_optimality(x, y, *split, beta, patterns).is_global
    padded = torch.cat([weight, torch.zeros(2, x.shape[1])]), torch.cat([alpha, torch.zeros(2)])
    assert global_optimality(x, y, *padded, beta, patterns).is_global
    assert clarke_residual(x, y, *padded, beta) < 1e-7
    assert is_stationary(x, y, *padded, beta, kind="directional")
    unbalanced = global_optimality(x, y, 2 * weight, alpha / 2, beta, patterns)
    assert unbalanced.is_global == (len(alpha) == 0)
    free = global_optimality(x, y, weight, alpha, beta)
    assert free.lower_bound <= problem["objective"]
    assert free.direction is free.sign is None
    assert not free.exact


def test_stationary_but_not_global() -> None:
    problem = load("stationary_not_global")
    x, y, beta, weight, alpha = (problem[key] for key in ("x", "y", "beta", "weight", "alpha"))
    report = global_optimality(x, y, weight, alpha, beta, enumerate_arrangements(x))
    assert not report.is_global
    assert report.objective == pytest.approx(problem["network_objective"], rel=1e-10)
    assert report.sup_ratio == pytest.approx(problem["sup_ratio"], rel=1e-9)
    assert report.lower_bound <= problem["objective"] < report.objective
    assert clarke_residual(x, y, weight, alpha, beta) < 1e-10
    assert is_stationary(x, y, weight, alpha, beta)
    # the neuron that the report names lowers the objective at the rate that it promises
    assert report.direction is not None
    assert report.sign is not None
    step = 1e-5
    more = torch.cat([weight, step**0.5 * report.direction[None]])
    lowered = objective(x, y, more, torch.cat([alpha, torch.tensor([report.sign * step**0.5])]).double(), beta)
    assert (float(lowered) - report.objective) / step == pytest.approx(beta * (1 - report.sup_ratio), rel=1e-3)


def test_some_patterns_bound_nothing() -> None:
    problem = load("gauss_n10_d3")
    x, y, beta, weight, alpha = (problem[key] for key in ("x", "y", "beta", "weight", "alpha"))
    some = sample_arrangements(x, 10, generator=torch.Generator().manual_seed(0))
    report, free = (global_optimality(x, y, weight, alpha, beta, patterns) for patterns in (some, None))
    assert (report.lower_bound, report.sup_ratio, report.exact) == (free.lower_bound, free.sup_ratio, False)
    assert report.direction is not None


def test_networks_without_neurons() -> None:
    problem = load("beta_above_max")
    x, y, beta = problem["x"], problem["y"], problem["beta"]
    nothing = torch.zeros(0, 3), torch.zeros(0)
    assert global_optimality(x, y, *nothing, beta, enumerate_arrangements(x)).is_global
    assert not global_optimality(x, y, *nothing, 0.5 * beta, enumerate_arrangements(x)).is_global
    assert clarke_residual(x, y, *nothing, beta) == 0


def test_residual_is_the_gradients_where_nothing_is_at_a_boundary() -> None:
    x, y, beta = normal(9, 3), normal(9, seed=1), 0.3
    weight, alpha = normal(4, 3, seed=2).requires_grad_(), normal(4, seed=3).requires_grad_()
    objective(x, y, weight, alpha, beta).backward()
    assert weight.grad is not None
    assert alpha.grad is not None
    expected = max(float(weight.grad.norm(dim=1).max()), float(alpha.grad.abs().max()))
    assert clarke_residual(x, y, weight, alpha, beta) == pytest.approx(expected, rel=1e-9)
    assert not is_stationary(x, y, weight, alpha, beta)


def test_dead_and_zero_neurons() -> None:
    x, y = torch.ones(2, 1).double(), torch.ones(2).double()
    dead = torch.tensor([[-1.0]]).double(), torch.tensor([0.5]).double()
    assert clarke_residual(x, y, *dead, 0.2) == pytest.approx(0.2)  # only decay acts on it
    assert clarke_residual(x, y, torch.zeros(1, 1), torch.zeros(1), 0.2) == 0
    assert is_stationary(x, y, torch.zeros(1, 1), torch.zeros(1), 0.2, kind="directional")


def test_a_concave_kink_is_clarke_stationary_and_descends() -> None:
    """A neuron at a sample's boundary whose activation would lower the loss on that side: a ridge in that direction."""
    # the first sample makes u = (c, 0) stationary; the second lies across the boundary, and asks to be switched on
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    y, beta = torch.tensor([1.5, 1.0]).double(), 0.5
    root = 1.0  # (c^2 - 1.5) c + beta c = 0 for c = 1
    weight, alpha = torch.tensor([[root, 0.0]]).double(), torch.tensor([root]).double()
    assert clarke_residual(x, y, weight, alpha, beta) < 1e-12
    assert is_stationary(x, y, weight, alpha, beta)
    assert not is_stationary(x, y, weight, alpha, beta, kind="directional")
    there = objective(x, y, weight, alpha, beta)
    moved = objective(x, y, weight + torch.tensor([[0.0, 1e-3]]).double(), alpha, beta)
    assert float(moved) < float(there) - 5e-4  # first order: a slope, not a curvature
    with pytest.raises(ValueError, match="kind"):
        is_stationary(x, y, weight, alpha, beta, kind="strong")  # type: ignore[arg-type]


def test_kinks_of_samples_on_one_line_add() -> None:
    """Two samples on one hyperplane, one pulling up and one pulling down more: together they are a convex kink."""
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]).double()
    y, beta = torch.tensor([1.5, 1.0, -3.0]).double(), 0.5
    weight, alpha = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([1.0]).double()
    assert is_stationary(x, y, weight, alpha, beta, kind="directional")
    for side in (1e-3, -1e-3):
        moved = objective(x, y, weight + torch.tensor([[0.0, side]]).double(), alpha, beta)
        assert float(moved) > float(objective(x, y, weight, alpha, beta))


def random_start(n: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    width = n + 1 + 5 * (seed % 3)
    weight, alpha = normal(width, d, seed=seed), normal(width, seed=1000 + seed)
    if seed % 4 == 0:  # neurons that are half dead
        weight[1], alpha[0] = 0.0, 0.0
    if seed % 5 == 0:
        weight[-1], alpha[-1] = weight[-2], alpha[-2]
    return weight, alpha


@pytest.mark.parametrize("name", EXACT)
def test_paths_never_rise_and_end_at_the_optimum(name: str) -> None:
    problem = load(name)
    x, y, beta, solution = solved(problem)
    optimal = optimal_set(x, y, solution)
    for seed in range(20 if name in ("gauss_n8_d3", "gauss_n10_d3", "line_bias_n8") else 4):
        weight, alpha = random_start(*x.shape, seed)
        path = path_to_optimum(x, y, weight, alpha, optimal)
        losses = path.losses(400)
        assert float(losses.diff().max()) <= 1e-8 * float(losses[0])
        assert float(losses[-1]) == pytest.approx(problem["objective"], rel=1e-6)
        assert float(losses[0]) == pytest.approx(float(objective(x, y, weight, alpha, beta)), rel=1e-12)
        start, end = path(0.0), path(1.0)
        assert torch.equal(start[0], weight)
        assert torch.equal(start[1], alpha)
        assert end[0].shape == weight.shape
        assert optimal.contains(*end)
        assert path.breakpoints == sorted(path.breakpoints)
        assert path.breakpoints[0] == 0
        assert path.breakpoints[-1] == 1


def test_paths_are_continuous() -> None:
    """Around every breakpoint; masses move linearly, so neurons move by the square root of the time at worst."""
    problem = load("gauss_n8_d3")
    x, y, _, solution = solved(problem)
    weight, alpha = random_start(8, 3, 0)
    path = path_to_optimum(x, y, weight, alpha, optimal_set(x, y, solution))
    for time in path.breakpoints[1:-1]:
        for step in (1e-8, 1e-12):
            (w0, a0), (w1, a1) = path(time - step), path(time + step)
            assert float((w0 - w1).norm() + (a0 - a1).norm()) < 300 * step**0.5
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
        path(1.5)


def test_paths_to_a_polytope_of_optima() -> None:
    x = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]).double()
    y = torch.ones(4, dtype=torch.float64)
    _, _, _, solution = solved({"x": x, "y": y, "beta": 0.3})
    optimal = optimal_set(x, y, solution)
    for seed in range(10):
        losses = path_to_optimum(x, y, *random_start(4, 2, seed), optimal).losses(200)
        assert float(losses.diff().max()) <= 1e-8 * float(losses[0])
        assert float(losses[-1]) == pytest.approx(solution.objective, rel=1e-6)
    bounds = width_bounds(optimal)
    assert bounds == (2, 2, 5)


def test_a_narrow_network_gets_no_path() -> None:
    problem = load("gauss_n8_d3")
    x, y, _, solution = solved(problem)
    with pytest.raises(ValueError, match=r"8 neurons.*n \+ 1 = 9"):
        path_to_optimum(x, y, normal(8, 3), normal(8), optimal_set(x, y, solution))


def test_a_valley_at_width_one() -> None:
    """With one neuron there is a spurious valley; width_bounds says from where on there is none."""
    valley = load("spurious_valley")
    x, y, beta = torch.tensor([[-1.0], [2.0]]).double(), torch.tensor([1.0, 3.0]).double(), valley["beta"]

    def best(side: float) -> float:
        masses = np.linspace(0, 5, 200_001)
        active = np.maximum(side * x[:, 0].numpy(), 0)
        fits = masses[:, None] * active
        return float((0.5 * ((fits - y.numpy()) ** 2).sum(1) + beta * masses).min())

    left, right = best(-1.0), best(1.0)
    assert left == pytest.approx(valley["left_min"], abs=1e-6)
    assert right == pytest.approx(valley["right_min"], abs=1e-6)
    # a path between them crosses a zero output weight or a zero neuron: the outputs are 0 there
    assert float(0.5 * y.square().sum()) == pytest.approx(valley["barrier"])
    _, _, _, solution = solved({"x": x, "y": y, "beta": beta})
    assert solution.objective == pytest.approx(valley["objective"])
    assert width_bounds(optimal_set(x, y, solution)) == (2, 2, 3)


def test_bad_input() -> None:
    x, y, weight, alpha = normal(5, 2), normal(5), normal(3, 2), normal(3)
    for name, position in zip(("x", "y", "weight", "alpha"), itertools.count()):
        arguments = [x, y, weight, alpha]
        arguments[position] = torch.full_like(arguments[position], torch.nan)
        for function in (global_optimality, clarke_residual, is_stationary):
            with pytest.raises(ValueError, match=name):
                function(*arguments, 0.1)
    with pytest.raises(ValueError, match="beta"):
        global_optimality(x, y, weight, alpha, -1.0)
    with pytest.raises(ValueError, match="arrangements"):
        global_optimality(x, y, weight, alpha, 0.1, enumerate_arrangements(normal(4, 2)))

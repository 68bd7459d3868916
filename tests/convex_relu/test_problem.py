"""The problem in units of its own, the losses and their conjugates, and what is told apart by value."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_papers.convex_relu.arrangements import Arrangements, enumerate_arrangements, sample_arrangements
from lit_papers.convex_relu.landscape import global_optimality, path_to_optimum
from lit_papers.convex_relu.losses import LOSSES, best_bias, dual_value, loss_gradient, loss_value, without_mean
from lit_papers.convex_relu.networks import objective, optimal_set, to_network
from lit_papers.convex_relu.problem import Problem, check_beta
from lit_papers.convex_relu.programs import solve_relu_program
from lit_papers.convex_relu.solvers import solve_relu
from tests.convex_relu.small import load, normal


def targets(loss: Any, n: int = 12) -> Tensor:
    if loss == "squared":
        return normal(n, 2, seed=5)
    if loss == "logistic":
        return torch.where(normal(n, seed=5) > 0, 1.0, -1.0).double()
    return torch.nn.functional.one_hot(torch.arange(n) % 3).double()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_conjugates_and_biases(loss: Any, weighted: bool) -> None:
    y = targets(loss)
    weights = torch.linspace(0.5, 3, 12).double() if weighted else None
    z = normal(*y.shape, seed=6).requires_grad_()
    value = loss_value(z, y, loss, weights)
    (slope,) = torch.autograd.grad(value, z)
    z = z.detach()
    nu = loss_gradient(z, y, loss, weights)
    torch.testing.assert_close(nu, slope)
    # Fenchel and Young: loss(z) + loss*(nu) = nu . z at the gradient
    assert float(loss_value(z, y, loss, weights) - dual_value(nu, y, loss, weights)) == pytest.approx(
        float((nu * z).sum())
    )
    bias = best_bias(z, y, loss, weights)
    moved = loss_gradient(z + bias, y, loss, weights)
    torch.testing.assert_close(moved.sum(0), torch.zeros_like(moved.sum(0)), rtol=0, atol=1e-9)
    centred = without_mean(nu, y, loss, weights)
    torch.testing.assert_close(centred.sum(0), torch.zeros_like(centred.sum(0)), rtol=0, atol=1e-12)
    assert float(dual_value(centred, y, loss, weights)) > -math.inf


def test_a_duplicated_sample_is_a_weight_of_two() -> None:
    x, y = normal(6, 2), normal(6, seed=1)
    twice = torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    weighted, copied = (
        Problem.of(x, y, 0.3, weights=twice),
        Problem.of(torch.cat([x[:1], x]), torch.cat([y[:1], y]), 0.3),
    )
    assert weighted.at_zero * weighted.unit == pytest.approx(copied.at_zero * copied.unit)
    assert weighted.name != Problem.of(x, y, 0.3).name


@pytest.mark.parametrize(("x_scale", "y_scale"), [(1e-12, 1e12), (1e12, 1e-12), (3e-7, 2e-7)])
def test_units(x_scale: float, y_scale: float) -> None:
    """The optimum is the square of the targets' unit, the same network passes, and a zero network does not."""
    problem = load("gauss_n8_d3")
    x, y, beta = x_scale * problem["x"], y_scale * problem["y"], x_scale * y_scale * problem["beta"]
    patterns = enumerate_arrangements(x)
    for solve in (solve_relu_program, solve_relu):
        solution = solve(x, y, beta, patterns)
        assert solution.objective / y_scale**2 == pytest.approx(problem["objective"], rel=1e-9)
        assert solution.relative_gap <= 1e-9
        assert solution.beta == beta
    network = to_network(solution)
    assert global_optimality(x, y, *network, beta, patterns).is_global
    assert not global_optimality(x, y, torch.zeros(1, 3), torch.zeros(1), beta, patterns).is_global
    assert float(objective(x, y, *network, beta)) == pytest.approx(solution.objective, rel=1e-9)
    optimal = optimal_set(x, y, solution)
    assert optimal.min_width == problem["min_width"]
    assert optimal.contains(*network)
    size = (y_scale / x_scale) ** 0.5
    path = path_to_optimum(x, y, size * normal(9, 3), size * normal(9), optimal)
    assert float(path.losses(50)[-1]) == pytest.approx(solution.objective, rel=1e-6)


def test_numbers_of_every_kind_are_numbers() -> None:
    for beta in (0.5, np.float32(0.5), np.float64(0.5), torch.tensor(0.5), torch.tensor([0.5]), np.array(0.5)):
        assert check_beta(beta) == 0.5
    for beta in (True, "0.5", None, [0.5, 0.5], torch.ones(2), 0, -1.0, math.nan, math.inf, np.float64("nan")):
        with pytest.raises(ValueError, match=r"^beta must be a positive finite number"):
            check_beta(beta)
    x = normal(5, 2).float()
    assert objective(x, normal(5), normal(3, 2), normal(3), 0.1).dtype == torch.float32  # that of x
    with pytest.raises(ValueError, match=r"beta=.* is nothing beside"):
        Problem.of(1e200 * normal(5, 2), 1e150 * normal(5), 1e-300)


def test_patterns_of_other_data_are_refused() -> None:
    raw, y = normal(10, 3) + 2, normal(10, seed=1)
    x = (raw - raw.mean(0)) / raw.std(0)
    stale, right = enumerate_arrangements(raw), enumerate_arrangements(x)
    assert len(enumerate_arrangements(x.float().double())) == len(right)
    for solve in (solve_relu_program, solve_relu):
        with pytest.raises(ValueError, match=r"^arrangements: .* of other data"):
            solve(x, y, 0.1, stale)
    with pytest.raises(ValueError, match=r"^arrangements: .* of other data"):
        global_optimality(x, y, normal(3, 3), normal(3), 0.1, stale)
    with pytest.raises(ValueError, match="from the same x"):
        right.union(stale)
    by_hand = Arrangements(stale.patterns, stale.gates, exact=False)  # nobody says of what: the gates tell
    with pytest.raises(ValueError, match="of other data"):
        solve_relu(x, y, 0.1, by_hand)
    assert solve_relu(raw, y, 0.1, by_hand).gap >= 0
    with pytest.raises(ValueError, match="can say that patterns are all"):
        Arrangements(stale.patterns, stale.gates, exact=True)
    assert right.union(sample_arrangements(x, 5)).exact
    solution = solve_relu(x, y, 0.1, right)
    with pytest.raises(ValueError, match="another problem"):
        optimal_set(x, 2 * y, solution)
    with pytest.raises(ValueError, match="another problem"):
        path_to_optimum(x, 2 * y, normal(11, 3), normal(11), optimal_set(x, y, solution))


def test_bad_problems() -> None:
    x = normal(4, 2)
    with pytest.raises(ValueError, match=r"^weights must be 4 positive"):
        Problem.of(x, normal(4), 0.1, weights=torch.tensor([1.0, 0.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match="row of class probabilities"):
        Problem.of(x, normal(4, 3), 0.1, loss="cross_entropy")
    with pytest.raises(ValueError, match="has 2 columns"):
        solve_relu(x, normal(4, 2), 0.1, enumerate_arrangements(x))


def test_long_weights_of_numpy_name_the_problem() -> None:
    x, y = torch.ones(3000, 1), torch.ones(3000)
    ones, other = np.ones(3000), np.ones(3000)
    other[1500] = 2.0  # which the text of an array leaves out
    assert Problem.of(x, y, 1.0, weights=ones).name != Problem.of(x, y, 1.0, weights=other).name
    assert Problem.of(x, y, 1.0, weights=ones).name == Problem.of(x, y, 1.0, weights=torch.ones(3000)).name

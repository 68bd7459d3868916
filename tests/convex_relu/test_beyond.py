"""Where patterns are too many: relaxed bounds, and networks found by climbing."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from lit_papers.convex_relu.arrangements import enumerate_arrangements
from lit_papers.convex_relu.certificates import dual_norm, enumeration_free
from lit_papers.convex_relu.cones import project_on_cone, project_on_cones
from lit_papers.convex_relu.descent import climb, descend
from lit_papers.convex_relu.landscape import global_optimality
from lit_papers.convex_relu.lens import _steps
from lit_papers.convex_relu.losses import without_mean
from lit_papers.convex_relu.networks import network_output, objective
from lit_papers.convex_relu.problem import Problem
from lit_papers.convex_relu.relaxation import _Relaxation, largest_on_the_sphere, relaxed_bound
from lit_papers.convex_relu.solvers import solve
from tests.convex_relu.small import load, normal


def test_many_projections_are_one_by_one_projections() -> None:
    x = torch.cat([normal(12, 4), torch.zeros(1, 4).double(), normal(12, 4)[:2], -normal(12, 4)[:1]])
    patterns = enumerate_arrangements(x).patterns
    vectors, side = normal(patterns.shape[1], 4, seed=1), torch.where(patterns.T, 1.0, -1.0).double()
    found = project_on_cones(vectors, side, x)
    assert (side * (found.points @ x.T)).min() >= -1e-11
    for index in range(0, len(vectors), 7):
        alone = project_on_cone(vectors[index], side[index][:, None] * x)
        torch.testing.assert_close(found.points[index], alone, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.upper, found.points.norm(dim=1))
    least = float(found.upper.median())
    early = project_on_cones(vectors, side, x, least=least)
    wanted = found.upper >= least
    torch.testing.assert_close(early.points[wanted], found.points[wanted])
    assert (early.upper >= found.upper - 1e-12).all()  # given up on, they are bounds still
    assert (early.upper[~wanted] < least).all()
    tiny = project_on_cones(1e-200 * vectors, side, x, least=1e200)  # whose quotient is no float64
    torch.testing.assert_close(tiny.points, 1e-200 * vectors)


def test_quadratic_functions_on_the_sphere() -> None:
    linear, quadratic = normal(20, 3), normal(20, 3, 3, seed=1)
    quadratic = quadratic + quadratic.transpose(1, 2)
    linear[:5] = 0.0  # the hard case
    upper, points = largest_on_the_sphere(linear, quadratic)
    units = torch.nn.functional.normalize(normal(100_000, 3), dim=1)
    brute = (units @ linear.T + torch.einsum("ud,bde,ue->ub", units, quadratic, units)).max(0).values
    assert (upper >= brute - 1e-9).all()
    torch.testing.assert_close(upper, brute, rtol=1e-2, atol=1e-2)
    reached = (linear * points).sum(1) + torch.einsum("bd,bde,be->b", points, quadratic, points)
    torch.testing.assert_close(reached, upper, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("output_bias", [False, True])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_relaxed_bounds_are_below_the_optimum_and_above_the_plain_one(loss: Any, output_bias: bool) -> None:
    for seed in range(3):
        x, y = normal(12, 3, seed=seed), normal(12, seed=seed + 9)
        y = torch.where(y > 0, 1.0, -1.0).double() if loss == "logistic" else y
        problem = Problem.of(x, y, 0.8, loss=loss, output_bias=output_bias)
        optimum = solve(problem, enumerate_arrangements(x))
        nu = problem.dual(torch.zeros_like(problem.y))
        plain = problem.bound(nu, enumeration_free(problem.x, nu))
        bound = relaxed_bound(problem, seconds=60, steps=30)
        assert plain <= bound <= optimum.value + 1e-9
        assert optimum.relative_gap <= 1e-6


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
def test_several_outputs(loss: Any) -> None:
    """A bound holds for what plain descent reaches from anywhere, and the dual norm for all neurons."""
    x, labels = normal(30, 3), torch.arange(30) % 3
    y = torch.nn.functional.one_hot(labels).double()
    found = descend(x, y, 0.3, loss=loss, output_bias=True, seconds=120, max_iter=3)
    assert 0 < found.lower_bound < found.objective
    value = objective(x, y, found.weight, found.alpha, 0.3, loss=loss, bias=found.bias)
    assert float(value) == pytest.approx(found.objective, rel=1e-9)
    torch.manual_seed(0)
    layers = [(0.5 * torch.randn(*shape)).double().requires_grad_() for shape in ((20, 3), (20, 3), (3,))]
    steps = torch.optim.Adam(layers, lr=0.03)
    for _ in range(400):
        steps.zero_grad()
        reached = objective(x, y, layers[0], layers[1], 0.3, loss=loss, bias=layers[2])
        reached.backward()
        steps.step()
    assert found.objective <= float(reached.detach()) * 1.001
    report = global_optimality(x, y, layers[0], layers[1], 0.3, loss=loss, bias=layers[2])
    assert report.objective == pytest.approx(float(reached.detach()), rel=0.02)
    assert report.lower_bound <= found.objective
    nu = normal(30, 3, seed=4)
    units = torch.nn.functional.normalize(normal(20_000, 3), dim=1)
    brute = float((nu.T @ (x @ units.T).clamp_min(0)).norm(dim=0).max())
    patterns = enumerate_arrangements(x)
    assert brute <= dual_norm(x, nu, patterns).value <= dual_norm(x, nu).value * (1 + 1e-9)


def test_descent_comes_near_the_optimum() -> None:
    problem = load("gauss_n10_d3")
    x, y, beta = problem["x"], problem["y"], problem["beta"]
    found = descend(x, y, beta, seconds=5)
    assert problem["objective"] <= found.objective + 1e-9
    assert found.objective <= 1.01 * problem["objective"]
    assert found.lower_bound <= problem["objective"]
    warm = descend(x, y, 0.9 * beta, seconds=5, start=(found.weight, found.alpha))
    assert warm.objective < found.objective
    zero = descend(x, y, 1e3)
    assert len(zero.alpha) == 0
    assert zero.gap == pytest.approx(0, abs=1e-9 * zero.objective)


@pytest.mark.parametrize(
    ("loss", "beta", "seed"), [("squared", 0.1, 1), ("logistic", 0.1, 1), ("logistic", 0.5, 1), ("logistic", 0.5, 0)]
)
def test_kinks_do_not_stop_the_search(loss: Any, beta: float, seed: int) -> None:
    """Descent alone ends 16, .5, .02 and .15 % above these optima: the program on its own patterns goes on from there.

    In the last no neuron would join where descent stops, which is no optimum all the same.
    """
    x, y = normal(10, 3, seed=seed), normal(10, seed=seed + 9)
    y = torch.where(y > 0, 1.0, -1.0).double() if loss == "logistic" else y
    optimum = solve(Problem.of(x, y, beta, loss=loss), enumerate_arrangements(x)).objective
    found = descend(x, y, beta, loss=loss, seconds=60, max_iter=10)
    assert found.objective == pytest.approx(optimum, rel=1e-9)
    assert found.lower_bound <= optimum * (1 + 1e-12)


def test_many_samples_have_few_peaks_and_need_more_neurons_than_those() -> None:
    """Beside Adam on 80 neurons that begin at random; from the peaks alone one round ends a fifth above it."""
    x = normal(2100, 8)
    y = x[:, 0].sin() + x[:, 1].abs() * x[:, 2]
    found = descend(x, y, 1.0, seconds=120, max_iter=1)
    torch.manual_seed(0)
    layers = [(0.5 * torch.randn(*shape)).double().requires_grad_() for shape in ((80, 8), (80,))]
    steps = torch.optim.Adam(layers, lr=0.02)
    for _ in range(500):
        steps.zero_grad()
        reached = objective(x, y, *layers, 1.0)
        reached.backward()
        steps.step()
    assert found.objective <= float(reached.detach())
    classes = torch.nn.functional.one_hot((y > 0).long() + (y > 1).long(), 3)
    several = descend(x, classes, 5.0, loss="cross_entropy", output_bias=True, seconds=120, max_iter=1)
    assert several.alpha.shape[1] == 3
    assert 0 < several.lower_bound < several.objective


def test_climbing_comes_near_the_largest_correlation_and_never_above() -> None:
    """It stops at kinks, so it is no proof; where patterns can be enumerated they tell how far it came."""
    for seed in range(3):
        x, nu = normal(12, 3, seed=seed), normal(12, seed=seed + 9)
        units, signs, values = climb(x, nu, torch.Generator().manual_seed(0), x.new_zeros(0, 3))
        exact = dual_norm(x, nu, enumerate_arrangements(x))
        assert 0.95 * exact.value <= float(values[0]) <= exact.value * (1 + 1e-9)
        torch.testing.assert_close(values, -signs * (nu @ network_columns(x, units)))


def network_columns(x: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    ones = torch.eye(len(units), dtype=x.dtype)
    return torch.stack([network_output(x, units, row) for row in ones], 1)


def test_the_ascent_has_a_gradient_where_a_class_has_no_excess() -> None:
    y = torch.nn.functional.one_hot(torch.arange(6) % 3).double()
    nu = torch.zeros(6, 3, dtype=torch.float64)
    nu[0, 0], nu[0, 1] = 0.1 - 1.0, 0.9  # the third class has an excess of zero exactly
    nu = nu.requires_grad_()
    balanced = without_mean(nu, y, "cross_entropy")
    torch.testing.assert_close(balanced.sum(0), torch.zeros(3, dtype=torch.float64))
    balanced.square().sum().backward()
    assert nu.grad is not None
    assert nu.grad.isfinite().all()


def test_the_upper_bound_of_a_relaxation_and_its_gradient_are_those_of_the_whole_matrices() -> None:
    """They are built one by one, and not differentiated through."""
    problem = Problem.of(normal(9, 3), torch.eye(3, dtype=torch.float64).repeat(3, 1), 0.1, loss="cross_entropy")
    nu = problem.dual(torch.zeros_like(problem.y)).requires_grad_()
    relaxed = _Relaxation(problem, nu.detach())
    found = relaxed.upper(nu)
    pulls, widths = relaxed._pulls(nu), relaxed.logs.exp()
    curved = pulls.clamp_min(0) / (2 * widths) - (-pulls).clamp_min(0) / relaxed.lengths
    linear, quadratic = pulls @ relaxed.x, torch.einsum("bn,nd,ne->bde", curved, relaxed.x, relaxed.x)
    highest, neurons = largest_on_the_sphere(linear.detach(), quadratic.detach())
    fixed = (linear * neurons).sum(1) + torch.einsum("bd,bde,be->b", neurons, quadratic, neurons)
    each = 0.5 * (0.5 * (pulls.clamp_min(0) * widths).sum(1) + fixed + (highest - fixed).detach()).clamp_min(0)
    expected = torch.maximum(*each.tensor_split(2)).square().sum().sqrt()
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    wanted = (nu, relaxed.logs)
    for one, other in zip(torch.autograd.grad(found, wanted), torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "features", "outputs", "steps"), [(569, 31, 1, 200), (1797, 64, 10, 10), (60_000, 784, 10, None)]
)
def test_a_bound_takes_about_the_time_that_it_may(size: int, features: int, outputs: int, steps: int | None) -> None:
    """Ten steps at the size of MNIST took a hundred seconds, and memory for twenty copies of the data."""
    x, y = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    shape = {"x": x.expand(size, features), "y": y[:, None].expand(size, outputs) if outputs > 1 else y.expand(size)}
    assert _steps(replace(Problem.of(x + 1, y, 0.1), **shape), 3.0) == steps  # type: ignore[arg-type]

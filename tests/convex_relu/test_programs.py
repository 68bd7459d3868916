"""Optimal values against closed forms and certified references, and certificates that cannot lie."""

import builtins
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_papers.convex_relu import programs
from lit_papers.convex_relu.arrangements import Arrangements, enumerate_arrangements, sample_arrangements
from lit_papers.convex_relu.certificates import price
from lit_papers.convex_relu.cones import project_on_cone
from lit_papers.convex_relu.losses import loss_gradient
from lit_papers.convex_relu.networks import network_output, objective, to_network
from lit_papers.convex_relu.programs import (
    ConvexSolveError,
    dual_bound,
    dual_norm,
    solve_gated_program,
    solve_relu_program,
)
from lit_papers.convex_relu.solvers import solve_gated, solve_gated_fista, solve_relu
from tests.convex_relu.small import EXACT, load, normal, sampled, solved


@pytest.mark.parametrize("name", EXACT)
def test_reference_optima(name: str) -> None:
    problem = load(name)
    x, y, beta, solution = solved(problem)
    assert solution.exact
    assert solution.objective == pytest.approx(problem["objective"], rel=1e-10)
    assert solution.gap <= 1e-10
    assert solution.lower_bound <= problem["objective"] + 1e-12
    torch.testing.assert_close(solution.dual, problem["dual"], rtol=0, atol=1e-7)
    weight, alpha = to_network(solution)
    assert float(objective(x, y, weight, alpha, beta)) == pytest.approx(solution.objective, rel=1e-8)
    unpolished = solve_relu_program(x, y, beta, solution.arrangements, polish=False)
    assert unpolished.objective == pytest.approx(problem["objective"], rel=1e-6)
    assert unpolished.gap <= 1e-6


@pytest.mark.parametrize("name", EXACT)
def test_the_active_set_finds_the_same(name: str) -> None:
    problem = load(name)
    solution = solve_relu(problem["x"], problem["y"], problem["beta"], enumerate_arrangements(problem["x"]))
    assert solution.objective == pytest.approx(problem["objective"], rel=1e-10)
    assert solution.gap <= 1e-9


def test_sampled_patterns() -> None:
    problem = load("sampled_n200_d20_p100")
    solution = solve_relu(problem["x"], problem["y"], problem["beta"], sampled(problem))
    assert solution.objective == pytest.approx(problem["subsampled_objective"], rel=1e-8)
    assert solution.relative_gap <= 1e-6
    assert not solution.exact
    assert solution.objective > problem["network_objective"]  # a subset of the patterns bounds nothing


@pytest.mark.parametrize("solve", [solve_gated, solve_gated_fista, solve_gated_program])
def test_gated_reference(solve: Any) -> None:
    problem = load("gated_n200_d20_p100")
    solution = solve(problem["x"], problem["y"], problem["beta"], sampled(problem))
    assert solution.objective == pytest.approx(problem["objective"], rel=1e-6)
    assert solution.relative_gap <= 1e-6
    assert solution.weights.shape == (1, 20, 100)


def test_gated_to_the_floor_and_at_other_scales() -> None:
    problem = load("gated_n200_d20_p100")
    x, y, beta, patterns = problem["x"], problem["y"], problem["beta"], sampled(problem)
    assert solve_gated(x, y, beta, patterns, tol=1e-14).relative_gap <= 1e-10
    for x_scale, y_scale in ((1e3, 1.0), (1.0, 1e3), (1e-3, 1e-2)):
        solution = solve_gated(x_scale * x, y_scale * y, x_scale * y_scale * beta, patterns, tol=1e-9)
        assert solution.objective == pytest.approx(y_scale**2 * problem["objective"], rel=1e-8)


def test_gated_is_a_relaxation() -> None:
    _, _, beta, solution = solved(problem := load("gauss_n10_d3"))
    gated = solve_gated(problem["x"], problem["y"], beta, solution.arrangements)
    assert gated.objective < 0.9 * solution.objective


@pytest.mark.parametrize("seed", range(3))
def test_one_dimension_in_closed_form(seed: int) -> None:
    x, y, beta = normal(9, 1, seed=seed), normal(9, seed=seed + 50), 0.4
    expected = 0.0
    for side in (x[:, 0] > 0, x[:, 0] < 0):
        a, b = float(x[side].square().sum()), float(x[side, 0].abs() @ y[side])
        c = math.copysign(max(abs(b) - beta, 0.0), b) / a
        expected += float(0.5 * (x[side, 0].abs() * c - y[side]).square().sum()) + beta * abs(c)
    assert solve_relu_program(x, y, beta, enumerate_arrangements(x)).objective == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_identity_in_closed_form(beta: float) -> None:
    y = normal(4)

    def h(t: float) -> float:
        return t * t / 2 if t <= beta else beta * t - beta**2 / 2

    x = torch.eye(4, dtype=torch.float64)
    expected = sum(h(float((sign * y).clamp_min(0).norm())) for sign in (1, -1))
    assert solve_relu_program(x, y, beta, enumerate_arrangements(x)).objective == pytest.approx(expected, rel=1e-9)


def value(x: Tensor, y: Tensor, beta: float) -> float:
    return solve_relu_program(x, y, beta, enumerate_arrangements(x)).objective


def test_invariances() -> None:
    problem = load("gauss_n8_d3")
    x, y, beta, optimum = problem["x"], problem["y"], problem["beta"], problem["objective"]
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(normal(3, 3)).Q
    assert value(x[order], y[order], beta) == pytest.approx(optimum, rel=1e-9)
    assert value(x @ rotation, y, beta) == pytest.approx(optimum, rel=1e-9)
    assert value(7 * x, y, 7 * beta) == pytest.approx(optimum, rel=1e-9)
    assert value(x, 7 * y, 7 * beta) == pytest.approx(49 * optimum, rel=1e-9)
    assert value(torch.cat([x, torch.zeros(8, 2)], 1), y, beta) == pytest.approx(optimum, rel=1e-9)
    twice = torch.cat([x, x[:1]]), torch.cat([y, y[:1]])
    twice[0][[0, 8]] *= 0.5**0.5
    twice[1][[0, 8]] *= 0.5**0.5
    assert value(*twice, beta) == pytest.approx(optimum, rel=1e-9)


@pytest.mark.parametrize("name", ["gauss_n8_d3", "gauss_n10_d3", "identity_n4"])
@pytest.mark.parametrize("solve", [solve_relu_program, solve_relu])
def test_logistic(name: str, solve: Any) -> None:
    """Against plain gradient descent on a wide network, from below and above."""
    problem = load(name)
    x, beta = problem["x"], 0.05
    y = torch.where(problem["y"] > 0, 1.0, -1.0).double()
    solution = solve(x, y, beta, enumerate_arrangements(x), loss="logistic")
    assert solution.gap <= 1e-8
    torch.manual_seed(0)
    weight, alpha = normal(40, x.shape[1]).requires_grad_(), normal(40, seed=1).requires_grad_()
    optimizer = torch.optim.Adam([weight, alpha], lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        optimizer.zero_grad()
        reached = objective(x, y, weight, alpha, beta, loss="logistic")
        reached.backward()
        optimizer.step()
        schedule.step()
    assert 0 <= float(reached.detach()) - solution.objective < 1e-2 * solution.objective


def by_brute_force(x: Tensor, nu: Tensor) -> float:
    units = torch.nn.functional.normalize(normal(200_000, x.shape[1]), dim=1)
    return float(((x @ units.T).clamp_min(0).T @ nu).abs().max())


@pytest.mark.parametrize("seed", range(4))
def test_dual_norm(seed: int) -> None:
    x, nu = normal(9, 3, seed=seed), normal(9, seed=seed + 9)
    arrangements = enumerate_arrangements(x)
    exact = dual_norm(x, nu, arrangements)
    brute = by_brute_force(x, nu)
    assert brute <= exact.value + 1e-9
    assert exact.value <= brute * 1.001
    assert exact.direction is not None
    assert exact.sign is not None
    assert exact.pattern is not None
    assert float(-exact.sign * (nu @ (x @ exact.direction).clamp_min(0))) == pytest.approx(exact.value, rel=1e-9)
    # screened or not, over some patterns or all: the maximum over cones
    single = [
        dual_norm(x, nu, Arrangements(arrangements.patterns[:, [i]], arrangements.gates[:, [i]], exact=False)).value
        for i in range(len(arrangements))
    ]
    assert max(single) == pytest.approx(exact.value, rel=1e-9)
    assert single[exact.pattern] == pytest.approx(exact.value, rel=1e-9)
    free = dual_norm(x, nu)
    assert exact.value <= free.value <= 5 * exact.value
    assert free.direction is free.sign is free.pattern is None


def test_pricing_finds_the_worst_blocks() -> None:
    x, nu = normal(12, 3), normal(12, seed=1)
    arrangements = enumerate_arrangements(x)
    exact = dual_norm(x, nu, arrangements)
    prices = price(x, nu, arrangements, least=0.3 * exact.value)
    assert float(prices.values[0]) == pytest.approx(exact.value, rel=1e-9)
    assert (prices.values.diff() <= 0).all()
    assert prices.sup >= exact.value * (1 - 1e-12)
    # one by one, by a library's non-negative least squares
    for sign in (1.0, -1.0):
        for column in range(len(arrangements)):
            rows = torch.where(arrangements.patterns[:, column, None], x, -x)
            length = float(project_on_cone(-sign * (x.T @ (arrangements.patterns[:, column] * nu)), rows).norm())
            listed = prices.values[(prices.columns == column) & (prices.signs == sign)].tolist()
            assert listed == ([pytest.approx(length, rel=1e-9)] if length >= 0.3 * exact.value else [])
    none = price(x, nu, arrangements, least=1.01 * exact.value)
    assert len(none.columns) == 0
    assert none.sup <= 1.01 * exact.value


@pytest.mark.parametrize("name", ["gauss_n8_d3", "gauss_n10_d3", "line_bias_n8"])
def test_bounds_of_random_networks_never_exceed_the_optimum(name: str) -> None:
    problem = load(name)
    x, y, beta, d = problem["x"], problem["y"], problem["beta"], problem["x"].shape[1]
    arrangements = enumerate_arrangements(x)
    for seed in range(100):
        weight, alpha = normal(5, d, seed=seed), normal(5, seed=1000 + seed)
        nu = loss_gradient(network_output(x, weight, alpha), y, "squared")
        for patterns in (arrangements, None):
            assert dual_bound(y, nu, dual_norm(x, nu, patterns).value, beta) <= problem["objective"] + 1e-9


def test_projection_on_cones() -> None:
    rows = normal(40, 6)
    rows = torch.cat([rows, rows[:5], -rows[:3], torch.zeros(1, 6, dtype=torch.float64)])
    for seed in range(20):
        c = normal(6, seed=seed)
        point = project_on_cone(c, rows)
        assert (rows @ point).min() >= -1e-9
        assert abs(float(point @ (point - c))) <= 1e-9 * float(c.square().sum())
    inside = project_on_cone(c, torch.outer(torch.ones(3, dtype=torch.float64), c))
    assert inside is c


def test_edge_cases() -> None:
    x, y = normal(5, 2), normal(5, seed=1)
    nothing = torch.zeros(4, 2, dtype=torch.float64)
    assert value(nothing, y[:4], 0.1) == pytest.approx(float(0.5 * y[:4].square().sum()))
    zero = solve_relu_program(x, torch.zeros(5), 0.3, enumerate_arrangements(x))
    assert zero.objective == zero.gap == 0
    assert [part.shape for part in to_network(zero)] == [(0, 2), (0,)]
    beta_max = dual_norm(x, -y, enumerate_arrangements(x)).value
    above = solve_relu(x, y, beta_max * 1.0001, enumerate_arrangements(x))
    assert above.objective == pytest.approx(float(0.5 * y.square().sum()))
    assert not above.weights.any()
    assert solve_gated(x, y, 1e3, enumerate_arrangements(x)).gap == 0
    duplicated = torch.cat([x, x, -x, torch.zeros(1, 2)]), torch.cat([y, y, y, y[:1]])
    assert solve_relu_program(*duplicated, 0.3, enumerate_arrangements(duplicated[0])).gap <= 1e-9


@pytest.mark.parametrize("solve", [solve_relu_program, solve_relu, solve_gated_program, solve_gated, solve_gated_fista])
def test_bad_input(solve: Any) -> None:
    x, y = normal(5, 2), normal(5, seed=1)
    patterns = enumerate_arrangements(x)
    with pytest.raises(ValueError, match=r"^x has 10 entries"):
        solve(x * torch.nan, y, 0.1, patterns)
    with pytest.raises(ValueError, match=r"^y must have one target for each of the 5"):
        solve(x, y[:4], 0.1, patterns)
    with pytest.raises(ValueError, match=r"^y has 5 entries"):
        solve(x, y / 0, 0.1, patterns)
    for beta in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"^beta must be a positive"):
            solve(x, y, beta, patterns)
    with pytest.raises(ValueError, match=r"^arrangements: "):
        solve(x, y, 0.1, enumerate_arrangements(normal(5, 3)))


def test_bad_targets_of_the_logistic_loss() -> None:
    x = normal(5, 2)
    with pytest.raises(ValueError, match=r"^y must be -1 or \+1"):
        solve_relu_program(x, torch.ones(5) * 0, 0.1, enumerate_arrangements(x), loss="logistic")
    with pytest.raises(ValueError, match=r"^loss must be"):
        solve_relu_program(x, torch.ones(5), 0.1, enumerate_arrangements(x), loss="hinge")  # type: ignore[arg-type]


def test_too_few_steps_warn_and_return_the_best() -> None:
    problem = load("gated_n200_d20_p100")
    with pytest.warns(RuntimeWarning, match="certified gap of"):
        solution = solve_gated(problem["x"], problem["y"], problem["beta"], sampled(problem), max_iter=1)
    assert solution.gap > 0
    problem = load("gauss_n12_d4")
    with pytest.warns(RuntimeWarning, match="certified gap of"):
        solve_relu(problem["x"], problem["y"], problem["beta"], enumerate_arrangements(problem["x"]), max_iter=1)


def test_solvers_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A solver that says it is done at a wrong point is passed over; if all do, there is an error and no number."""
    import cvxpy

    problem = load("gauss_n8_d3")
    x, y, beta = problem["x"], problem["y"], problem["beta"]
    true_solve, asked = cvxpy.Problem.solve, []

    def solve(self: Any, solver: str, **options: Any) -> Any:
        asked.append(solver)
        true_solve(self, solver=solver, **options)
        if solver in wrong:
            for variable in self.variables():
                variable.value = variable.value * 1.2

    monkeypatch.setattr(cvxpy.Problem, "solve", solve)
    wrong = {"CLARABEL"}
    good = solve_relu_program(x, y, beta, enumerate_arrangements(x), polish=False)
    assert asked == ["CLARABEL", "SCS"]
    assert good.objective == pytest.approx(problem["objective"], rel=1e-6)
    wrong = {"CLARABEL", "SCS"}
    with pytest.raises(ConvexSolveError, match="above our lower bound") as failure:
        solve_relu_program(x, y, beta, enumerate_arrangements(x), polish=False)
    assert "CLARABEL: optimal" in failure.value.status


def test_a_solver_that_fails_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    import cvxpy

    def solve(self: Any, **options: Any) -> Any:
        raise cvxpy.SolverError("out of order")

    monkeypatch.setattr(cvxpy.Problem, "solve", solve)
    problem = load("gauss_n8_d3")
    with pytest.raises(ConvexSolveError, match="SCS: out of order"):
        solve_relu_program(problem["x"], problem["y"], problem["beta"], enumerate_arrangements(problem["x"]))


def test_without_cvxpy(monkeypatch: pytest.MonkeyPatch) -> None:
    true_import = builtins.__import__

    def missing(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "cvxpy":
            raise ImportError(name)
        return true_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    problem = load("gauss_n8_d3")
    with pytest.raises(ImportError, match=r"lit-papers\[convex\]"):
        programs.solve_relu_program(problem["x"], problem["y"], 0.1, enumerate_arrangements(problem["x"]))
    x = normal(30, 4)
    solve_gated(x, normal(30, seed=1), 0.5, sample_arrangements(x, 10))  # ours needs none

"""Data as they come: at any scale, with ties, duplicates, collinear, zero and constant rows, one sample, two losses."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_papers.convex_relu.arrangements import enumerate_arrangements
from lit_papers.convex_relu.landscape import global_optimality
from lit_papers.convex_relu.losses import loss_gradient
from lit_papers.convex_relu.networks import objective, optimal_set, to_network
from lit_papers.convex_relu.solvers import solve_relu


def draw(seed: int) -> tuple[Tensor, Tensor, float, Any, float]:
    """Data, targets, beta, loss, and the scale of the targets."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    n, d = pick(1, 9), pick(1, 3)
    x, y = normal(n, d), normal(n)
    kind = seed % 8
    if kind == 1:  # ties: small integers
        x, y = (2 * x).round(), (2 * y).round()
    elif kind == 2:  # rows on one line, on both sides
        x[n // 2 :] = x[:1].clone() * normal(n - n // 2, 1)
    elif kind == 3:  # duplicates with other targets
        x[n // 2 :] = x[0].clone()
    elif kind == 4:
        x[: n // 2] = 0.0
    elif kind == 5:  # a bias, and constant targets
        x[:, -1] = 1.0
        y[:] = y[0].clone()
    elif kind == 6:  # lower rank
        x[:, -1] = x[:, 0].clone()
    elif kind == 7:  # samples of very different size
        x = x * 10 ** (4 * torch.rand(n, 1, generator=generator, dtype=torch.float64) - 2)
    loss = "logistic" if pick(0, 1) else "squared"
    x_scale, y_scale = (10.0 ** (24 * float(torch.rand((), generator=generator)) - 12) for _ in range(2))
    x = x * x_scale
    y = torch.where(y > 0, 1.0, -1.0).double() if loss == "logistic" else y * y_scale
    nu = loss_gradient(torch.zeros_like(y), y, loss)
    strength = 10.0 ** (3.5 * float(torch.rand((), generator=generator)) - 3)
    beta = strength * max(float((x.T @ nu).norm()), float((x.T @ nu.clamp_min(0)).norm()), 1e-300)
    if not (x.abs().max() > 0 and y.abs().max() > 0):
        beta = x_scale
    return x, y, beta, loss, 1.0 if loss == "logistic" else y_scale


def check(seed: int) -> str | None:
    """Solve a case and hold it against what is known in other ways; what `optimal_set` says if it refuses."""
    x, y, beta, loss, y_scale = draw(seed)
    patterns = enumerate_arrangements(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        solution = solve_relu(x, y, beta, patterns, loss=loss)
    unit = float(objective(x, y, torch.zeros(0, x.shape[1]), torch.zeros(0), beta, loss=loss))  # the loss at zero
    weight, alpha = to_network(solution)
    reached = float(objective(x, y, weight, alpha, beta, loss=loss))
    assert reached == pytest.approx(solution.objective, abs=1e-6 * unit)
    assert solution.lower_bound <= reached + 1e-12 * unit
    assert reached <= unit * (1 + 1e-12)
    report = global_optimality(x, y, weight, alpha, beta, patterns, loss=loss)
    assert report.is_global
    assert report.lower_bound <= solution.objective + 1e-9 * unit
    # no network, found in another way, is below the bound
    generator = torch.Generator().manual_seed(seed)
    root = (y_scale / float(x.abs().max().clamp_min(1e-300))) ** 0.5
    start = [root * torch.randn(30, x.shape[1], generator=generator, dtype=torch.float64) for _ in range(1)]
    start.append(root * torch.randn(30, generator=generator, dtype=torch.float64))
    lowest = descended(x, y, beta, loss, *start, unit)
    assert lowest >= solution.lower_bound - 1e-9 * unit
    for share in (0.0, 0.5, 1.3):  # bounds from networks that are no optima hold, and do not call them so
        other = global_optimality(x, y, share * weight, share * alpha, beta, patterns, loss=loss)
        assert other.lower_bound <= solution.objective + 1e-9 * unit
        assert (
            other.is_global == (other.objective <= solution.objective + 1e-6 * unit)
            or abs(other.gap / unit - 1e-6) < 1e-6
        )
    try:
        optimal = optimal_set(x, y, solution)
    except ValueError as error:
        return str(error)
    if unit > 0:
        narrow = optimal.network()
        assert float(objective(x, y, *narrow, beta, loss=loss)) == pytest.approx(solution.objective, abs=1e-6 * unit)
        assert optimal.contains(*narrow)
    return None


def descended(x: Tensor, y: Tensor, beta: float, loss: Any, weight: Tensor, alpha: Tensor, unit: float) -> float:
    """The objective after some gradient steps in units of size one, by autograd alone."""
    factor = float(weight.abs().max().clamp_min(1e-300))
    steps = torch.optim.Adam([u := (weight / factor).requires_grad_(), a := (alpha / factor).requires_grad_()], lr=0.05)
    value = unit
    for _ in range(60):
        steps.zero_grad()
        now = objective(x, y, factor * u, factor * a, beta, loss=loss) / max(unit, 1e-300)
        now.backward()
        value = min(value, float(now.detach()) * unit)
        steps.step()
    return value


@pytest.mark.parametrize("seed", [*range(16), 29, 53])
def test_some_of_them(seed: int) -> None:
    assert check(seed) is None


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_hundred_of_them() -> None:
    """Every value and certificate holds; the few optimal sets that are refused are so for a gap that is there."""
    refused = {seed: answer for seed in range(500) if (answer := check(seed))}
    print(refused)
    assert all("relative gap is" in answer for answer in refused.values())
    assert len(refused) <= 10

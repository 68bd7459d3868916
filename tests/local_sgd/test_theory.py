"""The lower-bound functions, the simulator against plain loops and closed forms, the bounds, and the slopes."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from lit_papers.local_sgd.theory import (
    HeterogeneousQuadratic,
    LowerBoundFunction,
    Quadratic,
    SkewedQuadratic,
    draw_order,
    exact_suboptimality,
    fit_loglog_slope,
    simulate,
    theorem_step_size,
    upper_bound,
)

FUNCTIONS = [SkewedQuadratic(3.0, 0.5, 0.7), Quadratic(0.5, 2.0), HeterogeneousQuadratic(0.5, 2.0)]
ALGORITHMS = ("minibatch", "local")
SAMPLINGS = ("reshuffle", "synchronized", "with_replacement")
SETTING: dict[str, Any] = {"machines": 4, "components": 32, "epochs": 60, "sync_every": 4, "step_size": 6 / (32 * 60)}


def name_of(function: LowerBoundFunction) -> str:
    return type(function).__name__


@pytest.mark.parametrize("function", FUNCTIONS, ids=name_of)
def test_gradient_is_the_derivative_of_the_value(function: LowerBoundFunction) -> None:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None].requires_grad_()
    z = torch.tensor([1.0, -1.0], dtype=torch.float64)
    (derivative,) = torch.autograd.grad(function.value(x, z).sum(), x)
    assert torch.equal(derivative, function.gradient(x, z).sum(1, keepdim=True))


@pytest.mark.parametrize("function", FUNCTIONS, ids=name_of)
def test_suboptimality_is_the_mean_of_the_components(function: LowerBoundFunction) -> None:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    z = function.components(components=6, machines=4)  # (4, 6)
    assert z.dtype == torch.float64
    assert z.shape == (4, 6)
    torch.testing.assert_close(function.value(x[:, None, None], z).mean((1, 2)), function.suboptimality(x))
    assert function.suboptimality(torch.zeros(1, dtype=torch.float64)) == 0


@pytest.mark.parametrize("function", FUNCTIONS, ids=name_of)
def test_attributes_are_the_assumptions_of_the_paper(function: LowerBoundFunction) -> None:
    x = torch.linspace(-2, 2, 401, dtype=torch.float64)
    z = function.components(components=2, machines=2)
    gradients = function.gradient(x, z[..., None])  # (M, N, points)
    spread = (gradients - gradients.mean(1, keepdim=True)).abs().max().item()
    assert spread == pytest.approx(function.nu)
    steepest = (gradients.diff(dim=-1) / x.diff()).abs().max().item()
    assert steepest == pytest.approx(function.smoothness)
    polyak = gradients.mean((0, 1)) ** 2 / 2 - function.mu * function.suboptimality(x)
    assert polyak.min() > -1e-15


def test_curvature_keeps_double_precision() -> None:
    x = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    assert SkewedQuadratic(0.3, 0.1).suboptimality(x).tolist() == [0.15, 0.05]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SkewedQuadratic(smoothness=0.5, mu=1.0), r"`smoothness` must be at least mu=1.0, got 0.5"),
        (lambda: Quadratic(mu=0.0), r"`mu` must be > 0, got 0.0"),
        (lambda: Quadratic(nu=-1.0), r"`nu` must be >= 0, got -1.0"),
        (lambda: HeterogeneousQuadratic(tau=-1.0), r"`tau` must be >= 0, got -1.0"),
        (lambda: Quadratic().components(7, 2), r"`components` must be a multiple of 2.*got 7"),
        (lambda: HeterogeneousQuadratic().components(8, 3), r"`machines` must be a multiple of 2.*got 3"),
    ],
)
def test_functions_refuse_bad_arguments(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def by_hand(function: LowerBoundFunction, algorithm: str, order: Any, sync_every: int, step: float, x: float) -> float:
    """The algorithms of section 2.2, one number at a time; ``order`` is a list over epochs of (M, N) indices."""
    machines, components = order[0].shape
    z = function.components(components, machines)

    def gradient(x: float, m: int, i: int) -> float:
        return function.gradient(torch.tensor(x, dtype=torch.float64), z[m, i]).item()

    for sigma in order:
        local = [x] * machines
        for first in range(0, components, sync_every):
            group = range(first, first + sync_every)
            if algorithm == "minibatch":
                total = sum(gradient(x, m, sigma[m, j]) for m in range(machines) for j in group)
                x -= step * sync_every * total / (machines * sync_every)
                continue
            for m, j in itertools.product(range(machines), group):
                local[m] -= step * gradient(local[m], m, sigma[m, j])
            x = sum(local) / machines
            local = [x] * machines
    return function.suboptimality(torch.tensor(x, dtype=torch.float64)).item()


@pytest.mark.parametrize("function", FUNCTIONS, ids=name_of)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_simulator_against_a_plain_loop(function: LowerBoundFunction, algorithm: Any, sampling: Any) -> None:
    runs, epochs = 3, 2
    errors = simulate(
        function, algorithm, sampling, machines=2, components=8, epochs=epochs, sync_every=4, step_size=0.05,
        start=0.3, runs=runs, seed=5,
    )  # fmt: skip
    random = np.random.default_rng(5)
    order = [draw_order(sampling, runs=runs, machines=2, components=8, random=random) for _ in range(epochs)]
    for run in range(runs):
        expected = by_hand(function, algorithm, [o[run] for o in order], 4, 0.05, 0.3)
        assert errors[run].item() == pytest.approx(expected, rel=1e-11)
    assert errors.dtype == torch.float64


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_orders(sampling: Any) -> None:
    order = draw_order(sampling, runs=200, machines=4, components=8, random=np.random.default_rng(0))
    assert order.shape == (200, 4, 8)
    assert order.unique().tolist() == list(range(8))
    first = order[:, 0, 0].bincount(minlength=8)
    assert (first - 25).abs().max() < 5 * math.sqrt(25), "every component is as likely"
    if sampling == "with_replacement":
        return
    assert (order.sort(-1).values == torch.arange(8)).all()
    assert (order[:, 0] != order[:, 1]).any(-1).all() or sampling == "reshuffle"
    if sampling == "synchronized":
        windows = order.unflatten(-1, (4, 2)).transpose(1, 2).flatten(2)  # (R, windows, M * N/M)
        assert (windows.sort(-1).values == torch.arange(8)).all(), "N/M positions of all machines cover the data"
        for m in range(4):
            offset = (order[:, m, :1] == order[:, 0]).int().argmax(-1)  # where machine m starts in machine 0's order
            assert (offset % 2 == 0).all()
            positions = (torch.arange(8) + offset[:, None]) % 8
            assert torch.equal(order[:, m], order[:, 0].gather(-1, positions))


def test_one_seed_gives_one_order_for_every_algorithm_and_interval() -> None:
    """On a quadratic, averaging linear steps: the sync interval cannot matter if the orders are the same."""
    options: dict[str, Any] = {**SETTING, "runs": 16, "seed": 3}
    two, eight = (simulate(Quadratic(), "local", "reshuffle", **{**options, "sync_every": b}) for b in (2, 8))
    torch.testing.assert_close(two, eight, rtol=1e-9, atol=0)
    assert not torch.equal(two, simulate(Quadratic(), "local", "reshuffle", **{**options, "seed": 4}))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_averaging_every_step_makes_both_algorithms_one(sampling: Any) -> None:
    options: dict[str, Any] = {**SETTING, "sync_every": 1, "runs": 8, "start": 0.5}
    local, minibatch = (simulate(SkewedQuadratic(), algorithm, sampling, **options) for algorithm in ALGORITHMS)
    torch.testing.assert_close(local, minibatch, rtol=1e-10, atol=0)


def test_synchronized_minibatches_that_cover_the_data_are_gradient_descent() -> None:
    options: dict[str, Any] = {"machines": 16, "components": 64, "epochs": 10, "sync_every": 4, "step_size": 0.01}
    assert simulate(SkewedQuadratic(), "minibatch", "synchronized", **options).max() < 1e-28


@pytest.mark.parametrize(
    ("algorithm", "sampling", "value"),
    [
        ("minibatch", "with_replacement", 1.96540e-4),
        ("local", "with_replacement", 1.95617e-4),
        ("local", "reshuffle", 1.68466e-7),
        ("minibatch", "reshuffle", 1.68358e-7),
    ],
)
def test_exact_expectations_of_the_quadratic(algorithm: Any, sampling: Any, value: float) -> None:
    assert exact_suboptimality(Quadratic(), algorithm, sampling, **SETTING) == pytest.approx(value, rel=5e-6)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("sampling", ["reshuffle", "with_replacement"])
def test_simulated_mean_is_the_exact_expectation(algorithm: Any, sampling: Any) -> None:
    options: dict[str, Any] = {"machines": 2, "components": 8, "epochs": 5, "sync_every": 4, "step_size": 0.08}
    function = Quadratic(mu=0.5, nu=2.0)
    errors = simulate(function, algorithm, sampling, **options, start=0.4, runs=20_000)
    exact = exact_suboptimality(function, algorithm, sampling, **options, start=0.4)
    assert abs(errors.mean().item() - exact) < 4 * errors.std().item() / math.sqrt(len(errors))


def test_exact_expectation_by_enumerating_all_permutations() -> None:
    step, start, function = 0.2, 0.3, Quadratic()
    orders = [torch.tensor([p]) for p in itertools.permutations(range(4))]
    for algorithm in ALGORITHMS:
        mean = sum(by_hand(function, algorithm, [p, q], 2, step, start) for p in orders for q in orders) / 24**2
        exact = exact_suboptimality(
            function, algorithm, "reshuffle",
            machines=1, components=4, epochs=2, sync_every=2, step_size=step, start=start,
        )  # fmt: skip
        assert exact == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("start", [0.0, -0.7])
def test_the_heterogeneous_rounds_are_exact(algorithm: Any, start: float) -> None:
    function = HeterogeneousQuadratic(mu=0.8, tau=1.5)
    options: dict[str, Any] = {"machines": 4, "components": 16, "epochs": 10, "sync_every": 8, "step_size": 0.02}
    (error,) = simulate(function, algorithm, "reshuffle", **options, start=start, runs=1).tolist()
    assert exact_suboptimality(function, algorithm, "reshuffle", **options, start=start) == pytest.approx(
        error, rel=1e-11
    )


@pytest.mark.parametrize(
    ("function", "sampling"), [(SkewedQuadratic(), "reshuffle"), (Quadratic(), "synchronized")], ids=["skewed", "sync"]
)
def test_what_has_no_formula_says_so(function: LowerBoundFunction, sampling: Any) -> None:
    with pytest.raises(NotImplementedError, match=f"{type(function).__name__} with sampling='{sampling}'"):
        exact_suboptimality(function, "local", sampling, **SETTING)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sync_every": 5}, "sync_every=5 does not divide components=32"),
        ({"sync_every": 0}, "`sync_every` must be at least 1, got 0"),
        ({"machines": 0}, "`machines` must be at least 1, got 0"),
        ({"machines": 3, "sampling": "synchronized"}, "machines=3 does not divide components=32"),
        ({"machines": 3, "function": HeterogeneousQuadratic()}, "`machines` must be a multiple of 2.* got 3"),
        ({"components": 9, "sync_every": 3}, "`components` must be a multiple of 2.* got 9"),
        ({"epochs": 0}, "`epochs` must be at least 1, got 0"),
        ({"step_size": 0.0}, "`step_size` must be > 0, got 0.0"),
        ({"step_size": math.nan}, "`step_size` must be > 0, got nan"),
        ({"algorithm": "federated"}, "`algorithm` must be one of minibatch, local, got 'federated'"),
        ({"sampling": "cyclic"}, "`sampling` must be one of reshuffle, .*, got 'cyclic'"),
    ],
)
def test_problems_that_are_not_defined_are_refused(change: dict[str, Any], message: str) -> None:
    arguments = {"function": Quadratic(), "algorithm": "local", "sampling": "reshuffle", **SETTING, **change}
    for run in (simulate, exact_suboptimality):
        with pytest.raises(ValueError, match=message):
            run(**arguments)


def test_runs_are_counted() -> None:
    with pytest.raises(ValueError, match="`runs` must be at least 1, got 0"):
        simulate(Quadratic(), "local", "reshuffle", **SETTING, runs=0)


def test_upper_bounds_are_the_table() -> None:
    numbers: dict[str, Any] = {"smoothness": 4.0, "mu": 2.0, "nu": 3.0, "tau": 0.5, "lam": 0.25, "gap": 7.0}
    sizes: dict[str, Any] = {"machines": 4, "components": 32, "epochs": 10, "sync_every": 8}
    steps, passes, kappa = 4 * 32 * 100, 32**2 * 100, 16 / 8
    expected = {
        ("minibatch", "reshuffle"): 7 / steps + kappa * 9 / steps,
        ("local", "reshuffle"): 7 / steps + kappa * (9 / steps + (9 * 8 + 0.25 * 64) / passes),
        ("minibatch", "synchronized"): 7 / (4 * steps) + kappa * (9 / (4 * steps) + 0.0625 / 400),
        ("local", "synchronized"): 7 / (4 * steps)
        + kappa * (9 / (4 * steps) + (9 * 8 + 0.0625 * 64) / passes + 0.0625 / 400),
        ("minibatch", "with_replacement"): 9 / (2 * 4 * 32 * 10),
        ("local", "with_replacement"): 4 * 9 / (4 * 4 * 32 * 10) + kappa * (9 * 8 + 0.25 * 64) / passes,
    }
    for (algorithm, sampling), value in expected.items():
        assert upper_bound(algorithm, sampling, **numbers, **sizes) == pytest.approx(value), (algorithm, sampling)
    with pytest.raises(ValueError, match=r"`mu` must be in \(0, smoothness=4.0\], got 5.0"):
        upper_bound("local", "reshuffle", **{**numbers, "mu": 5.0}, **sizes)
    with pytest.raises(ValueError, match=r"`lam` must be >= 0, got -1"):
        upper_bound("local", "reshuffle", **{**numbers, "lam": -1}, **sizes)


def test_theorem_step_sizes() -> None:
    for sampling, count in (("reshuffle", 4), ("with_replacement", 4), ("synchronized", 16)):
        for algorithm in ALGORITHMS:
            step = theorem_step_size(algorithm, sampling, mu=0.5, machines=4, components=32, epochs=60)
            assert step == pytest.approx(math.log(count * 32 * 3600) / (0.5 * 32 * 60))
    with pytest.raises(ValueError, match="`mu` must be > 0, got 0"):
        theorem_step_size("local", "reshuffle", mu=0, machines=4, components=32, epochs=60)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1.0], [1.0], "at least 2 points each"),
        ([1.0, 2.0], [1.0], "got 2 and 1"),
        ([1.0, 2.0], [1.0, 0.0], "`y` must be > 0 .*, got 0.0"),
        ([-1.0, 2.0], [1.0, 1.0], "`x` must be > 0 .*, got -1.0"),
        ([2.0, 2.0], [1.0, 1.0], "`x` must have two different values, got 2.0"),
    ],
)
def test_points_without_a_slope_are_refused(x: list[float], y: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_loglog_slope(x, y)
    assert fit_loglog_slope([1, 10, 100], [5, 50, 500]) == pytest.approx(1)


def error(algorithm: Any, sampling: Any, *, machines: int, components: int, epochs: int, sync_every: int) -> float:
    return simulate(
        SkewedQuadratic(), algorithm, sampling, machines=machines, components=components, epochs=epochs,
        sync_every=sync_every, step_size=6 / (components * epochs), runs=512,
    ).mean().item()  # fmt: skip


@pytest.mark.parametrize(
    ("algorithm", "sampling", "sync_every", "exponent"),
    [
        ("minibatch", "with_replacement", 4, -1),
        ("minibatch", "reshuffle", 4, -2),
        ("minibatch", "synchronized", 4, -2),
        ("local", "reshuffle", 4, -2),
        ("local", "reshuffle", 32, -2),
    ],
)
def test_slopes_in_epochs(algorithm: Any, sampling: Any, sync_every: int, exponent: int) -> None:
    epochs = (40, 80, 160)
    errors = [error(algorithm, sampling, machines=4, components=32, epochs=k, sync_every=sync_every) for k in epochs]
    assert fit_loglog_slope(epochs, errors) == pytest.approx(exponent, abs=0.3)


def test_the_quadratic_is_the_negative_control() -> None:
    epochs = (40, 80, 160)
    errors = [
        exact_suboptimality(
            Quadratic(), "local", "reshuffle",
            machines=4, components=32, epochs=k, sync_every=4, step_size=6 / (32 * k),
        )
        for k in epochs
    ]  # fmt: skip
    assert fit_loglog_slope(epochs, errors) == pytest.approx(-3, abs=0.05)


def test_slopes_of_the_heterogeneous_bound() -> None:
    def exact(epochs: int, sync_every: int) -> float:
        return exact_suboptimality(
            HeterogeneousQuadratic(), "local", "reshuffle",
            machines=4, components=128, epochs=epochs, sync_every=sync_every, step_size=6 / (128 * epochs),
        )  # fmt: skip

    epochs, intervals = (40, 80, 160), (2, 4, 8, 16)
    assert fit_loglog_slope(epochs, [exact(k, 16) for k in epochs]) == pytest.approx(-2, abs=0.1)
    in_interval = fit_loglog_slope([b - 1 for b in intervals], [exact(160, b) for b in intervals])
    assert in_interval == pytest.approx(2, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "sampling", "sync_every", "exponent"),
    [
        ("minibatch", "with_replacement", 4, -1),
        ("minibatch", "reshuffle", 4, -1),
        ("minibatch", "synchronized", 4, -2),
        ("local", "reshuffle", 128, 0),
    ],
)
def test_slopes_in_machines(algorithm: Any, sampling: Any, sync_every: int, exponent: int) -> None:
    machines = (1, 2, 4, 8, 16)
    errors = [
        error(algorithm, sampling, machines=m, components=128, epochs=150, sync_every=sync_every) for m in machines
    ]
    assert fit_loglog_slope(machines, errors) == pytest.approx(exponent, abs=0.3)

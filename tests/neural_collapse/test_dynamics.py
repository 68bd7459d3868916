"""The closed form against simulation, its equation and its limits; the optimum against a minimiser."""

import math

import pytest
import torch

from lit_papers.neural_collapse.dynamics import (
    Trajectory,
    central_path_closed_form,
    simulate_central_path,
    ufm_optimum,
)
from lit_papers.neural_collapse.functional import (
    centered_class_means,
    class_statistics,
    max_equiangularity,
    mse_decomposition,
)

OMEGA0 = [2.0, 0.7, 0.2]
EXPECTED = {
    100: (2.244281, 1.015887, 0.330837),
    500: (2.980885, 2.204167, 1.473905),
    2000: (4.423312, 4.123706, 3.906587),
}


def simulate(times: list[float], flow: str = "renormalized") -> Trajectory:
    source = torch.Generator().manual_seed(0)
    return simulate_central_path(OMEGA0, times, 4, 12, 6, flow=flow, generator=source)


def test_simulation_equals_the_closed_form() -> None:
    path = simulate([0.0, *EXPECTED])
    closed = central_path_closed_form(OMEGA0, path.times, 4, 12)
    torch.testing.assert_close(path.omega, closed, rtol=1e-8, atol=0)
    for row, expected in zip(closed[1:], EXPECTED.values(), strict=True):
        assert row.tolist() == pytest.approx(expected, abs=5e-7)
    assert path.omega[0].tolist() == pytest.approx(OMEGA0, rel=1e-12)
    assert (path.features.shape, path.targets.shape) == ((4, 48, 6), (48,))


def test_renormalised_flow_keeps_covariance_mean_and_angles_improve() -> None:
    path = simulate([0.0, 500.0, 2000.0])
    angles = []
    for features in path.features:
        stats = class_statistics(features, path.targets, 4)
        torch.testing.assert_close(stats.within_scatter / 48, torch.eye(6).double(), rtol=0, atol=1e-8)
        assert features.mean(dim=0).abs().max() < 1e-12
        angles.append(max_equiangularity(centered_class_means(stats)).item())
    assert angles == sorted(angles, reverse=True)


def test_plain_flow_conserves_the_gram_matrix_and_lowers_the_loss() -> None:
    path = simulate([0.0, 100.0, 1000.0], flow="plain")
    grams = [features.T @ features for features in path.features]
    for gram in grams[1:]:
        torch.testing.assert_close(gram, grams[0], rtol=1e-9, atol=1e-9 * grams[0].abs().max().item())
    losses = [
        mse_decomposition(class_statistics(f, path.targets, 4), torch.zeros(4, 6), torch.zeros(4))["ls"].item()
        for f in path.features
    ]
    assert losses[0] > losses[1] > losses[2]
    assert (path.omega[2] > path.omega[0]).all()


def test_plain_flow_descends_the_gradient_of_the_least_squares_loss() -> None:
    """Differentiate the minimal loss numerically along the first, short step."""
    path = simulate([0.0, 1e-3], flow="plain")

    def loss(features: torch.Tensor) -> float:
        stats = class_statistics(features, path.targets, 4)
        return mse_decomposition(stats, torch.zeros(4, 6), torch.zeros(4))["ls"].item()

    before, after = path.features
    velocity = (after - before) / 1e-3
    slope = (loss(before + 1e-3 * velocity) - loss(before - 1e-3 * velocity)) / 2e-3
    assert slope == pytest.approx(-velocity.square().sum().item(), rel=1e-4)
    other = torch.randn(velocity.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slope = (loss(before + 1e-3 * other) - loss(before - 1e-3 * other)) / 2e-3
    assert slope == pytest.approx(-(velocity * other).sum().item(), rel=1e-4)


def test_closed_form_solves_its_differential_equation() -> None:
    t, step = torch.tensor([1.0, 50.0, 3000.0], dtype=torch.float64), 1e-3
    omega = central_path_closed_form([3.0, 1.0], t, 5, 7)
    slope = (
        central_path_closed_form([3.0, 1.0], t + step, 5, 7) - central_path_closed_form([3.0, 1.0], t - step, 5, 7)
    ) / (2 * step)
    torch.testing.assert_close(slope, omega / (5 + omega**2) ** 2 / 7, rtol=1e-6, atol=0)


def test_closed_form_at_the_start_and_in_the_limit() -> None:
    omega0 = torch.tensor([100.0, 1.0, 1e-3, 1e-8], dtype=torch.float64)
    torch.testing.assert_close(central_path_closed_form(omega0, 0, 5, 3), omega0, rtol=1e-13, atol=0)
    late = central_path_closed_form(omega0[1:], 1e16, 5, 3)
    assert (late[0] / late[2]).item() == pytest.approx(1, abs=1e-6)
    assert late[0].item() == pytest.approx((1e16 / (3 / 4)) ** 0.25, rel=1e-3)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (0,)])
def test_closed_form_shapes(shape: tuple[int, ...]) -> None:
    assert central_path_closed_form(OMEGA0, torch.ones(shape), 4, 12).shape == (*shape, 3)


def test_empty_and_repeated_times() -> None:
    assert simulate([]).features.shape == (0, 48, 6)
    path = simulate([3.0, 3.0])
    assert torch.equal(path.omega[0], path.omega[1])


@pytest.mark.parametrize("bias", [False, True])
def test_optimum_is_what_a_minimiser_reaches(bias: bool) -> None:
    num_classes, n, dim, weight_decay, feature_decay = 5, 8, 12, 5e-3, 1e-3
    expected = ufm_optimum(num_classes, n, weight_decay, feature_decay, bias=bias)
    assert expected.loss == pytest.approx(0.0248982213 if bias else 0.0311227766, abs=5e-11)
    source = torch.Generator().manual_seed(0)
    w = torch.randn(num_classes, dim, generator=source, dtype=torch.float64, requires_grad=True)
    h = torch.randn(dim, num_classes * n, generator=source, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(num_classes, 1, dtype=torch.float64, requires_grad=bias)
    y = torch.eye(num_classes, dtype=torch.float64).repeat_interleave(n, dim=1)
    optimizer = torch.optim.LBFGS(
        [w, h, b] if bias else [w, h],
        max_iter=2000,
        tolerance_grad=1e-12,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        fit = (w @ h + b - y).square().sum() / (2 * num_classes * n)
        loss = fit + weight_decay / 2 * w.square().sum() + feature_decay / 2 * h.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert closure().item() == pytest.approx(expected.loss, rel=1e-10)
    norms = class_statistics(h.detach().T, torch.arange(num_classes).repeat_interleave(n), num_classes).means
    assert norms.square().sum(dim=1).tolist() == pytest.approx([expected.mean_norm_squared] * num_classes, rel=1e-4)


def test_optimum_of_too_strong_regularisation_is_zero() -> None:
    assert ufm_optimum(4, 10, 1.0, 1.0, bias=False) == (0.5, 0.0)
    assert ufm_optimum(4, 10, 1.0, 1.0) == (0.375, 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"omega0": [1.0, -0.5]}, "omega0 must be finite and > 0"),
        ({"omega0": [1.0, 0.0]}, "omega0 must be finite and > 0"),
        ({"omega0": [math.nan]}, "omega0 must be finite and > 0"),
        ({"omega0": [4.0, 3.0, 2.0, 1.0]}, "1 to num_classes - 1 = 3 values"),
        ({"omega0": []}, "1 to num_classes - 1 = 3 values"),
        ({"omega0": [0.5, 1.0]}, "omega0 must be descending"),
        ({"num_features": 2}, "omega0 has at most num_features = 2 values, got 3"),
        ({"num_features": 45}, "num_features must be at most .* = 44"),
        ({"times": [1.0, 0.5]}, "times must be .* non-decreasing"),
        ({"times": [-1.0]}, "times must be .* >= 0"),
        ({"times": [math.inf]}, "times must be .* finite"),
        ({"flow": "normal"}, "flow must be 'renormalized' or 'plain', got 'normal'"),
        ({"step": 0.0}, "step must be finite and > 0, got 0"),
        ({"step": math.inf}, "step must be finite and > 0, got inf"),
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"samples_per_class": 0}, "samples_per_class must be at least 1, got 0"),
    ],
)
def test_simulation_refuses(changes: dict, message: str) -> None:
    good = {"omega0": OMEGA0, "times": [1.0], "num_classes": 4, "samples_per_class": 12, "num_features": 6}
    with pytest.raises(ValueError, match=message):
        simulate_central_path(**{**good, **changes})


def test_closed_form_and_optimum_refuse() -> None:
    with pytest.raises(ValueError, match="t must be finite and >= 0"):
        central_path_closed_form(OMEGA0, -1.0, 4, 12)
    with pytest.raises(ValueError, match="omega0 must be finite and > 0"):
        central_path_closed_form([0.0], 1.0, 4, 12)
    with pytest.raises(ValueError, match="num_classes - 1 = 2 values"):
        central_path_closed_form(OMEGA0, 1.0, 3, 12)
    for name in ("weight_decay", "feature_decay"):
        with pytest.raises(ValueError, match=f"{name} must be finite and > 0, got 0"):
            ufm_optimum(**{"num_classes": 3, "samples_per_class": 2, "weight_decay": 1, "feature_decay": 1, name: 0})
    with pytest.raises(ValueError, match="num_classes must be at least 2"):
        ufm_optimum(1, 2, 0.1, 0.1)

"""Dynamics of the features on the central path, and the optimum they head for (Han et al., ICLR 2022).

On the central path the classifier is always the least-squares one of its own features. Renormalising these so
that the within-class covariance stays the identity leaves a gradient flow whose signal-to-noise matrix keeps
its singular vectors, while its singular values follow a closed form.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lit_papers.neural_collapse.functional import class_statistics, snr_singular_values

_NEWTON_STEPS = 100  # a bound against endless loops; about ten are used


class Trajectory(NamedTuple):
    """A simulated flow of features.

    Attributes:
        times: shape ``(T,)``.
        omega: leading singular values of the signal-to-noise matrix, descending, shape ``(T, r)``.
        features: shape ``(T, C n, d)``.
        targets: class of each feature, shape ``(C n,)``.
    """

    times: Tensor
    omega: Tensor
    features: Tensor
    targets: Tensor


class UFMOptimum(NamedTuple):
    """Global minimum of the unconstrained features model.

    Attributes:
        loss: minimal regularised loss.
        mean_norm_squared: squared norm of every class mean there; 0 if regularisation is too strong to learn.
    """

    loss: float
    mean_norm_squared: float


def central_path_closed_form(
    omega0: Tensor | Sequence[float], t: Tensor | float, num_classes: int, samples_per_class: int
) -> Tensor:
    r"""Signal-to-noise singular values after time ``t`` of renormalised gradient flow on the central path.

    .. math:: c_1 \log\omega + c_2\,\omega^2 + c_3\,\omega^4 = a + t, \qquad
              c_1 = n C^2,\ c_2 = n C,\ c_3 = n/4

    with ``a`` the left side at ``omega0``: the solution of
    :math:`\dot\omega = \frac1n \frac{\omega}{(C + \omega^2)^2}`, which grows as :math:`(t/c_3)^{1/4}` while
    all singular values become equal (Han et al., ICLR 2022, the section on the dynamics; the constants belong
    to the flow of :func:`simulate_central_path`). Balanced classes, no regularisation.

    Args:
        omega0: singular values at time 0, shape ``(r,)``, > 0, at most ``C - 1`` of them.
        t: a time or a tensor of times, >= 0.
        num_classes: ``C``, at least 2.
        samples_per_class: ``n``, at least 1.

    Returns:
        Singular values, shape ``(*t.shape, r)``, on the device of ``omega0``.

    Raises:
        ValueError: an argument is out of its range.

    >>> central_path_closed_form([2.0, 0.7, 0.2], 2000, num_classes=4, samples_per_class=12)
    tensor([4.4233, 4.1237, 3.9066], dtype=torch.float64)
    """
    omega0 = _check_omega0(omega0, num_classes, samples_per_class)
    t = torch.as_tensor(t, dtype=torch.float64, device=omega0.device)
    if not (torch.isfinite(t) & (t >= 0)).all():
        raise ValueError(f"t must be finite and >= 0, got {t.tolist()}")
    c1, c2, c3 = samples_per_class * num_classes**2, samples_per_class * num_classes, samples_per_class / 4
    target = c1 * omega0.log() + c2 * omega0**2 + c3 * omega0**4 + t[..., None]  # (*t, r)

    # Newton in v = log omega^2, where the left side is convex and increasing. The start lies right of the
    # root, so that the iteration falls towards it without overshooting.
    far = torch.minimum(target.clamp_min(c2).div(c2).log(), target.clamp_min(c3).div(c3).log() / 2)
    v = torch.where(target > c2 + c3, far, 0.0)
    for _ in range(_NEWTON_STEPS):
        square = v.exp()
        step = (c1 / 2 * v + c2 * square + c3 * square**2 - target) / (c1 / 2 + c2 * square + 2 * c3 * square**2)
        v = v - step
        if (step.abs() <= 4 * torch.finfo(torch.float64).eps * v.abs().clamp_min(1)).all():
            break
    return (v / 2).exp()


def simulate_central_path(
    omega0: Tensor | Sequence[float],
    times: Tensor | Sequence[float],
    num_classes: int,
    samples_per_class: int,
    num_features: int,
    *,
    flow: str = "renormalized",
    step: float = 2.0,
    generator: torch.Generator | None = None,
) -> Trajectory:
    r"""Follow the features themselves along the central path, by fourth-order Runge-Kutta steps.

    .. math:: \dot X = -g \ \text{("plain")}, \qquad
              \dot X = -\Pi_{\{\Sigma_W = I\}}\, g \ \text{("renormalized")}, \qquad
              g = \nabla_X \min_{W, b} \frac{1}{2N}\|W X + b 1^\top - Y\|_F^2

    :math:`\Pi` projects orthogonally on the directions that keep :math:`\Sigma_W = I`. The plain flow
    conserves :math:`X X^\top` (Han et al., ICLR 2022, the section on the dynamics; that its renormalised flow
    is this projection is inferred from the closed form). Starts from random features with ``mu_G = 0``,
    :math:`\Sigma_W = I` and the given singular values.

    Args:
        omega0: singular values at time 0, shape ``(r,)``, descending, > 0, ``r <= min(C - 1, d)``.
        times: when to record, shape ``(T,)``, >= 0, non-decreasing; the flow starts at 0.
        num_classes: ``C``, at least 2.
        samples_per_class: ``n``, at least 1.
        num_features: ``d``, at most ``C n - C``.
        flow: "renormalized" or "plain".
        step: longest Runge-Kutta step, > 0.
        generator: CPU source of the initial features; None: PyTorch's default one.

    Returns:
        The trajectory, float64 on the CPU.

    Raises:
        ValueError: an argument is out of its range.

    >>> path = simulate_central_path([1.0], [0.0, 50.0], num_classes=2, samples_per_class=3, num_features=2)
    >>> path.omega[:, 0]
    tensor([1.0000, 2.2106], dtype=torch.float64)
    """
    omega0 = _check_omega0(omega0, num_classes, samples_per_class).cpu()
    times = torch.as_tensor(times, dtype=torch.float64).cpu()
    if len(omega0) > num_features:
        raise ValueError(f"omega0 has at most num_features = {num_features} values, got {len(omega0)}")
    if (omega0.diff() > 0).any():
        raise ValueError(f"omega0 must be descending, got {omega0.tolist()}")
    if times.ndim != 1 or not torch.isfinite(times).all() or (times < 0).any() or (times.diff() < 0).any():
        raise ValueError(f"times must be a vector, finite, >= 0 and non-decreasing, got {times.tolist()}")
    if num_classes * (samples_per_class - 1) < num_features:
        raise ValueError(
            f"num_features must be at most num_classes * (samples_per_class - 1) = "
            f"{num_classes * (samples_per_class - 1)} for an invertible covariance, got {num_features}"
        )
    if flow not in ("renormalized", "plain"):
        raise ValueError(f"flow must be 'renormalized' or 'plain', got {flow!r}")
    if not (step > 0 and math.isfinite(step)):
        raise ValueError(f"step must be finite and > 0, got {step}")

    targets = torch.arange(num_classes).repeat_interleave(samples_per_class)  # (C n,)
    x = _initial_features(omega0, targets, num_classes, num_features, generator)  # (d, C n)
    omega, features, now = [], [], 0.0
    for time in times.tolist():
        steps = math.ceil((time - now) / step)
        for _ in range(steps):
            x = _runge_kutta(x, (time - now) / steps, num_classes, flow)
        now = time
        omega.append(snr_singular_values(class_statistics(x.T, targets, num_classes))[: len(omega0)])
        features.append(x.T)
    return Trajectory(
        times,
        torch.stack(omega) if omega else times.new_empty(0, len(omega0)),
        torch.stack(features) if features else times.new_empty(0, len(targets), num_features),
        targets,
    )


def ufm_optimum(
    num_classes: int,
    samples_per_class: int,
    weight_decay: float,
    feature_decay: float,
    *,
    bias: bool = True,
) -> UFMOptimum:
    r"""The collapsed optimum of the unconstrained features model: features and classifier both free.

    .. math:: \min_{W, H, b} \frac{1}{2N}\|W H + b 1^\top - Y\|_F^2 + \frac{\lambda_W}{2}\|W\|_F^2
              + \frac{\lambda_H}{2}\|H\|_F^2 = c - \frac{c^2}{2}, \qquad
              c = \min\big(1, C\sqrt{n \lambda_W \lambda_H}\big)

    without bias, where the class means are an orthogonal frame with
    :math:`\|\mu_c\|^2 = (1 - c)\sqrt{\lambda_W / (n \lambda_H)}`. With a bias (not decayed, ``1/C`` at the
    optimum) they are a simplex, and loss and squared norm shrink by :math:`(C-1)/C`. Balanced classes and
    ``d >= C``. Han et al., ICLR 2022, discuss this model as related work; the values are derived here.

    Args:
        num_classes: ``C``, at least 2.
        samples_per_class: ``n``, at least 1.
        weight_decay: :math:`\lambda_W` > 0.
        feature_decay: :math:`\lambda_H` > 0.
        bias: the classifier has a bias.

    Returns:
        Loss and squared norm of the class means, Python floats.

    Raises:
        ValueError: an argument is out of its range.

    >>> round(ufm_optimum(5, 8, 5e-3, 1e-3, bias=False).loss, 10)
    0.0311227766
    """
    _check_sizes(num_classes, samples_per_class)
    for name, value in (("weight_decay", weight_decay), ("feature_decay", feature_decay)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be finite and > 0, got {value}")
    c = min(1.0, num_classes * math.sqrt(samples_per_class * weight_decay * feature_decay))
    scale = (num_classes - 1) / num_classes if bias else 1.0
    norm = (1 - c) * math.sqrt(weight_decay / (samples_per_class * feature_decay))
    return UFMOptimum(scale * (c - c**2 / 2), scale * norm)


def _initial_features(
    omega0: Tensor, targets: Tensor, num_classes: int, dim: int, generator: torch.Generator | None
) -> Tensor:
    """Random features (d, N) with mu_G = 0, Sigma_W = I and signal-to-noise singular values omega0."""

    def orthonormal(matrix: Tensor) -> Tensor:
        basis: Tensor = torch.linalg.qr(matrix).Q
        return basis

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    number = len(targets)
    noise = normal(num_classes, number // num_classes, dim)  # (C, n, d)
    noise = (noise - noise.mean(dim=1, keepdim=True)).flatten(0, 1)  # (N, d), centred within each class
    noise = math.sqrt(number) * orthonormal(noise)  # a basis of the same columns, so still centred
    left = orthonormal(normal(dim, len(omega0)))  # (d, r)
    ones = torch.ones(num_classes, 1, dtype=torch.float64)
    right = orthonormal(torch.cat([ones, normal(num_classes, len(omega0))], dim=1))[:, 1:]  # (C, r), sums of 0
    return (noise + (right * omega0 @ left.T)[targets]).T


def _runge_kutta(x: Tensor, step: float, num_classes: int, flow: str) -> Tensor:
    k1 = _velocity(x, num_classes, flow)
    k2 = _velocity(x + step / 2 * k1, num_classes, flow)
    k3 = _velocity(x + step / 2 * k2, num_classes, flow)
    k4 = _velocity(x + step * k3, num_classes, flow)
    return x + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def _velocity(x: Tensor, num_classes: int, flow: str) -> Tensor:
    """The time derivative of features (d, N) whose mean is 0; samples are sorted by class."""
    dim, number = x.shape
    y = torch.eye(num_classes, dtype=x.dtype).repeat_interleave(number // num_classes, dim=1)  # (C, N)
    y = y - 1 / num_classes  # what the bias leaves to explain
    # X X^T is at least N I: conserved by the plain flow, N Sigma_W + ... in the renormalised one.
    weight = torch.linalg.solve(x @ x.T, y @ x.T, left=False)  # (C, d)
    gradient: Tensor = weight.T @ (weight @ x - y) / number  # (d, N); the optimal weight's own change drops out
    if flow == "plain":
        return -gradient

    def within(values: Tensor) -> Tensor:
        groups = values.view(dim, num_classes, -1)  # (d, C, n)
        return (groups - groups.mean(dim=2, keepdim=True)).view(dim, number)

    noise, noise_gradient = within(x), within(gradient)
    change = noise_gradient @ noise.T / number  # (d, d); its symmetric part is how the covariance would move
    return (change + change.T) / 2 @ noise - gradient


def _check_sizes(num_classes: int, samples_per_class: int) -> None:
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    if samples_per_class < 1:
        raise ValueError(f"samples_per_class must be at least 1, got {samples_per_class}")


def _check_omega0(omega0: Tensor | Sequence[float], num_classes: int, samples_per_class: int) -> Tensor:
    _check_sizes(num_classes, samples_per_class)
    omega0 = torch.as_tensor(omega0, dtype=torch.float64)
    if omega0.ndim != 1 or not 1 <= len(omega0) <= num_classes - 1:
        raise ValueError(
            f"omega0 must be a vector of 1 to num_classes - 1 = {num_classes - 1} values, "
            f"got shape {tuple(omega0.shape)}"
        )
    if not (torch.isfinite(omega0) & (omega0 > 0)).all():
        raise ValueError(f"omega0 must be finite and > 0, got {omega0.tolist()}")
    return omega0

"""The MSE loss as a least-squares part and the deviation from it (Han, Papyan & Donoho, ICLR 2022).

The split is the one of the paper's section on decomposing the loss, written with the share of each class so
that it is exact for any class balance. Import the public names from
:mod:`lit_papers.neural_collapse.functional`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lit_papers.neural_collapse.linear_algebra import cholesky_factor, range_basis
from lit_papers.neural_collapse.statistics import (
    ClassStatistics,
    as_float64,
    center,
    centered_class_means,
    check_num_classes,
    within_rank,
)


def least_squares_classifier(
    stats: ClassStatistics, lam: float = 0.0, *, bias: bool = True, decay_bias: bool = True
) -> tuple[Tensor, Tensor | None]:
    r"""The linear classifier that minimises the (regularised) squared error on given features.

    .. math:: \min_{W, b}\ \frac{1}{2N}\sum_i \|W h_i + b - e_{y_i}\|^2
              + \frac{\lambda}{2}\left(\|W\|_F^2 + \|b\|^2\right)

    The W_LS of Han et al., ICLR 2022 (after Webb & Lowe 1990). If ``lam`` is 0 and features are linearly
    dependent, the solution of least norm; variances below rounding error beside the largest count as 0.

    Args:
        stats: statistics of ``C`` classes in ``d`` dimensions.
        lam: strength of the regularisation, >= 0; see :func:`regularization_strength`.
        bias: fit a bias ``b``.
        decay_bias: regularise the bias too.

    Returns:
        Weight, shape ``(C, d)``, and bias, shape ``(C,)``, or None without one; zero for unseen classes.

    Raises:
        ValueError: ``lam`` is negative or not finite.

    >>> stats = ClassStatistics(torch.tensor([2, 2]), torch.tensor([[2.0], [-2.0]]), torch.tensor([[4.0]]))
    >>> least_squares_classifier(stats)[0]
    tensor([[ 0.2000],
            [-0.2000]], dtype=torch.float64)
    """
    _check_lam(lam)
    problem = _regression(stats, lam, bias, decay_bias)
    solution, kept = _solve(problem, lam)
    if not bias:
        return solution, None
    if problem.inputs.shape[1] > stats.means.shape[1]:  # the bias was a column of its own
        return solution[:, :-1], solution[:, -1]
    intercept = problem.priors - solution @ problem.origin
    # Along a direction without variance, part of the bias can move into the weight: take what is shortest.
    slack = torch.zeros_like(problem.origin) if kept is None else problem.origin - kept @ (kept.T @ problem.origin)
    intercept = intercept / (1 + slack @ slack)
    return solution + torch.outer(intercept, slack), intercept


def mse_decomposition(
    stats: ClassStatistics,
    weight: Tensor,
    bias: Tensor | None = None,
    lam: float = 0.0,
    *,
    decay_bias: bool = True,
) -> dict[str, Tensor]:
    r"""Split the MSE loss of a linear classifier into NC1, NC2/3 and the deviation from least squares.

    .. math:: L = \underbrace{L_{NC1} + L_{NC2/3}}_{L_{LS}} + L_\perp, \quad
              L_{NC1} = \tfrac12 \mathrm{tr}\big(W_{LS} (\Sigma_W + \Lambda) W_{LS}^\top\big), \quad
              L_{NC2/3} = \tfrac12 \sum_c \pi_c \|W_{LS}\mu_c + b_{LS} - e_c\|^2

    with :math:`L = \frac{1}{2N}\sum_i \|W h_i + b - e_{y_i}\|^2 + \frac\lambda2 \|[W, b]\|^2` and
    :math:`L_\perp` the quadratic form of the loss at ``[W, b] - [W_LS, b_LS]`` (Han et al., ICLR 2022, the
    section on decomposing the loss; with class shares instead of ``1/C``, so exact for any balance).

    Args:
        stats: statistics of ``C`` classes in ``d`` dimensions.
        weight: weight of the classifier, shape ``(C, d)``.
        bias: its bias, shape ``(C,)``; None: the model has none, and neither has the least-squares one.
        lam: strength of the regularisation in the loss that was trained, >= 0; see
            :func:`regularization_strength`.
        decay_bias: the bias is regularised too.

    Returns:
        Scalars ``loss``, ``ls``, ``nc1``, ``nc23`` and ``perp``, each >= 0, in squared units of the targets.

    Raises:
        ValueError: ``weight`` is not ``(C, d)``, ``bias`` not ``(C,)``, or ``lam`` negative or not finite.

    >>> stats = ClassStatistics(torch.tensor([2, 2]), torch.tensor([[2.0], [-2.0]]), torch.tensor([[4.0]]))
    >>> parts = mse_decomposition(stats, torch.tensor([[0.25], [-0.25]]), torch.tensor([0.5, 0.5]))
    >>> {name: round(value.item(), 4) for name, value in parts.items()}
    {'loss': 0.0625, 'ls': 0.05, 'nc1': 0.04, 'nc23': 0.01, 'perp': 0.0125}
    """
    _check_lam(lam)
    weight = check_weight(weight, stats)
    if bias is not None:
        if bias.shape != stats.counts.shape:
            raise ValueError(f"bias must have shape {tuple(stats.counts.shape)}, got {tuple(bias.shape)}")
        bias = as_float64(bias).to(stats.means.device)
    problem = _regression(stats, lam, bias is not None, decay_bias)
    solution, _ = _solve(problem, lam)
    offset = torch.zeros_like(problem.priors)  # (C,); of the mean logits from those of least squares
    if bias is not None:
        if problem.inputs.shape[1] > weight.shape[1]:
            weight = torch.cat([weight, bias[:, None]], dim=1)  # (C, d + 1)
        else:
            offset = weight @ problem.origin + bias - problem.priors
    deviation = weight - solution
    no_targets = torch.zeros_like(problem.targets)
    nc1 = _spread(problem, solution)
    nc23 = _squared_error(problem, solution, torch.zeros_like(offset), problem.targets)
    return {
        "loss": _spread(problem, weight) + _squared_error(problem, weight, offset, problem.targets),
        "ls": nc1 + nc23,
        "nc1": nc1,
        "nc23": nc23,
        "perp": _spread(problem, deviation) + _squared_error(problem, deviation, offset, no_targets),
    }


def snr_singular_values(stats: ClassStatistics) -> Tensor:
    r"""Singular values of the signal-to-noise matrix, which determine the loss on the central path.

    .. math:: \omega = \sigma\big(\Sigma_W^{-1/2} \dot M\big), \qquad
              L_{LS} = \frac12 \sum_{j=1}^{C-1} \frac{1}{C + \omega_j^2}
              \quad\text{(balanced, } \lambda = 0\text{, with bias)}

    Han et al., ICLR 2022, the section on renormalised features.

    Args:
        stats: statistics of ``C`` classes in ``d`` dimensions.

    Returns:
        Shape ``(min(d, C_seen - 1),)``, descending, >= 0; all NaN if the within-class covariance is singular.

    Raises:
        ValueError: fewer than two classes were seen.

    >>> stats = ClassStatistics(torch.tensor([2, 2]), torch.tensor([[2.0], [-2.0]]), torch.tensor([[4.0]]))
    >>> snr_singular_values(stats) ** 2
    tensor([8.0000], dtype=torch.float64)
    """
    means = centered_class_means(stats)  # (C_seen, d)
    number = min(means.shape[1], len(means) - 1)
    if within_rank(stats) < means.shape[1]:  # singular by count
        return means.new_full((number,), math.nan)
    covariance = stats.within_scatter / stats.counts.sum()
    factor = cholesky_factor(covariance)
    if factor is not None:
        whitened: Tensor = torch.linalg.svdvals(torch.linalg.solve_triangular(factor, means.T, upper=False))
        return whitened[:number]
    variances, axes = torch.linalg.eigh(covariance)
    if variances[0] <= variances[-1] * len(variances) * torch.finfo(torch.float64).eps:
        return means.new_full((number,), math.nan)
    omega: Tensor = torch.linalg.svdvals(means @ axes / variances.sqrt())
    return omega[:number]


def regularization_strength(weight_decay: float, num_classes: int, reduction: str = "mean") -> float:
    r"""The ``lam`` of the decomposition that belongs to a training run with MSE loss and SGD weight decay.

    .. math:: \frac{\alpha}{N}\sum_i \|z_i - y_i\|^2 + \frac{wd}{2}\|W\|^2 \quad\Rightarrow\quad
              \lambda = \frac{wd}{2\alpha}, \qquad \alpha = 1/C \text{ (mean)},\ 1 \text{ (batchmean)}

    Follows from the loss of Han et al., ICLR 2022, by matching minimisers.

    Args:
        weight_decay: the optimizer's weight decay, which adds ``weight_decay * W`` to the gradient, >= 0.
        num_classes: ``C``, at least 1.
        reduction: "mean" over samples **and** classes, as ``nn.MSELoss()``; "batchmean": mean over samples,
            sum over classes.

    Returns:
        ``lam`` >= 0.

    Raises:
        ValueError: negative or non-finite weight decay, no class, or an unknown reduction.

    >>> regularization_strength(5e-4, num_classes=10)
    0.0025
    """
    if not (weight_decay >= 0 and math.isfinite(weight_decay)):
        raise ValueError(f"weight_decay must be finite and >= 0, got {weight_decay}")
    check_num_classes(num_classes)
    if reduction not in ("mean", "batchmean"):
        raise ValueError(f"reduction must be 'mean' or 'batchmean', got {reduction!r}")
    return weight_decay / 2 * (num_classes if reduction == "mean" else 1)


def check_weight(weight: Tensor, stats: ClassStatistics) -> Tensor:
    """The weight in float64 beside the statistics; raises unless it has the shape of the means."""
    if weight.shape != stats.means.shape:
        raise ValueError(f"weight must have shape {tuple(stats.means.shape)}, got {tuple(weight.shape)}")
    return as_float64(weight).to(stats.means.device)


class _Regression(NamedTuple):
    """Minimise 1/2 sum_c pi_c ||V x_c - t_c||^2 + 1/2 tr(V P V^T) over V (C, k)."""

    inputs: Tensor  # (C, k), row x_c
    targets: Tensor  # (C, C), column t_c
    noise: Tensor  # (k, k), P = within-class covariance plus regularisation
    priors: Tensor  # (C,), pi_c
    origin: Tensor  # (d,), subtracted from the means to give the inputs
    basis: Tensor | None  # (k, m), spans inputs and noise, but for the regularisation; None: nothing that is smaller


def _regression(stats: ClassStatistics, lam: float, bias: bool, decay_bias: bool) -> _Regression:
    total = stats.counts.sum()
    priors = stats.counts / total
    targets = torch.eye(len(priors), dtype=torch.float64, device=priors.device)
    noise = stats.within_scatter / total
    inputs, origin = stats.means, torch.zeros_like(stats.means[0])
    if bias and decay_bias and lam > 0:
        inputs = torch.cat([inputs, torch.ones_like(priors)[:, None]], dim=1)  # (C, d + 1)
        noise = torch.nn.functional.pad(noise, (0, 1, 0, 1))  # (d + 1, d + 1); the constant has no variance
    elif bias:
        # A free bias makes least squares blind to shifts. Solving around the mean keeps the digits of
        # features far from the origin, and the optimal bias there is the mean target.
        inputs, origin = center(inputs, priors)
        targets = targets - priors[:, None]
    basis = range_basis(noise, within_rank(stats), inputs)
    noise.diagonal().add_(lam)
    return _Regression(inputs, targets, noise, priors, origin, basis)


def _solve(problem: _Regression, lam: float) -> tuple[Tensor, Tensor | None]:
    """The solution (C, k) of least norm and an orthonormal basis (k, m) of the directions that count; None: all do."""
    if problem.basis is not None:
        basis = problem.basis
        noise = basis.T @ problem.noise @ basis
        solution, kept = _solve(problem._replace(inputs=problem.inputs @ basis, noise=noise, basis=None), lam)
        if lam > 0:
            return solution @ basis.T, None
        return solution @ basis.T, basis if kept is None else basis @ kept
    inputs, priors = problem.inputs, problem.priors
    second_moment = torch.addmm(problem.noise, inputs.T, priors[:, None] * inputs)  # (k, k)
    kept = None
    factor = cholesky_factor(second_moment, smallest=lam)
    if factor is None:
        curvature, axes = torch.linalg.eigh(second_moment)
        if lam > 0:
            curvature = curvature.clamp_min(lam)  # nothing is flatter than the regularisation, save by rounding
        else:
            steep = curvature > curvature[-1] * len(curvature) * torch.finfo(torch.float64).eps
            curvature, axes = curvature[steep], axes[:, steep]
            kept = axes
    solution = torch.zeros_like(inputs)  # (C, k)
    # The second Newton step removes the rounding of the first: its gradient keeps small noise and large means
    # apart.
    for _ in range(2):
        residual = solution @ inputs.T - problem.targets  # (C, C)
        gradient = solution @ problem.noise + (residual * priors) @ inputs  # (C, k)
        if factor is None:
            solution = solution - (gradient @ axes / curvature) @ axes.T
        else:
            solution = solution - torch.cholesky_solve(gradient.T, factor).T
    return solution, kept


def _spread(problem: _Regression, weight: Tensor) -> Tensor:
    """1/2 tr(V P V^T), where rounding must not make a variance negative."""
    return 0.5 * ((weight @ problem.noise) * weight).sum().clamp_min(0)


def _squared_error(problem: _Regression, weight: Tensor, offset: Tensor, targets: Tensor) -> Tensor:
    """1/2 sum_c pi_c ||V x_c + offset - t_c||^2."""
    errors = weight @ problem.inputs.T + offset[:, None] - targets  # (C, C)
    return 0.5 * (errors.square() * problem.priors).sum()


def _check_lam(lam: float) -> None:
    if not (lam >= 0 and math.isfinite(lam)):
        raise ValueError(f"lam must be finite and >= 0, got {lam}")

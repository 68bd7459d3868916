"""The training problem itself: its data, its two losses, and their conjugates.

Everything in this package works on the CPU in float64, on sums over samples rather than means:

    L(weight, alpha) = loss(f) + beta / 2 * sum_j (|u_j|^2 + alpha_j^2),    f = sum_j alpha_j (x u_j)_+

with rows `u_j` of `weight`. `squared` is ``1/2 |z - y|^2`` and `logistic` is ``sum log(1 + exp(-y z))`` for labels
-1 and +1. A bias is a column of ones in `x`, and decayed as every other weight.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

Loss = Literal["squared", "logistic"]


def check_features(x: Tensor) -> Tensor:
    """Return the data matrix as CPU float64, shape (n, d).

    Raises:
        ValueError: `x` is no matrix, is empty, or has entries that are not finite.
    """
    x = torch.as_tensor(x).detach().to("cpu", torch.float64)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"x must be a matrix of n samples by d features, both at least 1; got shape {tuple(x.shape)}.")
    if not x.isfinite().all():
        raise ValueError(f"x has {int((~x.isfinite()).sum())} entries that are not finite; drop or impute them.")
    return x


def check_targets(y: Tensor, x: Tensor, loss: Loss) -> Tensor:
    """Return the targets as CPU float64, shape (n,); one column is accepted.

    Raises:
        ValueError: `y` has another length than `x`, is not finite, or is not -1/+1 under the logistic loss; or the
            loss is unknown.
    """
    if loss not in ("squared", "logistic"):
        raise ValueError(f"loss must be 'squared' or 'logistic'; got {loss!r}.")
    y = torch.as_tensor(y).detach().to("cpu", torch.float64)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape != (len(x),):
        raise ValueError(f"y must have one target for each of the {len(x)} samples of x; got shape {tuple(y.shape)}.")
    if not y.isfinite().all():
        raise ValueError(f"y has {int((~y.isfinite()).sum())} entries that are not finite; drop those samples.")
    if loss == "logistic" and not (y.abs() == 1).all():
        raise ValueError("y must be -1 or +1 under the logistic loss; 0/1 labels become 2 * y - 1.")
    return y


def check_beta(beta: float) -> float:
    """Return the strength of the weight decay.

    Raises:
        ValueError: `beta` is not a positive finite number.
    """
    if not (isinstance(beta, (int, float)) and math.isfinite(beta) and beta > 0):
        raise ValueError(
            f"beta must be a positive finite number (without weight decay there is no theorem); got {beta}."
        )
    return float(beta)


def check_network(x: Tensor, weight: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Return both layers as CPU float64, shapes (m, d) and (m,).

    Raises:
        ValueError: the shapes do not fit each other or `x`, or an entry is not finite.
    """
    weight = torch.as_tensor(weight).detach().to("cpu", torch.float64)
    alpha = torch.as_tensor(alpha).detach().to("cpu", torch.float64)
    if weight.ndim != 2 or weight.shape[1] != x.shape[1]:
        raise ValueError(f"weight must be (neurons, {x.shape[1]}) as x has; got shape {tuple(weight.shape)}.")
    if alpha.shape != weight.shape[:1]:
        raise ValueError(
            f"alpha must have one entry for each of the {len(weight)} rows of weight; got {tuple(alpha.shape)}."
        )
    if not (weight.isfinite().all() and alpha.isfinite().all()):
        raise ValueError("weight and alpha must be finite; this network has diverged.")
    return weight, alpha


def loss_value(z: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """Sum of the per-sample losses of outputs `z`, shape (n,): a scalar, differentiable."""
    if loss == "squared":
        return 0.5 * (z - y).square().sum()
    total: Tensor = softplus(-y * z).sum()
    return total


def loss_gradient(z: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """Gradient of `loss_value` with respect to `z`, shape (n,): the dual variable nu that belongs to these outputs."""
    if loss == "squared":
        return z - y
    return -y * torch.sigmoid(-y * z)


def dual_value(nu: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """The dual objective ``-loss*(nu)``, a scalar; minus infinity outside its domain.

    The optimal value of training is its maximum over all `nu` with ``max_{|u| <= 1} |nu . (x u)_+| <= beta``.
    """
    if loss == "squared":
        return -0.5 * nu.square().sum() - nu @ y
    q = -y * nu
    if (q < 0).any() or (q > 1).any():
        return torch.tensor(-math.inf, dtype=nu.dtype)
    entropy: Tensor = torch.special.xlogy(q, q) + torch.special.xlogy(1 - q, 1 - q)
    return -entropy.sum()


def import_scipy_optimize() -> Any:
    """Return ``scipy.optimize``.

    Raises:
        ImportError: scipy is not installed; names the extra.
    """
    try:
        import scipy.optimize
    except ImportError as error:
        raise ImportError("this needs scipy: pip install 'lit-papers[convex]'.") from error
    return scipy.optimize


def project_on_cone(c: Tensor, rows: Tensor) -> Tensor:
    """Nearest point to `c`, shape (d,), of the cone ``{u : rows @ u >= 0}``, for rows (k, d).

    By Moreau the projection is ``c + rows^T lam`` for the non-negative `lam` that makes it shortest: non-negative least
    squares with d equations. Whatever `lam` a solver returns, the length is an upper bound on the projection's.
    """
    optimize = import_scipy_optimize()
    lengths = rows.norm(dim=1)
    rows = rows[lengths > 0] / lengths[lengths > 0, None]
    size = float(c.norm())
    if len(rows) == 0 or bool((rows @ c >= -1e-14 * size).all()):
        return c
    matrix, target = rows.T.numpy(), -(c / size).numpy()
    best = c / size
    # nnls is fast and exact, but where many rows are tight it can stop at a wrong point; the others are slower
    solvers: tuple[Callable[[], Any], ...] = (
        lambda: optimize.nnls(matrix, target, maxiter=30 * len(rows) + 100)[0],
        lambda: optimize.lsq_linear(matrix, target, bounds=(0, math.inf), method="bvls", tol=1e-15).x,
        lambda: optimize.lsq_linear(matrix, target, bounds=(0, math.inf), method="trf", tol=1e-15, max_iter=1000).x,
    )
    for solve in solvers:
        try:
            lam = torch.from_numpy(np.maximum(solve(), 0.0))
        except RuntimeError:  # too many iterations
            continue
        point = c / size + rows.T @ lam
        if point.norm() < best.norm():
            best = point
        if bool((rows @ point >= -1e-10).all()) and float((point @ (rows.T @ lam)).abs()) <= 1e-10:
            break
    return best * size

"""The losses of a network's outputs: value, gradient, conjugate, and the best output bias.

All are sums over samples, each with its weight. Outputs and targets have shape (n,), or (n, k) for k outputs:

* ``squared``: ``1/2 |z - y|^2``;
* ``logistic``: ``log(1 + exp(-y z))`` for labels -1 and +1, one output;
* ``cross_entropy``: ``-sum_c y_c log softmax(z)_c`` for class probabilities `y`, mostly one-hot.
"""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import softplus

Loss = Literal["squared", "logistic", "cross_entropy"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
_FARTHEST = 40.0  # log odds beyond which float64 sees no loss


def check_loss(loss: str) -> Loss:
    """Return the name of a loss.

    Raises:
        ValueError: it is unknown.
    """
    for known in LOSSES:
        if loss == known:
            return known
    raise ValueError(f"loss must be 'squared', 'logistic' or 'cross_entropy'; got {loss!r}.")


def loss_value(z: Tensor, y: Tensor, loss: Loss, weights: Tensor | None = None) -> Tensor:
    """Weighted sum of the per-sample losses of outputs `z`: a scalar, differentiable."""
    if loss == "squared":
        losses = 0.5 * (z - y).square()
        losses = losses.sum(1) if losses.ndim == 2 else losses
    elif loss == "logistic":
        losses = softplus(-y * z)
    else:
        losses = z.logsumexp(1) - (y * z).sum(1)
    total: Tensor = losses.sum() if weights is None else weights @ losses
    return total


def loss_gradient(z: Tensor, y: Tensor, loss: Loss, weights: Tensor | None = None) -> Tensor:
    """Gradient of `loss_value` with respect to `z`, shaped as it: the dual variable nu of these outputs."""
    if loss == "squared":
        gradient = z - y
    elif loss == "logistic":
        gradient = -y * torch.sigmoid(-y * z)
    else:
        gradient = z.softmax(1) - y
    return gradient if weights is None else per_row(weights, gradient) * gradient


def dual_value(nu: Tensor, y: Tensor, loss: Loss, weights: Tensor | None = None) -> Tensor:
    """The dual objective ``-loss*(nu)``, a scalar; minus infinity outside its domain.

    The optimal value of training is its maximum over all `nu` with ``max_{|u| <= 1} |nu^T (x u)_+| <= beta``, and
    whose columns sum to zero where the outputs have a bias.
    """
    each = nu if weights is None else nu / per_row(weights, nu)
    if loss == "squared":
        values = -0.5 * each.square() - each * y
        values = values.sum(1) if values.ndim == 2 else values
    elif loss == "logistic":
        chance = -y * each
        if (chance < 0).any() or (chance > 1).any():
            return torch.tensor(-torch.inf, dtype=nu.dtype)
        values = -torch.special.xlogy(chance, chance) - torch.special.xlogy(1 - chance, 1 - chance)
    else:
        chance = y + each
        slack = 64 * torch.finfo(nu.dtype).eps
        if (chance < -slack).any() or ((chance.sum(1) - 1).abs() > slack * chance.shape[1]).any():
            return torch.tensor(-torch.inf, dtype=nu.dtype)
        chance = chance.clamp(0, 1)
        values = -torch.special.xlogy(chance, chance).sum(1)
    total: Tensor = values.sum() if weights is None else weights @ values
    return total


def best_bias(z: Tensor, y: Tensor, loss: Loss, weights: Tensor | None = None) -> Tensor:
    """The constant, shape () or (k,), whose addition to the outputs `z` makes the loss smallest, by Newton's method.

    Where only one class occurs it is infinite; then log odds of 40 stand for it.
    """
    shares = z.new_ones(len(z)) if weights is None else weights
    shares = shares / shares.sum()
    if loss == "squared":
        return shares @ (y - z)
    bias = z.new_zeros(z.shape[1:])
    here = loss_value(z, y, loss, shares)
    for _ in range(100):
        gradient = loss_gradient(z + bias, y, loss, shares).sum(0)
        if gradient.abs().max() <= 1e-15:
            break
        if loss == "logistic":
            chance = torch.sigmoid(z + bias)
            step = -gradient / (shares @ (chance * (1 - chance))).clamp_min(1e-12)
        else:
            chance = (z + bias).softmax(1)
            curvature = torch.diag(shares @ chance) - chance.T @ (shares[:, None] * chance)
            # the constant vector is its null space, and no class needs a curvature of zero
            step = -torch.linalg.solve(
                curvature + 1e-12 * torch.eye(len(bias), dtype=z.dtype) + 1 / len(bias), gradient
            )
        length = 1.0
        while length > 1e-9:
            following = (bias + length * step).clamp(-_FARTHEST - z.abs().max(), _FARTHEST + z.abs().max())
            value = loss_value(z + following, y, loss, shares)
            if value <= here:
                break
            length /= 2
        else:
            break
        if bool((following == bias).all()):
            break
        bias, here = following, value
    return bias


def without_mean(nu: Tensor, y: Tensor, loss: Loss, weights: Tensor | None = None) -> Tensor:
    """The dual variable nearest to `nu` (nearly) whose columns sum to zero exactly: feasible with an output bias.

    For the cross-entropies it stays in the conjugate's domain: what one side has too much of is scaled down.
    """
    if loss == "squared":
        shares = nu.new_ones(len(nu)) if weights is None else weights
        return nu - per_row(shares, nu) * (nu.sum(0) / shares.sum())
    up, down = nu.clamp_min(0), nu.clamp_max(0)
    if loss == "logistic":
        rise, fall = up.sum(0), -down.sum(0)
        even = torch.minimum(rise, fall)
        return up * (even / rise.clamp_min(1e-300)) + down * (even / fall.clamp_min(1e-300))
    # the probabilities y + nu are mixed with one constant row `rest`, chosen so that the sums vanish
    shares = nu.new_ones(len(nu)) if weights is None else weights
    mean, excess = (shares @ y) / shares.sum(), nu.sum(0) / shares.sum()
    over = torch.where(excess > 0, excess, 1.0)  # a gradient must not meet 1 / 0, also where it is not taken
    room = torch.where(excess > 0, mean / over, torch.inf).min()
    if not room.isfinite():
        return nu
    part = 1 / (1 + room)
    rest = (mean - room * excess).clamp_min(0)
    return (1 - part) * nu + part * shares[:, None] * (rest - y)


def per_row(weights: Tensor, like: Tensor) -> Tensor:
    """Weights (n,), shaped to multiply the rows of `like`, (n,) or (n, k)."""
    return weights if like.ndim == 1 else weights[:, None]

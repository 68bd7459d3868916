"""The training problem itself, checked and scaled once.

Everything in this package works on the CPU in float64, on sums over samples rather than means:

    L(weight, alpha, bias) = sum_k w_k loss(f_k, y_k) + beta / 2 * sum_j (|u_j|^2 + |alpha_j|^2)
    f = sum_j (x u_j)_+ alpha_j + bias

with rows `u_j` of `weight`. A hidden bias is a column of ones in `x`, and decayed as every other weight; the output
bias is not decayed, and absent unless asked for.

The problem is homogeneous: ``(x, y, beta) -> (a x, c y, a c beta)`` multiplies the squared loss by ``c^2`` and changes
nothing else. So `Problem` holds data of unit size, on which tolerances have a meaning, and knows the way back.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lit_papers.convex_relu.losses import (
    Loss,
    best_bias,
    check_loss,
    dual_value,
    loss_gradient,
    loss_value,
    without_mean,
)


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
    """Return the targets as CPU float64, shape (n,), or (n, k) for k > 1 outputs; one column is accepted.

    Raises:
        ValueError: `y` has another length than `x`, is not finite, or is not what the loss takes: -1/+1 under the
            logistic loss, rows of probabilities under the cross-entropy; or the loss is unknown.
    """
    check_loss(loss)
    y = torch.as_tensor(y).detach().to("cpu", torch.float64)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim not in (1, 2) or len(y) != len(x) or 0 in y.shape:
        raise ValueError(f"y must have one target for each of the {len(x)} samples of x; got shape {tuple(y.shape)}.")
    if not y.isfinite().all():
        raise ValueError(f"y has {int((~y.isfinite()).sum())} entries that are not finite; drop those samples.")
    if loss == "logistic" and (y.ndim != 1 or not (y.abs() == 1).all()):
        raise ValueError("y must be -1 or +1 under the logistic loss; 0/1 labels become 2 * y - 1.")
    if loss == "cross_entropy" and (y.ndim != 2 or bool((y < 0).any()) or not torch.allclose(y.sum(1), y.new_ones(()))):
        raise ValueError(
            "y must have a row of class probabilities for each sample under the cross-entropy; class indices become "
            "torch.nn.functional.one_hot(y)."
        )
    return y


def check_beta(beta: Any) -> float:
    """Return the strength of the weight decay, given as a number, a NumPy scalar or a tensor of one entry.

    Raises:
        ValueError: `beta` is not a positive finite number.
    """
    try:
        number = math.nan if isinstance(beta, (bool, str)) else float(beta)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise ValueError(
            f"beta must be a positive finite number (without weight decay there is no theorem); got {beta}."
        )
    return number


def check_network(x: Tensor, weight: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Return both layers as CPU float64, shapes (m, d) and (m,) or (m, k).

    Raises:
        ValueError: the shapes do not fit each other or `x`, or an entry is not finite.
    """
    weight = torch.as_tensor(weight).detach().to("cpu", torch.float64)
    alpha = torch.as_tensor(alpha).detach().to("cpu", torch.float64)
    if weight.ndim != 2 or weight.shape[1] != x.shape[1]:
        raise ValueError(f"weight must be (neurons, {x.shape[1]}) as x has; got shape {tuple(weight.shape)}.")
    if alpha.ndim not in (1, 2) or alpha.shape[:1] != weight.shape[:1]:
        raise ValueError(
            f"alpha must have one entry for each of the {len(weight)} rows of weight; got {tuple(alpha.shape)}."
        )
    if not (weight.isfinite().all() and alpha.isfinite().all()):
        raise ValueError("weight and alpha must be finite; this network has diverged.")
    return weight, alpha[:, 0] if alpha.ndim == 2 and alpha.shape[1] == 1 else alpha


def fingerprint(*values: Any) -> str:
    """A digest of numbers and tensors by value: two float64 copies of one tensor have one fingerprint."""
    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        if isinstance(value, Tensor):
            plain = value.detach().to("cpu", torch.float64).contiguous() + 0.0  # no negative zeros
            digest.update(repr(tuple(plain.shape)).encode() + plain.numpy().tobytes())
        else:
            digest.update(repr(value).encode())
        digest.update(b"|")
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Problem:
    """A training problem in units in which its data are of size one; make it with `Problem.of`.

    Attributes:
        x: (n, d), its largest entry between 1 and 2.
        y: (n,) or (n, k); of that size too under the squared loss, and centred if there is an output bias.
        beta: strength of the weight decay in these units.
        loss: of the outputs.
        weights: (n,) of the samples, mean 1; None for equal ones.
        output_bias: the outputs have a bias, which is not decayed.
        x_unit: what `x` was divided by, a power of two.
        y_unit: what `y` was divided by, a power of two.
        y_shift: what was subtracted from `y` before, shape () or (k,).
        unit: what the objective was divided by.
        data: fingerprint of the user's `x`, which activation patterns depend on.
        name: fingerprint of the whole problem as the user gave it.
    """

    x: Tensor
    y: Tensor
    beta: float
    loss: Loss
    weights: Tensor | None
    output_bias: bool
    x_unit: float
    y_unit: float
    y_shift: Tensor
    unit: float
    data: str
    name: str

    @classmethod
    def of(
        cls,
        x: Tensor,
        y: Tensor,
        beta: float,
        *,
        loss: Loss = "squared",
        weights: Tensor | None = None,
        output_bias: bool = False,
    ) -> "Problem":
        """Check the data and bring them to unit size.

        Args:
            x: data, (n, d).
            y: targets, (n,) or (n, k); -1 and +1 under the logistic loss, class probabilities (n, k) under the
                cross-entropy.
            beta: strength of the weight decay, positive.
            loss: of the outputs.
            weights: positive weights of the samples, (n,).
            output_bias: the outputs have a bias, which is not decayed.

        Raises:
            ValueError: the data are malformed; the message names the argument.
        """
        x = check_features(x)
        y = check_targets(y, x, loss)
        beta = check_beta(beta)
        if weights is not None:
            weights = torch.as_tensor(weights).detach().to("cpu", torch.float64)
        name = fingerprint(x, y, beta, loss, weights, output_bias)
        data = fingerprint(x)
        mean_weight = 1.0
        if weights is not None:
            if weights.shape != (len(x),) or not bool((weights > 0).all() and weights.isfinite().all()):
                raise ValueError(
                    f"weights must be {len(x)} positive finite numbers; leave samples of weight zero out. Got shape "
                    f"{tuple(weights.shape)}."
                )
            mean_weight = float((weights / weights.max()).mean() * weights.max())
            weights = weights / mean_weight
        x_unit, y_unit, y_shift = _power_of_two(x), 1.0, y.new_zeros(y.shape[1:])
        if loss == "squared":
            y_unit = _power_of_two(y)
            y = y / y_unit
            if output_bias:  # the outputs' mean is the bias': what is left is the network's
                y_shift = best_bias(torch.zeros_like(y), y, loss, weights) * y_unit
                rounding = 4 * torch.finfo(y.dtype).eps * y.abs().amax(0)
                y = y - y_shift / y_unit
                y = torch.where(y.abs().amax(0) <= rounding, 0.0, y)  # of constant targets nothing is left but that
                more = _power_of_two(y)
                y, y_unit = y / more, y_unit * more
        scaled = beta / x_unit / y_unit / mean_weight
        if scaled == 0:
            raise ValueError(f"beta={beta:g} is nothing beside data of size {x_unit:g} and targets of size {y_unit:g}.")
        unit = mean_weight * y_unit * y_unit
        if unit == 0 or not math.isfinite(unit):
            raise ValueError(f"y has a size of {y_unit:g}, whose square is no float64; scale it.")
        return cls(
            x / x_unit, y, scaled, check_loss(loss), weights, output_bias, x_unit, y_unit, y_shift, unit, data, name
        )

    @property
    def num_outputs(self) -> int:
        """k, the number of outputs."""
        return 1 if self.y.ndim == 1 else self.y.shape[1]

    @cached_property
    def at_zero(self) -> float:
        """Loss of the network without neurons, with the best output bias, in these units: the scale of tolerances."""
        return float(self.value(torch.zeros_like(self.y)))

    def scaled(self, weight: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """A network of the user's in these units: both layers times one factor.

        Raises:
            ValueError: it does not fit the data, or is not finite.
        """
        weight, alpha = check_network(self.x, weight, alpha)
        if alpha.shape[1:] != self.y.shape[1:]:
            raise ValueError(f"alpha must have {self.num_outputs} columns as y has; got shape {tuple(alpha.shape)}.")
        factor = math.sqrt(self.x_unit) / math.sqrt(self.y_unit)
        return factor * weight, factor * alpha

    def unscaled(self, weight: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """A network in these units as the user's: the inverse of `scaled`."""
        factor = math.sqrt(self.y_unit) / math.sqrt(self.x_unit)
        return factor * weight, factor * alpha

    def bias(self, outputs: Tensor) -> Tensor:
        """The best output bias for outputs without one, shape () or (k,); zero if the problem has none."""
        if not self.output_bias:
            return outputs.new_zeros(outputs.shape[1:])
        return best_bias(outputs, self.y, self.loss, self.weights)

    def value(self, outputs: Tensor) -> Tensor:
        """Loss of outputs without their bias, to which the best is added; a scalar."""
        return loss_value(outputs + self.bias(outputs), self.y, self.loss, self.weights)

    def dual(self, outputs: Tensor) -> Tensor:
        """The dual variable that belongs to outputs without their bias, shaped as they are."""
        nu = loss_gradient(outputs + self.bias(outputs), self.y, self.loss, self.weights)
        return without_mean(nu, self.y, self.loss, self.weights) if self.output_bias else nu

    def bound(self, nu: Tensor, sup: float) -> float:
        """Lower bound on the optimal value from a dual variable whose dual norm is at most `sup`.

        `nu` is scaled into the feasible set, and to where the dual objective is largest on its ray.
        """
        if self.loss == "squared":
            squares = nu.square().movedim(0, -1) if self.weights is None else nu.square().movedim(0, -1) / self.weights
            size = float(squares.sum())
            if size == 0:
                return 0.0
            best = -float((nu * self.y).sum()) / size
            reach = self.beta / sup if sup > 0 else math.inf
            best = max(-reach, min(best, reach))
            return max(float(dual_value(best * nu, self.y, self.loss, self.weights)), 0.0)
        reach = min(1.0, self.beta / sup) if sup > 0 else 1.0
        return max(self._highest(nu, reach), 0.0)

    def _highest(self, nu: Tensor, reach: float) -> float:
        """Largest dual objective on ``t nu`` for t in [0, reach]; it is concave in t."""
        best = float(dual_value(reach * nu, self.y, self.loss, self.weights))
        low, high = 0.0, reach
        for _ in range(30):  # golden section
            cut = 0.381966 * (high - low)
            left, right = (float(dual_value(t * nu, self.y, self.loss, self.weights)) for t in (low + cut, high - cut))
            best = max(best, left, right)
            low, high = (low + cut, high) if left < right else (low, high - cut)
        return best


def _power_of_two(values: Tensor) -> float:
    """The power of two that brings the largest entry between 1 and 2; 1 for zeros. Division by it is exact."""
    largest = float(values.abs().max())
    return math.ldexp(1.0, math.frexp(largest)[1] - 1) if largest > 0 else 1.0


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

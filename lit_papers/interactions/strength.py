r"""How strong the interactions of each order are, with what noise and rounding leave open.

S^(m) is a mean of magnitudes, and the magnitude of a noisy number is too large on average: of a number that is 0, by
0.8 standard errors. No function of the data estimates a magnitude without bias, but two bracket it. With
:math:`\hat I = \sum_g w_g \hat I_g` over independent groups of contexts,

.. math:: L = \sum_g w_g \operatorname{sign}(\hat I_{-g}) \hat I_g, \qquad U = |\hat I|, \qquad
          \mathbb{E} L \le |I| \le \mathbb{E} U

whatever the distribution of the noise: a sign that comes from the *other* groups cannot make a group's own error
positive. Between them, :math:`\sqrt{\bar L \bar U}` is the estimate: exact where interactions and noise are normal.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

NORMAL_95 = 1.96
ROUNDING_WIDTH = 2.0  # standard deviations: the mean magnitude of rounding errors alone is 0.8 of one


class Magnitudes(NamedTuple):
    """What B samples contribute to the strength of M orders; rows of several processes are simply joined.

    Attributes:
        upper: sum of U over pairs, float64, ``(B, M)``.
        lower: sum of L over pairs, float64, ``(B, M)``; NaN where a pair has one group of contexts.
        number: of pairs, float64, ``(B, M)``.
        error: standard error of the mean of L or U over pairs, from sampled contexts, float64, ``(B, M)``.
        unseen: what rare contexts that were not drawn may add to that mean, float64, ``(B, M)``.
        noise: mean of the pairs' standard errors, float64, ``(B, M)``.
        rounding: standard deviation of what rounding does to an interaction, float64, ``(B, M)``.
    """

    upper: Tensor
    lower: Tensor
    number: Tensor
    error: Tensor
    unseen: Tensor
    noise: Tensor
    rounding: Tensor


@dataclass(frozen=True)
class StrengthCurve:
    """Strength of each order, in the units of the value function (log-odds); float64, ``(M,)``.

    Attributes:
        strength: S; NaN where it is not resolved, that is where ``strength_band`` begins at 0.
        strength_band: ``(2, M)``, lower and upper end of what S of these samples and pairs may be, at 95 %: the bracket
            of the magnitude, widened by sampling noise and rounding. Its upper end holds also where S is not resolved.
        strength_error: standard error of S over samples: what other samples would give; NaN for one sample.
        relative_strength: J, S by its mean over orders; NaN where S is.
        relative_band: ``(2, M)``, likewise.
        relative_error: standard error of J over samples.
        noise_floor: what a mean magnitude would be if all interactions were 0, from sampling noise and rounding.
    """

    strength: Tensor
    strength_band: Tensor
    strength_error: Tensor
    relative_strength: Tensor
    relative_band: Tensor
    relative_error: Tensor
    noise_floor: Tensor

    @property
    def resolved(self) -> Tensor:
        """Where strength stands above noise and rounding: bool, ``(M,)``."""
        return self.strength_band[0] > 0


def strength_curve(rows: Magnitudes) -> StrengthCurve:
    """The curve of all samples together; J is a ratio of means.

    Args:
        rows: of B >= 1 samples.

    Returns:
        The curve.

    >>> one = torch.ones(2, 3, dtype=torch.float64)
    >>> strength_curve(Magnitudes(6 * one, 6 * one, 2 * one, *(4 * [0 * one]))).strength
    tensor([3., 3., 3.], dtype=torch.float64)
    """
    samples = len(rows.upper)
    estimate, lower, upper = _estimate(rows.upper.nansum(0), rows.lower.sum(0), rows.number.sum(0))
    weight = rows.number / rows.number.sum(0)  # (B, M)
    noise = NORMAL_95 * _quadratic_mean(weight, rows.error)
    rounding = (weight * rows.rounding).sum(0)
    low = (lower - noise - ROUNDING_WIDTH * rounding).nan_to_num(0.0).clamp(min=0)
    unseen = _quadratic_mean(weight, rows.unseen)
    high = upper + noise + unseen + ROUNDING_WIDTH * rounding
    unknown = torch.full_like(estimate, torch.nan)
    known = low > 0
    nothing = (upper == 0) & (unseen == 0)  # all contexts were evaluated, and the network does nothing at all
    relative = estimate / estimate.nan_to_num(0.0).mean()
    strength_error = relative_error = unknown
    if samples > 1:
        without, _, _ = _estimate(
            *(whole.nansum(0) - whole.nan_to_num() for whole in (rows.upper, rows.lower, rows.number))
        )  # (B, M), of all samples but one
        strength_error = jackknife_error(without)
        relative_error = jackknife_error(without / without.nan_to_num().mean(1, keepdim=True))
    orders = len(estimate)
    others_low, others_high = low.sum() - low, high.nan_to_num().sum() - high.nan_to_num()
    return StrengthCurve(
        strength=torch.where(known | nothing, estimate, unknown),
        strength_band=torch.stack([low, high]),
        strength_error=strength_error,
        relative_strength=torch.where(known | nothing, relative, unknown),
        relative_band=orders * torch.stack([low / (low + others_high), high / (high + others_low)]),
        relative_error=torch.where(known, relative_error, unknown),
        noise_floor=(2 / torch.pi) ** 0.5 * ((weight * rows.noise).nansum(0).square() + rounding.square()).sqrt(),
    )


def _quadratic_mean(weight: Tensor, errors: Tensor) -> Tensor:
    """Error of a weighted mean of independent samples; NaN where no sample has one."""
    found = (weight * errors).square().nansum(0).sqrt()
    return torch.where(errors.isnan().all(0), torch.nan, found)


def _estimate(upper: Tensor, lower: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    upper, lower = upper / count, lower / count
    return (lower.clamp(min=0) * upper).sqrt(), lower, upper


def jackknife_error(without: Tensor) -> Tensor:
    """Standard error from the values without each of B samples: ``(B, ...)`` to ``(...)``."""
    samples = len(without)
    return ((without - without.mean(0)).square().sum(0) * (samples - 1) / samples).sqrt()

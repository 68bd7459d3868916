"""BREC's statistic: Hotelling's paired T2 test on embeddings of relabelled graphs (Wang & Zhang, 2024)."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor


class PairedT2(NamedTuple):
    """Outcome of a paired test on embeddings.

    Attributes:
        statistic: NaN where it is degenerate.
        threshold: above which the graphs count as different.
        p_value: None for the released rule.
        distinguished: they do.
        degenerate: the differences span fewer dimensions than they have, and the size of their mean decides.
    """

    statistic: float
    threshold: float
    p_value: float | None
    distinguished: bool
    degenerate: bool


def paired_t2(
    left: Tensor, right: Tensor, *, rule: Literal["f-test", "released"] = "f-test", alpha: float = 0.05
) -> PairedT2:
    """Hotelling's paired T2 test on embeddings of q relabelings of two graphs, (q, d) each; the statistic of BREC.

    BREC's code compares ``mean' pinv(cov) mean`` with 72.34, which is ``(q - 1) d / (q - d)`` times an F quantile for
    q = 32 and d = 16. That belongs to q times the statistic, so its true level is far below the 0.05 that is meant. The
    rule ``released`` reproduces the published numbers, ``f-test`` has the factor q.

    Raises:
        ValueError: shapes differ, q is not above d or below 2, an entry is not finite, or alpha is not in (0, 1).
    """
    if left.shape != right.shape or left.ndim != 2:
        raise ValueError(f"left and right must be (q, d) both; got {tuple(left.shape)} and {tuple(right.shape)}.")
    if rule not in ("f-test", "released"):
        raise ValueError(f"rule must be 'f-test' or 'released'; got {rule!r}.")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1; got {alpha}.")
    q, d = left.shape
    if q < 2:
        raise ValueError(f"the differences need at least two relabelings to vary; got q={q}.")
    left, right = (side if side.is_floating_point() else side.double() for side in (left, right))
    if not (left.isfinite().all() and right.isfinite().all()):
        raise ValueError("left and right must be finite; this network gives no embeddings that could be compared.")
    if rule == "f-test" and q <= d:
        raise ValueError(f"the F test needs more relabelings than dimensions; got q={q}, d={d}.")
    difference = (left - right).double()
    mean = difference.mean(0)
    spread = torch.cov(difference.T).reshape(d, d)
    statistic = float(mean @ torch.linalg.pinv(spread) @ mean)
    if rule == "released":
        return PairedT2(statistic, 72.34, None, statistic > 72.34, False)
    from scipy.stats import f as f_distribution

    factor = (q - 1) * d / (q - d)
    threshold = float(factor * f_distribution.ppf(1 - alpha, d, q - d))
    scale = float(torch.cat([left, right]).abs().max())
    eps = torch.finfo(left.dtype).eps
    noise = float((difference - mean).abs().max())
    if noise <= 1000 * eps * scale or int(torch.linalg.matrix_rank(spread)) < d:
        apart = float(mean.abs().max()) > 100 * max(noise, eps * scale)
        return PairedT2(float("nan"), threshold, float("nan"), apart, True)
    value = q * statistic
    p_value = float(f_distribution.sf(value / factor, d, q - d))
    return PairedT2(value, threshold, p_value, value > threshold, False)

"""From differences at sampled contexts to interactions, their errors, and what was not seen."""

from typing import NamedTuple

import torch
from torch import Tensor

from lit_papers.interactions.sampling import Plan
from lit_papers.interactions.strength import NORMAL_95

_MISSED = 0.05  # probability with which something that happens so rarely is never seen


class Averages(NamedTuple):
    """Of P pairs and M orders.

    Attributes:
        interactions: means over contexts, float64, ``(P, M)``.
        cross_fitted: L of `lit_papers.interactions.strength`, float64, ``(P, M)``; NaN for one group of contexts.
        error: standard errors, float64, ``(P, M)``; NaN for one group.
        contexts: int64, ``(P, M)``.
        order_error: standard error of the mean magnitude over pairs, float64, ``(M,)``; so widened for few groups that
            1.96 of it hold at 95 %.
        unseen: what differences that are as large as the largest, and too rare to be seen, may add to the mean
            magnitude over pairs, float64, ``(M,)``.
    """

    interactions: Tensor
    cross_fitted: Tensor
    error: Tensor
    contexts: Tensor
    order_error: Tensor
    unseen: Tensor


def average(values: Tensor, plan: Plan, pairs: int, orders: int, rounding: float) -> Averages:
    """Average the differences at the contexts of a plan.

    Contexts of one permutation depend on each other, so errors are those of sums over permutations (cluster-robust).
    Contexts that agree prove nothing about those that were not drawn: such a pair takes the mean variance of the other
    pairs at its order. Where all pairs agree, what was missed is rarer than 1 - 0.05^(1/K), and no larger than the
    largest difference of this sample at any order (if all are rounding, than the range of its values). Of a whole
    order, G groups of N differences see rare events better than G independent differences would, and worse than N:
    they are counted as sqrt(G N).

    Args:
        values: of the four coalitions of each entry, S, S+i, S+j and S+ij, float64, ``(4, E)``.
        plan: whose entries they are.
        pairs: P.
        orders: M.
        rounding: standard deviation of what rounding does to a difference.

    Returns:
        Averages.
    """
    neither, first, second, both = values
    differences = both - first - second + neither
    cell = plan.pair * orders + plan.order
    cells = pairs * orders
    count = torch.bincount(cell, minlength=cells)
    mean = _sums(differences, cell, cells) / count
    clusters = int(plan.cluster.max()) + 2
    group, place = torch.unique(cell * clusters + plan.cluster + 1, return_inverse=True)  # of a cell and a cluster
    owner = group // clusters
    sums, sizes = _sums(differences, place, len(group)), torch.bincount(place)
    deviation = sums - sizes * mean[owner]
    number = torch.bincount(owner, minlength=cells).double()
    error = (_sums(deviation.square(), owner, cells) * number / (number - 1)).sqrt() / count  # NaN for one group
    rest = (mean * count)[owner] - sums  # of the other groups, whose sign cannot know this group's error
    cross_fitted = _sums(sums * rest.sign(), owner, cells) / count
    cross_fitted[number < 2] = torch.nan

    complete = torch.zeros(cells, dtype=torch.bool)
    complete[cell[plan.cluster < 0]] = True
    error[complete] = 0.0
    cross_fitted[complete] = mean[complete].abs()

    share = mean.sign()[owner] * deviation / count[owner] / pairs
    together = (owner % orders) * clusters + group % clusters  # of an order and a cluster
    which, place = torch.unique(together, return_inverse=True)
    groups = torch.bincount(which // clusters, minlength=orders).double()
    squares = _sums(_sums(share, place, len(which)).square(), which // clusters, orders)
    order_error = (squares * groups / (groups - 1)).sqrt() * _student_95(groups - 1) / NORMAL_95
    largest = differences.abs().max()
    if largest <= rounding:
        largest = values.max() - values.min()
    if largest == 0:  # the network did not move at all: nothing tells what a difference could be
        largest = torch.full_like(largest, torch.nan)
    unseen = largest * _rarest((groups * torch.bincount(plan.order, minlength=orders)).sqrt())
    exhausted = complete.view(pairs, orders).all(0)
    order_error[exhausted] = unseen[exhausted] = 0.0

    error, agree = error.view(pairs, orders), ~complete.view(pairs, orders)
    agree &= (error <= rounding) & (number.view(pairs, orders) > 1)
    if agree.any():
        typical = error.square().nanmean(0).sqrt().expand_as(error)  # (P, M)
        nothing_seen = largest * _rarest(number.view(pairs, orders)) / NORMAL_95
        error = torch.where(agree, torch.where(agree.all(0), nothing_seen, typical), error)
    return Averages(
        mean.view(pairs, orders),
        cross_fitted.view(pairs, orders),
        error,
        count.view(pairs, orders),
        order_error,
        unseen,
    )


def _rarest(draws: Tensor) -> Tensor:
    """The largest probability of something that so many draws miss with probability ``_MISSED``."""
    probability: Tensor = 1 - _MISSED ** (1 / draws)
    return probability


def _student_95(freedom: Tensor) -> Tensor:
    """97.5 % quantile of Student's distribution, by its expansion at the normal one (Abramowitz & Stegun 26.7.5)."""
    z = NORMAL_95
    quantile: Tensor = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return quantile


def _sums(values: Tensor, place: Tensor, size: int) -> Tensor:
    return values.new_zeros(size).index_add_(0, place, values)

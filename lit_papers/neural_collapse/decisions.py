"""NC4: whether the classifier decides as the nearest class mean does (Papyan et al. 2020; Han et al., ICLR 2022).

The decision against the final means needs the features again, after the pass that found the means. Import the public
names from :mod:`lit_papers.neural_collapse.functional`; the bounded memory of a pass is
:class:`lit_papers.neural_collapse.reservoir.Reservoir`.
"""

import torch
from torch import Tensor

from lit_papers.neural_collapse.moments import full_precision
from lit_papers.neural_collapse.statistics import ClassStatistics

BLOCK_ROWS = 1024  # rows whose scores for all classes are in memory at a time


def ncc_mismatch(features: Tensor, logits: Tensor, stats: ClassStatistics) -> Tensor:
    r"""NC4: share of samples that the classifier and the nearest class mean classify differently.

    .. math:: \frac1N \left|\left\{ i : \arg\max_c z_{ic} \ne \arg\min_c \|h_i - \mu_c\| \right\}\right|

    Papyan et al. 2020 and Han et al., ICLR 2022, definition of NC4. Ties go to the first class.

    Args:
        features: inputs of the last linear layer, shape ``(N, d)``, any floating dtype.
        logits: its outputs, **with** the bias, shape ``(N, C)``.
        stats: statistics of the training features; a class never seen cannot be the nearest.

    Returns:
        Scalar in ``[0, 1]``.

    Raises:
        ValueError: shapes that do not fit, no samples, non-finite features, NaN logits, or fewer than two
            classes were seen.

    >>> stats = ClassStatistics(torch.tensor([2, 2]), torch.tensor([[2.0], [-2.0]]), torch.tensor([[4.0]]))
    >>> ncc_mismatch(torch.tensor([[3.0], [1.0]]), torch.tensor([[0.7, 0.3], [0.4, 0.6]]), stats)
    tensor(0.5000, dtype=torch.float64)
    """
    num_classes, dim = stats.means.shape
    if features.ndim != 2 or logits.shape != (len(features), num_classes):
        raise ValueError(
            f"expected features (N, {dim}) and logits (N, {num_classes}), "
            f"got shapes {tuple(features.shape)} and {tuple(logits.shape)}"
        )
    if len(features) == 0:
        raise ValueError("no samples: expected at least one row of features")
    if logits.isnan().any():
        raise ValueError("logits must not be NaN")
    nearest = nearest_class_mean(features, stats)
    return (logits.argmax(dim=1).to(nearest.device) != nearest).double().mean()


def nearest_class_mean(features: Tensor, stats: ClassStatistics) -> Tensor:
    r"""The class whose mean is nearest to each sample: the decision that NC4 compares with the classifier's.

    The same as the smallest of the direct float64 distances, at the price of a matrix product. With rows and means
    relative to the average mean, the nearest mean has the largest score

    .. math:: s_c = (h - g)^\top (\mu_c - g) - \tfrac12 \|\mu_c - g\|^2

    and in arithmetic of precision ``u`` a score of ``d`` terms is off by at most
    :math:`(d + 8)\,u\,(\|h - g\| + A) A` with :math:`A = \max_c \|\mu_c - g\|`. Where the best two scores are farther
    apart than two such errors (and one of the direct distances), the decision stands. It is taken in float32 first
    where the features fit it, then in float64; direct distances decide what is left, near-ties and ties.

    Args:
        features: inputs of the last linear layer, shape ``(N, d)``, any floating dtype.
        stats: statistics of the training features; a class never seen cannot be the nearest.

    Returns:
        Class indices, int64, shape ``(N,)``; ties go to the first class.

    Raises:
        ValueError: features are not ``(N, d)`` or not finite, or fewer than two classes were seen.

    >>> stats = ClassStatistics(torch.tensor([2, 2]), torch.tensor([[2.0], [-2.0]]), torch.tensor([[4.0]]))
    >>> nearest_class_mean(torch.tensor([[3.0], [-0.5]]), stats)
    tensor([0, 1])
    """
    if features.ndim != 2 or features.shape[1] != stats.means.shape[1]:
        raise ValueError(f"expected features (N, {stats.means.shape[1]}), got shape {tuple(features.shape)}")
    seen = (stats.counts > 0).nonzero()[:, 0]  # (C_seen,)
    if len(seen) < 2:
        raise ValueError(f"expected samples of at least two classes, got samples of {len(seen)}")
    search = _NearestMean(stats.means[seen])
    with torch.no_grad(), full_precision(seen.device):
        nearest = [search(rows.to(seen.device)) for rows in torch.split(features, BLOCK_ROWS)]
    return seen[torch.cat(nearest)] if nearest else seen.new_zeros(0)


class _NearestMean:
    """Decisions for blocks of rows against fixed means (C, d)."""

    def __init__(self, means: Tensor) -> None:
        # Equal means tie with each other whatever the row: only the first of them can win.
        _, group = torch.unique(means, dim=0, return_inverse=True)
        order = torch.arange(len(means), device=means.device)
        first = torch.full_like(group, len(means)).scatter_reduce(0, group, order, "amin")
        self.candidates = first[first < len(means)].sort().values  # (C',)
        self.means = means[self.candidates]
        # The centre is a float32 number, so that float32 rows lose nothing but the rounding of a difference.
        limit = torch.finfo(torch.float32).max
        self.center = self.means.mean(dim=0).clamp(-limit, limit).float().double()  # (d,)
        self.axes = self.means - self.center  # (C', d)
        self.offsets = self.axes.square().sum(dim=1) / 2
        self.size = self.axes.norm(dim=1).max()

    def __call__(self, rows: Tensor) -> Tensor:
        """Nearest means (b,) of rows (b, d)."""
        if len(self.candidates) == 1:
            self._by_distance(rows)  # for the refusal of what is not finite
            return self.candidates.expand(len(rows))
        nearest, decided = self._by_product(rows, torch.promote_types(rows.dtype, torch.float32))
        left = (~decided).nonzero()[:, 0]
        if len(left) > 0 and rows.dtype != torch.float64:
            nearest[left], decided = self._by_product(rows[left], torch.float64)
            left = left[~decided]
        if len(left) > 0:
            nearest[left] = self._by_distance(rows[left])
        return self.candidates[nearest]

    def _by_product(self, rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The candidate with the best score (b,), and whether its lead is more than rounding (b,)."""
        offsets = rows.to(dtype) - self.center.to(dtype)  # (b, d)
        scores = torch.addmm(-self.offsets.to(dtype), offsets, self.axes.to(dtype).T)  # (b, C')
        best, nearest = scores.max(dim=1)
        second = scores.scatter_(1, nearest[:, None], -torch.inf).amax(dim=1)
        length = torch.linalg.vector_norm(offsets, dim=1, dtype=torch.float64) + self.size  # (b,)
        rounding = _rounding(dtype, rows.shape[1]) * 2 * self.size
        error = (rounding + _rounding(torch.float64, rows.shape[1]) * length) * length
        underflow = 4 * rows.shape[1] * torch.finfo(dtype).tiny
        return nearest, best.double() - second.double() > error + underflow  # NaN is larger than nothing

    def _by_distance(self, rows: Tensor) -> Tensor:
        """The candidate at the smallest direct distance (b,)."""
        if not torch.isfinite(rows).all():
            raise ValueError("non-finite features: got NaN or Inf")
        parts = [
            torch.cdist(part.double(), self.means, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
            for part in torch.split(rows, BLOCK_ROWS)
        ]
        return torch.cat(parts)


def _rounding(dtype: torch.dtype, terms: int) -> float:
    """Relative error of a sum of that many products, in any order (Higham 2002, section 3.1), with some to spare."""
    unit = (terms + 8) * torch.finfo(dtype).eps / 2
    return unit / (1 - unit) if unit < 1 else float("inf")

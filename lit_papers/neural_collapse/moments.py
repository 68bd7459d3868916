r"""Class moments about pilot means: the running sums behind the class statistics, one matrix product a batch.

Every row is taken relative to a *pilot*, a first guess at the mean of its class, so that neither an offset of the
features nor deep collapse costs digits, and a class that is absent from a batch costs nothing: no array of all
classes is touched. The exact means come out at the end,

.. math:: \mu_c = p_c + s_c / n_c, \qquad
          N\Sigma_W = \sum_i (h_i - p_{y_i})(h_i - p_{y_i})^\top - \sum_c s_c s_c^\top / n_c, \qquad
          s_c = \sum_{y_i = c} (h_i - p_c)

which is the shifted form of the textbook variance (Chan, Golub & LeVeque 1983).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

# Rows taken at a time: enough for a full-speed matrix product, 8 MB in float64 at 2048 features.
BLOCK_ROWS = 512
# Columns of a block of the symmetric product: at d = 512 it needs 36/64 of the operations of a full product.
BLOCK_COLUMNS = 64
# Before these blocks the pilots move to the means found so far, in case that the first rows of a class were unlike
# the others: as many digits as they lie away would be lost. Each costs a product over the classes.
RECENTRED_BEFORE = frozenset(16**power for power in range(1, 9))


class Moments(NamedTuple):
    """Views of one packed float64 vector, so that one reduction merges them all.

    Each view is contiguous: rows that are added to by class would cost eight times as much in a matrix with a margin.

    Attributes:
        counts: rows of each class, (C,).
        pilots: what the rows of each class are taken relative to, (C, d).
        spreads: sum of the squared lengths of the residuals of each class, (C,).
        sums: sum of the residuals of each class, (C, d).
        scatter: sum of the outer products of all residuals, (d, d); only its upper triangle means anything.
    """

    counts: Tensor
    pilots: Tensor
    spreads: Tensor
    sums: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, packed: Tensor, num_classes: int) -> "Moments":
        """The views of ``[counts, spreads, pilots, sums, scatter]``, each in the order of its rows."""
        # 2 C + 2 C d + d^2 numbers are (C + d)^2 - C^2 + 2 C
        dim = math.isqrt(len(packed) - 2 * num_classes + num_classes**2) - num_classes
        small, large = num_classes, num_classes * dim
        counts, spreads, pilots, sums, scatter = torch.split(packed, [small, small, large, large, dim * dim])
        shape = num_classes, dim
        return cls(counts, pilots.view(shape), spreads, sums.view(shape), scatter.view(dim, dim))


def zero_moments(num_classes: int, num_features: int, device: torch.device | None = None) -> Tensor:
    """A packed vector of no rows."""
    length = 2 * num_classes * (1 + num_features) + num_features**2
    return torch.zeros(length, dtype=torch.float64, device=device)


def add_rows_(
    moments: Moments, features: Tensor, targets: Tensor, residual_dtype: torch.dtype, blocks_before: int = 0
) -> None:
    """Add checked rows (N, d) with classes (N,), in place, block by block."""
    device = moments.counts.device
    blocks = zip(torch.split(features, BLOCK_ROWS), torch.split(targets, BLOCK_ROWS), strict=True)
    with torch.no_grad(), full_precision(device):
        for number, (rows, labels) in enumerate(blocks, start=blocks_before):
            if number in RECENTRED_BEFORE:
                recentre_(moments, residual_dtype)
            _add_block_(moments, rows.to(device), labels.to(device, torch.int64), residual_dtype)


def _add_block_(moments: Moments, rows: Tensor, labels: Tensor, residual_dtype: torch.dtype) -> None:
    new = moments.counts[labels] == 0  # (b,)
    if new.any():
        _place_pilots_(moments, rows[new], labels[new], residual_dtype)
    # The difference comes before any rounding. Pilots fit float32 where that is the dtype of the residuals, so that
    # float32 features need no float64 arithmetic at all; a difference of neighbours is even exact.
    wide = torch.promote_types(rows.dtype, residual_dtype)
    residuals = (rows.to(wide) - moments.pilots.index_select(0, labels).to(wide)).to(residual_dtype)  # (b, d)
    moments.counts.index_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))
    moments.sums.index_add_(0, labels, residuals.double())
    lengths = torch.linalg.vector_norm(residuals, dim=1, dtype=torch.float64)
    moments.spreads.index_add_(0, labels, lengths.square())
    add_gram_(moments.scatter, residuals, residuals)


def _place_pilots_(moments: Moments, rows: Tensor, labels: Tensor, residual_dtype: torch.dtype) -> None:
    """The pilot of a class seen for the first time is the mean of its rows in that block."""
    names, position = torch.unique(labels, return_inverse=True)
    numbers = torch.zeros(len(names), dtype=torch.float64, device=rows.device)
    numbers.index_add_(0, position, torch.ones_like(position, dtype=torch.float64))
    means = torch.zeros(len(names), rows.shape[1], dtype=torch.float64, device=rows.device)
    means.index_add_(0, position, rows.double()).div_(numbers[:, None])
    moments.pilots[names] = means.to(residual_dtype).double()


def recentre_(moments: Moments, residual_dtype: torch.dtype = torch.float64) -> None:
    """Move the pilots to the means, in place.

    In float64 the sums vanish, and pilots, spreads and scatter are means and within-class scatter. Means rounded to
    float32 leave sums behind.
    """
    number = moments.counts.clamp_min(1)
    means = (moments.pilots + moments.sums / number[:, None]).to(residual_dtype).double()
    scaled = moments.sums / number[:, None]  # (C, d)
    add_gram_(moments.scatter, moments.sums, -scaled)
    moments.spreads.sub_((moments.sums * scaled).sum(dim=1))
    if residual_dtype == torch.float64:
        moments.sums.zero_()
    else:
        moments.sums.sub_(moments.counts[:, None] * (means - moments.pilots))
        scaled = moments.sums / number[:, None]
        add_gram_(moments.scatter, moments.sums, scaled)
        moments.spreads.add_((moments.sums * scaled).sum(dim=1))
    moments.pilots.copy_(means)


def merge_moments(first: Moments, second: Moments) -> None:
    """Add the second sample to the first, in place, both recentred; either may be empty or lack classes.

    The pairwise formula of Chan, Golub & LeVeque, class by class.
    """
    total = first.counts + second.counts  # (C,)
    share = second.counts / total.clamp_min(1)
    shift = second.pilots - first.pilots  # (C, d); a class missing on one side has weight 0
    scaled = shift * (first.counts * share)[:, None]
    first.scatter.add_(second.scatter)
    add_gram_(first.scatter, shift, scaled)
    first.spreads.add_(second.spreads).add_((shift * scaled).sum(dim=1))
    first.pilots.add_(shift * share[:, None])
    first.counts.copy_(total)


def add_gram_(scatter: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left^T right (d, d), which must be symmetric, to the upper triangle; what is below it is not defined."""
    for start in range(0, len(scatter), BLOCK_COLUMNS):
        block, rest = left[:, start : start + BLOCK_COLUMNS].T, right[:, start:]
        target = scatter[start : start + BLOCK_COLUMNS, start:]
        if left.dtype == torch.float64:
            target.addmm_(block, rest)
        else:
            target.add_(block @ rest)


def mirror_(upper: Tensor) -> Tensor:
    """Write the upper triangle of a square matrix over its lower one, in place."""
    return upper.triu_().add_(upper.triu(1).T)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No matrix product of float32 on this device is taken in a smaller format, whatever training has switched on.

    TensorFloat-32 and bfloat16 products have 3 digits or fewer, which no bound of ours allows for.
    """
    backend = torch.backends.cuda.matmul if device.type == "cuda" else torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = backend.fp32_precision
    with torch.autocast(device.type, enabled=False):
        try:
            if before != "ieee":
                backend.fp32_precision = "ieee"
            yield
        finally:
            if before != "ieee":
                backend.fp32_precision = before


def check_residual_dtype(residual_dtype: torch.dtype) -> None:
    """Raise unless it is one of the two that residuals can have."""
    if residual_dtype not in (torch.float64, torch.float32):
        raise ValueError(f"residual_dtype must be torch.float64 or torch.float32, got {residual_dtype}")

"""Counts, class means and within-class scatter: all that neural collapse needs to know of the features.

They are sufficient for NC1-NC3 and for the decomposition of the MSE loss (Han, Papyan & Donoho, ICLR 2022,
the section on decomposing the loss), can be gathered in one pass and merged across processes. Import the
public names from :mod:`lit_papers.neural_collapse.functional`.
"""

from typing import NoReturn

import torch
from torch import Tensor

from lit_papers.accumulator import float64_device
from lit_papers.neural_collapse.moments import (
    Moments,
    add_rows_,
    check_residual_dtype,
    merge_moments,
    mirror_,
    recentre_,
    zero_moments,
)


class ClassStatistics:
    r"""Sufficient statistics of labelled features: an immutable record, finite and never empty.

    Holds :math:`n_c`, :math:`\mu_c` and :math:`N\Sigma_W = \sum_i (h_i - \mu_{y_i})(h_i - \mu_{y_i})^\top`
    in float64 (Papyan et al. 2020 and Han et al., ICLR 2022, where the class statistics are defined).

    Args:
        counts: samples of each class, shape ``(C,)``, >= 0.
        means: class means, shape ``(C, d)``; the row of an unseen class is zero and used nowhere.
        within_scatter: pooled within-class scatter, not divided by ``N``, shape ``(d, d)``; symmetrised here.
        class_scatter: :math:`\sum_{y_i = c} \|h_i - \mu_c\|^2`, what each class adds to the trace of
            ``within_scatter``, shape ``(C,)``, >= 0; None: unknown, and measures that need it are NaN.

    Raises:
        ValueError: shapes that do not fit, a negative count, no sample at all, or non-finite features.

    >>> ClassStatistics(torch.tensor([2, 2]), torch.tensor([[2.0], [-2.0]]), torch.tensor([[4.0]]))
    ClassStatistics(num_classes=2, num_features=1, num_samples=4, device='cpu')
    """

    # Not a dataclass or named tuple: torchmetrics looks inside those and squeezes (1, 1) tensors to scalars.
    __slots__ = ("class_scatter", "counts", "means", "within_scatter")
    counts: Tensor
    means: Tensor
    within_scatter: Tensor
    class_scatter: Tensor | None

    def __init__(
        self, counts: Tensor, means: Tensor, within_scatter: Tensor, class_scatter: Tensor | None = None
    ) -> None:
        if means.ndim != 2 or counts.shape != means.shape[:1] or within_scatter.shape != 2 * means.shape[1:]:
            raise ValueError(
                "expected counts (C,), means (C, d) and within_scatter (d, d), got shapes "
                f"{tuple(counts.shape)}, {tuple(means.shape)} and {tuple(within_scatter.shape)}"
            )
        if class_scatter is not None and class_scatter.shape != counts.shape:
            raise ValueError(f"class_scatter must have shape {tuple(counts.shape)}, got {tuple(class_scatter.shape)}")
        counts, means, scatter = as_float64(counts), as_float64(means), as_float64(within_scatter)
        if (counts < 0).any():
            raise ValueError(f"counts must be >= 0, got {counts.tolist()}")
        if counts.sum() == 0:
            raise ValueError("no samples: expected at least one row of features")
        if not (torch.isfinite(means).all() and torch.isfinite(scatter).all()):
            raise ValueError("non-finite features: expected finite values whose squares fit float64, got NaN or Inf")
        # Copies: the arguments may be views of a state that goes on being updated in place.
        object.__setattr__(self, "counts", counts.clone())
        object.__setattr__(self, "means", means.clone())
        object.__setattr__(self, "within_scatter", (scatter + scatter.T).div_(2))
        # rounding must not make a variance negative
        spread = None if class_scatter is None else as_float64(class_scatter).clamp(min=0)
        object.__setattr__(self, "class_scatter", spread)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"ClassStatistics is immutable, cannot set {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"ClassStatistics is immutable, cannot delete {name!r}")

    def __reduce__(self) -> tuple[type["ClassStatistics"], tuple[Tensor | None, ...]]:
        # pickle would set attributes one by one
        return type(self), (self.counts, self.means, self.within_scatter, self.class_scatter)

    def __repr__(self) -> str:
        classes, features = self.means.shape
        return (
            f"ClassStatistics(num_classes={classes}, num_features={features}, "
            f"num_samples={int(self.counts.sum())}, device='{self.means.device}')"
        )


def class_statistics(
    features: Tensor, targets: Tensor, num_classes: int, *, residual_dtype: torch.dtype = torch.float64
) -> ClassStatistics:
    r"""Count, mean and pooled within-class scatter of labelled features, in float64 and in one pass.

    .. math:: \mu_c = \frac{1}{n_c}\sum_{y_i = c} h_i, \qquad
              N\Sigma_W = \sum_i (h_i - \mu_{y_i})(h_i - \mu_{y_i})^\top

    Streams over blocks of rows: memory is ``O((C + d) d)``, whatever ``N`` (definitions of Han et al., ICLR 2022).
    Rows are taken relative to a pilot, an early guess at the mean of their class, then multiplied and summed.

    Args:
        features: inputs of the last linear layer, shape ``(N, d)``, any floating dtype.
        targets: class indices in ``[0, C)``, shape ``(N,)``, any integer dtype.
        num_classes: ``C``, at least 1.
        residual_dtype: of the matrix products. ``torch.float32`` suits devices with slow float64: the products of a
            block of ``b <= 512`` rows are rounded, their sum over blocks is not. With ``T`` the scatter about the
            pilots (for shuffled rows at most twice the scatter) an entry ``(j, k)`` is then off by at most
            ``(b + 3) 2^-24 sqrt(T_jj T_kk)``: relative to the trace 3e-5 at worst, 1e-8 as a rule, in deep
            collapse and far from the origin as well.

    Returns:
        Statistics on the device of ``features`` (on the CPU where that device has no float64).

    Raises:
        TypeError: features are not floating or targets are not integer.
        ValueError: shapes that do not fit, a target outside ``[0, C)``, another ``residual_dtype``, no samples, or
            non-finite features.

    >>> stats = class_statistics(torch.tensor([[1.0], [3.0], [-1.0], [-3.0]]), torch.tensor([0, 0, 1, 1]), 2)
    >>> stats.means.tolist(), stats.within_scatter.tolist(), stats.class_scatter.tolist()
    ([[2.0], [-2.0]], [[4.0]], [2.0, 2.0])
    """
    check_num_classes(num_classes)
    check_residual_dtype(residual_dtype)
    check_batch(features, targets, num_classes)
    packed = zero_moments(num_classes, features.shape[1], float64_device(features.device))
    moments = Moments.of(packed, num_classes)
    add_rows_(moments, features, targets, residual_dtype)
    return statistics_of(moments)


def merge_statistics(first: ClassStatistics, second: ClassStatistics) -> ClassStatistics:
    r"""Statistics of the union of two disjoint samples, exact up to rounding.

    .. math:: S = S^a + S^b + \sum_c \frac{n_c^a n_c^b}{n_c^a + n_c^b} \delta_c \delta_c^\top, \qquad
              \delta_c = \mu_c^b - \mu_c^a

    The pairwise formula of Chan, Golub & LeVeque, class by class.

    Args:
        first: statistics of ``C`` classes in ``d`` dimensions.
        second: statistics of the other sample, same ``C`` and ``d``.

    Returns:
        Statistics on the device of ``first``.

    Raises:
        ValueError: the two differ in ``C`` or ``d``.

    >>> one = class_statistics(torch.tensor([[1.0]]), torch.tensor([0]), num_classes=1)
    >>> two = class_statistics(torch.tensor([[3.0]]), torch.tensor([0]), num_classes=1)
    >>> merge_statistics(one, two).within_scatter
    tensor([[2.]], dtype=torch.float64)
    """
    if first.means.shape != second.means.shape:
        raise ValueError(
            "first and second must have the same classes and features, got means of shapes "
            f"{tuple(first.means.shape)} and {tuple(second.means.shape)}"
        )
    device = first.means.device
    known = first.class_scatter is not None and second.class_scatter is not None
    whole, part = (_moments_of(stats, device) for stats in (first, second))
    merge_moments(whole, part)
    merged = statistics_of(whole)
    return merged if known else ClassStatistics(merged.counts, merged.means, merged.within_scatter)


def centered_class_means(stats: ClassStatistics) -> Tensor:
    r"""Means of the classes seen, relative to their plain (unweighted) average.

    .. math:: \dot\mu_c = \mu_c - \mu_G, \qquad \mu_G = \text{average of the } \mu_c

    As in Papyan et al. 2020 and Han et al., ICLR 2022, where NC2 is defined; ``mu_G`` is not the sample mean.

    Args:
        stats: statistics of ``C`` classes in ``d`` dimensions.

    Returns:
        Centred means, shape ``(C_seen, d)``, in the order of the classes.

    Raises:
        ValueError: fewer than two classes were seen.

    >>> centered_class_means(class_statistics(torch.tensor([[5.0], [7.0]]), torch.tensor([0, 1]), 2)).tolist()
    [[-1.0], [1.0]]
    """
    means = stats.means[stats.counts > 0]  # (C_seen, d)
    if len(means) < 2:
        raise ValueError(f"expected samples of at least two classes, got samples of {len(means)}")
    return center(means, means.new_full((len(means),), 1 / len(means)))[0]


def center(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (C, d) minus their average under weights (C,) that sum to 1, and that average (d,)."""
    origin = weights @ rows  # (d,)
    rows = rows - origin
    # Again: far from the origin the rounding of the first average would be a common offset of all rows, which
    # looks like a direction between the classes.
    return rows - weights @ rows, origin


def within_rank(stats: ClassStatistics) -> int:
    """What the rank of the within-class scatter cannot exceed: samples less classes seen."""
    return int(stats.counts.sum().item()) - int((stats.counts > 0).sum())


def statistics_of(moments: Moments) -> ClassStatistics:
    """The record of what was gathered; recentres the moments, which go on."""
    recentre_(moments)
    return ClassStatistics(moments.counts, moments.pilots, mirror_(moments.scatter), moments.spreads)


def _moments_of(stats: ClassStatistics, device: torch.device) -> Moments:
    num_classes, num_features = stats.means.shape
    moments = Moments.of(zero_moments(num_classes, num_features, device), num_classes)
    moments.counts.copy_(stats.counts)
    moments.pilots.copy_(stats.means)
    moments.scatter.copy_(stats.within_scatter)
    if stats.class_scatter is not None:
        moments.spreads.copy_(stats.class_scatter)
    return moments


def as_float64(values: Tensor) -> Tensor:
    """A detached float64 tensor on the same device, or on the CPU where that has no float64."""
    return values.detach().to(float64_device(values.device), torch.float64)


def check_num_classes(num_classes: int) -> None:
    """Raise unless there is at least one class."""
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")


def check_batch(features: Tensor, targets: Tensor, num_classes: int) -> None:
    """Raise unless features are (N, d >= 1) floating and targets (N,) integer in [0, C)."""
    if features.ndim != 2 or features.shape[1] == 0 or targets.shape != features.shape[:1]:
        raise ValueError(
            "expected features (N, d) with d >= 1 and targets (N,), got shapes "
            f"{tuple(features.shape)} and {tuple(targets.shape)}"
        )
    if not features.is_floating_point():
        raise TypeError(f"features must be of a floating dtype, got {features.dtype}")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(f"targets must be class indices of an integer dtype, got {targets.dtype}")
    if len(targets) > 0:
        lowest, highest = torch.stack(torch.aminmax(targets)).tolist()  # one wait for the GPU, not two
        if lowest < 0 or highest >= num_classes:
            raise ValueError(f"targets must lie in [0, {num_classes}), got {lowest if lowest < 0 else highest}")

"""Measures of neural collapse as pure functions (Papyan et al. 2020; Han, Papyan & Donoho, ICLR 2022).

All of them compute in float64 on the device of their arguments (on the CPU where that has no float64), return
detached tensors, and read 0 at full collapse. :func:`class_statistics` of the features come first.
"""

import math

import torch
from torch import Tensor

from lit_papers.neural_collapse.class_geometry import (
    class_distance_variance,
    class_mean_noise,
    effective_rank,
    seli_deviation,
)
from lit_papers.neural_collapse.decisions import ncc_mismatch, nearest_class_mean
from lit_papers.neural_collapse.decomposition import (
    check_weight,
    least_squares_classifier,
    mse_decomposition,
    regularization_strength,
    snr_singular_values,
)
from lit_papers.neural_collapse.statistics import (
    ClassStatistics,
    as_float64,
    centered_class_means,
    class_statistics,
    merge_statistics,
)

__all__ = [
    "ClassStatistics",
    "centered_class_means",
    "class_distance_variance",
    "class_mean_noise",
    "class_statistics",
    "effective_rank",
    "equinorm",
    "least_squares_classifier",
    "max_equiangularity",
    "merge_statistics",
    "mse_decomposition",
    "ncc_mismatch",
    "nearest_class_mean",
    "neural_collapse_measures",
    "regularization_strength",
    "self_duality",
    "seli_deviation",
    "simplex_etf",
    "snr_singular_values",
    "variability_collapse",
]


def variability_collapse(stats: ClassStatistics) -> Tensor:
    r"""NC1: how small the scatter within classes is beside the spread of the class means.

    .. math:: \mathrm{tr}(\Sigma_W \Sigma_B^{+}), \qquad \Sigma_B = \frac1C \sum_c \dot\mu_c \dot\mu_c^\top

    Not divided by ``C`` (Han et al., ICLR 2022, definition of NC1; Papyan et al. 2020 divide). Directions in
    which the means differ by no more than rounding are left out.

    Args:
        stats: statistics of ``C`` classes in ``d`` dimensions.

    Returns:
        Scalar >= 0; NaN if all class means coincide.

    Raises:
        ValueError: fewer than two classes were seen.

    >>> stats = ClassStatistics(torch.tensor([2, 2]), torch.tensor([[2.0], [-2.0]]), torch.tensor([[4.0]]))
    >>> variability_collapse(stats)
    tensor(0.2500, dtype=torch.float64)
    """
    return _within_over_between(stats)[0]


def equinorm(vectors: Tensor) -> Tensor:
    r"""NC2, lengths: how much the norms of the vectors differ.

    .. math:: \frac{\mathrm{std}_c \|v_c\|}{\mathrm{mean}_c \|v_c\|} \quad\text{(unbiased standard deviation)}

    Papyan et al. 2020 and Han et al., ICLR 2022, definition of NC2, for centred class means and rows of W.

    Args:
        vectors: shape ``(K, d)``, ``K >= 2``, any floating dtype.

    Returns:
        Scalar in ``[0, sqrt(K)]``; NaN if all vectors are zero.

    Raises:
        ValueError: not a matrix of at least two rows.

    >>> equinorm(torch.tensor([[3.0, 0.0], [0.0, 3.0]]))
    tensor(0., dtype=torch.float64)
    """
    norms: Tensor = torch.linalg.vector_norm(_check_vectors(vectors), dim=1)  # (K,)
    return norms.std() / norms.mean()


def max_equiangularity(vectors: Tensor) -> Tensor:
    r"""NC2, angles: how far the vectors are from being as far apart as equal angles allow.

    .. math:: \mathrm{mean}_{c \ne c'} \left|\cos(v_c, v_{c'}) + \frac{1}{K-1}\right|

    Papyan et al. 2020 and Han et al., ICLR 2022, definition of NC2, for centred class means and rows of W.

    Args:
        vectors: shape ``(K, d)``, ``K >= 2``, any floating dtype. If ``d < K - 1``, 0 is out of reach.

    Returns:
        Scalar in ``[0, 2]``; NaN if a vector is zero.

    Raises:
        ValueError: not a matrix of at least two rows.

    >>> max_equiangularity(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor(1., dtype=torch.float64)
    """
    vectors = _check_vectors(vectors)
    directions = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    number = len(vectors)
    excess: Tensor = (directions @ directions.T + 1 / (number - 1)).abs()  # (K, K)
    return excess.fill_diagonal_(0).sum() / (number * (number - 1))


def self_duality(weight: Tensor, stats: ClassStatistics, *, center_classifier: bool = False) -> Tensor:
    r"""NC3: how far the classifier is from the class means, up to scale.

    .. math:: \left\| \frac{W^\top}{\|W\|_F} - \frac{\dot M}{\|\dot M\|_F} \right\|_F^2

    Squared, as in Han et al., ICLR 2022, definition of NC3. Rows of classes never seen are left out.

    Args:
        weight: weight of the last linear layer, shape ``(C, d)``.
        stats: statistics of ``C`` classes in ``d`` dimensions.
        center_classifier: subtract the mean row of ``weight`` first. A classifier without bias converges to
            an orthogonal frame instead of a simplex, so only its centred rows can match the means.

    Returns:
        Scalar in ``[0, 4]``; NaN if the weight or all centred means are zero.

    Raises:
        ValueError: ``weight`` is not ``(C, d)``, or fewer than two classes were seen.

    >>> stats = ClassStatistics(torch.tensor([2, 2]), torch.tensor([[2.0], [-2.0]]), torch.tensor([[4.0]]))
    >>> self_duality(torch.tensor([[0.25], [-0.25]]), stats)
    tensor(0., dtype=torch.float64)
    """
    rows, means = _classifier_rows(weight, stats, center_classifier), centered_class_means(stats)
    gap: Tensor = rows / torch.linalg.matrix_norm(rows) - means / torch.linalg.matrix_norm(means)  # (C_seen, d)
    return gap.square().sum()


def neural_collapse_measures(
    stats: ClassStatistics, weight: Tensor, *, center_classifier: bool = False
) -> dict[str, Tensor]:
    """NC1, NC2 and NC3 of features and their classifier, companions of them, and what they were computed from.

    The measures of Papyan et al. 2020 and Han et al., ICLR 2022: see :func:`variability_collapse`,
    :func:`equinorm`, :func:`max_equiangularity` and :func:`self_duality`; and what the same statistics give
    besides: :func:`class_distance_variance`, :func:`seli_deviation` (NC2 for classes of any sizes),
    :func:`effective_rank` and :func:`class_mean_noise` (whether there are samples enough). Classes never seen are left
    out.

    Args:
        stats: statistics of ``C`` classes in ``d`` dimensions.
        weight: weight of the last linear layer, shape ``(C, d)``.
        center_classifier: subtract the mean row of ``weight`` first, in every measure of the weight.

    Returns:
        Scalars: ``nc1`` and ``nc1_over_c`` (divided by the number of classes seen), ``nc2_equinorm_means``,
        ``nc2_equinorm_weights``, ``nc2_max_angle_means``, ``nc2_max_angle_weights``, ``nc2_seli_means``,
        ``nc2_seli_weights``, ``nc3_self_duality``, ``cdnv``, ``effective_rank`` and ``class_mean_noise``; and two
        integers, ``rank`` of the centred class means and ``num_classes_seen``.

    Raises:
        ValueError: ``weight`` is not ``(C, d)``, or fewer than two classes were seen.

    >>> stats = ClassStatistics(torch.tensor([2, 2]), torch.tensor([[2.0], [-2.0]]), torch.tensor([[4.0]]))
    >>> measures = neural_collapse_measures(stats, torch.tensor([[0.25], [-0.25]]))
    >>> measures["nc1"], measures["nc1_over_c"], measures["rank"]
    (tensor(0.2500, dtype=torch.float64), tensor(0.1250, dtype=torch.float64), tensor(1))
    """
    means = centered_class_means(stats)  # (C_seen, d)
    rows = _classifier_rows(weight, stats, center_classifier)  # (C_seen, d)
    nc1, rank = _within_over_between(stats)
    return {
        "nc1": nc1,
        "nc1_over_c": nc1 / len(means),
        "nc2_equinorm_means": equinorm(means),
        "nc2_equinorm_weights": equinorm(rows),
        "nc2_max_angle_means": max_equiangularity(means),
        "nc2_max_angle_weights": max_equiangularity(rows),
        "nc2_seli_means": seli_deviation(means, stats.counts, of="means"),
        "nc2_seli_weights": seli_deviation(rows, stats.counts, of="weights"),
        "nc3_self_duality": self_duality(weight, stats, center_classifier=center_classifier),
        "cdnv": class_distance_variance(stats),
        "effective_rank": effective_rank(stats),
        "class_mean_noise": class_mean_noise(stats),
        "rank": rank,
        "num_classes_seen": torch.tensor(len(means), device=means.device),
    }


def simplex_etf(num_classes: int, num_features: int, *, generator: torch.Generator | None = None) -> Tensor:
    r"""A simplex equiangular tight frame in random orientation: the shape of collapsed class means.

    .. math:: \sqrt{\tfrac{C}{C-1}} \left(I - \tfrac1C 1 1^\top\right) Q^\top, \qquad Q^\top Q = I

    Papyan et al. 2020, definition of the simplex ETF.

    Args:
        num_classes: ``C``, at least 2.
        num_features: ``d``, at least ``C - 1``.
        generator: source of the orientation; None: PyTorch's default one.

    Returns:
        Unit rows with pairwise cosine ``-1/(C-1)``, shape ``(C, d)``, on the generator's device.

    Raises:
        ValueError: fewer than two classes or fewer than ``C - 1`` features.

    >>> frame = simplex_etf(4, 8)
    >>> (frame @ frame.T)[0, 1]
    tensor(-0.3333, dtype=torch.float64)
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    if num_features < num_classes - 1:
        raise ValueError(f"num_features must be at least num_classes - 1 = {num_classes - 1}, got {num_features}")
    device = "cpu" if generator is None else generator.device
    normal = torch.randn(num_features, num_classes - 1, generator=generator, dtype=torch.float64, device=device)
    rotation: Tensor  # (d, C - 1)
    rotation, upper = torch.linalg.qr(normal)
    rotation = rotation * upper.diagonal().sign()  # without this, not every orientation is equally likely
    # An orthonormal basis beside the vector of ones spans what centring leaves: (C, C - 1).
    columns = torch.eye(num_classes, dtype=torch.float64, device=device)
    columns[:, 0] = 1
    basis: Tensor = torch.linalg.qr(columns).Q[:, 1:]
    return math.sqrt(num_classes / (num_classes - 1)) * basis @ rotation.T


def _within_over_between(stats: ClassStatistics) -> tuple[Tensor, Tensor]:
    """NC1 and the rank of the centred class means."""
    means = centered_class_means(stats)  # (C_seen, d)
    scale = len(means) ** -0.5
    # Factors of the means, not of Sigma_B: squaring them would square their condition number.
    _, spread, directions = torch.linalg.svd(means * scale, full_matrices=False)  # (r,), (r, d)
    # Directions that only rounding created would divide by almost nothing. The means are rounded at their own
    # size, which far from the origin is more than that of their differences.
    size = torch.maximum(spread[0], torch.linalg.matrix_norm(stats.means) * scale)
    kept = spread > size * max(means.shape) * torch.finfo(torch.float64).eps
    spread, directions = spread[kept], directions[kept]
    within = ((directions @ stats.within_scatter) * directions).sum(dim=1).clamp_min(0) / stats.counts.sum()
    rank = kept.sum()
    # Without any spread between classes the sum is empty, but 0 would mean full collapse.
    return torch.where(rank > 0, (within / spread.square()).sum(), torch.nan), rank


def _classifier_rows(weight: Tensor, stats: ClassStatistics, center_classifier: bool) -> Tensor:
    """Rows of the weight that belong to classes seen, shape (C_seen, d)."""
    rows = check_weight(weight, stats)[stats.counts > 0]
    return rows - rows.mean(dim=0) if center_classifier else rows


def _check_vectors(vectors: Tensor) -> Tensor:
    if vectors.ndim != 2 or len(vectors) < 2:
        raise ValueError(f"vectors must be a matrix of at least two rows, got shape {tuple(vectors.shape)}")
    return as_float64(vectors)

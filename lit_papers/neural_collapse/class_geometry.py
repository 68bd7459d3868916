"""What else the class statistics tell of collapse: effective rank, class-distance variance, unbalanced geometry.

Import the public names from :mod:`lit_papers.neural_collapse.functional`.
"""

from typing import Literal

import torch
from torch import Tensor

from lit_papers.neural_collapse.linear_algebra import range_basis
from lit_papers.neural_collapse.statistics import (
    ClassStatistics,
    as_float64,
    center,
    centered_class_means,
    within_rank,
)

_EPS = torch.finfo(torch.float64).eps
# Squared distances out of inner products keep six digits fewer where they are this small beside the lengths.
_CLOSE = 1e-6
_PAIRS = 4096


def effective_rank(stats: ClassStatistics) -> Tensor:
    r"""How many directions the features fill: the exponential of an entropy.

    .. math:: \exp\Big(-\sum_j p_j \log p_j\Big), \qquad p_j = \frac{\sigma_j}{\sum_k \sigma_k}

    with the singular values :math:`\sigma_j` of the centred feature matrix ``(N, d)`` (Roy & Vetterli 2007,
    "The effective rank"; RankMe of Garrido et al., ICML 2023, takes it of a representation). Balanced classes that
    have collapsed to a simplex have ``C - 1``. Values below rounding beside the largest count as 0.

    Args:
        stats: statistics of ``C`` classes in ``d`` dimensions.

    Returns:
        Scalar in ``[1, min(d, N - 1)]``; NaN if all features are the same.

    >>> stats = ClassStatistics(torch.tensor([2, 2]), torch.tensor([[2.0], [-2.0]]), torch.tensor([[4.0]]))
    >>> effective_rank(stats)
    tensor(1., dtype=torch.float64)
    """
    seen = stats.counts > 0
    counts = stats.counts[seen]
    means, _ = center(stats.means[seen], counts / counts.sum())  # (C_seen, d)
    within = stats.within_scatter
    basis = range_basis(within, within_rank(stats), means)
    if basis is not None:
        within, means = basis.T @ within @ basis, means @ basis
    variances = torch.linalg.eigvalsh(torch.addmm(within, means.T, counts[:, None] * means))  # ascending
    largest = variances[-1]
    # The means are rounded at their own size, which is all there is if every feature is the same.
    floor = stats.means.square().sum(dim=1).max() * _EPS**2 * counts.sum()
    kept = (variances > largest * len(variances) * _EPS) & (variances > floor * len(variances))
    shares = variances[kept].sqrt()
    shares = shares / shares.sum()
    rank: Tensor = torch.special.entr(shares).sum().exp()
    return torch.where(kept.any(), rank, torch.nan)


def class_distance_variance(stats: ClassStatistics) -> Tensor:
    r"""CDNV: the spread within two classes beside the distance between them, averaged over pairs.

    .. math:: \mathrm{mean}_{c \ne c'} \frac{v_c + v_{c'}}{2 \|\mu_c - \mu_{c'}\|^2}, \qquad
              v_c = \frac{1}{n_c} \sum_{y_i = c} \|h_i - \mu_c\|^2

    Galanti, György & Hutter, "On the role of neural collapse in transfer learning", ICLR 2022, definition 1.

    Args:
        stats: statistics of ``C`` classes in ``d`` dimensions.

    Returns:
        Scalar >= 0, 0 at collapse; NaN if two class means coincide up to rounding, or if the statistics do not have
        their ``class_scatter``.

    Raises:
        ValueError: fewer than two classes were seen.

    >>> from lit_papers.neural_collapse.functional import class_statistics
    >>> stats = class_statistics(torch.tensor([[1.0], [3.0], [-1.0], [-3.0]]), torch.tensor([0, 0, 1, 1]), 2)
    >>> class_distance_variance(stats)
    tensor(0.0625, dtype=torch.float64)
    """
    means = centered_class_means(stats)  # (C_seen, d)
    if stats.class_scatter is None:
        return means.new_tensor(torch.nan)
    seen = stats.counts > 0
    variances = stats.class_scatter[seen] / stats.counts[seen]
    first, second = torch.triu_indices(len(means), len(means), offset=1, device=means.device)
    lengths = means.square().sum(dim=1)
    reach = (lengths[:, None] + lengths)[first, second]
    distances = reach - 2 * (means @ means.T)[first, second]  # squared
    close = (distances < _CLOSE * reach).nonzero()[:, 0]
    for pairs in torch.split(close, _PAIRS):
        distances[pairs] = (means[first[pairs]] - means[second[pairs]]).square().sum(dim=1)
    resolved = stats.means.square().sum(dim=1).max() * (_EPS * max(means.shape)) ** 2
    average = ((variances[first] + variances[second]) / (2 * distances)).mean()
    return torch.where((distances > resolved).all(), average, torch.nan)


def class_mean_noise(stats: ClassStatistics) -> Tensor:
    r"""The share of the class means' spread that is the chance of their samples.

    .. math:: \frac{\big(1 - \tfrac1C\big) \sum_c s^2 / n_c}{\sum_c \|\dot\mu_c\|^2}, \qquad
              s^2 = \frac{\mathrm{tr}(N \Sigma_W)}{N - C}

    the expected squared deviation of centred means of samples over what there is. At a share :math:`r` the true means
    are spread by about ``1 - r`` of what is seen, and NC1 and CDNV come out by that factor too small: pure scatter has
    1, whatever its NC1. It is worth a look where few samples are measured, or many classes.

    Args:
        stats: statistics of ``C`` classes in ``d`` dimensions, of which those seen count.

    Returns:
        Scalar >= 0, by chance also above 1; NaN if no class has two samples, or all class means coincide.

    Raises:
        ValueError: fewer than two classes were seen.

    >>> stats = ClassStatistics(torch.tensor([2, 2]), torch.tensor([[2.0], [-2.0]]), torch.tensor([[4.0]]))
    >>> class_mean_noise(stats)  # s^2 = 2
    tensor(0.1250, dtype=torch.float64)
    """
    means = centered_class_means(stats)  # (C_seen, d)
    counts = stats.counts[stats.counts > 0]
    spare = counts.sum() - len(counts)
    variance = stats.within_scatter.diagonal().sum().clamp_min(0) / spare
    expected = (1 - 1 / len(counts)) * (variance / counts).sum()
    spread = means.square().sum()
    return torch.where((spare > 0) & (spread > 0), expected / spread, torch.nan)


def seli_deviation(vectors: Tensor, counts: Tensor, *, of: Literal["means", "weights"]) -> Tensor:
    r"""NC2 for classes of any sizes: how far the Gram matrix is from that of the interpolating geometry.

    .. math:: \left\| \frac{G}{\|G\|_F} - \frac{\hat G}{\|\hat G\|_F} \right\|_F, \qquad
              \hat G = (P D P)^{1/2} \text{ (weights)},\ \big((P D P)^{1/2}\big)^{+} \text{ (means)}

    with class sizes :math:`D = \mathrm{diag}(n_c)` and :math:`P = I - 1 1^\top / C`. Cross-entropy on free features
    with vanishing regularisation ends there: minority classes get longer means and shorter classifier rows
    (Thrampoulidis, Kini, Vakilian & Behnia, "Imbalance trouble: revisiting neural-collapse geometry", NeurIPS 2022;
    simplex-encoded-labels interpolation). With equal sizes it is the simplex, for the MSE loss as well.

    Args:
        vectors: centred class means or rows of the classifier of the classes seen, shape ``(C_seen, d)``.
        counts: samples of each class, shape ``(C,)``, of which ``C_seen`` >= 2 are not 0.
        of: what the vectors are.

    Returns:
        Scalar in ``[0, 2]``; NaN if all vectors are zero.

    Raises:
        ValueError: as many vectors as classes seen are needed, or ``of`` is neither of the two.

    >>> simplex = torch.tensor([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]], dtype=torch.float64)
    >>> bool(seli_deviation(simplex, torch.tensor([5, 5, 5]), of="means") < 1e-15)
    True
    """
    if of not in ("means", "weights"):
        raise ValueError(f"of must be 'means' or 'weights', got {of!r}")
    vectors = as_float64(vectors)
    sizes = as_float64(counts[counts > 0]).to(vectors.device)
    if vectors.ndim != 2 or len(vectors) != len(sizes) or len(sizes) < 2:
        raise ValueError(
            f"expected one vector for each of at least two classes seen, got vectors of shape {tuple(vectors.shape)} "
            f"and {len(sizes)} classes seen"
        )
    projected = (sizes / sizes.sum()).diag()  # PDP: means of rows and columns taken off
    projected = projected - projected.mean(dim=0)
    projected = projected - projected.mean(dim=1, keepdim=True)
    values, axes = torch.linalg.eigh(projected)
    values, axes = values[1:], axes[:, 1:]  # the first is the 0 of the vector of ones
    power = 0.5 if of == "weights" else -0.5
    ideal = (axes * values**power) @ axes.T  # (C, C)
    gram = vectors @ vectors.T
    deviation: Tensor = torch.linalg.matrix_norm(
        gram / torch.linalg.matrix_norm(gram) - ideal / torch.linalg.matrix_norm(ideal)
    )
    return deviation

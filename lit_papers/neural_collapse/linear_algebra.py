"""Symmetric positive semidefinite matrices, by the cheapest factorisation that is sure of its result."""

import torch
from torch import Tensor

_EPS = torch.finfo(torch.float64).eps
_OVERSAMPLING = 10  # more columns than the rank: the probability to miss a direction is then below 1e-10


def cholesky_factor(matrix: Tensor, smallest: float = 0.0) -> Tensor | None:
    r"""The lower triangular ``L`` with :math:`L L^\top = A`, or None unless ``A`` is far from singular.

    Cholesky's factorisation is ten times as fast as an eigenvalue decomposition. "Far" means that the condition number,
    bounded by :math:`\mathrm{tr}(A^{-1}) \|A\|_\infty`, leaves at least two digits of the smallest eigenvalue above
    rounding, so that no rule for singular matrices would count it as zero.

    Args:
        matrix: symmetric, float64, shape ``(k, k)``.
        smallest: a lower bound of the eigenvalues where one is known, which saves the estimate of the condition.

    Returns:
        Shape ``(k, k)``, or None.

    >>> cholesky_factor(torch.tensor([[4.0]], dtype=torch.float64))
    tensor([[2.]], dtype=torch.float64)
    """
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed.item() != 0:
        return None
    limit = 1e-2 / (len(matrix) * _EPS) / matrix.abs().sum(dim=0).max()
    if smallest * limit > 1:
        return factor
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
    return factor if bool(inverse.square().sum() < limit) else None


def range_basis(matrix: Tensor, rank: int, rows: Tensor) -> Tensor | None:
    """An orthonormal basis that contains the range of a matrix of low rank, and some given vectors.

    A matrix of sums over few samples is singular by count. What lies outside the samples' span need not be decomposed:
    products with random vectors find that span (Halko, Martinsson & Tropp 2011, algorithm 4.1), exactly up to
    rounding where the rank is known.

    Args:
        matrix: symmetric, float64, shape ``(k, k)``.
        rank: an upper bound of its rank.
        rows: vectors that the basis must span too, shape ``(m, k)``.

    Returns:
        Columns, shape ``(k, rank + m + 10)``; None if that is more than ``k / 2``, where nothing would be gained.
    """
    size = len(matrix)
    if 2 * (rank + len(rows) + _OVERSAMPLING) > size:
        return None
    source = torch.Generator().manual_seed(0)  # drawn on the CPU: the same basis on every device
    probes = torch.randn(size, rank + _OVERSAMPLING, generator=source, dtype=torch.float64).to(matrix.device)
    basis: Tensor = torch.linalg.qr(torch.cat([matrix @ probes, rows.T], dim=1)).Q
    return basis

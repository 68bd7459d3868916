"""Matrices of a graph that a fixed order of Weisfeiler-Leman determines: what encodings of transformers are made of.

Whatever 2-WL (folklore) gives two pairs of nodes one stable colour has equal entries there in every polynomial of the
adjacency matrix and the degrees, hence in its spectral projections and pseudo-inverses (Fürer 2010; Rattan & Seppelt
2023); a power needs as many rounds as halvings bring it to one, and the degrees one more.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lit_papers.expressiveness.expressions import ExpressionError, Matrix

_SAME = 1e-6  # eigenvalues of a normalised Laplacian, in [0, 2], that count as one: rounding is 1e-15 times n


class MatrixSpec(NamedTuple):
    """A family of matrices, one for each number in the name.

    Attributes:
        compute: from weighted adjacency matrices, (G, n, n) float64, and the number to (G, n, n).
        rounds: of folklore 2-WL that determine it, from the number; None for the stable colouring.
        about: what it is, in a few words.
    """

    compute: Callable[[Tensor, int], Tensor]
    rounds: Callable[[int], int | None]
    about: str


def _walk(adjacency: Tensor, steps: int) -> Tensor:
    degree = adjacency.sum(-1, keepdim=True)
    power: Tensor = torch.linalg.matrix_power(adjacency / degree.clamp_min(1), steps)
    return power


def _laplacian(adjacency: Tensor) -> Tensor:
    return torch.diag_embed(adjacency.sum(-1)) - adjacency


def _resistance(adjacency: Tensor, _: int) -> Tensor:
    n = adjacency.shape[-1]
    inverse = torch.linalg.pinv(_laplacian(adjacency), hermitian=True)
    diagonal = inverse.diagonal(dim1=-2, dim2=-1)
    between = diagonal[..., None] + diagonal[..., None, :] - 2 * inverse
    # nodes that no path joins: the inverse of the number of nodes would stand in for infinity; 0 marks them
    joined = torch.linalg.matrix_power((adjacency != 0).to(adjacency) + torch.eye(n).to(adjacency), 2 ** _halvings(n))
    return torch.where(joined > 0, between, 0.0)


def _halvings(steps: int) -> int:
    return math.ceil(math.log2(max(steps, 1)))


def _eigenprojection(adjacency: Tensor, which: int) -> Tensor:
    degree = adjacency.sum(-1)
    root = torch.where(degree > 0, degree, 1.0).rsqrt() * (degree > 0)
    normalised = torch.diag_embed((degree > 0).to(adjacency)) - root[..., None] * adjacency * root[..., None, :]
    values, vectors = torch.linalg.eigh(normalised)
    jumps = torch.diff(values, dim=-1) > _SAME * max(adjacency.shape[-1], 1)
    group = torch.cat([torch.zeros_like(jumps[..., :1]), jumps], -1).long().cumsum(-1)
    chosen = vectors * (group == which)[..., None, :]
    projection: Tensor = chosen @ chosen.mT
    return projection


MATRICES: dict[str, MatrixSpec] = {
    "walk": MatrixSpec(_walk, lambda p: _halvings(p) + 1, "probability that a random walk of p steps from x ends in y"),
    "resistance": MatrixSpec(_resistance, lambda _: None, "resistance distance, 0 between components"),
    "spectral": MatrixSpec(
        _eigenprojection, lambda _: None, "projection on the i-th distinct eigenspace of the normalised Laplacian"
    ),
}
"""Matrices by name, each a number at the end: ``M[walk8]``, ``M[resistance]``, ``M[spectral0]``."""


def matrix_atom(name: str, x: str, y: str) -> Matrix:
    """``M[name](x,y)`` with its declared bound.

    Raises:
        ExpressionError: there is no such matrix; build a `Matrix` of your own with the order and rounds that you know.

    >>> matrix_atom("walk8", "x", "y").summation_depth
    4
    """
    family, number = _split(name)
    return Matrix(name, x, y, 2, MATRICES[family].rounds(number))


def compute_matrix(name: str, adjacency: Tensor) -> Tensor:
    """The matrices of graphs of one size.

    Args:
        name: as in `matrix_atom`.
        adjacency: (G, n, n) how many edges lead from row to column, symmetric but for walks.

    Returns:
        (G, n, n) in float64.

    Raises:
        ValueError: it is not symmetric.
    """
    family, number = _split(name)
    if family != "walk" and not torch.equal(adjacency, adjacency.mT):
        raise ValueError(f"M[{name}] is of undirected graphs, and edge_index is directed.")
    if adjacency.shape[-1] == 0:
        return adjacency.double()
    return MATRICES[family].compute(adjacency.double(), number)


def _split(name: str) -> tuple[str, int]:
    found = re.fullmatch(r"([a-z_]+?)(\d*)", name)
    if found is None or found[1] not in MATRICES:
        raise ExpressionError(f"unknown matrix {name!r}; known are {', '.join(MATRICES)}, as in M[walk8](x,y)")
    return found[1], int(found[2] or 1)

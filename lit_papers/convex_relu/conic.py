"""The restricted convex program, straight to an interior-point solver: no modelling language in the loop.

    min  sum_k w_k loss(z_k, y_k) + beta sum_b |v_b|    with  z = sum_b s_b D_b x v_b + bias,  v_b in the cone of D_b

over a few blocks, each with the facets of its cone instead of all samples' half-spaces.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_papers.convex_relu.problem import Problem


def import_clarabel() -> Any:
    """Return ``clarabel``.

    Raises:
        ImportError: it is not installed; names the extra.
    """
    try:
        import clarabel
        import scipy.sparse  # noqa: F401  # comes with it; `_Cones.solve` needs it
    except ImportError as error:
        raise ImportError("the convex programs need clarabel: pip install 'lit-papers[convex]'.") from error
    return clarabel


def solve_restricted(
    problem: Problem, patterns: Tensor, signs: Tensor, facets: list[NDArray[np.intp]], *, tol: float = 1e-11
) -> tuple[Tensor, str]:
    """Solve over some blocks.

    Args:
        problem: with one output.
        patterns: (n, b) of the blocks.
        signs: (b,) output signs.
        facets: for each block the samples whose half-spaces make its cone.
        tol: of the solver, which is not believed anyway.

    Returns:
        Vectors (b, d), near their cones, and what the solver said.
    """
    clarabel = import_clarabel()
    x, y, gates = problem.x.numpy(), problem.y.numpy(), patterns.numpy()
    (n, d), b = x.shape, len(signs)
    ones = np.ones(n) if problem.weights is None else problem.weights.numpy()
    # variables: vectors (b d), their lengths (b), outputs (n), bias (0 or 1), and what the loss needs
    length, output, bias = b * d, b * d + b, b * d + b + n
    rest = bias + int(problem.output_bias)
    count = rest + (0 if problem.loss == "squared" else 3 * n)
    samples = np.arange(n)
    program = _Cones(count)

    block, sample = np.nonzero(gates.T)  # outputs = sum_b s_b D_b x v_b + bias
    design = signs.numpy()[block, None] * x[sample]
    entries = [(np.repeat(sample, d), (block[:, None] * d + np.arange(d)).ravel(), design.ravel())]
    entries.append((samples, output + samples, -np.ones(n)))
    if problem.output_bias:
        entries.append((samples, np.full(n, bias), np.ones(n)))
    program.add(entries, np.zeros(n), [clarabel.ZeroConeT(n)])

    face = np.concatenate(facets)
    owner = np.repeat(np.arange(b), [len(part) for part in facets])
    if len(face):
        inward = np.where(gates[face, owner], -1.0, 1.0)[:, None] * x[face]
        columns = (owner[:, None] * d + np.arange(d)).ravel()
        cone = [clarabel.NonnegativeConeT(len(face))]
        program.add([(np.repeat(np.arange(len(face)), d), columns, inward.ravel())], np.zeros(len(face)), cone)

    order = np.concatenate([length + np.arange(b)[:, None], np.arange(b * d).reshape(b, d)], 1).ravel()
    cone = [clarabel.SecondOrderConeT(d + 1)] * b
    program.add([(np.arange(len(order)), order, -np.ones(len(order)))], np.zeros(len(order)), cone)

    cost, curvature = np.zeros(count), np.zeros(count)
    cost[length:output] = problem.beta
    if problem.loss == "squared":
        cost[output:bias], curvature[output:bias] = -ones * y, ones
    else:
        # e >= log(1 + exp(-y z)):  exp(-e) <= p,  exp(-y z - e) <= q,  p + q <= 1
        e, p, q = (rest + part * n + samples for part in range(3))
        cost[e] = ones
        program.add([(samples, p, np.ones(n)), (samples, q, np.ones(n))], np.ones(n), [clarabel.NonnegativeConeT(n)])
        cone, one = [clarabel.ExponentialConeT()] * n, np.tile([0.0, 1.0, 0.0], n)
        shared = [(3 * samples, e, np.ones(n))]
        program.add([*shared, (3 * samples + 2, p, -np.ones(n))], one, cone)
        program.add([*shared, (3 * samples, output + samples, y), (3 * samples + 2, q, -np.ones(n))], one, cone)
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    if hasattr(settings, "max_threads"):  # since 0.10; how many threads there are is the user's choice
        settings.max_threads = 1
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tol
    answer = program.solve(clarabel, cost, curvature, settings)
    vectors = np.asarray(answer.x[: b * d], dtype=np.float64).reshape(b, d)
    return torch.from_numpy(np.where(np.isfinite(vectors), vectors, 0.0)), str(answer.status)


Entries = list[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]]


class _Cones:
    """Rows ``heights - matrix @ variables`` in cones, collected part by part."""

    def __init__(self, count: int) -> None:
        self._count, self._height = count, 0
        self._entries: Entries = []
        self._heights: list[NDArray[np.float64]] = []
        self._cones: list[Any] = []

    def add(self, entries: Entries, heights: NDArray[np.float64], cones: list[Any]) -> None:
        """Add rows, their entries as (row, column, value) with rows counted from 0."""
        self._entries += [(row + self._height, column, value) for row, column, value in entries]
        self._heights.append(heights)
        self._cones += cones
        self._height += len(heights)

    def solve(self, clarabel: Any, cost: NDArray[np.float64], curvature: NDArray[np.float64], settings: Any) -> Any:
        """Minimise ``1/2 curvature . variables^2 + cost . variables``."""
        from scipy import sparse  # comes with the conic solver

        row, column, value = (np.concatenate(part) for part in zip(*self._entries, strict=True))
        matrix = sparse.csc_matrix((value, (row, column)), (self._height, self._count))
        diagonal = np.flatnonzero(curvature)
        quadratic = sparse.csc_matrix((curvature[diagonal], (diagonal, diagonal)), (self._count, self._count))
        heights = np.concatenate(self._heights)
        return clarabel.DefaultSolver(quadratic, cost, matrix, heights, self._cones, settings).solve()

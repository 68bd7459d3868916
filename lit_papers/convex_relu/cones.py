"""Projections on the cones of activation patterns: many at once, and one with all the care of a library.

By Moreau the projection of `c` on ``{u : rows @ u >= 0}`` is ``c + rows^T lam`` for the non-negative `lam` that makes
it shortest: non-negative least squares with d equations, of which at most d multipliers are not zero. Whatever `lam`
one stops at, the length is an upper bound on the projection's: this is what certificates rest on.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_papers.convex_relu.problem import import_scipy_optimize

Array = NDArray[np.float64]
_VIOLATED = 1e-13  # of a unit row by a unit vector
_ENTRIES = 2**22  # of a temporary matrix


class Projections(NamedTuple):
    """Nearest points of cones.

    Attributes:
        points: (b, d).
        upper: (b,) certified upper bounds on the lengths of the exact projections.
    """

    points: Tensor
    upper: Tensor


def project_on_cones(vectors: Tensor, side: Tensor, x: Tensor, *, least: float = 0.0) -> Projections:
    """Project each vector on its own cone ``{u : side_b * (x @ u) >= 0}``.

    Lawson and Hanson's active-set method on all problems at once: a sweep adds one violated row to each, or takes a
    multiplier that has become negative out. What it leaves unsettled goes to `project_on_cone`.

    Args:
        vectors: (b, d).
        side: (b, n), +1 and -1, or 0 for a row that does not count.
        x: (n, d) rows; zero rows do not count.
        least: a projection that is proven to be shorter is given up: its point is outside its cone, its bound holds.
    """
    lengths = x.norm(dim=1)
    units = (x[lengths > 0] / lengths[lengths > 0, None]).numpy()
    sides = side[:, lengths > 0].numpy()
    sizes = vectors.norm(dim=1)
    directions = (vectors / torch.where(sizes > 0, sizes, 1.0)[:, None]).numpy()
    # from 1 on the vector itself is too short; no quotient overflows
    shares = np.divide(least, sizes.numpy(), out=np.full(len(sizes), 2.0), where=2 * sizes.numpy() > least)
    points = np.empty_like(directions)
    for part in np.array_split(np.arange(len(points)), max(1, -(-sides.size // _ENTRIES))):
        points[part] = _sweep(directions[part], sides[part], units, shares[part])
    scaled = torch.from_numpy(points) * sizes[:, None]
    return Projections(scaled, scaled.norm(dim=1))


def _sweep(c: Array, side: Array, units: Array, least: Array) -> Array:
    """Points (b, d) near the projections of unit vectors: ``c + rows^T lam`` with lam >= 0 throughout.

    Those that are shorter than `least`, (b,), are left as soon as they are.
    """
    count, d = c.shape
    slots = np.zeros((count, d), dtype=np.intp)  # rows with a multiplier
    used = np.zeros((count, d), dtype=bool)
    lam = np.zeros((count, d))
    points = c.copy()
    open_, adding = np.arange(count), np.ones(count, dtype=bool)
    unsettled: list[int] = []
    diagonal = np.arange(d)
    for _ in range(10 * d + 20):
        inner = (points[open_] @ units.T) * side[open_] if len(units) else np.zeros((len(open_), 1))
        worst = inner.argmin(1)
        violated = inner[np.arange(len(open_)), worst] < -_VIOLATED
        full = used[open_].all(1)
        matters = np.einsum("bd,bd->b", points[open_], points[open_]) >= least[open_] ** 2
        keep = matters & (~adding[open_] | (violated & ~full))
        # d independent rows leave nothing but the origin, up to rounding
        unsettled += open_[matters & adding[open_] & violated & full].tolist()
        enters = keep & adding[open_]
        index = open_[enters]
        slot = (~used[index]).argmax(1)
        slots[index, slot], used[index, slot], lam[index, slot] = worst[enters], True, 0.0
        open_ = open_[keep]
        if len(open_) == 0:
            break
        rows = units[slots[open_]] * np.take_along_axis(side[open_], slots[open_], 1)[:, :, None]
        rows = np.where(used[open_][:, :, None], rows, 0.0)
        gram = rows @ rows.transpose(0, 2, 1)
        gram[:, diagonal, diagonal] += np.where(used[open_], 1e-15, 1.0)
        target = -(rows @ c[open_][:, :, None])
        best = np.linalg.solve(gram, target)[:, :, 0]
        negative = used[open_] & (best <= 0)
        old = lam[open_]
        ratios = np.where(negative, old / np.where(negative, old - best, 1.0), np.inf)
        share = np.minimum(ratios.min(1), 1.0)
        now = old + share[:, None] * (best - old)
        # the multiplier that reached zero leaves, and so does one that just entered and cannot rise
        leaves = negative & (ratios <= share[:, None])
        now = np.where(leaves | ~used[open_], 0.0, np.maximum(now, 0.0))
        used[open_] &= ~leaves
        lam[open_] = now
        adding[open_] = ~negative.any(1)
        points[open_] = c[open_] + (now[:, None, :] @ rows)[:, 0]
    for problem in {*unsettled, *open_.tolist()}:
        careful = project_on_cone(torch.from_numpy(c[problem]), torch.from_numpy(side[problem][:, None] * units))
        if careful.norm() < np.linalg.norm(points[problem]):
            points[problem] = careful.numpy()
    return points


def project_on_cone(c: Tensor, rows: Tensor) -> Tensor:
    """Nearest point to `c`, shape (d,), of the cone ``{u : rows @ u >= 0}``, for rows (k, d)."""
    optimize = import_scipy_optimize()
    lengths = rows.norm(dim=1)
    rows = rows[lengths > 0] / lengths[lengths > 0, None]
    size = float(c.norm())
    if len(rows) == 0 or bool((rows @ c >= -1e-14 * size).all()):
        return c
    matrix, target = rows.T.numpy(), -(c / size).numpy()
    best = c / size
    # nnls is fast and exact, but where many rows are tight it can stop at a wrong point; the others are slower
    solvers: tuple[Callable[[], Any], ...] = (
        lambda: optimize.nnls(matrix, target, maxiter=30 * len(rows) + 100)[0],
        lambda: optimize.lsq_linear(matrix, target, bounds=(0, math.inf), method="bvls", tol=1e-15).x,
        lambda: optimize.lsq_linear(matrix, target, bounds=(0, math.inf), method="trf", tol=1e-15, max_iter=1000).x,
    )
    for solve in solvers:
        try:
            lam = torch.from_numpy(np.maximum(solve(), 0.0))
        except RuntimeError:  # too many iterations
            continue
        point = c / size + rows.T @ lam
        if point.norm() < best.norm():
            best = point
        if bool((rows @ point >= -1e-10).all()) and float((point @ (rows.T @ lam)).abs()) <= 1e-10:
            break
    return best * size

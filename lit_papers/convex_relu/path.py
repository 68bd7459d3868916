"""A continuous path from any network of width n + 1 to a global minimum, along which the objective never rises.

Its parts: balance the neurons; take mass along linear dependencies until at most n neurons are left; then follow the
parametric linear program ``phi(t) = min sum c`` subject to ``A c = (1 - t) z_0 + t z*``, whose columns are the
network's neurons and those of a narrowest optimum. ``loss(z(t)) + beta phi(t)`` is convex in t and smallest at 1. A
neuron changes direction only while its mass is zero, so the parameters are continuous.
"""

import bisect
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_papers.convex_relu.losses import Loss, loss_value
from lit_papers.convex_relu.optimal_set import OptimalSet
from lit_papers.convex_relu.problem import Problem, check_features, check_network, check_targets

Array = NDArray[np.float64]
_PIVOT = 1e-11
_END = 1e-9  # the last dual pivots happen at t = 1 up to rounding


@dataclass(frozen=True)
class _Segment:
    """Masses that move linearly on fixed unit neurons, one per slot of the network."""

    directions: Tensor  # (m, d)
    signs: Tensor  # (m,)
    start: Tensor  # (m,) masses
    end: Tensor

    def at(self, share: float) -> tuple[Tensor, Tensor]:
        roots = torch.lerp(self.start, self.end, share).clamp_min(0).sqrt()
        return roots[:, None] * self.directions, roots * self.signs


class NetworkPath:
    """A piecewise path of networks of one width, from t = 0 to t = 1.

    Calling it with t returns weight (m, d) and alpha (m,).

    Attributes:
        breakpoints: sorted times in [0, 1] at which its pieces meet.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        beta: float,
        loss: Loss,
        start: tuple[Tensor, Tensor],
        segments: list[_Segment],
    ) -> None:
        self._x, self._y, self._beta, self._loss = x, y, beta, loss
        self._start, self._segments = start, segments
        self.breakpoints: list[float] = np.linspace(0.0, 1.0, len(segments) + 2).tolist()

    def __call__(self, t: float) -> tuple[Tensor, Tensor]:
        """Return the network at time `t` in [0, 1].

        Raises:
            ValueError: `t` lies outside.
        """
        if not 0.0 <= t <= 1.0:
            raise ValueError(f"t must lie in [0, 1]; got {t}.")
        piece = min(max(bisect.bisect_right(self.breakpoints, t) - 1, 0), len(self._segments))
        low, high = self.breakpoints[piece : piece + 2]
        share = (t - low) / (high - low)
        return self._balancing(share) if piece == 0 else self._segments[piece - 1].at(share)

    def losses(self, num_points: int = 400) -> Tensor:
        """Objective at `num_points` equally spaced times from 0 to 1."""
        values = []
        for t in np.linspace(0.0, 1.0, num_points):
            weight, alpha = self(float(t))
            outputs = (self._x @ weight.T).relu() @ alpha
            penalty = weight.square().sum() + alpha.square().sum()
            values.append(loss_value(outputs, self._y, self._loss) + 0.5 * self._beta * penalty)
        return torch.stack(values)

    def _balancing(self, share: float) -> tuple[Tensor, Tensor]:
        """Shift norm between the layers of each neuron, its mass constant; neurons without mass shrink to zero."""
        weight, alpha = self._start
        norms = weight.norm(dim=1)
        alive = (norms > 0) & (alpha != 0)
        shift = torch.where(alive, 0.5 * (alpha.abs() / norms).log(), 0.0)
        grow = torch.where(alive, (share * shift).exp(), 1.0 - share)
        shrink = torch.where(alive, (-share * shift).exp(), 1.0 - share)
        return weight * grow[:, None], alpha * shrink


def path_to_optimum(x: Tensor, y: Tensor, weight: Tensor, alpha: Tensor, optimal: OptimalSet) -> NetworkPath:
    """Lead a network of width at least n + 1 to a global minimum without ever raising the objective.

    Args:
        x: data, (n, d).
        y: targets, (n,).
        weight: hidden neurons, (m, d).
        alpha: output weights, (m,).
        optimal: the optimal set of the same data, with its beta and loss.

    Raises:
        ValueError: the network is narrower than n + 1, or the data are malformed.
    """
    x = check_features(x)
    y = check_targets(y, x, optimal.loss)
    if Problem.of(x, y, optimal.beta, loss=optimal.loss).name != optimal.problem.name:
        raise ValueError("optimal: these are the optima of another problem than x and y.")
    weight, alpha = check_network(x, weight, alpha)
    width = len(x) + 1
    if len(alpha) < width:
        raise ValueError(
            f"the network has {len(alpha)} neurons; a path without barrier is only sure from n + 1 = {width} on. "
            "Append zero neurons to it."
        )
    norms = weight.norm(dim=1)
    masses = norms * alpha.abs()
    directions = torch.where(masses[:, None] > 0, weight / norms.clamp_min(1e-300)[:, None], 0.0)
    segments: list[_Segment] = []
    signs = alpha.sign()
    masses = _drop_dependent(x, directions, signs, masses, segments)

    used = (masses > 0).nonzero()[:, 0]
    goal = optimal.minimal_masses()
    atoms = (goal > 0).nonzero()[:, 0]
    pool_directions = torch.cat([directions[used], optimal.directions[atoms]])
    pool_signs = torch.cat([signs[used], optimal.signs[atoms]])
    fits = ((x @ pool_directions.T).clamp_min(0) * pool_signs).numpy()
    begin = np.concatenate([masses[used].numpy(), np.zeros(len(atoms))])
    # its tolerances are for data of unit size
    unit = optimal.mass_unit
    fits = fits / optimal.problem.x_unit
    # not `optimal.output`, which is the optimum's only up to the root of the gap and in no reach of the columns
    reached = fits[:, len(used) :] @ (goal[atoms].numpy() / unit)
    scaled = _parametric_simplex(fits, begin / unit, reached)
    moves = [(unit * low, unit * high) for low, high in scaled]

    slots = {column: int(slot) for column, slot in enumerate(used)}
    directions, signs = directions.clone(), signs.clone()
    for low, high in moves:
        needed = np.flatnonzero((low > 0) | (high > 0)).tolist()
        slots = {column: slot for column, slot in slots.items() if column in needed}
        free = sorted(set(range(len(alpha))) - set(slots.values()))
        start, end = torch.zeros_like(masses), torch.zeros_like(masses)
        for column in needed:
            slot = slots.setdefault(column, free[0] if column not in slots else -1)
            if slot in free:  # its mass is zero: nobody sees it turn
                free.remove(slot)
                directions[slot], signs[slot] = pool_directions[column], pool_signs[column]
            start[slot], end[slot] = float(low[column]), float(high[column])
        segments.append(_Segment(directions.clone(), signs.clone(), start, end))
    return NetworkPath(x, y, optimal.beta, optimal.loss, (weight, alpha), segments)


def _drop_dependent(x: Tensor, directions: Tensor, signs: Tensor, masses: Tensor, segments: list[_Segment]) -> Tensor:
    """Move mass along linear dependencies of the neurons' outputs until none is left (Caratheodory)."""
    fits = (x @ directions.T).clamp_min(0) * signs
    masses = masses.clone()
    scale = float(masses.max()) if len(masses) else 0.0
    while True:
        used = (masses > 0).nonzero()[:, 0]
        if len(used) == 0:
            return masses
        sizes = fits[:, used].norm(dim=0)
        columns = fits[:, used] / torch.where(sizes > 0, sizes, 1.0)
        _, singular, vectors = torch.linalg.svd(columns, full_matrices=True)
        rank = int((singular > 1e-10 * max(float(singular.max()), 1e-300)).sum()) if float(sizes.max()) > 0 else 0
        if rank == len(used):
            return masses
        eta = vectors[-1] / torch.where(sizes > 0, sizes, 1.0)
        if float(eta.sum()) > 0 or (float(eta.sum()) == 0 and not (eta < 0).any()):
            eta = -eta
        ratios = torch.where(eta < 0, masses[used] / -eta, torch.inf)
        leaving = int(ratios.argmin())
        end = masses.clone()
        end[used] = (masses[used] + ratios[leaving] * eta).clamp_min(0)
        end[used[leaving]] = 0.0
        end[end <= 1e-14 * scale] = 0.0
        segments.append(_Segment(directions, signs, masses, end))
        masses = end


def _parametric_simplex(fits: Array, masses: Array, goal: Array) -> list[tuple[Array, Array]]:
    """Follow the cheapest masses as the fit moves from where it is to `goal`.

    Args:
        fits: (n, k) columns.
        masses: (k,) start; its columns are independent.
        goal: (n,), a non-negative combination of columns.

    Returns:
        Linear pieces, as masses (k,) at their start and end.
    """
    left, singular, _ = np.linalg.svd(fits, full_matrices=False)
    rank = int((singular > 1e-10 * singular.max(initial=0.0)).sum()) if fits.size else 0
    if rank == 0:
        return []
    columns = left[:, :rank].T @ fits
    begin, end = columns @ masses, left[:, :rank].T @ goal
    basis = _complete(columns, np.flatnonzero(masses > 0).tolist())
    scale = max(float(masses.sum()), 1e-300)
    pieces: list[tuple[Array, Array]] = []

    def place(values: Array) -> Array:
        full = np.zeros(columns.shape[1])
        full[basis] = np.where(values > 1e-12 * scale, values, 0.0)
        return full

    def solved_for(fit: Array) -> Array:
        return np.asarray(np.linalg.solve(columns[:, basis], fit), dtype=np.float64)

    def reduced_costs() -> Array:
        prices = np.linalg.solve(columns[:, basis].T, np.ones(rank))
        costs: Array = 1.0 - prices @ columns
        costs[basis] = 0.0
        return costs

    here = masses
    for _ in range(10_000):  # the fit stays, the mass falls; the smallest index enters, so that it cannot cycle
        entering = np.flatnonzero(reduced_costs() < -1e-10)
        if len(entering) == 0:
            break
        values = solved_for(begin)
        rates = np.linalg.solve(columns[:, basis], columns[:, entering[0]])
        ratios = np.where(rates > _PIVOT, np.maximum(values, 0.0) / np.where(rates > _PIVOT, rates, 1.0), np.inf)
        ties = np.flatnonzero(ratios <= ratios.min() + 1e-14 * scale)
        basis[min(ties, key=lambda row: basis[row])] = int(entering[0])
        following = place(solved_for(begin))
        if np.abs(following - here).max() > 1e-13 * scale:
            pieces.append((here, following))
            here = following

    t = 0.0
    for _ in range(10_000):
        inverse = np.linalg.inv(columns[:, basis])
        values, slopes = inverse @ begin, inverse @ (end - begin)
        falling = slopes < -1e-13 * scale
        times = np.where(falling, np.maximum(values, 0.0) / np.where(falling, -slopes, 1.0), np.inf)
        following_t = max(t, float(times.min()))
        if following_t >= 1 - _END:
            break
        ties = np.flatnonzero(times <= following_t + 1e-13)
        row = min(ties, key=lambda tied: basis[tied])
        following = place(values + following_t * slopes)
        following[basis[row]] = 0.0
        if following_t > t:
            pieces.append((here, following))
            here, t = following, following_t
        pivots = inverse[row] @ columns
        pivots[basis] = 0.0
        candidates = np.flatnonzero(pivots < -_PIVOT)
        if len(candidates) == 0:
            raise ArithmeticError("the path lost its basis to rounding; scale the columns of x to similar lengths.")
        costs = np.maximum(reduced_costs()[candidates], 0.0) / -pivots[candidates]
        basis[row] = int(candidates[np.flatnonzero(costs <= costs.min() + 1e-13)[0]])
    final = place(solved_for(end))
    pieces.append((here, final))
    return pieces


def _complete(columns: Array, chosen: list[int]) -> list[int]:
    """Add columns to independent ones until they span: each time the one farthest from the span."""
    chosen = list(chosen)
    rest = columns.copy()
    for column in chosen:
        unit = rest[:, column] / np.linalg.norm(rest[:, column])
        rest = rest - np.outer(unit, unit @ rest)
    while len(chosen) < len(columns):
        column = int(np.linalg.norm(rest, axis=0).argmax())
        chosen.append(column)
        unit = rest[:, column] / np.linalg.norm(rest[:, column])
        rest = rest - np.outer(unit, unit @ rest)
    return chosen

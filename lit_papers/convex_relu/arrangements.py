"""Activation patterns: which samples a ReLU neuron can switch on together.

A neuron `u` switches on the samples with ``x_k . u > 0``. The hyperplanes ``x_k . u = 0`` cut the space of neurons into
chambers, one pattern each, and on a chamber's closed cone the network is linear: this is what makes training convex.
There are ``O(n^(rank - 1))`` chambers, all of which `enumerate_arrangements` finds by deletion and restriction, without
a single linear program.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_papers.convex_relu.problem import check_features, fingerprint

Array = NDArray[np.float64]
_COLLINEAR = 1e-8
_SMALLEST_MARGIN = 1e-12


class TooManyPatternsError(ValueError):
    """There are, or may be, more activation patterns than allowed.

    Attributes:
        bound: how many there can be.
        limit: how many were allowed.
    """

    def __init__(self, bound: int, limit: int) -> None:
        count = f"{bound:,}" if bound < 10**9 else f"10^{math.log10(bound):.0f}"
        super().__init__(
            f"these data can have up to {count} activation patterns, more than max_patterns={limit:,}. Take a subset "
            "(`sample_arrangements`, or `network_arrangements` for the patterns of a trained network), or raise "
            "max_patterns if time and memory allow."
        )
        self.bound = bound
        self.limit = limit


@dataclass(frozen=True)
class Arrangements:
    """A set of activation patterns.

    Attributes:
        patterns: (n, p) bool; column i says which samples neurons of cone i switch on.
        gates: (d, p) float64; column i lies inside cone i: ``patterns == (x @ gates > 0)`` above rounding.
        exact: these are the patterns of all chambers.
        data: fingerprint of the data that they are the patterns of; None for patterns made by hand.
        merged: (n,) by what angle each sample was turned to lie on the line of another, where any was by more than
            rounding: patterns in between are missing, and bounds allow for them.

    Raises:
        ValueError: `exact` is claimed of no data.
    """

    patterns: Tensor
    gates: Tensor
    exact: bool
    data: str | None = None
    merged: Tensor | None = None

    def __post_init__(self) -> None:
        if self.exact and self.data is None:
            raise ValueError("arrangements: only `enumerate_arrangements` can say that patterns are all of the data's.")

    def __len__(self) -> int:
        """Return the number of patterns."""
        return self.patterns.shape[1]

    def union(self, other: "Arrangements") -> "Arrangements":
        """Return the patterns of both, each once; exact if either is.

        Raises:
            ValueError: they are of different data.
        """
        if self.patterns.shape[0] != other.patterns.shape[0] or self.gates.shape[0] != other.gates.shape[0]:
            raise ValueError(
                f"arrangements of other data: {self.patterns.shape[0]} samples, {self.gates.shape[0]} features here; "
                f"{other.patterns.shape[0]} and {other.gates.shape[0]} there."
            )
        if self.data != other.data:
            raise ValueError("arrangements of other data: both must be made from the same x.")
        patterns = torch.cat([self.patterns, other.patterns], 1)
        keep = _unique_columns(patterns.numpy())
        gates = torch.cat([self.gates, other.gates], 1)[:, keep]
        merged = self.merged if self.exact else other.merged
        return Arrangements(patterns[:, keep], gates, self.exact or other.exact, self.data, merged)

    def only(self, columns: Tensor) -> "Arrangements":
        """Some of the patterns."""
        return Arrangements(self.patterns[:, columns], self.gates[:, columns], exact=False, data=self.data)


def check_arrangements(arrangements: Arrangements, x: Tensor) -> Arrangements:
    """Return `arrangements` if they are patterns of these data, by value and not by shape.

    Args:
        arrangements: made from `x`, or by hand.
        x: the data as the user has them, (n, d).

    Raises:
        ValueError: they were made from other data, or there is no pattern.
    """
    n, d = arrangements.patterns.shape[0], arrangements.gates.shape[0]
    if (n, d) != tuple(x.shape) or len(arrangements) == 0:
        raise ValueError(
            f"arrangements: {len(arrangements)} patterns of {n} samples with {d} features, but x is {tuple(x.shape)}; "
            "make them from the same x."
        )
    if arrangements.data is not None:
        same = arrangements.data == fingerprint(x)
    else:  # made by hand: the gates must show the patterns
        inner = x @ arrangements.gates
        sure = inner.abs() > 1e-9 * x.norm(dim=1, keepdim=True) * arrangements.gates.norm(dim=0)
        same = bool((((inner > 0) == arrangements.patterns) | ~sure).all())
    if not same:
        raise ValueError(
            "arrangements: these are activation patterns of other data, of the same shape as x (before it was scaled, "
            "perhaps); make them from the same x."
        )
    return arrangements


def arrangement_bound(n: int, rank: int) -> int:
    """Largest number of chambers of `n` hyperplanes through the origin in `rank` dimensions (Cover, 1965).

    It is reached in general position: ``2 * sum_{k < rank} C(n - 1, k)``.

    >>> arrangement_bound(10, 3)
    92
    """
    if n < 0 or rank < 0:
        raise ValueError(f"n and rank must not be negative; got {n} and {rank}.")
    if n == 0 or rank == 0:
        return 1
    return 2 * sum(math.comb(n - 1, k) for k in range(min(rank, n)))


def enumerate_arrangements(x: Tensor, *, max_patterns: int = 50_000) -> Arrangements:
    """Find the patterns of all chambers, each once.

    Rank-deficient data, duplicate, antipodal and zero rows are all right: a zero row is never switched on. Only
    chambers (open cells) are listed, as the cone of each contains the lower-dimensional cells at its border.

    Args:
        x: data, (n, d).
        max_patterns: refuse data that can have more.

    Raises:
        TooManyPatternsError: before anything is allocated.
        ValueError: `x` is malformed.

    >>> len(enumerate_arrangements(torch.tensor([[-1.0], [2.0], [0.0]])))
    2
    """
    x = check_features(x)
    lines, members, signs, basis = distinct_lines(x.numpy())
    bound = arrangement_bound(len(lines), basis.shape[1])
    if bound > max_patterns:
        raise TooManyPatternsError(bound, max_patterns)
    witnesses = _chambers(lines)
    margins = witnesses @ lines.T
    if len(lines) and np.abs(margins).min() < _SMALLEST_MARGIN:
        raise ArithmeticError(
            "two hyperplanes of x are too close to tell apart in float64; merge near-duplicate rows of x first."
        )
    patterns = np.zeros((len(x), len(witnesses)), dtype=bool)
    on = members >= 0
    patterns[on] = (margins[:, members[on]] * signs[on] > 0).T
    gates = basis @ witnesses.T if basis.shape[1] else np.zeros((x.shape[1], 1))
    if len(_unique_columns(patterns)) != patterns.shape[1]:
        raise ArithmeticError("two chambers have one pattern: x is too degenerate for float64; scale its columns.")
    found = torch.from_numpy(patterns), torch.from_numpy(np.ascontiguousarray(gates))
    return Arrangements(*found, exact=True, data=fingerprint(x), merged=_turned(x, lines @ basis.T, members, signs))


def _turned(x: Tensor, lines: Array, members: NDArray[np.intp], signs: Array) -> Tensor | None:
    """Angles (n,) between samples and their lines; None where all are rounding."""
    on = members >= 0
    rows = x.numpy()[on] / np.abs(x.numpy()[on]).max(1, keepdims=True)
    angles = np.zeros(len(x))
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    angles[on] = np.linalg.norm(units - signs[on, None] * lines[members[on]], axis=1)
    angles[angles <= 64 * x.shape[1] * np.finfo(float).eps] = 0.0
    return torch.from_numpy(angles) if angles.any() else None


def sample_arrangements(x: Tensor, num_samples: int, *, generator: torch.Generator | None = None) -> Arrangements:
    """Patterns of `num_samples` Gaussian neurons, each once; never known to be all.

    Raises:
        ValueError: `num_samples` is below 1, or `x` is malformed.
    """
    x = check_features(x)
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1; got {num_samples}.")
    gates = torch.randn(x.shape[1], num_samples, dtype=torch.float64, generator=generator)
    return _arrangements_of(x, gates)


def network_arrangements(x: Tensor, weight: Tensor, *, flip_tol: float = 1e-3) -> Arrangements:
    """Harvest the patterns of a network: a far better bank than random ones once the network is trained.

    Trained neurons tend to sit on hyperplanes, where several chambers meet. So for every sample with
    ``|x_k . u| <= flip_tol |x_k| |u|`` the patterns on both sides of its hyperplane are taken too.

    Args:
        x: data, (n, d).
        weight: hidden neurons, (m, d); zero rows are ignored.
        flip_tol: how near is near, as the sine of an angle.

    Raises:
        ValueError: shapes do not fit, or all neurons are zero.
    """
    x = check_features(x)
    weight = torch.as_tensor(weight).detach().to("cpu", torch.float64)
    if weight.ndim != 2 or weight.shape[1] != x.shape[1]:
        raise ValueError(f"weight must be (neurons, {x.shape[1]}) as x has; got shape {tuple(weight.shape)}.")
    weight = weight[weight.norm(dim=1) > 0]
    if len(weight) == 0:
        raise ValueError("weight has no neuron that is not zero, hence no patterns.")
    directions = weight / weight.norm(dim=1, keepdim=True)
    lengths = x.norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    units = x / lengths[:, None]
    cosines = units @ directions.T
    near = (cosines.abs() <= flip_tol) & (x.norm(dim=1) > 0)[:, None]
    row, neuron = near.nonzero(as_tuple=True)
    onto = directions[neuron] - cosines[row, neuron][:, None] * units[row]
    step = max(flip_tol, _COLLINEAR) * units[row]
    return _arrangements_of(x, torch.cat([directions, onto + step, onto - step]).T)


class PatternIndex:
    """Looks patterns up: which column one is, and which facets a cone has.

    A pattern's key is the exclusive or of one random 64-bit word for each of its samples, so that flipping a bit is one
    operation on the key.

    Args:
        x: data of the arrangements, at any scale, (n, d).
        arrangements: the patterns.
    """

    def __init__(self, x: Tensor, arrangements: Arrangements) -> None:
        lines, members, _, _ = distinct_lines(x.numpy())
        self._words = np.random.default_rng(0).integers(1, 2**63, len(x), dtype=np.int64)
        self._one_each = np.array([np.flatnonzero(members == line)[0] for line in range(len(lines))], dtype=np.intp)
        self._flips = np.array([self._key(members == line) for line in range(len(lines))], dtype=np.int64)
        self._exact = arrangements.exact
        self._keys = self._key(arrangements.patterns.numpy())
        self._order = np.argsort(self._keys)
        self._sorted = self._keys[self._order]

    def _key(self, patterns: NDArray[np.bool_]) -> Any:
        """Keys of patterns (n,) or (n, k)."""
        words = self._words if patterns.ndim == 1 else self._words[:, None]
        return np.bitwise_xor.reduce(np.where(patterns, words, 0), axis=0)

    def _places(self, keys: NDArray[np.int64]) -> NDArray[np.intp]:
        place = np.searchsorted(self._sorted, keys)
        place[place == len(self._sorted)] = 0
        return np.where(self._sorted[place] == keys, place, -1)

    def columns(self, patterns: Tensor) -> Tensor:
        """The columns (k,) of patterns (n, k); -1 for those that are not among them."""
        places = self._places(self._key(patterns.numpy()))
        return torch.from_numpy(np.where(places >= 0, self._order[places], -1))

    def facets(self, columns: Tensor) -> list[NDArray[np.intp]]:
        """For some patterns, the samples whose half-spaces are enough to describe their cones.

        Of all patterns, a sample's hyperplane bounds a chamber exactly if flipping its bit (with those of the samples
        on the same line) gives another chamber's: some 2 (d - 1) of n. Of some patterns, one sample of each line.
        """
        if not self._exact:
            return [self._one_each] * len(columns)
        known = self._places(self._keys[columns.numpy(), None] ^ self._flips) >= 0
        return [self._one_each[row] for row in known]


def _arrangements_of(x: Tensor, gates: Tensor) -> Arrangements:
    patterns = x @ gates > 0
    keep = _unique_columns(patterns.numpy())
    return Arrangements(patterns[:, keep].contiguous(), gates[:, keep].contiguous(), exact=False, data=fingerprint(x))


def _keys(bits: NDArray[np.bool_]) -> NDArray[np.void]:
    """One comparable item for each row of bits."""
    packed = np.ascontiguousarray(np.packbits(bits, axis=1))
    return packed.view(np.dtype((np.void, packed.shape[1])))[:, 0]


def _unique_columns(patterns: NDArray[np.bool_]) -> list[int]:
    _, first = np.unique(_keys(patterns.T), return_index=True)
    return sorted(first.tolist())


def distinct_lines(x: Array) -> tuple[Array, NDArray[np.intp], Array, Array]:
    """Reduce data to unit rows of full rank, no two on one line.

    Returns:
        lines: (k, r) unit rows; members: (n,) the line of each sample, -1 for a zero row; signs: (n,) +1 or -1, its
        orientation; basis: (d, r), orthonormal, from reduced neurons to neurons.
    """
    x = x / max(np.abs(x).max(), np.finfo(float).tiny)  # squares of very large and very small rows are no floats
    lengths = np.linalg.norm(x, axis=1)
    members = np.full(len(x), -1, dtype=np.intp)
    signs = np.zeros(len(x))
    there = lengths > x.shape[1] * np.finfo(float).eps * lengths.max()
    if not there.any():
        return np.zeros((0, 0)), members, signs, np.zeros((x.shape[1], 0))
    units = x[there] / lengths[there, None]
    _, scale, directions = np.linalg.svd(units, full_matrices=False)
    rank = int((scale > max(units.shape) * np.finfo(float).eps * scale[0]).sum())
    basis = directions[:rank].T
    reduced = units @ basis
    lines, group, orientation = _merge_collinear(reduced / np.linalg.norm(reduced, axis=1, keepdims=True))
    members[there], signs[there] = group, orientation
    return lines, members, signs, basis


def _merge_collinear(units: Array) -> tuple[Array, NDArray[np.intp], Array]:
    """Merge unit rows on one line: the lines, and the line and orientation of each row.

    Sorted by their product with one fixed generic vector, rows on one line are neighbours.
    """
    generic = np.cos(1.0 + 2.3 * np.arange(units.shape[1]) ** 2) + 1.5
    products = units @ generic
    orientation = np.where(products < 0, -1.0, 1.0)
    order = np.argsort(np.abs(products), kind="stable")
    oriented = (units * orientation[:, None])[order]
    starts = np.ones(len(units), dtype=bool)
    starts[1:] = np.linalg.norm(np.diff(oriented, axis=0), axis=1) >= _COLLINEAR
    group = np.empty(len(units), dtype=np.intp)
    group[order] = np.cumsum(starts) - 1
    return oriented[starts], group, orientation


def _chambers(lines: Array) -> Array:
    """Return one unit witness inside each chamber of pairwise distinct lines' hyperplanes, (p, r).

    Deletion and restriction: hyperplane by hyperplane, a new one cuts exactly those chambers that its own arrangement
    (the earlier hyperplanes' traces on it, one dimension lower) has chambers in.
    """
    r = lines.shape[1] if len(lines) else 0
    if r == 0:
        return np.zeros((1, 0))
    if r == 1:
        return np.array([[1.0], [-1.0]])
    if r == 2:
        borders = np.sort(np.mod(np.arctan2(lines[:, 1], lines[:, 0]) + math.pi / 2, math.pi))
        borders = np.concatenate([borders, borders + math.pi])
        middle = (borders + np.append(borders[1:], borders[0] + 2 * math.pi)) / 2
        return np.stack([np.cos(middle), np.sin(middle)], 1)
    witnesses = np.eye(1, r)
    for k in range(len(lines)):
        new, earlier = lines[k], lines[:k]
        onto = _complement(new)
        traces = earlier @ onto
        if k:
            traces = _merge_collinear(traces / np.linalg.norm(traces, axis=1, keepdims=True))[0]
            inside = _chambers(traces) @ onto.T
            margins = inside @ earlier.T
            cut = np.isin(_keys(witnesses @ earlier.T > 0), _keys(margins > 0))
            reach = np.min(np.abs(margins) / np.maximum(np.abs(earlier @ new), 1e-300), axis=1)
            step = np.minimum(1.0, 0.5 * reach)[:, None] * new
            witnesses = np.concatenate([witnesses[~cut], inside + step, inside - step])
            witnesses /= np.linalg.norm(witnesses, axis=1, keepdims=True)
        else:
            witnesses = np.stack([new, -new])
    return witnesses


def _complement(unit: Array) -> Array:
    """Orthonormal basis (r, r - 1) of the hyperplane perpendicular to a unit vector, by one reflection."""
    mirror = unit.copy()
    pivot = int(np.argmax(np.abs(unit)))
    mirror[pivot] += math.copysign(1.0, unit[pivot])
    reflection = np.eye(len(unit)) - 2.0 * np.outer(mirror, mirror) / (mirror @ mirror)
    return np.delete(reflection, pivot, axis=1)

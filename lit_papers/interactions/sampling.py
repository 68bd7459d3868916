"""Which coalitions are evaluated for which pairs and orders; no network here.

A `Plan` has one entry for each context of a pair. Its four coalitions are a base with players added ("bottom-up"), or
with players taken away ("top-down"). Equal coalitions are found by keys, without building their masks.
"""

import math
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

_COALITIONS = 4  # S, S + i, S + j, S + ij
_PERMUTATIONS = 12


@dataclass(frozen=True)
class Plan:
    """Entries, each a context of one pair at one order.

    Attributes:
        bases: bool, ``(G, n)``: coalitions that entries start from.
        base: of each entry, int64, ``(E,)``.
        top_down: whether the entry's base contains both players, bool, ``(E,)``.
        pair: of each entry, int64, ``(E,)``, an index into the pairs.
        order: of each entry, int64, ``(E,)``, an index into the orders.
        cluster: entries of one order with the same number are dependent, int64, ``(E,)``; -1 where contexts were
            enumerated, so that there is no error.
    """

    bases: Tensor
    base: Tensor
    top_down: Tensor
    pair: Tensor
    order: Tensor
    cluster: Tensor

    @staticmethod
    def join(parts: "list[Plan]") -> "Plan":
        """All entries of several plans."""
        offsets = torch.tensor([0] + [len(part.bases) for part in parts[:-1]]).cumsum(0)
        return Plan(
            torch.cat([part.bases for part in parts]),
            torch.cat([part.base + offset for part, offset in zip(parts, offsets, strict=True)]),
            *(torch.cat([getattr(part, name) for part in parts]) for name in ("top_down", "pair", "order", "cluster")),
        )

    def coalitions(self, pairs: Tensor, generator: torch.Generator, *, reuse: bool) -> "tuple[Coalitions, Tensor]":
        """The coalitions to evaluate, and where each entry finds its four.

        Args:
            pairs: int64, ``(P, 2)``.
            generator: of the keys.
            reuse: whether equal coalitions are evaluated once.

        Returns:
            Coalitions, and int64 ``(4, E)``: their numbers, for S, S+i, S+j and S+ij.
        """
        entries = len(self.base)
        number = torch.arange(_COALITIONS * entries)
        if not reuse:
            return Coalitions(self, pairs, number), number.view(_COALITIONS, entries)
        n = self.bases.shape[1]
        weight = torch.randint(-(2**62), 2**62, (n,), generator=generator)  # sums wrap around, which is as random
        first, second = weight[pairs[self.pair]].unbind(1)
        key = (self.bases.long() * weight).sum(1)[self.base]
        key = torch.where(self.top_down, key - first - second, key)  # of S
        keys = torch.cat([key, key + first, key + second, key + first + second])
        _, place = torch.unique(keys, return_inverse=True)
        representative = torch.empty(int(place.max()) + 1, dtype=torch.int64).scatter_(0, place, number)
        return Coalitions(self, pairs, representative), place.view(_COALITIONS, entries)


@dataclass(frozen=True)
class Coalitions:
    """Masks that are built when they are needed.

    Attributes:
        plan: where they come from.
        pairs: int64, ``(P, 2)``.
        numbers: of each coalition, int64: which of the four, times the number of entries, plus the entry.
    """

    plan: Plan
    pairs: Tensor
    numbers: Tensor

    def __len__(self) -> int:
        return len(self.numbers)

    def masks(self, start: int, stop: int) -> Tensor:
        """Some of them: bool, ``(stop - start, n)``."""
        number = self.numbers[start:stop]
        entry, kind = number % len(self.plan.base), number // len(self.plan.base)
        masks = self.plan.bases[self.plan.base[entry]]
        row = torch.arange(len(masks))
        first, second = self.pairs[self.plan.pair[entry]].unbind(1)
        masks[row, first] = (kind == 1) | (kind == 3)
        masks[row, second] = kind >= 2
        return masks


def enumerated(n: int, pairs: Tensor, order: int, index: int) -> Plan:
    """Every context of every pair, for orders that have few.

    Args:
        n: number of players.
        pairs: int64, ``(P, 2)``.
        order: m.
        index: of the order.
    """
    if order == 0:  # one context, the same for all pairs
        bases, base = torch.zeros(1, n, dtype=torch.bool), torch.zeros(len(pairs), dtype=torch.int64)
        pair = torch.arange(len(pairs))
    else:
        # not torch.combinations, which lists all (n - 2)**m tuples first
        chosen = torch.tensor(list(combinations(range(n - 2), order)))  # (contexts, m)
        others = _others(n, pairs)  # (P, n - 2)
        members = others[:, chosen].reshape(-1, order)  # (P * contexts, m)
        bases = torch.zeros(len(members), n, dtype=torch.bool).scatter_(1, members, True)
        base = torch.arange(len(members))
        pair = base // len(chosen)
    entries = len(base)
    return Plan(
        bases, base, torch.zeros(entries, dtype=torch.bool), pair, torch.full((entries,), index),
        torch.full((entries,), -1),
    )  # fmt: skip


def independent(n: int, pairs: Tensor, order: int, index: int, contexts: int, generator: torch.Generator) -> Plan:
    """The authors' way: contexts drawn for each pair on its own.

    Args:
        n: number of players.
        pairs: int64, ``(P, 2)``.
        order: m.
        index: of the order.
        contexts: K, for each pair.
        generator: of the contexts.
    """
    entries = len(pairs) * contexts
    pair = torch.arange(len(pairs)).repeat_interleave(contexts)
    chosen = torch.rand(entries, n - 2, generator=generator).argsort(1)[:, :order]
    members = _others(n, pairs)[pair].gather(1, chosen)
    bases = torch.zeros(entries, n, dtype=torch.bool).scatter_(1, members, True)
    return Plan(
        bases, torch.arange(entries), torch.zeros(entries, dtype=torch.bool), pair, torch.full((entries,), index),
        torch.arange(entries),
    )  # fmt: skip


def blocks(n: int, pairs: Tensor, order: int, index: int, contexts: int, generator: torch.Generator) -> Plan:
    """Contexts cut from permutations, each serving every pair that it does not touch.

    A permutation of the players gives disjoint blocks of size ``min(m, n - 2 - m)``. A block is the context itself, or
    above half the orders what lies outside context and pair. Given that it does not touch a pair, a block is uniform
    among the contexts of that pair, so the mean is unbiased. A pair is served until it has enough contexts: the rule
    looks at counts alone.

    Args:
        n: number of players.
        pairs: int64, ``(P, 2)``.
        order: m, from 1 to n - 3.
        index: of the order.
        contexts: K, for each pair.
        generator: of the permutations.
    """
    size = min(order, n - 2 - order)
    # blocks in a permutation: few enough that a pair's contexts come from a dozen, or its error could not be told
    each = min(n // size, max(1, contexts // _PERMUTATIONS))
    # the share of blocks that leaves a pair alone, and so how many permutations a pair will need
    free = (n - size) * (n - size - 1) / (n * (n - 1))
    count = torch.zeros(len(pairs), dtype=torch.int64)
    masks, block_of, pair_of, permutation_of = [], [], [], []
    drawn = used = 0
    while int(count.min()) < contexts:
        missing = contexts - int(count.min())
        permutations = max(1, math.ceil(missing / (each * free)))
        players = torch.rand(permutations, n, generator=generator).argsort(1)[:, : each * size]
        players = players.reshape(permutations * each, size)
        block = torch.zeros(len(players), n, dtype=torch.bool).scatter_(1, players, True)  # (blocks, n)
        fits = ~(block[:, pairs[:, 0]] | block[:, pairs[:, 1]])  # (blocks, P)
        fits &= count + fits.cumsum(0) <= contexts
        count += fits.sum(0)
        row, pair = fits.nonzero(as_tuple=True)
        used_rows, place = torch.unique(row, return_inverse=True)
        masks.append(block[used_rows])
        block_of.append(place + used)
        pair_of.append(pair)
        permutation_of.append(row // each + drawn)
        used += len(used_rows)
        drawn += permutations
    bases, base = torch.cat(masks), torch.cat(block_of)
    top_down = 2 * order > n - 2
    return Plan(
        ~bases if top_down else bases, base, torch.full((len(base),), top_down), torch.cat(pair_of),
        torch.full((len(base),), index), torch.cat(permutation_of),
    )  # fmt: skip


def _others(n: int, pairs: Tensor) -> Tensor:
    """The players outside each pair, ascending: int64, ``(P, n - 2)``."""
    outside = torch.ones(len(pairs), n, dtype=torch.bool).scatter_(1, pairs, False)
    return outside.nonzero()[:, 1].view(len(pairs), n - 2)


def clamped_neighbours(rows: int, columns: int, number: int, generator: torch.Generator) -> Tensor:
    """The authors' pairs: one cell anywhere, one in the 5 x 5 cells around it, moved inside at borders; no repeats.

    Clamping makes pairs at borders more frequent.

    Args:
        rows: of the grid.
        columns: of the grid.
        number: how many pairs; all that there are if there are fewer.
        generator: of the pairs.

    Returns:
        int64, ``(P, 2)``, with i < j.
    """
    found: dict[tuple[int, int], None] = {}
    near = [(r, c) for r in range(-2, 3) for c in range(-2, 3) if (r, c) > (0, 0)]
    possible = sum(max(0, rows - r) * max(0, columns - abs(c)) for r, c in near)
    while len(found) < min(number, possible):
        row = torch.randint(rows, (number,), generator=generator)
        column = torch.randint(columns, (number,), generator=generator)
        shift = torch.randint(-2, 3, (2, number), generator=generator)
        first = row * columns + column
        second = (row + shift[0]).clamp(0, rows - 1) * columns + (column + shift[1]).clamp(0, columns - 1)
        for i, j in zip(first.tolist(), second.tolist(), strict=True):
            if i != j:
                found.setdefault((min(i, j), max(i, j)))
    return torch.tensor(list(found)[:number]).view(-1, 2)

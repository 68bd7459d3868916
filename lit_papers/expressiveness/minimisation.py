"""Rewrite expressions with as few index names, and then as shallow sums, as elimination can find.

A nest of sums and products is a block: summing its indices out one by one, each as soon as all factors that mention it
are multiplied, needs as many names as the largest intermediate has indices: treewidth plus one in the best order. All
else (sums of terms, functions, other aggregations) is opaque to its block: a nonlinearity cannot be moved past a sum.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lit_papers.expressiveness.expressions import (
    Addition,
    Aggregate,
    Constant,
    Edge,
    Equal,
    Expression,
    Function,
    Label,
    Product,
    natural_order,
)

_EXACT_DEPTH = 6  # indices up to which all orders are tried
_EXACT_WIDTH = 14  # up to which the smallest width is found by dynamic programming


def minimise(e: Expression) -> Expression:
    """An expression of equal value with fewer index names and, among those, less nested sums.

    >>> from lit_papers.expressiveness.expressions import parse
    >>> print(minimise(parse("sum[x2](sum[x3](E(x1,x2)*E(x2,x3)))")))
    sum[x2](E(x1,x2)*sum[x1](E(x2,x1)))
    """
    rewriter = _Rewriter(e)
    return rewriter.rename(rewriter.rewrite(e), {name: name for name in e.free}, rewriter.pool)


class _Factor(NamedTuple):
    """What elimination needs to know of a factor."""

    scope: frozenset[str]
    depth: int
    expression: Expression


class _Rewriter:
    """One run of `minimise`; sub-expressions that occur many times are rewritten once."""

    def __init__(self, e: Expression) -> None:
        self.pool = sorted(e.indices, key=natural_order) + [f"x{i}" for i in range(1, 100) if f"x{i}" not in e.indices]
        self.fresh = (f"_{i}" for i in itertools.count())
        self.rewritten: dict[Expression, Expression] = {}
        self.renamed: dict[tuple[Expression, tuple[tuple[str, str], ...]], Expression] = {}

    def rewrite(self, e: Expression) -> Expression:
        """The minimised expression in the same free names; its bound names are any."""
        if e not in self.rewritten:
            self.rewritten[e] = self._rewrite(e)
        return self.rewritten[e]

    def _rewrite(self, e: Expression) -> Expression:
        if isinstance(e, Product) or (isinstance(e, Aggregate) and e.kind == "sum"):
            return self.block(e)
        if isinstance(e, Addition):
            return Addition(tuple(self.rewrite(term) for term in e.terms))
        if isinstance(e, Function):
            return Function(e.name, tuple(self.rewrite(argument) for argument in e.arguments))
        if isinstance(e, Aggregate):
            return Aggregate(e.kind, e.index, self.rewrite(e.body), e.guard)
        return e

    def block(self, e: Expression) -> Expression:
        bound: list[str] = []
        factors: list[Expression] = []
        self.flatten(e, {name: name for name in e.free}, bound, factors)
        factors, bound = self.without_equalities(factors, bound)
        items = [_Factor(factor.free, factor.summation_depth, factor) for factor in factors]
        for name in _best_order(items, bound, e.free):
            items = _eliminate(items, name)
        return _product([item.expression for item in items])

    def flatten(self, e: Expression, names: Mapping[str, str], bound: list[str], factors: list[Expression]) -> None:
        """Collect a nest of sums and products: every summed index gets a name of its own."""
        if isinstance(e, Product):
            for factor in e.factors:
                self.flatten(factor, names, bound, factors)
        elif isinstance(e, Aggregate) and e.kind == "sum":
            name = next(self.fresh)
            bound.append(name)
            inner = {**names, e.index: name}
            if e.guard is not None:
                factors.append(Edge(inner[e.guard.x], inner[e.guard.y]))
            self.flatten(e.body, inner, bound, factors)
        else:
            factors.append(self.rename(self.rewrite(e), {name: names[name] for name in e.free}, None))

    def without_equalities(self, factors: list[Expression], bound: list[str]) -> tuple[list[Expression], list[str]]:
        """``sum_y 1[x=y] phi(y) = phi(x)``."""
        factors, bound = list(factors), list(bound)
        changed = True
        while changed:
            changed = False
            for factor in factors:
                if not isinstance(factor, Equal):
                    continue
                if factor.x == factor.y:
                    factors.remove(factor)
                    if factor.negated:
                        factors.append(Constant(0.0))
                elif not factor.negated and (factor.x in bound or factor.y in bound):
                    gone, kept = (factor.x, factor.y) if factor.x in bound else (factor.y, factor.x)
                    factors.remove(factor)
                    bound.remove(gone)
                    factors = [
                        self.rename(other, {name: kept if name == gone else name for name in other.free}, None)
                        for other in factors
                    ]
                else:
                    continue
                changed = True
                break
        return factors, bound

    def rename(self, e: Expression, names: Mapping[str, str], pool: Sequence[str] | None) -> Expression:
        """Rename free indices, and each bound one to the first of the pool that is not free in its body."""
        key = (e, tuple(sorted(names.items())) + ((("", ""),) if pool is None else ()))
        if key not in self.renamed:
            self.renamed[key] = self._rename(e, names, pool)
        return self.renamed[key]

    def _rename(self, e: Expression, names: Mapping[str, str], pool: Sequence[str] | None) -> Expression:
        def inner(child: Expression, names: Mapping[str, str] = names) -> Expression:
            return self.rename(child, {name: names[name] for name in child.free}, pool)

        if isinstance(e, Equal):
            return Equal(names[e.x], names[e.y], e.negated)
        if isinstance(e, Edge):
            return Edge(names[e.x], names[e.y])
        if isinstance(e, Label):
            return Label(e.channel, names[e.x])
        if isinstance(e, Addition):
            return Addition(tuple(inner(term) for term in e.terms))
        if isinstance(e, Product):
            return Product(tuple(inner(factor) for factor in e.factors))
        if isinstance(e, Function):
            return Function(e.name, tuple(inner(argument) for argument in e.arguments))
        if isinstance(e, Aggregate):
            taken = {names[name] for name in e.free}
            # the same choice each time, lest every use of a shared layer become another expression
            names_to_try = (f"#{i}" for i in itertools.count()) if pool is None else iter(pool)
            index = next(name for name in names_to_try if name not in taken)
            within = {**{name: names[name] for name in e.free}, e.index: index}
            guard = None if e.guard is None else Edge(within[e.guard.x], within[e.guard.y])
            return Aggregate(e.kind, index, inner(e.body, within), guard)
        return e


def _product(factors: Sequence[Expression]) -> Expression:
    if not factors:
        return Constant(1.0)
    return factors[0] if len(factors) == 1 else Product(tuple(factors))


def _eliminate(items: list[_Factor], name: str) -> list[_Factor]:
    """Multiply the factors that mention an index, and sum it out."""
    inside = [item for item in items if name in item.scope]
    scope = frozenset().union(*(item.scope for item in inside)) - {name}
    depth = 1 + max((item.depth for item in inside), default=0)
    summed = Aggregate("sum", name, _product([item.expression for item in inside]))
    return [*(item for item in items if name not in item.scope), _Factor(scope, depth, summed)]


def _best_order(items: list[_Factor], bound: list[str], free: frozenset[str]) -> list[str]:
    """The order of elimination with the smallest largest bag, and among those of the smallest depth."""
    if len(bound) <= 1:
        return bound
    if len(bound) <= _EXACT_DEPTH:
        return min((list(order) for order in itertools.permutations(bound)), key=lambda order: _cost(items, order))
    neighbours: dict[str, set[str]] = {name: set() for name in [*bound, *free]}
    for scope in [*(item.scope for item in items), free]:
        for name in scope:
            neighbours[name] |= scope - {name}
    return _smallest_width(neighbours, bound) if len(bound) <= _EXACT_WIDTH else _min_fill(neighbours, bound)


def _cost(items: list[_Factor], order: Sequence[str]) -> tuple[int, int]:
    width = 0
    scopes = [(item.scope, item.depth) for item in items]
    for name in order:
        inside = [pair for pair in scopes if name in pair[0]]
        bag = frozenset({name}).union(*(scope for scope, _ in inside))
        width = max(width, len(bag))
        scopes = [pair for pair in scopes if name not in pair[0]]
        scopes.append((bag - {name}, 1 + max((depth for _, depth in inside), default=0)))
    return width, max((depth for _, depth in scopes), default=0)


def _smallest_width(neighbours: Mapping[str, set[str]], bound: list[str]) -> list[str]:
    """Dynamic programming over the sets of indices eliminated so far (Bodlaender et al.)."""

    def bag(gone: frozenset[str], name: str) -> int:
        seen, frontier, around = {name}, [name], 0
        while frontier:
            for other in neighbours[frontier.pop()]:
                if other not in seen:
                    seen.add(other)
                    if other in gone:
                        frontier.append(other)
                    else:
                        around += 1
        return around + 1

    best: dict[frozenset[str], tuple[int, list[str]]] = {frozenset(): (0, [])}
    for _ in bound:
        following: dict[frozenset[str], tuple[int, list[str]]] = {}
        for gone, (width, order) in best.items():
            for name in bound:
                if name in gone:
                    continue
                candidate = (max(width, bag(gone, name)), [*order, name])
                key = gone | {name}
                if key not in following or candidate[0] < following[key][0]:
                    following[key] = candidate
        best = following
    return best[frozenset(bound)][1]


def _min_fill(neighbours: Mapping[str, set[str]], bound: list[str]) -> list[str]:
    """The usual heuristic: eliminate what adds the fewest edges."""
    graph = {name: set(others) for name, others in neighbours.items()}
    left, order = list(bound), []
    while left:

        def fill(name: str) -> int:
            return sum(b not in graph[a] for a, b in itertools.combinations(graph[name], 2))

        name = min(left, key=fill)
        left.remove(name)
        order.append(name)
        around = graph.pop(name)
        for other in around:
            graph[other] = (graph[other] | around) - {name, other}
    return order

"""Rewrite expressions with as few index names, and then as shallow sums, as elimination can find.

A nest of sums and products is a block: summing its indices out one by one, each as soon as all factors that mention it
are multiplied, needs as many names as the largest intermediate has indices: treewidth plus one in the best order. All
else (sums of terms, functions, other aggregations) is opaque to its block: a nonlinearity cannot be moved past a sum.
An inequality of two indices would join them in every order; where that costs names, it is expanded as 1 - 1[x=y].
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lit_papers.expressiveness.expressions import (
    Addition,
    Aggregate,
    Constant,
    Edge,
    EdgeLabel,
    Equal,
    Expression,
    Function,
    Label,
    Matrix,
    Product,
    factors_of,
    natural_order,
    postorder,
    product_of,
)

_EXACT_DEPTH = 6  # indices up to which all orders are tried
_EXACT_WIDTH = 14  # up to which the smallest width is found by dynamic programming
_MOST_TERMS = 1000  # of an expanded block: seven distinct indices have 877 ways to be equal, eight 4140

Names = tuple[tuple[str, str], ...]


def minimise(e: Expression) -> Expression:
    """An expression of equal value with fewer index names and, among those, less nested sums.

    >>> from lit_papers.expressiveness.parsing import parse
    >>> print(minimise(parse("sum[x2](sum[x3](E(x1,x2)*E(x2,x3)))")))
    sum[x2](E(x1,x2)*sum[x1](E(x2,x1)))
    """
    rewriter = _Rewriter(e)
    for part in postorder(e):  # from the inside out, so that no depth of layers is a depth of calls
        if not isinstance(part, Product) and getattr(part, "kind", None) != "sum":
            rewriter.rewrite(part)
    return rewriter.rename(rewriter.rewrite(e), {name: name for name in e.free}, from_pool=True)


class _Factor(NamedTuple):
    """What elimination needs to know of a factor."""

    scope: frozenset[str]
    depth: int
    expression: Expression


class _Rewriter:
    """One run of `minimise`; sub-expressions that occur many times are rewritten once."""

    def __init__(self, e: Expression) -> None:
        # free names come first: they are in use anyway, so that a bound index takes one of theirs where it can
        spare = sorted(e.indices - e.free, key=natural_order)
        self.pool = [*sorted(e.free, key=natural_order), *spare, *(f"x{i}" for i in range(1, 100))]
        self.rewritten: dict[Expression, Expression] = {}
        self.renamed: dict[tuple[Expression, Names, bool], Expression] = {}

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
        plain = self.eliminated(factors, bound, e.free)
        if plain.width <= max(len(e.free), 2) or not any(_splits(factor, bound) for factor in factors):
            return plain
        expanded = self.expanded(factors, bound, e.free)
        if expanded is not None and (expanded.width, expanded.summation_depth) < (plain.width, plain.summation_depth):
            return expanded
        return plain

    def eliminated(self, factors: list[Expression], bound: list[str], free: frozenset[str]) -> Expression:
        """The block with its indices summed out in the best order."""
        factors, bound = self.without_equalities(factors, bound)
        items = [_Factor(factor.free, factor.summation_depth, factor) for factor in factors]
        for name in _best_order(items, bound, free):
            items = _eliminate(items, name)
        return product_of([item.expression for item in items])

    def expanded(self, factors: list[Expression], bound: list[str], free: frozenset[str]) -> Expression | None:
        """The block with ``1[x!=y]`` as ``1 - 1[x=y]``; None where that has too many terms."""
        unequal = [(f.x, f.y) for f in factors if isinstance(f, Equal) and _splits(f, bound)]
        others = [factor for factor in factors if not _splits(factor, bound)]
        # which indices are equal in a term: terms with the same ones are added up at once
        terms: dict[frozenset[frozenset[str]], int] = {frozenset(): 1}
        for x, y in unequal:
            following: dict[frozenset[frozenset[str]], int] = {}
            for groups, sign in terms.items():
                of_x, of_y = (next((g for g in groups if name in g), frozenset({name})) for name in (x, y))
                if of_x == of_y:
                    continue  # 1[x!=x]
                following[groups] = following.get(groups, 0) + sign
                joined = groups - {of_x, of_y} | {of_x | of_y}
                following[joined] = following.get(joined, 0) - sign
            terms = {groups: sign for groups, sign in following.items() if sign}
            if len(terms) > _MOST_TERMS:
                return None
        found: dict[Expression, int] = {}
        for groups, sign in terms.items():
            equal = [Equal(a, b) for group in groups for a, b in itertools.pairwise(sorted(group))]
            term = self.eliminated([*others, *equal], bound, free)
            # under names by place, most terms that only differ by a symmetry are one
            term = self.rename(term, {name: name for name in term.free})
            found[term] = found.get(term, 0) + sign
        parts = [(term, sign) for term, sign in found.items() if sign]
        weighted = [term if sign == 1 else Product((Constant(float(sign)), *factors_of(term))) for term, sign in parts]
        if not weighted:
            return Constant(0.0)
        return weighted[0] if len(weighted) == 1 else Addition(tuple(weighted))

    def flatten(self, e: Expression, names: Mapping[str, str], bound: list[str], factors: list[Expression]) -> None:
        """Collect a nest of sums and products: every summed index gets a name of its own."""
        stack: list[tuple[Expression, Mapping[str, str]]] = [(e, names)]
        while stack:
            part, names = stack.pop()
            if isinstance(part, Product):
                stack.extend((factor, names) for factor in reversed(part.factors))
            elif isinstance(part, Aggregate) and part.kind == "sum":
                # numbered within the block: the same names in every layer, so that what is renamed once is known
                name = f"@{len(bound)}"
                bound.append(name)
                inner = {**names, part.index: name}
                stack.append((part.body, inner))
                if part.guard is not None:
                    stack.append((part.guard, inner))
            else:
                factors.append(self.rename(self.rewrite(part), {name: names[name] for name in part.free}))

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
                        self.rename(other, {name: kept if name == gone else name for name in other.free})
                        for other in factors
                    ]
                else:
                    continue
                changed = True
                break
        return factors, bound

    def rename(self, e: Expression, names: Mapping[str, str], *, from_pool: bool = False) -> Expression:
        """Rename free indices, and each bound one to the first of the pool that is not free in its body.

        Without the pool, bound indices get names that no text has, by their place.
        """
        root = (e, tuple(sorted(names.items())), from_pool)
        stack = [root]
        while stack:  # with a stack of its own, lest deep networks run out of Python's
            key = stack[-1]
            if key not in self.renamed:
                waiting = [part for part in self.parts(*key) if part not in self.renamed]
                if waiting:
                    stack.extend(waiting)
                    continue
                self.renamed[key] = self.rebuilt(*key)
            stack.pop()
        return self.renamed[root]

    def parts(self, e: Expression, names: Names, from_pool: bool) -> list[tuple[Expression, Names, bool]]:
        """What must be renamed before an expression can be."""
        within = dict(names)
        if isinstance(e, Aggregate):
            within[e.index] = self.bound_name(names, from_pool)
        return [(child, tuple((name, within[name]) for name in sorted(child.free)), from_pool) for child in e.children]

    def bound_name(self, names: Names, from_pool: bool) -> str:
        """The first name that is not in use: the same each time, lest each use of a layer become another expression."""
        taken = {new for _, new in names}
        candidates = self.pool if from_pool else (f"#{i}" for i in itertools.count())
        return next(name for name in candidates if name not in taken)

    def rebuilt(self, e: Expression, names: Names, from_pool: bool) -> Expression:
        """An expression of renamed parts."""
        children = [self.renamed[part] for part in self.parts(e, names, from_pool)]
        new = dict(names)
        match e:
            case Equal():
                return Equal(new[e.x], new[e.y], e.negated)
            case Edge():
                return Edge(new[e.x], new[e.y], e.relation)
            case EdgeLabel():
                return EdgeLabel(e.channel, new[e.x], new[e.y])
            case Matrix():
                return Matrix(e.name, new[e.x], new[e.y], e.order, e.rounds)
            case Label():
                return Label(e.channel, new[e.x])
            case Addition():
                return Addition(tuple(children))
            case Product():
                return Product(tuple(children))
            case Function():
                return Function(e.name, tuple(children))
            case Aggregate():
                guard = None if e.guard is None else children[1]
                return Aggregate(e.kind, self.bound_name(names, from_pool), children[0], guard)  # type: ignore[arg-type]
        return e


def _splits(factor: Expression, bound: Sequence[str]) -> bool:
    """Whether a factor is an inequality that joins an index which is summed out to another."""
    return isinstance(factor, Equal) and factor.negated and (factor.x in bound or factor.y in bound)


def _eliminate(items: list[_Factor], name: str) -> list[_Factor]:
    """Multiply the factors that mention an index, and sum it out."""
    inside = [item for item in items if name in item.scope]
    scope = frozenset().union(*(item.scope for item in inside)) - {name}
    depth = 1 + max((item.depth for item in inside), default=0)
    summed = Aggregate("sum", name, product_of([item.expression for item in inside]))
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

"""Networks on tuples of nodes, and transformers, as expressions: `architectures` has their names."""

import itertools
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

from lit_papers.expressiveness.expressions import (
    Aggregate,
    Edge,
    Equal,
    Expression,
    Function,
    Label,
    product_of,
)
from lit_papers.expressiveness.matrices import matrix_atom
from lit_papers.expressiveness.message_passing import over, stacked


class TupleNetwork(NamedTuple):
    """A network with a value for each tuple of nodes.

    Attributes:
        order: nodes in a tuple.
        value: from the names of a tuple's indices, which may be equal, to its expression.
    """

    order: int
    value: Callable[[tuple[str, ...]], Expression]


def _name(number: int) -> str:
    return f"x{number}"


def _other(names: tuple[str, ...]) -> str:
    """The first index name that is not in use."""
    return next(_name(i) for i in itertools.count(1) if _name(i) not in names)


def _put(names: tuple[str, ...], place: int, name: str) -> tuple[str, ...]:
    return (*names[:place], name, *names[place + 1 :])


def _atomic(names: tuple[str, ...]) -> Expression:
    """Features of the nodes of a tuple, and of each two whether they are equal and joined."""
    parts: list[Expression] = []
    for i, x in enumerate(names):
        parts += [Label(None, x), Edge(x, x)]
        for y in names[i + 1 :]:
            parts += [Equal(x, y), Edge(x, y), Edge(y, x)]
    return Function(f"atomic{len(names)}", tuple(parts))


def fgnn(layers: int, settings: dict[str, Any]) -> TupleNetwork:
    """k-FGNN: h(v) and the sum over u of the product of all h(v[u/i])."""
    k = settings["k"]

    @cache
    def value(t: int, names: tuple[str, ...]) -> Expression:
        if t == 0:
            return _atomic(names)
        u = _other(names)
        factors: list[Expression] = [Function(f"m{t}_{i}", (value(t - 1, _put(names, i, u)),)) for i in range(k)]
        if k == 1:  # the atomic type of (v, u) carries the edges
            factors = [
                Function(f"m{t}", (value(t - 1, (u,)), Edge(u, names[0]), Edge(names[0], u), Equal(u, names[0])))
            ]
        return Function(f"mlp{t}", (value(t - 1, names), Aggregate("sum", u, product_of(factors))))

    return TupleNetwork(k, lambda names: value(layers, names))


def ppgn(layers: int, _: dict[str, Any]) -> TupleNetwork:
    """PPGN: a product of matrices for each channel, which is the 2-FGNN."""
    return fgnn(layers, {"k": 2})


def edge_transformer(layers: int, _: dict[str, Any]) -> TupleNetwork:
    """Edge Transformer: (x, y) attends to all pairs (x, z) and (z, y), by the softmax over z."""

    @cache
    def value(t: int, x: str, y: str) -> Expression:
        if t == 0:
            return _atomic((x, y))
        z = _other((x, y))
        left, right = value(t - 1, x, z), value(t - 1, z, y)
        weight = Function("exp", (Function(f"score{t}", (left, right)),))
        top = Aggregate("sum", z, weight * Function(f"left{t}", (left,)) * Function(f"right{t}", (right,)))
        attended = top * Function("inv", (Aggregate("sum", z, weight),))
        return Function(f"mlp{t}", (value(t - 1, x, y), attended))

    return TupleNetwork(2, lambda names: value(layers, *names))


def local_folklore(layers: int, _: dict[str, Any]) -> TupleNetwork:
    """Local 2-FWL: products h(x, z) h(z, y) for the neighbours z of x, and of y."""

    @cache
    def value(t: int, x: str, y: str) -> Expression:
        if t == 0:
            return _atomic((x, y))
        z = _other((x, y))
        left, right = Function(f"left{t}", (value(t - 1, x, z),)), Function(f"right{t}", (value(t - 1, z, y),))
        ends = x, y
        around = [Aggregate("sum", z, Edge(z, end) * left * right) for end in ends]
        return Function(f"mlp{t}", (value(t - 1, x, y), *around))

    return TupleNetwork(2, lambda names: value(layers, *names))


def oblivious(layers: int, settings: dict[str, Any]) -> TupleNetwork:
    """k-GNN: h(v) and, for each place i, the sum over u of h(v[u/i]); the index that goes is free for u."""
    k = settings["k"]

    @cache
    def value(t: int, names: tuple[str, ...]) -> Expression:
        if t == 0:
            return _atomic(names)
        sums = []
        for i in range(k):
            u = _other(_put(names, i, ""))
            sums.append(Aggregate("sum", u, value(t - 1, _put(names, i, u))))
        return Function(f"mlp{t}", (value(t - 1, names), *sums))

    return TupleNetwork(k, lambda names: value(layers, names))


def invariant(layers: int, settings: dict[str, Any]) -> TupleNetwork:
    """k-IGN: all linear equivariant maps of h, which fill its places with indices of the tuple, or sum them out."""
    k = settings["order"]

    @cache
    def value(t: int, names: tuple[str, ...]) -> Expression:
        if t == 0:
            return _atomic(names)
        terms = []
        for pattern in _fillings(k):
            kept = tuple(names[p] if p >= 0 else "" for p in pattern)
            filled = list(kept)
            summed: list[str] = []
            for group in sorted({p for p in pattern if p < 0}):
                u = _other((*kept, *summed))
                summed.append(u)
                filled = [u if p == group else name for p, name in zip(pattern, filled, strict=True)]
            term = value(t - 1, tuple(filled))
            for u in summed:
                term = Aggregate("sum", u, term)
            terms.append(term)
        equal = [Equal(x, y) for x, y in itertools.combinations(names, 2)]  # maps may differ on diagonals
        return Function(f"linear{t}", (*terms, *equal))

    return TupleNetwork(k, lambda names: value(layers, names))


def _fillings(k: int) -> Iterator[tuple[int, ...]]:
    """What each place gets: an index of the tuple (0 to k - 1), or one of the summed ones (-1, -2, ...)."""
    for pattern in itertools.product(range(-k, k), repeat=k):
        summed = [p for p in pattern if p < 0]
        if all(p >= -1 - len(set(summed[:i])) for i, p in enumerate(summed)):  # numbered as they come
            yield pattern


def simplicial(layers: int, settings: dict[str, Any]) -> Expression:
    """MPSN: cliques of up to dimension + 1 nodes; from faces, larger ones, and those beside in a larger one."""
    largest = settings["dimension"] + 1

    def clique(names: tuple[str, ...]) -> list[Expression]:
        return [Edge(x, y) for x, y in itertools.combinations(names, 2)]

    @cache
    def value(t: int, names: tuple[str, ...]) -> Expression:
        if t == 0:
            return Function(f"simplex{len(names)}", tuple(Label(None, x) for x in names))
        parts: list[Expression] = []
        if len(names) > 1:
            parts += [value(t - 1, (*names[:i], *names[i + 1 :])) for i in range(len(names))]
        z = _other(names)
        joined = [Edge(x, z) for x in names]
        if len(names) < largest:
            parts.append(Aggregate("sum", z, product_of([*joined, value(t - 1, (*names, z))])))
        beside = [value(t - 1, _put(names, i, z)) for i in range(len(names))]
        parts += [Aggregate("sum", z, product_of([*joined, other])) for other in beside]
        return Function(f"mlp{t}_{len(names)}", (value(t - 1, names), *parts))

    names = tuple(_name(i) for i in range(1, largest + 1))
    found = product_of([*clique(names), value(layers, names)])
    for name in names[1:]:  # a node gets the sum over the simplices that it is in
        found = Aggregate("sum", name, found)
    return found


def gps(layers: int, settings: dict[str, Any]) -> Expression:
    """GPS: messages along edges beside attention to all nodes, on features with a positional encoding."""
    encoding = settings["encoding"]

    def start(x: str) -> Expression:
        if encoding == "none":
            return Label(None, x)
        return Function("encode", (Label(None, x), matrix_atom(encoding, x, x)))

    def layer(t: int, x: str, y: str, here: Expression, there: Expression) -> Expression:
        if t == 1:
            here, there = start(x), start(y)
        weight = Function("exp", (Function(f"score{t}", (here, there)),))
        top = Aggregate("sum", y, weight * Function(f"attend{t}", (there,)))
        attended = top * Function("inv", (Aggregate("sum", y, weight),))
        return Function(f"mlp{t}", (here, over("sum", x, y, Function(f"message{t}", (there,))), attended))

    return stacked(layers, layer)

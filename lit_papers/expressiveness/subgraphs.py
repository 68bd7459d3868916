"""Networks on marked copies of a graph, and on counts of patterns, as expressions: `architectures` has their names.

A copy is an index: h(v, u) is the value of node u in the copy where v is marked. Three names are in use at once, v, u
and the neighbour that is summed over, and that is the reason why 2-WL (folklore) bounds nearly all of them.
"""

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

from lit_papers.expressiveness.expressions import (
    Aggregate,
    Constant,
    Edge,
    Equal,
    Expression,
    Function,
    Label,
    product_of,
)
from lit_papers.expressiveness.message_passing import over, stacked

_NAMES = ("x1", "x2", "x3", "x4")


def _other(*used: str) -> str:
    """An index name that is not in use."""
    return next(name for name in _NAMES if name not in used)


def _total(index: str, value: Expression) -> Expression:
    return Aggregate("sum", index, value)


def _marked(v: str, u: str) -> Expression:
    """The value before any layer: features, and whether u is the marked node."""
    return Function("mark", (Label(None, u), Equal(u, v)))


def identity_aware(layers: int, _: dict[str, Any]) -> Expression:
    """ID-GNN: messages from the root are of another kind, and the root keeps its own value."""

    @cache
    def value(t: int, v: str, u: str) -> Expression:
        if t == 0:
            return Label(None, u)
        w = _other(v, u)
        message = Function(f"message{t}", (value(t - 1, v, w), Equal(w, v)))
        return Function(f"mlp{t}", (value(t - 1, v, u), over("sum", u, w, message)))

    return value(layers, "x1", "x1")


def _within(hops: int) -> Callable[[str, str], Expression]:
    """Whether u is so near to v, as a number that is positive if and only if it is."""

    @cache
    def reached(v: str, u: str, left: int) -> Expression:
        if left == 0:
            return Equal(v, u)
        w = _other(v, u)
        return Function("step", (reached(v, u, left - 1) + over("sum", u, w, reached(v, w, left - 1)),))

    return lambda v, u: reached(v, u, hops)


def nested(layers: int, settings: dict[str, Any]) -> Expression:
    """NGNN: a network on each marked ego network, and the sum over its nodes."""
    near = _within(settings["hops"]) if settings["hops"] else lambda v, u: Constant(1.0)

    @cache
    def value(t: int, v: str, u: str) -> Expression:
        if t == 0:
            return _marked(v, u)
        w = _other(v, u)
        return Function(f"mlp{t}", (value(t - 1, v, u), over("sum", u, w, near(v, w) * value(t - 1, v, w))))

    return _total("x2", near("x1", "x2") * value(layers, "x1", "x2"))


def esan(layers: int, _: dict[str, Any]) -> Expression:
    """DSS-GNN: a layer within each copy, and one on the sum of a node's values in all copies."""

    @cache
    def value(t: int, v: str, u: str) -> Expression:
        if t == 0:
            return _marked(v, u)
        w = _other(v, u)
        within = over("sum", u, w, value(t - 1, v, w))
        copy = _other(u)
        shared = _total(copy, value(t - 1, copy, u))
        neighbour = _other(u)
        copy = _other(neighbour)
        around = over("sum", u, neighbour, _total(copy, value(t - 1, copy, neighbour)))
        return Function(f"mlp{t}", (value(t - 1, v, u), within, shared, around))

    return _total("x2", value(layers, "x1", "x2"))


def sswl(layers: int, _: dict[str, Any]) -> Expression:
    """GNN-SSWL: along the edges of the copy, and along those of the marked node; then the sum over the copy."""

    @cache
    def value(t: int, v: str, u: str) -> Expression:
        if t == 0:
            return _marked(v, u)
        w = _other(v, u)
        within, across = over("sum", u, w, value(t - 1, v, w)), over("sum", v, w, value(t - 1, w, u))
        return Function(f"mlp{t}", (value(t - 1, v, u), within, across))

    return _total("x2", value(layers, "x1", "x2"))


def i2gnn(layers: int, _: dict[str, Any]) -> Expression:
    """I2-GNN: a node and one of its neighbours marked; sums over the copy, and over the neighbours."""

    @cache
    def value(t: int, v: str, w: str, u: str) -> Expression:
        if t == 0:
            return Function("mark", (Label(None, u), Equal(u, v), Equal(u, w)))
        s = _other(v, w, u)
        return Function(f"mlp{t}", (value(t - 1, v, w, u), over("sum", u, s, value(t - 1, v, w, s))))

    copy = Function("pool", (_total("x3", value(layers, "x1", "x2", "x3")),))
    return over("sum", "x1", "x2", copy)


def kpgnn(layers: int, settings: dict[str, Any]) -> Expression:
    """KP-GNN: for each distance, the sum over the nodes there, and the number of edges among them."""

    def at(distance: int, v: str, u: str) -> Expression:
        near, nearer = _within(distance)(v, u), _within(distance - 1)(v, u)
        return Function("ring", (near, nearer))

    def layer(t: int, x: str, y: str, here: Expression, there: Expression) -> Expression:
        parts = []
        for distance in range(1, settings["hops"] + 1):
            z = _other(x, y)
            edges = _total(y, _total(z, at(distance, x, y) * at(distance, x, z) * Edge(y, z)))
            parts += [_total(y, at(distance, x, y) * there), Function(f"peripheral{t}_{distance}", (edges,))]
        return Function(f"mlp{t}", (here, *parts))

    return stacked(layers, layer)


def gsn(layers: int, settings: dict[str, Any]) -> Expression:
    """GSN: how many cycles, or cliques, of each size pass through a node, as features of a GIN."""
    if settings["pattern"] not in ("cycle", "clique"):
        raise ValueError(f"pattern of gsn must be cycle or clique; got {settings['pattern']!r}.")

    def counts(x: str) -> list[Expression]:
        return [_count(settings["pattern"], size, x) for size in range(3, settings["size"] + 1)]

    start = {x: Function("structure", (Label(None, x), *counts(x))) for x in ("x1", "x2")}

    def layer(t: int, x: str, y: str, here: Expression, there: Expression) -> Expression:
        if t == 1:
            here, there = start[x], start[y]
        return Function(f"mlp{t}", (here + over("sum", x, y, there),))

    return stacked(layers, layer)


def _count(pattern: str, size: int, x: str) -> Expression:
    """Injective maps of a pattern that send its first node to x; a cycle passes through each twice."""
    names = [x, *(f"v{i}" for i in range(1, size))]
    if pattern == "clique":
        edges = list(itertools.combinations(names, 2))
    else:
        edges = [*itertools.pairwise(names), (names[-1], names[0])]
    apart: list[Expression] = [Equal(a, b, negated=True) for a, b in itertools.combinations(names, 2)]
    body = product_of([*(Edge(a, b) for a, b in edges), *apart])
    for name in names[1:]:
        body = _total(name, body)
    return body

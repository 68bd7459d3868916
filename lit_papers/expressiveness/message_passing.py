"""Networks that pass messages along edges, as expressions: `architectures` has their names."""

from collections.abc import Callable
from typing import Any

from lit_papers.expressiveness.expressions import Aggregate, Edge, EdgeLabel, Expression, Function, Kind, Label

Layer = Callable[[int, str, str, Expression, Expression], Expression]
"""From (number, x, y, value at x, value at y) to the next value at x; y may be bound."""


def stacked(layers: int, layer: Layer) -> Expression:
    """So many layers on the node features, at x1: two index names that swap roles with each sum."""
    here, there = Label(None, "x1"), Label(None, "x2")
    pair: tuple[Expression, Expression] = (here, there)
    for number in range(1, layers + 1):
        pair = (layer(number, "x1", "x2", *pair), layer(number, "x2", "x1", *pair[::-1]))
    return pair[0]


def over(kind: Kind, x: str, y: str, message: Expression, relation: int | None = None) -> Expression:
    """Aggregate a message over the nodes y that send to x."""
    return Aggregate(kind, y, message, Edge(y, x, relation))


def basic(layers: int, _: dict[str, Any]) -> Expression:  # noqa: D103
    def layer(t: int, x: str, y: str, here: Expression, there: Expression) -> Expression:
        around = Function(f"neighbours{t}", (over("sum", x, y, there),))
        return Function("relu", (Function(f"self{t}", (here,)) + around,))

    return stacked(layers, layer)


def sage(layers: int, settings: dict[str, Any]) -> Expression:  # noqa: D103
    if settings["aggr"] not in ("sum", "mean", "max", "min"):
        raise ValueError(f"aggr of sage must be sum, mean, max or min; got {settings['aggr']!r}.")

    def layer(t: int, x: str, y: str, here: Expression, there: Expression) -> Expression:
        around = Function(f"neighbours{t}", (over(settings["aggr"], x, y, there),))
        return Function(f"activation{t}", (Function(f"self{t}", (here,)) + around,))

    return stacked(layers, layer)


def gin(layers: int, _: dict[str, Any]) -> Expression:  # noqa: D103
    def layer(t: int, x: str, y: str, here: Expression, there: Expression) -> Expression:
        return Function(f"mlp{t}", (here + over("sum", x, y, there),))

    return stacked(layers, layer)


def gine(layers: int, _: dict[str, Any]) -> Expression:  # noqa: D103
    def layer(t: int, x: str, y: str, here: Expression, there: Expression) -> Expression:
        message = Function("relu", (there + Function(f"edge{t}", (EdgeLabel(None, y, x),)),))
        return Function(f"mlp{t}", (here + over("sum", x, y, message),))

    return stacked(layers, layer)


def pna(layers: int, _: dict[str, Any]) -> Expression:  # noqa: D103
    def layer(t: int, x: str, y: str, here: Expression, there: Expression) -> Expression:
        message = Function(f"message{t}", (here, there))
        mean, square = over("mean", x, y, message), over("mean", x, y, message * message)
        spread = Function("sqrt", (Function("relu", (square - mean * mean,)),))
        degree = Aggregate("sum", y, Edge(y, x))
        moments = (mean, spread, over("max", x, y, message), over("min", x, y, message))
        return Function(f"update{t}", (here, *moments, Function("scale", (degree,))))

    return stacked(layers, layer)


def rgcn(layers: int, settings: dict[str, Any]) -> Expression:  # noqa: D103
    def layer(t: int, x: str, y: str, here: Expression, there: Expression) -> Expression:
        total: Expression = Function(f"self{t}", (here,))
        for relation in range(settings["relations"]):
            total = total + Function(f"relation{t}_{relation}", (over("mean", x, y, there, relation),))
        return Function("relu", (total,))

    return stacked(layers, layer)


def egin(layers: int, _: dict[str, Any]) -> Expression:  # noqa: D103
    def layer(t: int, x: str, y: str, here: Expression, there: Expression) -> Expression:
        everywhere = Function(f"global{t}", (Aggregate("sum", y, there),))
        return Function(f"mlp{t}", (here + over("sum", x, y, there) + everywhere,))

    return stacked(layers, layer)


def _degree_root(x: str, y: str, loops: int) -> Expression:
    """``1 / sqrt(degree)``, of the graph with so many self-loops added to each node."""
    degree = Aggregate("sum", y, Edge(y, x))
    return Function("rsqrt", (degree + loops if loops else degree,))


def _normalised(x: str, y: str, here: Expression, there: Expression, loops: int = 1) -> Expression:
    """``D^(-1/2) (A + loops I) D^(-1/2)`` applied to a value."""
    around = _degree_root(x, y, loops) * over("sum", x, y, _degree_root(y, x, loops) * there)
    return around + _degree_root(x, y, loops) * _degree_root(x, y, loops) * here if loops else around


def gcn(layers: int, _: dict[str, Any]) -> Expression:  # noqa: D103
    def layer(t: int, x: str, y: str, here: Expression, there: Expression) -> Expression:
        own, other = (Function(f"linear{t}", (value,)) for value in (here, there))
        return Function(f"update{t}", (_normalised(x, y, own, other),))

    return stacked(layers, layer)


def sgc(layers: int, settings: dict[str, Any]) -> Expression:  # noqa: D103
    def layer(t: int, x: str, y: str, here: Expression, there: Expression) -> Expression:
        for _ in range(settings["hops"]):
            here, there = _normalised(x, y, here, there), _normalised(y, x, there, here)
        return Function(f"linear{t}", (here,))

    return stacked(layers, layer)


def gat(layers: int, _: dict[str, Any]) -> Expression:  # noqa: D103
    def layer(t: int, x: str, y: str, here: Expression, there: Expression) -> Expression:
        own, other = (Function(f"linear{t}", (value,)) for value in (here, there))
        loop = Function("exp", (Function(f"score{t}", (own, own)),))
        weight = Function("exp", (Function(f"score{t}", (own, other)),))
        total = loop + over("sum", x, y, weight)
        return Function(f"update{t}", ((loop * own + over("sum", x, y, weight * other)) * Function("inv", (total,)),))

    return stacked(layers, layer)


def cheb(layers: int, settings: dict[str, Any]) -> Expression:  # noqa: D103
    def layer(t: int, x: str, y: str, here: Expression, there: Expression) -> Expression:
        # the scaled Laplacian for a largest eigenvalue of 2 is minus the normalised adjacency
        terms = [(here, there), (-_normalised(x, y, here, there, 0), -_normalised(y, x, there, here, 0))]
        for _ in range(2, settings["order"] + 1):
            (a, b), (c, d) = terms[-1], terms[-2]
            terms.append((-2.0 * _normalised(x, y, a, b, 0) - c, -2.0 * _normalised(y, x, b, a, 0) - d))
        total: Expression = Function(f"linear{t}_0", (here,))
        for degree, (value, _) in list(enumerate(terms))[1 : settings["order"] + 1]:
            total = total + Function(f"linear{t}_{degree}", (value,))
        return Function(f"update{t}", (total,))

    return stacked(layers, layer)


def cayley(layers: int, settings: dict[str, Any]) -> Expression:
    """Powers of (hL - i)(hL + i)^-1, by Jacobi's method; functions carry real and imaginary parts as channels."""

    def right_side(x: str, y: str, here: Expression, there: Expression) -> Expression:
        return Function("right", (here, _normalised(x, y, here, there, 0)))

    def jacobi(x: str, y: str, start: Expression, here: Expression, there: Expression) -> Expression:
        return Function("jacobi", (start, _normalised(x, y, here, there, 0)))

    def layer(t: int, x: str, y: str, here: Expression, there: Expression) -> Expression:
        total: Expression = Function(f"linear{t}_0", (here,))
        for power in range(1, settings["order"] + 1):
            start = right_side(x, y, here, there), right_side(y, x, there, here)
            here, there = start
            for _ in range(settings["iterations"]):
                here, there = jacobi(x, y, start[0], here, there), jacobi(y, x, start[1], there, here)
            total = total + Function(f"linear{t}_{power}", (here,))
        return Function(f"update{t}", (total,))

    return stacked(layers, layer)


def walk(layers: int, settings: dict[str, Any]) -> Expression:  # noqa: D103
    def layer(t: int, x: str, y: str, here: Expression, there: Expression) -> Expression:
        total: Expression = Function(f"linear{t}_0", (here,))
        for length in range(1, settings["order"] + 1):
            here, there = over("sum", x, y, there), over("sum", y, x, here)
            total = total + Function(f"linear{t}_{length}", (here,))
        return Function(f"update{t}", (total,))

    return stacked(layers, layer)

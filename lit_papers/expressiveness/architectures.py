"""Graph networks of the literature as expressions, each with the bound that follows from its syntax.

Functions in these expressions are placeholders (``linear1``, ``mlp2``): give `evaluate` the trained ones by name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lit_papers.expressiveness.bounds import Bound, bound
from lit_papers.expressiveness.expressions import (
    Aggregate,
    Edge,
    Expression,
    Function,
    Kind,
    Label,
)

_PAPER = "Geerts & Reutter (2022)"
_Layer = Callable[[int, str, str, Expression, Expression], Expression]


@dataclass(frozen=True)
class Architecture:
    """A graph network of some layers.

    Attributes:
        name: as given.
        layers: t.
        expression: None where only a theorem gives the bound.
        bound: on what it can tell apart.
        tight: some choice of its functions reaches the bound.
        source: of the bound.
    """

    name: str
    layers: int
    expression: Expression | None
    bound: Bound
    tight: bool
    source: str


def available() -> list[str]:
    """Names that `architecture` knows."""
    return sorted([*_LAYERS, *_THEOREMS])


def architecture(name: str, *, layers: int = 1, readout: bool = False, **options: Any) -> Architecture:
    """Describe a graph network of so many layers, at the level of vertices or, with a sum for readout, of graphs.

    Args:
        name: one of `available`.
        layers: t, at least 1.
        readout: sum over all nodes at the end.
        options: ``aggr`` of sage; ``hops`` of sgc; ``order`` of cheb, walk and ign; ``k`` of fgnn and kgnn;
            ``dimension`` of simplicial; ``order`` and ``iterations`` (of Jacobi's method) of cayley.

    Raises:
        ValueError: the name or an option is unknown, or out of range.

    >>> print(architecture("gcn", layers=2).bound)
    cr^(3)
    """
    if name not in _LAYERS and name not in _THEOREMS:
        raise ValueError(f"unknown architecture {name!r}; known are {', '.join(available())}.")
    if layers < 1:
        raise ValueError(f"layers must be at least 1; got {layers}.")
    allowed = _OPTIONS.get(name, {})
    unknown = set(options) - set(allowed)
    if unknown:
        raise ValueError(f"{name} has no option {', '.join(sorted(unknown))}; it has {', '.join(allowed) or 'none'}.")
    settings = {**allowed, **options}
    for option, value in settings.items():
        least = 2 if (name, option) in (("ign", "order"), ("kgnn", "k")) else 1
        if option != "aggr" and value < least:
            raise ValueError(f"{option} of {name} must be at least {least}; got {value}.")
    if name in _THEOREMS:
        k, rounds, tight, source = _THEOREMS[name](layers, settings)
        return Architecture(name, layers, None, _by_theorem(name, k, rounds, readout), tight, source)
    make, tight, source = _LAYERS[name]
    layer = make(settings)
    here, there = Label(None, "x1"), Label(None, "x2")
    pair: tuple[Expression, Expression] = (here, there)
    for index in range(1, layers + 1):
        pair = (layer(index, "x1", "x2", *pair), layer(index, "x2", "x1", *pair[::-1]))
    expression = Aggregate("sum", "x1", pair[0]) if readout else pair[0]
    return Architecture(name, layers, expression, bound(expression), tight, source)


def _over(kind: Kind, x: str, y: str, message: Expression) -> Expression:
    return Aggregate(kind, y, message, Edge(x, y))


def _basic(_: dict[str, Any]) -> _Layer:
    def layer(t: int, x: str, y: str, here: Expression, there: Expression) -> Expression:
        around = Function(f"neighbours{t}", (_over("sum", x, y, there),))
        return Function("relu", (Function(f"self{t}", (here,)) + around,))

    return layer


def _sage(settings: dict[str, Any]) -> _Layer:
    if settings["aggr"] not in ("sum", "mean", "max", "min"):
        raise ValueError(f"aggr of sage must be sum, mean, max or min; got {settings['aggr']!r}.")

    def layer(t: int, x: str, y: str, here: Expression, there: Expression) -> Expression:
        around = Function(f"neighbours{t}", (_over(settings["aggr"], x, y, there),))
        return Function(f"activation{t}", (Function(f"self{t}", (here,)) + around,))

    return layer


def _gin(_: dict[str, Any]) -> _Layer:
    def layer(t: int, x: str, y: str, here: Expression, there: Expression) -> Expression:
        return Function(f"mlp{t}", (here + _over("sum", x, y, there),))

    return layer


def _egin(_: dict[str, Any]) -> _Layer:
    def layer(t: int, x: str, y: str, here: Expression, there: Expression) -> Expression:
        everywhere = Function(f"global{t}", (Aggregate("sum", y, there),))
        return Function(f"mlp{t}", (here + _over("sum", x, y, there) + everywhere,))

    return layer


def _degree_root(x: str, y: str, loops: int) -> Expression:
    """``1 / sqrt(degree)``, of the graph with so many self-loops added to each node."""
    degree = Aggregate("sum", y, Edge(x, y))
    return Function("rsqrt", (degree + loops if loops else degree,))


def _normalised(x: str, y: str, here: Expression, there: Expression, loops: int = 1) -> Expression:
    """``D^(-1/2) (A + loops I) D^(-1/2)`` applied to a value."""
    around = _degree_root(x, y, loops) * _over("sum", x, y, _degree_root(y, x, loops) * there)
    return around + _degree_root(x, y, loops) * _degree_root(x, y, loops) * here if loops else around


def _gcn(_: dict[str, Any]) -> _Layer:
    def layer(t: int, x: str, y: str, here: Expression, there: Expression) -> Expression:
        own, other = (Function(f"linear{t}", (value,)) for value in (here, there))
        return Function(f"update{t}", (_normalised(x, y, own, other),))

    return layer


def _sgc(settings: dict[str, Any]) -> _Layer:
    def layer(t: int, x: str, y: str, here: Expression, there: Expression) -> Expression:
        for _ in range(settings["hops"]):
            here, there = _normalised(x, y, here, there), _normalised(y, x, there, here)
        return Function(f"linear{t}", (here,))

    return layer


def _gat(_: dict[str, Any]) -> _Layer:
    def layer(t: int, x: str, y: str, here: Expression, there: Expression) -> Expression:
        own, other = (Function(f"linear{t}", (value,)) for value in (here, there))
        loop = Function("exp", (Function(f"score{t}", (own, own)),))
        weight = Function("exp", (Function(f"score{t}", (own, other)),))
        total = loop + _over("sum", x, y, weight)
        return Function(f"update{t}", ((loop * own + _over("sum", x, y, weight * other)) * Function("inv", (total,)),))

    return layer


def _cheb(settings: dict[str, Any]) -> _Layer:
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

    return layer


def _walk(settings: dict[str, Any]) -> _Layer:
    def layer(t: int, x: str, y: str, here: Expression, there: Expression) -> Expression:
        total: Expression = Function(f"linear{t}_0", (here,))
        for length in range(1, settings["order"] + 1):
            here, there = _over("sum", x, y, there), _over("sum", y, x, here)
            total = total + Function(f"linear{t}_{length}", (here,))
        return Function(f"update{t}", (total,))

    return layer


_LAYERS: dict[str, tuple[Callable[[dict[str, Any]], _Layer], bool, str]] = {
    "basic": (_basic, True, f"{_PAPER}; Morris et al. (2019)"),
    "sage": (_sage, False, "by the syntax; sum is tight, mean and max lose multiplicities"),
    "gin": (_gin, True, f"{_PAPER}; Xu et al. (2019)"),
    "egin": (_egin, True, _PAPER),
    "gcn": (_gcn, False, f"{_PAPER}: the neighbour's degree is a sum inside the sum"),
    "sgc": (_sgc, False, "by the syntax"),
    "gat": (_gat, False, "by the syntax: the softmax's denominator is a sibling sum"),
    "cheb": (_cheb, False, f"{_PAPER}; for a fixed largest eigenvalue, from data it exceeds colour refinement"),
    "walk": (_walk, False, "by the syntax"),
}

_OPTIONS: dict[str, dict[str, Any]] = {
    "sage": {"aggr": "mean"},
    "sgc": {"hops": 2},
    "cheb": {"order": 2},
    "walk": {"order": 2},
    "cayley": {"order": 1, "iterations": 4},
    "fgnn": {"k": 2},
    "kgnn": {"k": 2},
    "ign": {"order": 2},
    "simplicial": {"dimension": 1},
}

# name -> from (layers, options) to (k, rounds, tight, source); k = 0 stands for colour refinement
_THEOREMS: dict[str, Callable[[int, dict[str, Any]], tuple[int, int, bool, str]]] = {
    "cayley": lambda t, o: (
        0, t * o["order"] * o["iterations"] + 1, False, "by the syntax: a Jacobi step sums over neighbours"
    ),
    "ppgn": lambda t, o: (2, t, True, f"{_PAPER}; Maron et al. (2019)"),
    "fgnn": lambda t, o: (o["k"], t, True, f"{_PAPER}; Maron et al. (2019)"),
    "kgnn": lambda t, o: (o["k"] - 1, t, False, f"{_PAPER}; Morris et al. (2019)"),
    "ign": lambda t, o: (o["order"] - 1, t * (o["order"] - 1), False, f"{_PAPER}, theorem 5.1"),
    "nested": lambda t, o: (2, t, False, "by the syntax: the marked node is one more index"),
    "simplicial": lambda t, o: (
        o["dimension"] + 1, t, False, "by the syntax: two simplices in a larger one share all indices but one each"
    ),
}  # fmt: skip


def _by_theorem(name: str, k: int, rounds: int, readout: bool) -> Bound:
    test: Literal["cr", "wl"] = "cr" if k == 0 or (k == 1 and readout) else "wl"
    level: Literal["graph", "vertex", "tuple"] = "graph" if readout else "vertex"
    if name == "simplicial" and not readout:
        level = "tuple"
    stable = readout and test == "wl"
    return Bound(test, max(k, 1), None if stable else rounds, level, max(k, 1) + 1, rounds + readout, k == 0, None)

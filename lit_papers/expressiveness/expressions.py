"""Tensor language: graph networks as expressions over index variables (Geerts & Reutter, ICLR 2022).

    phi := number | 1[x=y] | 1[x!=y] | E(x,y) | E[r](x,y) | Q0(x,y) | M[name](x,y) | P0(x)
         | phi + phi | phi * phi | f(phi, ...) | sum[x](phi)

How many index names an expression needs, and how deep its sums nest, bound what it can tell apart by a Weisfeiler-Leman
test: see `bounds`. Beside sums over all nodes there are ``mean``, ``max`` and ``min``, each with or without a guard, as
in ``mean[y|E(y,x)](...)`` over the nodes that send an edge to x.

Expressions are immutable and built from the inside out, so all that is asked of them (free names, depth, whether they
are guarded) is worked out once, when a node is made: nothing here recurses, however deep an expression is.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, cast

Kind = Literal["sum", "mean", "max", "min"]
KINDS = ("sum", "mean", "max", "min")


@dataclass(frozen=True, eq=False)
class Expression:
    """A term of the language: immutable, hashable, with Python's ``+``, ``-`` and ``*``.

    Attributes:
        free: index names that no aggregation binds.
        indices: all index names.
        width: how many names are in use at the same place at most, which is how many an expression needs.
        summation_depth: how deep aggregations nest; 0 for atoms. A matrix counts its declared rounds.
        matrix_order: the largest order of Weisfeiler-Leman that a matrix in it declares; 0 without one.
        endless: a matrix in it needs that test until it is stable.
    """

    free: frozenset[str] = field(init=False, repr=False)
    indices: frozenset[str] = field(init=False, repr=False)
    width: int = field(init=False, repr=False)
    summation_depth: int = field(init=False, repr=False)
    matrix_order: int = field(init=False, repr=False)
    endless: bool = field(init=False, repr=False)
    local: bool = field(init=False, repr=False)
    pairs: frozenset[frozenset[str]] = field(init=False, repr=False)
    _digest: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        children = self.children
        own = frozenset(self._names())
        self._set("free", own.union(*(child.free for child in children)))
        self._set("indices", own.union(*(child.indices for child in children)))
        self._set("width", max([len(self.free), *(child.width for child in children)]))
        self._set("summation_depth", max((child.summation_depth for child in children), default=0))
        self._set("matrix_order", max((child.matrix_order for child in children), default=0))
        self._set("endless", any(child.endless for child in children))
        # of the guarded fragment are expressions that are local (every aggregation is over neighbours of its one free
        # index) and have no pairs left, which are atoms of two indices that no guard joins
        self._set("local", all(child.local for child in children))
        bare = frozenset({own}) if len(own) == 2 else frozenset[frozenset[str]]()
        self._set("pairs", bare.union(*(child.pairs for child in children)))
        # nested layers double their tree with each layer: compare and hash by a digest that is computed once
        names = cast("tuple[str, ...]", self.__match_args__)
        parts = (_digest_of(getattr(self, name)) for name in names)
        self._set("_digest", hashlib.blake2b(type(self).__name__.encode() + b"".join(parts), digest_size=16).digest())

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _names(self) -> tuple[str, ...]:
        """Index names of the node itself."""
        return ()

    @property
    def is_guarded(self) -> bool:
        """The expression is of the guarded fragment: one free index, and sums over neighbours alone."""
        return len(self.free) == 1 and self.local and not self.pairs

    @property
    def children(self) -> tuple["Expression", ...]:
        """Direct sub-expressions."""
        return ()

    def __add__(self, other: "Expression | float") -> "Expression":
        return Addition((*_terms(self), *_terms(_expression(other))))

    def __radd__(self, other: float) -> "Expression":
        return _expression(other) + self

    def __sub__(self, other: "Expression | float") -> "Expression":
        return self + (-1.0) * _expression(other)

    def __rsub__(self, other: float) -> "Expression":
        return _expression(other) - self

    def __neg__(self) -> "Expression":
        return (-1.0) * self

    def __mul__(self, other: "Expression | float") -> "Expression":
        return Product((*factors_of(self), *factors_of(_expression(other))))

    def __rmul__(self, other: float) -> "Expression":
        return _expression(other) * self

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Expression) and self._digest == other._digest)

    def __hash__(self) -> int:
        return hash(self._digest)

    def __deepcopy__(self, memo: object) -> "Expression":
        return self  # immutable, and as deep as a network has layers

    def __str__(self) -> str:
        return self.text([str(child) for child in self.children])

    def __repr__(self) -> str:  # the fields of nested layers would be printed over and over
        return f"<{type(self).__name__} of {', '.join(sorted(self.free)) or 'no index'}, depth {self.summation_depth}>"

    def text(self, children: list[str]) -> str:
        """The expression, given how its children are written."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False, repr=False)
class Constant(Expression):
    """A number."""

    value: float

    def text(self, children: list[str]) -> str:  # noqa: D102
        return repr(self.value).removesuffix(".0")


@dataclass(frozen=True, eq=False, repr=False)
class Equal(Expression):
    """``1[x=y]``, or ``1[x!=y]`` if negated."""

    x: str
    y: str
    negated: bool = False

    def _names(self) -> tuple[str, ...]:
        return (self.x, self.y)

    def text(self, children: list[str]) -> str:  # noqa: D102
        return f"1[{self.x}{'!=' if self.negated else '='}{self.y}]"


@dataclass(frozen=True, eq=False, repr=False)
class Edge(Expression):
    """``E(x,y)``: how many edges lead from x to y, 0 or 1 in a simple graph; ``E[r](x,y)`` those of relation r."""

    x: str
    y: str
    relation: int | None = None

    def _names(self) -> tuple[str, ...]:
        return (self.x, self.y)

    def text(self, children: list[str]) -> str:  # noqa: D102
        return f"E{'' if self.relation is None else f'[{self.relation}]'}({self.x},{self.y})"


@dataclass(frozen=True, eq=False, repr=False)
class EdgeLabel(Expression):
    """``Q3(x,y)``, one channel of what the edges from x to y carry, ``Q(x,y)`` all: their sum, 0 without an edge."""

    channel: int | None
    x: str
    y: str

    def _names(self) -> tuple[str, ...]:
        return (self.x, self.y)

    def text(self, children: list[str]) -> str:  # noqa: D102
        return f"Q{'' if self.channel is None else self.channel}({self.x},{self.y})"


@dataclass(frozen=True, eq=False, repr=False)
class Matrix(Expression):
    """``M[name](x,y)``: an entry of a matrix that folklore k-WL of so many rounds determines, as its author declares.

    Names that text may use, and what they are, stand in `lit_papers.expressiveness.matrices.MATRICES`.

    Args:
        name: of the function that computes it.
        x: row.
        y: column.
        order: k, at least 2.
        rounds: None where it takes the stable colouring.
    """

    name: str
    x: str
    y: str
    order: int = 2
    rounds: int | None = None

    def __post_init__(self) -> None:
        if self.order < 2:
            raise ExpressionError(f"a matrix declares an order of at least 2; got {self.order}")
        super().__post_init__()
        self._set("summation_depth", self.rounds or 0)
        self._set("matrix_order", self.order)
        self._set("endless", self.rounds is None)
        self._set("local", False)

    def _names(self) -> tuple[str, ...]:
        return (self.x, self.y)

    def text(self, children: list[str]) -> str:  # noqa: D102
        return f"M[{self.name}]({self.x},{self.y})"


@dataclass(frozen=True, eq=False, repr=False)
class Label(Expression):
    """``P3(x)``, one channel of the node features; ``P(x)`` all of them."""

    channel: int | None
    x: str

    def _names(self) -> tuple[str, ...]:
        return (self.x,)

    def text(self, children: list[str]) -> str:  # noqa: D102
        return f"P{'' if self.channel is None else self.channel}({self.x})"


@dataclass(frozen=True, eq=False, repr=False)
class Addition(Expression):
    """A sum of terms."""

    terms: tuple[Expression, ...]

    @property
    def children(self) -> tuple[Expression, ...]:  # noqa: D102
        return self.terms

    def text(self, children: list[str]) -> str:  # noqa: D102
        parts = zip(self.terms, children, strict=True)
        return " + ".join(f"({text})" if isinstance(term, Addition) else text for term, text in parts)


@dataclass(frozen=True, eq=False, repr=False)
class Product(Expression):
    """A product of factors."""

    factors: tuple[Expression, ...]

    @property
    def children(self) -> tuple[Expression, ...]:  # noqa: D102
        return self.factors

    def text(self, children: list[str]) -> str:  # noqa: D102
        parts = zip(self.factors, children, strict=True)
        return "*".join(f"({text})" if isinstance(factor, (Addition, Product)) else text for factor, text in parts)


@dataclass(frozen=True, eq=False, repr=False)
class Function(Expression):
    """``f(a, b)``: a function of the values, such as a nonlinearity or a linear layer."""

    name: str
    arguments: tuple[Expression, ...]

    @property
    def children(self) -> tuple[Expression, ...]:  # noqa: D102
        return self.arguments

    def text(self, children: list[str]) -> str:  # noqa: D102
        return f"{self.name}({', '.join(children)})"


@dataclass(frozen=True, eq=False, repr=False)
class Aggregate(Expression):
    """``sum[x](body)`` over all nodes x, or over those with an edge: ``sum[x|E(y,x)](body)``.

    With parallel edges, a guarded sum or mean counts a node as often as there are.

    Raises:
        ExpressionError: the kind is unknown, or the guard does not join the index to another one.
    """

    kind: Kind
    index: str
    body: Expression
    guard: Edge | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ExpressionError(f"an aggregation is one of {', '.join(KINDS)}; got {self.kind!r}")
        if self.guard is not None and (self.guard.x == self.guard.y or self.index not in (self.guard.x, self.guard.y)):
            raise ExpressionError(
                f"the guard {self.guard} does not join {self.index!r}, which is aggregated over, to another"
            )
        super().__post_init__()
        self._set("free", self.free - {self.index})
        self._set("indices", self.indices | {self.index})
        self._set("width", max(self.width, len(self.free) + 1))
        self._set("summation_depth", 1 + self.summation_depth)
        pair = self.free | {self.index}
        self._set("local", self.local and len(pair) == 2 and self._joins(pair) and self.pairs <= {pair})
        # what is not local stays so, and what is has no pairs left; a bare pair inside one that is not says no more
        self._set("pairs", frozenset())

    def _joins(self, pair: frozenset[str]) -> bool:
        """Only nodes that an edge joins to the free index count."""
        if self.guard is not None:
            return True
        return self.kind == "sum" and any(
            isinstance(factor, (Edge, EdgeLabel)) and factor.free == pair for factor in factors_of(self.body)
        )

    @property
    def children(self) -> tuple[Expression, ...]:  # noqa: D102
        return (self.body,) if self.guard is None else (self.body, self.guard)

    def text(self, children: list[str]) -> str:  # noqa: D102
        guard = "" if self.guard is None else f"|{self.guard}"
        return f"{self.kind}[{self.index}{guard}]({children[0]})"


class ExpressionError(ValueError):
    """An expression is malformed; the message says where."""


def natural_order(name: str) -> tuple[str, int, str]:
    """Sort key that puts x2 before x10."""
    digits = len(name) - len(name.rstrip("0123456789"))
    return (name[: len(name) - digits], int(name[len(name) - digits :] or -1), name)


def postorder(e: Expression) -> Iterator[Expression]:
    """Each distinct sub-expression once, after all that it is made of."""
    seen: set[Expression] = set()
    stack: list[tuple[Expression, bool]] = [(e, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((child, False) for child in reversed(node.children))


def product_of(factors: list[Expression]) -> Expression:
    """Their product: 1 of none, the factor itself of one."""
    if not factors:
        return Constant(1.0)
    return factors[0] if len(factors) == 1 else Product(tuple(factors))


def factors_of(e: Expression) -> tuple[Expression, ...]:
    """The factors of a product, or the expression as the only one."""
    return e.factors if isinstance(e, Product) else (e,)


def _expression(value: "Expression | float") -> Expression:
    return value if isinstance(value, Expression) else Constant(float(value))


def _terms(e: Expression) -> tuple[Expression, ...]:
    return e.terms if isinstance(e, Addition) else (e,)


def _digest_of(value: object) -> bytes:
    if isinstance(value, Expression):
        return value._digest
    if isinstance(value, tuple):
        return b"(" + b"".join(_digest_of(item) for item in value) + b")"
    return repr(value).encode() + b";"

"""Tensor language: graph networks as expressions over index variables (Geerts & Reutter, ICLR 2022).

    phi := number | 1[x=y] | 1[x!=y] | E(x,y) | P0(x) | phi + phi | phi * phi | f(phi, ...) | sum[x](phi)

How many index names an expression needs, and how deep its sums nest, bound what it can tell apart by a Weisfeiler-Leman
test: see `bounds`. Beside sums over all nodes there are ``mean``, ``max`` and ``min``, each with or without a guard, as
in ``mean[y|E(x,y)](...)`` over neighbours.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Kind = Literal["sum", "mean", "max", "min"]
KINDS = ("sum", "mean", "max", "min")


@dataclass(frozen=True, eq=False)
class Expression:
    """A term of the language: immutable, hashable, with Python's ``+``, ``-`` and ``*``."""

    @cached_property
    def free(self) -> frozenset[str]:
        """Index names that no aggregation binds."""
        return frozenset().union(*(child.free for child in self.children))

    @cached_property
    def indices(self) -> frozenset[str]:
        """All index names."""
        return frozenset().union(*(child.indices for child in self.children))

    @cached_property
    def summation_depth(self) -> int:
        """How deep aggregations nest; 0 for atoms."""
        return max((child.summation_depth for child in self.children), default=0)

    @cached_property
    def is_guarded(self) -> bool:
        """The expression is of the guarded fragment: one free index, and sums over neighbours alone."""
        from lit_papers.expressiveness.bounds import is_guarded  # which imports this module

        return is_guarded(self)

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
        return Product((*_factors(self), *_factors(_expression(other))))

    def __rmul__(self, other: float) -> "Expression":
        return _expression(other) * self

    # nested layers double their tree with each layer: compare and hash by a digest that is computed once
    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Expression) and self._digest == other._digest)

    def __hash__(self) -> int:
        return hash(self._digest)

    @cached_property
    def _digest(self) -> bytes:
        def of(value: object) -> bytes:
            if isinstance(value, Expression):
                return value._digest
            if isinstance(value, tuple):
                return b"(" + b"".join(of(item) for item in value) + b")"
            return repr(value).encode() + b";"

        fields = (of(getattr(self, name)) for name in self.__dataclass_fields__)
        return hashlib.blake2b(type(self).__name__.encode() + b"".join(fields), digest_size=16).digest()


@dataclass(frozen=True, eq=False)
class Constant(Expression):
    """A number."""

    value: float

    def __str__(self) -> str:
        return repr(self.value).removesuffix(".0")


@dataclass(frozen=True, eq=False)
class Equal(Expression):
    """``1[x=y]``, or ``1[x!=y]`` if negated."""

    x: str
    y: str
    negated: bool = False

    @cached_property
    def free(self) -> frozenset[str]:  # noqa: D102
        return frozenset((self.x, self.y))

    @cached_property
    def indices(self) -> frozenset[str]:  # noqa: D102
        return self.free

    def __str__(self) -> str:
        return f"1[{self.x}{'!=' if self.negated else '='}{self.y}]"


@dataclass(frozen=True, eq=False)
class Edge(Expression):
    """``E(x,y)``: 1 where x and y are joined."""

    x: str
    y: str

    @cached_property
    def free(self) -> frozenset[str]:  # noqa: D102
        return frozenset((self.x, self.y))

    @cached_property
    def indices(self) -> frozenset[str]:  # noqa: D102
        return self.free

    def __str__(self) -> str:
        return f"E({self.x},{self.y})"


@dataclass(frozen=True, eq=False)
class Label(Expression):
    """``P3(x)``, one channel of the node features; ``P(x)`` all of them."""

    channel: int | None
    x: str

    @cached_property
    def free(self) -> frozenset[str]:  # noqa: D102
        return frozenset((self.x,))

    @cached_property
    def indices(self) -> frozenset[str]:  # noqa: D102
        return self.free

    def __str__(self) -> str:
        return f"P{'' if self.channel is None else self.channel}({self.x})"


@dataclass(frozen=True, eq=False)
class Addition(Expression):
    """A sum of terms."""

    terms: tuple[Expression, ...]

    @property
    def children(self) -> tuple[Expression, ...]:  # noqa: D102
        return self.terms

    def __str__(self) -> str:
        return " + ".join(f"({term})" if isinstance(term, Addition) else str(term) for term in self.terms)


@dataclass(frozen=True, eq=False)
class Product(Expression):
    """A product of factors."""

    factors: tuple[Expression, ...]

    @property
    def children(self) -> tuple[Expression, ...]:  # noqa: D102
        return self.factors

    def __str__(self) -> str:
        return "*".join(
            f"({factor})" if isinstance(factor, (Addition, Product)) else str(factor) for factor in self.factors
        )


@dataclass(frozen=True, eq=False)
class Function(Expression):
    """``f(a, b)``: a function of the values, such as a nonlinearity or a linear layer."""

    name: str
    arguments: tuple[Expression, ...]

    @property
    def children(self) -> tuple[Expression, ...]:  # noqa: D102
        return self.arguments

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.arguments))})"


@dataclass(frozen=True, eq=False)
class Aggregate(Expression):
    """``sum[x](body)`` over all nodes x, or over those with an edge: ``sum[x|E(y,x)](body)``.

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

    @property
    def children(self) -> tuple[Expression, ...]:  # noqa: D102
        return (self.body,) if self.guard is None else (self.body, self.guard)

    @cached_property
    def free(self) -> frozenset[str]:  # noqa: D102
        return super().free - {self.index}

    @cached_property
    def indices(self) -> frozenset[str]:  # noqa: D102
        return super().indices | {self.index}

    @cached_property
    def summation_depth(self) -> int:  # noqa: D102
        return 1 + self.body.summation_depth

    def __str__(self) -> str:
        guard = "" if self.guard is None else f"|{self.guard}"
        return f"{self.kind}[{self.index}{guard}]({self.body})"


class ExpressionError(ValueError):
    """An expression is malformed; the message says where."""


def natural_order(name: str) -> tuple[str, int, str]:
    """Sort key that puts x2 before x10."""
    digits = len(name) - len(name.rstrip("0123456789"))
    return (name[: len(name) - digits], int(name[len(name) - digits :] or -1), name)


def parse(text: str) -> Expression:
    """Read an expression; ``parse(str(e)) == e`` for every expression that was read.

    Raises:
        ExpressionError: the text is malformed; names the position.

    >>> print(parse("sum[y]( E(x,y) * relu(P(y) - 0.5) )"))
    sum[y](E(x,y)*relu(P(y) + -1*0.5))
    """
    return _Parser(text).whole()


class _Parser:
    """Recursive descent: sums of products of atoms."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def whole(self) -> Expression:
        found = self.sum()
        if self.peek():
            raise self.error(f"unexpected {self.peek()!r}")
        return found

    def error(self, message: str) -> ExpressionError:
        return ExpressionError(f"{message} at position {self.at} of {self.text!r}")

    def peek(self) -> str:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.text[self.at : self.at + 1]

    def take(self, symbol: str) -> None:
        self.peek()
        if not self.text.startswith(symbol, self.at):
            found = repr(self.peek()) if self.peek() else "the end"
            raise self.error(f"expected {symbol!r}, found {found}")
        self.at += len(symbol)

    def name(self) -> str:
        self.peek()
        start = self.at
        while self.at < len(self.text) and (self.text[self.at].isalnum() or self.text[self.at] == "_"):
            self.at += 1
        found = self.text[start : self.at]
        if not found.isidentifier():
            self.at = start
            raise self.error(f"expected a name, found {found or self.peek() or 'the end'!r}")
        return found

    def sum(self) -> Expression:
        terms = [self.product()]
        while self.peek() in ("+", "-"):
            sign = self.peek()
            self.at += 1
            term = self.product()
            terms.append(term if sign == "+" else Product((Constant(-1.0), *_factors(term))))
        return terms[0] if len(terms) == 1 else Addition(tuple(terms))

    def product(self) -> Expression:
        factors = [self.atom()]
        while self.peek() == "*":
            self.at += 1
            factors.append(self.atom())
        return factors[0] if len(factors) == 1 else Product(tuple(factors))

    def atom(self) -> Expression:
        first = self.peek()
        if not first:
            raise self.error("expected an expression, found the end")
        if first == "(":
            self.take("(")
            inside = self.sum()
            self.take(")")
            return inside
        if first == "-":
            self.at += 1
            inner = self.atom()
            if isinstance(inner, Constant):
                return Constant(-inner.value)
            return Product((Constant(-1.0), *_factors(inner)))
        if first.isdigit() or first == ".":
            return self.number()
        start = self.at
        name = self.name()
        symbol = self.peek()
        if name in KINDS and symbol == "[":
            return self.aggregate(name, start)
        if symbol != "(":
            raise self.error(f"expected '(' after {name!r}")
        if name == "E":
            return Edge(*self.names(2))
        if name == "P" or (name[0] == "P" and name[1:].isdigit()):
            return Label(int(name[1:]) if name[1:] else None, *self.names(1))
        self.take("(")
        arguments = [self.sum()]
        while self.peek() == ",":
            self.take(",")
            arguments.append(self.sum())
        self.take(")")
        return Function(name, tuple(arguments))

    def number(self) -> Expression:
        if self.text.startswith("1[", self.at):
            self.take("1[")
            x = self.name()
            negated = self.peek() == "!"
            self.take("!=" if negated else "=")
            y = self.name()
            self.take("]")
            return Equal(x, y, negated)
        start = self.at
        while self.at < len(self.text) and (
            self.text[self.at] in "0123456789."
            or (self.text[self.at] in "eE" and self.at > start and self.text[self.at + 1 : self.at + 2] != "(")
            or (self.text[self.at] in "+-" and self.text[self.at - 1] in "eE")
        ):
            self.at += 1
        digits = self.text[start : self.at]
        try:
            value = float(digits)
        except ValueError:
            value = math.inf
        if math.isinf(value):
            self.at = start
            raise self.error(f"{digits!r} is no number")
        return Constant(value)

    def names(self, count: int) -> Iterator[str]:
        self.take("(")
        for index in range(count):
            if index:
                self.take(",")
            yield self.name()
        self.take(")")

    def aggregate(self, kind: str, start: int) -> Expression:
        self.take("[")
        index = self.name()
        guard = None
        if self.peek() == "|":
            self.take("|")
            self.take("E")
            guard = Edge(*self.names(2))
        self.take("]")
        self.take("(")
        body = self.sum()
        self.take(")")
        try:
            return Aggregate(kind, index, body, guard)  # type: ignore[arg-type]
        except ExpressionError as error:
            self.at = start
            raise self.error(str(error)) from None


def _expression(value: "Expression | float") -> Expression:
    return value if isinstance(value, Expression) else Constant(float(value))


def _terms(e: Expression) -> tuple[Expression, ...]:
    return e.terms if isinstance(e, Addition) else (e,)


def _factors(e: Expression) -> tuple[Expression, ...]:
    return e.factors if isinstance(e, Product) else (e,)

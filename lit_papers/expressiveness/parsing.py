"""Reading expressions from text."""

import math
from collections.abc import Iterator

from lit_papers.expressiveness.expressions import (
    KINDS,
    Addition,
    Aggregate,
    Constant,
    Edge,
    EdgeLabel,
    Equal,
    Expression,
    ExpressionError,
    Function,
    Label,
    Product,
    factors_of,
)
from lit_papers.expressiveness.matrices import matrix_atom

_LARGEST_POWER = 64
_DIGITS = tuple("0123456789")  # Python has more, such as a superscript two, which are no numbers


def parse(text: str) -> Expression:
    """Read an expression; ``parse(str(e)) == e`` for every expression that was read.

    ``sum[x,y](e)`` is short for two sums, ``a/b`` for ``a*inv(b)``, which is 0 where b is, and ``a^3`` for ``a*a*a``.

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
        try:
            found = self.sum()
        except RecursionError:
            raise self.error("brackets nest too deeply") from None
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
            terms.append(term if sign == "+" else Product((Constant(-1.0), *factors_of(term))))
        return terms[0] if len(terms) == 1 else Addition(tuple(terms))

    def product(self) -> Expression:
        factors = [self.power()]
        while self.peek() in ("*", "/"):
            divided = self.peek() == "/"
            self.at += 1
            start = self.at
            factor = self.power()
            if divided and isinstance(factor, Constant):
                if factor.value == 0 or math.isinf(1 / factor.value):
                    self.at = start
                    raise self.error("division by 0")
                factor = Constant(1 / factor.value)
            elif divided:
                factor = Function("inv", (factor,))
            factors.append(factor)
        return factors[0] if len(factors) == 1 else Product(tuple(factors))

    def power(self) -> Expression:
        base = self.atom()
        if self.peek() != "^":
            return base
        self.take("^")
        self.peek()
        start = self.at
        while self.text[self.at : self.at + 1] in _DIGITS:
            self.at += 1
        digits = self.text[start : self.at]
        if not digits or int(digits) > _LARGEST_POWER:
            self.at = start
            raise self.error(f"expected an exponent from 0 to {_LARGEST_POWER}")
        if int(digits) == 0:
            return Constant(1.0)
        return base if int(digits) == 1 else Product((base,) * int(digits))

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
            inner = self.power()
            if isinstance(inner, Constant):
                return Constant(-inner.value)
            return Product((Constant(-1.0), *factors_of(inner)))
        if first.isdigit() or first == ".":
            return self.number()
        start = self.at
        name = self.name()
        symbol = self.peek()
        if name in KINDS and symbol == "[":
            return self.aggregate(name, start)
        if name == "M" and symbol == "[":
            return self.matrix()
        if name == "E" and symbol in ("[", "("):
            return self.edge()
        if symbol != "(":
            raise self.error(f"expected '(' after {name!r}")
        if name[0] in "PQ" and (len(name) == 1 or name[1:].isdecimal()):
            channel = int(name[1:]) if name[1:] else None
            return Label(channel, *self.names(1)) if name[0] == "P" else EdgeLabel(channel, *self.names(2))
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

    def edge(self) -> Edge:
        relation = None
        if self.peek() == "[":
            self.take("[")
            self.peek()
            start = self.at
            while self.text[self.at : self.at + 1] in _DIGITS:
                self.at += 1
            if start == self.at:
                raise self.error("expected the number of a relation")
            relation = int(self.text[start : self.at])
            self.take("]")
        x, y = self.names(2)
        return Edge(x, y, relation)

    def matrix(self) -> Expression:
        start = self.at
        self.take("[")
        name = self.name()
        self.take("]")
        x, y = self.names(2)
        try:
            return matrix_atom(name, x, y)
        except ExpressionError as error:
            self.at = start
            raise self.error(str(error)) from None

    def names(self, count: int) -> Iterator[str]:
        self.take("(")
        for index in range(count):
            if index:
                self.take(",")
            yield self.name()
        self.take(")")

    def aggregate(self, kind: str, start: int) -> Expression:
        self.take("[")
        indices = [self.name()]
        while self.peek() == ",":
            self.take(",")
            indices.append(self.name())
        guard = None
        if self.peek() == "|":
            if len(indices) > 1:
                raise self.error("a guard is for one index")
            self.take("|")
            self.take("E")
            guard = self.edge()
        self.take("]")
        self.take("(")
        found = self.sum()
        self.take(")")
        try:
            for index in reversed(indices):
                found = Aggregate(kind, index, found, guard)  # type: ignore[arg-type]
            return found
        except ExpressionError as error:
            self.at = start
            raise self.error(str(error)) from None

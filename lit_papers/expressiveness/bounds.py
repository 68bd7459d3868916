"""What an expression can tell apart at most, read off its syntax (Geerts & Reutter, ICLR 2022, theorems 4.1 to 4.5)."""

from dataclasses import dataclass
from typing import Literal

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
)
from lit_papers.expressiveness.minimisation import minimise


@dataclass(frozen=True)
class Bound:
    """An upper bound on separation power: whatever the test cannot tell apart, the expression maps to equal values.

    Attributes:
        test: ``cr`` for colour refinement, ``wl`` for folklore k-WL.
        k: of k-WL; 1 for colour refinement.
        rounds: of the test; None until it is stable.
        level: whether graphs, vertices or tuples of vertices are told apart.
        num_indices: index names of the minimised expression.
        summation_depth: of the minimised expression.
        guarded: it sums over neighbours alone.
        expression: the minimised expression; None where the bound comes from a theorem on an architecture.
    """

    test: Literal["cr", "wl"]
    k: int
    rounds: int | None
    level: Literal["graph", "vertex", "tuple"]
    num_indices: int
    summation_depth: int
    guarded: bool
    expression: Expression | None

    def __str__(self) -> str:
        rounds = "inf" if self.rounds is None else str(self.rounds)
        if self.test == "cr":
            return f"{'g' if self.level == 'graph' else ''}cr^({rounds})"
        return f"{ {'graph': 'g', 'vertex': 'v', 'tuple': ''}[self.level] }wl_{self.k}^({rounds})"

    @property
    def literature_name(self) -> str:
        """The test as the literature calls it, in both countings."""
        return "1-WL" if self.k == 1 else f"{self.k}-WL (folklore) = {self.k + 1}-WL (oblivious)"

    @property
    def theorem(self) -> str:
        """Where in the paper the bound comes from."""
        if self.test == "cr":
            return "theorem 4.3" if self.level == "vertex" else "theorem 4.4"
        return "theorem 4.4" if self.level == "graph" else "theorem 4.2"


def bound(e: Expression) -> Bound:
    """Derive the bound of an expression from its minimised form.

    >>> from lit_papers.expressiveness.expressions import parse
    >>> print(bound(parse("sum[x2](sum[x3](E(x1,x2)*E(x1,x3)*E(x2,x3)))")))
    vwl_2^(2)
    """
    smallest = minimise(e)
    names, depth, free = len(smallest.indices), smallest.summation_depth, len(e.free)
    guarded = len(e.free) == 1 and _is_local(smallest, e.free, {})  # minimising can make an index vanish
    test: Literal["cr", "wl"] = "wl"
    rounds: int | None = depth
    if guarded:
        test, k, level = "cr", 1, "vertex"
    elif free == 0 and names <= 2:
        test, k, level, rounds = "cr", 1, "graph", max(depth - 1, 0)  # the readout costs one sum
    elif free == 0:
        k, level, rounds = names - 1, "graph", None
    elif free == 1:
        k, level = max(1, names - 1), "vertex"
    else:
        k, level = max(names - 1, free), "tuple"
    return Bound(test, k, rounds, level, names, depth, guarded, smallest)  # type: ignore[arg-type]


def is_guarded(e: Expression) -> bool:
    """Whether an expression is of the guarded fragment: one free index, and every sum is over neighbours."""
    return len(e.free) == 1 and _is_local(e, e.free, {})


def _is_local(e: Expression, names: frozenset[str], known: dict[tuple[Expression, frozenset[str]], bool]) -> bool:
    """Whether an expression combines guarded ones, each of one of these indices."""
    key = (e, names)
    if key not in known:
        known[key] = _combines(e, names, known)
    return known[key]


def _combines(e: Expression, names: frozenset[str], known: dict[tuple[Expression, frozenset[str]], bool]) -> bool:
    if isinstance(e, Constant):
        return True
    if isinstance(e, Label):
        return e.x in names
    if isinstance(e, Equal):
        return e.x == e.y and e.x in names
    if isinstance(e, (Addition, Product, Function)):
        return all(_is_local(child, names, known) for child in e.children)
    if isinstance(e, Aggregate):
        if len(e.free) != 1 or not e.free <= names:
            return False
        pair = e.free | {e.index}
        if e.guard is not None:
            return _is_local(e.body, pair, known)
        factors = e.body.factors if isinstance(e.body, Product) else (e.body,)
        guards = [factor for factor in factors if isinstance(factor, Edge) and factor.free == pair]
        others = [factor for factor in factors if not (isinstance(factor, Edge) and factor.free == pair)]
        return e.kind == "sum" and bool(guards) and all(_is_local(other, pair, known) for other in others)
    return False

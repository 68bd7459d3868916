"""What an expression can tell apart at most, read off its syntax (Geerts & Reutter, ICLR 2022, theorems 4.1 to 4.5)."""

from dataclasses import dataclass
from typing import Literal

from lit_papers.expressiveness.expressions import Expression
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
        expression: the minimised expression.
    """

    test: Literal["cr", "wl"]
    k: int
    rounds: int | None
    level: Literal["graph", "vertex", "tuple"]
    num_indices: int
    summation_depth: int
    guarded: bool
    expression: Expression

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

    Graphs may have loops, directions, relations, parallel edges and features of nodes and edges: the tests of
    `weisfeiler_leman` see all of these. A matrix atom costs what its author declared, before the sums around it.

    >>> from lit_papers.expressiveness.parsing import parse
    >>> print(bound(parse("sum[x2](sum[x3](E(x1,x2)*E(x1,x3)*E(x2,x3)))")))
    vwl_2^(2)
    """
    smallest = minimise(e)
    names, depth, free = len(smallest.indices), smallest.summation_depth, len(e.free)
    order = smallest.matrix_order
    guarded = free == 1 and smallest.local and not smallest.pairs  # minimising can make an index vanish
    test: Literal["cr", "wl"] = "wl"
    rounds: int | None = None if smallest.endless else depth
    if guarded:
        test, k, level = "cr", 1, "vertex"
    elif free == 0 and max(names - 1, order) <= 1:
        test, k, level, rounds = "cr", 1, "graph", max(depth - 1, 0)  # the readout costs one sum
    elif free == 0:
        k, level, rounds = max(names - 1, order), "graph", None
    elif free == 1:
        k, level = max(1, names - 1, order), "vertex"
    else:
        k, level = max(names - 1, free, order), "tuple"
    return Bound(test, k, rounds, level, names, depth, guarded, smallest)  # type: ignore[arg-type]

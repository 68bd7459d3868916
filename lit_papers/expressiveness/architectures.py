"""Graph networks of the literature as expressions, each with the bound that follows from its syntax.

Functions in these expressions are placeholders (``linear1``, ``mlp2``): give `evaluate` the trained ones by name.
Messages run as in PyG: node y sends to x where there is an edge from y to x.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lit_papers.expressiveness import message_passing, subgraphs, tuple_networks
from lit_papers.expressiveness.bounds import Bound, bound
from lit_papers.expressiveness.expressions import Aggregate, Expression
from lit_papers.expressiveness.tuple_networks import TupleNetwork


@dataclass(frozen=True)
class Architecture:
    """A graph network of some layers.

    Attributes:
        name: as given.
        layers: t.
        expression: its value for a node, or for a graph.
        bound: on what it can tell apart, as the expression has it.
        tight: some choice of its functions reaches the bound.
        literature: what the literature says of it, in the names of this paper.
        source: who describes it, and what there is to know.
    """

    name: str
    layers: int
    expression: Expression
    bound: Bound
    tight: bool
    literature: str
    source: str


@dataclass(frozen=True)
class Blueprint:
    """How an architecture is written.

    Attributes:
        build: from (layers, options) to an expression with the free index x1, or to one for each tuple of nodes.
        tight, literature, source: as in `Architecture`.
        options: with their defaults.
        least: smallest values of options, where that is not 1.
        most: largest values of options, where there are any.
    """

    build: Callable[[int, dict[str, Any]], Expression | TupleNetwork]
    tight: bool
    literature: str
    source: str
    options: dict[str, Any]
    least: dict[str, int]
    most: dict[str, int]


def _blueprint(
    build: Callable[[int, dict[str, Any]], Expression | TupleNetwork],
    literature: str,
    source: str,
    *,
    tight: bool = False,
    least: dict[str, int] | None = None,
    most: dict[str, int] | None = None,
    **options: Any,
) -> Blueprint:
    return Blueprint(build, tight, literature, source, options, least or {}, most or {})


_PAPER = "Geerts & Reutter (2022)"
_SYNTAX = "by the syntax"

ARCHITECTURES: dict[str, Blueprint] = {
    "basic": _blueprint(message_passing.basic, "1-WL", f"{_PAPER}; Morris et al. (2019)", tight=True),
    "gin": _blueprint(message_passing.gin, "1-WL", f"{_PAPER}; Xu et al. (2019)", tight=True),
    "gine": _blueprint(message_passing.gine, "1-WL with edge colours", "Hu et al. (2020)"),
    "sage": _blueprint(
        message_passing.sage, "1-WL", "Hamilton et al. (2017); sum is tight, mean and max lose multiplicities",
        aggr="mean",
    ),
    "pna": _blueprint(message_passing.pna, "1-WL", "Corso et al. (2020): degrees and moments are sibling sums"),
    "rgcn": _blueprint(
        message_passing.rgcn, "relational 1-WL (Barceló et al., 2022)", "Schlichtkrull et al. (2018)", relations=2
    ),
    "egin": _blueprint(message_passing.egin, "1-WL", _PAPER, tight=True),
    "gcn": _blueprint(message_passing.gcn, "1-WL", f"{_PAPER}: the neighbour's degree is a sum inside the sum"),
    "sgc": _blueprint(message_passing.sgc, "1-WL", f"Wu et al. (2019), {_SYNTAX}", hops=2),
    "gat": _blueprint(message_passing.gat, "1-WL", f"{_SYNTAX}: the softmax's denominator is a sibling sum"),
    "cheb": _blueprint(
        message_passing.cheb, "1-WL",
        f"{_PAPER}; for a fixed largest eigenvalue, from data it exceeds colour refinement",
        order=2,
    ),
    "cayley": _blueprint(
        message_passing.cayley, "1-WL",
        "Levie et al. (2019): each power begins with a sum for its right side, from which Jacobi's method starts",
        order=1, iterations=4,
    ),
    "walk": _blueprint(message_passing.walk, "1-WL", _SYNTAX, order=2),
    "gsn": _blueprint(
        subgraphs.gsn, "what the counts need: 2-FWL for cycles up to 7, (p-1)-FWL for cliques of p",
        "Bouritsas et al. (2022): counts of cycles, or cliques, of up to so many nodes as features",
        pattern="cycle", size=4, least={"size": 3}, most={"size": 6},
    ),
    "idgnn": _blueprint(
        subgraphs.identity_aware, "2-FWL (Frasca et al., 2022)", "You et al. (2021): messages know the node at the root"
    ),
    "nested": _blueprint(
        subgraphs.nested, "2-FWL (Frasca et al., 2022)",
        "Zhang & Li (2021): a network on the ego network of each node, and the sum over it; hops=0 is the whole graph",
        hops=0, least={"hops": 0},
    ),
    "esan": _blueprint(
        subgraphs.esan, "2-FWL (Frasca et al., 2022)",
        "Bevilacqua et al. (2022), DSS with marked nodes: messages within each copy, and across all copies",
    ),
    "i2gnn": _blueprint(
        subgraphs.i2gnn, "3-FWL; 2-FWL does not bound it (Huang et al., 2023)",
        "Huang et al. (2023): a node and a neighbour marked",
    ),
    "kpgnn": _blueprint(
        subgraphs.kpgnn, "2-FWL (Feng et al., 2022)",
        "Feng et al. (2022): neighbours at each distance, and the edges among them", hops=2,
    ),
    "sswl": _blueprint(
        subgraphs.sswl, "strictly below 2-FWL (Zhang et al., 2023)",
        "Zhang et al. (2023), GNN-SSWL without pooling between layers",
    ),
    "gps": _blueprint(
        tuple_networks.gps, "1-WL, with encodings what these see (Rampášek et al., 2022)",
        "Rampášek et al. (2022): attention over all nodes beside messages", encoding="none",
    ),
    "edge_transformer": _blueprint(
        tuple_networks.edge_transformer, "2-FWL, tight (Müller et al., 2024)",
        "Bergen et al. (2021): triangular attention",
        tight=True,
    ),
    "ppgn": _blueprint(tuple_networks.ppgn, "2-FWL", f"{_PAPER}; Maron et al. (2019)", tight=True),
    "fgnn": _blueprint(tuple_networks.fgnn, "k-FWL", f"{_PAPER}; Maron et al. (2019)", tight=True, k=2, most={"k": 4}),
    "local2fwl": _blueprint(
        tuple_networks.local_folklore, "strictly between SSWL and 2-FWL (Zhang et al., 2023)",
        "Zhang et al. (2023), SLFWL(2): only w next to u or v",
    ),
    "kgnn": _blueprint(
        tuple_networks.oblivious, "(k-1)-FWL", f"{_PAPER}; Morris et al. (2019)", k=2, least={"k": 2}, most={"k": 4}
    ),
    "ign": _blueprint(
        tuple_networks.invariant, "(order-1)-FWL, of t (order-1) rounds by theorem 5.1",
        f"{_PAPER}; Maron et al. (2019): the sum over all tuples is as many sums as the order, one more than there",
        order=2, least={"order": 2}, most={"order": 3},
    ),
    "simplicial": _blueprint(
        tuple_networks.simplicial, "beyond 1-WL (Bodnar et al., 2021)",
        "Bodnar et al. (2021): two simplices in a larger one share all nodes but one each",
        dimension=1, most={"dimension": 3},
    ),
}  # fmt: skip


def available() -> list[str]:
    """Names that `architecture` knows."""
    return sorted(ARCHITECTURES)


def architecture(name: str, *, layers: int = 1, readout: bool = False, **options: Any) -> Architecture:
    """Describe a graph network of so many layers, at the level of vertices or, with a sum for readout, of graphs.

    Args:
        name: one of `available`.
        layers: t, at least 1.
        readout: sum over all nodes at the end, or over all tuples where these are what has values; without it, such a
            network gives a node the value of the tuple (v, ..., v).
        options: ``aggr`` of sage; ``relations`` of rgcn; ``hops`` of sgc, nested and kpgnn; ``order`` of cheb, walk,
            ign and cayley, and ``iterations`` of Jacobi's method of the last; ``pattern`` (cycle or clique) and
            ``size`` of gsn; ``encoding`` of gps: none, or a matrix such as walk8, resistance or spectral1, whose
            diagonal the nodes get; ``k`` of fgnn and kgnn; ``dimension`` of simplicial.

    Raises:
        ValueError: the name or an option is unknown, or out of range.

    >>> print(architecture("gcn", layers=2).bound)
    cr^(3)
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}; known are {', '.join(available())}.")
    if layers < 1:
        raise ValueError(f"layers must be at least 1; got {layers}.")
    plan = ARCHITECTURES[name]
    unknown = set(options) - set(plan.options)
    if unknown:
        has = ", ".join(plan.options) or "none"
        raise ValueError(f"{name} has no option {', '.join(sorted(unknown))}; it has {has}.")
    settings = {**plan.options, **options}
    for option, value in settings.items():
        if not isinstance(value, int):
            continue
        least, most = plan.least.get(option, 1), plan.most.get(option)
        if value < least:
            raise ValueError(f"{option} of {name} must be at least {least}; got {value}.")
        if most is not None and value > most:
            raise ValueError(f"{option} of {name} must be at most {most}, to be written in full; got {value}.")
    found = plan.build(layers, settings)
    order, value = found if isinstance(found, TupleNetwork) else (1, lambda _: found)
    names = tuple(f"x{i}" for i in range(1, order + 1)) if readout else ("x1",) * order
    expression = value(names)
    for name in names if readout else ():
        expression = Aggregate("sum", name, expression)
    return Architecture(name, layers, expression, bound(expression), plan.tight, plan.literature, plan.source)

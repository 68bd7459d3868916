"""What a model tells apart in fact: differences between graphs against the noise of relabelling them."""

import copy
import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lit_papers.expressiveness.adapter import GraphCall, Level, Readout
from lit_papers.expressiveness.features import (
    Relabelled,
    colours,
    copies_of,
    has_exact_features,
    relabelled,
    snap,
)
from lit_papers.expressiveness.graphs import import_graph_extra
from lit_papers.expressiveness.paired_t2 import PairedT2, paired_t2
from lit_papers.expressiveness.weisfeiler_leman import graph_hash, pair_hash, parse_test, vertex_hash

__all__ = [
    "PairedT2",
    "PlacedPair",
    "Readout",
    "SeparationReport",
    "edge_pairs",
    "embed",
    "pair_ceilings",
    "paired_t2",
    "relabelled",
    "separation_power",
    "try_call",
    "vertex_pairs",
]

Transform = Callable[[Any], Any]
_GREY = (10.0, 1000.0)
_NOISY = 1e-3


class PlacedPair(NamedTuple):
    """Two nodes, or two edges, for ``level="vertex"`` and ``level="edge"``.

    Attributes:
        first, second: PyG graphs, which may be the same.
        at: the node of each, or the (source, target) of each edge.
        part: of the collection.
    """

    first: Any
    second: Any
    at: tuple[Any, Any] | None
    part: str = "all"


def vertex_pairs(graphs: Sequence[Any], part: str = "all") -> list[PlacedPair]:
    """All pairs of nodes of the same graph."""
    return [
        PlacedPair(graph, graph, pair, part)
        for graph in graphs
        for pair in itertools.combinations(range(graph.num_nodes), 2)
    ]


def edge_pairs(graphs: Sequence[Any], part: str = "all") -> list[PlacedPair]:
    """All pairs of edges of the same graph, in the directions that they are given."""
    return [
        PlacedPair(graph, graph, pair, part)
        for graph in graphs
        for pair in itertools.combinations(map(tuple, graph.edge_index.T.tolist()), 2)
    ]


@dataclass(frozen=True)
class SeparationReport:
    """Which pairs a model tells apart, beside what tests could.

    Attributes:
        status: of each pair: ``separated``, ``equal``, or ``unreliable`` (not finite, relabelling moves the embeddings
            about as much as the other graph does, or a graph is told apart from a relabelled copy of itself).
        ratios: (P,) difference of each pair over the noise.
        parts: what part of the collection each pair is of.
        controls: (P,) the same ratio of each graph and its own relabelled copies, the larger of the two: the floor.
        per_part: separated pairs of each part.
        ceiling: for each test, the pairs that it tells apart.
        exceeds: for each test, positions of pairs that the model separated though the test cannot.
        num_separated, num_unreliable: counts.
        num_grey: pairs with a ratio from 10 to 1000, where another threshold would decide otherwise.
    """

    status: tuple[str, ...]
    ratios: Tensor
    parts: tuple[str, ...]
    ceiling: Mapping[str, int]
    exceeds: Mapping[str, tuple[int, ...]]
    ceiling_per_part: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    controls: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    @property
    def num_separated(self) -> int:
        """Pairs told apart."""
        return self.status.count("separated")

    @property
    def num_unreliable(self) -> int:
        """Pairs of which nothing can be said."""
        return self.status.count("unreliable")

    @property
    def num_grey(self) -> int:
        """Pairs near the threshold."""
        return int(((self.ratios > _GREY[0]) & (self.ratios < _GREY[1])).sum())

    @property
    def per_part(self) -> dict[str, int]:
        """Separated pairs of each part, parts in their order."""
        counts = dict.fromkeys(self.parts, 0)
        for part, status in zip(self.parts, self.status, strict=True):
            counts[part] += status == "separated"
        return counts

    def as_metrics(self) -> dict[str, float]:
        """Numbers for a logger, keys as the callback `SeparationPower` has them behind its name."""
        numbers = {
            "separated": self.num_separated,
            "total": len(self.status),
            "unreliable": self.num_unreliable,
            "grey": self.num_grey,
            "control": float(self.controls.nan_to_num(torch.inf).max()) if len(self.controls) else 0.0,
            **{f"ceiling/{test}": count for test, count in self.ceiling.items()},
            **{f"part/{part}": count for part, count in self.per_part.items()},
        }
        return {key: float(value) for key, value in numbers.items()}


def separation_power(
    model: nn.Module,
    pairs: Sequence[Any],
    *,
    relabelings: int = 4,
    dtype: torch.dtype = torch.float64,
    ratio: float = 100.0,
    tests: Sequence[str] = ("cr",),
    readout: Readout | None = None,
    call: Callable[[nn.Module, Any], Tensor] | None = None,
    transform: Transform | None = None,
    level: Level = "graph",
    seed: int = 0,
    ceilings: Mapping[str, Sequence[bool]] | None = None,
) -> SeparationReport:
    """Measure which pairs of graphs a model embeds differently, by more than numerical noise.

    Each graph is embedded under several relabelings, twice. The spread of these embeddings is the noise; a pair is
    separated if the difference of its means is `ratio` times as large. A fixed tolerance would measure the tolerance.
    The second group of each graph is a control: an isomorphic copy, which nothing may tell apart.

    Features that some computation made differ by rounding between isomorphic graphs. Float features that are equal up
    to 64 roundings are therefore made equal, for the model as for the tests; with a `transform`, the tests take as
    equal what relabelling was seen to change.

    Args:
        model: see `lit_papers.expressiveness.adapter.GraphCall`; a copy runs, on the CPU in evaluation mode.
        pairs: items that unpack as (first, second), PyG graphs; a ``part`` attribute names their part, and ``at`` the
            nodes or edges, for levels below graphs (`vertex_pairs`, `edge_pairs`).
        relabelings: of each graph in each of the two groups, at least 2.
        dtype: of the copy; float64 unless you want to see what float32 does.
        ratio: threshold.
        tests: for the ceilings, such as ``cr`` and ``2-fwl``. They see the features that the model gets.
        readout: for models with an output for each node.
        call: a function (model, batch) to the output, for models that are called in another way.
        transform: of PyG, run on each relabelled graph: positional encodings, which must not depend on the order of
            nodes, yet do (the signs of eigenvectors).
        level: ``graph``, ``vertex`` or ``edge``: what is told apart.
        seed: of the relabelings, and of random transforms and models.
        ceilings: for each test which pairs it tells apart, if that is known already.

    Raises:
        ValueError: there are no pairs, `relabelings` is below 2, a test is unknown, the model cannot be called on the
            graphs, or its output is not (B, d).
    """
    pairs = _listed(pairs)
    if not pairs:
        raise ValueError("pairs is empty: there is nothing to tell apart.")
    if relabelings < 2:
        raise ValueError(f"relabelings must be at least 2, to see what relabelling changes; got {relabelings}.")
    for test in tests:
        parse_test(test)
    adapter = GraphCall(call, readout, level)
    if level != "graph" and any(getattr(pair, "at", None) is None for pair in pairs):
        raise ValueError(f"level={level!r} needs pairs with `at`, as vertex_pairs and edge_pairs make them.")
    uneven = sum(int(first.num_nodes) != int(second.num_nodes) for first, second in map(_graphs, pairs))
    if uneven:
        warnings.warn(
            f"{uneven} of {len(pairs)} pairs have graphs of different sizes, trivially separated by size.", UserWarning,
            stacklevel=2,
        )  # fmt: skip
    with _measuring(model, dtype, seed) as clone:
        run = _Measurement(clone, adapter, relabelings, dtype, ratio, transform, torch.Generator().manual_seed(seed))
        seen = run.check(pairs[0])
        known = (
            pair_ceilings(pairs, tests, transform=transform, level=level, seen=seen) if ceilings is None else ceilings
        )
        found = [run.measure(pair) for pair in pairs]
    status = tuple(outcome for outcome, _, _ in found)
    parts = tuple(str(getattr(pair, "part", "all")) for pair in pairs)
    return SeparationReport(
        status=status,
        ratios=torch.tensor([between for _, between, _ in found], dtype=torch.float64),
        parts=parts,
        ceiling={test: sum(flags) for test, flags in known.items()},
        exceeds={
            test: tuple(i for i, flag in enumerate(flags) if status[i] == "separated" and not flag)
            for test, flags in known.items()
        },
        ceiling_per_part={
            test: dict(Counter(part for part, flag in zip(parts, flags, strict=True) if flag))
            for test, flags in known.items()
        },
        controls=torch.tensor([control for _, _, control in found], dtype=torch.float64),
    )


def pair_ceilings(
    pairs: Sequence[Any],
    tests: Sequence[str],
    *,
    transform: Transform | None = None,
    level: Level = "graph",
    seen: frozenset[str] | None = None,
) -> dict[str, list[bool]]:
    """For each test, whether it tells each pair apart.

    Args:
        pairs: as for `separation_power`.
        tests: such as ``cr`` and ``2-fwl``.
        transform: run on each relabelled graph.
        level: ``graph``, ``vertex`` or ``edge``.
        seen: names of the features that count; None for all that the graphs have.
    """
    generator = torch.Generator().manual_seed(0)
    hashes = {"graph": graph_hash, "vertex": vertex_hash, "edge": pair_hash}[level]
    pairs = _listed(pairs)
    found: dict[str, list[bool]] = {test: [] for test in tests}
    known: dict[tuple[int, int], tuple[Any, list[list[Relabelled]], dict[str, Tensor]]] = {}
    for pair in pairs if tests else ():
        first, second = _graphs(pair)
        key = (id(first), id(second))  # many pairs of nodes are of one graph
        if key not in known:
            if transform is None:
                copies = [[Relabelled(graph, torch.arange(graph.num_nodes))] for graph in (first, second)]
            else:
                copies = [copies_of(graph, 4, transform, generator) for graph in (first, second)]
            batch = colours(copies, seen)
            known = {key: (batch, copies, {test: hashes(batch, test) for test in tests})}
        batch, copies, values = known[key]
        for test in tests:
            one, two = (
                values[test][i]
                if level == "graph"
                else values[test][_row(batch, i, copies[i][0].place, pair.at[i], level)]
                for i in (0, 1)
            )
            found[test].append(bool(one != two))
    return found


def try_call(
    model: nn.Module,
    pair: Any,
    adapter: GraphCall,
    *,
    transform: Transform | None = None,
    dtype: torch.dtype = torch.float64,
) -> frozenset[str] | None:
    """Call a copy of the model once on a pair, as `separation_power` will.

    Returns:
        Names of the features that the model gets; None for all that the graphs have.

    Raises:
        ValueError: it cannot be called on these graphs, or its output has another shape.
    """
    with _measuring(model, dtype, 0) as clone:
        return _Measurement(clone, adapter, 2, dtype, 1.0, transform, torch.Generator().manual_seed(0)).check(pair)


def embed(
    model: nn.Module,
    batch: Any,
    readout: Readout | None = None,
    call: Callable[[nn.Module, Any], Tensor] | None = None,
) -> Tensor:
    """Graph embeddings (B, d) of a PyG ``Batch``, by `lit_papers.expressiveness.adapter.GraphCall`."""
    return GraphCall(call, readout)(model, batch)


@contextmanager
def _measuring(model: nn.Module, dtype: torch.dtype, seed: int) -> Iterator[nn.Module]:
    """A copy of a model that evaluates in a type of numbers; tensors that its forward makes are of that type too."""
    clone = copy.deepcopy(getattr(model, "_orig_mod", model)).to("cpu", dtype).eval()
    clone.__dict__.pop("forward", None)  # where Lightning keeps a compiled one, which is bound to the original
    before = torch.get_default_dtype()
    with isolate_rng(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            yield clone
        finally:
            torch.set_default_dtype(before)


class _Float32As(TorchFunctionMode):
    """What a forward asks for in float32, as ``x.float()``, comes in another type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            return args[0].to(self.dtype)
        return func(*map(self._other, args), **{key: self._other(value) for key, value in (kwargs or {}).items()})

    def _other(self, value: Any) -> Any:
        meant = value is torch.float32 or value is torch.FloatTensor
        return self.dtype if meant or (isinstance(value, str) and value == "torch.FloatTensor") else value


def _listed(pairs: Sequence[Any]) -> list[Any]:
    """All pairs at once: a data set may make new graphs each time, and graphs are known again by where they lie."""
    return [pairs[index] for index in range(len(pairs))] if hasattr(pairs, "__len__") else list(pairs)


def _graphs(pair: Any) -> tuple[Any, Any]:
    return pair[0], pair[1]


def _row(batch: Any, graph: int, place: Tensor, at: Any, level: Level) -> int:
    """Which row of a batch is a node, or an edge, of one of its graphs."""
    start = batch.ptr[graph]
    if level == "vertex":
        return int(start + place[at])
    source, target = (int(start + place[node]) for node in at)
    columns = ((batch.edge_index[0] == source) & (batch.edge_index[1] == target)).nonzero()
    if not len(columns):
        raise ValueError(f"edge {tuple(at)} is not in the graph.")
    return int(columns[0])


class _Measurement:
    """One measurement; embeddings of a graph are kept for the other pairs that it is in."""

    def __init__(
        self,
        model: nn.Module,
        adapter: GraphCall,
        relabelings: int,
        dtype: torch.dtype,
        ratio: float,
        transform: Transform | None,
        generator: torch.Generator,
    ) -> None:
        self.model, self.adapter, self.relabelings, self.dtype = model, adapter, relabelings, dtype
        self.ratio, self.transform, self.generator = ratio, transform, generator
        self.known: dict[tuple[int, ...], tuple[Tensor, list[Relabelled], Any]] = {}

    def check(self, pair: Any) -> frozenset[str] | None:
        """Try the call on the first pair; returns the features that the model gets, None for all."""
        batch = self.batch([copies_of(graph, 1, self.transform, self.generator)[0] for graph in _graphs(pair)])
        with _Float32As(self.dtype):
            return self.adapter.reads(self.model, batch)

    def batch(self, copies: list[Relabelled]) -> Any:
        batch = import_graph_extra("torch_geometric.data").Batch.from_data_list([copy.graph for copy in copies])
        for key, value in list(batch):
            if isinstance(value, Tensor) and value.is_floating_point():
                batch[key] = value.to(self.dtype)
        return batch

    def embedded(self, pair: Any) -> list[tuple[Tensor, list[Relabelled], Any]]:
        """For each graph the output on its copies, these, and their batch."""
        graphs = _graphs(pair)
        exact = self.transform is None and all(map(has_exact_features, graphs))
        keys = [(id(graph),) if exact else (id(graphs[0]), id(graphs[1]), i) for i, graph in enumerate(graphs)]
        if not all(key in self.known for key in keys):
            fresh = [copies_of(graph, 2 * self.relabelings, self.transform, self.generator) for graph in graphs]
            if not exact:
                snap([copy.graph for copies in fresh for copy in copies])
                self.known.clear()
            for key, copies in zip(keys, fresh, strict=True):
                if key not in self.known:
                    batch = self.batch(copies)
                    with _Float32As(self.dtype):
                        output = self.adapter(self.model, batch).to(torch.float64)
                    self.known[key] = (output, copies, batch)
        return [self.known[key] for key in keys]

    def measure(self, pair: Any) -> tuple[str, float, float]:
        """The status of a pair, the ratio between its graphs, and that between copies of one graph."""
        groups: list[Tensor] = []
        for i, (output, copies, batch) in enumerate(self.embedded(pair)):
            rows = output
            if self.adapter.level != "graph":
                places = [_row(batch, j, c.place, pair.at[i], self.adapter.level) for j, c in enumerate(copies)]
                rows = output[places]
            groups += rows.split(self.relabelings)  # type: ignore[no-untyped-call]
        if groups[0].shape != groups[2].shape:
            raise ValueError(
                f"the model's outputs for the graphs of a pair are {tuple(groups[0].shape[1:])} and "
                f"{tuple(groups[2].shape[1:])}: they cannot be compared."
            )
        # measurement and control of the first graph, then of the second
        stacked = torch.stack(groups)
        if not stacked.isfinite().all():
            return "unreliable", float("nan"), float("nan")
        means = stacked.mean(1)
        noise = float((stacked - means[:, None]).abs().max())
        scale = float(stacked.abs().max())
        floor = max(noise, torch.finfo(self.dtype).eps * scale)

        def ratio_of(i: int, j: int) -> float:
            difference = float((means[i] - means[j]).abs().max())
            return difference / floor if difference else 0.0

        between, control = ratio_of(0, 2), max(ratio_of(0, 1), ratio_of(2, 3))
        if noise > _NOISY * scale or control > self.ratio:
            return "unreliable", between, control
        return ("separated" if between > self.ratio else "equal"), between, control

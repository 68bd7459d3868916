"""Which pairs of graphs a network tells apart, at one moment."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from lit_papers.expressiveness.adapter import GraphCall, Level, Readout
from lit_papers.expressiveness.features import dressed
from lit_papers.expressiveness.separation import (
    PlacedPair,
    SeparationReport,
    Transform,
    pair_ceilings,
    separation_power,
    try_call,
)
from lit_papers.lens import Lens, Moment, NotApplicable, Numbers, Subject
from lit_papers.lens.data import first_batch
from lit_papers.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Prepared(NamedTuple):
    """What stays the same in a fit.

    Attributes:
        pairs: as the network reads them.
        ceilings: for each test, which pairs it tells apart.
    """

    pairs: Sequence[Any]
    ceilings: dict[str, list[bool]]


class SeparationLens(Lens):
    """Pairs of graphs that a network separates, beside what Weisfeiler-Leman tests could (Geerts & Reutter, ICLR 2022).

    The network is tried once before anything is lost. If it cannot read the pairs as they are (another number of
    features, an embedding of atom types, edge attributes), all their nodes and edges get the features of the first node
    and edge of the training data: the same everywhere, they tell nothing apart.

    Args:
        pairs: of graphs; None takes ``pairs`` of the trainer's data module.
        relabelings: of each graph, at least 2.
        tests: whose ceilings are shown.
        readout: for networks with an output for each node.
        call: a function (module, batch) to the output, where ``forward`` is not what is to be called.
        transform: of PyG, run on each relabelled graph, such as positional encodings.
        level: ``graph``, or ``vertex`` or ``edge`` for pairs with ``at``.
        dtype: of the copy that is measured.

    Attributes:
        report: the last one; None before the first.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "separation"
    reads = None

    def __init__(
        self,
        pairs: Sequence[Any] | None = None,
        relabelings: int = 4,
        tests: Sequence[str] = ("cr", "2-fwl"),
        readout: Readout | None = None,
        *,
        call: Callable[[nn.Module, Any], Any] | None = None,
        transform: Transform | None = None,
        level: Level = "graph",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        if relabelings < 2:
            raise ValueError(f"relabelings must be at least 2; got {relabelings}.")
        self.pairs = pairs
        self.relabelings = relabelings
        self.tests = tuple(tests)
        self.adapter = GraphCall(call, readout, level)
        self.transform = transform
        self.dtype = dtype
        self.report: SeparationReport | None = None

    def check(self, subject: Subject) -> Prepared:
        """Find the pairs, try the call on one, and work out what the tests can do with them."""
        pairs = self.pairs
        if pairs is None:
            pairs = getattr(getattr(subject.trainer, "datamodule", None), "pairs", None)
        if not pairs:
            raise NotApplicable(
                "SeparationPower has no pairs of graphs: pass `pairs`, or use a data module that has them (GraphPairs)."
            )
        try:
            with subject.moment().network() as network:
                seen, pairs = self._readable(network, pairs, subject)
            ceilings = pair_ceilings(pairs, self.tests, transform=self.transform, level=self.adapter.level, seen=seen)
        except (ValueError, MemoryError) as error:
            raise NotApplicable(f"SeparationPower: {error}") from error
        return Prepared(pairs, ceilings)

    def _readable(
        self, network: nn.Module, pairs: Sequence[Any], subject: Subject
    ) -> tuple[frozenset[str] | None, Sequence[Any]]:
        """What the network reads of the pairs, and these, with features of the training data where it needs them."""
        try:
            return try_call(network, pairs[0], self.adapter, transform=self.transform, dtype=self.dtype), pairs
        except ValueError as error:
            reason = error
        sample = _sample(subject)
        if sample is None:
            raise reason
        try:
            alike = [
                PlacedPair(
                    dressed(pair[0], sample), dressed(pair[1], sample), getattr(pair, "at", None),
                    str(getattr(pair, "part", "all")),
                )
                for pair in pairs
            ]  # fmt: skip
            return try_call(network, alike[0], self.adapter, transform=self.transform, dtype=self.dtype), alike
        except ValueError as error:
            raise ValueError(f"{reason} With features of the training data: {error}") from error

    def look(self, moment: Moment, prepared: Prepared, history: Sequence[Mapping[str, Any]]) -> Numbers:
        """Counts of pairs, in all and for each part; lists are by part, in the order of the keys ``part/<part>``."""
        with moment.network() as network:
            report = separation_power(
                network,
                prepared.pairs,
                relabelings=self.relabelings,
                readout=self.adapter.readout,
                call=self.adapter.call,
                transform=self.transform,
                level=self.adapter.level,
                dtype=self.dtype,
                ceilings=prepared.ceilings,
            )
        self.report = report
        parts = list(report.per_part)
        status = list(zip(report.status, report.parts, strict=True))
        return {
            **report.as_metrics(),
            "part_total": [float(report.parts.count(part)) for part in parts],
            "part_unreliable": [float(status.count(("unreliable", part))) for part in parts],
            **{
                f"part_ceiling/{test}": [float(counts.get(part, 0)) for part in parts]
                for test, counts in report.ceiling_per_part.items()
            },
        }

    def unknown(self, prepared: Prepared) -> Numbers:
        """NaN for the counts."""
        keys = ("separated", "total", "unreliable", "grey", "control", *(f"ceiling/{test}" for test in self.tests))
        return dict.fromkeys(keys, float("nan"))

    def figure(self, history: Sequence[Mapping[str, Any]]) -> "Figure":
        """Bars for each part of the last entry: pairs separated and unreliable, and the tests' ceilings as lines."""
        figure, (axis,) = new_figure(1, 1)
        last: Mapping[str, Any] = next((entry for entry in reversed(history) if "part_total" in entry), {})
        parts = [key.removeprefix("part/") for key in last if key.startswith("part/")]
        places = list(range(len(parts)))
        done = [last[f"part/{part}"] for part in parts]
        axis.bar(places, last.get("part_total", []), color="white", edgecolor="0.6", label="pairs")
        axis.bar(places, done, color="0.55", label="separated")
        axis.bar(
            places, last.get("part_unreliable", []), bottom=done, color="white", edgecolor="black", hatch="//",
            label="unreliable",
        )  # fmt: skip
        styles = (("black", "-"), ("tab:red", "--"), ("tab:blue", ":"), ("tab:green", "-."))
        ceilings = {key.removeprefix("part_ceiling/"): last[key] for key in last if key.startswith("part_ceiling/")}
        for (colour, style), (test, counts) in zip(styles, ceilings.items(), strict=False):
            for place, count in zip(places, counts, strict=True):
                label = f"{test} can" if place == 0 else None
                axis.plot([place - 0.42, place + 0.42], [count] * 2, color=colour, linestyle=style, label=label)
        axis.set_xticks(places, parts, rotation=20 if len(parts) > 3 else 0)
        axis.set(ylabel="pairs of graphs", xlabel="part")
        axis.legend(fontsize=8)
        return figure


def _sample(subject: Subject) -> Any:
    """A graph of the training data, which the network reads, with edges if it can be; None where there is none."""
    if subject.trainer is None:
        return None
    source = Subject(subject.network, trainer=subject.trainer, reads="train")
    try:
        with source.quiet():
            batch = first_batch(source.loader)
    except NotApplicable:
        return None
    listed = batch.to_data_list() if hasattr(batch, "to_data_list") else [batch]
    graphs = [graph for graph in listed if getattr(graph, "edge_index", None) is not None]
    return next((graph for graph in graphs if graph.num_edges), graphs[0] if graphs else None)

"""Which pairs of graphs a network tells apart, at one moment."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lit_papers.expressiveness.separation import Readout, SeparationReport, pair_ceilings, separation_power
from lit_papers.lens import Lens, Moment, NotApplicable, Numbers, Subject
from lit_papers.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Ceilings = dict[str, list[bool]]


class SeparationLens(Lens):
    """Pairs of graphs that a network separates, beside what Weisfeiler-Leman tests could (Geerts & Reutter, ICLR 2022).

    Args:
        pairs: of graphs; None takes ``pairs`` of the trainer's data module.
        relabelings: of each graph, at least 2.
        tests: whose ceilings are shown.
        readout: for networks with an output for each node.

    Attributes:
        report: the last one; None before the first.

    Raises:
        ValueError: ``relabelings`` is out of range.
    """

    name = "separation"
    reads = None

    def __init__(
        self,
        pairs: Sequence[Any] | None = None,
        relabelings: int = 4,
        tests: Sequence[str] = ("cr", "2-fwl"),
        readout: Readout | None = None,
    ) -> None:
        if relabelings < 2:
            raise ValueError(f"relabelings must be at least 2; got {relabelings}.")
        self.pairs = pairs
        self.relabelings = relabelings
        self.tests = tuple(tests)
        self.readout: Readout | None = readout
        self.report: SeparationReport | None = None

    def check(self, subject: Subject) -> tuple[Sequence[Any], Ceilings]:
        """Find the pairs, and what the tests can do with them."""
        pairs = self.pairs
        if pairs is None:
            pairs = getattr(getattr(subject.trainer, "datamodule", None), "pairs", None)
        if not pairs:
            raise NotApplicable(
                "SeparationPower has no pairs of graphs: pass `pairs`, or use a data module that has them (GraphPairs)."
            )
        return pairs, pair_ceilings(pairs, self.tests)

    def look(
        self, moment: Moment, prepared: tuple[Sequence[Any], Ceilings], history: Sequence[Mapping[str, Any]]
    ) -> Numbers:
        """Counts of pairs, in all and for each part; lists are by part, in the order of the keys ``part/<part>``."""
        pairs, ceilings = prepared
        with moment.network() as network:
            report = separation_power(
                network, pairs, relabelings=self.relabelings, readout=self.readout, ceilings=ceilings
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

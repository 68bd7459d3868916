"""What a diagnosis found: as a table, a page, a JSON file, and in a notebook."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger
from rich.markup import escape
from rich.table import Table

from lit_papers.diagnose.page import page
from lit_papers.files import write_whole

SCHEMA = 1
Status = Literal["measured", "does not apply", "failed", "left out"]


@dataclass(frozen=True)
class Shown:
    """A number as people read it.

    Attributes:
        label: what it is.
        key: as in the history.
        data: which data set it is of; "" where there is one.
        value: of the last moment.
        error: its standard error; None where there is none.
        meaning: what range means what.
    """

    label: str
    key: str
    data: str
    value: float
    error: float | None
    meaning: str

    @property
    def text(self) -> str:
        """Value and error, rounded alike.

        >>> Shown("share", "share", "", 0.12345, 0.021, "").text
        '0.123 ± 0.021'
        """
        if not math.isfinite(self.value):
            return "not known"
        if not self.error or not math.isfinite(self.error):
            return f"{self.value:.4g}"
        digits = max(0, 1 - math.floor(math.log10(self.error)))
        if digits > 5:
            return f"{self.value:.4g} ± {self.error:.1e}"
        return f"{self.value:.{digits}f} ± {self.error:.{digits}f}"


@dataclass
class Finding:
    """What one lens found, or why it found nothing.

    Attributes:
        name: of the lens.
        title: of its section.
        status: how it went.
        what: a paragraph, what is measured.
        error: how the numbers are uncertain.
        source: paper and section.
        reason: why nothing was found, and the cure; None where something was.
        histories: for each data set a list of entries, with ``checkpoint``, ``step``, ``epoch`` and the numbers of the
            lens; ``reason`` in place of numbers that do not exist at that moment.
        shown: numbers of the last moment.
        estimated_seconds: before it ran.
        seconds: that it took.
        reduced: what is less than in full; None for in full.
        notes: warnings while it ran.
        figures: PNG images by caption.
    """

    name: str
    title: str
    status: Status
    what: str = ""
    error: str = ""
    source: str = ""
    reason: str | None = None
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    shown: list[Shown] = field(default_factory=list)
    estimated_seconds: float = math.nan
    seconds: float = 0.0
    reduced: str | None = None
    notes: list[str] = field(default_factory=list)
    figures: dict[str, bytes] = field(default_factory=dict)

    def reduce(self, said: str) -> None:
        """Say what is less than in full, beside what was said before."""
        before = [] if self.reduced is None else self.reduced.split("; ")
        self.reduced = "; ".join(dict.fromkeys([*before, said]))


@dataclass
class Report:
    """All that was found about a network.

    Attributes:
        title: of the page.
        network: facts about it, by what they are.
        findings: one a lens.
        provenance: versions, data, seed, command and cost, by what they are.
        warnings: what makes all numbers doubtful, such as weights that are not finite.
    """

    title: str
    network: dict[str, Any]
    findings: list[Finding]
    provenance: dict[str, Any]
    warnings: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Finding:
        """The finding of a lens.

        Raises:
            KeyError: there is no such lens in this report.
        """
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(f"{name!r} is not among {', '.join(finding.name for finding in self.findings)}")

    def numbers(self) -> dict[str, float]:
        """Single numbers of the last moment, as ``<lens>/<key>``; of several data sets as ``<lens>/<data>/<key>``."""
        found: dict[str, float] = {}
        for finding in self.findings:
            for data, history in finding.histories.items():
                prefix = f"{finding.name}/{data}" if len(finding.histories) > 1 else finding.name
                last = history[-1] if history else {}
                found |= {
                    f"{prefix}/{key}": value
                    for key, value in last.items()
                    if isinstance(value, float) and key not in ("step", "epoch")
                }
        return found

    def table(self) -> str:
        """A Markdown table: lens, number, value with its error, or why there is none."""
        rows = ["| lens | number | value |", "|---|---|---|"]
        for finding in self.findings:
            if finding.status != "measured":
                rows.append(f"| {finding.name} | {finding.status} | {_one_line(finding.reason)} |")
            rows += [
                f"| {finding.name} | {shown.label}{f' ({shown.data})' if shown.data else ''} | {shown.text} |"
                for shown in finding.shown
            ]
        return "\n".join(rows)

    def rich_table(self) -> Table:
        """The same for a terminal."""
        table = Table("lens", "number", "value", title=self.title)
        for finding in self.findings:
            for shown in finding.shown:
                of = f" ({shown.data})" if shown.data else ""
                table.add_row(finding.name, escape(shown.label + of), shown.text)
            if finding.status != "measured":
                table.add_row(finding.name, finding.status, escape(_one_line(finding.reason)))
            table.add_section()
        return table

    def as_dict(self) -> dict[str, Any]:
        """What ``report.json`` holds (schema 1, described in ``lit_papers/diagnose/README.md``); NaN is None."""
        lenses = []
        for finding in self.findings:
            lenses.append(
                {
                    "name": finding.name,
                    "status": finding.status,
                    "reason": finding.reason,
                    "source": finding.source,
                    "histories": finding.histories,
                    "shown": [{**asdict(shown), "text": shown.text} for shown in finding.shown],
                    "reduced": finding.reduced,
                    "estimated_seconds": finding.estimated_seconds,
                    "seconds": round(finding.seconds, 3),
                    "notes": finding.notes,
                }
            )
        whole = {
            "schema": SCHEMA,
            "title": self.title,
            "network": self.network,
            "warnings": self.warnings,
            "lenses": lenses,
            "provenance": self.provenance,
        }
        plain: dict[str, Any] = _plain(whole)
        return plain

    def html(self) -> str:
        """The page, whole and self-contained."""
        return page(self)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``report.html`` and ``report.json`` into a folder, which is made if need be.

        Returns:
            The path of the page.

        Raises:
            OSError: it cannot be written.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        write_whole(place / "report.json", json.dumps(self.as_dict(), indent=1, allow_nan=False))
        write_whole(place / "report.html", self.html())
        return place / "report.html"

    def log(self, loggers: Logger | Iterable[Logger], step: int = 0) -> None:
        """Give the numbers of the last moment to loggers, as ``diagnose/<lens>/<key>``."""
        numbers = {f"diagnose/{key}": value for key, value in self.numbers().items() if math.isfinite(value)}
        for logger in [loggers] if isinstance(loggers, Logger) else loggers:
            logger.log_metrics(numbers, step=step)

    def _repr_html_(self) -> str:
        """In a notebook: the page in a frame of its own, so that its style stays in it."""
        text = self.html().replace("&", "&amp;").replace('"', "&quot;")
        return f'<iframe srcdoc="{text}" style="width:100%;height:80vh;border:1px solid #999"></iframe>'

    def __str__(self) -> str:
        return self.table()


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "/")


def _plain(value: Any) -> Any:
    """In types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)

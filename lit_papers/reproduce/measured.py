"""What was measured and is no claim, such as times: ``results/measured/<table>.json`` of a paper. Free of torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lit_papers.reproduce.results import ROOMS, made_now, rounded, write_lines
from lit_papers.reproduce.verdicts import number

Cell = str | float | int


@dataclass(frozen=True)
class Measured:
    """One table, measured in one run.

    Attributes:
        rows: of each name, its cells by column: words, or numbers in the unit that the column names.
        command: that made it.
        versions: of lit-papers and what computes.
        machine: its class, as in ``2 cores, CPU``.
        date: of the run, as in 2026-01-31.
    """

    rows: Mapping[str, Mapping[str, Cell]]
    command: str
    versions: Mapping[str, str]
    machine: str
    date: str

    @classmethod
    def of(cls, rows: Mapping[str, Mapping[str, Cell]], command: str, versions: Mapping[str, str]) -> "Measured":
        """Rows of now, on this machine."""
        return cls(rows, **made_now(command, versions))

    def write(self, path: Path) -> None:
        """Write the file, one line for each row."""
        head = {key: getattr(self, key) for key in ("command", "date", "machine", "versions")}
        lines = [f"{json.dumps(name)}: {json.dumps(rounded(dict(row)))}" for name, row in self.rows.items()]
        write_lines(path, head, "rows", lines, "{}")

    @classmethod
    def read(cls, path: Path) -> "Measured":
        """Read the file.

        Raises:
            ValueError: it is damaged.
            OSError: it is not there.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except TypeError as error:
            raise ValueError(f"{path} holds no measured table: {error}") from error

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows, in the order of writing; three digits of a number, and nothing where a row has no such cell.

        >>> Measured({"a": {"time [s]": 0.12345}, "b": {"peer": "3x"}}, "", {}, "", "").table()
        (['', 'time [s]', 'peer'], [['a', '.123', ''], ['b', '', '3x']])
        """
        columns = list(dict.fromkeys(column for row in self.rows.values() for column in row))
        rows = [[name, *(_shown(row.get(column, "")) for column in columns)] for name, row in self.rows.items()]
        return ["", *columns], rows


def measured_path(name: str) -> Path:
    """Where a table ``paper/table`` is kept with the code."""
    paper, _, table = name.partition("/")
    return ROOMS / paper / "results" / "measured" / f"{table}.json"


def _shown(cell: Cell) -> str:
    return number(cell) if isinstance(cell, float) else str(cell)

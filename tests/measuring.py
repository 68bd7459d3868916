"""Benchmarks and slow tests print what they measure; ``LIT_PAPERS_KEEP=1`` keeps it with the code, for the READMEs."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Protocol

import pytest

from lit_papers.reproduce.measured import Cell, Measured, measured_path
from lit_papers.reproduce.plan import versions


class Keep(Protocol):
    def __call__(self, table: str, row: str, cells: dict[str, Cell]) -> None: ...


@pytest.fixture(scope="session")
def keep() -> Iterator[Keep]:
    """Notes cells of a table ``paper/table``; tables are written when all tests are over, each as a whole."""
    tables: dict[str, dict[str, dict[str, Cell]]] = defaultdict(lambda: defaultdict(dict))
    files: dict[str, str] = {}

    def note(table: str, row: str, cells: dict[str, Cell]) -> None:
        tables[table][row] |= cells
        files[table] = os.environ["PYTEST_CURRENT_TEST"].partition("::")[0]

    yield note
    if os.environ.get("LIT_PAPERS_KEEP") == "1":
        for name, rows in tables.items():
            marker = "benchmark" if "benchmarks" in files[name] else "slow"
            command = f"LIT_PAPERS_KEEP=1 OMP_NUM_THREADS=1 pytest {files[name]} -m {marker}"
            Measured.of(rows, command, versions()).write(measured_path(name))

"""The tour runs from its first cell to its last, and what is kept of its output is small."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

import lit_papers

TOUR = Path(lit_papers.__file__).parent / "tour.ipynb"


def test_outputs_are_small_and_there() -> None:
    assert TOUR.stat().st_size < 200_000
    cells = [cell for cell in nbformat.read(TOUR, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in cells[1:]), "run it before you commit it"


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    book = nbformat.read(TOUR, as_version=4)
    nbclient.NotebookClient(book, timeout=280, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", []))
    for word in ("NC1: ", "reshuffle", "is bounded by cr", "gradient", "no two-layer ReLU network", "forgetting"):
        assert word in said

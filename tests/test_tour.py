"""The tour runs from its first cell to its last, and what is kept of its output is small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lit_papers

TOUR = Path(lit_papers.__file__).parent / "tour.ipynb"


def code_cells() -> list[dict[str, object]]:
    return [cell for cell in json.loads(TOUR.read_text())["cells"] if cell["cell_type"] == "code"]


def test_outputs_are_small_and_there() -> None:
    assert TOUR.stat().st_size < 300_000
    assert all(cell["outputs"] for cell in code_cells()[1:]), "run it before you commit it"


@pytest.mark.slow
def test_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {"__name__": "tour"}
    for cell in code_cells():
        exec(compile("".join(cell["source"]), "tour.ipynb", "exec"), namespace)  # noqa: S102
    said = capsys.readouterr().out
    for word in ("NC1: ", "reshuffle", "is bounded by cr", "gradient", "no two-layer ReLU network", "forgetting"):
        assert word in said

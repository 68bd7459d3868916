"""The notebook that goes through all seven papers: it was run in order, is small, and runs."""

import json
import re
from itertools import groupby
from pathlib import Path

import pytest

import lit_papers
from lit_papers.catalog import config_names

TOUR = Path(lit_papers.__file__).parent / "tour.ipynb"


def test_it_was_run_in_order_and_is_small() -> None:
    cells = [cell for cell in json.loads(TOUR.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    assert TOUR.stat().st_size < 150_000
    source = "\n".join("".join(cell["source"]) for cell in cells)
    papers = {name.partition("/")[0] for name in config_names()}
    assert papers <= set(re.findall(r"from lit_papers\.(\w+)", source))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs() -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    book = nbformat.read(TOUR, 4)
    nbclient.NotebookClient(book, timeout=900, kernel_name="python3").execute()
    before = json.loads(TOUR.read_text())["cells"]
    for old, new in zip(before, book.cells, strict=True):
        # what is printed arrives in one piece or in several
        kinds = [[output["output_type"] for output in cell.get("outputs", [])] for cell in (old, new)]
        assert [kind for kind, _ in groupby(kinds[0])] == [kind for kind, _ in groupby(kinds[1])]

"""The page needs nothing but itself, holds what strangers call their things, and fits a phone."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lit_papers.diagnose.report import SCHEMA, Finding, Report, Shown
from lit_papers.plotting import new_figure


def png(columns: int) -> bytes:
    import io

    figure, axes = new_figure(1, columns)
    for axis in axes:
        axis.plot([0, 1], [1, 0])
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


@pytest.fixture(scope="module")
def report() -> Report:
    long_name = "backbone.stages.3.blocks.17.attention.projection_of_the_values" * 2
    measured = Finding(
        "collapse", "Neural collapse", "measured", "What <is> measured & how.", "Exact.", "Han et al., section 3",
        histories={
            "train": [{"checkpoint": "a.ckpt", "step": 1, "epoch": 1, "nc1": 0.5, f"{long_name}/nc1": math.nan}],
            "validation": [{"checkpoint": "a.ckpt", "step": 1, "epoch": 1, "reason": "no sample"}],
        },
        shown=[
            Shown("scatter within classes", "nc1", "train", 0.5, 0.02, "0: collapsed"),
            Shown(long_name, "nc2", "", 123456.789, None, "<b>bold</b>"),
            Shown("not there", "nc3", "", math.nan, None, ""),
        ],
        seconds=1.2, estimated_seconds=1.0, reduced="12 of 500 samples", notes=["a note"],
        figures={"Narrow": png(1), "Wide": png(3)},
    )  # fmt: skip
    missing = Finding("head", "Head", "does not apply", reason="there are no data: pass `train`")
    return Report("Diagnosis of <X>", {"network": long_name}, [measured, missing], {"seed": 0}, ["Not finite."])


def test_it_is_self_contained_and_escapes_what_strangers_wrote(report: Report) -> None:
    html = report.html()
    assert not re.search(r"https?://|<script|<link|@import|url\(", html)
    assert html.count('src="data:image/png;base64,') == 2
    assert "<b>bold</b>" not in html
    assert "What &lt;is&gt; measured &amp; how." in html
    for text in ("12 of 500 samples", "a note", "no sample", "pass `train`", "Not finite.", "0.500 ± 0.020"):
        assert text in html
    assert html.count('class="wide"') == 1
    assert report._repr_html_().startswith('<iframe srcdoc="&lt;') is False
    assert '"' not in report._repr_html_().split('srcdoc="')[1].split('" style')[0]


def test_files_and_their_schema(report: Report, tmp_path: Path) -> None:
    page = report.save(tmp_path / "new" / "folder")
    assert page.read_text() == report.html()
    found = json.loads(page.with_suffix(".json").read_text())
    assert found["schema"] == SCHEMA == 1
    assert set(found) == {"schema", "title", "network", "warnings", "lenses", "provenance"}
    assert set(found["lenses"][0]) == {
        "name", "status", "reason", "source", "histories", "shown", "reduced", "estimated_seconds", "seconds", "notes",
    }  # fmt: skip
    assert found["lenses"][0]["shown"][2]["value"] is None
    documented = (Path(__file__).parents[2] / "lit_papers/diagnose/README.md").read_text()
    for key in (*found, *found["lenses"][0], *found["lenses"][0]["shown"][0]):
        assert f"`{key}`" in documented or f"`lenses[].{key}" in documented or f"`{key}[]`" in documented, key


def test_table_and_numbers(report: Report) -> None:
    assert "| collapse | scatter within classes (train) | 0.500 ± 0.020 |" in report.table()
    assert "| head | does not apply | there are no data: pass `train` |" in report.table()
    assert report.numbers()["collapse/train/nc1"] == 0.5
    with pytest.raises(KeyError, match="'nose' is not among collapse, head"):
        report["nose"]


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.12345, 0.021, "0.123 ± 0.021"), (12.3, 4.56, "12.3 ± 4.6"), (1e-6, 3e-8, "1e-06 ± 3.0e-08"),
        (5.0, 0.0, "5"), (5.0, math.nan, "5"), (math.inf, 1.0, "not known"), (1234.5, 100.0, "1234 ± 100"),
    ],
)  # fmt: skip
def test_values_are_rounded_like_their_errors(value: float, error: float, text: str) -> None:
    assert Shown("", "", "", value, error, "").text == text


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1100])
def test_nothing_overflows_in_a_browser(report: Report, width: int, tmp_path: Path) -> None:
    """The page in a frame of that width, as a headless window is never narrower than 500 pixels."""
    page = report.save(tmp_path)
    measure = (
        "<script>addEventListener('load', () => {"
        "const seen = document.querySelector('iframe').contentDocument.documentElement;"
        "document.title = `${seen.scrollWidth} of ${seen.clientWidth}, ${seen.scrollHeight} high`;"
        "document.body.textContent = document.title; })</script>"
    )
    frame = tmp_path / "frame.html"
    frame.write_text(f'<iframe src="{page.name}" style="width:{width}px;height:900px;border:0"></iframe>{measure}')
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    shot = tmp_path / "shot.png"
    subprocess.run(
        [CHROMIUM, *options, f"--screenshot={shot}", f"--window-size={max(width, 500)},2000", page.as_uri()],
        check=True, capture_output=True, timeout=240,
    )  # fmt: skip
    assert shot.stat().st_size > 10_000
    dom = subprocess.run(
        [CHROMIUM, *options, "--virtual-time-budget=20000", "--dump-dom", frame.as_uri()],
        check=True, capture_output=True, timeout=240, text=True,
    ).stdout  # fmt: skip
    wide, room, high = map(int, re.search(r"(\d+) of (\d+), (\d+) high", dom).groups())
    assert width - 20 <= room <= width  # less what a scroll bar takes
    assert wide <= room
    assert high > 500

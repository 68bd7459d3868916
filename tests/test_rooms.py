"""What every paper's room must have: README, row in the table, configuration, sweep, and a lens or a record."""

import re
from pathlib import Path

import pytest
import yaml

import lit_papers.callbacks
from tests.test_imports import PAPERS

ROOT = Path(__file__).parent.parent
TABLE = (ROOT / "README.md").read_text()
CONFIGS = sorted((ROOT / "lit_papers/configs").glob("*/*.yaml"))


def test_rooms_are_the_packages_with_a_module() -> None:
    assert {path.parent.name for path in (ROOT / "lit_papers").glob("*/module.py")} == PAPERS


@pytest.mark.parametrize("paper", sorted(PAPERS))
def test_a_room_is_complete(paper: str) -> None:
    room = ROOT / "lit_papers" / paper
    assert len((room / "README.md").read_text().splitlines()) > 10
    assert f"](lit_papers/{paper}/README.md)" in TABLE
    assert list((ROOT / "lit_papers/configs" / paper).glob("*.yaml"))
    assert "metric" in yaml.safe_load((ROOT / "sweeps" / f"{paper}.yaml").read_text())
    assert (room / "__init__.py").read_text().startswith('"""')
    measured = [name for name in lit_papers.callbacks.__all__ if f"lit_papers.{paper}" in source_of(name)]
    assert measured, "no callback measures it"


def source_of(callback: str) -> str:
    module = getattr(lit_papers.callbacks, callback).__module__.rpartition(".")[2]
    return (ROOT / "callbacks" / f"{module}.py").read_text()


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.name != "claims.yaml"], ids=lambda path: path.stem)
def test_what_a_configuration_shows_is_no_result(path: Path) -> None:
    """``# shows:`` says what is to be seen; a result (a share, a decimal) would stand there when it no longer holds."""
    shows = re.search(r"^# shows: (.*)$", path.read_text(), flags=re.MULTILINE)
    if shows is not None:  # an overlay has none
        assert not re.search(r"\d\s*%|(?<![\d\[,])\d\.\d+(?![\d,\]])", shows.group(1)), shows.group(1)


@pytest.mark.parametrize("path", sorted((ROOT / "callbacks").glob("*.py")), ids=lambda path: path.stem)
def test_callbacks_are_short_and_know_no_epochs(path: Path) -> None:
    """When to look is in ``watching.py``, what is looked at in the papers' rooms."""
    source = path.read_text()
    if path.stem not in ("watching", "record"):
        assert len(source.splitlines()) <= 150
        assert "max_epochs" not in source

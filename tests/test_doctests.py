"""Every example in a public docstring runs, from the import path a user types."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "lit_papers": "lit_papers",
    "callbacks": "lit_papers.callbacks",
    "datamodules": "lit_papers.datamodules",
}


def modules() -> list[str]:
    names = []
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.stem not in ("__init__", "__main__"):
                names.append(".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts]))
    return names


@pytest.mark.parametrize("name", modules())
def test_examples_print_what_they_say(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0

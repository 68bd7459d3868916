"""The shipped configurations."""

import csv
from pathlib import Path

import pytest

from lit_papers.cli import main


def run(*arguments: str) -> int:
    return main(["fit", "--config", *arguments, "--trainer.enable_progress_bar=false"])


def metrics(folder: Path, key: str) -> list[float]:
    with next(folder.rglob("metrics.csv")).open() as file:
        return [float(row[key]) for row in csv.DictReader(file) if row.get(key)]


def test_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("convex_relu/toy", "--trainer.max_epochs=101") == 0
    gaps = metrics(tmp_path, "convex_relu/gap")
    assert len(gaps) == 3
    assert gaps[0] > 0.2 > gaps[-1] > 0  # after 50 and after 101 epochs
    assert next(tmp_path.rglob("convex_relu.png")).stat().st_size > 10_000


def test_breast_cancer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("convex_relu/breast_cancer", "--trainer.max_epochs=200") == 0
    bounds = metrics(tmp_path, "convex_relu/lower_bound")
    assert bounds == sorted(bounds)
    assert 0 < bounds[-1] < metrics(tmp_path, "convex_relu/objective")[-1]
    assert metrics(tmp_path, "val/accuracy")[-1] > 0.9

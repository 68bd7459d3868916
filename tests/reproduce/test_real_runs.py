"""Real runs, with the interpreter: a training of a shipped configuration and a function of a paper's room."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml

from lit_papers import catalog
from lit_papers.cli import main
from lit_papers.reproduce.claims import Reading
from lit_papers.reproduce.plan import read_metrics
from lit_papers.reproduce.verdicts import RuleError

ROOT = Path(__file__).parents[2]


def test_a_training_and_a_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(catalog.CONFIG_FOLDER / "neural_collapse", tmp_path / "configs/neural_collapse")
    monkeypatch.setattr(catalog, "CONFIG_FOLDER", tmp_path / "configs")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    training = {
        "config": "neural_collapse/digits",
        "set": {"trainer.max_epochs": 1, "trainer.callbacks": None, "model.init_args.lr": 0.1},
        "seeds": 2,
        "read": {"loss": "train/loss", "accuracy": {"metric": "val/accuracy", "at": "max"}},
    }
    function = {"call": "lit_papers.neural_collapse.claims.decomposition", "set": {"trials": 2, "samples": 50}}
    head = {"statement": "s", "source": "section 1", "minutes": 1}
    claims = {
        "learns": {**head, "runs": training, "test": {"rule": "every", "value": "accuracy", "above": 0.5}},
        "adds_up": {**head, "runs": function, "test": {"rule": "every", "value": "error", "below": 1e-12}},
    }
    path = tmp_path / "configs/neural_collapse/claims.yaml"
    path.write_text(yaml.safe_dump(claims))
    assert main(["reproduce", "--jobs", "2"]) == 0
    out = capfd.readouterr().out
    assert "neural_collapse/learns: holds" in out
    assert "neural_collapse/adds_up: holds" in out
    runs = tmp_path / "runs/reproduce/neural_collapse/runs"
    trained = sorted(runs.glob("digits-seed*"))
    assert len(trained) == 2
    configurations = [yaml.safe_load((folder / "training/config.yaml").read_text()) for folder in trained]
    assert [configuration["seed_everything"] for configuration in configurations] == [0, 1]
    assert [configuration["model"]["init_args"]["lr"] for configuration in configurations] == [0.1, 0.1]
    with (trained[0] / "training/metrics.csv").open() as file:
        logged = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    kept = json.loads((tmp_path / "runs/reproduce/neural_collapse/learns/results.json").read_text())
    assert kept["runs"][0]["values"]["loss"] == pytest.approx(logged[-1], rel=1e-5)
    assert 0 < kept["runs"][0]["seconds"] < 60
    # another reading of the same training needs no run; a changed default of the configuration needs new ones
    before = {folder: (folder / "answer.json").stat().st_mtime_ns for folder in trained}
    claims["learns"]["test"] = {"rule": "every", "value": "loss", "below": 0}
    path.write_text(yaml.safe_dump(claims))
    assert main(["reproduce", "neural_collapse/learns"]) == 0
    assert "neural_collapse/learns: does not hold" in capfd.readouterr().out
    assert {folder: (folder / "answer.json").stat().st_mtime_ns for folder in runs.glob("digits-*")} == before


def test_metrics_are_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,a,b\n0,3,\n0,,7\n1,1,\n2,2,\n")
    readings = {at: Reading("a", at) for at in ("last", "first", "min", "max", "all")}
    assert read_metrics(path, readings) == {"last": 2, "first": 3, "min": 1, "max": 3, "all": [3, 1, 2]}
    with pytest.raises(RuleError, match=r"read.x: 'c' was never logged; logged were a, b, epoch"):
        read_metrics(path, {"x": Reading("c")})

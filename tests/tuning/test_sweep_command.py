"""The command with real trials: a shipped sweep, cut short, from the first trial to the best configuration's run."""

import sys
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from lit_papers.cli import main
from lit_papers.tuning.sweep_file import find_sweep
from tests.warm import run_warm, warm_python

ROOT = Path(__file__).parents[2]


def shorten(folder: Path, name: str, **changes: object) -> str:
    """A shipped sweep file with runs of a few epochs."""
    content = yaml.safe_load(find_sweep(name).read_text())
    content["parameters"]["trainer.max_epochs"] = {"value": 2}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**content, **changes}))
    return str(folder / f"{name}.yaml")


def test_sweep_and_run_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "executable", str(warm_python()))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = shorten(tmp_path, "neural_collapse", early_terminate={"type": "hyperband", "min_iter": 1})
    assert main(["sweep", path, "--trials", "2", "--jobs", "2"]) == 0
    folder = tmp_path / "runs/sweeps/neural_collapse"
    study = optuna.load_study(study_name="neural_collapse", storage=f"sqlite:///{folder}/study.db")
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert complete
    for trial in study.trials:
        rows = (folder / f"trial_{trial.number:03d}/metrics.csv").read_text().splitlines()
        column = rows[0].split(",").index("neural_collapse/nc1")
        logged = [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]]
        assert trial.intermediate_values == pytest.approx({1: logged[0]}, rel=1e-5)
        assert trial.value == pytest.approx(logged[-1], rel=1e-5)
        config = yaml.safe_load((folder / f"trial_{trial.number:03d}/config.yaml").read_text())
        assert config["model"]["init_args"]["lr"] == trial.params["model.init_args.lr"]
        assert "ReportToStudy" not in str(config)
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert best["model"]["init_args"]["lr"] == study.best_params["model.init_args.lr"]
    assert best["trainer"]["max_epochs"] == 2
    done = run_warm(["-m", "lit_papers", "fit", "--config", str(folder / "best.yaml")], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/best/version_0/metrics.csv").exists()


def test_a_misspelt_key_is_found_before_any_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "executable", str(warm_python()))
    path = shorten(tmp_path, "neural_collapse", parameters={"model.init_args.lrr": {"min": 0.1, "max": 1.0}})
    assert main(["sweep", path, "--trials", "2"]) == 2
    error = capfd.readouterr().err
    assert "has no argument 'lrr'" in error
    assert "did you mean 'lr'" in error
    assert not list((tmp_path / "runs/sweeps/neural_collapse").glob("trial_*"))


@pytest.mark.slow
def test_two_processes_of_one_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local SGD trains in two processes: each trial reports once, and is stopped as one."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "executable", str(warm_python()))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = shorten(tmp_path, "local_sgd", early_terminate={"type": "hyperband", "min_iter": 1})
    assert main(["sweep", path, "--trials", "3"]) == 0
    storage = f"sqlite:///{tmp_path}/runs/sweeps/local_sgd/study.db"
    trials = optuna.load_study(study_name="local_sgd", storage=storage).trials
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
    assert [list(trial.intermediate_values) for trial in trials] == [[1]] * 3

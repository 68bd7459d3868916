"""`wandb sweep` and `wandb agent`, as a user types them, against a server on this machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.sweeps.wandb_server import WandbServer, serve
from tests.warm import warm_python

ROOT = Path(__file__).parents[2]
SHORT = {"trainer.enable_progress_bar": False, "trainer.enable_model_summary": False}


def environment(server: WandbServer, folder: Path) -> dict[str, str]:
    """Of a user of this server alone: no login, setting or file of anyone else's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    # the agent starts the `python` of the PATH
    path = f"{warm_python().parent}{os.pathsep}{kept.get('PATH', '')}"
    return {
        **kept,
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
        "WANDB_BASE_URL": server.url,
        "WANDB_API_KEY": "0" * 40,
        "WANDB_DIR": str(folder / "wandb_dir"),
        "WANDB_CONFIG_DIR": str(folder / "wandb_config"),
        "WANDB_CACHE_DIR": str(folder / "wandb_cache"),
        "WANDB_DATA_DIR": str(folder / "wandb_data"),
    }


@contextmanager
def group(words: list[str], server: WandbServer, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A command in a process group of its own, none of which outlives the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", *words], cwd=folder, env=environment(server, folder), start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def output(words: list[str], server: WandbServer, folder: Path, timeout: float) -> str:
    """What a command prints; it must succeed."""
    with group(words, server, folder) as process:
        printed, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, printed[-4000:]
    return printed


def sweep(name: str, fixed: dict[str, Any], server: WandbServer, folder: Path) -> str:
    """Create a shipped sweep, with some parameters added, and run an agent until the server lets it go.

    Returns:
        What the agent and its runs printed.
    """
    (folder / "wandb_dir").mkdir()
    content = yaml.safe_load((ROOT / f"sweeps/{name}.yaml").read_text())
    content["parameters"] |= {key: {"value": value} for key, value in fixed.items()}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content))
    created = output(["wandb", "sweep", "sweep.yaml"], server, folder, timeout=60)
    (agent,) = re.findall(r"wandb agent (\S+)", created)
    assert agent == "tester/lit-papers/sweep1"
    return output(["wandb", "agent", agent], server, folder, timeout=200)


def test_two_runs_of_a_sweep(tmp_path: Path) -> None:
    """Values arrive with their types, metrics at the server, and the sweep decides where runs belong."""
    fixed = {
        **SHORT,
        "trainer.max_epochs": 2,
        "trainer.limit_val_batches": None,
        "data.init_args.samples_per_class": 70,
    }
    callbacks = [{"class_path": "lit_papers.callbacks.NeuralCollapse", "init_args": {"epochs": [1, 2]}}]
    fixed["trainer.callbacks"] = callbacks
    first = {"model.init_args.lr": 0.05, "model.init_args.weight_decay": 1e-5, "model.init_args.loss": "mse", **fixed}
    second = {**first, "model.init_args.loss": "ce", "model.init_args.lr": 0.1}
    with serve([first, second]) as server:
        printed = sweep("neural_collapse", fixed, server, tmp_path)
    assert server.unknown == []
    assert server.projects == {"sweep1": "lit-papers"}
    assert server.sweeps["sweep1"]["parameters"]["trainer.limit_val_batches"] == {"value": None}
    assert list(server.runs) == ["run1", "run2"]
    for run, values in zip(server.runs.values(), (first, second), strict=True):
        assert run.exit_code == 0, printed[-4000:]
        assert (run.project, run.sweep, run.starts) == ("lit-papers", "sweep1", 1)
        for key, value in values.items():  # as the sweep gave them
            assert run.config[key] == value
            assert type(run.config[key]) is type(value)
        resolved = run.config["config"]  # as the run used them
        assert resolved["model"]["init_args"]["loss"] == values["model.init_args.loss"]
        assert resolved["model"]["init_args"]["lr"] == values["model.init_args.lr"]
        assert resolved["trainer"]["enable_progress_bar"] is False
        assert resolved["trainer"]["limit_val_batches"] is None
        (callback,) = resolved["trainer"]["callbacks"]
        assert callback["init_args"]["epochs"] == [1, 2]
        assert len(run.column("neural_collapse/nc1")) == 2
        assert run.summary["neural_collapse/nc1"] == run.column("neural_collapse/nc1")[-1]
        assert any(re.fullmatch(r"media/images/neural_collapse_.*\.png", path) for path in run.files)


def test_two_processes_are_one_run(tmp_path: Path) -> None:
    """Each process of a strategy reads the same values, and only the first logs."""
    values = {**SHORT, "trainer.max_epochs": 2, "trainer.strategy.init_args.sync_every": 4, "model.init_args.lr": 0.05}
    with serve([values]) as server:
        printed = sweep("local_sgd", SHORT, server, tmp_path)
    assert server.unknown == []
    assert list(server.runs) == ["run1"], printed[-4000:]
    run = server.runs["run1"]
    assert (run.starts, run.exit_code) == (1, 0)
    assert run.config["config"]["trainer"]["devices"] == 2
    assert len(run.column("val/accuracy")) == 2
    logged = [(row["trainer/global_step"], key) for row in run.history for key in row if "/" in key[:-1]]
    metrics = [entry for entry in logged if entry[1] != "trainer/global_step"]
    assert len(metrics) == len(set(metrics)), "a step was logged twice"
    steps = [row["_step"] for row in run.history]
    assert steps == list(range(len(steps)))


@pytest.mark.slow
def test_the_agent_goes_on_after_a_crash(tmp_path: Path) -> None:
    """A value that a constructor refuses ends the process before its run begins; a later mistake fails the run."""
    good = {**SHORT, "trainer.max_epochs": 1, "model.init_args.lr": 0.05}
    refused = {**good, "model.init_args.lr": -1.0}
    lost = {"class_path": "lit_papers.callbacks.NeuralCollapse", "init_args": {"classifier": "nowhere"}}
    crashed = {**good, "trainer.callbacks": [lost]}
    with serve([refused, crashed, good]) as server:
        printed = sweep("neural_collapse", SHORT, server, tmp_path)
    assert server.unknown == []
    assert "lr must be > 0, got -1.0" in printed
    assert {name: run.exit_code for name, run in server.runs.items()} == {"run2": 2, "run3": 0}
    assert server.runs["run2"].column("neural_collapse/nc1") == []
    assert len(server.runs["run3"].column("neural_collapse/nc1")) == 1

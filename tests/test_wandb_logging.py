"""Logging to W&B: what arrives, and what happens without a network, an account or the package."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from lit_papers import catalog
from lit_papers.extras import install_command
from tests.sweeps.wandb_server import serve
from tests.wandb_file import read_run
from tests.warm import run_warm

ROOT = Path(__file__).parents[1]
LIT_PAPERS = ["-m", "lit_papers"]
DIGITS = ["fit", "--config", "neural_collapse/digits", "--config", "wandb"]
SHORT = ["--trainer.max_epochs=2", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
HIDDEN = [
    "-c", "import sys; sys.modules['wandb'] = None; from lit_papers.cli import main; sys.exit(main(sys.argv[1:]))",
]  # fmt: skip


def python(words: Sequence[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python as somebody without any setting of W&B's, and nobody at the keyboard."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "NETRC"))}
    own = {"HOME": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
    own |= {f"WANDB_{kind}_DIR": str(folder / f"wandb_{kind.lower()}") for kind in ("CONFIG", "CACHE", "DATA")}
    return run_warm(words, folder, {**kept, **own, **variables}, timeout=120)


def test_an_offline_run_holds_everything(tmp_path: Path) -> None:
    with serve() as server:
        done = python([*LIT_PAPERS, *DIGITS, *SHORT], tmp_path, WANDB_MODE="offline", WANDB_BASE_URL=server.url)
    assert done.returncode == 0, done.stderr[-3000:]
    assert server.requests == 0, "offline means that nothing is sent"
    assert not (tmp_path / "lightning_logs").exists()
    assert not (tmp_path / "wandb").exists()

    (path,) = tmp_path.glob("runs/wandb/offline-run-*/run-*.wandb")
    run = read_run(path)
    assert run.exit_code == 0
    (saved,) = tmp_path.glob("runs/lit-papers/*/config.yaml")
    assert run.config["config"] == yaml.safe_load(saved.read_text())
    assert run.config["config"]["model"]["init_args"]["weight_decay"] == 5e-4
    measured = [row for row in run.history if "neural_collapse/nc1" in row]
    assert len(measured) == 2
    assert len({row["trainer/global_step"] for row in measured}) == 2
    (figure,) = [row["neural_collapse"] for row in run.history if "neural_collapse" in row]
    (name,) = figure["filenames"]
    assert (path.parent / "files" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("entry", [LIT_PAPERS, ["-c", "from lit_papers.__main__ import program; program()"]])
def test_a_mistake_is_a_failed_run(entry: list[str], tmp_path: Path) -> None:
    lost = '{"class_path": "lit_papers.callbacks.NeuralCollapse", "init_args": {"classifier": "nowhere"}}'
    done = python([*entry, *DIGITS, *SHORT, f"--trainer.callbacks=[{lost}]"], tmp_path, WANDB_MODE="offline")
    assert done.returncode == 2, done.stderr[-3000:]
    (path,) = tmp_path.glob("runs/wandb/offline-run-*/run-*.wandb")
    assert read_run(path).exit_code == 2


def test_a_table_arrives_as_a_table(tmp_path: Path) -> None:
    words = [*LIT_PAPERS, "fit", "--config", "diffstride/digits", "--config", "wandb", *SHORT[1:]]
    done = python([*words, "--trainer.max_epochs=1"], tmp_path, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = tmp_path.glob("runs/wandb/offline-run-*/run-*.wandb")
    run = read_run(path)
    (table,) = [row["strides"] for row in run.history if "strides" in row]
    assert table["_type"] == "table-file"
    content = json.loads((path.parent / "files" / table["path"]).read_text())
    assert content["columns"] == ["layer", "axis", "first stride", "last stride", "last map size"]
    for layer, axis, first, last, size in content["data"]:
        key = f"diffstride/{layer}/stride_{axis[0]}"
        logged = [row[key] for row in run.history if key in row]
        assert (logged[0], logged[-1]) == (first, last)
        assert size > 0
    layers = {key.split("/")[1] for row in run.history for key in row if "/stride_h" in key}
    assert len(layers) > 1
    assert {layer for layer, *_ in content["data"]} == layers
    assert len(content["data"]) == 2 * len(layers)


@pytest.mark.parametrize("answers", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["refuses", "silent"])
def test_an_unreachable_server_loses_nothing(answers: bool, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if answers:  # the connection is made, and that is all
            silent.listen()
        login = {"WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "1"}
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = python([*LIT_PAPERS, *DIGITS, *SHORT], tmp_path, WANDB_BASE_URL=address, **login)
    assert done.returncode == 0, done.stderr[-3000:]
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning: W&B cannot be reached")]
    assert "The run is kept offline in runs/wandb/offline-run-" in warning
    command = re.search(r"wandb sync (\S+)$", warning)
    assert command is not None
    (path,) = (tmp_path / command.group(1)).glob("run-*.wandb")
    assert len([row for row in read_run(path).history if "neural_collapse/nc1" in row]) == 2
    assert list(tmp_path.glob("runs/lit-papers/*/neural_collapse.png"))

    with serve() as server:  # the network is back: the command of the message sends the run
        sent = python(["-m", "wandb", "sync", command.group(1)], tmp_path, WANDB_BASE_URL=server.url, **login)
    assert sent.returncode == 0, sent.stderr
    assert server.unknown == []
    (run,) = server.runs.values()
    assert len(run.column("neural_collapse/nc1")) == 2
    assert run.exit_code == 0


def test_no_login_is_one_line_before_training(tmp_path: Path) -> None:
    with serve() as server:
        done = python([*LIT_PAPERS, *DIGITS, *SHORT], tmp_path, WANDB_BASE_URL=server.url)
    assert done.returncode == 2
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "`wandb login`" in error
    assert "WANDB_MODE=offline" in error
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/**/*.ckpt"))


def test_a_missing_package_is_named_with_its_cure(tmp_path: Path) -> None:
    done = python([*HIDDEN, *DIGITS, *SHORT], tmp_path)
    assert done.returncode == 2
    assert install_command("wandb") in done.stderr
    assert "Traceback" not in done.stderr


def test_who_does_not_ask_for_it_does_not_need_it(tmp_path: Path) -> None:
    done = python([*HIDDEN, *DIGITS[:3], *SHORT], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(tmp_path.glob("runs/neural_collapse/digits/version_0/metrics.csv"))


def test_the_overlay_is_found_but_is_no_run() -> None:
    assert catalog.find_config("wandb") == catalog.CONFIG_FOLDER / "wandb.yaml"
    assert "wandb" not in catalog.config_names()
    assert catalog.near_names("wandbb") == ["wandb"]

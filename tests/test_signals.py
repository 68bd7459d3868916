"""A run that a signal ends says so by its status, and says what is left of it and how to go on."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from lit_papers.cli import main
from tests.processes import forked, status_of

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
LONG = ["fit", "--config", "neural_collapse/digits", "--trainer.max_epochs=99999", "--trainer.callbacks=null", *QUIET]


def ended_by(number: signal.Signals, words: list[str], folder: Path) -> tuple[int, str]:
    """Start a long fit, and send it the signal once it has a checkpoint: exit status and output."""
    with forked(lambda: main(words), folder / "output") as child:
        end = time.monotonic() + 200
        while not list(folder.glob("runs/**/*.ckpt")):
            assert time.monotonic() < end, (folder / "output").read_text()
            time.sleep(0.1)
        os.kill(child, number)
        status = status_of(child, 60)
    return status, (folder / "output").read_text()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_fit_that_is_ended_says_how_to_go_on(
    number: signal.Signals, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lit_papers"])
    found, said = ended_by(number, LONG, tmp_path)
    assert found == status, said
    assert "Traceback" not in said
    assert f"ended by {'Ctrl-C' if number is signal.SIGINT else 'SIGTERM'} in epoch" in said
    (folder,) = re.findall(r"run folder +(\S+)", said)
    assert (tmp_path / folder / "metrics.csv").is_file()
    (checkpoint,) = re.findall(r"^checkpoint +(\S+)", said, flags=re.MULTILINE)
    before = torch.load(tmp_path / checkpoint, weights_only=True)["epoch"]
    (command,) = re.findall(r"go on with +python -m lit_papers (.*)", said)
    assert main([*shlex.split(command), f"--trainer.max_epochs={before + 2}"]) == 0
    (again,) = tmp_path.glob("runs/neural_collapse/digits/version_1/checkpoints/*.ckpt")
    assert torch.load(again, weights_only=True)["epoch"] == before + 1


def test_without_a_logger_it_has_a_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lit_papers"])
    status, said = ended_by(signal.SIGTERM, [*LONG, "--trainer.logger=false"], tmp_path)
    assert status == 143
    assert "run folder  runs/neural_collapse/digits/version_0" in said
    assert "go on with  python -m lit_papers fit --config runs/neural_collapse/digits/version_0/config.yaml" in said

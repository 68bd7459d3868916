"""The paper's claim on real data, through the command line: a digit classifier collapses onto the central path."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_papers.cli import main

DIGITS = ["fit", "--config", "neural_collapse/digits", "--trainer.enable_progress_bar=false"]


def histories(folder: Path) -> dict[str, list[dict[str, Any]]]:
    (checkpoint,) = folder.glob("runs/neural_collapse/digits/version_0/checkpoints/*.ckpt")
    states = torch.load(checkpoint, weights_only=True)["callbacks"]
    return {key.split("{")[0]: state["history"] for key, state in states.items() if "history" in state}


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_digits_collapse(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lit_papers"])
    assert main([*DIGITS, f"--seed_everything={seed}"]) == 0
    found = histories(tmp_path)
    first, last = found["NeuralCollapse"][0], found["NeuralCollapse"][-1]
    assert (first["epoch"], last["epoch"]) == (1, 210)
    assert first["nc1"] / last["nc1"] >= 200
    assert last["nc1"] < 1e-2
    assert last["nc4_ncc_mismatch"] == last["train_error"] == 0
    assert found["CentralPath"][-1]["ratio"] < 0.1


def test_cross_entropy_has_no_central_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lit_papers"])
    assert main([*DIGITS, "--model.loss=ce", "--model.lr=0.05", "--trainer.max_epochs=20"]) == 0
    found = histories(tmp_path)
    assert found["CentralPath"][-1].keys() == {"fit", "epoch", "step", "snr", "snr_max", "snr_min"}
    assert found["NeuralCollapse"][-1]["nc1"] < found["NeuralCollapse"][0]["nc1"]

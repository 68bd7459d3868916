"""Drift of ranks as a checkpoint shows it, against numbers made by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lit_papers.lens import NotApplicable
from lit_papers.local_sgd.lens import RankDriftLens, checkpoint_drift
from lit_papers.local_sgd.rank_state import VERSION


def checkpoint(path: Path, spread: float, **local_sgd: Any) -> Path:
    """Of two ranks that are ``spread`` to either side of the average in each of two weights; the bias is alike."""
    weight, place = torch.tensor([[3.0, 4.0]]), ("parameter", "weight")
    saved = {
        "version": VERSION,
        "rank_state": "gather",
        "ranks": [{place: 0, ("parameter", "bias"): -1}, {place: 1, ("parameter", "bias"): -1}],
        "pieces": [{place: weight + spread}, {place: weight - spread}],
        **local_sgd,
    }
    torch.save({"state_dict": {"weight": weight, "bias": torch.zeros(1)}, "local_sgd": saved}, path)
    return path


def test_drift_is_the_mean_squared_distance_from_the_average(tmp_path: Path) -> None:
    found = checkpoint_drift(checkpoint(tmp_path / "a.ckpt", 0.5))
    assert found == pytest.approx({"consensus_distance": 0.5, "relative_consensus_distance": 0.5 / 25, "ranks": 2})


def test_the_lens_looks_at_one_checkpoint_after_the_other(tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path / f"{spread}.ckpt", spread) for spread in (1.0, 2.0)]
    lens, history = RankDriftLens(paths), []
    for step in (10, 20):
        history.append({"step": step, "epoch": 1, **lens.look(None, None, history)})  # type: ignore[arg-type]
    assert [entry["consensus_distance"] for entry in history] == pytest.approx([2, 8])
    assert lens.figure(history).axes[0].get_xlabel() == "step"
    assert lens(nn.Linear(2, 1))["ranks"] == 2


def test_refusals_say_why(tmp_path: Path) -> None:
    plain = tmp_path / "plain.ckpt"
    torch.save({"state_dict": {}}, plain)
    with pytest.raises(NotApplicable, match=r"plain\.ckpt shows no drift: it is not of LocalSGDStrategy"):
        RankDriftLens([plain])(nn.Linear(2, 1))
    with pytest.raises(NotApplicable, match="no weights of single ranks"):
        RankDriftLens([checkpoint(tmp_path / "none.ckpt", 1.0, rank_state="none")])(nn.Linear(2, 1))
    with pytest.raises(NotApplicable, match="which is missing"):
        RankDriftLens([checkpoint(tmp_path / "files.ckpt", 1.0, rank_state="files", id="x")])(nn.Linear(2, 1))
    with pytest.raises(NotApplicable, match="no checkpoint is given"):
        RankDriftLens([])(nn.Linear(2, 1))

"""`ConsensusDistance`: its numbers against gradients computed by hand, and the rules of guests under its strategy."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lit_papers.callbacks import ConsensusDistance
from lit_papers.local_sgd import LocalSGDStrategy, RandomReshufflingSampler
from lit_papers.local_sgd.functional import consensus_distance
from tests.local_sgd.small import BATCH, Classifier, fit, local_sgd, network, pairs, same, trainer
from tests.local_sgd.test_strategy_evaluation import Steady

DISTANCE, BYTES = "consensus_distance", "bytes_communicated"


class KeepHistory(Callback):
    """Brings the history out of processes that end with the fit; after ConsensusDistance among the callbacks."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        (measuring,) = (callback for callback in trainer.callbacks if isinstance(callback, ConsensusDistance))
        pl_module.notes = {**getattr(pl_module, "notes", {}), "history": measuring.history}


def measured(module: LightningModule, **options: Any) -> list[dict[str, Any]]:
    strategy = options.pop("strategy", None) or local_sgd(sync_every=3)
    callbacks = [ConsensusDistance(), KeepHistory(), *options.pop("callbacks", [])]
    return fit(module, strategy, callbacks=callbacks, **options)


def test_after_one_step_it_is_the_spread_of_the_gradients() -> None:
    data, gradients = pairs(), []
    for rank in range(2):
        model = network()
        images, targets = data[torch.tensor(list(RandomReshufflingSampler(data, 2, rank))[:BATCH])]
        nn.functional.cross_entropy(model(images), targets).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    mean = torch.stack(gradients).mean(0)
    expected = 0.1**2 * sum(consensus_distance(gradient, mean).item() for gradient in gradients) / 2
    for rank in measured(Classifier("sgd"), strategy=local_sgd(sync_every=1), max_epochs=1):
        assert rank["history"][0][DISTANCE] == pytest.approx(expected, rel=1e-5)
        assert rank["history"][0]["step"] == 1


@pytest.mark.parametrize("options", [{}, {"sync_on_epoch_end": False}, {"warmup_steps": 4}, {"across_nodes_every": 2}])
def test_training_is_bit_identical_with_and_without(options: dict[str, Any]) -> None:
    guests = measured(Classifier(norm=True), strategy=local_sgd(sync_every=3, **options))
    alone = fit(Classifier(norm=True), local_sgd(sync_every=3, **options))
    for ours, theirs in zip(guests, alone, strict=True):
        assert same(ours["weights"], theirs["weights"])
        assert ours["bytes_communicated"] == theirs["bytes_communicated"]
        assert len(ours["history"]) == ours["n_syncs"]
        assert ours["history"] == guests[0]["history"]


def test_one_entry_a_round_with_bytes_and_step() -> None:
    first, _ = measured(Classifier())
    assert [entry["step"] for entry in first["history"]] == [3, 6, 8, 11, 14, 16]
    payload = 4 * (6 * 16 + 16 + 16 * 3 + 3)
    assert [entry[BYTES] for entry in first["history"]] == [payload * n for n in range(1, 7)]
    assert all(entry[DISTANCE] > 0 for entry in first["history"])


@pytest.mark.parametrize("at", [13, 16])
def test_resumed_history_is_uninterrupted(at: int, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=at, save_top_k=-1)
    whole = measured(Steady(), callbacks=[saver], max_epochs=3)
    (path,) = (tmp_path / "saved").glob(f"*step={at}.ckpt")
    again = measured(Steady(), ckpt_path=path, max_epochs=3)
    for resumed, uninterrupted in zip(again, whole, strict=True):
        assert same(resumed["weights"], uninterrupted["weights"])
        assert resumed["history"] == uninterrupted["history"]


def test_every_round_is_logged_whatever_the_interval(tmp_path: Path) -> None:
    strategy, callback = LocalSGDStrategy(sync_every=3), ConsensusDistance()
    trainer(strategy, 1, [callback], logger=CSVLogger(tmp_path, name="logs")).fit(Classifier())
    lines = (tmp_path / "logs/version_0/metrics.csv").read_text().splitlines()
    assert len(lines) == 1 + 6
    assert f"local_sgd/{DISTANCE}" in lines[0]
    assert (tmp_path / "logs/version_0/local_sgd.png").stat().st_size > 10_000
    assert [entry[DISTANCE] for entry in callback.history] == [0] * 6
    assert strategy.track_drift is False


def test_another_strategy_is_refused_at_setup() -> None:
    with pytest.raises(MisconfigurationException, match="LocalSGDStrategy"):
        trainer("auto", 1, [ConsensusDistance()]).fit(Classifier())


def test_the_figure_has_two_axes() -> None:
    callback = ConsensusDistance()
    with pytest.raises(RuntimeError, match="history"):
        callback.plot()
    trainer(LocalSGDStrategy(sync_every=3), 1, [callback]).fit(Classifier())
    figure = callback.plot()
    assert [axes.get_xlabel() for axes in figure.axes] == ["optimizer step", ""]


def test_distance_needs_one_shape() -> None:
    with pytest.raises(ValueError, match="one shape"):
        consensus_distance(torch.zeros(2), torch.zeros(1))

"""The ways to optimize: by hand with several optimizers, compiled, with a scaler, in nodes, with an outer step."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.multiprocessing import ProcessRaisedException

from lit_papers.local_sgd import LocalSGDStrategy
from tests.local_sgd.small import Classifier, difference, fit, local_sgd, network, plain_loop, same, trainer
from tests.local_sgd.test_strategy_evaluation import Steady

NESTEROV = partial(torch.optim.SGD, lr=0.7, momentum=0.9, nesterov=True)


class ByHand(Classifier):
    """Body and head have an optimizer each."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_index: int) -> None:
        for optimizer in self.optimizers():
            with optimizer.toggle_model():
                loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()

    def configure_optimizers(self) -> Any:
        body, head = self.network[0], self.network[2]
        return [torch.optim.SGD(body.parameters(), 0.1), torch.optim.Adam(head.parameters(), 0.01)]


def test_two_optimizers_by_hand_count_one_step_a_batch() -> None:
    first, second = fit(ByHand(), local_sgd(sync_every=3))
    assert same(first["weights"], second["weights"])
    assert (first["local_step"], first["n_syncs"], first["global_step"]) == (16, 6, 32)


def test_warm_up_by_hand_is_ddp() -> None:
    ours, _ = fit(ByHand(), local_sgd(sync_every=3, warmup_steps=100))
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo", find_unused_parameters=True)
    theirs, _ = fit(ByHand(), strategy)
    assert difference(ours["weights"], theirs["weights"]) <= 1e-6


def test_compiled() -> None:
    torch.compiler.reset()
    compiled = torch.compile(Classifier(), backend="aot_eager")
    first, second = fit(compiled, local_sgd(sync_every=3))
    models, _, _ = plain_loop("momentum", 3)
    assert same(first["weights"], second["weights"])
    assert difference(first["weights"], models[0].state_dict()) <= 1e-6


def test_bfloat16_autocast() -> None:
    first, second = fit(Classifier(), local_sgd(sync_every=3), precision="bf16-mixed")
    assert same(first["weights"], second["weights"])


def test_bfloat16_weights() -> None:
    first, second = fit(Classifier(norm=True), local_sgd(sync_every=3), precision="bf16-true")
    assert first["weights"]["network.0.weight"].dtype == torch.bfloat16
    assert same(first["weights"], second["weights"])


@pytest.mark.parametrize("average_optimizer_state", [False, True])
def test_a_step_skipped_by_one_ranks_scaler_counts(average_optimizer_state: bool) -> None:
    class Overflows(Classifier):
        def training_step(self, batch: Any, batch_index: int) -> Tensor:
            loss = super().training_step(batch, batch_index)
            infinite = self.trainer.global_rank == 1 and self.global_step < 4
            return loss * (torch.inf if infinite else 1)

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    first, second = fit(
        Overflows("adam"),
        local_sgd(sync_every=3, average_optimizer_state=average_optimizer_state),
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
    )
    assert same(first["weights"], second["weights"])
    assert all(torch.isfinite(value).all() for value in first["weights"].values())
    for counter in ("local_step", "n_syncs"):
        assert first[counter] == second[counter]
    counts = [rank["optimizers"][0]["state"][0]["step"].item() for rank in (first, second)]
    assert counts == [16, 12]


def test_tied_and_frozen_parameters() -> None:
    class Tied(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.frozen = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.second.weight = self.first.weight
            self.frozen.requires_grad_(False)

        training_step = Classifier.training_step
        train_dataloader = Classifier.train_dataloader
        workers = 0

        def network(self, images: Tensor) -> Tensor:
            return self.frozen(self.second(torch.tanh(self.first(images))))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=0.1)

    first, second = fit(Tied(), local_sgd(sync_every=3))
    assert same(first["weights"], second["weights"])
    assert first["bytes_communicated"] == first["n_syncs"] * 4 * (36 + 6 + 6)


@pytest.mark.parametrize("options", [{"max_steps": 5, "max_epochs": -1}, {"max_epochs": 1}])
def test_training_that_ends_in_mid_round_ends_equal(options: dict[str, Any]) -> None:
    first, second = fit(Classifier(norm=True), local_sgd(sync_every=7, sync_on_epoch_end=False), **options)
    assert same(first["weights"], second["weights"])
    assert first["n_syncs"] == 1 + (options["max_epochs"] == 1)


class Over(Classifier):
    """Writes what it ends with where nothing was left to train."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_fit_end(self) -> None:
        torch.save(self.state_dict(), self.folder / f"{self.trainer.global_rank}.pt")


def test_a_run_that_is_over_is_resumed_with_equal_ranks(tmp_path: Path) -> None:
    """Its last checkpoint is of an open round, and there is nothing left to train."""
    options: dict[str, Any] = {"sync_every": 7, "sync_on_epoch_end": False}
    saver = ModelCheckpoint(tmp_path, filename="over", save_on_train_epoch_end=True)
    whole = fit(Classifier(), local_sgd(**options), callbacks=[saver], max_epochs=1)
    again = fit(Over(tmp_path), local_sgd(**options), ckpt_path=tmp_path / "over.ckpt", max_epochs=1, folder="again")
    assert again == []  # no training
    for rank in range(2):
        assert same(torch.load(tmp_path / f"{rank}.pt"), whole[0]["weights"])


def test_a_second_fit_starts_counting_anew() -> None:
    strategy = LocalSGDStrategy(sync_every=3)
    runner = trainer(strategy, 1, max_epochs=1)
    module = Classifier()
    for epochs in (1, 2):
        runner.fit_loop.max_epochs = runner.fit_loop.epoch_progress.current.processed + 1
        runner.fit(module)
        assert (strategy.local_step, strategy.n_syncs) == (8, 3), f"fit {epochs}"
        assert not any(type(callback).__name__ == "RoundHooks" for callback in runner.callbacks)


def test_nodes_average_within_often_and_across_rarely() -> None:
    options: dict[str, Any] = {"sync_every": 2, "across_nodes_every": 3, "node_size": 2}
    ranks = fit(Classifier(), local_sgd(**options), processes=4, max_epochs=2)
    models, _, rounds = plain_loop("momentum", 2, ranks=4, nodes=(2, 3))
    for rank in ranks:
        assert same(rank["weights"], ranks[0]["weights"])
        assert difference(rank["weights"], models[0].state_dict()) <= 1e-6
        assert rank["n_syncs"] == rounds


def test_nodes_keep_apart_between(tmp_path: Any) -> None:
    """Saved after a round within nodes: each node goes on from its own weights."""
    options: dict[str, Any] = {"sync_every": 2, "across_nodes_every": 3, "node_size": 1}
    saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=4, save_top_k=-1)
    whole = fit(Steady(), local_sgd(**options), callbacks=[saver])
    path = next((tmp_path / "saved").glob("*step=4.ckpt"))
    again = fit(Steady(), local_sgd(**options), ckpt_path=path)
    keeps = torch.load(path, weights_only=True)["local_sgd"]["ranks"][1]
    assert keeps["parameter", "network.0.weight"] == 1, "the second rank's own"
    for resumed, uninterrupted in zip(again, whole, strict=True):
        assert same(resumed["weights"], uninterrupted["weights"])


def test_nodes_must_divide_the_ranks() -> None:
    with pytest.raises(ProcessRaisedException, match="node_size=3 does not divide the 2 processes"):
        fit(Classifier(), local_sgd(across_nodes_every=2, node_size=3))
    with pytest.raises(ValueError, match="uneven_inputs='stop' needs across_nodes_every=1"):
        LocalSGDStrategy(across_nodes_every=2, uneven_inputs="stop")


@pytest.mark.parametrize("warmup", [0, 3])
def test_outer_optimizer_steps_on_the_averaged_change(warmup: int) -> None:
    anchors = [parameter.detach().clone().requires_grad_() for parameter in network().parameters()]
    outer = NESTEROV(anchors)

    def follow(weights: list[Tensor]) -> None:
        for anchor, weight in zip(anchors, weights, strict=True):
            anchor.detach().copy_(weight)

    def step(average: list[Tensor]) -> None:
        for anchor, weight in zip(anchors, average, strict=True):
            anchor.grad = anchor.detach() - weight
        outer.step()
        for anchor, weight in zip(anchors, average, strict=True):
            weight.copy_(anchor.detach())

    models, _, _ = plain_loop("momentum", 4, warmup=warmup, after_warmup=follow, after_average=step)
    first, second = fit(Classifier(), local_sgd(sync_every=4, warmup_steps=warmup, outer_optimizer=NESTEROV))
    assert same(first["weights"], second["weights"])
    assert difference(first["weights"], models[0].state_dict()) <= 1e-5


def test_plain_averaging_is_an_outer_step_of_one() -> None:
    with_outer, _ = fit(Classifier(), local_sgd(sync_every=3, outer_optimizer=partial(torch.optim.SGD, lr=1.0)))
    without, _ = fit(Classifier(), local_sgd(sync_every=3))
    assert difference(with_outer["weights"], without["weights"]) <= 1e-6


def test_resumed_with_an_outer_optimizer_is_bitwise_uninterrupted(tmp_path: Any) -> None:
    options: dict[str, Any] = {"sync_every": 3, "warmup_steps": 2, "outer_optimizer": NESTEROV}
    saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=10, save_top_k=-1)
    whole = fit(Steady(), local_sgd(**options), callbacks=[saver])
    path = next((tmp_path / "saved").glob("*step=10.ckpt"))
    again = fit(Steady(), local_sgd(**options), ckpt_path=path)
    for resumed, uninterrupted in zip(again, whole, strict=True):
        assert same(resumed["weights"], uninterrupted["weights"])

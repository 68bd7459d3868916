"""What used to go wrong without a word: logs in open rounds, diverging rates, sparse gradients, finders, time-outs."""

import time
from datetime import timedelta
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import LearningRateFinder, Timer
from torch import Tensor, nn
from torch.multiprocessing import ProcessRaisedException
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from lit_papers.local_sgd import LocalSGDStrategy, RandomReshufflingSampler
from lit_papers.local_sgd.averaging import Groups
from lit_papers.local_sgd.functional import consensus_distance, squared_norm
from lit_papers.local_sgd.loading import ResumableLoader
from tests.local_sgd.small import BATCH, Classifier, Validated, fit, local_sgd, pairs, same, together
from tests.local_sgd.test_strategy_failures import Uneven


class Logs(Uneven):
    how: ClassVar[dict[str, Any]] = {}

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        loss = super().training_step(batch, batch_index)
        self.log("train_loss", loss, sync_dist=True, **self.how)
        return loss


class LogsAtTheEpochsEnd(Logs):
    how: ClassVar[dict[str, Any]] = {"on_step": False, "on_epoch": True}


class AsksAMetric(Uneven):
    """Which asks all ranks itself, past the strategy."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = MeanMetric()

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        loss = super().training_step(batch, batch_index)
        self.loss.update(loss.detach())
        self.log("train_loss", self.loss.compute())
        return loss


WAITING = [(Logs(), []), (Uneven(), [Timer("00:01:00:00")]), (AsksAMetric(), [])]


@pytest.mark.parametrize(("module", "callbacks"), WAITING)
def test_what_needs_all_ranks_in_an_open_round_is_refused_at_once(module: Any, callbacks: Any) -> None:
    begin = time.monotonic()
    with pytest.raises(ProcessRaisedException, match=r"uneven_inputs='stop' and (.|\n)* in a training batch exclude"):
        fit(module, local_sgd(sync_every=4, uneven_inputs="stop"), callbacks=callbacks)
    assert time.monotonic() - begin < 30


def test_logs_at_the_epochs_end_go_through() -> None:
    ranks = fit(LogsAtTheEpochsEnd(), local_sgd(uneven_inputs="stop", sync_every=4))
    assert same(ranks[0]["weights"], ranks[1]["weights"])
    assert [rank["validated"] for rank in ranks] == [2, 2]


class Plateau(Validated):
    """Its scheduler watches a metric of each rank's own."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: dict[str, Any] = {}

    def on_fit_start(self) -> None:
        import warnings

        seen = self.notes["warned"] = []
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: seen.append(str(message))

    def validation_step(self, batch: Any, batch_index: int) -> None:
        self.log("val/own", -float(self.trainer.global_rank * self.trainer.current_epoch), sync_dist=False)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, mode="min")
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/own"}}


def test_diverging_learning_rates_are_told_once() -> None:
    ranks = fit(Plateau(), local_sgd(sync_every=3), max_epochs=4)
    rates = [rank["learning_rates"] for rank in ranks]
    told = [message for message in ranks[0]["warned"] if "learning rates of the ranks differ" in message]
    assert rates[0] != rates[1]
    assert len(told) == 1
    assert "ReduceLROnPlateau" in told[0]


class Words(LightningModule):
    """An embedding with sparse gradients; each batch has other words."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.words, self.head, self.sparse = nn.Embedding(20, 4, sparse=sparse), nn.Linear(4, 3), sparse
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_index: int) -> None:
        words = batch[0].abs().mul(4).long().clamp(max=19)
        loss = nn.functional.cross_entropy(self.head(self.words(words).mean(1)), batch[1])
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        assert self.words.weight.grad is not None
        assert self.words.weight.grad.is_sparse == self.sparse
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.words.parameters(), 0.3), torch.optim.Adam(self.head.parameters(), 0.01)]

    def train_dataloader(self) -> Any:
        return DataLoader(pairs(), BATCH, sampler=RandomReshufflingSampler(pairs()))


def test_sparse_gradients_in_the_warm_up_are_those_of_dense_ones() -> None:
    sparse, other = fit(Words(sparse=True), local_sgd(sync_every=3, warmup_steps=10))
    dense, _ = fit(Words(sparse=False), local_sgd(sync_every=3, warmup_steps=10))
    assert same(sparse["weights"], other["weights"])
    torch.testing.assert_close(sparse["weights"], dense["weights"], rtol=0, atol=1e-6)


def test_overfitting_with_a_resumable_loader() -> None:
    class Loads(Classifier):
        def train_dataloader(self) -> Any:
            data = pairs()
            return ResumableLoader(data, BATCH, sampler=RandomReshufflingSampler(data))

    for rank in fit(Loads(), local_sgd(sync_every=3), overfit_batches=2, max_epochs=3):
        assert rank["local_step"] == 6


def test_a_loader_with_pytorchs_distributed_sampler_goes_on() -> None:
    def loader() -> ResumableLoader[Any]:
        return ResumableLoader(range(22), 4, torch.utils.data.DistributedSampler(range(22), 2, 1, shuffle=True))  # type: ignore[arg-type]

    whole = [batch.tolist() for batch in loader()]
    begun, again = loader(), loader()
    batches = iter(begun)
    seen = [next(batches).tolist()]
    again.load_state_dict(begun.state_dict())
    state = torch.get_rng_state()
    assert seen + [batch.tolist() for batch in again] == whole
    assert torch.equal(torch.get_rng_state(), state), "going on draws nothing"


class Finds(Classifier):
    lr = 1e-3

    def __init__(self) -> None:
        super().__init__()
        self.notes: dict[str, Any] = {}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def on_train_start(self) -> None:
        strategy = self.trainer.strategy
        self.notes["began"] = (strategy.local_step, strategy.since_sync, strategy._fit.driver.stepped)


@pytest.mark.filterwarnings("ignore")
def test_a_learning_rate_finder_counts_no_steps() -> None:
    finder = LearningRateFinder(num_training_steps=7, early_stop_threshold=None)
    ranks = fit(Finds(), local_sgd(sync_every=3), callbacks=[finder], accumulate_grad_batches=2)
    for rank in ranks:
        assert rank["began"] == (0, 0, False)
        assert (rank["local_step"], rank["global_step"], rank["n_syncs"]) == (8, 8, 4)
    assert same(ranks[0]["weights"], ranks[1]["weights"])


def test_the_time_out_reaches_groups_of_nodes() -> None:
    def wait_alone(rank: int) -> float:
        groups = Groups.join(2, timedelta(seconds=2))
        begin = time.monotonic()
        if rank == 0:
            with pytest.raises(RuntimeError):
                dist.all_reduce(torch.ones(1), group=groups.node)
        else:
            time.sleep(4)
        return time.monotonic() - begin

    assert together(wait_alone, seconds=30)[0] < 10
    assert LocalSGDStrategy(timeout=timedelta(seconds=9)).timeout == timedelta(seconds=9)


def test_distance_is_summed_in_float64() -> None:
    torch.manual_seed(3)
    local, average = torch.randn(2, 100_000)
    exact = (local - average).double().square().sum()
    assert abs(consensus_distance(local, average) - exact) <= 1e-12 * exact
    assert consensus_distance(local, average).dtype == torch.float64
    assert abs(squared_norm(local.view(2, -1)) - local.double().square().sum()) <= 1e-12 * local.numel()
    assert squared_norm(torch.zeros(0)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compress": "fp16"}, "^compress must be one of None, 'bf16', got 'fp16'"),
        ({"rank_state": "disk"}, "^rank_state must be one of"),
        ({"within_node": "fsdp"}, "^within_node must be one of"),
        ({"fragments": 9, "sync_every": 8}, "^fragments must be at most sync_every=8, got 9"),
        ({"average_buffers": "all"}, "^average_buffers must be True, False or a function"),
        ({"sync_on_epoch_end": 1}, "^sync_on_epoch_end must be True or False"),
        ({"within_node": "ddp", "across_nodes_every": 2}, "across_nodes_every=2 and within_node='ddp' exclude"),
        ({"within_node": "ddp", "uneven_inputs": "stop"}, "needs within_node='local', got 'ddp'"),
        ({"fragments": 2, "average_optimizer_state": True}, "exclude each other"),
        ({"fragments": 2, "uneven_inputs": "stop"}, "needs fragments=1, got 2"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LocalSGDStrategy(**options)

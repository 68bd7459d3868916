"""DDP inside a node, compressed rounds and fragments, against loops by hand, resumed bit for bit, bytes counted."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.multiprocessing import ProcessRaisedException
from torch.utils.data import DataLoader

from lit_papers.local_sgd import RandomReshufflingSampler
from lit_papers.local_sgd.compression import CompressedMean
from lit_papers.local_sgd.round import Due, Round, partition
from lit_papers.local_sgd.samplers import EpochSampler
from tests.local_sgd.small import (
    BATCH,
    BATCHES,
    EPOCHS,
    OPTIMIZERS,
    Classifier,
    difference,
    fit,
    local_sgd,
    network,
    pairs,
    same,
    together,
)
from tests.local_sgd.test_strategy_evaluation import Steady
from tests.local_sgd.test_strategy_failures import Stream

NUMBERS = 6 * 16 + 16 + 16 * 3 + 3
NESTEROV = partial(torch.optim.SGD, lr=0.7, momentum=0.9, nesterov=True)


def batches_of(ranks: int, epoch: int) -> list[list[Any]]:
    """What each rank sees in an epoch."""
    data, found = pairs(ranks), []
    for rank in range(ranks):
        sampler: EpochSampler = RandomReshufflingSampler(data, ranks, rank)
        sampler.set_epoch(epoch)
        found.append([data[indices] for indices in torch.tensor(list(sampler)).split(BATCH)])
    return found


def loop(
    optimizer: str,
    at_step: Callable[[list[nn.Sequential], int, bool], None],
    *,
    ranks: int = 2,
    node: int = 1,
    accumulate: int = 1,
    clip: float | None = None,
) -> dict[str, Tensor]:
    """Nodes of so many ranks, gradients averaged within; after each step comes ``at_step(models, step, last)``."""
    models = [network() for _ in range(ranks // node)]
    optimizers = [OPTIMIZERS[optimizer](model.parameters()) for model in models]
    step = 0
    for epoch in range(EPOCHS):
        seen = batches_of(ranks, epoch)
        for index in range(BATCHES):
            for number, model in enumerate(models):
                for rank in range(number * node, (number + 1) * node):
                    images, targets = seen[rank][index]
                    (nn.functional.cross_entropy(model(images), targets) / accumulate / node).backward()
            if (index + 1) % accumulate and index + 1 < BATCHES:
                continue
            for model, each in zip(models, optimizers, strict=True):
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                each.step()
                each.zero_grad()
            step += 1
            with torch.no_grad():
                at_step(models, step, index + 1 == BATCHES)
    return models[0].state_dict()


class MeanEvery:
    """Averages all models every so many steps, and at the end of an epoch."""

    def __init__(self, sync_every: int) -> None:
        self.sync_every, self.since = sync_every, 0

    def __call__(self, models: list[nn.Sequential], step: int, last: bool) -> None:
        self.since += 1
        if self.since == self.sync_every or last:
            self.since = 0
            for values in zip(*[model.parameters() for model in models], strict=True):
                mean = torch.stack(list(values)).mean(0)
                for value in values:
                    value.copy_(mean)


WITHIN: dict[str, dict[str, Any]] = {
    "momentum": {"optimizer": "momentum"},
    "adam": {"optimizer": "adam"},
    "accumulation": {"optimizer": "adam", "accumulate": 3},
    "clipping": {"optimizer": "momentum", "clip": 0.1},
}


@pytest.mark.parametrize("case", WITHIN)
def test_ddp_within_nodes_of_two_equals_a_plain_loop(case: str) -> None:
    options = dict(WITHIN[case])
    optimizer = options.pop("optimizer")
    expected = loop(optimizer, MeanEvery(3), ranks=4, node=2, **options)
    ranks = fit(
        Classifier(optimizer),
        local_sgd(sync_every=3, within_node="ddp", node_size=2),
        processes=4,
        accumulate_grad_batches=options.get("accumulate", 1),
        gradient_clip_val=options.get("clip"),
    )
    assert all(same(rank["weights"], ranks[0]["weights"]) for rank in ranks)
    assert difference(ranks[0]["weights"], expected) <= 1e-6
    for rank in ranks:
        # each process carries half of its node's numbers across
        assert rank["bytes_communicated"] == 4 * -(-NUMBERS // 2) * rank["n_syncs"]


def test_ddp_within_nodes_resumed_in_mid_round_is_bitwise_uninterrupted() -> None:
    options: dict[str, Any] = {"sync_every": 3, "within_node": "ddp", "node_size": 2, "warmup_steps": 2}
    save = ModelCheckpoint("saved", filename="{step}", every_n_train_steps=12, save_top_k=-1)
    module: dict[str, Any] = {"optimizer": "adam", "norm": True}
    whole = fit(Steady(**module), local_sgd(**options), processes=4, callbacks=[save])
    again = fit(
        Steady(**module), local_sgd(**options), processes=4, ckpt_path=Path("saved/step=12.ckpt"), folder="again"
    )
    for resumed, uninterrupted in zip(again, whole, strict=True):
        assert same(resumed["weights"], uninterrupted["weights"])
        assert same(resumed["weights"], whole[0]["weights"])


def test_one_node_of_ddp_is_ddp() -> None:
    expected = loop("momentum", lambda models, step, last: None, ranks=2, node=2)
    ranks = fit(Classifier(), local_sgd(sync_every=3, within_node="ddp"))
    assert difference(ranks[0]["weights"], expected) <= 1e-6
    assert same(ranks[0]["weights"], ranks[1]["weights"])


def test_streams_that_end_apart_within_a_node_are_an_error_and_no_hang() -> None:
    class UnevenStream(Classifier):
        def train_dataloader(self) -> Any:
            return DataLoader(Stream(pairs(1, 8 - 3 * self.trainer.global_rank)), BATCH)

    with pytest.raises(ProcessRaisedException, match=r"some ranks end an epoch before the others"):
        fit(UnevenStream(), local_sgd(sync_every=4, within_node="ddp"))


def flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


def put(model: nn.Module, numbers: Tensor) -> None:
    nn.utils.vector_to_parameters(numbers, model.parameters())


class Compressed:
    """The average of changes as bfloat16, both ways, with error feedback both ways."""

    def __init__(self, sync_every: int, outer: Any = None) -> None:
        self.sync_every, self.since = sync_every, 0
        self.anchor = nn.Parameter(flat(network()).detach().clone())
        self.owed, self.mean_owed = [torch.zeros(NUMBERS) for _ in range(2)], torch.zeros(NUMBERS)
        self.outer = None if outer is None else outer([self.anchor])

    def __call__(self, models: list[nn.Sequential], step: int, last: bool) -> None:
        self.since += 1
        if self.since < self.sync_every and not last:
            return
        self.since = 0
        sent = []
        for rank, model in enumerate(models):
            change = flat(model) - self.anchor + self.owed[rank]
            sent.append(change.bfloat16().float())
            self.owed[rank] = change - sent[-1]
        mean = torch.stack(sent).mean(0) + self.mean_owed
        rounded = mean.bfloat16().float()
        self.mean_owed = mean - rounded
        if self.outer is None:
            self.anchor += rounded
        else:
            self.anchor.grad = self.anchor - (self.anchor + rounded)
            self.outer.step()
        for model in models:
            put(model, self.anchor.detach().clone())


@pytest.mark.parametrize("outer", [None, NESTEROV])
def test_bfloat16_rounds_equal_a_loop_by_hand(outer: Any) -> None:
    expected = loop("momentum", Compressed(3, outer))
    ranks = fit(Classifier(), local_sgd(sync_every=3, compress="bf16", outer_optimizer=outer))
    assert same(ranks[0]["weights"], ranks[1]["weights"])
    assert difference(ranks[0]["weights"], expected) <= 1e-6
    for rank in ranks:
        assert rank["bytes_communicated"] == 2 * NUMBERS * rank["n_syncs"]


class Fragments:
    """Parts of the weights, each averaged (and stepped on) at its own step of a round."""

    def __init__(self, sync_every: int, ends: list[int], outer: Any = None) -> None:
        self.sync_every, self.ends, self.since = sync_every, ends, 0
        numbers = flat(network()).detach()
        self.sizes = [96, 67]  # the first weight, and the rest
        self.anchors = [nn.Parameter(part.clone()) for part in numbers.split(self.sizes)]
        self.outer = [None if outer is None else outer([anchor]) for anchor in self.anchors]

    def __call__(self, models: list[nn.Sequential], step: int, last: bool) -> None:
        self.since += 1
        for part, end in enumerate(self.ends):
            if self.since == end or step == BATCHES * EPOCHS:
                values = [list(flat(model).split(self.sizes)) for model in models]
                mean = torch.stack([each[part] for each in values]).mean(0)
                anchor, outer = self.anchors[part], self.outer[part]
                if outer is not None:
                    anchor.grad = anchor - mean
                    outer.step()
                    mean = anchor.detach().clone()
                for model, each in zip(models, values, strict=True):
                    each[part] = mean
                    put(model, torch.cat(each).clone())
        self.since %= self.sync_every


@pytest.mark.parametrize("outer", [None, NESTEROV])
def test_fragments_equal_a_loop_by_hand(outer: Any) -> None:
    expected = loop("momentum", Fragments(5, [3, 5], outer))
    options: dict[str, Any] = {"sync_every": 5, "fragments": 2, "sync_on_epoch_end": False, "outer_optimizer": outer}
    ranks = fit(Classifier(), local_sgd(**options))
    assert same(ranks[0]["weights"], ranks[1]["weights"])
    assert difference(ranks[0]["weights"], expected) <= 1e-6
    # steps 3, 5, 8, 10, 13, 15 and all at the end
    assert ranks[0]["n_syncs"] == 7
    assert ranks[0]["bytes_communicated"] == 4 * (3 * NUMBERS + NUMBERS)


CHEAPER: dict[str, dict[str, Any]] = {
    "bf16": {"compress": "bf16"},
    "bf16 across nodes": {"compress": "bf16", "within_node": "ddp", "node_size": 1},
    "fragments": {"fragments": 3, "sync_on_epoch_end": False},
    "all": {"fragments": 2, "compress": "bf16", "outer_optimizer": NESTEROV, "warmup_steps": 2},
}


@pytest.mark.parametrize("options", CHEAPER)
def test_cheaper_rounds_resumed_in_the_middle_are_bitwise_uninterrupted(options: str) -> None:
    chosen = {"sync_every": 4, **CHEAPER[options]}
    save = ModelCheckpoint("saved", filename="{step}", every_n_train_steps=11, save_top_k=-1)
    whole = fit(Steady(norm=True), local_sgd(**chosen), callbacks=[save])
    again = fit(Steady(norm=True), local_sgd(**chosen), ckpt_path=Path("saved/step=11.ckpt"), folder="again")
    assert same(whole[0]["weights"], whole[1]["weights"])
    for resumed, uninterrupted in zip(again, whole, strict=True):
        assert same(resumed["weights"], uninterrupted["weights"])
        assert resumed["bytes_communicated"] == uninterrupted["bytes_communicated"]


def test_what_rounding_takes_is_given_back() -> None:
    """Over many rounds the sum of what arrived is the sum of what was meant, to one rounding."""

    def add_up(rank: int) -> tuple[Tensor, Tensor]:
        mean, arrived, meant = CompressedMean(), torch.zeros(101), torch.zeros(101)
        for step in range(50):
            torch.manual_seed(step)
            changes = 1 + 0.01 * torch.randn(3, 101)
            change = changes[rank].clone()
            mean(change)
            arrived += change
            meant += changes.mean(0)
        return arrived, meant

    answers = together(add_up, 3)
    for arrived, meant in answers:
        assert torch.equal(arrived, answers[0][0])
        assert (arrived - meant).abs().max() <= 2 * 2.0**-8


def test_rounds_without_a_trainer() -> None:
    rounds = Round(sync_every=4, warmup_steps=1, fragments=2)
    weights = [torch.zeros(3), torch.zeros(3)]
    dues = []
    for _ in range(10):
        rounds.count(stepped=True)
        due = None if rounds.local_step <= 1 else rounds.due(stepped=True, over=False)
        if due is not None:
            rounds.end(weights, due)
        dues.append(due)
    one, two = Due((0,), True), Due((1,), True)
    assert dues == [None, None, one, None, two, None, one, None, two, None]
    assert rounds.weights_apart
    assert (rounds.local_step, rounds.since_sync, rounds.n_syncs, rounds.bytes_communicated) == (10, 1, 4, 0)
    saved = rounds.state_dict()
    other = Round(sync_every=4, warmup_steps=1, fragments=2)
    other.load_counters(saved, same_ranks=True)
    assert other.state_dict() == saved


def test_hierarchical_rounds_without_a_trainer() -> None:
    rounds, everywhere = Round(sync_every=2, across_nodes_every=3), []
    for step in range(12):
        rounds.count(stepped=step % 2 == 1)
        due = rounds.due(stepped=step % 2 == 1, over=False)
        if due is not None:
            rounds.end([torch.zeros(1)], due)
            everywhere.append(due.everywhere)
    assert everywhere == [False, False, True]


def test_more_fragments_than_tensors_are_refused() -> None:
    with pytest.raises(RuntimeError, match="fragments=5 are more than 4 trained tensors"):
        partition([torch.zeros(3) for _ in range(4)], 5)

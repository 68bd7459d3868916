"""The orders of the samplers, and how a loader goes on in the middle of one."""

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from lit_papers.local_sgd import RandomReshufflingSampler, SynchronizedShufflingSampler, WithReplacementSampler
from lit_papers.local_sgd.loading import ResumableLoader
from tests.local_sgd.small import Classifier, fit, local_sgd, pairs

SAMPLERS = [RandomReshufflingSampler, SynchronizedShufflingSampler, WithReplacementSampler]


def orders(kind: Any, samples: int, ranks: int, epoch: int = 0, **options: Any) -> list[list[int]]:
    found = []
    for rank in range(ranks):
        sampler = kind(range(samples), ranks, rank, **options)
        sampler.set_epoch(epoch)
        found.append(list(sampler))
    return found


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("partition", [True, False])
def test_each_machine_draws_from_its_own(kind: Any, partition: bool) -> None:
    for rank, order in enumerate(orders(kind, 48, 4, partition=partition)):
        own = set(range(12 * rank, 12 * (rank + 1))) if partition else set(range(48))
        assert len(order) == len(own)
        assert set(order) <= own
        if kind is not WithReplacementSampler:
            assert set(order) == own


@pytest.mark.parametrize("kind", SAMPLERS)
def test_orders_are_a_function_of_seed_epoch_and_rank(kind: Any) -> None:
    seen = set()
    for seed in range(3):
        for epoch in range(3):
            again = orders(kind, 48, 4, epoch, seed=seed)
            assert again == orders(kind, 48, 4, epoch, seed=seed)
            seen |= {tuple(index - 12 * rank for index in order) for rank, order in enumerate(again)}
    assert len(seen) == 3 * 3 * 4, "seed + epoch + rank would repeat orders"


def test_with_replacement_repeats_and_is_uniform() -> None:
    (draws,) = orders(WithReplacementSampler, 10_000, 1)
    assert 0.62 < len(set(draws)) / 10_000 < 0.645  # 1 - 1/e


@pytest.mark.parametrize(("samples", "ranks"), [(12, 4), (16, 2), (9, 3)])
def test_synchronized_shuffling_covers_all_components(samples: int, ranks: int) -> None:
    pis = set()
    for epoch in range(20):
        lists = orders(SynchronizedShufflingSampler, samples, ranks, epoch, partition=False)
        window = samples // ranks
        for start in range(0, samples, window):
            assert sorted(i for order in lists for i in order[start : start + window]) == list(range(samples))
        doubled = lists[0] * 2
        shifts = [next(s for s in range(samples) if doubled[s : s + samples] == order) for order in lists]
        assert sorted(shifts) == list(range(0, samples, window))
        pis.add(tuple(shifts))
    assert ranks == 2 or len(pis) > 1, "the rotation is redrawn every epoch"


def test_synchronized_shuffling_of_shards_rotates_local_indices() -> None:
    first, second = orders(SynchronizedShufflingSampler, 16, 2)
    assert second == [index + 8 for index in first[4:] + first[:4]]


def test_bad_sizes_are_named() -> None:
    with pytest.raises(ValueError, match=r"num_replicas=4 to divide the 10 samples"):
        SynchronizedShufflingSampler(range(10), 4, 0, partition=False)
    with pytest.raises(ValueError, match="3 samples, fewer than num_replicas=4"):
        RandomReshufflingSampler(range(3), 4, 0)
    with pytest.raises(ValueError, match="rank"):
        RandomReshufflingSampler(range(8), 4, 4)
    with pytest.warns(UserWarning, match="the last 2 of 10 samples are never drawn"):
        assert len(RandomReshufflingSampler(range(10), 4, 0)) == 2


@pytest.mark.parametrize("kind", SAMPLERS)
def test_lightning_leaves_them_in_place(kind: Any) -> None:
    assert issubclass(kind, DistributedSampler)

    class Keeps(Classifier):
        def train_dataloader(self) -> Any:
            data = pairs()
            return DataLoader(data, 4, sampler=kind(data))

        def on_train_start(self) -> None:
            self.notes = {"sampler": type(self.trainer.train_dataloader.sampler).__name__}

    for rank in fit(Keeps(), local_sgd(), max_epochs=1):
        assert rank["sampler"] == kind.__name__


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_loader_goes_on_where_it_was(kind: Any, workers: int) -> None:
    def loader() -> ResumableLoader[Any]:
        made: ResumableLoader[Any] = ResumableLoader(range(22), 4, kind(range(22), 1, 0), num_workers=workers)
        made.sampler.set_epoch(3)  # type: ignore[attr-defined]
        return made

    whole = [batch.tolist() for batch in loader()]
    assert len(whole) == 6
    interrupted = loader()
    batches = iter(interrupted)
    seen = [next(batches).tolist() for _ in range(2)]
    again = loader()
    again.load_state_dict(interrupted.state_dict())
    assert seen + [batch.tolist() for batch in again] == whole
    assert again.state_dict() == {"batches": 0}
    assert [batch.tolist() for batch in again] == whole, "the next epoch is whole again"


def test_a_loader_needs_a_sampler_with_a_fixed_order() -> None:
    with pytest.raises(ValueError, match="sampler must be one of"):
        ResumableLoader(range(4), 2)
    with pytest.raises(ValueError, match="sampler must be one of"):
        ResumableLoader(range(4), 2, torch.utils.data.RandomSampler(range(4)))  # type: ignore[arg-type]

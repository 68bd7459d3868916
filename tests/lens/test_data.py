"""Data as they are trained on: which rows are read, how many, and that nothing is drawn from training's streams."""

import copy
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lit_papers.lens.data import Reading, alone, length
from lit_papers.lens.sample import Sample
from lit_papers.lens.streams import streams_in, streams_kept

ROWS = list(range(10))


def read(loader: Any, max_batches: int | None = None) -> list[int]:
    with streams_kept():
        return [int(row) for batch, counts in Reading(loader, alone(), max_batches) if counts for row in batch]


class Remembers(Sampler[int]):
    """A sampler that knows where it is, as those do that resume in the middle of an epoch."""

    def __init__(self) -> None:
        self.start = 4

    def __iter__(self) -> Iterator[int]:
        start, self.start = self.start, 0
        return iter(ROWS[start:])

    def __len__(self) -> int:
        return len(ROWS)


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, ROWS),
        ({"shuffle": True}, ROWS),
        ({"shuffle": True, "drop_last": True}, ROWS),
        ({"drop_last": True}, ROWS[:9]),
        ({"sampler": SubsetRandomSampler([1, 3, 5])}, [1, 3, 5]),
        ({"sampler": [7, 2]}, [7, 2]),
        ({"batch_sampler": [[1, 2], [3]]}, [1, 2, 3]),
        ({"batch_sampler": BatchSampler(SubsetRandomSampler([4, 6]), 2, False)}, [4, 6]),
        ({"sampler": DistributedSampler(ROWS, 4, 1)}, ROWS),
        ({"sampler": DistributedSamplerWrapper(SubsetRandomSampler([0, 9]), num_replicas=2, rank=1)}, [0, 9]),
        ({"sampler": Remembers()}, ROWS[4:]),
    ],
    ids=lambda value: None,
)
def test_rows_are_those_of_the_sampler(options: dict[str, Any], rows: list[int]) -> None:
    size = {} if "batch_sampler" in options else {"batch_size": 3}
    loader = DataLoader(ROWS, **size, **options)
    once, again = read(loader), read(loader)
    assert once == again, "a measurement is the same every time"
    assert sorted(once) == sorted(rows)


def test_a_part_of_shuffled_data_is_a_random_part() -> None:
    loader = DataLoader(range(1000), batch_size=10, shuffle=True)
    part = read(loader, max_batches=20)
    assert len(set(part)) == 200
    assert max(part) > 900
    assert part == read(loader, max_batches=20)
    assert read(DataLoader(range(1000), batch_size=10), max_batches=2) == list(range(20))


def test_samplers_without_an_end_are_bounded() -> None:
    class Endless(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            while True:
                yield 3

    assert read(DataLoader(ROWS, batch_size=3, sampler=Endless())) == [3] * 10
    assert len(read(DataLoader(ROWS, batch_size=3, sampler=WeightedRandomSampler([1.0] * 10, 400)), 4)) == 12


class Draws(Dataset[float]):
    def __init__(self) -> None:
        self.streams = {"numpy": np.random.default_rng(1), "torch": torch.Generator().manual_seed(1)}

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> float:
        return float(self.streams["numpy"].normal()) + float(torch.rand(1, generator=self.streams["torch"]))


def test_no_stream_is_moved() -> None:
    own = torch.Generator().manual_seed(7)
    data = Draws()
    loaders = [
        DataLoader(data, batch_size=2, shuffle=True, generator=own),
        DataLoader(data, batch_size=2, sampler=RandomSampler(data, replacement=True, generator=own)),
        DataLoader(data, batch_size=2, collate_fn=lambda rows: [row + float(data[0]) for row in rows]),
    ]

    def states() -> list[Any]:
        return [own.get_state().tolist(), data[0], torch.get_rng_state().tolist()]

    for loader in loaders:
        kept = own.get_state()
        numpy_state, torch_state = data.streams["numpy"].bit_generator.state, data.streams["torch"].get_state()
        global_state = torch.get_rng_state()
        with streams_kept(streams_in([loader.dataset, loader.sampler, loader.collate_fn, loader.generator])):
            assert len(read(loader)) == 10
        assert own.get_state().equal(kept)
        assert data.streams["numpy"].bit_generator.state == numpy_state
        assert data.streams["torch"].get_state().equal(torch_state)
        assert torch.get_rng_state().equal(global_state)


class Keeps(Dataset[float]):
    """Each sample changes what the next will be."""

    def __init__(self) -> None:
        self.cache = {0: 0.5}
        self.buffer = [1.0]
        self.recent = deque([1.0], maxlen=3)
        self.seen = {0}
        self.weights = torch.ones(10)
        self.counts = np.zeros(10)

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> float:
        self.cache.setdefault(index, float(torch.rand(())))
        self.buffer.append(float(index))
        self.recent.append(float(index))
        self.seen.add(index)
        self.weights *= 1.1
        self.counts[index] += 1
        return self.cache[index]


def test_what_containers_and_tensors_hold_comes_back() -> None:
    data = Keeps()
    before, same = copy.deepcopy(vars(data)), dict(vars(data))
    with streams_kept(streams_in([data])):
        assert len(read(DataLoader(data, batch_size=2))) == 10
        assert data.counts.sum() == 10
    for name, value in vars(data).items():
        assert value is same[name], "others may hold it too"
        assert str(value) == str(before[name])


def test_what_is_iterated_over_meanwhile_and_does_not_change_stays_as_it_is() -> None:
    """A stream in the middle of an epoch goes over its buffer while the network is measured."""
    data = Keeps()
    for name in ("cache", "buffer", "recent", "seen"):
        live = iter(getattr(data, name))
        with streams_kept(streams_in([data])):
            pass
        assert len(list(live)) == 1, name


def test_streams_come_back_also_after_an_exception() -> None:
    before = torch.get_rng_state()

    def fail() -> None:
        with streams_kept():
            torch.rand(3)
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail()
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("error", [TypeError, NotImplementedError, AttributeError, OverflowError, ValueError])
def test_what_cannot_say_its_length_has_none(error: type[Exception]) -> None:
    class Endless:
        def __len__(self) -> int:
            raise error("no end")

    assert length(Endless()) is None
    assert length([1, 2]) == 2


def test_a_sample_of_a_sorted_stream_has_all_targets_and_a_rare_one_is_looked_for() -> None:
    labels = torch.arange(900) // 300
    sorted_rows = list(zip(labels[:, None].double().split(10), labels.split(10), strict=True))
    stream = Sample(30, distinct=3, seed=0)
    for x, y in sorted_rows:
        stream.add(x, y)
    x, y = stream.rows()
    assert torch.equal(x[:, 0].long(), y)
    assert torch.bincount(y).min() >= 4
    rare = Sample(20, distinct=3)
    for x, y in sorted_rows:
        if rare.enough:
            break
        rare.add(x, y)
    assert torch.bincount(rare.rows()[1]).tolist() == [20, 10, 10]
    first = Sample(20)
    first.add(*sorted_rows[0])
    assert not first.enough
    first.add(labels[:, None], labels)
    assert first.enough
    assert len(first.rows()[1]) == 20


def test_a_sample_of_a_stream_without_end_ends() -> None:
    endless = Sample(3, distinct=2, seed=0)
    reads = 0
    while not endless.enough:
        endless.add(torch.ones(1, 2), torch.zeros(1))
        reads += 1
    assert reads == 300
    assert len(endless.rows()[0]) == 3

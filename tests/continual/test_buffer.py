"""The reservoir: uniform, exact over processes, resumable."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lit_papers.continual.buffer import ReservoirBuffer


@pytest.mark.parametrize("seeds", [4_000, pytest.param(40_000, marks=pytest.mark.slow)])
def test_every_subset_is_equally_likely(seeds: int) -> None:
    """Jointly: a wrong replacement rule can have right marginals."""
    counts = dict.fromkeys(itertools.combinations(range(5), 2), 0)
    for seed in range(seeds):
        buffer = ReservoirBuffer(2, seed)
        for row in torch.arange(5).split(2):
            buffer.add(x=row)
        counts[tuple(sorted(buffer.data["x"].tolist()))] += 1
    expected = seeds / len(counts)
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_squared < 27.88  # 9 degrees of freedom, p = 1e-3


def test_it_keeps_everything_until_it_is_full() -> None:
    buffer = ReservoirBuffer(10, seed=3)
    buffer.add(x=torch.arange(4, dtype=torch.uint8), y=torch.arange(4))
    buffer.add(x=torch.arange(4, 10, dtype=torch.uint8), y=torch.arange(4, 10))
    assert sorted(buffer.data["y"].tolist()) == list(range(10))
    assert buffer.data["x"].dtype == torch.uint8
    assert torch.equal(buffer.data["x"].long(), buffer.data["y"])
    assert len(buffer) == buffer.seen == 10


def test_keys_are_those_of_the_contract() -> None:
    buffer = ReservoirBuffer(3, seed=5)
    keys = []
    for call in range(4):
        buffer.add(x=torch.arange(7 * call, 7 * call + 7))
        keys.append(np.random.Generator(np.random.Philox(key=[5, call])).random(7))
    assert buffer.data["x"].tolist() == np.concatenate(keys).argsort()[:3].tolist()


def test_restored_it_goes_on_as_before(tmp_path: Path) -> None:
    whole, first = ReservoirBuffer(8), ReservoirBuffer(8)
    stream = torch.randn(12, 5, 3)
    for rows in stream:
        whole.add(x=rows)
    for rows in stream[:5]:
        first.add(x=rows)
    torch.save(first.state_dict(), tmp_path / "saved.pt")
    again = ReservoirBuffer(8)
    again.load_state_dict(torch.load(tmp_path / "saved.pt", weights_only=True))
    for rows in stream[5:]:
        again.add(x=rows)
    assert torch.equal(again.data["x"], whole.data["x"])
    assert again.seen == whole.seen == 60


def test_sampling() -> None:
    buffer = ReservoirBuffer(6)
    buffer.add(x=torch.arange(6))
    drawn = buffer.sample(6, torch.Generator().manual_seed(0))["x"]
    assert sorted(drawn.tolist()) == list(range(6))
    assert torch.equal(drawn, buffer.sample(6, torch.Generator().manual_seed(0))["x"])
    assert len(buffer.sample(20)["x"]) == 20


def test_bad_input() -> None:
    for size in (0, -1):
        with pytest.raises(ValueError, match="`size`"):
            ReservoirBuffer(size)
    buffer = ReservoirBuffer(2)
    assert buffer.data == {}
    with pytest.raises(RuntimeError, match="empty"):
        buffer.sample(1)
    with pytest.raises(ValueError, match="y has 2 rows"):
        buffer.add(x=torch.zeros(3), y=torch.zeros(2))
    with pytest.raises(ValueError, match="at least one field"):
        buffer.add()
    buffer.add(x=torch.zeros(3))
    with pytest.raises(ValueError, match="y does not fit"):
        buffer.add(x=torch.zeros(1), y=torch.zeros(1))
    with pytest.raises(ValueError, match="`n`"):
        buffer.sample(0)
    small = ReservoirBuffer(1)
    with pytest.raises(ValueError, match="`size`=1"):
        small.load_state_dict(buffer.state_dict())


def _offer(rank: int, processes: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes)
    buffer = ReservoirBuffer(10, seed=1)
    for rows in _stream():
        share = rows.tensor_split(processes)[rank]
        buffer.add(x=share, image=share.to(torch.uint8)[:, None].expand(-1, 3))
    torch.save({**buffer.data, "seen": buffer.seen}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _stream() -> list[torch.Tensor]:
    """Batches that do not split evenly, one too small to reach every rank."""
    return list(torch.arange(58).split([8, 7, 1, 9, 16, 17]))


def test_two_processes_keep_what_one_keeps(tmp_path: Path) -> None:
    single = ReservoirBuffer(10, seed=1)
    for rows in _stream():
        single.add(x=rows, image=rows.to(torch.uint8)[:, None].expand(-1, 3))
    mp.start_processes(_offer, (2, str(tmp_path)), nprocs=2, start_method="fork")
    for rank in range(2):
        found: dict[str, Any] = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(found["x"], single.data["x"])
        assert torch.equal(found["image"], single.data["image"])
        assert found["seen"] == single.seen == math.fsum(map(len, _stream()))


def test_rows_are_written_in_place() -> None:
    buffer = ReservoirBuffer(50)
    buffer.add(images=torch.arange(60.0).view(60, 1))
    places = buffer._store["images"].data_ptr()
    state = buffer.state_dict()["_extra_state"]
    kept = {name: value.clone() for name, value in state["data"].items()}
    for start in range(60, 400, 20):
        buffer.add(images=torch.arange(start, start + 20.0).view(20, 1))
    assert buffer._store["images"].data_ptr() == places
    assert torch.equal(state["data"]["images"], kept["images"])  # a checkpoint in memory is not written to
    twin = ReservoirBuffer(50)
    for start in range(0, 400, 20):
        twin.add(images=torch.arange(start, start + 20.0).view(20, 1))
    assert len(twin) == 50


def test_it_is_the_best_keys_of_all_offers() -> None:
    """Whatever the sizes of the batches and of the buffer, also where a batch exceeds it."""
    for size, sizes in ((7, [3, 3, 3, 20, 1, 2, 40]), (30, [12, 50, 1]), (5, [5, 5])):
        buffer, rows, keys, start = ReservoirBuffer(size, seed=3), [], [], 0
        for call, count in enumerate(sizes):
            keys += np.random.Generator(np.random.Philox(key=[3, call])).random(count).tolist()
            rows += range(start, start + count)
            buffer.add(number=torch.arange(start, start + count))
            start += count
            best = sorted(zip(keys, rows, strict=True))[:size]
            assert buffer.data["number"].tolist() == [row for _, row in best]


def test_rows_of_another_kind_are_refused() -> None:
    buffer = ReservoirBuffer(4)
    buffer.add(images=torch.zeros(2, 3))
    for wrong in (torch.zeros(2, 4), torch.zeros(2, 3, dtype=torch.float64)):
        with pytest.raises(ValueError, match="rows of the field images"):
            buffer.add(images=wrong)

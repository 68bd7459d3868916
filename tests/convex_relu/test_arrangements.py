"""All chambers, each once, also where hyperplanes coincide or meet in too many at once."""

import time

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from lit_papers.convex_relu.arrangements import (
    Arrangements,
    TooManyPatternsError,
    arrangement_bound,
    check_arrangements,
    enumerate_arrangements,
    network_arrangements,
    sample_arrangements,
)
from tests.convex_relu.small import EXACT, load, normal


def columns(arrangements: Arrangements) -> set[bytes]:
    return {column.numpy().tobytes() for column in arrangements.patterns.T.contiguous()}


def by_linear_programs(x: Tensor) -> set[bytes]:
    """The plain way: a tree over the samples' bits, cut where no neuron has them all."""
    rows = x.numpy()
    there = np.linalg.norm(rows, axis=1) > 0

    def possible(bits: list[bool]) -> bool:
        side = np.where(bits, 1.0, -1.0)[:, None] * rows[: len(bits)]
        side = side[there[: len(bits)]]
        if len(side) == 0:
            return True
        answer = linprog(np.zeros(x.shape[1]), A_ub=-side, b_ub=-np.ones(len(side)), bounds=(None, None))
        return answer.status == 0

    found: list[list[bool]] = [[]]
    for index in range(len(rows)):
        choices = [True, False] if there[index] else [False]
        found = [[*bits, bit] for bits in found for bit in choices if possible([*bits, bit])]
    return {np.array(bits).tobytes() for bits in found}


@pytest.mark.parametrize(
    ("n", "d", "count"),
    [
        (5, 2, 10),
        (8, 3, 58),
        (10, 3, 92),
        (20, 3, 382),
        (20, 4, 2320),
        (12, 5, 1124),
        (10, 4, 260),
        (3, 5, 8),
        (4, 4, 16),
    ],
)
def test_counts_in_general_position(n: int, d: int, count: int) -> None:
    x = normal(n, d)
    found = enumerate_arrangements(x)
    assert len(found) == len(columns(found)) == count == arrangement_bound(n, min(n, d))
    assert found.exact
    assert torch.equal(found.patterns, x @ found.gates > 0)


def test_degenerate_counts() -> None:
    assert len(enumerate_arrangements(normal(7, 1))) == 2
    line = torch.stack([normal(4), torch.ones(4, dtype=torch.float64)], 1)
    assert len(enumerate_arrangements(line)) == 8
    assert len(enumerate_arrangements(torch.zeros(3, 2))) == 1
    assert len(enumerate_arrangements(torch.tensor([[-1.0], [1.0]]))) == 2  # with 1[x u >= 0] there would be three


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("d", [2, 3, 4])
def test_pattern_sets_are_those_of_linear_programs(seed: int, d: int) -> None:
    """Small integers: duplicate, antipodal and zero rows, and many hyperplanes through one line."""
    x = torch.randint(-1, 2, (7, d), generator=torch.Generator().manual_seed(seed)).double()
    assert columns(enumerate_arrangements(x)) == by_linear_programs(x)


def test_rank_deficient_data() -> None:
    x = normal(9, 2) @ normal(2, 5, seed=1)
    found = enumerate_arrangements(x)
    assert len(found) == arrangement_bound(9, 2)
    assert torch.equal(found.patterns, x @ found.gates > 0)


@pytest.mark.parametrize("name", EXACT)
def test_reference_patterns(name: str) -> None:
    problem = load(name)
    expected = Arrangements(problem["patterns"], problem["gates"], exact=False)
    assert columns(enumerate_arrangements(problem["x"])) == columns(expected)


def test_the_largest_of_our_promises() -> None:
    start = time.process_time()
    assert len(enumerate_arrangements(normal(30, 5), max_patterns=60_000)) == 55_682
    assert time.process_time() - start < 10


def test_hopeless_sizes_are_refused_at_once() -> None:
    x = torch.randn(5000, 50)
    start = time.process_time()  # the machine may be busy, and a busy one computes more slowly
    with pytest.raises(TooManyPatternsError, match="sample_arrangements") as refusal:
        enumerate_arrangements(x)
    assert time.process_time() - start < 2  # of which nearly all is the rank; the bound itself takes nothing
    assert refusal.value.bound == arrangement_bound(5000, 50)
    assert refusal.value.limit == 50_000
    with pytest.raises(TooManyPatternsError, match=r"up to 92 .*max_patterns=91"):
        enumerate_arrangements(normal(10, 3), max_patterns=91)


def test_refusal_of_a_usual_size_takes_no_time() -> None:
    x = normal(455, 31)
    enumerate_arrangements(x[:3])
    start = time.process_time()
    with pytest.raises(TooManyPatternsError):
        enumerate_arrangements(x)
    assert time.process_time() - start < 1  # enumerating would take years


def test_sampling_is_a_subset_and_says_so() -> None:
    x = normal(10, 3)
    drawn = sample_arrangements(x, 300, generator=torch.Generator().manual_seed(0))
    assert not drawn.exact
    assert columns(drawn) < columns(enumerate_arrangements(x))
    again = sample_arrangements(x, 300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn.patterns, again.patterns)


def test_union() -> None:
    x = normal(10, 3)
    everything = enumerate_arrangements(x)
    first, second = (sample_arrangements(x, 30, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    both = first.union(second)
    assert columns(both) == columns(first) | columns(second)
    assert not both.exact
    assert torch.equal(both.patterns, x @ both.gates > 0)
    assert both.union(everything).exact
    assert len(both.union(everything)) == 92
    with pytest.raises(ValueError, match="other data"):
        first.union(enumerate_arrangements(normal(9, 3)))


def test_a_network_on_boundaries_brings_both_sides() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).double()
    found = network_arrangements(x, torch.tensor([[0.0, 2.0], [0.0, 0.0]]))  # on the first hyperplane
    sides = torch.tensor([[1e-9, -1e-9], [1.0, 1.0]]).double()
    assert columns(found) == columns(Arrangements(x @ sides > 0, sides, exact=False))
    assert columns(found) <= columns(enumerate_arrangements(x))
    assert not found.exact


def test_bad_input() -> None:
    x = normal(5, 2)
    with pytest.raises(ValueError, match=r"^x must be a matrix"):
        enumerate_arrangements(torch.zeros(3))
    with pytest.raises(ValueError, match=r"^x must be a matrix"):
        enumerate_arrangements(torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"^x has 1 entries"):
        enumerate_arrangements(torch.tensor([[float("nan"), 1.0]]))
    with pytest.raises(ValueError, match="num_samples"):
        sample_arrangements(x, 0)
    with pytest.raises(ValueError, match="weight"):
        network_arrangements(x, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="no neuron"):
        network_arrangements(x, torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"^arrangements: 10 patterns of 5 samples with 2 features"):
        check_arrangements(enumerate_arrangements(x), normal(6, 2))

"""The nearest class mean against direct distances, and the bounded memory of a pass against all of its rows."""

import pytest
import torch
from torch import Tensor

from lit_papers.neural_collapse.decisions import _NearestMean
from lit_papers.neural_collapse.functional import ClassStatistics, class_statistics, nearest_class_mean
from lit_papers.neural_collapse.reservoir import Reservoir, stratified_share


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_distance(features: Tensor, stats: ClassStatistics) -> Tensor:
    """The plain reference: every distance, by differences, in float64."""
    parts = [
        torch.cdist(rows.double(), stats.means, compute_mode="donot_use_mm_for_euclid_dist")
        .masked_fill(stats.counts == 0, torch.inf)
        .argmin(dim=1)
        for rows in features.split(1000)
    ]
    return torch.cat(parts)


def clusters(number: int, classes: int, dim: int, noise: float, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    source = generator(classes)
    targets = torch.arange(number) % classes
    means = torch.randn(classes, dim, generator=source, dtype=torch.float64)
    rows = torch.randn(number, dim, generator=source, dtype=torch.float64)
    return offset + means[targets] + noise * rows, targets


CASES = {
    "apart": clusters(4000, 10, 16, 0.5),
    "overlapping": clusters(4000, 10, 16, 30.0),
    "deep collapse far from the origin": clusters(4000, 10, 16, 1e-6, offset=10.0),
    "means nearer than float32 can tell": clusters(4000, 10, 16, 0.5, offset=1e7),
    "tiny": (1e-22 * clusters(4000, 5, 8, 1.0)[0], clusters(4000, 5, 8, 1.0)[1]),
    "tinier than float32": (1e-42 * clusters(4000, 5, 8, 1.0)[0], clusters(4000, 5, 8, 1.0)[1]),
    "huge": (1e30 * clusters(4000, 5, 8, 1.0)[0], clusters(4000, 5, 8, 1.0)[1]),
    "one feature": clusters(4000, 7, 1, 2.0),
    "more features than a block of rows": clusters(50, 4, 1200, 3.0),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_decisions_are_those_of_the_distances(case: str, dtype: torch.dtype) -> None:
    features, targets = CASES[case]
    features = features.to(dtype)
    if not torch.isfinite(features).all():
        pytest.skip("does not fit this format")
    stats = class_statistics(features, targets, 10)
    assert torch.equal(nearest_class_mean(features, stats), by_distance(features, stats))


@pytest.mark.parametrize("number", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_ties_go_to_the_first_class_seen(number: int) -> None:
    """On a grid every distance is exact: many rows lie right between two or four means."""
    means = torch.tensor([[9.0, 9.0], [0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0], [0.0, 4.0]])
    stats = ClassStatistics(torch.tensor([0, 5, 5, 5, 5, 5]), means, torch.eye(2))
    rows = torch.randint(-2, 7, (number, 2), generator=generator()).float()
    nearest = nearest_class_mean(rows, stats)
    squares = (rows[:, None] - means).square().sum(dim=2)  # (N, C), whole numbers
    squares[:, 0] = torch.inf
    assert ((squares == squares.amin(dim=1, keepdim=True)).sum(dim=1) > 1).float().mean() > 0.2
    assert torch.equal(nearest, squares.argmin(dim=1))
    assert not (nearest == 5).any()  # its mean is that of class 3


@pytest.mark.slow
@pytest.mark.parametrize("noise", [1.0, 1e-6])
def test_a_million_decisions_of_a_hundred_classes(noise: float) -> None:
    features, targets = clusters(1_000_000, 100, 64, noise, offset=10.0)
    features = features.float()
    # Halfway between two rows of different classes, at the rounding of float32: as near to a tie as data come.
    features[::50] = (features[1::50] + features[2::50]) / 2
    stats = class_statistics(features, targets, 100)
    assert torch.equal(nearest_class_mean(features, stats), by_distance(features, stats))


@pytest.mark.parametrize("case", ["apart", "deep collapse far from the origin", "one feature"])
def test_few_rows_need_their_distances(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features, targets = CASES[case]
    measured: list[int] = []
    direct = _NearestMean._by_distance

    def counted(self: _NearestMean, rows: Tensor) -> Tensor:
        measured.append(len(rows))
        return direct(self, rows)

    monkeypatch.setattr(_NearestMean, "_by_distance", counted)
    nearest_class_mean(features.float(), class_statistics(features.float(), targets, 10))
    assert sum(measured) <= 2


def test_a_network_that_says_the_same_of_everything_costs_no_distances() -> None:
    features, targets = torch.full((3000, 8), 0.1), torch.arange(3000) % 100
    stats = class_statistics(features, targets, 100)
    assert len(_NearestMean(stats.means).candidates) == 1
    assert torch.equal(nearest_class_mean(features, stats), torch.zeros(3000, dtype=torch.int64))


def test_smaller_formats_of_training_do_not_touch_the_decisions() -> None:
    features, targets = CASES["overlapping"]
    features = features.float()
    stats = class_statistics(features, targets, 10)
    expected = nearest_class_mean(features, stats)
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(nearest_class_mean(features, stats), expected)
            again = class_statistics(features, targets, 10, residual_dtype=torch.float32)
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
    torch.testing.assert_close(again.within_scatter, stats.within_scatter, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_rows_that_are_not_finite_are_refused(bad: float, dtype: torch.dtype) -> None:
    features, targets = CASES["apart"]
    stats = class_statistics(features, targets, 10)
    features = features.to(dtype).clone()
    features[2000, 3] = bad
    with pytest.raises(ValueError, match="non-finite features"):
        nearest_class_mean(features, stats)
    constant = ClassStatistics(torch.ones(2), torch.zeros(2, 16), torch.zeros(16, 16))
    with pytest.raises(ValueError, match="non-finite features"):
        nearest_class_mean(features, constant)


def test_no_rows_have_no_decisions() -> None:
    stats = class_statistics(*CASES["apart"], 10)
    assert nearest_class_mean(torch.zeros(0, 16), stats).shape == (0,)


# The reservoir


def test_what_fits_is_kept_in_order() -> None:
    reservoir = Reservoir()
    rows, labels = torch.randn(500, 7, generator=generator()), torch.arange(500)
    reservoir.add(labels[:0], rows[:0])
    for start in range(0, 500, 64):
        reservoir.add(labels[start : start + 64], rows[start : start + 64].requires_grad_())
    assert (reservoir.seen, reservoir.kept) == (500, 500)
    held = reservoir.columns()
    assert torch.equal(held[0], labels)
    assert torch.equal(held[1], rows)
    assert not held[1].requires_grad


def test_memory_is_bounded_and_every_row_as_likely() -> None:
    """Two columns stay together, and each tenth of the pass fills a tenth of the places."""
    reservoir = Reservoir(limit_bytes=5000 * (8 + 4))
    for start in range(0, 100_000, 700):
        numbers = torch.arange(start, min(start + 700, 100_000))
        reservoir.add(numbers, numbers.float())
    numbers, copies = reservoir.columns()
    assert (reservoir.seen, reservoir.kept, len(numbers)) == (100_000, 5000, 5000)
    assert torch.equal(numbers.float(), copies)
    assert len(numbers.unique()) == 5000
    tenths = torch.bincount(numbers // 10_000, minlength=10)
    assert ((tenths - 500).abs() < 5 * (500 * 0.9) ** 0.5).all()


def test_the_reservoir_leaves_the_global_random_stream_alone() -> None:
    before = torch.get_rng_state()
    reservoir = Reservoir(limit_bytes=80)
    reservoir.add(torch.arange(1000))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_sampled_share_lies_within_its_error() -> None:
    hits = torch.rand(200_000, generator=generator(1)) < 0.03
    far = 0
    for seed in range(40):
        reservoir = Reservoir(limit_bytes=2000, seed=seed)
        for part in hits.split(5000):
            reservoir.add(part)
        kept = reservoir.columns()[0]
        share, error = stratified_share(kept.sum()[None], torch.tensor([reservoir.kept]), torch.tensor([200_000]))
        assert 0.002 < error < 0.006
        far += abs(share - hits.float().mean().item()) > 2 * error
    assert far <= 6  # one in twenty is expected


def test_shares_of_processes_are_weighed_by_their_samples() -> None:
    share, error = stratified_share(torch.tensor([10, 5, 0]), torch.tensor([100, 10, 0]), torch.tensor([900, 10, 0]))
    assert share == pytest.approx((900 * 0.1 + 10 * 0.5) / 910)
    guess = 11 / 102
    assert error == pytest.approx(900 / 910 * ((1 - 100 / 900) * guess * (1 - guess) / 100) ** 0.5)
    nothing = stratified_share(torch.zeros(2), torch.zeros(2), torch.zeros(2))
    assert all(value != value for value in nothing)
    assert stratified_share(torch.zeros(1), torch.tensor([10]), torch.tensor([1000]))[1] > 0.05


def test_the_reservoir_refuses() -> None:
    with pytest.raises(ValueError, match="limit_bytes must be at least 1, got 0"):
        Reservoir(limit_bytes=0)
    reservoir = Reservoir()
    with pytest.raises(ValueError, match=r"one length, got \[2, 3\]"):
        reservoir.add(torch.zeros(2), torch.zeros(3))
    reservoir.add(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="changed their shapes"):
        reservoir.add(torch.zeros(2, 4))

"""Effective rank, class-distance variance and the geometry of unbalanced classes, and shapes at the edge."""

import math

import pytest
import torch
from torch import Tensor

from lit_papers.neural_collapse.functional import (
    ClassStatistics,
    centered_class_means,
    class_distance_variance,
    class_mean_noise,
    class_statistics,
    effective_rank,
    least_squares_classifier,
    merge_statistics,
    mse_decomposition,
    nearest_class_mean,
    neural_collapse_measures,
    seli_deviation,
    simplex_etf,
    snr_singular_values,
    variability_collapse,
)
from lit_papers.neural_collapse.linear_algebra import cholesky_factor, range_basis
from lit_papers.neural_collapse.metrics import ClassStatisticsMetric


def sample(counts: list[int], dim: int, noise: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    targets = targets[torch.randperm(len(targets), generator=source)]
    means = torch.randn(len(counts), dim, generator=source, dtype=torch.float64)
    rows = torch.randn(len(targets), dim, generator=source, dtype=torch.float64)
    return means[targets] + noise * rows, targets


@pytest.mark.parametrize(("counts", "dim"), [([40, 30, 7], 6), ([3, 4, 0, 5], 100), ([9, 9], 1)])
def test_effective_rank_is_that_of_the_features(counts: list[int], dim: int) -> None:
    features, targets = sample(counts, dim)
    sizes = torch.linalg.svdvals(features - features.mean(dim=0))[: min(len(features) - 1, dim)]
    shares = sizes / sizes.sum()
    expected = (-(shares * shares.log()).sum()).exp().item()
    for shift in (0.0, 50.0):
        stats = class_statistics(features + shift, targets, len(counts))
        assert effective_rank(stats).item() == pytest.approx(expected, rel=1e-9)


def test_effective_rank_of_collapse_and_of_nothing() -> None:
    targets = torch.arange(5).repeat(4)
    frame = simplex_etf(5, 12, generator=torch.Generator().manual_seed(0))
    assert effective_rank(class_statistics(frame[targets] + 0.3, targets, 5)).item() == pytest.approx(4, rel=1e-12)
    assert effective_rank(class_statistics(torch.full((20, 12), 0.1), targets, 5)).isnan()


def test_class_distance_variance_is_the_mean_over_pairs() -> None:
    features, targets = sample([40, 0, 30, 7], 5)
    stats = class_statistics(features, targets, 4)
    pairs = []
    for a in (0, 2, 3):
        for b in (0, 2, 3):
            if a != b:
                first, second = features[targets == a], features[targets == b]
                variance = first.var(dim=0, correction=0).sum() + second.var(dim=0, correction=0).sum()
                pairs.append(variance / 2 / (first.mean(dim=0) - second.mean(dim=0)).square().sum())
    assert class_distance_variance(stats).item() == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-12)


def test_class_distance_variance_of_neighbours_among_distant_classes() -> None:
    """Two means 1e-6 apart and others 100 away: their distance out of inner products would be noise."""
    means = torch.tensor([[0.0, 0.0], [1e-6, 0.0], [100.0, 0.0], [0.0, 100.0]], dtype=torch.float64)
    shift = torch.tensor([0.0, 1e-7], dtype=torch.float64)
    targets = torch.arange(4).repeat(2)
    stats = class_statistics(torch.cat([means + shift, means - shift]), targets, 4)
    assert class_distance_variance(stats).item() == pytest.approx(1e-14 / 1e-12 / 6, rel=1e-6)


def test_class_distance_variance_says_when_it_does_not_know() -> None:
    features, targets = sample([4, 5], 3)
    stats = class_statistics(features, targets, 2)
    assert class_distance_variance(ClassStatistics(stats.counts, stats.means, stats.within_scatter)).isnan()
    same = class_statistics(torch.cat([features, features]), torch.arange(2).repeat_interleave(9), 2)
    assert class_distance_variance(same).isnan()


def test_class_scatter_adds_up_to_the_trace_and_merges() -> None:
    features, targets = sample([400, 1, 350], 6)
    stats = class_statistics(features + 100, targets, 3)
    assert stats.class_scatter is not None
    for c in range(3):
        rows = features[targets == c]
        assert stats.class_scatter[c].item() == pytest.approx(
            (rows - rows.mean(dim=0)).square().sum().item(), rel=1e-11, abs=1e-20
        )
    assert stats.class_scatter.sum().item() == pytest.approx(stats.within_scatter.trace().item(), rel=1e-12)
    parts = [class_statistics(f + 100, t, 3) for f, t in zip(features.split(200), targets.split(200), strict=True)]
    whole = parts[0]
    for part in parts[1:]:
        whole = merge_statistics(whole, part)
    assert whole.class_scatter is not None
    torch.testing.assert_close(whole.class_scatter, stats.class_scatter, rtol=1e-11, atol=1e-11)
    bare = ClassStatistics(stats.counts, stats.means, stats.within_scatter)
    assert merge_statistics(bare, stats).class_scatter is None
    with pytest.raises(ValueError, match=r"class_scatter must have shape \(3,\), got \(2,\)"):
        ClassStatistics(stats.counts, stats.means, stats.within_scatter, torch.zeros(2))


def seli(counts: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Means (C, d) and weights (C, d) out of the singular value decomposition of the encoded labels."""
    number = len(counts)
    labels = torch.eye(number, dtype=torch.float64).repeat_interleave(counts, dim=1)  # (C, N)
    left, sizes, right = torch.linalg.svd(labels - labels.mean(dim=0), full_matrices=False)
    left, sizes, right = left[:, :-1], sizes[:-1], right[:-1]  # rank C - 1
    normal = torch.randn(dim, number - 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rotation = torch.linalg.qr(normal).Q
    weights = left * sizes.sqrt() @ rotation.T
    features = (right.T * sizes.sqrt()) @ rotation.T  # (N, d); the same for all samples of a class
    return features[counts.cumsum(0) - 1], weights


@pytest.mark.parametrize("sizes", [[6, 6, 6, 6], [50, 5, 20, 1, 9]])
def test_the_geometry_of_unbalanced_classes(sizes: list[int]) -> None:
    counts = torch.tensor(sizes)
    means, weights = seli(counts, 8)
    logits = weights @ means.T
    encoded = torch.eye(len(sizes), dtype=torch.float64) - 1 / len(sizes)
    torch.testing.assert_close(logits / logits.norm(), encoded / encoded.norm(), rtol=0, atol=1e-12)
    seen = torch.cat([counts, torch.zeros(1, dtype=torch.int64)])  # a class never seen changes nothing
    assert seli_deviation(3 * means, seen, of="means") < 1e-12
    assert seli_deviation(weights, seen, of="weights") < 1e-12
    balanced = torch.full_like(counts, 10)
    assert (seli_deviation(means, balanced, of="means") < 1e-12) == (len(set(sizes)) == 1)


def test_the_geometry_refuses() -> None:
    with pytest.raises(ValueError, match="of must be 'means' or 'weights', got 'rows'"):
        seli_deviation(torch.eye(2), torch.ones(2), of="rows")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape \(3, 3\) and 2 classes seen"):
        seli_deviation(torch.eye(3), torch.ones(2), of="means")


# Linear algebra


def test_cholesky_is_refused_where_the_rule_for_singular_matrices_could_speak() -> None:
    source = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(20, 20, generator=source, dtype=torch.float64)).Q
    for exponent in range(0, 20):
        values = torch.logspace(0, -exponent, 20, dtype=torch.float64)
        matrix = (rotation * values) @ rotation.T
        factor = cholesky_factor((matrix + matrix.T) / 2)
        if factor is not None:
            assert exponent < 14
            torch.testing.assert_close(factor @ factor.T, matrix, rtol=0, atol=1e-15)
        else:
            assert exponent > 9
    assert cholesky_factor(-torch.eye(3, dtype=torch.float64)) is None


@pytest.mark.parametrize("lam", [0.0, 1e-3])
@pytest.mark.parametrize("bias", ["none", "decayed", "free"])
@pytest.mark.parametrize("noise", [1.0, 1e-4])
def test_more_features_than_samples_are_solved_in_the_span_of_the_samples(lam: float, bias: str, noise: float) -> None:
    """Against the same problem with a hundred features fewer than needed for it: rotated into the samples' span."""
    features, targets = sample([6, 9, 5], 120, noise)
    stats = class_statistics(features, targets, 3)
    assert range_basis(stats.within_scatter, 17, stats.means) is not None
    axes = torch.linalg.qr(features.T).Q  # (120, 20)
    small = class_statistics(features @ axes, targets, 3)
    with_bias, decayed = bias != "none", bias == "decayed"
    weight, offset = least_squares_classifier(stats, lam, bias=with_bias, decay_bias=decayed)
    other, other_offset = least_squares_classifier(small, lam, bias=with_bias, decay_bias=decayed)
    scale = other.norm().item() * (1e-9 if noise == 1 else 1e-6)  # the square of the noise is the condition
    torch.testing.assert_close(weight @ axes, other, rtol=0, atol=scale)
    torch.testing.assert_close(weight, weight @ axes @ axes.T, rtol=0, atol=scale)  # least norm
    if offset is not None and other_offset is not None:
        torch.testing.assert_close(offset, other_offset, rtol=0, atol=scale)
    trained = weight + 0.1 * torch.randn(3, 120, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    parts = mse_decomposition(stats, trained, offset, lam, decay_bias=decayed)
    assert parts["loss"].item() == pytest.approx((parts["ls"] + parts["perp"]).item(), rel=1e-9, abs=1e-12)
    assert snr_singular_values(stats).isnan().all()  # singular by count


# The residuals in float32


@pytest.mark.parametrize("offset", [0.0, 10.0])
@pytest.mark.parametrize("noise", [1.0, 1e-3, 1e-6])
def test_float32_products_keep_within_their_bound(noise: float, offset: float) -> None:
    features, targets = sample([700, 300, 900, 100], 40, noise)
    features = features + offset
    exact = class_statistics(features, targets, 4)
    quick = class_statistics(features, targets, 4, residual_dtype=torch.float32)
    metric = ClassStatisticsMetric(4, 40, residual_dtype=torch.float32)
    for rows, labels in zip(features.split(100), targets.split(100), strict=True):
        metric.update(rows, labels)
    diagonal = exact.within_scatter.diagonal()
    bound = 2 * (512 + 3) * 2**-24 * torch.outer(diagonal, diagonal).sqrt()
    for stats in (quick, metric.compute()):
        assert ((stats.within_scatter - exact.within_scatter).abs() <= bound).all()
        ours = neural_collapse_measures(stats, torch.eye(4, 40))
        theirs = neural_collapse_measures(exact, torch.eye(4, 40))
        assert ours["nc1"].item() == pytest.approx(theirs["nc1"].item(), rel=1e-6)
        torch.testing.assert_close(stats.means, exact.means, rtol=0, atol=1e-6 * noise + 1e-15 * offset)


@pytest.mark.parametrize("residual_dtype", [torch.float64, torch.float32])
def test_a_first_row_unlike_the_others_costs_no_digits(residual_dtype: torch.dtype) -> None:
    """The pilot is then far away, until it is moved: without that, 1e8 times the rounding would stay."""
    features, targets = sample([10_000, 10_000], 4)
    features[(targets == 0).nonzero()[0]] += 1e4
    stats = class_statistics(features, targets, 2, residual_dtype=residual_dtype)
    metric = ClassStatisticsMetric(2, 4, residual_dtype=residual_dtype)
    for rows, labels in zip(features.split(50), targets.split(50), strict=True):
        metric.update(rows, labels)
    residuals = features - torch.stack([features[targets == c].mean(dim=0) for c in range(2)])[targets]
    expected = residuals.T @ residuals
    tolerance = 1e-13 if residual_dtype == torch.float64 else 1e-5
    for found in (stats, metric.compute()):
        assert (found.within_scatter - expected).norm() <= tolerance * expected.norm()


def test_other_residuals_are_refused() -> None:
    with pytest.raises(ValueError, match=r"residual_dtype must be torch.float64 or torch.float32, got torch.bfloat16"):
        class_statistics(torch.zeros(2, 2), torch.tensor([0, 1]), 2, residual_dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="residual_dtype"):
        ClassStatisticsMetric(2, 2, residual_dtype=torch.float16)


# Shapes at the edge


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("classes", "number", "dim"),
    [
        (6, 60, 1), (6, 60, 2), (6, 60, 4), (6, 60, 5), (6, 40, 1500), (6, 4, 8), (2, 2, 1), (2, 2, 3), (50, 30, 48),
        pytest.param(6, 40, 5000, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_any_shape_gives_numbers_or_nan(classes: int, number: int, dim: int, dtype: torch.dtype) -> None:
    source = torch.Generator().manual_seed(0)
    targets = torch.arange(number) % classes
    features = (torch.randn(number, dim, generator=source) + targets[:, None]).to(dtype)
    weight, bias = torch.randn(classes, dim, generator=source), torch.zeros(classes)
    stats = class_statistics(features, targets, classes)
    measures = neural_collapse_measures(stats, weight)
    for name in ("nc1", "nc2_equinorm_means", "nc2_max_angle_means", "effective_rank", "cdnv"):
        assert math.isfinite(measures[name].item()), name
    assert measures["rank"] <= min(classes - 1, dim)
    assert measures["effective_rank"] <= min(dim, number - 1) + 1e-9
    for lam in (0.0, 1e-3):
        parts = mse_decomposition(stats, weight, bias, lam)
        assert parts["loss"].item() == pytest.approx((parts["ls"] + parts["perp"]).item(), rel=1e-8)
    assert snr_singular_values(stats).shape == (min(dim, min(classes, number) - 1),)
    assert nearest_class_mean(features, stats).shape == (number,)


def test_pure_scatter_is_told_from_collapse_by_few_samples() -> None:
    """Six samples a class in 512 directions look as if they had nearly collapsed: NC1 is below 1, not infinite."""
    for count in (6, 40, 300):
        targets = torch.arange(10).repeat_interleave(count)
        features = torch.randn(len(targets), 512, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
        stats = class_statistics(features, targets, 10)
        assert class_mean_noise(stats).item() == pytest.approx(1, abs=0.1)
    few = class_statistics(features[::50], targets[::50], 10)
    assert variability_collapse(stats) > 40 > 1 > variability_collapse(few)


def test_noise_of_class_means_is_what_more_samples_take_away() -> None:
    """NC1 of few samples, divided by one less the share, is that of many; unequal counts, classes that are not seen."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(6, 40, generator=generator, dtype=torch.float64)

    def of(counts: list[int]) -> ClassStatistics:
        targets = torch.arange(6).repeat_interleave(torch.tensor(counts))
        noise = torch.randn(len(targets), 40, generator=generator, dtype=torch.float64)
        return class_statistics(means[targets] + 2 * noise, targets, 7)

    few, many = of([5, 10, 15, 20, 5, 5]), of([20_000] * 6)
    share = class_mean_noise(few)
    by_hand = (1 - 1 / 6) * sum(4 * 40 / n for n in (5, 10, 15, 20, 5, 5))
    spread = (centered_class_means(few)).square().sum()
    assert share.item() == pytest.approx(by_hand / spread.item(), rel=0.15)  # the variance is estimated
    assert class_mean_noise(many) < 0.01
    truth = class_distance_variance(many).item()
    assert class_distance_variance(few).item() < 0.7 * truth
    assert class_distance_variance(few).item() / (1 - share.item()) == pytest.approx(truth, rel=0.25)


def test_noise_of_class_means_that_nobody_knows() -> None:
    targets = torch.arange(4)
    assert class_mean_noise(class_statistics(torch.randn(4, 3), targets, 4)).isnan(), "a sample a class"
    assert class_mean_noise(class_statistics(torch.ones(8, 3), targets.repeat(2), 4)).isnan(), "no spread"
    with pytest.raises(ValueError, match="at least two classes"):
        class_mean_noise(class_statistics(torch.randn(4, 3), 0 * targets, 4))

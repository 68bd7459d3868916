"""Statistics, measures and decomposition against definitions by sample, closed forms and invariances."""

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor

from lit_papers.neural_collapse.functional import (
    ClassStatistics,
    centered_class_means,
    class_statistics,
    equinorm,
    least_squares_classifier,
    max_equiangularity,
    merge_statistics,
    mse_decomposition,
    ncc_mismatch,
    neural_collapse_measures,
    regularization_strength,
    self_duality,
    simplex_etf,
    snr_singular_values,
    variability_collapse,
)

COUNTS = {
    "balanced": ([30] * 5, 8),
    "unbalanced with a singleton": ([60, 1, 7, 25, 40], 8),
    "fewer features than classes": ([20, 31, 9, 14, 26, 17], 3),
    "more features than samples": ([4, 6, 3], 20),
    "unseen class": ([12, 0, 33, 21], 6),
    "one feature": ([5, 9, 4], 1),
}
SCALARS = ("nc1", "nc1_over_c", "nc2_equinorm_means", "nc2_max_angle_means", "nc3_self_duality")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(counts: list[int], dim: int, seed: int = 0, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Shuffled features around random class means."""
    source = generator(seed)
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    targets = targets[torch.randperm(len(targets), generator=source)]
    means = torch.randn(len(counts), dim, generator=source, dtype=torch.float64)
    rows = torch.randn(len(targets), dim, generator=source, dtype=torch.float64)
    return means[targets] + noise * rows, targets


def by_definition(features: Tensor, targets: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, means and scatter, class by class."""
    counts = torch.stack([(targets == c).sum() for c in range(num_classes)]).double()
    means = torch.zeros(num_classes, features.shape[1], dtype=torch.float64)
    scatter = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64)
    for c in range(num_classes):
        if counts[c] > 0:
            rows = features[targets == c].double()
            means[c] = rows.mean(dim=0)
            scatter += (rows - means[c]).T @ (rows - means[c])
    return counts, means, scatter


def lstsq_by_sample(x: Tensor, y: Tensor, lam: float, bias: bool, decay_bias: bool) -> tuple[Tensor, Tensor]:
    """Ridge regression on all samples, the penalty as additional rows."""
    total, dim = x.shape
    if bias:
        x = torch.cat([x, torch.ones(total, 1, dtype=x.dtype)], dim=1)
    penalty = torch.full((x.shape[1],), lam, dtype=x.dtype)
    if bias and not decay_bias:
        penalty[-1] = 0
    rows = torch.cat([x / math.sqrt(total), penalty.sqrt().diag()])
    rhs = torch.cat([y / math.sqrt(total), torch.zeros(len(penalty), y.shape[1], dtype=x.dtype)])
    solution = torch.linalg.lstsq(rows, rhs, driver="gelsd", rcond=1e-12).solution.T
    return solution[:, :dim], solution[:, dim] if bias else torch.zeros(y.shape[1], dtype=x.dtype)


def hand_example() -> ClassStatistics:
    return class_statistics(torch.tensor([[1.0], [3.0], [-1.0], [-3.0]]), torch.tensor([0, 0, 1, 1]), 2)


# Statistics


@pytest.mark.parametrize("case", COUNTS)
def test_statistics_are_those_of_the_definition(case: str) -> None:
    counts, dim = COUNTS[case]
    features, targets = sample(counts, dim)
    stats = class_statistics(features, targets, len(counts))
    expected = by_definition(features, targets, len(counts))
    for ours, theirs in zip((stats.counts, stats.means, stats.within_scatter), expected, strict=True):
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert torch.equal(stats.within_scatter, stats.within_scatter.T)


def test_streaming_over_many_blocks_equals_one_sum() -> None:
    features, targets = sample([700, 3, 450], 7)
    stats = class_statistics(features, targets, 3)
    _, means, scatter = by_definition(features, targets, 3)
    torch.testing.assert_close(stats.means, means, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(stats.within_scatter, scatter, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_features_lose_nothing_more(dtype: torch.dtype) -> None:
    features, targets = sample([40, 50], 6)
    low = features.to(dtype)
    ours, exact = class_statistics(low, targets, 2), class_statistics(low.double(), targets, 2)
    assert torch.equal(ours.within_scatter, exact.within_scatter)
    assert ours.within_scatter.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int16])
def test_any_integer_dtype_labels(dtype: torch.dtype) -> None:
    features, targets = sample([4, 5], 2)
    assert torch.equal(
        class_statistics(features, targets.to(dtype), 2).means, class_statistics(features, targets, 2).means
    )


def test_arguments_are_left_alone_and_results_carry_no_graph() -> None:
    features, targets = sample([4, 5], 2)
    before = features.clone()
    features.requires_grad_()
    stats = class_statistics(features, targets, 2)
    assert torch.equal(features.detach(), before)
    assert not stats.means.requires_grad
    weight = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    assert not any(value.requires_grad for value in mse_decomposition(stats, weight).values())
    assert not any(value.requires_grad for value in neural_collapse_measures(stats, weight).values())


@pytest.mark.parametrize("order", ["left", "right", "tree"])
def test_merging_parts_equals_one_pass(order: str) -> None:
    features, targets = sample([300, 1, 40, 159], 5)
    features = features + 100
    one = class_statistics(features, targets, 4)
    parts = [
        class_statistics(f, t, 4)
        for f, t in zip(features.split([1, 99, 150, 250]), targets.split([1, 99, 150, 250]), strict=True)
    ]
    a, b, c, d = parts
    if order == "left":
        merged = merge_statistics(merge_statistics(merge_statistics(a, b), c), d)
    elif order == "right":
        merged = merge_statistics(a, merge_statistics(b, merge_statistics(c, d)))
    else:
        merged = merge_statistics(merge_statistics(d, b), merge_statistics(c, a))
    assert torch.equal(merged.counts, one.counts)
    torch.testing.assert_close(merged.means, one.means, rtol=1e-13, atol=0)
    scale = one.within_scatter.abs().max().item()
    torch.testing.assert_close(merged.within_scatter, one.within_scatter, rtol=0, atol=1e-12 * scale)


def test_record_is_immutable_readable_and_picklable() -> None:
    stats = hand_example()
    with pytest.raises(AttributeError, match="immutable"):
        stats.counts = torch.zeros(2)  # type: ignore[misc]
    with pytest.raises(AttributeError, match="immutable"):
        del stats.means
    with pytest.raises(AttributeError):
        stats.extra = 1  # type: ignore[attr-defined]
    for copied in (pickle.loads(pickle.dumps(stats)), copy.deepcopy(stats)):  # noqa: S301
        assert torch.equal(copied.within_scatter, stats.within_scatter)
    assert repr(stats) == "ClassStatistics(num_classes=2, num_features=1, num_samples=4, device='cpu')"


# The example done by hand


def test_hand_example_measures() -> None:
    stats = hand_example()
    measures = neural_collapse_measures(stats, torch.tensor([[0.25], [-0.25]]))
    assert measures["nc1"].item() == pytest.approx(0.25, abs=1e-14)
    assert measures["nc3_self_duality"].item() == pytest.approx(0, abs=1e-14)
    assert snr_singular_values(stats).square().item() == pytest.approx(8, rel=1e-14)


@pytest.mark.parametrize(
    ("lam", "weight", "bias", "parts"),
    [
        (0.0, 0.2, 0.5, {"loss": 0.0625, "ls": 0.05, "nc1": 0.04, "nc23": 0.01, "perp": 0.0125}),
        (
            1.0,
            1 / 6,
            1 / 4,
            {"loss": 3 / 8, "ls": 30 / 144, "nc1": 17 / 144, "nc23": 13 / 144, "perp": 1 / 6},
        ),
    ],
)
def test_hand_example_decomposition(lam: float, weight: float, bias: float, parts: dict[str, float]) -> None:
    stats = hand_example()
    w, b = least_squares_classifier(stats, lam)
    assert b is not None
    assert w.flatten().tolist() == pytest.approx([weight, -weight], abs=1e-14)
    assert b.tolist() == pytest.approx([bias, bias], abs=1e-14)
    ours = mse_decomposition(stats, torch.tensor([[0.25], [-0.25]]), torch.tensor([0.5, 0.5]), lam)
    assert {name: value.item() for name, value in ours.items()} == pytest.approx(parts, abs=1e-14)


# The decomposition


@pytest.mark.parametrize("bias", ["none", "decayed", "free"])
@pytest.mark.parametrize("lam", [0.0, 2.5e-4, 1e-2])
@pytest.mark.parametrize("case", COUNTS)
def test_decomposition_is_that_of_least_squares_on_samples(case: str, lam: float, bias: str) -> None:
    counts, dim = COUNTS[case]
    features, targets = sample(counts, dim)
    stats = class_statistics(features, targets, len(counts))
    y = torch.nn.functional.one_hot(targets, len(counts)).double()
    with_bias, decay_bias = bias != "none", bias == "decayed"
    w_ls, b_ls = least_squares_classifier(stats, lam, bias=with_bias, decay_bias=decay_bias)
    w_ref, b_ref = lstsq_by_sample(features, y, lam, with_bias, decay_bias)
    torch.testing.assert_close(w_ls, w_ref, rtol=0, atol=1e-10)
    assert (b_ls is None) == (not with_bias)
    if b_ls is not None:
        torch.testing.assert_close(b_ls, b_ref, rtol=0, atol=1e-10)

    weight = w_ref + 0.3 * torch.randn(w_ref.shape, generator=generator(7), dtype=torch.float64)
    offset = b_ref + 0.1 * torch.randn(len(counts), generator=generator(8), dtype=torch.float64) * with_bias

    def penalty(w: Tensor, b: Tensor) -> float:
        return (lam / 2 * (w.square().sum() + decay_bias * b.square().sum())).item()

    def mean_square(values: Tensor) -> float:
        return values.square().sum(dim=1).mean().item() / 2

    class_means = stats.means[targets]
    expected = {
        "loss": mean_square(features @ weight.T + offset - y) + penalty(weight, offset),
        "ls": mean_square(features @ w_ref.T + b_ref - y) + penalty(w_ref, b_ref),
        "nc1": mean_square((features - class_means) @ w_ref.T) + penalty(w_ref, b_ref),
        "nc23": mean_square(class_means @ w_ref.T + b_ref - y),
        "perp": mean_square(features @ (weight - w_ref).T + offset - b_ref) + penalty(weight - w_ref, offset - b_ref),
    }
    parts = mse_decomposition(stats, weight, offset if with_bias else None, lam, decay_bias=decay_bias)
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(expected, abs=1e-10)
    assert parts["ls"].item() == pytest.approx((parts["nc1"] + parts["nc23"]).item(), rel=1e-14)
    assert parts["loss"].item() == pytest.approx((parts["ls"] + parts["perp"]).item(), rel=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("lam", [0.0, 2.5e-4])
@pytest.mark.parametrize("noise", [1e-1, 1e-3, 1e-5])
def test_identity_holds_in_deep_collapse(noise: float, lam: float, offset: float) -> None:
    features, targets = sample([50, 20, 80], 32, noise=noise)
    stats = class_statistics(features + offset, targets, 3)
    weight, bias = least_squares_classifier(stats, lam, decay_bias=False)
    assert bias is not None
    away = 1e-2 * torch.randn(3, 32, generator=generator(3), dtype=torch.float64)
    weight, bias = weight + away, bias - away.sum(dim=1) * offset  # a shift that a network would absorb
    parts = mse_decomposition(stats, weight, bias, lam, decay_bias=False)
    assert parts["loss"].item() == pytest.approx((parts["ls"] + parts["perp"]).item(), rel=1e-12)
    assert parts["perp"] > 0


def test_perp_vanishes_at_the_least_squares_classifier() -> None:
    features, targets = sample([50, 20, 80], 8)
    stats = class_statistics(features, targets, 3)
    for lam in (0.0, 1e-2):
        parts = mse_decomposition(stats, *least_squares_classifier(stats, lam), lam)
        assert 0 <= parts["perp"] < 1e-28


@pytest.mark.parametrize("case", ["balanced", "unbalanced with a singleton", "unseen class"])
def test_least_squares_part_ignores_affine_maps(case: str) -> None:
    counts, dim = COUNTS[case]
    features, targets = sample(counts, dim)
    mixed = features @ torch.randn(dim, dim, generator=generator(4), dtype=torch.float64) + 5
    weight, bias = torch.zeros(len(counts), dim), torch.zeros(len(counts))
    first = mse_decomposition(class_statistics(features, targets, len(counts)), weight, bias)
    second = mse_decomposition(class_statistics(mixed, targets, len(counts)), weight, bias)
    for name in ("ls", "nc1", "nc23"):
        assert second[name].item() == pytest.approx(first[name].item(), rel=1e-10)


@pytest.mark.parametrize(("num_classes", "dim"), [(5, 9), (6, 3), (2, 1)])
def test_losses_follow_from_signal_to_noise(num_classes: int, dim: int) -> None:
    features, targets = sample([25] * num_classes, dim)
    stats = class_statistics(features, targets, num_classes)
    omega = snr_singular_values(stats)
    assert omega.shape == (min(dim, num_classes - 1),)
    assert (omega.diff() <= 0).all()
    w = torch.cat([omega, omega.new_zeros(num_classes - 1 - len(omega))]).square()
    parts = mse_decomposition(stats, torch.zeros(num_classes, dim), torch.zeros(num_classes))
    c = num_classes
    assert parts["ls"].item() == pytest.approx((1 / (c + w)).sum().item() / 2, rel=1e-12)
    assert parts["nc1"].item() == pytest.approx((w / (c + w) ** 2).sum().item() / 2, rel=1e-12)
    assert parts["nc23"].item() == pytest.approx((c / (c + w) ** 2).sum().item() / 2, rel=1e-12)


def test_signal_to_noise_of_a_singular_covariance_is_nan() -> None:
    features, targets = sample([10, 12, 9], 4)
    features[:, 3] = features[:, 0]
    omega = snr_singular_values(class_statistics(features, targets, 3))
    assert omega.shape == (2,)
    assert omega.isnan().all()
    dead = class_statistics(torch.zeros(4, 3), torch.tensor([0, 1, 0, 1]), 2)
    assert snr_singular_values(dead).isnan().all()


def test_regularization_strength_matches_the_minimiser_of_the_training_loss() -> None:
    features, targets = sample([20, 30, 10], 4)
    stats = class_statistics(features, targets, 3)
    y = torch.nn.functional.one_hot(targets, 3).double()
    for reduction, divisor in (("mean", y.numel()), ("batchmean", len(y))):
        lam = regularization_strength(0.01, 3, reduction)
        weight, bias = least_squares_classifier(stats, lam)
        assert bias is not None
        weight.requires_grad_()
        bias.requires_grad_()
        loss = (features @ weight.T + bias - y).square().sum() / divisor
        grads = torch.autograd.grad(loss, (weight, bias))
        for parameter, gradient in zip((weight, bias), grads, strict=True):
            torch.testing.assert_close(gradient + 0.01 * parameter, torch.zeros_like(parameter), rtol=0, atol=1e-14)


# The measures


def test_nc1_is_the_trace_with_a_pseudo_inverse() -> None:
    for counts, dim in (COUNTS["unbalanced with a singleton"], COUNTS["fewer features than classes"]):
        features, targets = sample(counts, dim)
        stats = class_statistics(features, targets, len(counts))
        means = stats.means - stats.means.mean(dim=0)
        between = means.T @ means / len(counts)
        within = stats.within_scatter / len(targets)
        expected = torch.trace(within @ torch.linalg.pinv(between, rtol=1e-12, hermitian=True)).item()
        assert variability_collapse(stats).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("num_classes", "dim"), [(2, 1), (3, 2), (4, 4), (10, 30)])
def test_exact_collapse_measures_zero(num_classes: int, dim: int) -> None:
    frame = simplex_etf(num_classes, dim, generator=generator())
    targets = torch.arange(num_classes).repeat(3)
    features = 2.5 * frame[targets] + 0.7
    stats = class_statistics(features, targets, num_classes)
    measures = neural_collapse_measures(stats, centered_class_means(stats))
    assert measures.pop("rank") == num_classes - 1
    assert measures.pop("num_classes_seen") == num_classes
    assert measures.pop("effective_rank").item() == pytest.approx(num_classes - 1, rel=1e-12)
    assert {name: value.item() for name, value in measures.items()} == pytest.approx(
        dict.fromkeys(measures, 0.0), abs=1e-12
    )
    assert ncc_mismatch(features, features @ frame.T, stats) == 0


def test_plane_simplex_with_noise_in_one_direction() -> None:
    eps = 0.03
    angles = 2 * math.pi * torch.arange(3, dtype=torch.float64) / 3
    means = torch.stack([angles.cos(), angles.sin()], dim=1)
    shift = torch.tensor([0.0, eps], dtype=torch.float64)
    features, targets = torch.cat([means + shift, means - shift]), torch.arange(3).repeat(2)
    measures = neural_collapse_measures(class_statistics(features, targets, 3), means)
    assert measures["nc1"].item() == pytest.approx(2 * eps**2, rel=1e-12)
    for name in ("nc2_equinorm_means", "nc2_max_angle_means", "nc3_self_duality"):
        assert measures[name].item() == pytest.approx(0, abs=1e-12)


def test_measures_see_neither_rotation_nor_shift_nor_scale_nor_order() -> None:
    counts, dim = COUNTS["unbalanced with a singleton"]
    features, targets = sample(counts, dim)
    weight = torch.randn(len(counts), dim, generator=generator(5), dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator(6), dtype=torch.float64)).Q
    relabel = torch.tensor([3, 0, 4, 1, 2])
    changed_weight = torch.empty_like(weight)
    changed_weight[relabel] = 7 * weight @ rotation
    shuffled = torch.randperm(len(targets), generator=generator(7))
    changed = (3 * features @ rotation + 2)[shuffled], relabel[targets][shuffled]
    first = neural_collapse_measures(class_statistics(features, targets, 5), weight)
    second = neural_collapse_measures(class_statistics(*changed, 5), changed_weight)
    assert {k: v.item() for k, v in second.items()} == pytest.approx({k: v.item() for k, v in first.items()}, rel=1e-10)


def test_unseen_classes_are_left_out_of_every_measure() -> None:
    features, targets = sample([20, 30, 25], 6)
    weight = torch.randn(3, 6, generator=generator(1), dtype=torch.float64)
    few = neural_collapse_measures(class_statistics(features, targets, 3), weight)
    wide = torch.cat([weight[:1], torch.full((1, 6), 100.0), weight[1:]])
    labels = torch.tensor([0, 2, 3])[targets]
    stats = class_statistics(features, labels, 4)
    many = neural_collapse_measures(stats, wide)
    assert {k: v.item() for k, v in many.items()} == pytest.approx({k: v.item() for k, v in few.items()}, rel=1e-13)
    assert many["num_classes_seen"] == 3
    assert centered_class_means(stats).shape == (3, 6)
    # Features at the origin, where an unseen class would have its mean if zeros were taken for one.
    assert ncc_mismatch(torch.zeros(1, 6), torch.tensor([[0.0, 1.0, 0.0, 0.0]]), stats) == 1


def test_coinciding_class_means_reduce_the_rank_and_leave_nc1_finite() -> None:
    source = generator()
    means = torch.randn(4, 16, generator=source, dtype=torch.float64)
    means[3] = means[2]
    targets = torch.arange(4).repeat_interleave(50)
    noise = torch.randn(25, 16, generator=source, dtype=torch.float64)
    for offset in (0.0, 1e3, 1e6):
        features = means[targets] + torch.cat([noise, -noise]).repeat(4, 1) + offset
        measures = neural_collapse_measures(class_statistics(features, targets, 4), torch.eye(4, 16))
        assert measures["rank"] == 2
        assert 0 < measures["nc1"] < 100


def test_means_that_all_coincide_are_not_called_collapsed() -> None:
    rows = torch.randn(10, 3, generator=generator())
    stats = class_statistics(torch.cat([rows, rows]), torch.arange(2).repeat_interleave(10), 2)
    measures = neural_collapse_measures(stats, torch.eye(2, 3))
    assert measures["rank"] == 0
    assert measures["nc1"].isnan()


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
def test_nc1_keeps_its_digits_far_from_the_origin(offset: float) -> None:
    """Values on a binary grid, so that the same features can be written near and far without rounding."""
    features, targets = sample([40] * 10, 64, noise=1e-4)
    features = (features * 2**30).round() / 2**30
    near = variability_collapse(class_statistics(features, targets, 10)).item()
    far = variability_collapse(class_statistics(features + offset, targets, 10)).item()
    assert near < 1e-5
    assert far == pytest.approx(near, rel=max(1e-13, offset * 1e-11))
    assert neural_collapse_measures(class_statistics(features + offset, targets, 10), torch.eye(10, 64))["rank"] == 9


@pytest.mark.parametrize("noise", [1e-3, 1e-6, 1e-9])
def test_nc1_keeps_its_digits_in_deep_collapse(noise: float) -> None:
    """nc1 of +-noise around fixed means scales with the square of the noise."""
    means = torch.randn(4, 8, generator=generator(2), dtype=torch.float64)
    direction = torch.randn(8, generator=generator(3), dtype=torch.float64)
    targets = torch.arange(4).repeat(2)

    def nc1(scale: float) -> float:
        features = torch.cat([means + scale * direction, means - scale * direction])
        return variability_collapse(class_statistics(features, targets, 4)).item()

    assert nc1(noise) == pytest.approx(nc1(1.0) * noise**2, rel=max(1e-12, 1e-15 / noise))


def test_centring_the_classifier_matches_an_orthogonal_frame() -> None:
    frame = torch.eye(4, 6, dtype=torch.float64)
    targets = torch.arange(4).repeat(3)
    stats = class_statistics(frame[targets], targets, 4)
    assert self_duality(frame, stats) > 0.1
    assert self_duality(frame, stats, center_classifier=True) < 1e-25
    centred = neural_collapse_measures(stats, frame, center_classifier=True)
    assert centred["nc3_self_duality"] < 1e-25
    assert centred["nc2_max_angle_weights"] < 1e-14
    assert neural_collapse_measures(stats, frame)["nc2_max_angle_weights"].item() == pytest.approx(1 / 3)


def test_equinorm_and_angles_by_hand() -> None:
    vectors = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    assert equinorm(vectors).item() == pytest.approx(0.5)
    # cosines 0, 0 and 1, all beside -1/2
    assert max_equiangularity(vectors).item() == pytest.approx((0.5 + 0.5 + 1.5) / 3)
    assert max_equiangularity(torch.tensor([[1.0, 0.0], [0.0, 0.0]])).isnan()


def test_ncc_mismatch_is_the_share_of_a_loop() -> None:
    features, targets = sample([200, 150, 0, 250], 3)
    stats = class_statistics(features, targets, 4)
    logits = torch.randn(len(features), 4, generator=generator(9))
    different = 0
    for row, scores in zip(features, logits, strict=True):
        distances = [(row - mean).norm().item() for mean in stats.means]
        distances[2] = math.inf
        different += distances.index(min(distances)) != scores.argmax().item()
    assert ncc_mismatch(features, logits, stats).item() == different / len(features)


def test_ncc_mismatch_resolves_collapsed_classes() -> None:
    """Two classes 1e-9 apart, 100 from the origin: a matrix product has no digits left for them."""
    means = torch.full((2, 8), 100.0, dtype=torch.float64)
    means[1, 0] += 1e-9
    stats = class_statistics(means, torch.arange(2), 2)
    assert ncc_mismatch(means, torch.eye(2), stats) == 0
    assert ncc_mismatch(means, 1 - torch.eye(2), stats) == 1


@pytest.mark.parametrize(("num_classes", "dim"), [(2, 1), (2, 5), (4, 3), (10, 64)])
def test_simplex_etf(num_classes: int, dim: int) -> None:
    frame = simplex_etf(num_classes, dim, generator=generator(1))
    assert frame.shape == (num_classes, dim)
    c = num_classes
    gram = torch.eye(c, dtype=torch.float64) * c / (c - 1) - 1 / (c - 1)
    torch.testing.assert_close(frame @ frame.T, gram, rtol=0, atol=1e-14)
    assert torch.equal(frame, simplex_etf(num_classes, dim, generator=generator(1)))
    if dim > 1:
        assert not torch.allclose(frame, simplex_etf(num_classes, dim, generator=generator(2)))


# Bad input

GOOD = (torch.zeros(3, 2), torch.tensor([0, 1, 1]))


@pytest.mark.parametrize(
    ("features", "targets", "error", "message"),
    [
        (torch.zeros(3), GOOD[1], ValueError, r"features \(N, d\).*\(3,\) and \(3,\)"),
        (torch.zeros(3, 2, 1), GOOD[1], ValueError, r"\(3, 2, 1\)"),
        (torch.zeros(3, 0), GOOD[1], ValueError, r"\(3, 0\)"),
        (torch.zeros(4, 2), GOOD[1], ValueError, r"\(4, 2\) and \(3,\)"),
        (torch.zeros(3, 2, dtype=torch.int64), GOOD[1], TypeError, "features must be of a floating dtype"),
        (GOOD[0], GOOD[1].float(), TypeError, "targets.*integer.*float32"),
        (GOOD[0], GOOD[1].bool(), TypeError, "targets.*integer.*bool"),
        (GOOD[0], torch.tensor([0, 2, 1]), ValueError, r"\[0, 2\), got 2"),
        (GOOD[0], torch.tensor([0, -1, 1]), ValueError, r"\[0, 2\), got -1"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), ValueError, "no samples"),
        (torch.tensor([[1.0], [math.nan]]), torch.tensor([0, 1]), ValueError, "non-finite features"),
        (torch.tensor([[1.0], [math.inf]]), torch.tensor([0, 1]), ValueError, "non-finite features"),
    ],
)
def test_statistics_refuse(features: Tensor, targets: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        class_statistics(features, targets, 2)


def test_statistics_refuse_no_class() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        class_statistics(*GOOD, 0)


def test_records_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2,\), \(3, 2\) and \(2, 2\)"):
        ClassStatistics(torch.ones(2), torch.zeros(3, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="counts must be >= 0"):
        ClassStatistics(torch.tensor([-1.0, 2]), torch.zeros(2, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"\(2, 1\) and \(2, 2\)"):
        merge_statistics(hand_example(), class_statistics(*GOOD, 2))


def test_fewer_than_two_classes_are_refused_by_every_measure() -> None:
    stats = class_statistics(torch.randn(4, 2), torch.ones(4, dtype=torch.int64), 3)
    weight = torch.zeros(3, 2)
    for call in (
        lambda: centered_class_means(stats),
        lambda: variability_collapse(stats),
        lambda: self_duality(weight, stats),
        lambda: ncc_mismatch(torch.zeros(1, 2), torch.zeros(1, 3), stats),
        lambda: neural_collapse_measures(stats, weight),
        lambda: snr_singular_values(stats),
    ):
        with pytest.raises(ValueError, match="at least two classes, got samples of 1"):
            call()
    for vectors in (torch.zeros(1, 2), torch.zeros(3)):
        with pytest.raises(ValueError, match="at least two rows"):
            equinorm(vectors)
        with pytest.raises(ValueError, match="at least two rows"):
            max_equiangularity(vectors)


def test_classifiers_that_do_not_fit_are_refused() -> None:
    stats = class_statistics(*GOOD, 2)
    wrong = torch.zeros(2, 3)
    for call in (
        lambda: self_duality(wrong, stats),
        lambda: neural_collapse_measures(stats, wrong),
        lambda: mse_decomposition(stats, wrong),
    ):
        with pytest.raises(ValueError, match=r"weight must have shape \(2, 2\), got \(2, 3\)"):
            call()
    with pytest.raises(ValueError, match=r"bias must have shape \(2,\), got \(3,\)"):
        mse_decomposition(stats, torch.zeros(2, 2), torch.zeros(3))
    for lam in (-1e-3, math.nan, math.inf):
        with pytest.raises(ValueError, match="lam must be finite and >= 0"):
            mse_decomposition(stats, torch.zeros(2, 2), lam=lam)
        with pytest.raises(ValueError, match="lam must be finite and >= 0"):
            least_squares_classifier(stats, lam)


def test_ncc_mismatch_refuses() -> None:
    stats = class_statistics(*GOOD, 2)
    with pytest.raises(ValueError, match=r"got shapes \(3, 2\) and \(3, 4\)"):
        ncc_mismatch(GOOD[0], torch.zeros(3, 4), stats)
    with pytest.raises(ValueError, match="no samples"):
        ncc_mismatch(torch.zeros(0, 2), torch.zeros(0, 2), stats)
    with pytest.raises(ValueError, match="non-finite features"):
        ncc_mismatch(torch.full((1, 2), math.nan), torch.zeros(1, 2), stats)
    with pytest.raises(ValueError, match="logits must not be NaN"):
        ncc_mismatch(torch.zeros(1, 2), torch.full((1, 2), math.nan), stats)


def test_other_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="'mean' or 'batchmean', got 'sum'"):
        regularization_strength(5e-4, 10, "sum")
    with pytest.raises(ValueError, match="weight_decay must be finite and >= 0, got -1"):
        regularization_strength(-1, 10)
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        regularization_strength(5e-4, 0)
    with pytest.raises(ValueError, match="num_features must be at least num_classes - 1 = 3, got 2"):
        simplex_etf(4, 2)
    with pytest.raises(ValueError, match="num_classes must be at least 2"):
        simplex_etf(1, 2)

"""The accumulating metric against one call of the function, in one process and in two."""

import copy
import math
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lit_papers.neural_collapse.functional import (
    ClassStatistics,
    class_statistics,
    merge_statistics,
    variability_collapse,
)
from lit_papers.neural_collapse.metrics import ClassStatisticsMetric
from tests.warm import warm

ROOT = Path(__file__).parents[2]
NUM_CLASSES, DIM = 4, 6


def data(number: int = 500, offset: float = 10.0) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    targets = torch.randint(NUM_CLASSES, (number,), generator=source)
    means = torch.randn(NUM_CLASSES, DIM, generator=source, dtype=torch.float64)
    rows = torch.randn(number, DIM, generator=source, dtype=torch.float64)
    return offset + means[targets] + 0.1 * rows, targets


def metric_of(*batches: tuple[Tensor, Tensor]) -> ClassStatisticsMetric:
    metric = ClassStatisticsMetric(NUM_CLASSES, DIM)
    for features, targets in batches:
        metric.update(features, targets)
    return metric


def batches(size: int = 70) -> list[tuple[Tensor, Tensor]]:
    features, targets = data()
    return list(zip(features.split(size), targets.split(size), strict=True))


def assert_same(ours: ClassStatistics, expected: ClassStatistics) -> None:
    assert torch.equal(ours.counts, expected.counts)
    torch.testing.assert_close(ours.means, expected.means, rtol=1e-12, atol=0)
    scale = expected.within_scatter.abs().max().item()
    torch.testing.assert_close(ours.within_scatter, expected.within_scatter, rtol=0, atol=1e-12 * scale)


def test_batches_equal_one_call() -> None:
    assert_same(metric_of(*batches()).compute(), class_statistics(*data(), NUM_CLASSES))


def test_order_of_batches_and_samples_does_not_matter() -> None:
    expected = class_statistics(*data(), NUM_CLASSES)
    assert_same(metric_of(*reversed(batches())).compute(), expected)
    features, targets = data()
    by_class = targets.argsort()
    in_order = features[by_class], targets[by_class]
    assert_same(metric_of(*zip(*(part.split(33) for part in in_order), strict=True)).compute(), expected)
    assert_same(metric_of(*batches(1)).compute(), expected)


def test_forward_returns_the_batch_and_accumulates_the_whole() -> None:
    metric = ClassStatisticsMetric(NUM_CLASSES, DIM)
    for features, targets in batches():
        assert_same(metric(features, targets), class_statistics(features, targets, NUM_CLASSES))
    assert_same(metric.compute(), class_statistics(*data(), NUM_CLASSES))


def test_merge_state_and_reset() -> None:
    first, second = metric_of(*batches()[:2]), metric_of(*batches()[2:])
    expected = merge_statistics(first.compute(), second.compute())
    first.merge_state(second)
    assert_same(first.compute(), expected)
    assert_same(first.compute(), class_statistics(*data(), NUM_CLASSES))
    first.reset()
    first.update(*batches()[0])
    assert_same(first.compute(), class_statistics(*batches()[0], NUM_CLASSES))


def test_an_empty_batch_changes_nothing() -> None:
    metric = metric_of(*batches())
    before = metric.moments.clone()
    metric.update(torch.zeros(0, DIM), torch.zeros(0, dtype=torch.int64))
    assert torch.equal(metric.moments, before)


def test_result_does_not_change_with_later_updates() -> None:
    metric = metric_of(batches()[0])
    stats = metric.compute()
    before = stats.means.clone()
    metric.update(*batches()[1])
    assert torch.equal(stats.means, before)


def test_pickling_and_copying_keep_the_state() -> None:
    metric = metric_of(*batches()[:3])
    for copied in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric), metric.clone()):  # noqa: S301
        copied.update(*batches()[3])
        assert_same(copied.compute(), metric_of(*batches()[:4]).compute())


def test_one_feature_keeps_its_shapes() -> None:
    """torchmetrics squeezes one-element tensors where it finds them."""
    metric = ClassStatisticsMetric(1, 1)
    stats = metric(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]))
    assert (stats.counts.shape, stats.means.shape, stats.within_scatter.shape) == ((1,), (1, 1), (1, 1))
    assert metric.compute().within_scatter.tolist() == [[2.0]]


@pytest.mark.parametrize("cast", ["bfloat16", "half", "to_bfloat16", "to_half", "float", "set_dtype"])
def test_casting_a_parent_module_keeps_float64_digits(cast: str) -> None:
    expected = metric_of(*batches()).compute()
    metric = metric_of(*batches()[:3])
    parent = nn.ModuleDict({"head": nn.Linear(2, 2), "metric": metric})
    if cast == "set_dtype":
        metric.set_dtype(torch.float16)
    elif cast.startswith("to_"):
        parent.to(torch.bfloat16 if cast == "to_bfloat16" else torch.float16)
    else:
        getattr(parent, cast)()
    assert metric.moments.dtype == torch.float64
    for features, targets in batches()[3:]:
        metric.update(features, targets)
    ours = metric.compute()
    parent.to(torch.bfloat16)
    assert ours.within_scatter.dtype == metric.compute().within_scatter.dtype == torch.float64
    assert_same(ours, expected)
    metric.reset()
    assert metric.moments.dtype == torch.float64


def test_module_still_moves_between_devices() -> None:
    metric = ClassStatisticsMetric(NUM_CLASSES, DIM).to("meta")
    assert metric.moments.device.type == metric.device.type == "meta"


def test_deep_collapse_keeps_its_digits_over_many_batches() -> None:
    features, targets = data(4000, offset=0.0)
    means = torch.stack([features[targets == c].mean(dim=0) for c in range(NUM_CLASSES)])
    features = 5 + means[targets] + 1e-5 * (features - means[targets])
    exact = class_statistics(features, targets, NUM_CLASSES)
    metric = metric_of(*zip(features.split(32), targets.split(32), strict=True))
    ours, expected = variability_collapse(metric.compute()).item(), variability_collapse(exact).item()
    assert expected < 1e-10
    assert ours == pytest.approx(expected, rel=1e-9)


def test_low_precision_features_are_upcast_before_subtraction() -> None:
    features, targets = data()
    low = features.bfloat16()
    parts = zip(low.split(70), targets.split(70), strict=True)
    assert_same(metric_of(*parts).compute(), class_statistics(low.double(), targets, NUM_CLASSES))


def test_inference_mode_and_autograd_can_alternate() -> None:
    parts = batches()
    metric = ClassStatisticsMetric(NUM_CLASSES, DIM)
    with torch.inference_mode():
        metric.reset()
        metric(*parts[0])
    metric.update(parts[1][0].clone().requires_grad_(), parts[1][1])
    with torch.inference_mode():
        metric.update(*parts[2])
    metric(parts[3][0].clone().requires_grad_(), parts[3][1])
    assert not metric.moments.requires_grad
    assert_same(metric.compute(), metric_of(*parts[:4]).compute())


def test_update_refuses_what_cannot_be_counted() -> None:
    metric = ClassStatisticsMetric(2, 3)
    labels = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"\[0, 2\), got 5"):
        metric.update(torch.zeros(2, 3), torch.tensor([0, 5]))
    with pytest.raises(TypeError, match="integer"):
        metric.update(torch.zeros(2, 3), labels.float())
    with pytest.raises(TypeError, match="floating"):
        metric.update(torch.zeros(2, 3, dtype=torch.int64), labels)
    with pytest.raises(ValueError, match=r"\(B, 3\), got \(2, 4\)"):
        metric.update(torch.zeros(2, 4), labels)
    with pytest.raises(ValueError, match=r"\(3, 3\) and \(2,\)"):
        metric.update(torch.zeros(3, 3), labels)
    assert metric.moments.count_nonzero() == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_features_are_reported_by_compute_only(bad: float) -> None:
    metric = metric_of(*batches()[:2])
    metric.update(torch.full((1, DIM), bad), torch.tensor([1]))
    metric.update(*batches()[2])
    with pytest.raises(ValueError, match="non-finite features"):
        metric.compute()
    metric.reset()
    metric.update(*batches()[0])
    assert_same(metric.compute(), class_statistics(*batches()[0], NUM_CLASSES))


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")
def test_no_samples_and_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        ClassStatisticsMetric(2, 3).compute()
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        ClassStatisticsMetric(0, 3)
    with pytest.raises(ValueError, match="num_features must be at least 1, got 0"):
        ClassStatisticsMetric(2, 0)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Uneven shards, and a class that only the second process sees."""
    features, targets = data()
    mine = torch.zeros(500, dtype=torch.bool)
    mine[:130] = True
    mine &= targets != 2
    shards = [(features[mine], targets[mine]), (features[~mine], targets[~mine])]
    torch.save(shards, tmp_path / "shards.pt")

    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "GLOO_SOCKET_IFNAME": "lo",  # a host name that does not resolve must not matter
        "OMP_NUM_THREADS": "1",
    }
    worker = str(Path(__file__).with_name("gloo_worker.py"))
    first, second = (warm([worker, str(rank), "2", str(tmp_path)], tmp_path, environment) for rank in range(2))
    with first as one, second as two:
        said = [process.communicate(timeout=240) for process in (one, two)]
    assert [one.returncode, two.returncode] == [0, 0], said

    once, again, idle = zip(
        *(torch.load(tmp_path / f"result{rank}.pt", weights_only=False) for rank in range(2)), strict=True
    )
    for rank in range(2):
        assert_same(once[rank], class_statistics(features, targets, NUM_CLASSES))
        assert once[rank].counts.sum() == 500
        assert_same(again[rank], class_statistics(features.repeat(2, 1), targets.repeat(2), NUM_CLASSES))
        assert_same(idle[rank], class_statistics(*shards[0], NUM_CLASSES))
        assert torch.equal(once[rank].within_scatter, once[0].within_scatter)

"""The matrix of Chaudhry et al.'s kind, worked by hand, and what is left out where numbers are missing."""

import pytest
import torch

from lit_papers.continual.metrics import (
    TaskAccuracy,
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
)

MATRIX = torch.tensor([[90, 40, 30], [92, 85, 35], [70, 95, 88]], dtype=torch.float64) / 100
BASELINE = torch.tensor([50, 45, 33], dtype=torch.float64) / 100
NAN = torch.nan


def test_closed_forms() -> None:
    before = MATRIX.clone()
    assert average_accuracy(MATRIX).item() == pytest.approx(0.843333, abs=1e-6)
    assert forgetting(MATRIX).item() == pytest.approx(0.11)
    assert forgetting(MATRIX, "max_past").item() == pytest.approx(0.06)
    assert forgetting(MATRIX, "first").item() == pytest.approx(0.05)
    assert backward_transfer(MATRIX).item() == pytest.approx(-0.05)
    assert forward_transfer(MATRIX, BASELINE).item() == pytest.approx(-0.015)
    assert average_incremental_accuracy(MATRIX).item() == pytest.approx(0.876111, abs=1e-6)
    assert torch.equal(MATRIX, before)
    for given in (MATRIX.tolist(), MATRIX.numpy()):
        assert forgetting(given).item() == pytest.approx(0.11)
        assert forward_transfer(given, BASELINE).item() == pytest.approx(-0.015)


@pytest.mark.parametrize("given", [MATRIX[:2], torch.cat([MATRIX[:2], torch.full((1, 3), NAN)])])
def test_now_is_the_last_row_with_a_number(given: torch.Tensor) -> None:
    assert average_accuracy(given).item() == pytest.approx((0.92 + 0.85) / 2)
    assert forgetting(given).item() == pytest.approx(0.0)
    assert forgetting(given, "max_past").item() == pytest.approx(-0.02)
    assert forward_transfer(given, BASELINE).item() == pytest.approx(0.40 - 0.45)


def test_one_task_forgets_nothing() -> None:
    first = MATRIX[:1]
    assert forgetting(first).item() == backward_transfer(first).item() == forward_transfer(first, BASELINE).item() == 0


def test_a_missing_row_is_left_out() -> None:
    skipped = MATRIX.clone()
    skipped[1] = NAN
    assert forgetting(skipped).item() == pytest.approx((0.20 + 0.0) / 2)
    assert forgetting(skipped, "first").item() == pytest.approx(0.20)
    assert average_incremental_accuracy(skipped).item() == pytest.approx((0.90 + 0.843333) / 2, abs=1e-6)
    assert forward_transfer(skipped, BASELINE).isnan()
    only_last = torch.full((3, 3), NAN)
    only_last[2] = MATRIX[2].float()
    assert forgetting(only_last).item() == 0
    assert forgetting(only_last, "first").isnan()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="max, max_past, first"):
        forgetting(MATRIX, "mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no number"):
        average_accuracy(torch.full((3, 3), NAN))
    with pytest.raises(ValueError, match="first rows"):
        average_accuracy(MATRIX[:, :2])
    with pytest.raises(ValueError, match="each of 3 tasks, got 2"):
        forward_transfer(MATRIX, [0.5, 0.5])
    with pytest.raises(ValueError, match="num_tasks"):
        TaskAccuracy(0)
    with pytest.raises(ValueError, match=r"`task` must be in 0\.\.1, got 2"):
        TaskAccuracy(2).update(torch.zeros(1), torch.zeros(1), after=0, task=2)
    with pytest.raises(ValueError, match="one shape"):
        TaskAccuracy(2).update(torch.zeros(1), torch.zeros(2), after=0, task=0)


def test_task_accuracy_counts_over_batches() -> None:
    metric = TaskAccuracy(2)
    metric.update(torch.tensor([7, 7]), torch.tensor([7, 8]), after=1, task=0)
    metric.update(torch.tensor([8, 8]), torch.tensor([8, 8]), after=1, task=0)
    found = metric.compute()
    assert found[1, 0].item() == 0.75
    assert found.isnan().sum() == 3

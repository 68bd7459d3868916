"""What `reproduce` computes beside trainings, at a small size."""

from __future__ import annotations

import pytest
import torch

from lit_papers.neural_collapse import claims


@pytest.mark.parametrize("balanced", [True, False])
def test_the_loss_is_the_sum_of_its_parts(balanced: bool) -> None:
    found = claims.decomposition(0, num_classes=3, num_features=4, samples=60, balanced=balanced, trials=5)
    assert found["error"] < 1e-13
    assert 0 <= found["least_part"] < 1


def test_a_wrong_part_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = claims.mse_decomposition
    monkeypatch.setattr(claims, "mse_decomposition", lambda *given: {**honest(*given), "perp": torch.tensor(-1.0)})
    found = claims.decomposition(0, num_classes=3, num_features=4, samples=60, trials=5)
    assert found["error"] > 1e-3
    assert found["least_part"] < 0


def test_simulated_features_follow_the_closed_form() -> None:
    found = claims.central_path(0, num_classes=3, samples_per_class=4, num_features=3, last=200.0)
    assert len(found["simulated"]) == len(found["predicted"]) == 7 * 2
    assert found["simulated"] == pytest.approx(found["predicted"], rel=1e-6)
    assert 0 < found["excess_last"] < found["excess_first"]

"""Patches and features, and the metric that accumulates strengths."""

from typing import Any

import pytest
import torch
from torch.nn.functional import interpolate

from lit_papers.interactions.functional import interaction_strength, relative_strength
from lit_papers.interactions.metrics import RelativeInteractionStrength
from lit_papers.interactions.players import FeaturePlayers, PatchGrid


@pytest.mark.parametrize(("grid", "size"), [(4, (8, 8)), ((3, 5), (7, 11)), (2, (5, 3)), ((1, 2), (1, 2))])
def test_masks_are_nearest_interpolation(grid: Any, size: tuple[int, int]) -> None:
    players = PatchGrid(grid)
    images, keep = torch.randn(6, 2, *size), torch.rand(6, players.n_players) > 0.5
    mask = interpolate(keep.view(6, 1, players.rows, players.columns).float(), size) == 1
    assert torch.equal(players(images, keep), torch.where(mask, images, torch.zeros(())))
    one = images[:1].transpose(-1, -2).contiguous().transpose(-1, -2)
    assert torch.equal(players(one, keep, 0.5), torch.where(mask, one, torch.tensor(0.5)))
    mean = torch.randn(2, 1, 1)
    assert torch.equal(players(images, keep, mean), torch.where(mask, images, mean))


def test_pairs_are_near() -> None:
    assert len(PatchGrid(4, radius=None).candidate_pairs()) == 120
    pairs = PatchGrid((3, 4), radius=1).candidate_pairs()
    assert len(pairs) == 3 * 3 + 2 * 4 + 2 * 2 * 3
    assert [0, 1] in pairs.tolist()
    assert [0, 2] not in pairs.tolist()
    assert [1, 4] in pairs.tolist()


def test_features_and_groups() -> None:
    rows = torch.randn(5, 4)
    keep = torch.rand(5, 4) > 0.5
    assert torch.equal(FeaturePlayers(4)(rows, keep, -1.0), torch.where(keep, rows, torch.tensor(-1.0)))
    grouped = FeaturePlayers(4, [[3, 0], [1], [2]])
    assert grouped(rows[:1], torch.tensor([[True, False, False], [False, True, True]]))[0].tolist() == [
        rows[0, 0], 0, 0, rows[0, 3],
    ]  # fmt: skip
    assert len(grouped.candidate_pairs()) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PatchGrid(1), "at least 2 cells, got 1 x 1"),
        (lambda: PatchGrid((0, 4)), "got 0 x 4"),
        (lambda: PatchGrid(3, radius=0), "`radius`"),
        (lambda: PatchGrid(9)(torch.zeros(1, 1, 8, 16), torch.ones(1, 81) > 0), "9 x 9 cells does not fit .* 8 x 16"),
        (lambda: PatchGrid(2)(torch.zeros(8, 8), torch.ones(1, 4) > 0), r"shape \(B, C, H, W\)"),
        (lambda: FeaturePlayers(1), "at least 2 players, got 1"),
        (lambda: FeaturePlayers(3, [[0, 1, 2]]), "at least 2 players, got 1"),
        (lambda: FeaturePlayers(3, [[0], [1]]), "feature 2 must be in one"),
        (lambda: FeaturePlayers(3, [[0, 1], [1, 2]]), "feature 1 .* in 2"),
        (lambda: FeaturePlayers(3, [[0, 1], [2, 3]]), "feature 3"),
        (lambda: FeaturePlayers(3)(torch.zeros(2, 4), torch.ones(2, 3) > 0), r"\(B, 3\), got \(2, 4\)"),
    ],
)
def test_mistakes(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_metric_is_a_ratio_of_means() -> None:
    rows = torch.randn(9, 5, 3, dtype=torch.float64)
    rows[2, 3, 1] = torch.nan
    metric, parts = RelativeInteractionStrength([0, 2, 4]), [RelativeInteractionStrength([0, 2, 4]) for _ in range(2)]
    metric.update(rows)
    parts[0].update(rows[:4])
    parts[1].update(rows[4:])
    parts[0].merge_state(parts[1])
    for each in (metric, parts[0]):
        found = each.compute()
        assert torch.allclose(found["strength"], interaction_strength(rows), rtol=1e-12)
        assert torch.allclose(found["relative_strength"], relative_strength(interaction_strength(rows)), rtol=1e-12)
    with pytest.raises(ValueError, match="2 columns for the 3 orders"):
        metric.update(rows[..., :2])

"""Games with known interactions, identities with other indices, and the theory's curves."""

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_papers.interactions.functional import (
    delta_u_weights,
    efficiency_weights,
    exact_interactions,
    interaction_strength,
    learning_strength,
    log_odds,
    nested_masks,
    order_loss,
    orders_from_ratios,
    relative_strength,
)


def coalitions(n: int) -> Tensor:
    """Which players are in each coalition: bool, ``(2**n, n)``."""
    return (torch.arange(2**n)[:, None] >> torch.arange(n)) & 1 == 1


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_unanimity_games(n: int) -> None:
    inside = coalitions(n)
    for k in range(n + 1):
        found = exact_interactions(inside[:, :k].all(1).double())
        for m in range(n - 1):
            expected = math.comb(n - k, m - k + 2) / math.comb(n - 2, m) if k >= 2 and m >= k - 2 else 0.0
            for i, j in combinations(range(n), 2):
                assert found[i, j, m].item() == pytest.approx(expected if j < k else 0.0, abs=1e-12)
    assert exact_interactions(coalitions(8)[:, :5].all(1).double())[0, 1, 4].item() == pytest.approx(0.2, abs=1e-12)


def test_product_game() -> None:
    n = 7
    factors = torch.rand(n, dtype=torch.float64) + 0.5
    found = exact_interactions(torch.where(coalitions(n), factors, 1.0).prod(1))
    for i, j in combinations(range(n), 2):
        rest = [k for k in range(n) if k not in (i, j)]
        for m in range(n - 1):
            symmetric = sum(math.prod(factors[k].item() for k in chosen) for chosen in combinations(rest, m))
            expected = (factors[i] - 1) * (factors[j] - 1) * symmetric / math.comb(n - 2, m)
            assert found[i, j, m].item() == pytest.approx(expected.item(), abs=1e-12)
            assert found[i, j, m] == found[j, i, m]
    assert found[3, 3].isnan().all()


def test_a_game_of_counts_alone() -> None:
    n = 6
    worth = torch.randn(n + 1, dtype=torch.float64)
    found = exact_interactions(worth[coalitions(n).sum(1)])
    second = worth[2:] - 2 * worth[1:-1] + worth[:-2]
    assert (found[0, 1] - second).abs().max() < 1e-12
    assert torch.allclose(found[2, 5], found[0, 1], atol=1e-12, rtol=0)


def test_an_additive_game_has_no_interaction() -> None:
    found = exact_interactions(coalitions(5).double() @ torch.arange(5.0).double())
    strength = interaction_strength(found[~torch.eye(5, dtype=torch.bool)])
    assert torch.equal(strength, torch.zeros(4, dtype=torch.float64))
    assert relative_strength(strength).isnan().all()


def test_efficiency() -> None:
    n = 12
    values = 10 * torch.randn(2, 2**n, dtype=torch.float64)
    found = exact_interactions(values).nan_to_num()
    alone = (values[:, 2 ** torch.arange(n)] - values[:, :1]).sum(1)
    total = alone + (found.sum((1, 2)) * efficiency_weights(n)).sum(1)
    assert (total - (values[:, -1] - values[:, 0])).abs().max() < 1e-10


def test_other_indices() -> None:
    shapiq = pytest.importorskip("shapiq")
    n = 6
    values = torch.randn(2**n, dtype=torch.float64)
    bits = 2 ** torch.arange(n)
    game = shapiq.ExactComputer(lambda inside: values[(torch.as_tensor(inside).long() @ bits)].numpy(), n_players=n)
    found = exact_interactions(values)
    m = torch.arange(n - 1, dtype=torch.float64)
    binomials = torch.tensor([math.comb(n - 2, order) for order in range(n - 1)], dtype=torch.float64)
    weights = {
        "Moebius": (m == 0).double(),
        "Co-Moebius": (m == n - 2).double(),
        "SII": torch.full((n - 1,), 1 / (n - 1), dtype=torch.float64),
        "BII": binomials / 2 ** (n - 2),
        "STII": 2 * efficiency_weights(n),
        "CHII": 2 * (m + 1) / (n * (n - 1)),
    }
    for name, weight in weights.items():
        theirs = game(name, order=2)
        for i, j in combinations(range(n), 2):
            assert (found[i, j] * weight).sum().item() == pytest.approx(theirs[(i, j)], abs=1e-10), name


def test_log_odds() -> None:
    logits = torch.randn(5, 4, dtype=torch.float64)
    target = torch.tensor([0, 3, 1, 2, 2])
    share = logits.softmax(1).gather(1, target[:, None])[:, 0]
    assert torch.allclose(log_odds(logits, target), (share / (1 - share)).log())
    assert log_odds(torch.tensor([40.0, 0, 0]), torch.tensor(0)).item() == pytest.approx(39.3069, abs=1e-4)
    assert log_odds(torch.tensor([1.0, 3.0]), torch.tensor(1)).item() == pytest.approx(2)
    with pytest.raises(ValueError, match="label 4 is outside 0 to 3"):
        log_odds(logits, torch.tensor([0, 1, 2, 3, 4]))
    with pytest.raises(ValueError, match="two or more logits, got 1"):
        log_odds(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))


def test_orders() -> None:
    assert orders_from_ratios(12) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert orders_from_ratios(102, [0.29, 1.0]) == [29, 100]


def test_theory() -> None:
    assert learning_strength(5).argmin() == 3
    assert learning_strength(5).min().item() == pytest.approx(0.25)
    for n, least, at in ((10, 0.05939, 5), (50, 8.80e-8, 25), (256, 1.31e-38, 128)):
        curve = learning_strength(n)
        assert curve.min().item() == pytest.approx(least, rel=5e-3)
        assert curve.argmin() == at
        assert curve[-1].item() == pytest.approx(1 / (n - 1))
    assert learning_strength(1024, log=True).isfinite().all()
    assert learning_strength(6, exponent=1.0)[2].item() == pytest.approx(3 / 5 / 6)


@pytest.mark.parametrize(("s1", "s2"), [(0, 3), (0, 8), (2, 5), (4, 8), (7, 8), (3, 4)])
def test_order_weights_of_the_losses(s1: int, s2: int) -> None:
    """Over all nested pairs of coalitions, by enumeration."""
    n = 8
    values = torch.randn(2**n, dtype=torch.float64)
    size = coalitions(n).sum(1)
    ratio = s2 / s1 if s1 else 1.0
    mean = values[size == s2].mean() - ratio * values[size == s1].mean()
    pairs = torch.combinations(torch.arange(n))
    orders = exact_interactions(values)[pairs[:, 0], pairs[:, 1]].mean(0)
    rest = (1 - ratio) * values[0] if s1 else s2 * (values[2 ** torch.arange(n)] - values[0]).mean()
    assert mean.item() == pytest.approx((rest + (delta_u_weights(n, s1, s2) * orders).sum()).item(), abs=1e-10)


def test_nested_masks() -> None:
    smaller, larger = nested_masks(500, 6, 2, 5, torch.Generator().manual_seed(0))
    assert (smaller.sum(1) == 2).all()
    assert (larger.sum(1) == 5).all()
    assert (larger | ~smaller).all()
    assert (smaller.float().mean(0) - 1 / 3).abs().max() < 0.07
    assert len(smaller.unique(dim=0)) == 15
    again, _ = nested_masks(500, 6, 2, 5, torch.Generator().manual_seed(0))
    assert torch.equal(again, smaller)


def test_losses() -> None:
    delta, target = torch.randn(7, 3), torch.arange(7) % 3
    assert torch.equal(order_loss(delta, target, "encourage"), torch.nn.functional.cross_entropy(delta, target))
    entropy = torch.distributions.Categorical(logits=delta).entropy().mean()
    assert torch.allclose(order_loss(delta, target, "penalize"), -entropy)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exact_interactions(torch.zeros(2)), "got 2"),
        (lambda: exact_interactions(torch.zeros(12)), "got 12"),
        (lambda: delta_u_weights(5, 3, 3), "s1=3 and s2=3"),
        (lambda: delta_u_weights(5, 3, 6), "s1=3 and s2=6"),
        (lambda: nested_masks(2, 5, -1, 2), "s1=-1"),
        (lambda: order_loss(torch.zeros(1, 2), torch.zeros(1), "more"), "'more'"),
    ],
)
def test_mistakes(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()

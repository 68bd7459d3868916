"""What claims compute and draw beside the training runs: gradients of each order, robustness, figures of arms."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from lit_papers.interactions.claims import gradient_of_each_order
from lit_papers.interactions.estimator import all_masks
from lit_papers.interactions.evaluation import pgd_accuracy
from lit_papers.interactions.figures import gradients, of_arms
from lit_papers.interactions.functional import efficiency_weights, exact_interactions, log_odds
from lit_papers.interactions.models import MLP, SmallResNet
from lit_papers.interactions.players import PatchGrid
from lit_papers.interactions.robustness import RobustnessLens
from lit_papers.interactions.samples import balanced


def test_random_directions_find_the_gradient_of_each_order() -> None:
    n, seed = 4, 3
    found = gradient_of_each_order(seed, n_features=n, depth=2, width=6, samples=1, directions=500)
    torch.manual_seed(seed)
    model = MLP(n, 2, 2, 6).double()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=generator, dtype=torch.float64)
    target = torch.randint(2, (), generator=generator).expand(2**n)

    def orders(*weights: Tensor) -> Tensor:
        named = dict(zip(dict(model.named_parameters()), weights, strict=True))
        values = log_odds(functional_call(model, named, (x * all_masks(n, 0, 2**n),)), target)
        pairs = torch.combinations(torch.arange(n))
        return exact_interactions(values)[pairs[:, 0], pairs[:, 1]]

    parts = torch.autograd.functional.jacobian(orders, tuple(model.parameters()))
    squares = sum(part.square().flatten(2).sum(2) for part in parts).mean(0)
    expected = efficiency_weights(n) * squares.sqrt()
    assert found["measured"] == pytest.approx((expected / expected[0]).tolist(), rel=0.15)
    assert found["theory"] == pytest.approx([1, 0.4714, 0.3333], abs=1e-4)
    with pytest.raises(ValueError, match="`n_features` must be from 4 to 14, got 15"):
        gradient_of_each_order(0, n_features=15)


def test_robustness_is_of_samples_of_all_classes() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(60, 1, 4, 4), torch.arange(3).repeat_interleave(20)
    images[:, 0, 0, 0] += 3 * labels
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        network[1].weight.zero_()[:, 0] = torch.tensor([-1.0, 0.0, 1.0])
        network[1].bias.copy_(torch.tensor([3.0, 2.0, -2.0]))
    lens = RobustnessLens(1.0, steps=10, n_samples=24, players=PatchGrid(4))
    found = lens(network, DataLoader(TensorDataset(images, labels), batch_size=7))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert 0 < found["under_attack"] < found["accuracy"] <= 1
    assert found["masked_random"][0] == found["masked_border"][0] == found["accuracy"]
    assert found["masked_random"][-1] == pytest.approx(1 / 3), "nothing is left, and classes are balanced"
    assert 0 < found["area"] < 1
    chosen = order[balanced(labels[order], 24)]
    assert found["accuracy"] == pgd_accuracy(network, images[chosen], labels[chosen], 0.0, steps=0)
    assert "area" not in RobustnessLens(1.0, steps=1, n_samples=3)(network, [(images, labels)])


def run(arm: str, seed: int, **more: Any) -> Any:
    values = {f"{key}_{m}": 1.0 + m + seed for key in ("J", "J_untrained", "S", "floor") for m in (0, 2, 4)}
    return SimpleNamespace(arm=arm, seed=seed, values={**values, "val_acc": 0.5, **more})


def test_figures_of_arms() -> None:
    figure = of_arms([run(arm, seed, under_attack=0.2) for arm in ("normal", "mid") for seed in (0, 1)])
    relative, raw, accuracy = figure.axes
    named = {line.get_label(): line for line in relative.lines}
    assert list(named["normal"].get_xdata()) == [0, 0.5, 1]
    assert list(named["normal"].get_ydata()) == [1.5, 3.5, 5.5]
    assert "floor" in raw.get_ylabel()
    assert [text.get_text() for text in accuracy.get_xticklabels()] == ["normal", "mid"]
    values = {"share": [0.0, 1.0], "measured": [1.0, 0.5], "theory": [1.0, 0.2]}
    (axis,) = gradients([SimpleNamespace(arm="5 layers", seed=0, values=values)]).axes
    assert [line.get_label() for line in axis.lines] == ["measured, 5 layers", "theory"]


def test_small_residual_network() -> None:
    network = SmallResNet()
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == 78_042
    with pytest.raises(ValueError, match="`width` must be at least 1"):
        SmallResNet(width=0)

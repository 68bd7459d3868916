"""The regulariser in multiply-adds: true in value, and with the gradient of the sizes behind it."""

import pytest
import torch
from torch import Tensor, nn

from lit_papers.diffstride.complexity import CostPenalty
from lit_papers.diffstride.layers import CostCounter, DiffStride2d
from lit_papers.diffstride.resnet import PreActResNet


def measured(model: nn.Module, images: Tensor) -> Tensor:
    with CostPenalty(model) as cost:
        model(images)
    return cost.macs()


def test_by_hand() -> None:
    """Behind one layer of stride 2 on 32 points, with a margin of 4 at each end, lie maps of 16 + 8 points."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), DiffStride2d(2.0), nn.Conv2d(4, 8, 1))
    cost = measured(model, torch.randn(2, 1, 32, 32))
    cost.backward()
    assert cost.item() == 36 * 1024 + 32 * 24 * 24
    # d(n/S + 2R)/dS = -n/S^2 = -8 along one axis, of maps with 24 points along the other
    assert model[1].strides.grad.tolist() == pytest.approx([-8 * 24 * 32] * 2)


def test_two_layers_in_a_row() -> None:
    """What the first layer takes from the second one's input, 8 points, the second leaves a half of: 24/2 + 2R."""
    first, second = DiffStride2d((2.0, 1.0), 4.0), DiffStride2d((2.0, 1.0), 1.0)
    conv = nn.Conv2d(1, 1, 1)
    cost = measured(nn.Sequential(first, second, conv), torch.randn(1, 1, 32, 8))
    cost.backward()
    assert cost.item() == 14 * 8
    assert first.strides.grad[0].item() == pytest.approx(-8 / 2 * 8)
    assert second.strides.grad[0].item() == pytest.approx(-24 / 4 * 8)


def test_the_shortcut_runs_before_the_pool() -> None:
    """Only the second convolution of a residual block gets cheaper with its stride; the others with earlier ones."""
    network = PreActResNet(10, widths=(4, 4, 8), blocks_per_stage=1, strides=(1.5, 1, 2), smoothness=1)
    images = torch.randn(1, 3, 32, 32)
    cost = measured(network, images)
    cost.backward()
    with CostCounter(network) as counter:
        network(images)
    assert cost.item() == counter.macs
    (stem,) = {size[0] for size in [counter.map_sizes["stem_pool"]]}
    block = network.stages[1][0]
    size = counter.map_sizes["stages.1.0.pool"][0]
    continuous = stem / 2 + 2  # n/S + 2R
    gradient = 9 * 8 * 8 * size**2 * (-stem / 4) / continuous
    assert block.pool.strides.grad.tolist() == pytest.approx([gradient] * 2, rel=1e-5)


def test_descending_it_raises_strides() -> None:
    model = nn.Sequential(DiffStride2d(1.5), nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))
    optimizer = torch.optim.SGD([model[0].strides], lr=1e-6)
    images = torch.randn(1, 1, 32, 32)
    costs = []
    for _ in range(20):
        optimizer.zero_grad()
        cost = measured(model, images)
        cost.backward()
        optimizer.step()
        costs.append(cost.item())
    assert (model[0].strides > 1.6).all()
    assert costs[-1] < costs[0]


def test_hooks_are_removed_and_nothing_to_penalise_is_said() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), DiffStride2d(2.0))
    with CostPenalty(model) as cost:
        model(torch.randn(1, 1, 32, 32))
    assert not any(layer._forward_hooks for layer in model)
    with pytest.raises(RuntimeError, match="nothing to penalise"):
        cost.macs()

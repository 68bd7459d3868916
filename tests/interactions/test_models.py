"""The networks: what goes in, what comes out, and that each has the layers that the paper names."""

import pytest
import torch
from torch import nn

from lit_papers.interactions.models import MLP, CifarAlexNet, SmallCNN


@pytest.mark.parametrize(("depth", "parameters"), [(5, 100 * 15 + 3 * 100 * 101 + 2 * 101), (8, 62_302)])
def test_depth_counts_linear_layers(depth: int, parameters: int) -> None:
    network = MLP(14, depth=depth)
    assert sum(isinstance(layer, nn.Linear) for layer in network.layers) == depth
    assert sum(isinstance(layer, nn.ReLU) for layer in network.layers) == depth - 1
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network(torch.zeros(3, 14)).shape == (3, 2)


@pytest.mark.parametrize("size", [4, 8, 11, 32])
def test_the_small_network_takes_any_size(size: int) -> None:
    assert SmallCNN(1, size, 10)(torch.zeros(2, 1, size, size)).shape == (2, 10)


def test_the_alexnet_of_the_authors() -> None:
    network = CifarAlexNet(10)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [64, 192, 384, 256, 256]
    assert (convolutions[0].kernel_size, convolutions[0].stride) == ((7, 7), (1, 1))
    assert sum(isinstance(layer, nn.Dropout) for layer in network.modules()) == 2
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: MLP(0), "n_features"),
        (lambda: MLP(3, n_classes=1), "n_classes"),
        (lambda: MLP(3, depth=0), "depth"),
        (lambda: MLP(3, width=0), "width"),
        (lambda: SmallCNN(0, 8, 2), "in_channels"),
        (lambda: SmallCNN(1, 3, 2), "image_size"),
        (lambda: CifarAlexNet(1), "n_classes"),
    ],
)
def test_sizes_out_of_range_are_named(make: object, name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be at least"):
        make()

"""Equal map sizes and equal multiply-adds: solved, and refused where there is no solution."""

import pytest
import torch
from torch import Tensor, nn

from lit_papers.diffstride.functional import output_size
from lit_papers.diffstride.layers import CostCounter, DiffStride, DiffStride2d, SpectralPool2d
from lit_papers.diffstride.matching import match, match_macs, match_sizes, matched_stride, spectral_twin
from lit_papers.diffstride.resnet import PreActResNet


def network(pooling: str, smoothness: float = 4.0) -> PreActResNet:
    return PreActResNet(
        10, widths=(4, 4, 8, 8), blocks_per_stage=1, strides=(1, 1, 2, (3, 2)), pooling=pooling, smoothness=smoothness,
        in_channels=1,
    ).eval()  # fmt: skip


def images() -> Tensor:
    return torch.randn(2, 1, 28, 32)


def cost(model: nn.Module) -> CostCounter:
    with torch.no_grad(), CostCounter(model) as counter:
        model(images())
    return counter


@pytest.mark.parametrize("smoothness", [1.0, 1.5, 4.0])
def test_every_even_size_has_a_stride(smoothness: float) -> None:
    smallest = output_size((64,), (64.0,), smoothness)[0]
    for size in (31, 64):
        for target in range(smallest, size - 1, 2):
            assert output_size((size,), (matched_stride(size, target, smoothness),), smoothness) == (target,)


def test_sizes_of_spectral_pooling() -> None:
    ours, reference = network("diffstride"), network("spectral")
    assert match_sizes(ours, reference, images()) == 1.0  # the last map has 4 points: R = 4/2 - 1
    assert cost(ours).map_sizes == cost(reference).map_sizes
    assert cost(ours).macs == cost(reference).macs
    ours(images()).square().sum().backward()
    assert ours.stages[2][0].pool.strides.grad.isfinite().all()


def test_multiply_adds() -> None:
    ours, target = network("diffstride", 1.0), cost(network("spectral")).macs
    assert cost(ours).macs > target
    found = match_macs(ours, target, images())
    assert 0.8 * target < found <= target
    assert cost(ours).macs == found


def test_kinds() -> None:
    before = network("diffstride", 1.0)
    found = {}
    for kind in ("strides", "sizes", "macs"):
        ours = network("diffstride", 1.0).train()
        match(kind, ours, images())
        assert ours.training
        found[kind] = cost(ours.eval()).macs
    assert list(cost(spectral_twin(before)).map_sizes) == list(cost(before).map_sizes)
    assert found["strides"] == cost(before).macs > found["sizes"] >= found["macs"]


def test_mistakes() -> None:
    two = nn.Sequential(DiffStride2d(2.0), DiffStride2d(2.0))
    with pytest.raises(ValueError, match="no stride makes 3 points of 8"):
        matched_stride(8, 3, 1.0)
    with pytest.raises(ValueError, match="`kind` must be one of sizes, macs, strides"):
        match("cost", two, images())
    with pytest.raises(ValueError, match="a smoothness of 3 or less"):
        matched_stride(32, 8, 4.0)
    with pytest.raises(ValueError, match="2 DiffStride layers, `reference` ran 1"):
        match_sizes(two, SpectralPool2d(2.0), images())
    with pytest.raises(ValueError, match="a map of 2 points"):
        match_sizes(DiffStride2d(2.0), SpectralPool2d(16.0), torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="still costs"):
        match_macs(network("diffstride"), 10, images())
    assert all(isinstance(layer, DiffStride) for layer in two)

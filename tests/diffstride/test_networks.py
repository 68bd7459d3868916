"""Residual and audio networks: sizes, parameters and costs of the paper file, for all three kinds of pooling."""

from typing import Any

import pytest
import torch
from torch import nn

from lit_papers.diffstride.audio import AudioCNN, LogMel, WaveformCNN
from lit_papers.diffstride.layers import CostCounter, DiffStride, SpectralPool
from lit_papers.diffstride.pooling import SameConv1d, SameConv2d
from lit_papers.diffstride.resnet import PreActResNet, resnet18, resnet56

POOLINGS = ("strided", "spectral", "diffstride")
SMALL: dict[str, Any] = {"widths": (4, 4, 8, 8), "blocks_per_stage": 1, "strides": (1, 1, 2, (2, 1)), "smoothness": 1}


def cost(network: nn.Module, *shape: int) -> CostCounter:
    with torch.no_grad(), CostCounter(network.eval()) as counter:
        network(torch.zeros(1, *shape))
    return counter


@pytest.mark.parametrize(
    ("strides", "pooling", "gmacs", "sizes"),
    [
        ((1, 1, 2, 2, 2), "diffstride", 4.206, (32, 24, 20, 18)),
        ((1, 1, 2, 2, 2), "spectral", 0.744, (32, 16, 8, 4)),
        ((1, 1, 2, 2, 2), "strided", 0.555, ()),
        ((1, 1, 3, 2, 3), "diffstride", 2.930, (32, 20, 18, 14)),
        ((1, 1, 3, 2, 3), "spectral", 0.391, (32, 10, 4, 2)),
        ((1, 1, 3, 2, 3), "strided", 0.325, ()),
    ],
)
def test_resnet18_costs(strides: Any, pooling: Any, gmacs: float, sizes: tuple[int, ...]) -> None:
    network = resnet18(strides=strides, pooling=pooling)
    counter = cost(network, 3, 32, 32)
    assert counter.macs / 1e9 == pytest.approx(gmacs, rel=2e-3)
    assert list(counter.map_sizes.values()) == [(n, n) for n in sizes]
    extra = 8 if pooling == "diffstride" else 0
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_172_170 + extra


def test_resnet56() -> None:
    network = resnet56(widths=(2, 2, 4, 8))
    assert [len(stage) for stage in network.stages] == [9, 9, 9]
    assert all(stage[0].shortcut is not None and stage[1].shortcut is None for stage in network.stages)
    assert len([layer for layer in network.modules() if isinstance(layer, DiffStride)]) == 4


def test_names_are_the_checkpoint_format() -> None:
    names = set(PreActResNet(10, **SMALL).state_dict())
    for block in ("bn1", "conv1", "bn2", "conv2", "shortcut"):
        assert f"stages.1.0.{block}.weight" in names
    assert {"stem.weight", "stem_pool.strides", "stages.1.0.pool.strides", "bn.bias", "fc.bias"} <= names
    assert "stages.0.0.pool.strides" not in names
    assert PreActResNet(10, **SMALL).stages[0][0].shortcut is None


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_every_pooling_trains(pooling: Any, stem: Any) -> None:
    network = PreActResNet(5, pooling=pooling, stem=stem, in_channels=1, **SMALL)
    logits = network(torch.randn(2, 1, 32, 30))
    logits.square().sum().backward()
    assert logits.shape == (2, 5)
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_both_paths_share_the_pool() -> None:
    block = PreActResNet(5, **SMALL).stages[1][0]
    with CostCounter(block) as counter:
        block(torch.randn(1, 4, 16, 16))
    assert list(counter.map_sizes) == ["pool"]
    # the convolution in front of the pool and the shortcut's see the block's input, the second convolution its output
    assert counter.macs == (9 * 4 * 8 + 4 * 8) * 256 + 9 * 8 * 8 * 10 * 10


def test_same_padding_is_tensorflows() -> None:
    conv = SameConv2d(1, 1, 3, (2, 2))
    image = torch.randn(1, 1, 8, 7)
    expected = nn.functional.conv2d(nn.functional.pad(image, (1, 1, 0, 1)), conv.weight, stride=2)
    assert torch.equal(conv(image), expected)
    assert conv(image).shape[-2:] == (4, 4)
    assert SameConv1d(1, 1, 9, (4,))(torch.zeros(1, 1, 1001)).shape[-1] == 251


def test_initialisation_keeps_the_variance() -> None:
    weight = SameConv2d(64, 64, 3).weight
    assert weight.var().item() == pytest.approx(2 / (64 * 9), rel=0.02)
    assert weight.abs().max() < 2.01 * (2 / (64 * 9)) ** 0.5 / 0.8796


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, "`pooling`"),
        ({"variant": "tf"}, "`variant`"),
        ({"stem": "large"}, "`stem`"),
        ({"strides": (1, 1, 2)}, "`strides` and `widths`"),
        ({"pooling": "strided", "strides": (1, 1, 1.5, 2)}, "integers with pooling='strided'"),
        ({"strides": (1, 1, 2, (2, 0.5))}, "`stride`"),
        ({"widths": (4, 8, 8, 8)}, "project_first"),
        ({"smoothness": 0}, "`smoothness`"),
        ({"stem": "imagenet", "pooling": "strided", "strides": (2, 1, 2, 2)}, "begin with 1"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreActResNet(10, **{**SMALL, **options})


@pytest.mark.parametrize("pooling", POOLINGS)
def test_networks_for_sounds(pooling: Any) -> None:
    pytest.importorskip("torchaudio")
    options: dict[str, Any] = {"pooling": pooling, "smoothness": 2}
    for network in (
        AudioCNN(10, sample_rate=8000, widths=(4, 8), strides=((2, 1), 3), **options),
        AudioCNN(10, sample_rate=8000, widths=(4, 8), strides=((2, 1), 3), cells=(2, 8), **options),
        WaveformCNN(10, widths=(4, 8), strides=(8, 4), **options),
    ):
        wave = torch.randn(2, 4000)
        logits = network(wave)
        logits.square().sum().backward()
        assert logits.shape == (2, 10)
        assert torch.equal(network.eval()(wave[:, None]), network(wave))
        pools = [layer for layer in network.modules() if isinstance(layer, (DiffStride, SpectralPool))]
        assert len(pools) == (0 if pooling == "strided" else 2)
        with torch.autocast("cpu", torch.bfloat16):
            assert network(wave).isfinite().all()
        with pytest.raises(ValueError, match=r"\(N, T\) or \(N, 1, T\), got \(2, 3, 9\)"):
            network(torch.zeros(2, 3, 9))


def test_cells_tell_what_came_first_at_any_size_of_the_map() -> None:
    pytest.importorskip("torchaudio")
    wave = torch.cat([torch.randn(1, 3000), torch.zeros(1, 3000)], 1)
    both = torch.cat([wave, wave.flip(1)])
    for stride in (1.5, 3.0):
        mean, apart = (
            AudioCNN(10, sample_rate=8000, widths=(4,), strides=(stride,), smoothness=2, cells=cells).eval()
            for cells in ((1, 1), (1, 4))
        )
        for network, differs in ((mean, False), (apart, True)):
            network.fc.weight.data.fill_(0.1)[:, 2::4] = -0.1 if differs else 0.1
            first, second = network(both)[:, 0].tolist()
            assert (abs(first - second) > 0.2) == differs
    with pytest.raises(ValueError, match=r"`cells` must be two numbers \(mel, time\)"):
        AudioCNN(10, cells=(0, 4))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rate", [8000, 16000])
def test_every_mel_band_hears_something(rate: int) -> None:
    pytest.importorskip("torchaudio")
    front = LogMel(rate, 64)
    assert front(torch.zeros(1, rate)).shape == (1, 1, 64, 101)
    assert front(torch.zeros(1, rate)).unique().numel() == 1  # the floor
    assert (front.mel.mel_scale.fb.sum(0) > 0).all()


@pytest.mark.gpu
def test_a_network_on_the_gpu() -> None:
    network, images = PreActResNet(10, **SMALL).eval(), torch.randn(2, 3, 32, 32)
    expected = network(images)
    with torch.autocast("cuda", torch.bfloat16):
        ours = network.cuda()(images.cuda())
    assert torch.allclose(ours.float().cpu(), expected, atol=0.05)

"""CPU time and saved memory of the default layer, beside a strided convolution and other ways to shrink a map.

Run with ``OMP_NUM_THREADS=1 pytest tests/benchmarks/test_diffstride.py -m benchmark -s``. Every ratio is of medians
over interleaved rounds of one run, forward and backward. The peer that does the same is the order of the official
layer: transform, mask the whole spectrum, gather, transform back.
"""

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lit_papers.diffstride import operators
from lit_papers.diffstride.functional import diffstride, span_mask
from lit_papers.diffstride.layers import DiffStride1d, DiffStride2d, SpectralPool2d
from tests.measuring import Keep

pytestmark = pytest.mark.benchmark

ROUNDS, WARM_UP = 15, 3
SHAPES = [((32, 64, 32, 32), 0.75), ((8, 64, 56, 56), 0.75), ((2, 64, 112, 112), 0.8), ((1, 64, 224, 224), 1.2)]
Layer = Callable[[Tensor], Tensor]


class MaskThenGather(nn.Module):
    """The official map of an even size: one mask on the full spectrum, and a gather behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.strides = nn.Parameter(torch.tensor([2.0, 2.0]))

    def forward(self, maps: Tensor) -> Tensor:
        height, width = maps.shape[-2:]
        rows = torch.cat([torch.arange(height / 2), torch.arange(height / 2).flip(0)])
        vertical = span_mask(rows, height / self.strides[0] / 2, 4.0)
        horizontal = span_mask(torch.arange(width // 2 + 1.0), width / self.strides[1] / 2 + 1, 4.0)
        spectrum = torch.fft.rfft2(maps) * vertical[:, None] * horizontal
        kept = spectrum[..., (vertical > 0).nonzero()[:, 0], :][..., (horizontal > 0).nonzero()[:, 0]]
        return torch.fft.irfft(torch.fft.ifft(kept, dim=-2))


def cpu_seconds(layer: Layer, maps: Tensor) -> float:
    begin = time.process_time()
    output = layer(maps)
    output.backward(torch.ones_like(output))
    maps.grad = None
    return time.process_time() - begin


def medians(layers: dict[str, Layer], maps: Tensor) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in layers}
    for turn in range(WARM_UP + ROUNDS):
        for name, layer in layers.items():
            measured = cpu_seconds(layer, maps)
            if turn >= WARM_UP:
                seconds[name].append(measured)
    return {name: statistics.median(values) for name, values in seconds.items()}


def saved_bytes(layer: Layer, maps: Tensor) -> int:
    """What is kept for the backward pass, each storage once, without parameters and constants."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.nbytes() > 4 * maps[0].numel():  # bases and masks do not grow with the batch
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = layer(maps)
    assert output.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize(("shape", "limit"), SHAPES)
def test_against_a_strided_convolution(shape: tuple[int, ...], limit: float, keep: Keep) -> None:
    torch.manual_seed(0)
    maps = torch.randn(*shape, requires_grad=True)
    layers: dict[str, Layer] = {
        "convolution 3x3, stride 2": nn.Conv2d(64, 64, 3, stride=2, padding=1),
        "convolution 3x3, stride 1": nn.Conv2d(64, 64, 3, padding=1),
        "average pooling": nn.AvgPool2d(2),
        "spectral pooling": SpectralPool2d(2),
        "DiffStride, frozen": DiffStride2d(2.0).freeze(),
        "mask, then gather": MaskThenGather(),
        "DiffStride, official": DiffStride2d(2.0, variant="official"),
        "DiffStride": DiffStride2d(2.0),
    }
    assert torch.allclose(layers["mask, then gather"](maps), layers["DiffStride, official"](maps), atol=1e-5)
    seconds = medians(layers, maps)
    unit = seconds["convolution 3x3, stride 2"]
    memory = {name: saved_bytes(layer, maps) / (4 * maps.numel()) for name, layer in layers.items()}
    print(f"\n{'x'.join(map(str, shape))}: forward and backward beside a strided convolution; saved beside the input")
    for name, each in seconds.items():
        print(f"  {name:28} {each / unit:5.2f}x   {memory[name]:5.2f}x")
        keep("diffstride/speed", name, {"x".join(map(str, shape)): each / unit})
        if shape == SHAPES[0][0]:
            keep("diffstride/speed", name, {"kept, beside the input": memory[name]})
    assert seconds["DiffStride"] <= limit * unit
    assert max(seconds["spectral pooling"], seconds["DiffStride, frozen"]) <= 0.6 * limit * unit
    assert seconds["DiffStride"] <= 0.6 * seconds["mask, then gather"]
    # the map and its first product: the price of two products instead of four
    assert memory["DiffStride"] <= 1.8
    assert memory["spectral pooling"] == memory["DiffStride, frozen"] == 0


def test_channels_last_costs_what_contiguous_maps_do(keep: Keep) -> None:
    layer = DiffStride2d(2.0)
    plain = torch.randn(32, 64, 32, 32)
    maps = {
        name: plain.to(memory_format=each, copy=True).requires_grad_()
        for name, each in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last))
    }
    seconds: dict[str, list[float]] = {name: [] for name in maps}
    for turn in range(WARM_UP + ROUNDS):
        for name, each in maps.items():
            gradient = torch.randn_like(layer(each).detach())
            begin = time.process_time()
            layer(each).backward(gradient)
            if turn >= WARM_UP:
                seconds[name].append(time.process_time() - begin)
    ratio = statistics.median(seconds["channels_last"]) / statistics.median(seconds["contiguous"])
    print(f"\nchannels_last beside contiguous maps: {ratio:.2f}x")
    keep("diffstride/speed", "DiffStride, channels_last beside contiguous", {"32x64x32x32": ratio})
    assert ratio <= 1.15


@pytest.mark.parametrize("length", [64, 128, 256, 1000, 8000])
def test_products_and_ffts_on_sequences(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of the two is chosen by length should be about the faster one."""
    signal = torch.randn(16, 32, length, requires_grad=True)
    strides = torch.tensor([4.0], requires_grad=True)

    def by(largest: int) -> Layer:
        def layer(signal: Tensor) -> Tensor:
            monkeypatch.setattr(operators, "LARGEST_PRODUCT", largest)
            return diffstride(signal, strides)

        return layer

    conv = nn.Conv1d(32, 32, 9, stride=4, padding=4)
    layers = {"convolution of 9, stride 4": conv, "products": by(10_000), "FFT": by(0)}
    seconds = medians(layers, signal)
    shown = "   ".join(f"{name} {each / seconds['convolution of 9, stride 4']:.2f}x" for name, each in seconds.items())
    print(f"\n{length} points: {shown}")
    monkeypatch.undo()
    chosen = seconds["products"] if length <= operators.LARGEST_PRODUCT else seconds["FFT"]
    assert chosen <= 1.3 * min(seconds["products"], seconds["FFT"])
    assert DiffStride1d(4.0)(signal).shape[-1] < length

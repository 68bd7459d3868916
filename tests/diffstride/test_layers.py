"""The layers: pure, exact about sizes, compiled and exported, and clear about mistakes."""

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lit_papers.diffstride.functional import diffstride, minimum_stride, output_size, spectral_pool
from lit_papers.diffstride.layers import (
    CostCounter,
    DiffStride1d,
    DiffStride2d,
    DiffStride3d,
    FixedStride,
    SpectralPool1d,
    SpectralPool2d,
    freeze_strides,
)


def maps(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 3, 32, 32)), generator=torch.Generator().manual_seed(0))


def backward(layer: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    layer.zero_grad()
    output = layer(images)
    output.square().sum().backward()
    return output.detach(), layer.strides.grad.clone()


@pytest.mark.parametrize("variant", ["symmetric", "official"])
@pytest.mark.parametrize("crop", [True, False])
def test_the_layer_is_the_function(variant: Any, crop: bool) -> None:
    layer = DiffStride2d((2.3, 1.7), 3.0, crop=crop, variant=variant)
    images = maps(2, 3, 31, 33)
    assert torch.equal(layer(images), diffstride(images, layer.strides, 3.0, crop=crop, variant=variant))
    assert layer(images).shape[-2:] == layer.output_size((31, 33))
    assert torch.equal(layer(images[0]), layer(images)[0])


def test_one_dimension() -> None:
    layer = DiffStride1d(2.5)
    signal = maps(2, 3, 100)
    assert torch.equal(layer(signal), diffstride(signal, layer.strides))
    assert layer(signal[0]).shape == (3, *layer.output_size((100,)))
    assert SpectralPool1d(4)(signal).shape == (2, 3, 24)


def test_shared_stride_takes_the_larger_bound() -> None:
    layer = DiffStride2d(1.0, shared_stride=True)
    assert layer.strides.shape == (1,)
    bound = minimum_stride(16, 4.0)  # of the shorter side
    images = maps(1, 1, 16, 48)
    assert torch.allclose(layer(images), diffstride(images, torch.full((2,), bound)), atol=1e-6)
    layer(images).square().sum().backward()
    assert layer.strides.grad != 0
    layer.project_()
    assert layer.strides.item() == pytest.approx(bound)


def test_forward_changes_nothing() -> None:
    layer = DiffStride2d((1.0, 2.3))
    assert list(layer.state_dict()) == ["strides"]
    before = layer.strides.detach().clone()
    for size in (64, 16, 64):
        layer(maps(1, 1, size, size))
    assert torch.equal(layer.strides, before)


def test_project_raises_to_the_bound_of_the_last_training_map() -> None:
    layer = DiffStride2d((1.0, 2.3))
    layer.project_()
    assert layer.strides.tolist() == pytest.approx([1.0, 2.3])
    layer(maps(1, 1, 64, 64))
    layer.eval()(maps(1, 1, 16, 16))
    layer.project_()
    assert layer.strides.tolist() == pytest.approx([64 / 60, 2.3])


def test_copies_and_replaced_parameters() -> None:
    layer, images = DiffStride2d((2.3, 1.7)), maps()
    expected = layer(images)
    assert torch.equal(copy.deepcopy(layer)(images), expected)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(images), expected)  # noqa: S301
    larger = {"strides": torch.tensor([4.0, 4.0])}
    assert torch.func.functional_call(layer, larger, images).shape[-2:] == output_size((32, 32), (4, 4))
    assert torch.equal(layer(images), expected)


def test_an_ensemble_in_one_call() -> None:
    """Weights stacked and mapped over by `torch.func.vmap`, which knows no memory formats."""
    network, images = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), DiffStride2d((2.3, 1.7))), maps()
    members = [{"0.weight": maps(4, 3, 3, 3) * scale, "0.bias": maps(4)} for scale in (1, 2)]
    stacked = {name: torch.stack([member[name] for member in members]) for name in members[0]}
    outputs = torch.func.vmap(lambda weights: torch.func.functional_call(network, weights, images))(stacked)
    for output, member in zip(outputs, members, strict=True):
        assert torch.allclose(output, torch.func.functional_call(network, member, images), atol=1e-5)


def test_averaged_weights_change_sizes() -> None:
    layer = DiffStride2d(2.0)
    averaged = torch.optim.swa_utils.AveragedModel(layer, avg_fn=lambda mean, new, count: (mean + new) / 2)
    averaged.update_parameters(layer)
    with torch.no_grad():
        layer.strides.fill_(6.0)
    averaged.update_parameters(layer)
    assert averaged(maps()).shape[-2:] == output_size((32, 32), (4, 4))


def test_memory_formats_and_precisions() -> None:
    layer, images = DiffStride2d((2.3, 1.7)), maps()
    expected = layer(images)
    assert torch.allclose(layer(images.to(memory_format=torch.channels_last)), expected, atol=1e-6)
    assert torch.equal(layer(images.transpose(-1, -2)), layer(images.transpose(-1, -2).contiguous()))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(images.bfloat16()).dtype == torch.bfloat16
        assert torch.equal(layer(images), expected)
    half = copy.deepcopy(layer).bfloat16()
    assert half.strides.dtype == torch.float32
    assert torch.equal(half.strides, layer.strides)
    assert copy.deepcopy(layer).double()(images.double()).dtype == torch.float64


def test_gradient_checkpointing() -> None:
    layer, images = DiffStride2d((2.3, 1.7)), maps().requires_grad_()
    _, expected = backward(layer, images)
    layer.zero_grad()
    torch.utils.checkpoint.checkpoint(layer, images, use_reentrant=False).square().sum().backward()
    assert torch.equal(layer.strides.grad, expected)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = DiffStride2d(2.0)
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(self.conv(images)) + self.pool(images)


@pytest.mark.parametrize("variant", ["symmetric", "official"])
def test_compiled_without_a_break(variant: Any) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    layer, images = DiffStride2d((2.3, 1.7), variant=variant), maps()
    expected = backward(layer, images)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(backward_of(compiled, layer, images), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        layer.strides.copy_(torch.tensor([4.0, 3.0]))
    expected = backward(layer, images)  # the eager look that tells the new size
    for ours, theirs in zip(backward_of(compiled, layer, images), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    backward_of(compiled, layer, images)
    counted = torch._dynamo.utils.counters["stats"]
    assert counted["unique_graphs"] == 2  # one for each size
    assert not torch._dynamo.utils.counters["graph_break"]


def backward_of(compiled: Any, layer: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    layer.zero_grad()
    output = compiled(images)
    output.square().sum().backward()
    return output.detach(), layer.strides.grad.clone()


def test_a_compiled_layer_follows_project() -> None:
    torch._dynamo.reset()
    layer, images = DiffStride2d(2.0), maps()
    layer(images)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    with torch.no_grad():
        layer.strides.fill_(4.0)
    layer.project_()
    assert compiled(images).shape[-2:] == output_size((32, 32), (4, 4))


def test_an_unknown_size_is_a_graph_break() -> None:
    torch._dynamo.reset()
    layer, images = DiffStride2d(2.0), maps()
    with pytest.raises(Exception, match="run a DiffStride layer eagerly once at this map size"):
        torch.compile(layer, fullgraph=True, backend="eager")(images)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(layer, backend="eager")(images), layer(images))


@pytest.mark.slow
def test_compiled_by_inductor() -> None:
    torch._dynamo.reset()
    model, images = Twice(), maps()
    expected = model(images)
    assert torch.allclose(torch.compile(model, fullgraph=True)(images), expected, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"variant": "official"}, {"shared_stride": True}, {"crop": False}])
def test_frozen_layers_give_the_same_and_export(options: Any) -> None:
    layer, images = DiffStride2d(2.3, **options), maps(2, 3, 31, 32)
    frozen = layer.freeze()
    assert isinstance(frozen, FixedStride)
    assert not list(frozen.parameters())
    assert frozen.output_size((31, 32)) == layer.output_size((31, 32))
    assert torch.equal(frozen(images), layer(images))
    exported = torch.export.export(frozen, (images,))
    assert torch.equal(exported.module()(images), layer(images))
    torch._dynamo.reset()
    assert torch.equal(torch.compile(frozen, fullgraph=True, backend="eager")(images), layer(images))


def test_an_exported_layer_can_be_saved(tmp_path: Path) -> None:
    layer, images = DiffStride1d(2.3), maps(2, 3, 100)
    torch.export.save(torch.export.export(layer.freeze(), (images,)), tmp_path / "layer.pt2")
    assert torch.equal(torch.export.load(tmp_path / "layer.pt2").module()(images), layer(images))


def test_freezing_a_model_keeps_shared_layers_shared() -> None:
    model = nn.ModuleDict({"main": nn.Sequential(DiffStride2d(2.3)), "short": nn.Identity()})
    model["short"] = model["main"][0]
    frozen = freeze_strides(model)
    assert frozen is model
    assert isinstance(model["short"], FixedStride)
    assert model["short"] is model["main"][0]
    assert isinstance(freeze_strides(DiffStride1d(2.0)), FixedStride)


@pytest.mark.parametrize(
    ("variant", "stride", "size", "expected"),
    [
        ("symmetric", (2, 2), (32, 32), (16, 16)),
        ("symmetric", (1, 3), (33, 33), (33, 10)),
        ("symmetric", (1.5, 40), (7, 32), (4, 2)),
        ("symmetric", (2, 2), (1, 1), (1, 1)),
        ("official", (2, 3), (33, 33), (16, 11)),
        ("official", (1, 2), (33, 30), (32, 15)),
    ],
)
def test_spectral_pooling_sizes(variant: Any, stride: Any, size: tuple[int, int], expected: tuple[int, int]) -> None:
    layer = SpectralPool2d(stride, variant=variant)
    images = maps(1, 1, *size)
    assert layer.output_size(size) == expected
    assert torch.equal(layer(images), spectral_pool(images, expected, variant=variant))
    assert not list(layer.parameters())


def test_a_saturated_stride_is_warned_of_once() -> None:
    layer = DiffStride2d(100.0)
    with pytest.warns(UserWarning, match="stride saturated"):
        layer(maps())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(maps())
        DiffStride2d(100.0).eval()(maps())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: DiffStride2d(0.5), ValueError, "`stride`"),
        (lambda: DiffStride2d((2, float("nan"))), ValueError, "`stride`"),
        (lambda: DiffStride2d((float("inf"), 2)), ValueError, "`stride`"),
        (lambda: DiffStride2d((2, 2, 2)), ValueError, "`stride`"),
        (lambda: DiffStride1d(0.9), ValueError, "`stride`"),
        (lambda: SpectralPool2d((2, 0.5)), ValueError, "`stride`"),
        (lambda: DiffStride2d((2, 3), shared_stride=True), ValueError, "shared_stride"),
        (lambda: DiffStride2d(smoothness=0), ValueError, "`smoothness`.*SpectralPool2d"),
        (lambda: DiffStride2d(smoothness=1e-4), ValueError, "`smoothness`"),
        (lambda: DiffStride2d(variant="tensorflow"), ValueError, "`variant`"),
        (lambda: SpectralPool2d(variant="tensorflow"), ValueError, "`variant`"),
        (lambda: DiffStride2d()(torch.ones(1, 1, 8, 8, dtype=torch.int32)), TypeError, "int32"),
        (lambda: DiffStride2d()(torch.ones(8, 8)), ValueError, "rank 4, or 3 .* got rank 2"),
        (lambda: DiffStride1d()(torch.ones(1, 1, 8, 8)), ValueError, "rank 3, or 2 .* got rank 4"),
        (lambda: SpectralPool2d()(torch.ones(8, 8)), ValueError, "rank 2"),
    ],
)
def test_mistakes(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_strides_lost_in_training(value: float) -> None:
    layer = DiffStride2d(2.0)
    with torch.no_grad():
        layer.strides[1] = value
    with pytest.raises(RuntimeError, match="`strides` became"):
        layer(maps())


def test_counting_each_call() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, groups=1), DiffStride2d(2.0), nn.Flatten(), nn.Linear(8 * 576, 5)
    )
    with CostCounter(model) as cost:
        model(maps())
    assert cost.macs == 3 * 8 * 9 * 32 * 32 + 8 * 576 * 5
    assert cost.map_sizes == {"1": (24, 24)}
    assert not any(layer._forward_hooks for layer in model)
    with CostCounter(Twice()) as cost:
        cost.module(maps())
        cost.module(maps(1, 3, 32, 32))
    assert cost.macs == 2 * 9 * 1024
    made = 2 * 24 * 24 * 32  # bases times mask, of both axes, once a call: for two samples, then for one
    assert cost.resampling_macs == 4 * 3 * (24 * 32 * 32 + 24 * 24 * 32) + 2 * made // 2 + 2 * made
    assert cost.map_sizes == {"pool": (24, 24)}


def test_counting_other_shapes() -> None:
    for module, images, macs in (
        (nn.Conv1d(4, 6, 5, groups=2), maps(3, 4, 20), 16 * 6 * 2 * 5),
        (nn.Conv2d(4, 6, 3, stride=2), maps(4, 9, 9), 16 * 6 * 4 * 9),
        (nn.Linear(7, 5), maps(3, 11, 7), 11 * 35),
        (nn.Linear(7, 5), maps(7), 35),
        (nn.Linear(7, 5), maps(0, 7), 0),
        (nn.ConvTranspose2d(8, 16, 3, 2, groups=4), maps(2, 8, 7, 9), 7 * 9 * 8 * 4 * 9),
        (nn.Conv3d(3, 4, 3), maps(2, 3, 8, 8, 8), 6**3 * 4 * 3 * 27),
    ):
        with CostCounter(module) as cost:
            module(images)
        assert cost.macs == macs


def test_counting_stops_after_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Linear(5, 5))
    with pytest.raises(RuntimeError), CostCounter(model):
        model(maps())
    assert not any(layer._forward_hooks for layer in model)


class Clips(nn.Module):
    """Folds the frames of a clip into the batch, and lets them attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.attention = nn.Conv2d(3, 8, 3), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, clips: Tensor) -> Tensor:
        frames = self.conv(clips.flatten(0, 1)).mean((2, 3)).unflatten(0, clips.shape[:2])
        attended = self.attention(frames, frames, frames, need_weights=False)[0]
        return attended + nn.functional.scaled_dot_product_attention(frames, frames, frames)


@pytest.mark.parametrize("training", [True, False])
def test_counting_attention_and_folded_clips(training: bool) -> None:
    """Whatever kernel runs; torch's own counter agrees, as it has these kernels from us."""
    model, clips = Clips().train(training), maps(2, 5, 3, 10, 10)
    with torch.no_grad(), CostCounter(model) as cost, FlopCounterMode(display=False) as reference:
        model(clips)
    convolutions, projections, attention = 5 * 64 * 8 * 27, 4 * 5 * 8 * 8, 2 * 5 * 5 * 8
    assert cost.layers["conv"] == convolutions
    assert cost.macs == convolutions + projections + 2 * attention
    assert cost.macs == reference.get_total_flops() / 2 / 2
    assert cost.layers[""] == attention  # of the call in its own code
    assert cost.table().splitlines()[2].startswith("| conv | 69120 | ")


def test_counting_recurrence_bilinear_forms_and_padded_attention() -> None:
    """What a fused kernel computes costs what the same product costs elsewhere; torch has no formula for these."""

    def counted(module: nn.Module, *inputs: Any, **options: Any) -> int:
        with torch.no_grad(), CostCounter(module) as cost:
            module(*inputs, **options)
        return cost.macs

    for layer, matrices in (
        (nn.LSTM(8, 16, batch_first=True), 64 * (8 + 16)),
        (nn.LSTM(8, 16, 2, batch_first=True, bidirectional=True), 2 * 64 * (8 + 16) + 2 * 64 * (32 + 16)),
        (nn.LSTM(8, 16, batch_first=True, proj_size=4), 64 * (8 + 4) + 16 * 4),
        (nn.GRU(8, 16, batch_first=True), 48 * (8 + 16)),
        (nn.RNN(8, 16, batch_first=True), 16 * (8 + 16)),
    ):
        assert counted(layer, maps(3, 7, 8)) == 7 * matrices
    assert counted(nn.Bilinear(4, 5, 6), maps(3, 4), maps(3, 5)) == 4 * 5 * 6

    enabled = torch.backends.mha.get_fastpath_enabled()
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1).eval()
    padded = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    sequences = maps(2, 5, 16)
    assert counted(encoder, sequences, src_key_padding_mask=padded) == counted(encoder, sequences)
    assert torch.backends.mha.get_fastpath_enabled() == enabled


@pytest.mark.parametrize("first", [True, False])
def test_samples_of_sequences_and_of_layers_without_a_batch(first: bool) -> None:
    def counted(module: nn.Module, *inputs: Tensor) -> int:
        with torch.no_grad(), CostCounter(module) as cost:
            module(*inputs)
        return cost.macs + cost.resampling_macs

    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=first)
    for module in (layer, nn.TransformerEncoder(layer, 1), nn.Sequential(layer)):
        sequences = maps(3, 7, 16)  # of three samples, or of seven
        one = sequences[:1] if first else sequences[:, :1]
        assert counted(module, sequences) == counted(module, one)
    for module in (nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(3, 8, 3), nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())):
        assert counted(module, maps(3, 8, 8)) == counted(module, maps(2, 3, 8, 8))

    class Tempered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 5)

        def forward(self, temperature: Tensor, rows: Tensor) -> Tensor:
            return self.linear(rows) / temperature

    assert counted(Tempered(), torch.tensor(2.0), maps(6, 4)) == 20


def test_strides_from_numpy_and_tensors() -> None:
    for number in (np.float32(2.5), np.float64(2.5), torch.tensor(2.5), np.array(2.5)):
        assert DiffStride2d(number).strides.tolist() == [2.5, 2.5]
    assert SpectralPool2d(np.int64(2)).stride == (2.0, 2.0)


def test_three_dimensions() -> None:
    layer, clips = DiffStride3d((1.0, 2.0, 1.5), 1.0), maps(2, 3, 6, 16, 12).double()
    expected = diffstride(diffstride(clips, layer.strides[1:], 1.0).movedim(2, -1), layer.strides[:1], 1.0)
    assert torch.allclose(layer(clips), expected.movedim(-1, 2), atol=1e-6)
    assert layer(clips).shape[2:] == layer.output_size((6, 16, 12))
    assert layer(clips[0]).shape == layer(clips)[0].shape
    with pytest.raises(ValueError, match="has no third axis"):
        diffstride(clips, layer.strides, variant="official")


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("axes", [2, 3])
def test_the_memory_format_is_kept(axes: int, learned: bool) -> None:
    layer: Any = DiffStride2d((2.3, 1.7)) if axes == 2 else DiffStride3d((1.2, 2.3, 1.7), 2.0)
    layer = layer if learned else layer.freeze()
    images = maps(2, 3, *(18, 32, 31)[-axes:])
    form = torch.channels_last if axes == 2 else torch.channels_last_3d
    output = layer(images.to(memory_format=form))
    assert output.is_contiguous(memory_format=form)
    assert layer(images).is_contiguous()
    assert torch.allclose(output, layer(images), atol=1e-5)


MOVES: dict[str, Any] = {
    "load": lambda layer, strides: layer.load_state_dict({"strides": strides}),
    "assign": lambda layer, strides: layer.load_state_dict({"strides": strides}, assign=True),
    "copy": lambda layer, strides: layer.strides.data.copy_(strides),  # as averages of weights are swapped in
    "replace": lambda layer, strides: setattr(layer, "strides", nn.Parameter(strides)),
}


@pytest.mark.parametrize("move", MOVES)
def test_compiled_sizes_follow_strides_that_were_moved(move: str) -> None:
    torch._dynamo.reset()
    model, images = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), DiffStride2d(2.0)).eval(), maps()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        model(images), compiled(images)
        MOVES[move](model[1], torch.tensor([1.3, 3.1]))
        assert torch.equal(compiled(images), model(images))


@pytest.mark.parametrize("move", MOVES)
def test_one_graph_follows_checkpoints_and_refuses_to_be_stale(move: str) -> None:
    torch._dynamo.reset()
    layer, images = DiffStride2d(2.0).eval(), maps()
    layer(images)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    with torch.no_grad():
        compiled(images)
        MOVES[move](layer, torch.tensor([1.3, 3.1]))
        if move in ("load", "assign"):
            assert torch.equal(compiled(images), layer(images))
        else:
            with pytest.raises(RuntimeError, match="compiled as a whole for maps of"):
                compiled(images)
            layer(images)
            assert torch.equal(compiled(images), layer(images))


def test_frozen_layers_are_compiled_once() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    layer, images = DiffStride2d(2.3).freeze(), maps()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    for _ in range(3):
        assert torch.equal(compiled(images), layer(images))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_an_exported_layer_takes_any_batch() -> None:
    frozen = DiffStride2d(2.3).freeze()
    dynamic = {0: torch.export.Dim("batch", min=1, max=64)}
    exported = torch.export.export(frozen, (maps(2, 3, 31, 32),), dynamic_shapes=(dynamic,)).module()
    for batch in (1, 2, 7):
        images = maps(batch, 3, 31, 32)
        assert torch.equal(exported(images), frozen(images))


def test_on_the_meta_device_sizes_are_those_last_known() -> None:
    layer = DiffStride2d(2.0)
    with torch.no_grad():
        layer.strides.fill_(4.0)
    meta = copy.deepcopy(layer).to("meta")
    assert meta(maps().to("meta")).shape == layer(maps()).shape
    with torch.device("meta"):
        assert DiffStride2d(2.0)(torch.zeros(1, 1, 32, 32)).shape[-2:] == (24, 24)


@pytest.mark.gpu
def test_gpu_equals_cpu() -> None:
    layer, images = DiffStride2d((2.3, 1.7)), maps()
    expected, gradient = backward(layer, images)
    with torch.autocast("cuda", torch.bfloat16):
        ours, theirs = backward(layer.cuda(), images.cuda())
    assert torch.allclose(ours.cpu(), expected, atol=1e-4)
    assert torch.allclose(theirs.cpu(), gradient, rtol=1e-3)

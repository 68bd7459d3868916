"""Layers of a stranger's network at stride 1 with a learnable stride behind them, in place.

A layer keeps its class, its weights and their names; hooks widen its input and resample its output. The hooks are
functions of modules alone, so that copies and pickles have their own.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lit_papers.diffstride.calls import CalledStrides, MapSize, cut, mend_average, per_axis_of, widen
from lit_papers.diffstride.layers import DiffStride

_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


def make_strides_learnable(layer: Any, pool: DiffStride, extra: Sequence[int]) -> None:
    """Set a strided convolution or pooling layer to stride 1 and put a learnable stride behind it, in place.

    At stride 1 it gives as many points as it gets, of which every S-th is what it gave at its stride S.

    Args:
        layer: gets a child ``pool``.
        pool: shared by all layers whose maps meet.
        extra: points it gives too few at stride 1, along each axis.
    """
    axes = pool.axes
    tuples = isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.AvgPool1d))
    layer.stride = (1,) * axes if tuples else 1
    if getattr(layer, "ceil_mode", False):
        layer.ceil_mode = False
    layer.pool = pool
    layer.extra_points = tuple(extra)
    layer.register_forward_pre_hook(_widen)
    layer.register_forward_hook(_resample)


def _widen(layer: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if max(layer.extra_points) <= 0:
        return None
    maximum = isinstance(layer, (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d))
    return (widen(inputs[0], layer.extra_points, maximum), *inputs[1:])


def _resample(layer: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    axes = layer.pool.axes
    size = [n - max(more, 0) for n, more in zip(inputs[0].shape[-axes:], layer.extra_points, strict=True)]
    if isinstance(layer, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)):
        kernel, padding = per_axis_of(layer.kernel_size, axes), per_axis_of(layer.padding, axes)
        divisor = getattr(layer, "divisor_override", None)
        extra, padded = cast(Any, layer).extra_points, layer.count_include_pad
        output = mend_average(output, size, kernel, padding, extra, padded, divisor)
    resampled: Tensor = layer.pool(cut(output, size))
    return resampled


def called_strides(module: Any) -> CalledStrides:
    """The strides in a module's own code; made, with the hooks that drive them, where there are none yet."""
    if not hasattr(module, "called_strides"):
        module.called_strides = CalledStrides()
        module.register_forward_pre_hook(_enter, prepend=True)
        module.register_forward_hook(_leave, always_call=True)
    strides: CalledStrides = module.called_strides
    return strides


def _enter(module: Any, inputs: tuple[Any, ...]) -> None:
    module.called_strides.enter()


def _leave(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
    module.called_strides.leave()


def record_output_size(layer: Any, axes: int) -> MapSize:
    """Where the size of this layer's latest output is noted from now on."""
    if not hasattr(layer, "output_map_size"):
        layer.output_map_size = MapSize()
        layer.output_map_axes = axes
        layer.register_forward_hook(_record_output)
    size: MapSize = layer.output_map_size
    return size


def _record_output(layer: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    layer.output_map_size.value = tuple(output.shape[-layer.output_map_axes :])


def record_input_size(model: Any, axes: int) -> MapSize:
    """Where the size of this network's latest input is noted from now on."""
    if not hasattr(model, "input_map_size"):
        model.input_map_size = MapSize()
        model.input_map_axes = axes
        model.register_forward_pre_hook(_record_input, prepend=True)
    size: MapSize = model.input_map_size
    return size


def _record_input(model: Any, inputs: tuple[Any, ...]) -> None:
    model.input_map_size.value = tuple(inputs[0].shape[-model.input_map_axes :])


def make_fit(layer: Any, size: MapSize) -> None:
    """Let an enlarging layer give maps of this size, in place: decoder maps fit the encoder maps they meet."""
    layer.fits = size
    layer.register_forward_hook(_fit)


def _fit(layer: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    size = layer.fits.value
    if tuple(output.shape[-len(size) :]) == size:
        return output
    with torch._C.DisableTorchFunction():  # no call of the network's own, which are counted
        return nn.functional.interpolate(output, size, mode=_INTERPOLATION[len(size)], align_corners=False)


def accept_original_checkpoints(model: nn.Module) -> None:
    """Let a converted network load what was saved before it was converted, and refuse what would load in part."""
    model.register_load_state_dict_pre_hook(_check_checkpoint)  # type: ignore[no-untyped-call]


def _check_checkpoint(
    model: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool,
    missing: list[str], unexpected: list[str], errors: list[str],
) -> None:  # fmt: skip
    own = {prefix + key: value for key, value in model.state_dict().items()}
    strides = [
        f"{prefix}{name}.strides"
        for name, layer in model.named_modules(remove_duplicate=False)
        if isinstance(layer, DiffStride) and f"{prefix}{name}.strides" in own
    ]
    found = [key for key in strides if key in state_dict]
    if strides and not found:  # the network before it was converted: its strides begin where they are
        state_dict.update({key: own[key] for key in strides})
    elif len(found) < len(strides):
        errors.append(
            f"the checkpoint has strides for {len(found)} of the {len(strides)} places of this network: it was saved "
            "from one that was converted otherwise (another example, `include` or `exclude`)"
        )
    weights = [key for key in own if key not in strides]
    if weights and not any(key in state_dict for key in weights):
        errors.append(
            f"the checkpoint has none of this network's weights, such as {weights[0]}; it has, for example, "
            f"{next((key for key in state_dict if key not in strides), 'nothing')}: take off or add a prefix"
        )

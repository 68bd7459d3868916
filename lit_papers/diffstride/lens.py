"""What learnable strides are, and what a network costs at them, at one moment."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_papers.diffstride.cost import CostCounter
from lit_papers.diffstride.figures import complexity_figure
from lit_papers.diffstride.functional import complexity_penalty, minimum_stride
from lit_papers.diffstride.layers import DiffStride
from lit_papers.lens import Lens, Moment, NotApplicable, Numbers, Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class StrideLens(Lens):
    """Strides, map sizes and multiply-adds of any network that contains `DiffStride` layers (Riad et al., ICLR 2022).

    One sample is sent through its ``forward``. The keys are those of `stride_numbers`.
    """

    name = "diffstride"
    reads = "train"

    def check(self, subject: Subject) -> Tensor:
        """The sample; refused where there is no layer."""
        if not stride_layers(subject.network):
            raise NotApplicable(no_layers(subject.network))
        inputs, _ = subject.rows(1)
        return inputs

    def look(self, moment: Moment, prepared: Tensor, history: Sequence[Mapping[str, Any]]) -> Numbers:
        """The numbers of this moment."""
        with moment.network() as network, torch.no_grad(), CostCounter(network) as counter:
            network(prepared)
            strides = {name: layer.strides.clone() for name, layer in stride_layers(network).items()}
            return {**stride_numbers(network, strides, counter)}

    def figure(self, history: Sequence[Mapping[str, Any]]) -> "Figure":
        """Strides, map sizes and cost over training."""
        return complexity_figure(history)


def stride_layers(module: nn.Module) -> dict[str, DiffStride]:
    """The layers with learnable strides by qualified name, each once."""
    return {
        name.replace("_orig_mod.", ""): layer for name, layer in module.named_modules() if isinstance(layer, DiffStride)
    }


def no_layers(module: nn.Module) -> str:
    """Why a module has nothing to show, and the cure."""
    return (
        f"there is no DiffStride layer in {type(module).__name__}: put lit_papers.diffstride.layers.DiffStride2d (1d, "
        "3d) into the network, or all at once with lit_papers.diffstride.convert.convert_strides"
    )


def stride_numbers(module: nn.Module, strides: Mapping[str, Tensor], counter: CostCounter) -> dict[str, float]:
    """What a counted forward pass shows.

    Args:
        module: with `DiffStride` layers.
        strides: their values in that pass, by name.
        counter: that watched it.

    Returns:
        ``<layer>/stride_h`` and ``_w``, ``<layer>/map_h`` and ``_w`` (``_d`` too in three dimensions, only ``_w`` in
        one) of the layers that ran; ``gmacs``, 1e9 multiply-adds for each sample, without the resampling; and
        ``penalty``, the paper's J.
    """
    numbers: dict[str, float] = {}
    areas = []
    for name, layer in stride_layers(module).items():
        if name not in counter.map_sizes:  # not used in this pass
            continue
        each = strides[name].expand(layer.axes)
        areas.append(torch.cat([each, each.new_ones(1)]) if layer.axes == 1 else each)
        for letter, stride, size in zip("dhw"[-layer.axes :], each.tolist(), counter.map_sizes[name], strict=True):
            numbers[f"{name}/stride_{letter}"] = stride
            numbers[f"{name}/map_{letter}"] = float(size)
    numbers["gmacs"] = counter.macs / 1e9
    numbers["penalty"] = complexity_penalty(areas).item() if areas else math.nan
    return numbers


def is_stuck(layer: DiffStride, strides: Tensor, size: Sequence[int]) -> bool:
    """Whether a layer's strides have no gradient on a map of this size, though they should learn.

    Along some axis (along all, if they share one stride) no frequency lies on the closed ramp, or the kept length does
    not depend on the stride. A stride of 1 is not called stuck: with a narrow ramp it is the identity, which somebody
    chose.
    """
    if not layer.strides.requires_grad:
        return False
    values = strides.expand(layer.axes).tolist()
    stuck = [_is_axis_stuck(n, stride, layer.smoothness) for n, stride in zip(size, values, strict=True)]
    return all(stuck) if layer.shared_stride else any(stuck)


def _is_axis_stuck(size: int, stride: float, smoothness: float) -> bool:
    bound = minimum_stride(size, smoothness)
    length = size / max(stride, bound)
    first = math.ceil(length / 2 + 1 - 1e-6)
    return stride > bound + 1e-6 and (length < 2 or first > min(length / 2 + 1 + smoothness, size // 2))

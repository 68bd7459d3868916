"""What any network costs and where, and which of its strides could be learned; apart, as following one is heavy."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_papers.diffstride.convert import convert_strides
from lit_papers.diffstride.cost import CostCounter
from lit_papers.diffstride.figures import cost_figure
from lit_papers.diffstride.following import STRIDED
from lit_papers.diffstride.layers import DiffStride
from lit_papers.diffstride.lens import stride_layers
from lit_papers.lens import Lens, Moment, NotApplicable, Numbers, Subject
from lit_papers.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class CostLens(Lens):
    """Where a network spends multiply-adds, and what its downsampling leaves of its maps, layer by layer.

    One sample is sent through ``forward``; the counts are exact, see `lit_papers.diffstride.cost.CostCounter`.
    """

    name = "cost"

    def check(self, subject: Subject) -> Tensor:
        """The sample."""
        inputs, _ = subject.rows(1)
        return inputs

    def look(self, moment: Moment, prepared: Tensor, history: Sequence[Mapping[str, Any]]) -> Numbers:
        """Multiply-adds and what is kept of maps.

        Returns:
            ``gmacs`` of a sample, and ``resampling_gmacs`` of DiffStride layers themselves; ``<layer>/gmacs`` of each
            layer that costs something; of each that shrinks its map ``<layer>/kept``, points behind over points before.

        Raises:
            ValueError: the network makes no product at all.
        """
        kept: dict[str, float] = {}
        with moment.network() as network, torch.no_grad():
            hooks = [
                module.register_forward_hook(_noting_points(kept, name.replace("_orig_mod.", "")))
                for name, module in network.named_modules()
                if _reduces(module)
            ]
            try:
                with CostCounter(network) as counter:
                    network(prepared)
            finally:
                for hook in hooks:
                    hook.remove()
        if not counter.macs:
            raise ValueError("no matrix product and no convolution was seen, so there is nothing to count")
        return {
            "gmacs": counter.macs / 1e9,
            "resampling_gmacs": counter.resampling_macs / 1e9,
            **{f"{name or 'itself'}/gmacs": count / 1e9 for name, count in counter.layers.items() if count},
            **{f"{name}/kept": share for name, share in kept.items() if share < 1},
        }

    def figure(self, history: Sequence[Mapping[str, Any]]) -> "Figure":
        """Bars of the layers of the last entry."""
        return cost_figure(history[-1])


class ConvertibleLens(Lens):
    """Which strides of a network could be learned by `lit_papers.diffstride.convert.convert_strides`, and their price.

    The conversion is carried out, on a copy, and thrown away.
    """

    name = "convertible"

    def check(self, subject: Subject) -> dict[str, float]:
        """Convert; refused where that cannot be done, or where there are such layers already."""
        if stride_layers(subject.network):
            raise NotApplicable("the strides are learned already: StrideLens measures them")
        inputs, _ = subject.rows(1)
        with subject.moment().network() as network, torch.no_grad():
            try:
                converted = convert_strides(network, inputs)
            except ValueError as error:
                raise NotApplicable(str(error)) from error
            with CostCounter(network) as before:
                network(inputs)
            with CostCounter(converted) as after:
                converted(inputs)
        found = {
            f"{name.removesuffix('.pool')}/stride": max(layer.known_strides)
            for name, layer in converted.named_modules(remove_duplicate=False)
            if isinstance(layer, DiffStride)
        }
        return {
            "layers": float(len(found)),
            "strides": float(len(stride_layers(converted))),
            "cost_ratio": after.macs / before.macs if before.macs else math.nan,
            **found,
        }

    def look(self, moment: Moment, prepared: dict[str, float], history: Sequence[Mapping[str, Any]]) -> Numbers:
        """What the conversion showed.

        Returns:
            ``layers`` that could learn, ``strides`` of their own that they would have (those whose maps meet share
            one), ``cost_ratio`` of the converted network to this one before it learns, and ``<layer>/stride`` now.
        """
        return {**prepared}

    def figure(self, history: Sequence[Mapping[str, Any]]) -> "Figure":
        """Bars of the present strides of the last entry."""
        figure, (axis,) = new_figure(1, 1)
        strides = {key.removesuffix("/stride"): value for key, value in history[-1].items() if key.endswith("/stride")}
        axis.barh(list(strides), list(strides.values()), color="0.5")
        axis.invert_yaxis()
        axis.tick_params(axis="y", labelsize=7)
        axis.set(xlabel="stride that could be learned")
        return figure


def _reduces(module: nn.Module) -> bool:
    """Whether a layer has a stride, or makes maps of a size of its own."""
    stride = getattr(module, "stride", None)
    strides = stride if isinstance(stride, tuple) else (stride,)
    return isinstance(module, (DiffStride, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)) or (
        isinstance(module, STRIDED) and any(isinstance(each, int) and each > 1 for each in strides)
    )


def _noting_points(kept: dict[str, float], name: str) -> Any:
    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim > 2:
            kept[name] = math.prod(output.shape[2:]) / math.prod(inputs[0].shape[2:])

    return note

"""Learnable strides for networks that somebody else wrote."""

import copy
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from lit_papers.diffstride.functional import Variant
from lit_papers.diffstride.layers import DiffStride, DiffStride2d, pair

_STRIDED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
_MEETING = {operator.add, operator.iadd, operator.mul, operator.imul, operator.sub, torch.add, torch.mul, torch.cat}
_MEETING_METHODS = {"add", "add_", "mul", "mul_"}
_GLOBAL = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Linear)
_GLOBAL_CALLS = {torch.flatten, torch.mean, nn.functional.adaptive_avg_pool2d, nn.functional.adaptive_max_pool2d}
_GLOBAL_METHODS = {"mean", "flatten", "view", "reshape"}


class Destrided(nn.Module):
    """A convolution or pooling layer at stride 1, and the learnable stride behind it.

    Args:
        layer: at stride 1.
        pool: shared by all layers whose outputs meet.
    """

    def __init__(self, layer: nn.Module, pool: DiffStride2d) -> None:
        super().__init__()
        self.layer = layer
        self.pool = pool

    def forward(self, maps: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C', h, w)``."""
        output: Tensor = self.pool(self.layer(maps))
        return output


@dataclass(frozen=True)
class _Resolution:
    """How a map came to its size: the strided layer it went through last, and the size before that, if any."""

    layer: str
    before: "_Resolution | None"


def convert_strides(
    model: nn.Module, example: Tensor | None = None, *, smoothness: float = 4.0, variant: Variant = "symmetric"
) -> nn.Module:
    """A copy of a convolutional network in which every stride is learnable.

    Each `Conv2d`, `MaxPool2d` and `AvgPool2d` with a stride above 1 becomes the same layer at stride 1 followed by a
    `DiffStride2d` that begins at that stride. Layers whose outputs are added, multiplied or concatenated share one, as
    the two paths of the paper's residual blocks do; `torch.fx` finds them. All weights are kept, but the outputs are
    new ones, as maps have n/S + 2R points now: train on. Strides inside functions (``F.max_pool2d(x, 2)``) stay fixed.

    Args:
        model: any network that `torch.fx` can trace, such as torchvision's classifiers.
        example: an input to try the result on, at other strides too; None to trust it.
        smoothness: R of all layers, >= 1e-3.
        variant: ``"symmetric"`` or ``"official"``.

    Returns:
        The converted copy. In its ``state_dict`` ``conv`` is called ``conv.layer``, beside ``conv.pool.strides``.

    Raises:
        ValueError: there is no stride to learn, the network cannot be traced, maps meet that went through different
            strides, or ``example`` does not pass, as where a fixed map size is flattened into a linear layer.

    >>> from torchvision.models import resnet18
    >>> model = convert_strides(resnet18(weights=None), torch.zeros(1, 3, 64, 64))
    >>> model.layer2[0].conv1.pool is model.layer2[0].downsample[0].pool
    True
    """
    model = copy.deepcopy(model)
    try:
        graph = fx.symbolic_trace(model).graph
    except Exception as error:  # tracing runs the network's own code: anything can come
        raise ValueError(
            f"{type(model).__name__} cannot be followed by torch.fx ({error}): put DiffStride2d layers into it by hand"
        ) from error
    strided = {name: layer for name, layer in model.named_modules() if _is_strided(layer)}
    leader = {name: name for name in strided}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for first, second in _meetings(graph, strided):
        leader[find(first)] = find(second)
    pools: dict[str, DiffStride2d] = {}
    for name, layer in strided.items():
        stride = pair(layer.stride)
        pool = pools.setdefault(find(name), DiffStride2d((stride[0], stride[1]), smoothness, variant=variant))
        if pool.strides.tolist() != stride:
            raise ValueError(
                f"{name} and {find(name)} meet, but have different strides: {stride}, {pool.strides.tolist()}"
            )
        layer.stride = (1, 1)  # in place: the copy's
    replaced: dict[nn.Module, Destrided] = {}
    for name, layer in strided.items():
        parent, _, child = name.rpartition(".")
        pool = pools[find(name)].to(next(iter(layer.parameters()), pools[find(name)].strides).device)
        setattr(model.get_submodule(parent), child, replaced.setdefault(layer, Destrided(layer, pool)))
    if not strided:
        raise ValueError(f"{type(model).__name__} has no Conv2d, MaxPool2d or AvgPool2d with a stride above 1")
    if example is not None:
        _try(model, example)
    return model


def _is_strided(layer: nn.Module) -> bool:
    return isinstance(layer, _STRIDED) and max(pair(layer.stride)) > 1


def _meetings(graph: fx.Graph, strided: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Pairs of strided layers that must shrink alike."""
    at: dict[fx.Node, _Resolution | None] = {}
    for node in graph.nodes:
        inputs = [at[before] for before in node.all_input_nodes]
        at[node] = inputs[0] if inputs else None
        if node.op == "placeholder":
            at[node] = _Resolution("the input", None)
        if node.op == "call_module":
            module = node.graph.owning_module.get_submodule(node.target)
            if node.target in strided:
                at[node] = _Resolution(node.target, at[node])
            elif isinstance(module, _GLOBAL):
                at[node] = None  # of a size that does not depend on the map's; it fits everything
        elif node.target in _GLOBAL_CALLS or (node.op == "call_method" and node.target in _GLOBAL_METHODS):
            at[node] = None
        elif node.target in _MEETING or (node.op == "call_method" and node.target in _MEETING_METHODS):
            maps = [resolution for resolution in inputs if resolution is not None]
            at[node] = maps[0] if maps else None
            for other in maps[1:]:
                yield from _unify(maps[0], other)


def _unify(first: _Resolution, second: _Resolution) -> Iterator[tuple[str, str]]:
    while first != second and first.before is not None and second.before is not None:
        yield first.layer, second.layer
        first, second = first.before, second.before
    if first != second:
        raise ValueError(
            f"maps meet that went through different numbers of strides: {first.layer} leads to one where "
            f"{second.layer} leads to the other; learnable strides could not keep their sizes equal"
        )


@torch.no_grad()
def _try(model: nn.Module, example: Tensor) -> None:
    """Run the model at its strides, and at others."""
    layers = [layer for layer in model.modules() if isinstance(layer, DiffStride)]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for factor in (1.0, 1.37):
            for layer in layers:
                layer.strides.mul_(factor)
            try:
                model(example)
            except RuntimeError as error:
                strides = [[round(stride, 2) for stride in layer.strides.tolist()] for layer in layers]
                raise ValueError(f"the converted network cannot run at the strides {strides}: {error}") from error
            finally:
                for layer in layers:
                    layer.strides.div_(factor)
    finally:
        for module, mode in modes:
            module.training = mode

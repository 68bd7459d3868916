"""Comparisons at equal cost: strides and smoothness at which a DiffStride network has another network's maps, or price.

At equal strides DiffStride's maps are larger than those of a strided convolution by a margin of 2R points, and cost
several times as much; whatever learning adds is then mixed up with what larger maps add.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_papers.diffstride.cost import CostCounter
from lit_papers.diffstride.functional import output_size
from lit_papers.diffstride.layers import DiffStride, SpectralPool1d, SpectralPool2d

MATCHES = ("sizes", "macs", "strides")

# Half of a point below the size's upper end would leave room to grow, and lose frequencies; this loses almost none.
_SLACK = 0.1


def matched_stride(size: int, target: int, smoothness: float) -> float:
    """The stride at which a map of ``size`` points becomes one of ``target`` points.

    Args:
        size: n, >= 1.
        target: even, or n itself, at most n.
        smoothness: R.

    Returns:
        A stride >= 1.

    Raises:
        ValueError: no stride does it: the target is odd, too near an odd n, or below the smallest size 2 ceil(1 + R).

    >>> round(matched_stride(32, 16, 1.0), 2), matched_stride(8, 4, 1.0), matched_stride(9, 9, 1.0)
    (2.3, 4.0, 1.0)
    """
    if target == size:
        return 1.0
    length = max(target - 2 * smoothness - _SLACK, 2.0)
    stride = max(size / length, 1.0)
    if output_size((size,), (stride,), smoothness) != (target,):
        raise ValueError(
            f"no stride makes {target} points of {size} at `smoothness`={smoothness}: sizes are even, at least "
            f"2 ceil(1 + R), and of an odd n at most n - 3; a smoothness of {max(target / 2 - 1, 0):g} or less may do"
        )
    return stride


@torch.no_grad()
def match_sizes(network: nn.Module, reference: nn.Module, example: Tensor) -> float:
    """Set the strides and the smoothness of a DiffStride network so that it has the map sizes of another, in place.

    Layers are matched by their order in the forward pass, so both should be of one architecture: spectral pooling in
    the place of DiffStride, whose sizes are also those of strided convolutions on even maps. The smoothness is that
    of the network, or the largest, at least 1, at which the smallest map can be had.

    Args:
        network: with `DiffStride2d` or `DiffStride1d` layers.
        reference: with as many `SpectralPool2d` or `SpectralPool1d` layers.
        example: an input of both.

    Returns:
        The smoothness of all layers.

    Raises:
        ValueError: the layers do not correspond, or a map is too small for any smoothness of at least 1.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, DiffStride)]
    with CostCounter(reference) as wanted:
        reference(example)
    sizes = list(zip(wanted.input_sizes.values(), wanted.map_sizes.values(), strict=True))
    if not layers or len(layers) != len(sizes):
        raise ValueError(
            f"`network` has {len(layers)} DiffStride layers, `reference` ran {len(sizes)} spectral pooling layers"
        )
    shrunk = [small for before, after in sizes for large, small in zip(before, after, strict=True) if small < large]
    # a point more than a map can have: where n/S is 2, the least, a step upwards would leave a stride without gradient
    smoothness = min([layer.smoothness for layer in layers] + [max(small / 2 - 1.5, 1.0) for small in shrunk])
    if smoothness < 1 or min(shrunk, default=4) < 4:
        raise ValueError(
            f"a map of {min(shrunk)} points at a smoothness of {smoothness:g}: below a smoothness of 1, at which maps "
            "have at least 4 points, strides get no gradient"
        )
    for layer, (before, after) in zip(layers, sizes, strict=True):
        layer.smoothness = smoothness
        strides = [matched_stride(n, m, smoothness) for n, m in zip(before, after, strict=True)]
        _set(layer, strides)
    with CostCounter(network) as found:
        network(example)
    if list(found.map_sizes.values()) != [after for _, after in sizes]:
        raise ValueError(
            f"`network` does not run its layers in the order of `reference`: its maps are "
            f"{list(found.map_sizes.values())}, not {[after for _, after in sizes]}"
        )
    return smoothness


@torch.no_grad()
def match_macs(network: nn.Module, macs: int, example: Tensor) -> int:
    """Multiply the strides of a network by the smallest factor at which it costs no more than this, in place.

    Sizes are whole and even numbers, so costs come in steps: it will cost less, by up to a step.

    Args:
        network: with DiffStride layers.
        macs: multiply-adds for each sample, as `CostCounter` counts them.
        example: an input.

    Returns:
        What it costs now.

    Raises:
        ValueError: no factor up to 64 is enough, as where the smallest maps cost more.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, DiffStride)]
    first = [layer.strides.tolist() for layer in layers]

    def cost(factor: float) -> int:
        for layer, strides in zip(layers, first, strict=True):
            _set(layer, [max(stride * factor, 1.0) for stride in strides])
        with CostCounter(network) as counter:
            network(example)
        return counter.macs

    low, high = 1.0, 64.0
    if cost(high) > macs:
        cheapest = cost(high)
        cost(1.0)
        raise ValueError(f"at 64 times its strides the network still costs {cheapest} multiply-adds, more than {macs}")
    if cost(low) <= macs:
        return cost(low)
    while high / low > 1.0005:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if cost(middle) <= macs else (middle, high)
    return cost(high)


def _set(layer: DiffStride, strides: Sequence[float]) -> None:
    if layer.shared_stride and len(set(strides)) > 1:
        raise ValueError(f"a layer of one shared stride cannot have {tuple(strides)}")
    layer.strides.copy_(layer.strides.new_tensor(strides[: len(layer.strides)]))
    layer.known_strides = list(strides[: len(layer.strides)])


def spectral_twin(network: nn.Module) -> nn.Module:
    """A copy in which spectral pooling of the same strides stands in the place of every DiffStride layer.

    Args:
        network: with `DiffStride2d` or `DiffStride1d` layers at strides of a fixed pooling.

    >>> from lit_papers.diffstride.layers import DiffStride2d
    >>> spectral_twin(nn.Sequential(DiffStride2d((2.0, 3.0))))
    Sequential(
      (0): SpectralPool2d(stride=(2.0, 3.0), variant='symmetric')
    )
    """
    twin = copy.deepcopy(network)
    made: dict[nn.Module, nn.Module] = {}
    for parent in list(twin.modules()):
        for name, child in parent.named_children():
            if isinstance(child, DiffStride):
                strides = child.strides.tolist() * (child.axes // len(child.strides))
                if child not in made:
                    one = child.axes == 1
                    made[child] = SpectralPool1d(strides[0]) if one else SpectralPool2d((strides[0], strides[1]))
                setattr(parent, name, made[child])
    return twin


@torch.no_grad()
def match(kind: str, network: nn.Module, example: Tensor) -> None:
    """Bring a DiffStride network to what its strides would cost as fixed ones, in place.

    Args:
        kind: the ``"sizes"`` or ``"macs"`` of its `spectral_twin`; or ``"strides"``, which leaves it as it is.
        network: its mode is kept.
        example: an input.

    Raises:
        ValueError: ``kind`` is unknown, or there is no solution.
    """
    if kind not in MATCHES:
        raise ValueError(f"`kind` must be one of {', '.join(MATCHES)}, got {kind!r}")
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        if kind == "sizes":
            match_sizes(network, spectral_twin(network), example)
        elif kind == "macs":
            with CostCounter(spectral_twin(network)) as counter:
                counter.module(example)
            match_macs(network, counter.macs, example)
    finally:
        for module, mode in modes:
            module.training = mode

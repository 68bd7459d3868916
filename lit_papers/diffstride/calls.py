"""Strides that stand in a network's code and not in its layers, such as ``F.max_pool2d(x, 2)``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

_POOL = ("input", "kernel_size", "stride", "padding")
_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_INTERPOLATE = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
# what each function is called, its axes (None: those of its input), and the names of its arguments
_FUNCTIONS: dict[Any, tuple[str, int | None, tuple[str, ...]]] = {F.interpolate: ("interpolate", None, _INTERPOLATE)}
for _axes in (1, 2, 3):
    _max = (*_POOL, "dilation", "ceil_mode", "return_indices")
    _average = (*_POOL, "ceil_mode", "count_include_pad", "divisor_override")
    _FUNCTIONS[getattr(F, f"max_pool{_axes}d")] = (f"max_pool{_axes}d", _axes, _max)
    _FUNCTIONS[getattr(torch, f"max_pool{_axes}d")] = (f"max_pool{_axes}d", _axes, _max)
    _FUNCTIONS[getattr(F, f"avg_pool{_axes}d")] = (f"avg_pool{_axes}d", _axes, _average)
    _FUNCTIONS[getattr(torch, f"conv{_axes}d")] = (f"conv{_axes}d", _axes, _CONVOLUTION)


@dataclass(frozen=True)
class Call:
    """One call of a function in a module's code.

    Attributes:
        function: its name.
        key: name and number among the module's calls of this function in one forward.
        axes: of the maps.
    """

    function: str
    key: str
    axes: int


@dataclass(frozen=True)
class Bound:
    """A call that resizes a map, its arguments by name."""

    function: str
    axes: int
    strides: tuple[float, ...]
    arguments: dict[str, Any]


def per_axis_of(value: Any, axes: int) -> tuple[Any, ...]:
    """A number for each axis, as torch's layers understand one number or several.

    >>> per_axis_of(2, 2), per_axis_of((2,), 2), per_axis_of((3, 1), 2)
    ((2, 2), (2, 2), (3, 1))
    """
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * axes if len(values) == 1 else values


def bind(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Bound | None:
    """A call's arguments by name; None if it does not resize by a stride above 1 or a scale factor."""
    known = _FUNCTIONS.get(func) if callable(func) and _is_hashable(func) else None
    if known is None:
        return None
    function, axes, names = known
    arguments = {**dict(zip(names, args, strict=False)), **kwargs}
    if axes is None:
        if arguments.get("scale_factor") is None:
            return None
        axes = arguments["input"].ndim - 2
        return Bound(function, axes, (1.0,) * axes, arguments)
    stride = arguments.get("stride")
    if stride is None or stride == () or stride == []:
        stride = arguments["kernel_size"] if "pool" in function else 1
    strides = tuple(float(each) for each in per_axis_of(stride, axes))
    return Bound(function, axes, strides, arguments) if max(strides) > 1 else None


def _is_hashable(func: Any) -> bool:
    return getattr(type(func), "__hash__", None) is not None


class MapSize:
    """The size of the latest map at some place in a network, for those that have to fit it."""

    def __init__(self) -> None:
        self.value: tuple[int, ...] = ()


class CalledStrides(nn.Module):
    """A module's learnable strides whose place is in its code; a child of that module, driven by its hooks.

    Args:
        pools: by the key of a `Call`.
        fits: for enlarging calls, by key: the size that they have to give.
        records: by key, where a call's size is noted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pools = nn.ModuleDict()
        self.fits: dict[str, MapSize] = {}
        self.records: dict[str, MapSize] = {}
        self._active: list[_Redirect] = []

    def enter(self) -> None:
        """The module's forward begins."""
        mode = _Redirect(self)
        mode.__enter__()  # type: ignore[no-untyped-call]
        self._active.append(mode)

    def leave(self) -> None:
        """It has ended, well or not."""
        if self._active:
            self._active.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]


class _Redirect(TorchFunctionMode):
    """Sends the calls of one forward to their learnable strides."""

    def __init__(self, strides: CalledStrides) -> None:
        super().__init__()
        self._strides = strides
        self._counts: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        bound = bind(func, args, kwargs)
        if bound is None:
            return func(*args, **kwargs)
        count = self._counts.get(bound.function, 0)
        self._counts[bound.function] = count + 1
        key = f"{bound.function}_{count}"
        if key in self._strides.pools:
            output = self._strides.pools[key](at_stride_one(func, bound))
        elif key in self._strides.fits:
            arguments = {**bound.arguments, "size": self._strides.fits[key].value, "scale_factor": None}
            output = func(**{**arguments, "recompute_scale_factor": None})
        else:
            output = func(*args, **kwargs)
        if key in self._strides.records:
            self._strides.records[key].value = tuple(output.shape[-bound.axes :])
        return output


def at_stride_one(func: Callable[..., Tensor], bound: Bound) -> Tensor:
    """The call's map before its stride: as many points as it gets, of which every S-th is what it gave."""
    arguments = dict(bound.arguments)
    axes, input = bound.axes, arguments.pop("input")
    convolution = "conv" in bound.function
    kernel = tuple(arguments["weight"].shape[2:]) if convolution else per_axis_of(arguments["kernel_size"], axes)
    dilation = per_axis_of(arguments.get("dilation", 1), axes)
    padding = arguments.get("padding", 0)
    padding = (0,) * axes if isinstance(padding, str) else per_axis_of(padding, axes)  # "valid": "same" has no stride
    extra = [d * (k - 1) - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    arguments["stride"] = (1,) * axes
    if not convolution:
        arguments["ceil_mode"] = False
    size = tuple(input.shape[-axes:])
    output = func(widen(input, extra, "max" in bound.function), **arguments)
    if "avg" in bound.function:
        output = mend_average(
            output, size, kernel, padding, extra,
            arguments.get("count_include_pad", True), arguments.get("divisor_override"),
        )  # fmt: skip
    return cut(output, size)


def widen(input: Tensor, extra: Sequence[int], maximum: bool) -> Tensor:
    """The map with so many points behind the end of each axis: zeros, or for maxima the smallest number there is."""
    if max(extra) <= 0:
        return input
    padding = [amount for each in reversed(extra) for amount in (0, max(each, 0))]
    return F.pad(input, padding, value=float("-inf") if maximum else 0.0)


def cut(output: Tensor, size: Sequence[int]) -> Tensor:
    """The first points of a map along each of its last axes."""
    for axis, n in enumerate(size, start=output.ndim - len(size)):
        if output.shape[axis] > n:
            output = output.narrow(axis, 0, n)
    return output


def mend_average(
    output: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    padding: Sequence[int],
    extra: Sequence[int],
    count_include_pad: bool,
    divisor: int | None,
) -> Tensor:
    """Averages over windows that run into the points of `widen`, as averages of the points that there are.

    This is what ``ceil_mode`` does with the windows at the border.
    """
    if divisor is not None:
        return output
    for axis, (n, k, p, more) in enumerate(zip(size, kernel, padding, extra, strict=True), output.ndim - len(size)):
        if more <= 0:
            continue
        begin = torch.arange(output.shape[axis], device=output.device) - p
        first = begin if count_include_pad else begin.clamp(min=0)

        def points(last: int, first: Tensor = first, begin: Tensor = begin, k: int = k) -> Tensor:
            return ((begin + k).clamp(max=last) - first).clamp(min=1)

        margin = p if count_include_pad else 0
        share = points(n + more + margin) / points(n + margin)
        output = output * share.to(output.dtype).reshape(-1, *[1] * (output.ndim - axis - 1))
    return output

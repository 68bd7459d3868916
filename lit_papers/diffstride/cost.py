"""What a forward pass costs, counted while it runs."""

import math
from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_COUNTED = (nn.Conv1d, nn.Conv2d, nn.Linear)


class CostCounter:
    """Counts multiply-adds and map sizes of the forward passes inside a ``with`` block.

    Convolutions (`Conv1d`, `Conv2d`) and `Linear` layers are counted, at each call; everything else, the resampling
    itself included, is not. Of a compiled module the original is watched, which costs a recompilation.

    Args:
        module: to watch, with everything inside it.

    Attributes:
        macs: multiply-adds for each sample, summed over all calls.
        map_sizes: output size ``(h, w)`` or ``(length,)`` of each DiffStride and spectral pooling layer, by qualified
            name, of its last call.
        input_sizes: likewise of their inputs.

    >>> import torch
    >>> with CostCounter(nn.Linear(3, 5)) as cost:
    ...     _ = cost.module(torch.zeros(7, 3))
    >>> cost.macs
    15
    """

    def __init__(self, module: nn.Module) -> None:
        self.module: nn.Module = getattr(module, "_orig_mod", module)
        self.macs = 0
        self.map_sizes: dict[str, tuple[int, ...]] = {}
        self.input_sizes: dict[str, tuple[int, ...]] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "CostCounter":
        # layers.py shows this class beside its layers, so it cannot be imported above
        from lit_papers.diffstride.layers import DiffStride, FixedStride, SpectralPool

        for path, child in self.module.named_modules():
            name = path.replace("_orig_mod.", "")
            if isinstance(child, _COUNTED):
                self._handles.append(child.register_forward_hook(self._count))
            elif isinstance(child, (DiffStride, FixedStride, SpectralPool)):
                self._handles.append(child.register_forward_hook(self._measure(name, child.axes)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _count(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self.macs += multiply_adds(module, output)

    def _measure(self, name: str, axes: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.map_sizes[name] = tuple(output.shape[-axes:])
            self.input_sizes[name] = tuple(inputs[0].shape[-axes:])

        return hook


def multiply_adds(module: nn.Module, output: Tensor) -> int:
    """Multiply-adds for each sample of a convolution or linear layer, from its output.

    Args:
        module: a `Conv1d`, `Conv2d` or `Linear`.
        output: of one call, with or without a batch axis.

    Returns:
        A count >= 0.
    """
    if isinstance(module, nn.Linear):
        rows = math.prod(output.shape[1:-1]) if output.ndim > 1 else 1
        return rows * module.in_features * module.out_features
    assert isinstance(module, (nn.Conv1d, nn.Conv2d))  # noqa: S101
    axes = len(module.kernel_size)
    positions = math.prod(output.shape[-axes:])
    return positions * module.out_channels * (module.in_channels // module.groups) * math.prod(module.kernel_size)

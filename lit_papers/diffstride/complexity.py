"""A regulariser in real multiply-adds, beside the paper's in map areas."""

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from lit_papers.diffstride.cost import CostCounter
from lit_papers.diffstride.functional import minimum_stride
from lit_papers.diffstride.layers import DiffStride

_CONVOLUTIONS = frozenset({
    torch.conv1d, torch.conv2d, torch.conv3d,
    torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
})  # fmt: skip


class CostPenalty(TorchFunctionMode):
    r"""Multiply-adds of the forward passes inside a ``with`` block, differentiable in the strides.

    The value is the true count of `CostCounter`. The gradient is that of the continuous size behind it: an axis of
    :math:`n` becomes :math:`n/S + 2R` (straight through the rounding), and what lies behind shrinks in proportion.
    So unlike the paper's :math:`J` it knows channels, kernels, the margin :math:`2R` of each map, and which layers a
    convolution lies behind: in a residual block the 1x1 convolution of the shortcut runs *before* the pooling layer.

    Which layer that is, is read from the autograd graph while it is built, so the passes must run eagerly, with
    gradients, and without activation checkpointing. All but convolutions, transposed ones included, counts as constant.

    Args:
        module: with `DiffStride` layers.

    >>> from lit_papers.diffstride.layers import DiffStride2d
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), DiffStride2d(2.0), nn.Conv2d(4, 4, 1))
    >>> with CostPenalty(model) as cost:
    ...     _ = model(torch.randn(1, 1, 32, 32))
    >>> cost.macs().item() == 9 * 4 * 32 * 32 + 16 * 24 * 24
    True
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module
        self._counter = CostCounter(module)
        self._handles: list[RemovableHandle] = []
        self._scaled: list[tuple[float, Tensor]] = []  # multiply-adds and the map's continuous size over its true one
        self._ratios: dict[Node, Tensor] = {}  # of the outputs of pooling layers, (axes,), value 1

    def __enter__(self) -> "CostPenalty":
        self._counter.__enter__()
        for child in self._module.modules():
            if isinstance(child, DiffStride):
                self._handles.append(child.register_forward_hook(self._after_diffstride))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._counter.__exit__(kind, error, trace)
        while self._handles:
            self._handles.pop().remove()
        self._ratios.clear()

    def macs(self) -> Tensor:
        """Multiply-adds for each sample, summed over all passes, without the resampling: a scalar, float32.

        Raises:
            RuntimeError: no convolution lies behind a learnable stride, so there is no gradient.
        """
        if not self._scaled:
            raise RuntimeError("nothing to penalise: no convolution ran behind a DiffStride layer, with gradients on")
        scaled = torch.stack([count * ratio for count, ratio in self._scaled]).sum()
        return scaled - scaled.detach() + self._counter.macs

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at each convolution."""
        before = self._counter.total
        output = func(*args, **(kwargs or {}))
        if func in _CONVOLUTIONS:
            ratio = self._ratio_of(args[0])
            if ratio is not None:
                self._scaled.append((self._counter.total - before, ratio.prod()))
        return output

    def _after_diffstride(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, DiffStride)  # noqa: S101
        if output.grad_fn is None or not module.crop:
            return
        before = self._ratio_of(inputs[0])
        strides = module.strides.expand(module.axes)
        sizes = inputs[0].shape[-module.axes :]
        ratios = []
        for axis, n in enumerate(sizes):
            ratio = strides.new_ones(()) if before is None else before[axis]
            bound = minimum_stride(n, module.smoothness)
            stride = strides[axis] + (strides[axis].clamp(min=bound) - strides[axis]).detach()
            # also where the margin still hides the stride's effect on the size: the pressure must not stop there
            length = (ratio * n / stride).clamp(min=2) + 2 * module.smoothness
            ratios.append(length / length.detach())
        self._ratios[output.grad_fn] = torch.stack(ratios)

    def _ratio_of(self, tensor: Tensor) -> Tensor | None:
        """The ratio of the nearest pooling output that this tensor was computed from; paths agree on sizes."""
        level = [] if tensor.grad_fn is None else [tensor.grad_fn]
        seen = set(level)
        while level:
            behind = []
            for node in level:
                if node in self._ratios:
                    return self._ratios[node]
                behind += [before for before, _ in node.next_functions if before is not None and before not in seen]
                seen.update(behind)
            level = behind
        return None

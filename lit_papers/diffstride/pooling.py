"""The three ways to shrink a map that the paper compares, for networks that offer all of them."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lit_papers.diffstride.functional import Variant
from lit_papers.diffstride.layers import DiffStride1d, DiffStride2d, SpectralPool1d, SpectralPool2d
from lit_papers.diffstride.resampling import check_stride, per_axis

Pooling = Literal["strided", "spectral", "diffstride"]


def stride_pairs(strides: Sequence[float | Sequence[float]], widths: Sequence[int], pooling: str) -> list[list[float]]:
    """Check the strides of a network, one entry for each of its widths.

    Args:
        strides: numbers or pairs ``(height, width)``, each >= 1.
        widths: channels.
        pooling: one of `Pooling`.

    Returns:
        Pairs.

    Raises:
        ValueError: lengths differ, ``pooling`` is unknown, or a stride is out of range or fractional where
            convolutions carry it.
    """
    if pooling not in get_args(Pooling):
        raise ValueError(f"`pooling` must be one of {', '.join(get_args(Pooling))}, got {pooling!r}")
    if len(strides) != len(widths):
        raise ValueError(
            f"`strides` and `widths` must be of equal length, got {len(strides)} and {len(widths)} entries"
        )
    pairs = [per_axis(stride, 2) for stride in strides]
    for each in pairs:
        check_stride(each)
        if pooling == "strided" and any(stride % 1 for stride in each):
            raise ValueError(f"`strides` must be integers with pooling='strided', got {tuple(each)}")
    return pairs


def make_pool(
    stride: Sequence[float], pooling: Pooling, smoothness: float, variant: Variant
) -> DiffStride1d | DiffStride2d | SpectralPool1d | SpectralPool2d | None:
    """The layer that shrinks a map behind a convolution, for one or two axes.

    Args:
        stride: of each axis.
        pooling: one of `Pooling`.
        smoothness: of DiffStride.
        variant: of both layers.

    Returns:
        None for ``"strided"``, where the convolution does it: see `conv_stride`.
    """
    if pooling == "strided":
        return None
    if pooling == "spectral":
        if len(stride) == 1:
            return SpectralPool1d(stride[0], variant=variant)
        return SpectralPool2d((stride[0], stride[1]), variant=variant)
    if len(stride) == 1:
        return DiffStride1d(stride[0], smoothness, variant=variant)
    return DiffStride2d((stride[0], stride[1]), smoothness, variant=variant)


def conv_stride(stride: Sequence[float], pooling: Pooling) -> tuple[int, ...]:
    """The stride of the convolution in front of `make_pool`'s layer."""
    return tuple(int(each) if pooling == "strided" else 1 for each in stride)


class _SamePadding(nn.Module):
    """Pads as TensorFlow's "same": ceil(n / stride) points come out, and an odd rest goes behind.

    A stride of 2 on an even map thus pads (0, 1), where PyTorch's symmetric padding would be (1, 1).
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]

    def _pad(self, input: Tensor) -> Tensor:
        padding: list[int] = []
        axes = len(self.kernel_size)
        for n, kernel, stride in zip(input.shape[-axes:], self.kernel_size, self.stride, strict=True):
            total = max((math.ceil(n / stride) - 1) * stride + kernel - n, 0)
            padding[:0] = [total // 2, total - total // 2]  # `pad` begins with the last axis
        return nn.functional.pad(input, padding) if any(padding) else input


class SameConv1d(_SamePadding, nn.Conv1d):
    """`Conv1d` without bias and with TensorFlow's "same" padding, ``(N, C, L)``."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: tuple[int, ...] = (1,)) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride[0], bias=False)
        he_normal_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """Pad and convolve."""
        return super().forward(self._pad(input))


class SameConv2d(_SamePadding, nn.Conv2d):
    """`Conv2d` without bias and with TensorFlow's "same" padding, ``(N, C, H, W)``."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: tuple[int, ...] = (1, 1)) -> None:
        super().__init__(in_channels, out_channels, kernel_size, (stride[0], stride[1]), bias=False)
        he_normal_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """Pad and convolve."""
        return super().forward(self._pad(input))


@torch.no_grad()
def he_normal_(weight: Tensor) -> None:
    """Fill with a truncated normal of variance 2 / fan-in, cut at two of its standard deviations, as Keras does."""
    fan_in = weight[0].numel()
    deviation = math.sqrt(2 / fan_in) / 0.87962566103423978  # the cut takes so much of the deviation
    nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)

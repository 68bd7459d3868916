"""Pooling in the Fourier domain with strides that do not learn: frozen ones, and spectral pooling."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_papers.diffstride.functional import (
    Variant,
    check_variant,
    minimum_stride,
    output_size,
    resample_fixed,
    spectral_pool,
    uncropped_size,
)
from lit_papers.diffstride.resampling import Resampling, check_stride, per_axis


class FixedStride(Resampling):
    """DiffStride with constant strides: what `DiffStride.freeze` makes, without parameters.

    Args:
        stride: of each axis.
        smoothness: as for `DiffStride2d`; likewise the rest.
        crop: False masks only.
        shared_stride: whether the larger bound of the axes holds for all.
        variant: ``"symmetric"`` or ``"official"``.
    """

    def __init__(
        self, stride: Sequence[float], smoothness: float, *, crop: bool, shared_stride: bool, variant: Variant
    ) -> None:
        super().__init__(len(stride))
        self.stride = tuple(stride)
        self.smoothness = smoothness
        self.crop = crop
        self.shared_stride = shared_stride
        self.variant: Variant = variant

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The size that `forward` gives to a map of this size."""
        if not self.crop:
            return uncropped_size(size, self.variant)
        return output_size(size, self._each_stride(size), self.smoothness, self.variant)

    def _each_stride(self, size: Sequence[int]) -> tuple[float, ...]:
        if not self.shared_stride:
            return self.stride
        return tuple(max(*self.stride, *(minimum_stride(n, self.smoothness) for n in size)) for _ in size)

    def forward(self, input: Tensor) -> Tensor:
        """Resample the last axes, as `DiffStride.forward` does."""
        size = self.map_size(input)
        sizes = _sizes_of_fixed(self, size)
        return resample_fixed(input, self._each_stride(size), sizes, self.smoothness, self.variant)

    def extra_repr(self) -> str:
        """The constants."""
        return f"stride={self.stride}, smoothness={self.smoothness}, crop={self.crop}, variant={self.variant!r}"


# float32 arithmetic with NumPy, which a graph would take for tensors
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _sizes_of_fixed(layer: FixedStride, size: tuple[int, ...]) -> tuple[int, ...]:
    return layer.output_size(size)


class SpectralPool(Resampling):
    """What `SpectralPool1d` and `SpectralPool2d` share.

    Args:
        stride: of each axis, >= 1.
        variant: ``"symmetric"`` or ``"official"``.
    """

    def __init__(self, stride: Sequence[float], variant: Variant) -> None:
        super().__init__(len(stride))
        check_stride(stride)
        check_variant(variant, len(stride))
        self.stride = tuple(float(each) for each in stride)
        self.variant: Variant = variant

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The size that `forward` gives to a map: n/S along an axis, rounded down to an even number, at least 2."""
        sizes = []
        for axis, (n, stride) in enumerate(zip(size, self.stride, strict=True)):
            if self.variant == "symmetric" and stride == 1:
                sizes.append(n)
                continue
            shrunk = math.floor(n / stride)
            if self.variant == "symmetric" or (len(size) == 2 and axis == 0):  # the official width may be odd
                shrunk -= shrunk % 2
            sizes.append(min(n, max(2, shrunk)))
        return tuple(sizes)

    def forward(self, input: Tensor) -> Tensor:
        """Resample the last axes.

        Args:
            input: floating, ``(N, C, H, W)`` or ``(C, H, W)``; in one dimension ``(N, C, L)`` or ``(C, L)``.

        Returns:
            The same leading axes, then `output_size` of the last ones.

        Raises:
            TypeError: ``input`` is not real and floating.
            ValueError: its rank is another.
        """
        return spectral_pool(input, self.output_size(self.map_size(input)), variant=self.variant)

    def extra_repr(self) -> str:
        """The strides."""
        return f"stride={self.stride}, variant={self.variant!r}"


class SpectralPool2d(SpectralPool):
    """Downsampling by a fixed stride in the Fourier domain (Rippel, Snoek & Adams, NeurIPS 2015).

    Args:
        stride: >= 1, one number or ``(height, width)``; need not be an integer.
        variant: ``"symmetric"`` (zero phase, keeps the mean) or ``"official"`` (DiffStride's TensorFlow baseline).

    Raises:
        ValueError: an argument is out of range.

    >>> SpectralPool2d(2)(torch.randn(8, 3, 32, 32)).shape
    torch.Size([8, 3, 16, 16])
    """

    def __init__(self, stride: float | tuple[float, float] = 2.0, *, variant: Variant = "symmetric") -> None:
        super().__init__(per_axis(stride, 2), variant)


class SpectralPool1d(SpectralPool):
    """`SpectralPool2d` for sequences ``(N, C, L)`` or ``(C, L)``.

    Args:
        stride: >= 1.
        variant: ``"symmetric"`` or ``"official"``.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, stride: float = 2.0, *, variant: Variant = "symmetric") -> None:
        super().__init__([stride], variant)

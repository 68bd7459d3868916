"""What all layers that resample a map in the Fourier domain have in common."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from torch import Tensor, nn

from lit_papers.diffstride.functional import check_input


class Resampling(nn.Module):
    """A layer that gives the last axes of a map another size; ``isinstance`` tells our layers from a network's own.

    Args:
        axes: how many, 1 to 3.
    """

    def __init__(self, axes: int) -> None:
        super().__init__()
        self.axes = axes

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The size that `forward` gives to a map of this size."""
        raise NotImplementedError

    def map_size(self, input: Tensor) -> tuple[int, ...]:
        """The size of the last axes of a map, or of a batch of maps.

        Raises:
            TypeError: it is not real and floating.
            ValueError: it has another rank.
        """
        axes = self.axes
        if input.ndim not in (axes + 1, axes + 2):
            raise ValueError(
                f"the input must have rank {axes + 2}, or {axes + 1} without a batch, got rank {input.ndim}"
            )
        check_input(input, axes)
        return tuple(int(n) for n in input.shape[-axes:])


def per_axis(stride: float | Sequence[float], axes: int) -> list[float]:
    """One stride for each axis, from one number or as many as there are axes.

    Raises:
        ValueError: there is another number of them.

    >>> per_axis(2, 2), per_axis((3, 1), 2)
    ([2.0, 2.0], [3.0, 1.0])
    """
    alone = isinstance(stride, Real) or getattr(stride, "ndim", 1) == 0  # of NumPy, or a tensor of one
    strides: list[Any] = [stride] * axes if alone else list(stride)  # type: ignore[arg-type]
    if len(strides) != axes:
        names = ("depth, height, width", "height, width", "length")[3 - axes]
        raise ValueError(f"`stride` must be one number or {axes} ({names}), got {stride!r}")
    return [float(each) for each in strides]


def check_stride(stride: Sequence[float]) -> None:
    """Refuse strides below 1, and those that are no numbers.

    Raises:
        ValueError: there is one.
    """
    if any(not 1 <= each < math.inf for each in stride):
        raise ValueError(f"`stride` must be finite and at least 1, got {tuple(stride)}")

"""What all layers that resample a map in the Fourier domain have in common."""

from collections.abc import Sequence

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

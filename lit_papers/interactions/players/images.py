"""Parts of images: the cells of a grid, and segments of any form."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_papers.interactions.checks import whole_number
from lit_papers.interactions.players.base import Players, like


class PatchGrid(Players):
    """The cells of a grid over an image, all channels together.

    Called as ``players(x, keep, baseline)`` it replaces the cells that are not kept. Pixel (r, c) of an ``H x W`` image
    belongs to cell ``(r * rows // H, c * columns // W)``, whether or not the grid divides the image.

    Args:
        grid: cells along each side, or (rows, columns).
        radius: pairs drawn at random are at most so many cells apart along each axis; None for any pair.

    Attributes:
        n_players: rows x columns; players are counted row by row.

    Raises:
        ValueError: fewer than two cells, or ``radius`` below 1.
        TypeError: one of them is no integer.

    >>> players = PatchGrid(2)
    >>> players(torch.ones(1, 1, 4, 4), torch.tensor([[True, False, False, False]]))[0, 0, 0]
    tensor([1., 1., 0., 0.])
    """

    def __init__(self, grid: int | tuple[int, int], radius: int | None = 2) -> None:
        sides = tuple(grid) if isinstance(grid, Sequence) else (grid, grid)
        if len(sides) != 2:
            raise ValueError(f"`grid` must be one number or (rows, columns), got {grid!r}")
        self.rows, self.columns = (whole_number("grid", side, least=0) for side in sides)
        if self.rows * self.columns < 2:
            raise ValueError(f"`grid` must have at least 2 cells, got {self.rows} x {self.columns}")
        super().__init__(self.rows * self.columns)
        if radius is not None:
            radius = whole_number("radius", radius, least=1)
        self.radius = radius

    def __call__(self, x: Tensor, keep: Tensor, baseline: float | Tensor = 0.0) -> Tensor:
        """Replace the cells that are not kept.

        Args:
            x: images, ``(B, C, H, W)`` or ``(1, C, H, W)``.
            keep: bool, ``(B, n_players)``.
            baseline: what replaces a pixel; broadcasts against one image.

        Returns:
            A new batch, ``(B, C, H, W)``.

        Raises:
            ValueError: ``x`` is no batch of images, or smaller than the grid.
        """
        if x.ndim != 4:
            raise ValueError(f"images must have shape (B, C, H, W), got {tuple(x.shape)}")
        height, width = x.shape[-2:]
        if self.rows > height or self.columns > width:
            raise ValueError(
                f"a grid of {self.rows} x {self.columns} cells does not fit images of {height} x {width} pixels"
            )
        row = torch.arange(height) * self.rows // height
        column = torch.arange(width) * self.columns // width
        return _masked(x, keep, row[:, None] * self.columns + column, baseline)

    def candidate_pairs(self) -> Tensor:
        """All pairs i < j within ``radius``: int64, ``(Q, 2)``."""
        pairs = torch.combinations(torch.arange(self.n_players))
        if self.radius is None:
            return pairs
        rows, columns = pairs // self.columns, pairs % self.columns
        apart = torch.maximum((rows[:, 0] - rows[:, 1]).abs(), (columns[:, 0] - columns[:, 1]).abs())
        return pairs[apart <= self.radius]


class SegmentPlayers(Players):
    """Segments of an image, such as superpixels or the regions of an atlas; the same for all images.

    Args:
        labels: of each pixel, integers from 0 to n - 1, ``(H, W)``, each at least once.

    Attributes:
        n_players: n.

    Raises:
        TypeError: labels are no integers.
        ValueError: there is no map, a label between 0 and the largest is missing, or there are fewer than two.

    >>> players = SegmentPlayers([[0, 0, 1], [2, 1, 1]])
    >>> players(torch.ones(1, 1, 2, 3), torch.tensor([[True, False, True]]))[0, 0]
    tensor([[1., 1., 0.],
            [1., 0., 0.]])
    """

    def __init__(self, labels: Tensor | Sequence[Sequence[int]]) -> None:
        found = torch.as_tensor(labels)
        if found.is_floating_point() or found.dtype == torch.bool:
            raise TypeError(f"`labels` must be integers, got {found.dtype}")
        if found.ndim != 2 or not found.numel():
            raise ValueError(f"`labels` must have shape (H, W), got {tuple(found.shape)}")
        present = torch.unique(found)
        if not torch.equal(present.cpu(), torch.arange(len(present), dtype=present.dtype)):
            raise ValueError(f"`labels` must be 0 to n - 1, each at least once, got {present.tolist()[:10]}")
        super().__init__(len(present))
        self.labels = found.long()

    @classmethod
    def superpixels(cls, image: Any, n_segments: int = 50, **options: Any) -> "SegmentPlayers":
        """Superpixels of one image, by scikit-image's SLIC.

        Args:
            image: ``(C, H, W)``.
            n_segments: about so many.
            options: of `skimage.segmentation.slic`.

        Returns:
            Players for this image.

        Raises:
            ImportError: scikit-image is missing.
        """
        try:
            from skimage.segmentation import slic
        except ImportError as error:
            raise ImportError("superpixels need scikit-image: pip install scikit-image") from error
        labels = slic(
            torch.as_tensor(image).cpu().double().numpy(), n_segments=n_segments, channel_axis=0, start_label=0,
            **options,
        )  # fmt: skip
        return cls(torch.unique(torch.as_tensor(labels), return_inverse=True)[1])

    def __call__(self, x: Tensor, keep: Tensor, baseline: float | Tensor = 0.0) -> Tensor:
        """Replace the segments that are not kept.

        Args:
            x: images, ``(B, C, H, W)`` or ``(1, C, H, W)``.
            keep: bool, ``(B, n_players)``.
            baseline: what replaces a pixel; broadcasts against one image.

        Returns:
            A new batch, ``(B, C, H, W)``.

        Raises:
            ValueError: ``x`` is no batch of images of the map's size.
        """
        if x.ndim != 4 or x.shape[-2:] != self.labels.shape:
            size = " x ".join(map(str, self.labels.shape))
            raise ValueError(f"images must have the {size} pixels of `labels`, (B, C, H, W), got {tuple(x.shape)}")
        return _masked(x, keep, self.labels, baseline)


def _masked(x: Tensor, keep: Tensor, player: Tensor, baseline: float | Tensor) -> Tensor:
    """Images ``(B, C, H, W)`` in which the pixels of players that are not kept are replaced; ``player`` is (H, W)."""
    return torch.where(keep[:, player.to(keep.device)].unsqueeze(1), x, like(baseline, x))

"""Who plays: the parts of an input that are present or replaced by a baseline."""

from collections.abc import Sequence

import torch
from torch import Tensor


class PatchGrid:
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

    >>> players = PatchGrid(2)
    >>> players(torch.ones(1, 1, 4, 4), torch.tensor([[True, False, False, False]]))[0, 0, 0]
    tensor([1., 1., 0., 0.])
    """

    def __init__(self, grid: int | tuple[int, int], radius: int | None = 2) -> None:
        self.rows, self.columns = (grid, grid) if isinstance(grid, int) else grid
        self.n_players = self.rows * self.columns
        if min(self.rows, self.columns) < 1 or self.n_players < 2:
            raise ValueError(f"`grid` must have at least 2 cells, got {self.rows} x {self.columns}")
        if radius is not None and radius < 1:
            raise ValueError(f"`radius` must be at least 1, or None, got {radius}")
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
        row = torch.arange(height, device=keep.device) * self.rows // height
        column = torch.arange(width, device=keep.device) * self.columns // width
        kept = keep[:, row[:, None] * self.columns + column].unsqueeze(1)  # (B, 1, H, W)
        return torch.where(kept, x, _like(baseline, x))

    def candidate_pairs(self) -> Tensor:
        """All pairs i < j within ``radius``: int64, ``(Q, 2)``."""
        pairs = torch.combinations(torch.arange(self.n_players))
        if self.radius is None:
            return pairs
        rows, columns = pairs // self.columns, pairs % self.columns
        apart = torch.maximum((rows[:, 0] - rows[:, 1]).abs(), (columns[:, 0] - columns[:, 1]).abs())
        return pairs[apart <= self.radius]


class FeaturePlayers:
    """The features of a table, or groups of them.

    Called as ``players(x, keep, baseline)`` it replaces the features of players that are not kept.

    Args:
        n_features: columns of a batch ``(B, n_features)``.
        groups: the features of each player, which divide all features among them; None for one player a feature.

    Attributes:
        n_players: number of features or groups.

    Raises:
        ValueError: fewer than two players, or a feature that is in no group or in several.

    >>> players = FeaturePlayers(3, groups=[[0, 2], [1]])
    >>> players(torch.ones(1, 3), torch.tensor([[True, False]]))
    tensor([[1., 0., 1.]])
    """

    def __init__(self, n_features: int, groups: Sequence[Sequence[int]] | None = None) -> None:
        self.n_features = n_features
        self.n_players = n_features if groups is None else len(groups)
        self._player = torch.arange(n_features)  # of each feature
        if groups is not None:
            owners: list[list[int]] = [[] for _ in range(n_features)]
            for player, features in enumerate(groups):
                for feature in features:
                    if not 0 <= feature < n_features:
                        raise ValueError(f"`groups` names feature {feature}, but there are 0 to {n_features - 1}")
                    owners[feature].append(player)
            for feature, found in enumerate(owners):
                if len(found) != 1:
                    raise ValueError(f"feature {feature} must be in one of `groups`, but is in {len(found)}")
            self._player = torch.tensor([found[0] for found in owners])
        if self.n_players < 2:
            raise ValueError(f"interactions need at least 2 players, got {self.n_players}")

    def __call__(self, x: Tensor, keep: Tensor, baseline: float | Tensor = 0.0) -> Tensor:
        """Replace the features that are not kept.

        Args:
            x: rows of the table, ``(B, n_features)`` or ``(1, n_features)``.
            keep: bool, ``(B, n_players)``.
            baseline: what replaces a feature; broadcasts against one row.

        Returns:
            A new batch, ``(B, n_features)``.

        Raises:
            ValueError: ``x`` has other features.
        """
        if x.ndim != 2 or x.shape[1] != self.n_features:
            raise ValueError(f"rows must have shape (B, {self.n_features}), got {tuple(x.shape)}")
        return torch.where(keep[:, self._player.to(keep.device)], x, _like(baseline, x))

    def candidate_pairs(self) -> Tensor:
        """All pairs i < j: int64, ``(Q, 2)``."""
        return torch.combinations(torch.arange(self.n_players))


def _like(baseline: float | Tensor, x: Tensor) -> Tensor:
    return torch.as_tensor(baseline, dtype=x.dtype, device=x.device)

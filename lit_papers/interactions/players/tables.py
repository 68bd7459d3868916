"""Features of a table."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_papers.interactions.checks import whole_number
from lit_papers.interactions.players.base import Players, like


class FeaturePlayers(Players):
    """The features of a table, or groups of them.

    Called as ``players(x, keep, baseline)`` it replaces the features of players that are not kept.

    Args:
        n_features: columns of a batch ``(B, n_features)``.
        groups: the features of each player, which divide all features among them; None for one player a feature.

    Attributes:
        n_players: number of features or groups.

    Raises:
        ValueError: fewer than two players, or a feature that is in no group or in several.
        TypeError: a number is no integer.

    >>> players = FeaturePlayers(3, groups=[[0, 2], [1]])
    >>> players(torch.ones(1, 3), torch.tensor([[True, False]]))
    tensor([[1., 0., 1.]])
    """

    def __init__(self, n_features: int, groups: Sequence[Sequence[int]] | None = None) -> None:
        self.n_features = whole_number("n_features", n_features, least=1)
        super().__init__(self.n_features if groups is None else len(groups))
        self._player = torch.arange(n_features)  # of each feature
        if groups is not None:
            owners: list[list[int]] = [[] for _ in range(n_features)]
            for player, features in enumerate(groups):
                for each in features:
                    feature = whole_number("groups", each, least=-n_features)
                    if not 0 <= feature < n_features:
                        raise ValueError(f"`groups` names feature {feature}, but there are 0 to {n_features - 1}")
                    owners[feature].append(player)
            for feature, found in enumerate(owners):
                if len(found) != 1:
                    raise ValueError(f"feature {feature} must be in one of `groups`, but is in {len(found)}")
            self._player = torch.tensor([found[0] for found in owners])

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
        return torch.where(keep[:, self._player.to(keep.device)], x, like(baseline, x))

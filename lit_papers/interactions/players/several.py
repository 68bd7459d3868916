"""One of several inputs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_papers.interactions.players.base import Players


class InputPlayers(Players):
    """Players in one of a network's inputs; the others are handed on as they are.

    Samples are a mapping, whose entries the network takes as keywords, or a tuple, which it takes by place.

    Args:
        players: in that input.
        name: its key, or its place in the tuple.

    Attributes:
        n_players: those of ``players``.

    >>> from lit_papers.interactions.players import FeaturePlayers
    >>> players = InputPlayers(FeaturePlayers(2), "a")
    >>> players({"a": torch.ones(1, 2), "b": torch.ones(1)}, torch.tensor([[True, False], [True, True]]))["a"]
    tensor([[1., 0.],
            [1., 1.]])
    """

    def __init__(self, players: Players, name: str | int) -> None:
        super().__init__(players.n_players)
        self.players = players
        self.name = name

    def __call__(self, x: Any, keep: Tensor, baseline: float | Tensor = 0.0) -> Any:
        """Mask one input.

        Args:
            x: a mapping or a tuple of inputs, each ``(B, ...)`` or ``(1, ...)``.
            keep: bool, ``(B, n_players)``.
            baseline: as ``players`` take it.

        Returns:
            Inputs of B rows, of the same kind.

        Raises:
            ValueError: there is no such input.
        """
        names: list[Any] = list(x) if isinstance(x, Mapping) else list(range(len(x)))
        if self.name not in names:
            raise ValueError(f"there is no input {self.name!r}, but {', '.join(map(repr, names))}")
        found = {
            name: self.players(x[name], keep, baseline) if name == self.name else _rows(x[name], len(keep))
            for name in names
        }
        return found if isinstance(x, Mapping) else tuple(found.values())

    def candidate_pairs(self) -> Tensor:
        """Those of ``players``."""
        return self.players.candidate_pairs()


def _rows(value: Any, count: int) -> Any:
    if isinstance(value, torch.Tensor) and value.ndim and len(value) == 1:
        return value.expand(count, *value.shape[1:])
    return value

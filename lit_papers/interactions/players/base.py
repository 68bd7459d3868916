"""What every kind of player has in common."""

import warnings
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor


class Players(ABC):
    """What the parts of an input are, and how the absent ones are replaced; subclass it for inputs of your own.

    Args:
        n_players: n, at least 2.

    Attributes:
        n_players: n.

    Raises:
        ValueError: fewer than two players.
    """

    def __init__(self, n_players: int) -> None:
        if n_players < 2:
            raise ValueError(f"interactions need at least 2 players, got {n_players}")
        self.n_players = n_players

    @abstractmethod
    def __call__(self, x: Any, keep: Tensor, baseline: float | Tensor = 0.0) -> Any:
        """Replace the players that are not kept.

        Args:
            x: one sample as a batch, or as many as rows of ``keep``.
            keep: bool, ``(B, n_players)``.
            baseline: what replaces an absent player; broadcasts against one sample.

        Returns:
            A new batch of B inputs for the network.
        """

    def candidate_pairs(self) -> Tensor:
        """The pairs i < j among which pairs are drawn: int64, ``(Q, 2)``; all, unless a subclass knows better."""
        return torch.combinations(torch.arange(self.n_players))


def like(baseline: float | Tensor, x: Tensor) -> Tensor:
    """A baseline in the type and on the device of ``x``, with a warning where the type cannot hold it."""
    found = torch.as_tensor(baseline, dtype=x.dtype, device=x.device)
    if not x.is_floating_point() and isinstance(baseline, float | Tensor):
        given = torch.as_tensor(baseline, dtype=torch.float64, device=x.device)
        if not torch.equal(found.double(), given):
            warnings.warn(
                f"`baseline` {baseline} becomes {found.tolist()} in inputs of {x.dtype}: convert them to float first",
                stacklevel=3,
            )
    return found

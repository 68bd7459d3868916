"""Tokens of a sentence."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_papers.interactions.checks import whole_number
from lit_papers.interactions.players.base import Players


class TokenPlayers(Players):
    """Places in a sentence; an absent token is replaced by another one, such as the tokenizer's mask.

    Special tokens are no players: they are always there. So is padding; pass the attention mask beside the tokens with
    `lit_papers.interactions.players.InputPlayers`.

    Args:
        length: L, tokens of a sentence.
        mask_token: id of the token that replaces absent ones.
        always_present: places of special tokens, such as ``[0, -1]`` for the first and the last.

    Attributes:
        n_players: L without the places that are always present; players are counted from left to right.
        places: of each player, int64, ``(n_players,)``.

    Raises:
        TypeError: a number is no integer.
        ValueError: a place is outside the sentence, or fewer than two players remain.

    >>> players = TokenPlayers(4, mask_token=9, always_present=[0, -1])
    >>> players(torch.tensor([[1, 5, 6, 2]]), torch.tensor([[True, False]]))
    tensor([[1, 5, 9, 2]])
    """

    def __init__(self, length: int, mask_token: int, always_present: Sequence[int] = ()) -> None:
        self.length = whole_number("length", length, least=1)
        self.mask_token = whole_number("mask_token", mask_token, least=0)
        plays = torch.ones(self.length, dtype=torch.bool)
        for each in always_present:
            place = whole_number("always_present", each, least=-self.length)
            if place >= self.length:
                raise ValueError(f"`always_present` names place {place} of a sentence of {self.length} tokens")
            plays[place] = False
        self.places = plays.nonzero()[:, 0]
        super().__init__(len(self.places))

    def __call__(self, x: Tensor, keep: Tensor, baseline: float | Tensor = 0.0) -> Tensor:
        """Replace the tokens that are not kept.

        Args:
            x: ids, int64, ``(B, L)`` or ``(1, L)``.
            keep: bool, ``(B, n_players)``.
            baseline: not used: ``mask_token`` is what replaces a token.

        Returns:
            A new batch, ``(B, L)``.

        Raises:
            ValueError: the sentences have another length, or are no ids.
        """
        if x.ndim != 2 or x.shape[1] != self.length or x.is_floating_point():
            raise ValueError(f"ids must be integers of shape (B, {self.length}), got {x.dtype} of {tuple(x.shape)}")
        whole = torch.ones(len(keep), self.length, dtype=torch.bool, device=keep.device)
        whole[:, self.places.to(keep.device)] = keep
        return x.masked_fill(~whole, self.mask_token)

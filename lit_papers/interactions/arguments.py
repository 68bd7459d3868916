"""Arguments of an estimate, checked before any work."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lit_papers.interactions.checks import whole_number
from lit_papers.interactions.functional import PAPER_RATIOS, orders_from_ratios

Method = Literal["auto", "exact", "sampled", "paper"]


def sample_names(ids: Sequence[int] | Tensor | None, samples: int) -> list[int]:
    """The names of samples, which decide on their random streams; 0 to B - 1 by default."""
    names = list(range(samples)) if ids is None else [int(each) for each in ids]
    if len(names) != samples:
        raise ValueError(f"`ids` has {len(names)} entries for {samples} samples")
    return names


def checked_labels(y: Tensor) -> Tensor:
    """Class indices, int64, ``(B,)``."""
    if not isinstance(y, Tensor):
        raise TypeError(f"`y` must be a tensor of class indices, got {type(y).__name__}")
    if y.is_floating_point() or y.dtype == torch.bool:
        raise TypeError(
            f"`y` must be class indices, got {y.dtype}: for regression pass `value_fn=prediction`, for one probability "
            "or flag a sample `y.long()`"
        )
    if y.ndim != 1:
        raise ValueError(
            f"`y` must be one class index for each sample, (B,), got {tuple(y.shape)}: pass `y[:, 0]`, or "
            "`y.argmax(1)` of one-hot labels"
        )
    return y.long()


def checked_orders(orders: Sequence[int] | None, n: int, method: Method) -> list[int]:
    """Orders from 0 to n - 2, ascending and distinct; the authors' own with repeats."""
    if orders is None:
        if method == "paper":
            return [int((n - 2) * ratio) for ratio in PAPER_RATIOS]
        return list(range(n - 1)) if n <= 16 else orders_from_ratios(n)
    checked = [whole_number("orders", order, least=-n) for order in orders]
    for order in checked:
        if not 0 <= order <= n - 2:
            raise ValueError(f"order {order} is outside 0 to {n - 2}, for {n} players")
    if not checked:
        raise ValueError("`orders` is empty")
    return checked if method == "paper" else sorted(set(checked))


def checked_pairs(pairs: Any, n: int) -> int | Tensor:
    """A number of pairs, or pairs, int64, ``(P, 2)``."""
    if isinstance(pairs, str):
        if pairs != "all":
            raise ValueError(f"`pairs` must be a number, 'all' or pairs (P, 2), got {pairs!r}")
        return torch.combinations(torch.arange(n))
    if (isinstance(pairs, Tensor | np.ndarray) and pairs.ndim) or isinstance(pairs, Sequence):
        try:
            found = torch.as_tensor(pairs)
        except (TypeError, ValueError):
            raise ValueError(f"`pairs` must be a number, 'all' or pairs (P, 2), got {pairs!r}") from None
        if found.is_floating_point() or found.dtype == torch.bool:
            raise TypeError(f"`pairs` must be integers, got {found.dtype}")
        if found.ndim != 2 or found.shape[1] != 2 or not len(found):
            raise ValueError(f"`pairs` must have shape (P, 2), got {tuple(found.shape)}")
        for i, j in found.tolist():
            if i == j or not (0 <= i < n and 0 <= j < n):
                raise ValueError(f"pair ({i}, {j}) must be of two different players from 0 to {n - 1}")
        return found.long().cpu()
    return whole_number("pairs", pairs, least=1)

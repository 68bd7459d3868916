"""64-bit hashes of colours: the finaliser of splitmix64, and a faster one for sums of many."""

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_Numbers = TypeVar("_Numbers", Tensor, NDArray[np.int64])


def mix(values: Tensor, salt: int) -> Tensor:
    """The finaliser of splitmix64, of which each salt is another function; overflow is meant.

    Args:
        values: int64, any shape.
        salt: at least 0.

    Returns:
        int64 of the same shape; equal where the values are, and a bijection.
    """
    z = values + _signed(0x9E3779B97F4A7C15 * (salt + 1))
    for bits, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        # the mask makes the shift logical: that of a negative int64 brings in ones
        z ^= (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)
        if factor != 1:
            z *= _signed(factor)
    return z


def spread(values: _Numbers) -> _Numbers:
    """A hash whose sums over multisets differ where the multisets do, in half the operations of `mix`.

    Two rounds of multiplication and xor-shift: after one, sums over values in arithmetic progression, as degrees make
    them, would agree in all but 32 bits. The shifts are arithmetic and cost a bit each; 62 are left.

    Args:
        values: int64, a tensor or an array: the same numbers come out.
    """
    if isinstance(values, Tensor) and values.device.type == "cpu":
        return torch.from_numpy(spread(values.numpy()))  # of which the small operations are faster
    z = values * -7046029254386353131
    z ^= z >> 32
    z *= -4658895280553007687
    z ^= z >> 29
    return z


def _signed(value: int) -> int:
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value

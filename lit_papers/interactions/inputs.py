"""Samples in any form that a network takes: a tensor, several by name or place, or a list of graphs."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def count(x: Any) -> int:
    """How many samples there are.

    Args:
        x: a tensor ``(B, ...)``, a mapping or a tuple of such, or a list of B samples.

    Returns:
        B.

    Raises:
        TypeError: ``x`` is something else.
    """
    if isinstance(x, list) and x and all(isinstance(part, Tensor) for part in x):
        raise TypeError("`x` is a list of tensors: pass `torch.stack(x)`, or a tuple if they are several inputs")
    if isinstance(x, list) or (isinstance(x, Tensor) and x.ndim):
        return len(x)
    parts = [part for part in _parts(x) if isinstance(part, Tensor)]
    if not parts:
        raise TypeError(
            f"`x` must be a tensor, a mapping or tuple of tensors, or a list of graphs, got {type(x).__name__}"
        )
    return len(parts[0])


def take(x: Any, place: int) -> Any:
    """One sample, as a batch of one in the same form."""
    if isinstance(x, Tensor | list):
        return x[place : place + 1]
    if isinstance(x, Mapping):
        return {key: _take_part(part, place) for key, part in x.items()}
    return tuple(_take_part(part, place) for part in x)


def tensors_in(x: Any) -> Iterator[Tensor]:
    """All tensors of the samples, in order."""
    if isinstance(x, Tensor):
        yield x
    elif hasattr(x, "to_dict"):  # a graph
        yield from tensors_in(x.to_dict())
    elif isinstance(x, Mapping | tuple | list):
        for part in _parts(x):
            yield from tensors_in(part)


def in_precision(x: Any, dtype: torch.dtype) -> Any:
    """Inputs of a network with their floats in another type."""
    if isinstance(x, Tensor):
        return x.to(dtype) if x.is_floating_point() else x
    if isinstance(x, Mapping):
        return {key: in_precision(part, dtype) for key, part in x.items()}
    if isinstance(x, tuple):
        return tuple(in_precision(part, dtype) for part in x)
    return x


def device_of(x: Any) -> torch.device:
    """Where the samples are; the CPU, if there is no tensor."""
    first = next(tensors_in(x), None)
    return torch.device("cpu") if first is None else first.device


def _take_part(part: Any, place: int) -> Any:
    return part[place : place + 1] if isinstance(part, Tensor) and part.ndim else part


def _parts(x: Any) -> list[Any]:
    if isinstance(x, Mapping):
        return list(x.values())
    return list(x) if isinstance(x, tuple | list) else []

"""Rows of a pass kept for after it, in bounded memory: NC4 compares features with means that come only at the end."""

from collections.abc import Sequence

import torch
from torch import Tensor

# 2^27 bytes hold all features of CIFAR-10 for a ResNet-18, and 16 384 rows of ImageNet's for a ResNet-50.
LIMIT_BYTES = 2**27


class Reservoir:
    """All rows of a pass while they fit, and from then on a uniform sample of them without replacement.

    The means that NC4 needs are known when the pass ends, and then its features are gone. Keeping them grows with the
    data; a second pass doubles the cost; means from an earlier measurement answer another question. So the reservoir
    keeps what fits into ``limit_bytes`` on the host (Vitter 1985, algorithm R), exact for data that fit, else with the
    standard error that :func:`stratified_share` gives. It draws from a generator of its own.

    Args:
        limit_bytes: memory for the rows of all columns together, at least one row is kept.
        seed: of the sample.

    Attributes:
        seen: rows that were added.
        kept: rows that are held.

    Raises:
        ValueError: ``limit_bytes`` is not positive; from ``add``, columns of different lengths, or that changed shape.

    >>> reservoir = Reservoir(limit_bytes=80)
    >>> for start in range(0, 1000, 100):
    ...     reservoir.add(torch.arange(start, start + 100))
    >>> reservoir.seen, reservoir.kept, reservoir.columns()[0].shape
    (1000, 10, torch.Size([10]))
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES, seed: int = 0) -> None:
        if limit_bytes < 1:
            raise ValueError(f"limit_bytes must be at least 1, got {limit_bytes}")
        self.limit_bytes = limit_bytes
        self.seen = 0
        self._random = torch.Generator().manual_seed(seed)
        self._columns: list[Tensor] = []

    @property
    def kept(self) -> int:
        """Rows that are held."""
        return min(self.seen, len(self._columns[0])) if self._columns else 0

    def add(self, *columns: Tensor) -> None:
        """Offer rows: tensors with one row each per sample, always as many and of the same shapes beyond the first."""
        if len({len(column) for column in columns}) != 1:
            raise ValueError(f"columns must be of one length, got {[len(column) for column in columns]}")
        columns = tuple(column.detach() for column in columns)
        if not self._columns:
            row_bytes = sum(column[:1].numel() * column.element_size() for column in columns)
            capacity = max(1, self.limit_bytes // max(1, row_bytes)) if len(columns[0]) else 0
            if capacity == 0:
                return  # an empty batch does not tell how large a row is
            # memory is taken when it is written, not here
            self._columns = [torch.empty(capacity, *column.shape[1:], dtype=column.dtype) for column in columns]
        if [column.shape[1:] for column in columns] != [held.shape[1:] for held in self._columns]:
            raise ValueError(f"columns changed their shapes to {[tuple(column.shape) for column in columns]}")
        rows, held, capacity = len(columns[0]), self.kept, len(self._columns[0])
        first = min(rows, capacity - held)
        for column, target in zip(columns, self._columns, strict=True):
            target[held : held + first] = column[:first]
        self._replace([column[first:] for column in columns], self.seen + first)
        self.seen += rows

    def columns(self) -> tuple[Tensor, ...]:
        """The rows that are held, on the host, one tensor for each column."""
        return tuple(held[: self.kept] for held in self._columns)

    def _replace(self, columns: Sequence[Tensor], seen: int) -> None:
        """Row number t (from 0) takes a random place out of t + 1, and is dropped if that lies outside."""
        rows, capacity = len(columns[0]), len(self._columns[0])
        if rows == 0:
            return
        draws = torch.rand(rows, generator=self._random, dtype=torch.float64)
        places = (draws * torch.arange(seen + 1, seen + rows + 1)).long()
        inside = (places < capacity).nonzero()[:, 0]
        latest = dict(zip(places[inside].tolist(), inside.tolist(), strict=True))  # of two in one place the later stays
        targets, sources = torch.tensor(list(latest), dtype=torch.int64), torch.tensor(list(latest.values()))
        for column, held in zip(columns, self._columns, strict=True):
            held[targets] = column[sources.to(column.device, torch.int64)].to(held.device, held.dtype)


def stratified_share(hits: Tensor, kept: Tensor, seen: Tensor) -> tuple[float, float]:
    r"""A share of all samples, estimated from a uniform sample on each process, with its standard error.

    .. math:: \hat p = \sum_r \frac{N_r}{N} \frac{x_r}{m_r}, \qquad
              \mathrm{se}^2 = \sum_r \Big(\frac{N_r}{N}\Big)^2 \Big(1 - \frac{m_r}{N_r}\Big)
              \frac{\tilde p_r (1 - \tilde p_r)}{m_r}, \qquad \tilde p_r = \frac{x_r + 1}{m_r + 2}

    Stratified sampling without replacement (Cochran 1977, chapter 5). The error is 0 where everything was kept, and
    not 0 where nothing was found in a part (hence ``x + 1`` of ``m + 2``).

    Args:
        hits: samples ``x_r`` of the kept ones that have the property, shape ``(R,)`` for ``R`` processes.
        kept: sizes ``m_r`` of the samples, shape ``(R,)``.
        seen: all samples ``N_r``, shape ``(R,)``; a process may have had none.

    Returns:
        Share and standard error, both in ``[0, 1]``; NaN if nothing was seen.

    >>> stratified_share(torch.tensor([3.0]), torch.tensor([12.0]), torch.tensor([12.0]))
    (0.25, 0.0)
    """
    hits, kept, seen = (part.double()[seen > 0] for part in (hits, kept, seen))
    if len(seen) == 0:
        return float("nan"), float("nan")
    weights = seen / seen.sum()
    guess = (hits + 1) / (kept + 2)
    variance = weights.square() * (1 - kept / seen) * guess * (1 - guess) / kept
    return (weights * hits / kept).sum().item(), variance.sum().sqrt().item()

"""Some rows out of many batches, of as many different targets as are wanted."""

import torch
from torch import Tensor

_LONGEST = 100  # times as many rows as are wanted are read of a stream


def _names(targets: Tensor) -> list[bytes]:
    return [each.numpy().tobytes() for each in targets.cpu().reshape(len(targets), -1).to(torch.float64)]


class Sample:
    """Rows that are kept while batches go by.

    Without a seed the first rows are kept; then those of targets that were not among them, until there are enough. With
    one, every row of the stream has the same chance, as its targets may be sorted, and each target keeps one row; of a
    very long stream the beginning is read.

    Args:
        most: rows; None keeps all.
        distinct: different targets to look for beyond that.
        seed: of the choice among all rows of a stream; None for rows in an order that is random already.

    Attributes:
        enough: whether no more batches are needed.

    >>> sample = Sample(2, distinct=2)
    >>> for label in (0, 0, 0, 1):
    ...     sample.add(torch.ones(1), torch.tensor([label]))
    >>> sample.rows()[1].tolist(), sample.enough
    ([0, 0, 1], True)
    """

    def __init__(self, most: int | None, distinct: int = 1, seed: int | None = None) -> None:
        self.most = most
        self.distinct = distinct
        self._random = None if seed is None or most is None else torch.Generator().manual_seed(seed)
        self._inputs: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._keys: list[Tensor] = []
        self._seen: set[bytes] = set()
        self._offered = 0
        self.enough = False

    def __len__(self) -> int:
        return sum(map(len, self._targets))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Offer a batch: inputs ``(N, ...)`` and targets ``(N, ...)``; what is kept is copied."""
        names = _names(y) if self.distinct > 1 else [b""] * len(y)
        self._offered += len(y)
        if self._random is None and self.most is not None and len(self) >= self.most:
            kept = torch.tensor([name not in self._seen for name in names], dtype=torch.bool, device=y.device)
            x, y = x[kept.to(x.device)], y[kept]
        self._seen.update(names)
        if len(x):
            self._inputs.append(x.clone())  # a loader may reuse its memory
            self._targets.append(y.clone())
        if self._random is not None:
            self._keys.append(torch.rand(len(x), generator=self._random, dtype=torch.float64))
            if len(self) > 2 * (self.most or 0) + len(self._seen):
                self._thin_out()
            self.enough = self._offered >= _LONGEST * (self.most or 1)  # some streams never end
        elif self.most is not None:
            self.enough = len(self) >= self.most and len(self._seen) >= self.distinct

    def rows(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets that were kept: ``most`` of them, and those of targets that are not among these."""
        if self._random is not None:
            self._thin_out()
        x, y = torch.cat(self._inputs), torch.cat(self._targets)
        if self.most is None or self.distinct == 1:
            return x[: self.most], y[: self.most]
        first = set(_names(y[: self.most]))
        kept = torch.tensor([place < self.most or name not in first for place, name in enumerate(_names(y))])
        return x[kept.to(x.device)], y[kept.to(y.device)]

    def _thin_out(self) -> None:
        """Keep the rows of the smallest keys, and the smallest of each target."""
        x, y, keys = torch.cat(self._inputs), torch.cat(self._targets), torch.cat(self._keys)
        order = keys.argsort()
        of = torch.unique(y.cpu().reshape(len(y), -1)[order], dim=0, return_inverse=True)[1]
        first = torch.full((int(of.max()) + 1,), len(of)).scatter_reduce(0, of, torch.arange(len(of)), "amin")
        kept = order[torch.unique(torch.cat([torch.arange(min(self.most or 0, len(of))), first]))]
        self._inputs, self._targets, self._keys = [x[kept.to(x.device)]], [y[kept.to(y.device)]], [keys[kept]]

"""The nearest-neighbour classifier that scores frozen features (Wu et al. 2018), in little memory."""

import torch
from torch import Tensor

_FEWEST_QUERIES = 32  # fewer rows than these make a product of matrices slow


def knn_scores(
    query: Tensor,
    bank: Tensor,
    labels: Tensor,
    num_classes: int,
    k: int = 200,
    temperature: float = 0.1,
    max_bytes: int = 2**28,
) -> Tensor:
    r"""How much the nearest neighbours of each query speak for each class.

    .. math:: s_c(q) = \sum_{j \in \mathrm{top}\,k,\ y_j = c} \exp\big((\cos(q, f_j) - 1) / \tau\big)

    The 1 leaves the order as it is, and half precision finite. Queries and bank are taken in chunks with a running
    top k, so that neither their product nor a copy of the bank need fit into memory. The search is in float32 at
    least, also under autocast: behind a ReLU cosines lie within hundredths, which half precision does not rank.

    Args:
        query: features ``(Q, D)``, of any length but 0.
        bank: features ``(N, D)``.
        labels: int64 ``(N,)``, in 0..num_classes-1.
        num_classes: C.
        k: neighbours; at most all N are taken.
        temperature: tau, > 0.
        max_bytes: what may be used at a time, about.

    Returns:
        Scores ``(Q, C)``, in [0, k].

    Raises:
        ValueError: an argument is out of its range, shapes do not fit, or features are not finite.

    >>> knn_scores(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), num_classes=2, k=1)
    tensor([[1., 0.],
            [0., 1.]])
    """
    if k < 1:
        raise ValueError(f"`k` must be at least 1, got {k}")
    if temperature <= 0:
        raise ValueError(f"`temperature` must be positive, got {temperature}")
    if query.dim() != 2 or bank.dim() != 2 or query.shape[1] != bank.shape[1] or len(bank) != len(labels):
        raise ValueError(
            f"`query` (Q, D), `bank` (N, D) and `labels` (N,) do not fit: {tuple(query.shape)}, {tuple(bank.shape)}, "
            f"{tuple(labels.shape)}"
        )
    if not len(bank):
        raise ValueError("`bank` is empty")
    lengths, k = _lengths(bank, "bank"), min(k, len(bank))
    return _scores(query, bank, lengths, labels, num_classes, k, temperature, max_bytes, beside_the_nearest=False)


def _scores(
    query: Tensor,
    bank: Tensor,
    lengths: Tensor,
    labels: Tensor,
    num_classes: int,
    k: int,
    temperature: float,
    max_bytes: int,
    *,
    beside_the_nearest: bool,
) -> Tensor:
    """Scores by a bank whose lengths are known, ``(Q, C)``; of a cosine beside 1, or beside the nearest one's."""
    query = query.to(lengths.dtype) / _lengths(query, "query")[:, None]
    scores = query.new_zeros(len(query), num_classes, dtype=torch.float32)
    queries, others = _chunk_sizes(len(query), len(bank), k, lengths.element_size(), max_bytes)
    with torch.autocast(query.device.type, enabled=False):
        for start in range(0, len(query), queries):
            part = query[start : start + queries]
            cosine, neighbour = _nearest(part, bank, lengths, k, others)
            best = cosine.amax(dim=1, keepdim=True) if beside_the_nearest else 1
            weight = cosine.sub_(best).float().div_(temperature).exp_()
            scores[start : start + queries].scatter_add_(1, labels[neighbour], weight)
    return scores


def _nearest(query: Tensor, bank: Tensor, lengths: Tensor, k: int, chunk: int) -> tuple[Tensor, Tensor]:
    """Cosines and indices of the nearest k of the bank, each ``(Q, k)``."""
    best = query.new_empty(len(query), 0)
    index = torch.empty(len(query), 0, dtype=torch.int64, device=query.device)
    for start in range(0, len(bank), chunk):
        part = bank[start : start + chunk].to(query.dtype)
        # the product is divided, as a normalised copy of the bank would double it
        cosine = (query @ part.T).div_(lengths[start : start + chunk])
        top, where = cosine.topk(min(k, len(part)), dim=1)
        del cosine
        if best.shape[1] == 0:
            best, index = top, where + start
            continue
        best, index = torch.cat([best, top], dim=1), torch.cat([index, where + start], dim=1)
        best, kept = best.topk(min(k, best.shape[1]), dim=1)
        index = index.gather(1, kept)
    return best, index


def _chunk_sizes(queries: int, bank: int, k: int, itemsize: int, max_bytes: int) -> tuple[int, int]:
    """Rows of queries and of the bank whose product may be held at a time."""
    cells = max(1, max_bytes // itemsize)
    whole = cells // bank  # queries that can see the whole bank at once, which is fastest
    if whole >= min(queries, _FEWEST_QUERIES):
        return max(1, min(queries, whole)), bank
    rows = min(queries, _FEWEST_QUERIES)
    return rows, max(k, cells // rows)


def _lengths(features: Tensor, name: str) -> Tensor:
    wide = torch.promote_types(features.dtype, torch.float32)
    lengths = torch.linalg.vector_norm(features, dim=1, dtype=wide)
    limits = torch.finfo(wide)
    # squares may be too small or too large for the type where numbers are not
    odd = ~((lengths > limits.tiny**0.5 / limits.eps) & lengths.isfinite())
    if bool(odd.any()):
        rows = features[odd].to(wide)
        largest = rows.abs().amax(dim=1, keepdim=True).clamp_min(limits.tiny)
        lengths[odd] = torch.linalg.vector_norm(rows / largest, dim=1) * largest[:, 0]
    if not bool(torch.isfinite(lengths).all()):
        raise ValueError(f"features of the `{name}` are not finite (NaN or infinite)")
    floor: Tensor = lengths.clamp_min(limits.tiny)
    return floor


class KNNClassifier:
    """A bank of labelled features that predicts the class of others.

    Args:
        k: neighbours; at most all of the bank are taken.
        temperature: of their weights, > 0 (the paper: 0.1).
        max_bytes: what a prediction may use at a time, about, beside the bank.

    Raises:
        ValueError: an argument is out of its range.

    >>> knn = KNNClassifier(k=1)
    >>> knn.update(torch.eye(2), torch.tensor([4, 5]))
    >>> knn.predict(torch.tensor([[0.1, 0.9]]))
    tensor([5])
    """

    def __init__(self, k: int = 200, temperature: float = 0.1, max_bytes: int = 2**28) -> None:
        if k < 1:
            raise ValueError(f"`k` must be at least 1, got {k}")
        if temperature <= 0:
            raise ValueError(f"`temperature` must be positive, got {temperature}")
        self.k = k
        self.temperature = temperature
        self.max_bytes = max_bytes
        self.reset()

    def reset(self) -> None:
        """Forget the bank."""
        self._features: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._lengths: list[Tensor] = []
        self._classes: Tensor | None = None

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Append features ``(N, D)`` with labels ``(N,)``, any integers.

        Raises:
            ValueError: the features are no floats or not finite, or there is not one whole label for each.
        """
        for name, given in (("features", features), ("labels", labels)):
            if not isinstance(given, Tensor):
                raise ValueError(f"`{name}` must be a tensor, got {type(given).__name__}")
        if features.dim() != 2 or not features.is_floating_point():
            raise ValueError(f"`features` must be floats (N, D), got {features.dtype} {tuple(features.shape)}")
        if labels.shape != features.shape[:1] or labels.dtype == torch.bool or labels.is_floating_point():
            raise ValueError(
                f"`labels` must be integers, one for each of {len(features)} features, got {labels.dtype} "
                f"{tuple(labels.shape)}"
            )
        self._lengths.append(_lengths(features, "bank"))
        self._features.append(features)
        self._labels.append(labels)
        self._classes = None

    @property
    def classes(self) -> Tensor:
        """The labels in the bank, sorted, ``(C,)``.

        Raises:
            RuntimeError: the bank is empty.
        """
        if self._classes is None:
            self._classes = torch.unique(self._bank()[1]).cpu()
        return self._classes

    def predict(self, query: Tensor) -> Tensor:
        """The class that has most of the neighbours' weight; of equals, the lowest.

        Args:
            query: features ``(Q, D)``.

        Returns:
            Labels as they were given, ``(Q,)``.

        Raises:
            RuntimeError: the bank is empty.
            ValueError: the features are not finite.
        """
        bank, labels, lengths = self._bank()
        classes = self.classes.to(labels.device)
        numbers = torch.searchsorted(classes, labels)
        if query.dim() != 2 or query.shape[1] != bank.shape[1]:
            raise ValueError(
                f"`query` {tuple(query.shape)} does not fit the bank's features of {bank.shape[1]} numbers"
            )
        k = min(self.k, len(bank))
        # beside 1, all would vanish where the temperature is low: the order is the same
        scores = _scores(
            query, bank, lengths, numbers, len(classes), k, self.temperature, self.max_bytes, beside_the_nearest=True
        )
        winners = scores == scores.amax(dim=1, keepdim=True)
        # argmax does not promise the first of equals
        ranks = torch.arange(len(classes), device=scores.device).expand_as(scores)
        first: Tensor = ranks.where(winners, len(classes)).amin(dim=1)
        return classes[first]

    def _bank(self) -> tuple[Tensor, Tensor, Tensor]:
        if not self._features:
            raise RuntimeError("the bank of the KNN classifier is empty: `update` it first")
        if len(self._features) > 1:  # once, not at every prediction
            self._features, self._labels = [torch.cat(self._features)], [torch.cat(self._labels)]
            self._lengths = [torch.cat(self._lengths)]
        return self._features[0], self._labels[0], self._lengths[0]

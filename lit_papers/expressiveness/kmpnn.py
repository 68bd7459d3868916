"""k-MPNNs and k-FGNNs: networks on tuples of k nodes that reach their bound, folklore k-WL."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_papers.expressiveness.graph_batch import read_graphs

_BIAS = 0.1  # of layers that a norm follows: it sees to their spread, and biases as large as that drown the differences


class Sine(nn.Module):
    """``sin(frequency x)``: unlike a saturating activation, it keeps what the layers below told apart.

    Args:
        frequency: of the sine.
    """

    def __init__(self, frequency: float = 5.0) -> None:
        super().__init__()
        self.frequency = frequency

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return torch.sin(self.frequency * x)


def atomic_features(data: Any, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Atomic types of all k-tuples, as numbers.

    Args:
        data: PyG ``Data`` or ``Batch``.
        k: at least 1.

    Returns:
        features (B, n, ..., n, C), the node features and number of loops of each place, and for each pair of places
        whether they are equal and how many edges lead from one to the other; adjacency (B, n, n), row to column; mask
        (B, n, ..., n) of real tuples. In a directed graph 2-tuples see both directions, as (v, u) and (u, v).

    Raises:
        ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1; got {k}.")
    graphs = read_graphs(data)
    floating = graphs.x is not None and graphs.x.is_floating_point()
    dtype = graphs.x.dtype if floating and graphs.x is not None else torch.get_default_dtype()
    adjacency = graphs.adjacency().to(dtype)
    b, n = graphs.num_graphs, graphs.width
    nodes = graphs.mask.to(dtype)[..., None] if graphs.x is None else graphs.pad(graphs.x.to(dtype))
    nodes = torch.cat([nodes, adjacency.diagonal(dim1=1, dim2=2)[..., None]], 2)
    same = torch.eye(n, dtype=dtype, device=adjacency.device).expand(b, n, n)
    pairs = torch.stack([same, adjacency], 3)
    parts = []
    mask = torch.ones(b, *[1] * k, dtype=torch.bool, device=adjacency.device)
    for i in range(k):
        shape = [b, *[1] * k]
        shape[i + 1] = n
        mask = mask & graphs.mask.view(shape)
        parts.append(nodes.view(*shape, nodes.shape[2]).expand(b, *[n] * k, -1))
        for j in range(i + 1, k):
            across = list(shape)
            across[j + 1] = n
            parts.append(pairs.reshape(*across, 2).expand(b, *[n] * k, 2))
    return torch.cat(parts, k + 1) * mask[..., None], adjacency, mask


class TupleNorm(nn.Module):
    """Batch norm over all real tuples of a batch: (B, n, ..., n, C) values, padding stays 0.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """Normalised values, of the same shape."""
        result = torch.zeros_like(h)
        result[mask] = self.norm(h[mask])
        return result


class _TupleConv(nn.Module):
    """What both layers share: their linear maps, and the update of a tuple with what was aggregated."""

    def __init__(
        self, k: int, in_channels: int, out_channels: int, activation: nn.Module | None, batch_norm: bool
    ) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k must be at least 1; got {k}.")
        self.k = k
        self.activation = Sine() if activation is None else activation
        self.inputs = nn.ModuleList(nn.Linear(in_channels, out_channels) for _ in range(k))
        self.own = nn.Linear(in_channels, out_channels)
        # for k = 1 the atomic type of (v, u) carries the edges: neighbours and all nodes are two sums
        self.gathered = nn.Linear(out_channels * (2 if k == 1 else 1), out_channels)
        self.norm = TupleNorm(out_channels) if batch_norm else None
        for layer in (*self.inputs, self.own, self.gathered):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.normal_(layer.bias, std=_BIAS if batch_norm else 1.0)

    def update(self, h: Tensor, gathered: Tensor, mask: Tensor) -> Tensor:
        """Combine a tuple's value with what was aggregated, and clear padding."""
        combined = self.own(h) + self.gathered(gathered)
        if self.norm is not None:
            combined = self.norm(combined, mask)
        result: Tensor = self.activation(combined) * mask[..., None]
        return result

    def scale(self, mask: Tensor) -> Tensor:
        """``n^(-1/2)`` of each graph, by which sums are multiplied lest a sine of huge numbers lose its digits."""
        nodes = mask.flatten(1).sum(1).to(self.own.weight.dtype).clamp_min(1) ** (1 / self.k)
        return nodes.round().rsqrt().view(-1, *[1] * (mask.ndim))


class KMPNNConv(_TupleConv):
    """``h(v) <- f(h(v), aggr_u g(h(v[u/1]), ..., h(v[u/k])))``, where g sees the edges of (v, u) for k = 1.

    Args:
        k: size of the tuples.
        in_channels: of h.
        out_channels: of the result.
        aggr: ``sum``, ``mean`` or ``max`` over u.
        activation: None takes `Sine`.
        batch_norm: over tuples, before the activation.

    Raises:
        ValueError: k or `aggr` is out of range.
    """

    def __init__(
        self,
        k: int,
        in_channels: int,
        out_channels: int,
        *,
        aggr: Literal["sum", "mean", "max"] = "sum",
        activation: nn.Module | None = None,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(k, in_channels, out_channels, activation, batch_norm)
        if aggr not in ("sum", "mean", "max"):
            raise ValueError(f"aggr must be 'sum', 'mean' or 'max'; got {aggr!r}.")
        self.aggr = aggr

    def forward(self, h: Tensor, adjacency: Tensor, mask: Tensor) -> Tensor:
        """Values (B, n, ..., n, out_channels) of tuples from (B, n, ..., n, in_channels)."""
        parts = [layer(h) for layer in self.inputs]
        present = mask.diagonal(dim1=1, dim2=2) if self.k > 1 else mask
        while present.ndim > 2:
            present = present.diagonal(dim1=1, dim2=2)
        if self.k == 1:
            message = self.activation(parts[0]) * mask[..., None]
            scale = self.scale(mask)
            around, everywhere = (self._gather(message, joined, scale) for joined in (adjacency, mask[:, None].to(h)))
            return self.update(h, torch.cat([around, everywhere.expand_as(around)], 2), mask)
        total: Tensor | None = None
        for u in range(h.shape[1]):
            # (v_1, .., v_k) with u in place i: the same for all v_i
            replaced = sum(part.select(i + 1, u).unsqueeze(i + 1) for i, part in enumerate(parts))
            there = present[:, u].view(-1, *[1] * (h.ndim - 1))
            message = self.activation(replaced)
            if self.aggr == "max":
                message = torch.where(there, message, -torch.inf)
                total = message if total is None else torch.maximum(total, message)
            else:
                message = message * there
                total = message if total is None else total + message
        if total is None:
            return self.update(h, h.new_zeros(*h.shape[:-1], self.own.out_features), mask)
        if self.aggr == "sum":
            total = total * self.scale(mask)
        elif self.aggr == "mean":
            total = total / present.sum(1).clamp_min(1).view(-1, *[1] * (h.ndim - 1))
        else:
            total = torch.where(mask[..., None], total, 0.0)
        return self.update(h, total, mask)

    def _gather(self, message: Tensor, joined: Tensor, scale: Tensor) -> Tensor:
        """Aggregate over the nodes that a row of `joined` (B, 1 or n, n) marks."""
        if self.aggr == "max":
            spread = torch.where(joined[..., None] > 0, message[:, None], -torch.inf).amax(2)
            return torch.where(spread.isinf(), 0.0, spread)
        total = joined.to(message) @ message
        return total * scale if self.aggr == "sum" else total / joined.sum(2, keepdim=True).clamp_min(1)


class KFGNNConv(_TupleConv):
    """``h(v) <- f(h(v), sum_u g_1(h(v[u/1])) * ... * g_k(h(v[u/k])))``, for k = 2 one matrix product for each channel.

    Arguments are those of `KMPNNConv`; ``aggr`` is the sum.
    """

    def __init__(
        self,
        k: int,
        in_channels: int,
        out_channels: int,
        *,
        activation: nn.Module | None = None,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(k, in_channels, out_channels, activation, batch_norm)

    def forward(self, h: Tensor, adjacency: Tensor, mask: Tensor) -> Tensor:
        """Values (B, n, ..., n, out_channels) of tuples from (B, n, ..., n, in_channels)."""
        parts = [self.activation(layer(h)) * mask[..., None] for layer in self.inputs]
        scale = self.scale(mask)
        if self.k == 1:
            everyone = parts[0].sum(1, keepdim=True).expand_as(parts[0])
            return self.update(h, torch.cat([adjacency @ parts[0], everyone], 2) * scale, mask)
        if self.k == 2:
            # place 1 of (v1, v2) replaced is (u, v2), place 2 replaced is (v1, u)
            product = torch.einsum("bujc,biuc->bijc", parts[0], parts[1])
            return self.update(h, product * scale, mask)
        total = torch.zeros_like(parts[0])
        for u in range(h.shape[1]):
            product = parts[0].select(1, u).unsqueeze(1)
            for i, part in enumerate(parts[1:], start=1):
                product = product * part.select(i + 1, u).unsqueeze(i + 1)
            total = total + product
        return self.update(h, total * scale, mask)


class KMPNN(nn.Module):
    """A network on k-tuples of nodes: atomic types, layers, mean over tuples, linear head.

    As drawn, with sines and in float64, it tells apart what its bound allows; to train it, take ``batch_norm``.

    Args:
        k: size of the tuples; 2 costs n^2 memory, and n^3 time.
        in_channels: of the node features.
        hidden_channels: of the layers.
        out_channels: of the result.
        num_layers: at least 1; t layers are bounded by t rounds of folklore k-WL.
        conv: ``fgnn`` or ``mpnn``.
        activation: None takes `Sine`, or tanh with `batch_norm`.
        batch_norm: over tuples in every layer, and over graphs before the head: without it, the embeddings of hard
            graphs move by more in a step than they differ. Evaluation needs `recalibrate`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        k: int,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int,
        *,
        conv: Literal["fgnn", "mpnn"] = "fgnn",
        activation: nn.Module | None = None,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1; got {num_layers}.")
        if conv not in ("fgnn", "mpnn"):
            raise ValueError(f"conv must be 'fgnn' or 'mpnn'; got {conv!r}.")
        self.k = k
        features = k * (in_channels + 1) + k * (k - 1)
        kind: Callable[..., nn.Module] = KFGNNConv if conv == "fgnn" else KMPNNConv
        if activation is None and batch_norm:
            activation = nn.Tanh()
        widths = [features, *[hidden_channels] * num_layers]
        self.layers = nn.ModuleList(
            kind(k, before, after, activation=activation, batch_norm=batch_norm)
            for before, after in itertools.pairwise(widths)
        )
        self.norm = nn.BatchNorm1d(hidden_channels, eps=1e-10) if batch_norm else nn.Identity()
        self.head = nn.Linear(hidden_channels, out_channels)
        nn.init.normal_(self.head.weight, std=hidden_channels**-0.5)
        nn.init.normal_(self.head.bias, std=_BIAS if batch_norm else 1.0)

    def forward(self, data: Any) -> Tensor:
        """Graph embeddings (B, out_channels) of a PyG ``Data`` or ``Batch``."""
        h, adjacency, mask = atomic_features(data, self.k)
        dtype = self.head.weight.dtype
        h, adjacency = h.to(dtype), adjacency.to(dtype)
        for layer in self.layers:
            h = layer(h, adjacency, mask)
        tuples = mask.flatten(1).sum(1).clamp_min(1)[:, None]
        result: Tensor = self.head(self.norm(h.flatten(1, -2).sum(1) / tuples))
        return result


def recalibrate(
    model: nn.Module, batches: Iterable[Any], call: Callable[[nn.Module, Any], Tensor] | None = None
) -> None:
    """Give batch norms the mean and variance that the weights of this moment have on these batches, all taken together.

    Running averages lag behind the weights, and their variance is that of a sample; where graphs differ by less than
    that, evaluation then says nothing of what training learned. Norms are set one by one, in the order in which they
    are registered, as each one's input depends on those before it: a pass over the batches for each.

    Args:
        model: its mode and everything but the statistics stay as they are.
        batches: of training data.
        call: how the model is called; None for ``model(batch)``.
    """
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    modes = {part: part.training for part in model.modules()}
    batches = list(batches)
    try:
        model.eval()
        for norm in norms:
            if norm.track_running_stats:
                _take_statistics(norm, model, batches, call)
    finally:
        for part, training in modes.items():
            part.training = training


def _take_statistics(
    norm: nn.modules.batchnorm._BatchNorm,
    model: nn.Module,
    batches: list[Any],
    call: Callable[[nn.Module, Any], Tensor] | None,
) -> None:
    seen: list[tuple[int, Tensor, Tensor]] = []

    def look(_: nn.Module, inputs: tuple[Tensor]) -> None:
        rows = inputs[0].detach().transpose(0, 1).flatten(1).double()  # (C, rows)
        seen.append((rows.shape[1], rows.sum(1), rows.var(1, correction=0) * rows.shape[1]))

    handle = norm.register_forward_pre_hook(look)
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch) if call is None else call(model, batch)
    finally:
        handle.remove()
    total = sum(count for count, _, _ in seen)
    if not total or norm.running_mean is None or norm.running_var is None:
        return
    mean = torch.stack([sums for _, sums, _ in seen]).sum(0) / total
    inside = torch.stack([squares for _, _, squares in seen]).sum(0)
    between = torch.stack([count * (sums / max(count, 1) - mean).square() for count, sums, _ in seen]).sum(0)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_((inside + between) / total)

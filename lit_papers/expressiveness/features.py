"""Features of relabelled graphs: moved with their nodes, and compared up to the rounding that they come with."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_papers.expressiveness.graph_batch import refuse_other_forms
from lit_papers.expressiveness.graphs import import_graph_extra

_ROUNDINGS = 64  # of a channel's largest value, by which features that some computation made may differ
_SPARE = 4  # times as much as relabelling was seen to change a feature
_STRUCTURE = ("edge_index", "edge_type", "node_type")
_NO_FEATURE = ("y", "batch", "ptr", "num_nodes", "face")


class Relabelled(NamedTuple):
    """A copy of a graph with its nodes in another order.

    Attributes:
        graph: the copy.
        place: (n,) where each node of the original went.
    """

    graph: Any
    place: Tensor


def relabelled(graph: Any, generator: torch.Generator | None) -> Any:
    """A copy of a PyG graph with its nodes and edges in random order; None draws from the global random stream.

    Edges stay sorted where they are, and next to their other direction where all are.

    Raises:
        ValueError: the edges are not held in ``edge_index``, or there too.
    """
    return relabel(graph, generator).graph


def relabel(graph: Any, generator: torch.Generator | None) -> Relabelled:
    """`relabelled`, and where each node went."""
    refuse_other_forms(graph)
    order = torch.randperm(graph.num_nodes, generator=generator)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    before = graph.edge_index.as_subclass(Tensor)  # of PyG's EdgeIndex, which keeps what is true of the old order
    columns = _edge_order(before, place[before], generator)
    twin = graph.clone()
    for key, value in graph:
        if not isinstance(value, Tensor):
            if hasattr(value, "sparse_size"):
                raise _sparse(key)
        elif value.layout != torch.strided:
            raise _sparse(key)
        elif key == "edge_index":
            twin[key] = place[before][:, columns]
        elif graph.is_node_attr(key):
            twin[key] = value[order]
        elif graph.is_edge_attr(key):
            twin[key] = value[columns]
        elif _names_nodes(graph, key):
            twin[key] = place[value]
    return Relabelled(twin, place)


def _sparse(key: str) -> ValueError:
    return ValueError(
        f"{key} is a sparse matrix, whose nodes cannot be relabelled with the graph: leave it out, and make it by "
        "transform=ToSparseTensor(remove_edge_index=False), which runs on each relabelled graph."
    )


def _names_nodes(graph: Any, key: str) -> bool:
    """Whether an attribute holds numbers of nodes, as PyG's batches take it: other edges, or faces."""
    value = graph[key]
    return (
        isinstance(value, Tensor)
        and value.ndim >= 2
        and value.dtype == torch.int64
        and graph.__cat_dim__(key, value) in (-1, value.ndim - 1)
        and bool(((value >= 0) & (value < graph.num_nodes)).all())
    )


def _edge_order(before: Tensor, after: Tensor, generator: torch.Generator | None) -> Tensor:
    """(E,) columns in random order, which keeps what a network may rely on."""
    count, n = before.shape[1], int(before.max()) + 1 if before.numel() else 1
    if count % 2 == 0 and torch.equal(before[:, ::2], before[:, 1::2].flip(0)):
        pairs = 2 * torch.randperm(count // 2, generator=generator)
        return torch.stack([pairs, pairs + 1], 1).flatten()
    for major in (0, 1):
        key = before[major] * n + before[1 - major]
        if (key[1:] >= key[:-1]).all():
            return torch.argsort(after[major] * n + after[1 - major], stable=True)
    drawn = torch.randperm(count, generator=generator)
    for side, moved in zip(before, after, strict=True):
        if (side[1:] >= side[:-1]).all():
            return drawn[torch.argsort(moved[drawn], stable=True)]
    return drawn


def snap(graphs: Sequence[Any]) -> None:
    """Make float features that differ by rounding alone equal, in all graphs at once and in place.

    Values of a channel are joined where they differ by less than 64 roundings of its largest one: those that a
    transform computed for isomorphic graphs in another order. Values that are not in clear groups stay as they are.
    """
    for key in feature_keys(graphs[0]):
        values = [_feature(graph, key) for graph in graphs if key in graph]
        if len(values) < len(graphs) or not all(v.is_floating_point() for v in values) or _is_exact(values):
            continue
        flat = torch.cat([value.reshape(len(value), -1) for value in values])
        for column in flat.T:
            group, clear = _groups(column, _tolerance(column))
            sums = torch.zeros(int(group.max()) + 1, dtype=column.dtype).index_add_(0, group, column)
            means = sums / torch.bincount(group)
            column.copy_(torch.where(clear, means[group], column))
        for graph, part in zip(graphs, torch.split(flat, [len(value) for value in values]), strict=True):
            graph[key] = part.reshape(torch.as_tensor(graph[key]).shape)


def colours(copies: Sequence[Sequence[Relabelled]], seen: frozenset[str] | None) -> Any:
    """The first copy of each graph with its features as whole numbers, equal up to what relabelling changes.

    Args:
        copies: of each graph, at least one; their features are those that a transform gave after relabelling.
        seen: keys that count; None for all.

    Returns:
        PyG ``Batch`` with ``x`` (N, C) and, where there are features of edges, ``edge_attr`` (E, C), both int64.
    """
    first = [of_graph[0].graph for of_graph in copies]
    keys = [
        key for key in feature_keys(first[0]) if all(key in graph for graph in first) and (seen is None or key in seen)
    ]
    nodes: list[list[Tensor]] = [[] for _ in first]
    edges: list[list[Tensor]] = [[] for _ in first]
    for key in keys:
        values = [_feature(graph, key).flatten(1) for graph in first]
        if len({value.shape[1] for value in values}) > 1:
            continue
        noise = torch.stack([_noise(of_graph, key, values[0].shape[1]) for of_graph in copies]).amax(0).tolist()
        joined = torch.cat(values)
        eps_of = values[0].dtype if values[0].is_floating_point() else torch.float64
        columns = []
        for column, moved in zip(joined.T, noise, strict=True):
            if _is_exact([column]) and not moved:
                columns.append(torch.unique(column, return_inverse=True)[1])
                continue
            column = column.to(torch.float64)
            columns.append(_groups(column, max(_SPARE * moved, _tolerance(column, eps_of)))[0])
        ids = torch.stack(columns, 1) if columns else joined.long()
        for graph, of_nodes, of_edges, part in zip(
            first, nodes, edges, torch.split(ids, [len(v) for v in values]), strict=True
        ):
            if graph.is_node_attr(key):
                of_nodes.append(part)
            elif graph.is_edge_attr(key):
                of_edges.append(part)
            else:  # one for the graph: all its nodes know it
                of_nodes.append(part.reshape(1, -1).expand(graph.num_nodes, -1))
    data = import_graph_extra("torch_geometric.data")
    plain = []
    for graph, of_nodes, of_edges in zip(first, nodes, edges, strict=True):
        found = data.Data(num_nodes=graph.num_nodes, **{key: graph[key] for key in _STRUCTURE if key in graph})
        found.x = torch.cat([*of_nodes, torch.zeros(graph.num_nodes, 1, dtype=torch.int64)], 1)
        if of_edges:
            found.edge_attr = torch.cat(of_edges, 1)
        plain.append(found)
    return data.Batch.from_data_list(plain)


def dressed(graph: Any, like: Any) -> Any:
    """A copy of a graph whose nodes and edges all carry what the first ones of another graph do.

    Args:
        graph: whose features are the same everywhere, so that nothing is lost.
        like: a graph that a model reads.

    Raises:
        ValueError: the graph has features that differ, or other forms of edges.
    """
    refuse_other_forms(graph)
    for key in feature_keys(graph):
        value = _feature(graph, key)
        if (graph.is_node_attr(key) or graph.is_edge_attr(key)) and len(value) and (value != value[:1]).any():
            raise ValueError(
                f"{key} of the pairs' graphs differs between nodes or edges, and is not what the model reads."
            )
    found = graph.clone()
    for key in (*feature_keys(like), *(k for k in ("edge_type", "node_type") if k in like)):
        value = like[key]
        if like.is_node_attr(key) or like.is_edge_attr(key):
            count = graph.num_nodes if like.is_node_attr(key) else graph.num_edges
            value = value[:1].expand(count, *value.shape[1:]).clone()
        found[key] = value
    return found


def copies_of(
    graph: Any, count: int, transform: Callable[[Any], Any] | None, generator: torch.Generator
) -> list[Relabelled]:
    """Relabelled copies, each with its own run of the transform."""
    found = [relabel(graph, generator) for _ in range(count)]
    if transform is None:
        return found
    return [Relabelled(transform(copy.graph), copy.place) for copy in found]


def feature_keys(graph: Any) -> list[str]:
    """Names of a graph's features: numbers, also of the graph as a whole, but labels, masks and its structure."""
    return [
        key
        for key, value in graph
        if ((isinstance(value, Tensor) and value.layout == torch.strided) or isinstance(value, (int, float)))
        and key not in (*_STRUCTURE, *_NO_FEATURE)
        and not key.endswith("mask")
        and not torch.as_tensor(value).is_complex()
        and torch.as_tensor(value).numel()
        and not _names_nodes(graph, key)
    ]


def _feature(graph: Any, key: str) -> Tensor:
    """(rows, channels, ...) of nodes, edges, or of the graph."""
    value = torch.as_tensor(graph[key])
    return value.reshape(1, 1) if value.ndim == 0 else value[:, None] if value.ndim == 1 else value


def has_exact_features(graph: Any) -> bool:
    """Whether all features are whole numbers, on which rounding has no hold."""
    return all(_is_exact([_feature(graph, key)]) for key in feature_keys(graph))


def _is_exact(values: Sequence[Tensor]) -> bool:
    return all(not v.is_floating_point() or bool((v == v.round()).all()) for v in values)


def _tolerance(column: Tensor, dtype: torch.dtype | None = None) -> float:
    scale = float(column.abs().max()) if len(column) else 0.0
    return _ROUNDINGS * torch.finfo(dtype or column.dtype).eps * scale


def _noise(copies: Sequence[Relabelled], key: str, channels: int) -> Tensor:
    """(C,) the largest difference that relabelling makes to a channel of a node."""
    if len(copies) == 1 or not copies[0].graph.is_node_attr(key):
        return torch.zeros(channels, dtype=torch.float64)
    if {len(copy.graph[key]) for copy in copies} != {len(copies[0].place)}:
        return torch.zeros(channels, dtype=torch.float64)  # the transform adds or takes nodes: which is which?
    aligned = torch.stack(
        [copy.graph[key].reshape(len(copy.place), -1).to(torch.float64)[copy.place] for copy in copies]
    )
    return (aligned.amax(0) - aligned.amin(0)).amax(0)


def _groups(column: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Numbers of groups of values with no wider gap than the tolerance, and which values are in a narrow one."""
    ordered, order = column.sort()
    number = torch.zeros_like(order)
    number[1:] = (ordered.diff() > tolerance).long().cumsum(0)
    group = torch.empty_like(order)
    group[order] = number
    first = torch.searchsorted(number, torch.arange(int(number.max()) + 1))
    last = torch.searchsorted(number, torch.arange(int(number.max()) + 1), right=True) - 1
    narrow = ordered[last] - ordered[first] <= 8 * tolerance
    return group, narrow[group]

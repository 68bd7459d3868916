"""One view of a PyG ``Data`` or ``Batch`` for everything in this package; PyG itself is not needed for it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_papers.expressiveness.hashing import mix, spread

_EDGE_KEYS = ("edge_attr", "edge_weight", "edge_type")


class Arcs(NamedTuple):
    """Ordered pairs of nodes that some edge joins, in either direction.

    Attributes:
        source, target: (A,) nodes.
        labels: (A,) int64 what the edges from one to the other and back are; 0 for one plain edge each way. None where
            all are 0.
    """

    source: Tensor
    target: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class GraphBatch:
    """A disjoint union of graphs, which may have directions, loops, parallel edges, relations and features.

    Attributes:
        edges: (2, E) ordered pairs with an edge from the first to the second, each once, sorted.
        ptr: (B + 1,) where each graph's nodes begin.
        owner: (N,) graph of each node.
        x: (N, C) node features, or None.
        node_type: (N,) of heterogeneous data, or None.
        counts: (E,) parallel edges; None where all are single.
        attributes: (E, C) features, summed over parallel edges; None without.
        codes: (E,) int64 the multiset of what the edges of a pair carry, hashed; None where they carry nothing.
        relations: (R,) relation of each edge as given and (R,) its place among the pairs; None without.
    """

    edges: Tensor
    ptr: Tensor
    owner: Tensor
    x: Tensor | None
    node_type: Tensor | None
    counts: Tensor | None
    attributes: Tensor | None
    codes: Tensor | None
    relations: tuple[Tensor, Tensor] | None

    @property
    def num_nodes(self) -> int:
        """Nodes of all graphs."""
        return len(self.owner)

    @property
    def num_graphs(self) -> int:
        """Graphs, empty ones included."""
        return len(self.ptr) - 1

    @property
    def sizes(self) -> Tensor:
        """(B,) nodes of each graph."""
        return self.ptr[1:] - self.ptr[:-1]

    @property
    def width(self) -> int:
        """Nodes of the largest graph."""
        return int(self.sizes.max()) if self.num_graphs else 0

    @property
    def position(self) -> Tensor:
        """(N,) place of each node within its graph."""
        return torch.arange(self.num_nodes, device=self.owner.device) - self.ptr[self.owner]

    @property
    def mask(self) -> Tensor:
        """(B, n) which places of a padded batch hold a node."""
        return torch.arange(self.width, device=self.owner.device) < self.sizes[:, None]

    @cached_property
    def arcs(self) -> Arcs:
        """Who sees whom, and through which edges."""
        source, target = self.edges
        if self.symmetric and self.codes is None:
            loops = source == target  # a loop looks like no other edge: it joins a node to itself
            return Arcs(source, target, mix(loops.long(), 70) * loops if loops.any() else None)
        n = max(self.num_nodes, 1)
        keys, mirrored = source * n + target, target * n + source
        pairs = torch.unique(torch.cat([keys, mirrored]))
        codes = torch.ones_like(keys) if self.codes is None else self.codes
        forth, back = torch.zeros_like(pairs), torch.zeros_like(pairs)
        forth[torch.searchsorted(pairs, keys)] = codes
        back[torch.searchsorted(pairs, mirrored)] = codes
        source, target = pairs // n, pairs % n
        plain = (forth == 1) & (back == 1)
        labels = torch.where(plain, 0, mix(mix(forth, 71) + mix(back, 72), 73))  # (A,)
        return Arcs(source, target, torch.where(source == target, mix(labels + 1, 70), labels))

    @cached_property
    def matrix(self) -> Any:
        """(N, N) int64 sparse matrix of scipy with the codes of edges, 1 where they carry nothing; on the CPU."""
        from scipy.sparse import csr_array  # of the extra: the language alone needs none

        source, target = (side.cpu().numpy() for side in self.edges)
        kind = np.int32 if len(source) < 2**31 else np.int64
        starts = np.zeros(self.num_nodes + 1, dtype=kind)
        np.cumsum(np.bincount(source, minlength=self.num_nodes), out=starts[1:])
        codes = np.ones(len(source), dtype=np.int64) if self.codes is None else self.codes.cpu().numpy()
        return csr_array((codes, target.astype(kind), starts), shape=(self.num_nodes, self.num_nodes))

    @cached_property
    def symmetric(self) -> bool:
        """Every edge has its other direction, with the same code.

        Sorting the mirrored edges would take longer than all the rest: a bilinear form in random 64-bit numbers differs
        from its transpose where the matrix does, and agrees by chance once in 2^60.
        """
        n = self.num_nodes
        left, right = spread(np.arange(1, n + 1)), spread(np.arange(-n, 0))
        return int((left * (self.matrix @ right) - right * (self.matrix @ left)).sum()) == 0

    def sum_over_neighbours(self, colours: Tensor) -> Tensor:
        """(N,) int64 sums of hashes of the colours of a node's neighbours and of what joins them."""
        source, target, labels = self.arcs
        if labels is None and colours.device.type == "cpu":  # several times as fast as index_add_
            return torch.from_numpy(self.matrix @ spread(colours.numpy()))
        seen = colours.index_select(0, target)
        total = torch.zeros_like(colours)
        return total.scatter_add_(0, source, spread(seen if labels is None else seen + labels))

    @cached_property
    def loops(self) -> Tensor:
        """(N,) int64 what each node's own loops are; 0 without."""
        source, target, labels = self.arcs
        found = torch.zeros_like(self.owner)
        if labels is not None:
            own = source == target
            found[source[own]] = labels[own]
        return found

    def pair_labels(self) -> Tensor:
        """(B, n, n) int64 what joins two nodes, padded with 0: 0 for nothing, 1 for one plain edge each way."""
        dense = torch.zeros(self.num_graphs, self.width, self.width, dtype=torch.int64, device=self.owner.device)
        source, target, labels = self.arcs
        values = 1 if labels is None else labels + 1
        dense[self.owner[source], self.position[source], self.position[target]] = values
        return dense

    def adjacency(self) -> Tensor:
        """(B, n, n) int64 how many edges lead from row to column, padded with 0."""
        dense = torch.zeros(self.num_graphs, self.width, self.width, dtype=torch.int64, device=self.owner.device)
        source, target = self.edges
        counts = 1 if self.counts is None else self.counts
        dense[self.owner[source], self.position[source], self.position[target]] = counts
        return dense

    def of_relation(self, relation: int) -> Tensor:
        """(E,) how many edges of each pair have a relation.

        Raises:
            IndexError: the graphs have no relations.
        """
        if self.relations is None:
            raise IndexError(f"E[{relation}] reads relation {relation}, but the graphs have no edge_type")
        kinds, place = self.relations
        return torch.bincount(place[kinds == relation], minlength=self.edges.shape[1])

    def pad(self, values: Tensor) -> Tensor:
        """Values of nodes, (N, ...), as (B, n, ...), padded with 0."""
        padded = values.new_zeros(self.num_graphs, self.width, *values.shape[1:])
        padded[self.owner, self.position] = values
        return padded


def read_graphs(data: Any) -> GraphBatch:
    """Read a PyG ``Data`` (one graph) or ``Batch``: edges, ``x``, ``node_type`` and what edges carry.

    That is ``edge_attr``, ``edge_weight`` and ``edge_type``.

    Raises:
        ValueError: `edge_index` names nodes that do not exist, or joins two graphs; ``batch`` is not sorted; features
            have another number of rows than there are nodes or edges; or the edges are held in a form that is not read.
    """
    stored = refuse_other_forms(data)
    edge_index, n = stored["edge_index"], int(data.num_nodes)
    device = edge_index.device
    index = edge_index if device.type == "cpu" else edge_index.cpu()
    source, target = index.numpy()
    ptr = _starts(stored, n).cpu()
    sizes = ptr[1:] - ptr[:-1]
    owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes) if len(sizes) != 1 else torch.zeros(n).long()
    if source.size:
        if min(source.min(), target.min()) < 0 or max(source.max(), target.max()) >= n:
            raise ValueError(f"edge_index names a node outside of 0 to {n - 1}; set `num_nodes`.")
        if len(sizes) > 1 and (owner.numpy()[source] != owner.numpy()[target]).any():
            raise ValueError("edge_index joins nodes of two graphs of the batch.")
    carried = _carried(stored, len(source))
    keys = source * n + target
    counts = attributes = codes = relations = None
    if carried or not (keys[1:] > keys[:-1]).all():
        keys, place, multiplicity = np.unique(keys, return_inverse=True, return_counts=True)
        index = torch.from_numpy(np.stack([keys // max(n, 1), keys % max(n, 1)]))
        where = torch.from_numpy(place.reshape(-1))
        if (multiplicity > 1).any():
            counts = torch.from_numpy(multiplicity)
        if carried or counts is not None:
            codes = torch.zeros(len(keys), dtype=torch.int64).index_add_(0, where, edge_colours(carried, len(source)))
            codes = mix(codes, 74) if carried or counts is None else torch.where(counts == 1, 1, mix(codes, 74))
        floats = [value for key, value in carried.items() if key != "edge_type"]
        if floats:
            rows = torch.cat([value.to(_wider(floats)) for value in floats], 1)
            attributes = rows.new_zeros(len(keys), rows.shape[1]).index_add(0, where.to(rows.device), rows)
        if "edge_type" in carried:
            relations = (carried["edge_type"][:, 0].to(device), where.to(device))
    x = stored.get("x")
    if x is not None:
        if len(x) != n:
            raise ValueError(f"x has {len(x)} rows, but there are {n} nodes.")
        x = x.reshape(n, 1) if x.ndim == 1 else x.flatten(1)
    counts, attributes, codes = (None if value is None else value.to(device) for value in (counts, attributes, codes))
    return GraphBatch(
        edges=index.to(device),
        ptr=ptr.to(device),
        owner=owner.to(device),
        x=x,
        node_type=stored.get("node_type"),
        counts=counts,
        attributes=attributes,
        codes=codes,
        relations=relations,
    )


def refuse_other_forms(data: Any) -> dict[str, Any]:
    """What a graph holds, by name, if it is held as ``edge_index``.

    Raises:
        ValueError: it is heterogeneous or has ``adj_t``; says what to call.
    """
    if hasattr(data, "to_homogeneous"):
        raise ValueError("heterogeneous data is read as one graph with types: pass data.to_homogeneous().")
    stored: dict[str, Any] = data.to_dict() if hasattr(data, "to_dict") else vars(data)
    if stored.get("edge_index") is None:
        if stored.get("adj_t") is not None:
            raise ValueError("the edges are held in adj_t; set data.edge_index (row, col, _ = data.adj_t.t().coo()).")
        raise ValueError("the data has no edge_index, which is how graphs are read here.")
    return stored


def edge_colours(carried: dict[str, Tensor], num_edges: int) -> Tensor:
    """(E,) int64 hashes of what each edge carries, by exact value."""
    colours = torch.zeros(num_edges, dtype=torch.int64)
    for name, values in carried.items():
        salt = 75 + _EDGE_KEYS.index(name)
        for channel in hashable(values, name).T:
            colours = mix(mix(colours, salt) + mix(channel, 78), 79)
    return mix(colours, 80)


def hashable(values: Tensor, name: str) -> Tensor:
    """Numbers, (R, C), as int64 that are equal where they are.

    Raises:
        ValueError: there is a NaN, which is not even equal to itself.
    """
    if (values.is_floating_point() or values.is_complex()) and values.isnan().any():
        raise ValueError(f"{name} has NaN: no two rows would ever be equal.")
    if values.is_complex():
        return hashable(torch.view_as_real(values.resolve_conj()).flatten(1), name)
    values = values.cpu()
    exact = values.to(torch.float64) + 0.0  # which makes -0.0 an ordinary zero
    found = exact.contiguous().view(torch.int64)
    if values.dtype == torch.int64 and (values.abs() > 2**53).any():  # or else float64 rounds them
        return torch.where(values.abs() > 2**53, mix(values, 81), found)
    return found


def _starts(stored: dict[str, Any], num_nodes: int) -> Tensor:
    if stored.get("ptr") is not None:
        return stored["ptr"]  # type: ignore[no-any-return]
    batch = stored.get("batch")
    if batch is None:
        return torch.tensor([0, num_nodes])
    if (batch[1:] < batch[:-1]).any():
        raise ValueError("batch is not sorted: the nodes of a graph must follow each other.")
    # without `ptr` nobody can tell how many empty graphs follow the last node
    counts = torch.bincount(batch, minlength=int(batch.max()) + 1 if len(batch) else 1)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _carried(stored: dict[str, Any], num_edges: int) -> dict[str, Tensor]:
    """What edges carry, (E, C) each."""
    found = {}
    for key in _EDGE_KEYS:
        value = stored.get(key)
        if value is None:
            continue
        if len(value) != num_edges:
            raise ValueError(f"{key} has {len(value)} rows, but there are {num_edges} edges.")
        found[key] = value.reshape(num_edges, 1) if value.ndim == 1 else value.flatten(1)
    return found


def _wider(values: list[Tensor]) -> torch.dtype:
    dtype = values[0].dtype
    for value in values[1:]:
        dtype = torch.promote_types(dtype, value.dtype)
    return dtype

"""One view of a PyG ``Data`` or ``Batch`` for everything in this package; PyG itself is not needed for it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class GraphBatch:
    """A disjoint union of undirected graphs.

    Attributes:
        edges: (2, E) both directions of each edge once, sorted by source; a self-loop is one entry.
        ptr: (B + 1,) where each graph's nodes begin.
        owner: (N,) graph of each node.
        x: (N, C) node features, or None.
    """

    edges: Tensor
    ptr: Tensor
    owner: Tensor
    x: Tensor | None

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

    def adjacency(self) -> Tensor:
        """(B, n, n) bool, padded with False."""
        dense = torch.zeros(self.num_graphs, self.width, self.width, dtype=torch.bool, device=self.owner.device)
        source, target = self.edges
        dense[self.owner[source], self.position[source], self.position[target]] = True
        return dense

    def pad(self, values: Tensor) -> Tensor:
        """Values of nodes, (N, ...), as (B, n, ...), padded with 0."""
        padded = values.new_zeros(self.num_graphs, self.width, *values.shape[1:])
        padded[self.owner, self.position] = values
        return padded


def read_graphs(data: Any) -> GraphBatch:
    """Read a PyG ``Data`` (one graph) or ``Batch``.

    Raises:
        ValueError: `edge_index` is not symmetric, names nodes that do not exist, or joins two graphs; or the features
            have another number of rows than there are nodes.
    """
    edge_index, num_nodes = data.edge_index, int(data.num_nodes)
    device = edge_index.device
    ptr = getattr(data, "ptr", None)
    if ptr is None:
        batch = getattr(data, "batch", None)
        if batch is None:
            ptr = torch.tensor([0, num_nodes], device=device)
        else:  # without `ptr` nobody can tell how many empty graphs follow the last node
            counts = torch.bincount(batch, minlength=int(batch.max()) + 1 if len(batch) else 1)
            ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    if edge_index.numel() and (int(edge_index.min()) < 0 or int(edge_index.max()) >= num_nodes):
        raise ValueError(f"edge_index names a node outside of 0 to {num_nodes - 1}; set `num_nodes`.")
    keys = edge_index[0] * max(num_nodes, 1) + edge_index[1]
    if not (keys[1:] > keys[:-1]).all():
        keys = torch.unique(keys)
        edge_index = torch.stack([keys // max(num_nodes, 1), keys % max(num_nodes, 1)])
    edges = edge_index
    mirrored = np.sort((edges[1] * max(num_nodes, 1) + edges[0]).cpu().numpy())  # many times as fast as torch's
    if not np.array_equal(mirrored, keys.cpu().numpy()):
        raise ValueError(
            "edge_index is directed: some edge lacks its other direction. The theory is of undirected graphs; apply "
            "torch_geometric.utils.to_undirected."
        )
    owner = torch.repeat_interleave(torch.arange(len(ptr) - 1, device=device), ptr[1:] - ptr[:-1])
    if (owner[edges[0]] != owner[edges[1]]).any():
        raise ValueError("edge_index joins nodes of two graphs of the batch.")
    x = getattr(data, "x", None)
    if x is not None and len(x) != num_nodes:
        raise ValueError(f"x has {len(x)} rows, but there are {num_nodes} nodes.")
    return GraphBatch(
        edges, ptr, owner, None if x is None else x.reshape(num_nodes, 1) if x.ndim == 1 else x.flatten(1)
    )

"""Graphs that the tests of this paper share."""

import random
from pathlib import Path
from typing import Any

import torch
from torch_geometric.data import Batch, Data

from lit_papers.expressiveness.graphs import atlas

REFERENCE = Path(__file__).parent / "reference"


def batch(*graphs: Any) -> Any:
    return Batch.from_data_list(list(graphs))


def featured(count: int = 10, channels: int = 2, seed: int = 0) -> Any:
    """Graphs of several sizes with random float64 features; one is empty, one has a self-loop and isolated nodes."""
    draw = torch.Generator().manual_seed(seed)
    graphs = [
        Data(edge_index=graph.edge_index, num_nodes=graph.num_nodes)
        for graph in random.Random(seed).sample(atlas(6), count)
    ]
    graphs.insert(2, Data(edge_index=torch.zeros(2, 0, dtype=torch.int64), num_nodes=0))
    graphs.append(Data(edge_index=torch.tensor([[0, 0, 1], [0, 1, 0]]), num_nodes=4))
    for graph in graphs:
        graph.x = torch.randn(graph.num_nodes, channels, dtype=torch.float64, generator=draw)
    return batch(*graphs)

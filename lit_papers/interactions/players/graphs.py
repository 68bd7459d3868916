"""Nodes of a graph."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_papers.interactions.checks import whole_number
from lit_papers.interactions.players.base import Players, like


class NodePlayers(Players):
    """Nodes of a graph; an absent node keeps its edges and loses its features.

    Samples are a list of graphs with ``x`` ``(n, F)`` and ``edge_index`` ``(2, E)``, such as PyTorch Geometric's
    ``Data``; the network is called as ``model(x=..., edge_index=..., batch=...)`` and gives a row for each graph. Pass
    ``respond`` to the estimator where it takes something else.

    Args:
        n_nodes: nodes of a graph.

    Attributes:
        n_players: the same.

    Raises:
        TypeError: it is no integer.
        ValueError: fewer than two.
    """

    def __init__(self, n_nodes: int) -> None:
        super().__init__(whole_number("n_nodes", n_nodes, least=1))

    def __call__(self, x: Sequence[Any], keep: Tensor, baseline: float | Tensor = 0.0) -> dict[str, Tensor]:
        """Replace the features of nodes that are not kept.

        Args:
            x: one graph, or B of them.
            keep: bool, ``(B, n_players)``.
            baseline: what replaces a feature; broadcasts against ``(n, F)``.

        Returns:
            ``x`` ``(B n, F)``, ``edge_index`` ``(2, B E)`` and ``batch`` ``(B n,)`` of all graphs side by side, and
            ``edge_attr``, if the graphs have it.

        Raises:
            ValueError: a graph has other nodes, or there are neither one graph nor B.
        """
        count, n = keep.shape
        if len(x) not in (1, count):
            raise ValueError(f"there are {len(x)} graphs for {count} masks: pass one, or as many")
        for graph in x:
            if len(graph.x) != n:
                raise ValueError(f"a graph has {len(graph.x)} nodes, but `n_nodes` is {n}")
        device = x[0].x.device
        features = torch.stack([graph.x for graph in x])  # (1 or B, n, F)
        masked = torch.where(keep.to(device)[..., None], features, like(baseline, features))
        graphs = list(x) * count if len(x) == 1 else list(x)
        edges = [graph.edge_index + n * place for place, graph in enumerate(graphs)]
        found = {
            "x": masked.flatten(0, 1),
            "edge_index": torch.cat(edges, dim=1),
            "batch": torch.arange(count, device=device).repeat_interleave(n),
        }
        if getattr(x[0], "edge_attr", None) is not None:
            found["edge_attr"] = torch.cat([graph.edge_attr for graph in graphs])
        return found

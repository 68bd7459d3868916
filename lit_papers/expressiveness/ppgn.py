"""Provably powerful graph networks: matrix products of tuples, which reach 2-WL (Maron et al., NeurIPS 2019)."""

from typing import Any

import torch
from torch import Tensor, nn

from lit_papers.expressiveness.kmpnn import TupleNorm, atomic_features


class PPGNBlock(nn.Module):
    """``h <- m3([h, m1(h) @ m2(h)])``, a product of matrices for each channel (Maron et al. 2019, section 6).

    Args:
        in_channels: of h.
        out_channels: of the result.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()

        def mlp() -> nn.Module:
            return nn.Sequential(nn.Linear(in_channels, out_channels), nn.ReLU(), nn.Linear(out_channels, out_channels))

        self.left, self.right = mlp(), mlp()
        self.mixed = nn.Linear(in_channels + out_channels, out_channels)
        self.norm = TupleNorm(out_channels)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """Values (B, n, n, out_channels) of pairs from (B, n, n, in_channels); padding stays 0."""
        there = mask[..., None]
        left, right = self.left(h) * there, self.right(h) * there
        # a mean over the middle node in place of the sum: batches have graphs of many sizes
        nodes = mask.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1).view(-1, 1, 1, 1)
        product = torch.einsum("bikc,bkjc->bijc", left, right) / nodes
        return torch.tanh(self.norm(self.mixed(torch.cat([h, product], 3)), mask)) * there


class PPGN(nn.Module):
    """A network of `PPGNBlock`, on the atomic types of pairs; means of the diagonal and of the rest, and a linear head.

    Batch norms need `lit_papers.expressiveness.kmpnn.recalibrate` before evaluation.

    Args:
        in_channels: of the node features.
        hidden_channels: of the blocks.
        out_channels: of the result.
        num_layers: at least 1.

    Raises:
        ValueError: `num_layers` is below 1.
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int, num_layers: int) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1; got {num_layers}.")
        widths = [2 * (in_channels + 1) + 2, *[hidden_channels] * num_layers]
        self.blocks = nn.ModuleList(PPGNBlock(*widths[i : i + 2]) for i in range(num_layers))
        self.norm = nn.BatchNorm1d(2 * hidden_channels, eps=1e-10)
        self.head = nn.Linear(2 * hidden_channels, out_channels)

    def forward(self, data: Any) -> Tensor:
        """Graph embeddings (B, out_channels) of a PyG ``Data`` or ``Batch``."""
        h, _, mask = atomic_features(data, 2)
        h = h.to(self.head.weight.dtype)
        for block in self.blocks:
            h = block(h, mask)
        nodes = mask.diagonal(dim1=1, dim2=2).sum(1)[:, None]
        diagonal = h.diagonal(dim1=1, dim2=2).sum(2)  # (B, C)
        rest = h.sum((1, 2)) - diagonal
        pooled = torch.cat([diagonal / nodes.clamp_min(1), rest / (nodes * (nodes - 1)).clamp_min(1)], 1)
        result: Tensor = self.head(self.norm(pooled))
        return result

"""What layers see, as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from lit_papers.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def feature_map_figure(features: Mapping[str, Tensor], sample: int = 0, channels: int = 6) -> Figure:
    """The strongest maps of each layer for one image, as in the paper's visualisation of what is forgotten.

    Args:
        features: maps by layer, ``(N, C, H, W)``, as from `lit_papers.continual.similarity.layer_features`.
        sample: which image.
        channels: maps of each layer, those with the largest mean magnitude first.

    Returns:
        A figure with a row for each layer.

    Raises:
        ValueError: a layer's output is no map, or there is no such image.
        ImportError: matplotlib is missing.
    """
    for name, maps in features.items():
        if maps.dim() != 4:
            raise ValueError(f"the output of {name} is {tuple(maps.shape)}, not maps (N, C, H, W)")
        if not 0 <= sample < len(maps):
            raise ValueError(f"`sample` must be in 0..{len(maps) - 1}, got {sample}")
    figure, axes = new_figure(len(features), channels)
    figure.set_size_inches(1.1 * channels + 0.6, 1.25 * len(features))
    for row, (name, maps) in enumerate(features.items()):
        mine = maps[sample].detach().float().cpu()  # (C, H, W)
        strongest = mine.abs().mean(dim=(1, 2)).argsort(descending=True)[:channels].tolist()
        for column in range(channels):
            axis = axes[row * channels + column]
            axis.set_xticks([])
            axis.set_yticks([])
            if column == 0:
                axis.set_ylabel(name, fontsize=8)
            if column >= len(strongest):
                axis.set_visible(False)
                continue
            axis.imshow(mine[strongest[column]].numpy(), cmap="Greys_r")
            axis.set_title(f"channel {strongest[column]}", fontsize=7)
    return figure

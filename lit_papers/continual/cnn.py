"""A small network without batch norm, whose running statistics would follow the last task alone."""

import itertools

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Two convolutions, each with a pooling layer behind it.

    Args:
        in_channels: of the images.
        width: channels of the first convolution; the second has twice as many.

    Attributes:
        stages: both convolutions.
        num_features: D, 32 times the width.

    >>> import torch
    >>> SmallCNN(in_channels=1, width=8)(torch.zeros(2, 1, 32, 32)).shape
    torch.Size([2, 256])
    """

    def __init__(self, in_channels: int = 3, width: int = 32) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"`width` must be at least 1, got {width}")
        channels = (in_channels, width, 2 * width)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(below, above, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
            for below, above in itertools.pairwise(channels)
        )
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.num_features = 16 * channels[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(N, D)`` of images ``(N, in_channels, H, W)``."""
        for stage in self.stages:
            x = stage(x)
        pooled: Tensor = self.pool(x)
        return pooled.flatten(1)

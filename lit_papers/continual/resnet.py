"""The residual network of the paper's images: 3x3 convolutions from the start, no pooling before the end."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, channels, H / stride, W / stride)``."""
        return cast(Tensor, (self.body(x) + self.shortcut(x)).relu())


class ResNet(nn.Module):
    """A residual network for small images; the default is the paper's ResNet-18 with 11,168,832 parameters.

    Args:
        in_channels: of the images.
        width: channels of the first stage; each further one has twice as many.
        blocks: of each stage; all but the first halve the resolution.

    Attributes:
        stages: the stem and the residual stages, each from maps to maps.
        num_features: D.

    >>> import torch
    >>> network = ResNet(in_channels=1, width=4, blocks=(1, 1))
    >>> network(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 8])
    """

    def __init__(self, in_channels: int = 3, width: int = 64, blocks: Sequence[int] = (2, 2, 2, 2)) -> None:
        super().__init__()
        if width < 1 or not blocks or min(blocks) < 1:
            raise ValueError(f"`width` and each of `blocks` must be at least 1, got {width} and {tuple(blocks)}")
        stem = nn.Sequential(nn.Conv2d(in_channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        stages: list[nn.Module] = [stem]
        channels = width
        for stage, count in enumerate(blocks):
            layers = []
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(BasicBlock(channels, width * 2**stage, stride))
                channels = width * 2**stage
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self.num_features = channels

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(N, D)`` of images ``(N, in_channels, H, W)``: the last maps, averaged over positions."""
        for stage in self.stages:
            x = stage(x)
        return x.mean(dim=(2, 3))

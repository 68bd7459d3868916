"""The small networks of the paper's experiments; larger ones come from torchvision or timm by class path."""

from itertools import pairwise

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """Fully connected network with ReLU for tables; ``depth`` 5 and 8 are the paper's MLP-5 and MLP-8.

    Shapes: ``(N, n_features)`` to logits ``(N, n_classes)``.

    Args:
        n_features: columns of the table, at least 1.
        n_classes: number of logits, at least 2.
        depth: number of linear layers, at least 1.
        width: of each hidden layer, at least 1.

    Raises:
        ValueError: an argument is out of its range.

    >>> MLP(14, depth=2, width=3).layers
    Sequential(
      (0): Linear(in_features=14, out_features=3, bias=True)
      (1): ReLU()
      (2): Linear(in_features=3, out_features=2, bias=True)
    )
    """

    def __init__(self, n_features: int, n_classes: int = 2, depth: int = 5, width: int = 100) -> None:
        super().__init__()
        _check_at_least(n_features=(n_features, 1), n_classes=(n_classes, 2), depth=(depth, 1), width=(width, 1))
        widths = [n_features, *[width] * (depth - 1), n_classes]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, n_classes)`` of rows ``(N, n_features)``."""
        logits: Tensor = self.layers(x)
        return logits


class SmallCNN(nn.Module):
    """Two 3x3 convolutions, each followed by ReLU and 2x2 max pooling, and one linear layer; no batch norm.

    Shapes: ``(N, in_channels, image_size, image_size)`` to logits ``(N, n_classes)``. Small enough that all
    ``2**16`` maskings of one image by a 4x4 grid take a CPU less than a second.

    Args:
        in_channels: of the images, at least 1.
        image_size: height and width in pixels, at least 4.
        n_classes: number of logits, at least 2.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, in_channels: int, image_size: int, n_classes: int) -> None:
        super().__init__()
        _check_at_least(in_channels=(in_channels, 1), image_size=(image_size, 4), n_classes=(n_classes, 2))
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * (image_size // 4) ** 2, n_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, n_classes)`` of images ``(N, in_channels, image_size, image_size)``."""
        logits: Tensor = self.layers(images)
        return logits


class SmallResNet(nn.Module):
    """Residual network with batch norm that a laptop trains: 3 million multiply-adds for an image of 32 pixels.

    A convolution of stride 2, three blocks of two 3x3 convolutions, the second and third of stride 2, a mean over the
    map, and a linear layer; 78 thousand parameters at a width of 16.

    Shapes: ``(N, in_channels, H, W)`` to logits ``(N, n_classes)``.

    Args:
        in_channels: of the images, at least 1.
        n_classes: number of logits, at least 2.
        width: channels of the first block, at least 1; they double from block to block.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, in_channels: int = 3, n_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        _check_at_least(in_channels=(in_channels, 1), n_classes=(n_classes, 2), width=(width, 1))
        self.stem = nn.Sequential(nn.Conv2d(in_channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(
            _Residual(width, width, 1), _Residual(width, 2 * width, 2), _Residual(2 * width, 4 * width, 2)
        )
        self.head = nn.Linear(4 * width, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, n_classes)`` of images ``(N, in_channels, H, W)``."""
        maps: Tensor = self.blocks(self.stem(images))
        logits: Tensor = self.head(maps.mean((-2, -1)))
        return logits


class _Residual(nn.Module):
    """Two convolutions with batch norm beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, maps: Tensor) -> Tensor:
        return torch.relu(self.main(maps) + self.shortcut(maps))


class CifarAlexNet(nn.Module):
    """AlexNet for colour images of 32 pixels, the one network that the paper's authors published.

    Its first convolution is 7x7 with stride 1, and dropout is in the head alone; there is no batch norm. 4.8 million
    parameters. (Deng et al., ICLR 2022; layer sizes from the authors' repository Nebularaid2000/bottleneck.)

    Shapes: ``(N, 3, 32, 32)`` to logits ``(N, n_classes)``.

    Args:
        n_classes: number of logits, at least 2.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        _check_at_least(n_classes=(n_classes, 2))
        self.features = nn.Sequential(
            *_convolution(3, 64, kernel=7, pool=True),
            *_convolution(64, 192, kernel=5, pool=True),
            *_convolution(192, 384, kernel=3),
            *_convolution(384, 256, kernel=3),
            *_convolution(256, 256, kernel=3, pool=True),
        )
        self.head = nn.Sequential(
            *(nn.Flatten(), nn.Dropout(0.5), nn.Linear(256 * 4 * 4, 512), nn.ReLU()),
            *(nn.Dropout(0.5), nn.Linear(512, 512), nn.ReLU()),
            nn.Linear(512, n_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, n_classes)`` of images ``(N, 3, 32, 32)``."""
        maps: Tensor = self.features(images)  # (N, 256, 4, 4)
        logits: Tensor = self.head(maps)
        return logits


def _convolution(before: int, after: int, *, kernel: int, pool: bool = False) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(before, after, kernel, padding=kernel // 2), nn.ReLU()]
    return [*layers, nn.MaxPool2d(3, stride=2, padding=1)] if pool else layers


def _check_at_least(**limits: tuple[int, int]) -> None:
    for name, (value, least) in limits.items():
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}")

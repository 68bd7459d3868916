"""The networks of the experiments, by name: torchvision's, fitted to 28- and 32-pixel images.

Every network ends in one ``nn.Linear`` with bias, whose input are the features that collapse.
"""

from math import prod
from typing import Any

from torch import Tensor, nn

MLP_WIDTHS = (256, 256, 64)
_RESNETS = tuple(f"resnet{depth}" for depth in (18, 34, 50, 101, 152))
_VGGS = tuple(f"vgg{depth}_bn" for depth in (11, 13, 16, 19))
_DENSENETS = tuple(f"densenet{depth}" for depth in (121, 161, 169, 201))
NETWORKS = ("mlp", "convnet", *_RESNETS, *_VGGS, *_DENSENETS)


def build_network(name: str, *, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Build an untrained network for small images.

    ``mlp`` flattens and stacks Linear (no bias), BatchNorm and ReLU of widths 256, 256 and 64. ``convnet`` has four
    3x3 convolutions and global average pooling. The others are torchvision's, changed for small images (Han et al.,
    appendix; the official notebook): ResNet starts with a 3x3 convolution of stride 1 and no pooling, DenseNet
    likewise, VGG ends in a single Linear. Images of 28 pixels are padded with zeros to 32.

    Args:
        name: one of ``NETWORKS``.
        num_classes: number of logits, >= 2.
        input_shape: ``(channels, height, width)`` of an image.

    Returns:
        A module from images ``(N, *input_shape)`` to logits ``(N, num_classes)``.

    Raises:
        ValueError: unknown name, fewer than two classes, or a convolutional network for images under 8 pixels (VGG
            and DenseNet: 32 after padding).
        ImportError: torchvision is missing and the network comes from it.

    >>> build_network("mlp", num_classes=10, input_shape=(1, 8, 8))[-1]
    Linear(in_features=64, out_features=10, bias=True)
    """
    if name not in NETWORKS:
        raise ValueError(f"network={name!r} is unknown; choose one of {', '.join(NETWORKS)}, or pass an nn.Module")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    channels, height, width = input_shape
    if name == "mlp":
        return _mlp(prod(input_shape), num_classes)
    smallest = 8 if name in ("convnet", *_RESNETS) else 28
    if min(height, width) < smallest:
        raise ValueError(
            f"network={name!r} needs images of at least {smallest} pixels, got input_shape={tuple(input_shape)}; "
            "use 'mlp' or 'convnet'"
        )
    body = _convnet(channels, num_classes) if name == "convnet" else _from_torchvision(name, channels, num_classes)
    # an nn.Sequential would rename every parameter where nothing is padded
    return nn.Sequential(nn.ZeroPad2d(2), body) if (height, width) == (28, 28) else body


def _mlp(inputs: int, num_classes: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for width in MLP_WIDTHS:
        layers += [nn.Linear(inputs, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, num_classes))


def _convnet(channels: int, num_classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, stride in ((32, 1), (64, 2), (128, 2), (128, 1)):
        layers += [
            nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


class _SmallVGG(nn.Module):
    """VGG's convolutions and one Linear; its two wide hidden layers are for 224 pixels."""

    def __init__(self, features: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = nn.Linear(512, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.features(images)  # (N, 512, H/32, W/32)
        logits: Tensor = self.classifier(nn.functional.adaptive_avg_pool2d(maps, 1).flatten(1))
        return logits


def _from_torchvision(name: str, channels: int, num_classes: int) -> nn.Module:
    try:
        from torchvision import models
    except ImportError as error:
        raise ImportError(f"network={name!r} comes from torchvision: pip install 'lit-papers[vision]'") from error
    network: Any = getattr(models, name)(weights=None, num_classes=num_classes)
    if name in _RESNETS:
        network.conv1 = nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False)
        network.maxpool = nn.Identity()
    elif name in _VGGS:
        features = network.features
        features[0] = nn.Conv2d(channels, 64, 3, padding=1)
        network = _SmallVGG(features, num_classes)
    else:
        width = network.features.conv0.out_channels
        network.features.conv0 = nn.Conv2d(channels, width, 3, stride=1, padding=1, bias=False)
        network.features.pool0 = nn.Identity()
    changed: nn.Module = network
    return changed

"""The paper's residual networks, with strided convolutions, spectral pooling or DiffStride."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from lit_papers.diffstride.functional import Variant
from lit_papers.diffstride.pooling import Pooling, SameConv2d, conv_stride, he_normal_, make_pool, stride_pairs


class PreActBlock(nn.Module):
    """Pre-activation residual block whose two paths shrink by the same pooling layer (Riad et al., section 2.3).

    Args:
        in_channels: of the input.
        out_channels: of the output.
        stride: pair; of a block that projects.
        project: whether channels or size change; the shortcut is a 1x1 convolution of the raw input then.
        pooling: see `PreActResNet`; likewise the rest.
        smoothness: of DiffStride.
        variant: of DiffStride and spectral pooling.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Sequence[float],
        *,
        project: bool,
        pooling: Pooling,
        smoothness: float,
        variant: Variant,
    ) -> None:
        super().__init__()
        first = conv_stride(stride, pooling) if project else (1, 1)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = SameConv2d(in_channels, out_channels, 3, first)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = SameConv2d(out_channels, out_channels, 3)
        self.shortcut = SameConv2d(in_channels, out_channels, 1, first) if project else None
        self.pool = make_pool(stride, pooling, smoothness, variant) if project else None

    def forward(self, maps: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to ``(N, out_channels, h, w)``."""
        main = self.conv1(self.bn1(maps).relu())
        short = maps if self.shortcut is None else self.shortcut(maps)
        if self.pool is not None:
            main, short = self.pool(main), self.pool(short)
        output: Tensor = self.conv2(self.bn2(main).relu()) + short
        return output


class PreActResNet(nn.Module):
    """Pre-activation residual network for images ``(N, in_channels, H, W)`` (Riad et al., ICLR 2022, section 3).

    Convolutions have no bias and TensorFlow's "same" padding. Names of modules are the checkpoint format.

    Args:
        num_classes: number of logits.
        widths: channels of the stem and of each stage.
        blocks_per_stage: residual blocks, >= 1.
        strides: of the stem and of each stage's first block; numbers, or pairs (height, width). A first stage that
            does not project has none, and its entry is not used.
        project_first: whether the first stage projects (and strides) too.
        pooling: ``"strided"`` convolutions (integer strides), ``"spectral"`` pooling, or ``"diffstride"``.
        smoothness: R of DiffStride; a map of at most 2(R + 1) points cannot shrink.
        variant: ``"symmetric"`` or ``"official"``, of DiffStride and spectral pooling.
        in_channels: of the images.
        stem: ``"small"``: convolution 3x3; ``"imagenet"``: 7x7 with stride 2, then max-pooling 3x3 with stride 2.

    Raises:
        ValueError: an argument is out of range or lengths differ.

    >>> import torch
    >>> network = PreActResNet(10, widths=(8, 8, 16), blocks_per_stage=1, strides=(1, 1, 2), in_channels=1)
    >>> network(torch.zeros(4, 1, 8, 8)).shape
    torch.Size([4, 10])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        widths: Sequence[int] = (64, 64, 128, 256, 512),
        blocks_per_stage: int = 2,
        strides: Sequence[float | tuple[float, float]] = (1, 1, 2, 2, 2),
        project_first: bool = False,
        pooling: Pooling = "diffstride",
        smoothness: float = 4.0,
        variant: Variant = "symmetric",
        in_channels: int = 3,
        stem: Literal["small", "imagenet"] = "small",
    ) -> None:
        super().__init__()
        pairs = stride_pairs(strides, widths, pooling)
        if stem not in ("small", "imagenet"):
            raise ValueError(f"`stem` must be 'small' or 'imagenet', got {stem!r}")
        if stem == "imagenet" and pooling == "strided" and pairs[0] != [1, 1]:
            raise ValueError(f"`strides` must begin with 1 for stem='imagenet' and pooling='strided', got {strides[0]}")
        if len(widths) < 2 or blocks_per_stage < 1:
            raise ValueError(f"`widths` must have a stem and a stage, `blocks_per_stage` be at least 1, got {widths}")
        if not project_first and widths[0] != widths[1]:
            raise ValueError(f"`widths` must begin with two equal numbers unless `project_first`, got {tuple(widths)}")
        self.stem = self._stem(stem, in_channels, widths[0], conv_stride(pairs[0], pooling))
        self.stem_pool = make_pool(pairs[0], pooling, smoothness, variant)
        stages = []
        for index in range(1, len(widths)):
            blocks = []
            for block in range(blocks_per_stage):
                first = block == 0
                blocks.append(
                    PreActBlock(
                        widths[index - 1] if first else widths[index],
                        widths[index],
                        pairs[index],
                        project=first and (index > 1 or project_first),
                        pooling=pooling,
                        smoothness=smoothness,
                        variant=variant,
                    )
                )
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1], num_classes)
        he_normal_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    @staticmethod
    def _stem(stem: str, in_channels: int, width: int, stride: tuple[int, ...]) -> nn.Module:
        if stem == "small":
            return SameConv2d(in_channels, width, 3, stride)
        return nn.Sequential(SameConv2d(in_channels, width, 7, (2, 2)), nn.MaxPool2d(3, 2, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, num_classes)``."""
        maps = self.stem(images)
        if self.stem_pool is not None:
            maps = self.stem_pool(maps)
        maps = self.bn(self.stages(maps)).relu()
        logits: Tensor = self.fc(maps.mean((-2, -1)))
        return logits


def resnet18(num_classes: int = 10, **kwargs: Any) -> PreActResNet:
    """The paper's pre-activation ResNet-18: 11 172 170 parameters for 10 classes, and two for each stride pair.

    Args:
        num_classes: number of logits.
        kwargs: as for `PreActResNet`.

    >>> sum(parameter.numel() for parameter in resnet18().parameters())
    11172178
    """
    return PreActResNet(num_classes, **kwargs)


def resnet56(num_classes: int = 10, **kwargs: Any) -> PreActResNet:
    """Three stages of nine blocks, 16 to 64 channels wide, each of which projects first.

    Args:
        num_classes: number of logits.
        kwargs: as for `PreActResNet`.
    """
    defaults: dict[str, Any] = {
        "widths": (16, 16, 32, 64),
        "blocks_per_stage": 9,
        "strides": (1, 1, 2, 2),
        "project_first": True,
    }
    return PreActResNet(num_classes, **{**defaults, **kwargs})

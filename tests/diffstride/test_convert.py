"""Strangers' networks with learnable strides."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_papers.diffstride.convert import Destrided, convert_strides
from lit_papers.diffstride.layers import DiffStride, freeze_strides

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def stride_layers(model: nn.Module) -> list[DiffStride]:
    return [layer for layer in model.modules() if isinstance(layer, DiffStride)]


@pytest.mark.parametrize(
    ("name", "layers"),
    [("resnet18", 5), ("resnet50", 5), ("densenet121", 5), ("mobilenet_v2", 5), ("squeezenet1_1", 4),
     ("efficientnet_b0", 5), ("regnet_y_400mf", 5)],
)  # fmt: skip
def test_torchvision(name: str, layers: int) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model = getattr(models, name)(weights=None, num_classes=7)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    converted = convert_strides(model, IMAGES[:1], smoothness=1.0)
    pools = stride_layers(converted)
    assert len(pools) == layers
    kept = {
        key.replace(".layer.", "."): value for key, value in converted.state_dict().items() if "pool.strides" not in key
    }
    assert all(torch.equal(kept[key], value) for key, value in before.items())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert not any(isinstance(module, Destrided) for module in model.modules())
    assert converted.training
    converted(IMAGES).square().sum().backward()
    assert all(pool.strides.grad is not None for pool in pools)
    assert any((pool.strides.grad != 0).any() for pool in pools)
    frozen = freeze_strides(converted).eval()
    assert not stride_layers(frozen)
    assert frozen(IMAGES).isfinite().all()


class Block(nn.Module):
    def __init__(self, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, stride=(2, 1), padding=1), second

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([self.first(maps), self.second(maps)], dim=1)


def test_pooling_layers() -> None:
    models = pytest.importorskip("torchvision.models")
    converted = convert_strides(models.vgg11(weights=None, init_weights=False).features, IMAGES, smoothness=1.0)
    assert len(stride_layers(converted)) == 5
    assert isinstance(converted[2], Destrided)
    assert converted[2].layer.stride == (1, 1)


def test_both_axes_and_paths_that_meet() -> None:
    converted = convert_strides(Block(nn.Conv2d(3, 4, 1, stride=(2, 1))), IMAGES)
    assert converted.first.pool is converted.second.pool
    assert converted.first.pool.strides.tolist() == [2, 1]
    with torch.no_grad():
        converted.first.pool.strides.copy_(torch.tensor([3.3, 1.6]))
    assert converted(IMAGES).shape[-2:] == converted.first.pool.output_size((64, 64))


class Flattening(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 1, 3, stride=2, padding=1), nn.Linear(1024, 2)

    def forward(self, maps: Tensor) -> Tensor:
        return self.fc(self.conv(maps).flatten(1))


class Deciding(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps if maps.sum() > 0 else -maps


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Block(nn.Sequential(nn.Conv2d(3, 4, 1, stride=(2, 1)), nn.MaxPool2d(2))), "different numbers of strides"),
        (Block(nn.Conv2d(3, 4, 1, stride=2)), "different strides"),
        (Block(nn.Conv2d(3, 4, 1)), r"first leads to one where the input leads to the other"),
        (nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()), "no Conv2d, MaxPool2d or AvgPool2d with a stride above 1"),
        (Flattening(), "cannot run at the strides"),
        (Deciding(), "cannot be followed by torch.fx"),
    ],
)
def test_mistakes(model: nn.Module, message: str) -> None:
    before = [(name, getattr(layer, "stride", None)) for name, layer in model.named_modules()]
    with pytest.raises(ValueError, match=message):
        convert_strides(model, IMAGES)
    assert before == [(name, getattr(layer, "stride", None)) for name, layer in model.named_modules()]


def test_a_converted_model_trains_under_our_module(tmp_path: Any) -> None:
    from lit_papers.diffstride import StridedClassifier

    model = convert_strides(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    module = StridedClassifier(model)
    assert len(module.stride_layers) == 1
    assert [len(group["params"]) for group in module.parameter_groups()] == [2, 1]

"""Strangers' networks with learnable strides."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lit_papers.diffstride.convert import convert_strides
from lit_papers.diffstride.layers import DiffStride, DiffStride3d, freeze_strides

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def stride_layers(model: nn.Module) -> list[DiffStride]:
    return [layer for layer in model.modules() if isinstance(layer, DiffStride)]


@torch.no_grad()
def sizes_at(model: nn.Module, images: Tensor, *strides: float) -> list[tuple[int, ...]]:
    found = []
    for stride in strides:
        for layer in stride_layers(model):
            layer.strides.fill_(stride)
        found.append(tuple(model(images).shape))
    return found


@pytest.mark.parametrize(("name", "layers"), [("resnet18", 5), ("shufflenet_v2_x0_5", 5), ("squeezenet1_1", 4)])
def test_torchvision(name: str, layers: int) -> None:
    """A residual network; one that shuffles channels by a reshape; one whose pooling has `ceil_mode`."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model = getattr(models, name)(weights=None, num_classes=7)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    converted = convert_strides(model, IMAGES[:1], smoothness=1.0)
    pools = stride_layers(converted)
    assert len(pools) == layers
    kept = {key: value for key, value in converted.state_dict().items() if "pool.strides" not in key}
    assert list(kept) == list(before)
    assert all(torch.equal(kept[key], value) for key, value in before.items())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert not stride_layers(model)
    assert converted.training
    converted(IMAGES).square().sum().backward()
    assert all(pool.strides.grad is not None for pool in pools)
    assert any((pool.strides.grad != 0).any() for pool in pools)
    frozen = freeze_strides(converted).eval()
    assert not stride_layers(frozen)
    assert frozen(IMAGES).isfinite().all()


STRIDED: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "convolution": (nn.Conv2d(3, 4, 3, stride=2, padding=1), (15, 16)),
    "even kernel": (nn.Conv2d(3, 4, 4, stride=4), (16, 20)),
    "dilation, no padding": (nn.Conv2d(3, 4, 3, stride=2, dilation=2), (15, 16)),
    "more padding than kernel": (nn.Conv2d(3, 4, 2, stride=2, padding=1), (15, 16)),
    "maximum": (nn.MaxPool2d(3, 2, padding=1), (15, 16)),
    "maximum, ceil": (nn.MaxPool2d(3, 2, ceil_mode=True), (15, 16)),
    "average": (nn.AvgPool2d(2), (14, 16)),
    "average, ceil": (nn.AvgPool2d(2, ceil_mode=True), (15, 17)),
    "average, ceil, padding": (nn.AvgPool2d(4, 2, padding=1, ceil_mode=True), (15, 16)),
    "average, ceil, without padding": (
        nn.AvgPool2d(4, 2, padding=1, ceil_mode=True, count_include_pad=False), (15, 16),
    ),
    "average, divisor": (nn.AvgPool2d(2, divisor_override=3), (14, 16)),
    "sequence": (nn.Conv1d(3, 4, 9, stride=4, padding=4), (50,)),
    "sequence, maximum": (nn.MaxPool1d(2), (50,)),
    "sequence, average": (nn.AvgPool1d(4, ceil_mode=True), (50,)),
    "volume": (nn.Conv3d(3, 4, 3, stride=(1, 2, 2), padding=1), (4, 10, 10)),
    "volume, maximum": (nn.MaxPool3d(2), (4, 10, 10)),
    "volume, average": (nn.AvgPool3d(2, ceil_mode=True), (5, 10, 10)),
}  # fmt: skip


@pytest.mark.parametrize("kind", STRIDED)
def test_every_nth_point_is_what_the_layer_gave(kind: str) -> None:
    """In front of the learned stride there are as many points as came in, and the old output is among them."""
    layer, size = STRIDED[kind]
    maps = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = layer(maps)
    converted = convert_strides(layer, maps, smoothness=1.0)
    stride = [int(each) for each in converted.pool.strides]
    assert converted.pool.strides.tolist() == [float(each) for each in stride]
    assert isinstance(converted, type(layer))
    before = []
    converted.pool.register_forward_pre_hook(lambda module, inputs: before.append(inputs[0]))
    converted(maps)
    assert before[0].shape[2:] == size
    grid = before[0][(..., *[slice(None, None, each) for each in stride])]
    common = tuple(slice(0, min(n, m)) for n, m in zip(grid.shape, expected.shape, strict=True))
    assert torch.allclose(grid[common], expected[common], atol=1e-6)
    assert [n - m for n, m in zip(expected.shape, grid.shape, strict=True) if n - m > 1] == []


class Meeting(nn.Module):
    """Two strided branches, and how they meet."""

    def __init__(self, meet: Callable[[Tensor, Tensor], Tensor], second: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=(2, 1), padding=1)
        self.second = second or nn.Conv2d(3, 4, 1, stride=(2, 1))
        self.meet = meet

    def forward(self, maps: Tensor) -> Tensor:
        return self.meet(self.first(maps), self.second(maps))


def _flat(first: Tensor, second: Tensor) -> Tensor:
    return first.flatten(2) + second.flatten(2)


@pytest.mark.parametrize(
    "meet",
    [
        torch.add,
        lambda a, b: torch.concat([a, b], 1),
        lambda a, b: torch.stack([a, b]).sum(0),
        lambda a, b: torch.where(a > b, a, b),
        lambda a, b: torch.einsum("nchw,nchw->nchw", a, b),
        lambda a, b: a.mT @ b,
        _flat,
        torch.Tensor.copy_,
    ],
    ids=["add", "concat", "stack", "where", "einsum", "product", "flattened", "in place"],
)
def test_paths_that_meet_share_their_strides(meet: Any) -> None:
    converted = convert_strides(Meeting(meet), IMAGES)
    assert converted.first.pool is converted.second.pool
    assert converted.first.pool.strides.tolist() == [2, 1]
    sizes_at(converted, IMAGES, 1.3, 2.2, 3.3)


def test_paths_that_do_not_meet_have_strides_of_their_own() -> None:
    converted = convert_strides(Meeting(lambda a, b: a.mean((2, 3)) + b.mean((2, 3))), IMAGES)
    assert converted.first.pool is not converted.second.pool


def test_a_layer_that_is_used_twice() -> None:
    class Pairing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, 2, 1)

        def forward(self, maps: Tensor) -> Tensor:
            return self.conv(maps).mean((2, 3)) + self.conv(maps[..., ::3]).mean((2, 3))

    converted = convert_strides(Pairing(), IMAGES)
    assert len(stride_layers(converted)) == 1
    sizes_at(converted, IMAGES, 1.3, 2.2)


def test_height_that_meets_width() -> None:
    class Transposing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, 2, 1)

        def forward(self, maps: Tensor) -> Tensor:
            maps = self.conv(maps)
            return maps + maps.mT

    converted = convert_strides(Transposing(), IMAGES)
    assert converted.conv.pool.shared_stride
    sizes_at(converted, IMAGES, 1.3, 2.2)


class Calling(nn.Module):
    """Strides in the code: two poolings, one of them of a branch, and a convolution with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.strided = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.kernel = nn.Parameter(torch.randn(4, 1, 3, 3))

    def forward(self, maps: Tensor) -> Tensor:
        maps = F.max_pool2d(self.conv(maps), 2)
        maps = F.conv2d(maps, self.kernel, stride=2, padding=1, groups=4)
        return torch.cat([F.max_pool2d(maps, kernel_size=2, stride=2), self.strided(maps)], 1)


def test_strides_in_the_code() -> None:
    model = nn.Sequential(Calling(), nn.Flatten(2))
    converted = convert_strides(model, IMAGES, smoothness=1.0)
    pools = converted[0].called_strides.pools
    assert list(pools) == ["max_pool2d_0", "conv2d_0", "max_pool2d_1"]
    assert pools["max_pool2d_1"] is converted[0].strided.pool
    assert len(stride_layers(converted)) == 3
    expected = converted(IMAGES)
    expected.square().sum().backward()
    assert all((pool.strides.grad != 0).any() for pool in stride_layers(converted))
    assert torch.equal(copy.deepcopy(converted)(IMAGES), expected)
    assert torch.equal(pickle.loads(pickle.dumps(converted))(IMAGES), expected)  # noqa: S301
    with pytest.raises(RuntimeError, match="channels"):
        converted(IMAGES[:, :2])
    assert not converted[0].called_strides._active  # also after an error
    fixed = convert_strides(model, IMAGES, smoothness=1.0, exclude=["0.max_pool2d_0"])
    assert list(fixed[0].called_strides.pools) == ["conv2d_0", "max_pool2d_1"]
    sizes_at(fixed, IMAGES, 1.3, 2.4)


class Encoding(nn.Module):
    """A U-Net: decoder maps meet encoder maps, and the output has the size of the input."""

    def __init__(self, enlarge: Callable[[], nn.Module | None]) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)])
        self.up = nn.ModuleList([enlarge() or nn.Identity(), enlarge() or nn.Identity()])
        self.in_code = enlarge() is None
        self.out = nn.Conv2d(8, 2, 1)

    def enlarge(self, maps: Tensor, index: int) -> Tensor:
        return F.interpolate(maps, scale_factor=2.0) if self.in_code else self.up[index](maps)

    def forward(self, images: Tensor) -> Tensor:
        first = self.down[0](images)
        second = self.down[1](first)
        return self.out(self.enlarge(torch.cat([self.enlarge(second, 0), first], 1), 1)[:, :8])


@pytest.mark.parametrize(
    "enlarge",
    [
        lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
        lambda: nn.LazyConvTranspose2d(8, 2, stride=2),
        lambda: None,
    ],
    ids=["upsample", "transposed", "call"],
)
def test_decoder_maps_take_the_size_that_they_meet(enlarge: Any) -> None:
    model = Encoding(enlarge)
    model(IMAGES)
    converted = convert_strides(model, IMAGES, smoothness=1.0)
    assert len(stride_layers(converted)) == 2
    assert set(sizes_at(converted, IMAGES, 1.3, 2.2, 3.1)) == {(2, 2, 64, 64)}
    assert converted(torch.zeros(1, 3, 48, 40)).shape == (1, 2, 48, 40)


class Reaching(nn.Module):
    """A decoder that is told the size of the map that it meets, as many segmentation networks are."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.down = nn.Conv2d(2, 2, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        deep = self.down(self.down(images))
        if self.mode == "pad":  # to what is missing, as TensorFlow's "same" padding does
            missing = images.shape[-1] - deep.shape[-1]
            return images + F.pad(deep, [0, missing, 0, images.shape[-2] - deep.shape[-2]])
        aligned = None if self.mode == "nearest" else True
        return images + F.interpolate(deep, size=images.shape[-2:], mode=self.mode, align_corners=aligned)


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic", "pad"])
def test_maps_that_are_brought_to_a_size_in_the_code(mode: str) -> None:
    images = torch.randn(1, 2, 16, 16)
    converted = convert_strides(Reaching(mode), images, smoothness=1.0)
    (pool,) = {layer for layer in converted.modules() if isinstance(layer, DiffStride)}
    with torch.no_grad():
        pool.strides.fill_(1.7)
    assert converted(images).shape == images.shape


def test_leaving_layers_out() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2), nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1)))
    choices: list[tuple[Any, set[str]]] = [
        (["0", "1"], {"0", "1"}), ("2", {"2"}), (lambda name: name == "1", {"1"}), ((), set()),
    ]  # fmt: skip
    for exclude, expected in choices:
        converted = convert_strides(model, IMAGES, exclude=exclude)
        left = {"0", "1", "2"} - {name[0] for name, _ in converted.named_parameters() if "strides" in name}
        assert left == expected
    assert len(stride_layers(convert_strides(model, IMAGES, include=["2"]))) == 1
    with pytest.raises(ValueError, match=r"`exclude` names 'layer', which is no module"):
        convert_strides(model, IMAGES, exclude=["layer"])
    with pytest.raises(ValueError, match="meets that of first, whose size is not learned"):
        convert_strides(Meeting(torch.add), IMAGES, exclude=["first"])


class Flattening(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 1, 3, stride=2, padding=1), nn.Linear(1024, 2)

    def forward(self, maps: Tensor) -> Tensor:
        return self.fc(self.conv(maps).flatten(1))


class Deciding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3, stride=2)

    def forward(self, maps: Tensor) -> Tensor:
        return self.conv(maps if maps.sum() > 0 else -maps)


class Unpooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, maps: Tensor) -> Tensor:
        return self.unpool(*self.pool(maps))


class OnlyInTraining(nn.Module):
    """An auxiliary head that takes maps of one size, as some classifiers have it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 1, 3, stride=2, padding=1), nn.Linear(1024, 2)

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.conv(maps)
        return self.head(maps.flatten(1)) if self.training else maps.mean((2, 3))


def _unlike() -> Meeting:
    model = Meeting(torch.add, nn.Sequential(nn.Conv2d(3, 4, 1, stride=(2, 1)), nn.Conv2d(4, 4, 1, stride=(2, 1))))
    model.first = nn.Conv2d(3, 4, 3, stride=(4, 1), padding=1)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Meeting(torch.add, nn.Conv2d(3, 4, 1)), "cannot be followed"),
        (_unlike(), "meet, but have different strides"),
        (nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()), "no convolution or pooling with a stride above 1"),
        (Flattening(), "cannot run at the strides"),
        (OnlyInTraining(), r"cannot run at the strides .* in training mode"),
        (Deciding(), "cannot be followed"),
        (Unpooling(), "pool returns the indices"),
    ],
)
def test_mistakes(model: nn.Module, message: str) -> None:
    before = [(name, getattr(layer, "stride", None)) for name, layer in model.named_modules()]
    with pytest.raises(ValueError, match=message):
        convert_strides(model, IMAGES)
    assert before == [(name, getattr(layer, "stride", None)) for name, layer in model.named_modules()]


def test_what_cannot_be_copied_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1))
    with pytest.raises(ValueError, match="is compiled: convert"):
        convert_strides(torch.compile(model, backend="eager"), IMAGES)
    model[0].kept = model[0](IMAGES)
    with pytest.raises(ValueError, match="Sequential cannot be copied"):
        convert_strides(model, IMAGES)


def test_checkpoints() -> None:
    """Those of the original load; those that would load in part, or not at all, are refused whatever `strict` is."""
    original = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1))
    trained = copy.deepcopy(original)
    nn.init.ones_(trained[0].weight)
    converted = convert_strides(original, IMAGES)
    for strict in (True, False):
        converted.load_state_dict(trained.state_dict(), strict=strict)
        assert torch.equal(converted[0].weight, trained[0].weight)
        assert converted[0].pool.strides.tolist() == [2, 2]
    with torch.no_grad():
        converted[0].pool.strides.fill_(3.0)
    again = convert_strides(original, IMAGES)
    again.load_state_dict(converted.state_dict())
    assert again[0].pool.strides.tolist() == [3, 3]
    with pytest.raises(RuntimeError, match="has none of this network's weights"):
        again.load_state_dict({f"model.{key}": value for key, value in trained.state_dict().items()}, strict=False)
    part = convert_strides(original, IMAGES, exclude=["0"])
    with pytest.raises(RuntimeError, match="strides for 1 of the 2 places"):
        again.load_state_dict(part.state_dict(), strict=False)


def test_three_dimensions_are_learned() -> None:
    clips = torch.randn(2, 3, 6, 16, 16)
    model = nn.Sequential(nn.Conv3d(3, 4, 3, (1, 2, 2), 1), nn.ReLU(), nn.AdaptiveAvgPool3d(1))
    converted = convert_strides(model, clips, smoothness=1.0)
    (pool,) = stride_layers(converted)
    assert isinstance(pool, DiffStride3d)
    converted(clips).square().sum().backward()
    assert pool.strides.grad.shape == (3,)
    assert (pool.strides.grad[1:] != 0).all()


def test_a_converted_model_trains_under_our_module(tmp_path: Any) -> None:
    from lit_papers.diffstride import StridedClassifier

    model = convert_strides(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()), IMAGES)
    module = StridedClassifier(model)
    assert len(module.stride_layers) == 1
    assert [len(group["params"]) for group in module.parameter_groups()] == [2, 1]

"""The batched augmentations beside torchvision's, image by image, for equal parameters; and their distribution."""

import pytest
import torch

from lit_papers.continual.augmentations import SSLTransform, gaussian_blur, resized_crop, sample_boxes
from lit_papers.continual.colors import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation

functional = pytest.importorskip("torchvision.transforms.functional")
transforms = pytest.importorskip("torchvision.transforms")


@pytest.fixture
def images() -> torch.Tensor:
    pictures = torch.rand(24, 3, 20, 28, generator=torch.Generator().manual_seed(0))
    pictures[0] = pictures[0, :1]  # grey: no hue
    pictures[1] = 0
    pictures[2, 1] = pictures[2, 0]  # ties between channels
    return pictures


@pytest.mark.parametrize("size", [8, 32])
def test_resized_crop_is_torchvisions(images: torch.Tensor, size: int) -> None:
    boxes = sample_boxes(24, 20, 28, scale=(0.05, 1.0))
    flip = torch.arange(24) % 2 == 0
    ours = resized_crop(images, boxes, size, flip)
    for image, box, mirrored, found in zip(images, boxes.int().tolist(), flip, ours, strict=True):
        expected = functional.resized_crop(image, *box, [size, size], antialias=True)
        torch.testing.assert_close(found, functional.hflip(expected) if mirrored else expected, rtol=0, atol=2e-6)
    nearest = resized_crop(images[:1], boxes[:1], size, mode="nearest")
    mode = functional.InterpolationMode.NEAREST
    assert torch.equal(nearest[0], functional.resized_crop(images[0], *boxes[0].int().tolist(), [size, size], mode))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_colours_are_torchvisions(images: torch.Tensor, name: str) -> None:
    ours = {
        "brightness": adjust_brightness, "contrast": adjust_contrast,
        "saturation": adjust_saturation, "hue": adjust_hue,
    }[name]  # fmt: skip
    factor = torch.linspace(-0.5, 0.5, 24) if name == "hue" else torch.linspace(0, 2, 24)
    before = images.clone()
    for pictures in (images, images[:, :1]):
        found = ours(pictures, factor)
        expected = [getattr(functional, f"adjust_{name}")(p, f.item()) for p, f in zip(pictures, factor, strict=True)]
        torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=2e-6)
    assert torch.equal(images, before)


def test_blur_is_torchvisions(images: torch.Tensor) -> None:
    sigma = torch.linspace(0.1, 2, 24)
    for image, s, found in zip(images, sigma.tolist(), gaussian_blur(images, sigma), strict=True):
        torch.testing.assert_close(found, functional.gaussian_blur(image, [7, 7], [s, s]), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (10, 40), (40, 10)])
def test_boxes_are_drawn_as_by_torchvision(height: int, width: int) -> None:
    ours = sample_boxes(6000, height, width, generator=torch.Generator().manual_seed(0))
    picture = torch.zeros(1, height, width)
    theirs = torch.tensor(
        [transforms.RandomResizedCrop.get_params(picture, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(6000)]
    ).float()
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    for found, expected in zip(ours.T, theirs.T, strict=True):
        for share in (0.1, 0.25, 0.5, 0.75, 0.9):
            assert abs(found.quantile(share) - expected.quantile(share)) <= 1 + 0.05 * max(height, width)
        assert abs(found.mean() - expected.mean()) < 5 * expected.std() * (2 / 6000) ** 0.5 + 1e-6


def test_each_image_gets_parameters_of_its_own() -> None:
    same = torch.rand(1, 3, 16, 16).expand(50, -1, -1, -1)
    views = SSLTransform(16)(same, torch.Generator().manual_seed(0))
    assert len({tuple(view.flatten().tolist()) for view in views}) == 50


def test_a_generator_decides_everything() -> None:
    pictures = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    transform = SSLTransform(16, blur_p=0.5)
    state = torch.get_rng_state()
    first, again = (transform(pictures, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, transform(pictures, torch.Generator().manual_seed(6)))


def test_chances_are_kept() -> None:
    pictures = torch.rand(4000, 3, 8, 8)
    plain = {"scale": (1.0, 1.0), "flip_p": 0.0, "jitter_p": 0.0, "grayscale_p": 0.0, "mean": (0.0,), "std": (1.0,)}
    for name in ("flip_p", "jitter_p", "grayscale_p", "blur_p"):
        views = SSLTransform(8, **{**plain, "padding": 0, name: 0.3})(pictures)
        share = (views != pictures).flatten(1).any(dim=1).float().mean().item()
        assert share == pytest.approx(0.3, abs=0.03), name
    assert torch.equal(SSLTransform(8, **{**plain, "padding": 0})(pictures), pictures)


def test_padded_crops_are_windows_of_the_padded_image() -> None:
    picture = torch.arange(1, 37.0).view(1, 1, 6, 6).expand(500, -1, -1, -1) / 255
    plain = {"jitter_p": 0.0, "grayscale_p": 0.0, "mean": (0.0,), "std": (1.0,), "padding": 2}
    padded = torch.nn.functional.pad(picture[0, 0], (2, 2, 2, 2))
    windows = {tuple(window.flatten().tolist()) for rows in padded.unfold(0, 6, 1).unfold(1, 6, 1) for window in rows}
    mirrored = {tuple(torch.tensor(window).view(6, 6).flip(1).flatten().tolist()) for window in windows}
    views = SSLTransform(6, flip_p=0.0, **plain)(picture)
    assert {tuple(view.flatten().tolist()) for view in views} == windows
    views = SSLTransform(6, flip_p=1.0, **plain)(picture)
    assert {tuple(view.flatten().tolist()) for view in views} == mirrored


def test_evaluation_only_normalises() -> None:
    pictures = torch.randint(0, 256, (4, 1, 9, 7), dtype=torch.uint8)
    found = SSLTransform(32, mean=(0.5,), std=(0.25,)).eval()(pictures)
    torch.testing.assert_close(found, (pictures / 255 - 0.5) / 0.25)


def test_grey_images_are_not_coloured() -> None:
    pictures = torch.rand(16, 1, 8, 8)
    colours = {"flip_p": 0.0, "jitter": (0.0, 0.0, 0.9, 0.4), "jitter_p": 1.0, "grayscale_p": 1.0, "padding": 0}
    assert torch.equal(SSLTransform(8, **colours, mean=(0.0,), std=(1.0,))(pictures), pictures)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"size": 0}, "`size`"), ({"scale": (0.0, 1.0)}, "`scale`"), ({"flip_p": 1.5}, "`flip_p`"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "`jitter`"), ({"std": (1.0,)}, "`std`"), ({"padding": -1}, "`padding`"),
    ],
)  # fmt: skip
def test_bad_arguments(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SSLTransform(**{"size": 8, **wrong})


def test_bad_images() -> None:
    with pytest.raises(ValueError, match="3 numbers, but the images have 1"):
        SSLTransform(8)(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match="`size`"):
        SSLTransform(9, mean=(0.0,), std=(1.0,), padding=0)(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match="`mode`"):
        resized_crop(torch.rand(1, 1, 4, 4), torch.tensor([[0.0, 0.0, 4.0, 4.0]]), 4, mode="cubic")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [16, 80])
def test_a_view_is_what_torchvision_makes_of_the_same_numbers(size: int) -> None:
    """The whole chain, small and large: crop, mirror, colours in their order, grey; bytes may round once."""
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    torch.manual_seed(0)
    images = torch.randint(256, (6, 3, size + 3, size), dtype=torch.uint8)
    transform = SSLTransform(size, mean=(0.0,), std=(1.0,), grayscale_p=0.4, jitter_p=0.7)
    found = transform(images, torch.Generator().manual_seed(3))
    g = torch.Generator().manual_seed(3)
    flip = torch.rand(6, generator=g) < 0.5
    boxes = sample_boxes(6, size + 3, size, (0.2, 1.0), generator=g).int().tolist()
    jittered = torch.rand(6, generator=g) < 0.7
    factors, order = 2 * torch.rand(4, 6, generator=g) - 1, torch.randperm(4, generator=g).tolist()
    grey = torch.rand(6, generator=g) < 0.4
    adjust = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    for i, (top, left, height, width) in enumerate(boxes):
        view = functional.resized_crop(images[i] / 255, top, left, height, width, [size, size], antialias=True)
        view = view.flip(2) if flip[i] else view
        for which in order if jittered[i] else ():
            factor = factors[which, i].item()
            view = functional.adjust_hue(view, 0.1 * factor) if which == 3 else adjust[which](view, 1 + 0.4 * factor)
        view = functional.rgb_to_grayscale(view, 3) if grey[i] else view
        error = (found[i] - view).abs()
        # rounding to bytes moves a hue far where there is next to no colour
        assert error.max() < (5e-5 if size <= 64 else 0.06), i
        assert error.mean() < (1e-5 if size <= 64 else 0.004), i


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_images_of_any_number_of_channels(channels: int) -> None:
    images = torch.randint(256, (5, channels, 20, 20), dtype=torch.uint8)
    view = SSLTransform(12, mean=(0.5,), std=(0.5,), grayscale_p=1.0, blur_p=1.0)(images)
    assert view.shape == (5, channels, 12, 12)
    assert view.abs().max() <= 1 + 1e-5
    contrast = adjust_contrast(images / 255, torch.zeros(5))
    torch.testing.assert_close(contrast, (images / 255).mean(dim=(1, 2, 3), keepdim=True).expand_as(contrast))


def test_levels_are_known_or_refused() -> None:
    plain = SSLTransform(8, mean=(0.5,), std=(0.25,)).eval()
    pixels = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(plain(pixels.to(torch.uint16) * 257), plain(pixels))
    for wrong, error in ((pixels.long(), TypeError), (pixels.float(), ValueError), (pixels - 1.0, ValueError),
                         (torch.full((1, 3, 8, 8), torch.nan), ValueError), (pixels[0], ValueError),
                         (pixels.permute(0, 2, 3, 1), ValueError)):  # fmt: skip
        with pytest.raises(error):
            plain(wrong)

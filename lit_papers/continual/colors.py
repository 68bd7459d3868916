"""Torchvision's colour adjustments, with a factor for each image of a batch."""

import torch
from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)  # torchvision's


def grayscale(images: Tensor) -> Tensor:
    """Luminance of colour images ``(N, 3, H, W)``, as ``(N, 1, H, W)``; grey images are returned as they are."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).unsqueeze(1)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply: 0 is black, 1 the image.

    Args:
        images: float, in [0, 1], ``(N, C, H, W)``.
        factor: >= 0, ``(N,)``.

    Returns:
        Images in [0, 1], ``(N, C, H, W)``.
    """
    return (images * _spread(factor, images)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean luminance of the image: 0 is grey, 1 the image.

    Args:
        images: float, in [0, 1], ``(N, C, H, W)``.
        factor: >= 0, ``(N,)``.

    Returns:
        Images in [0, 1], ``(N, C, H, W)``.
    """
    return _blend(images, grayscale(images).mean(dim=(1, 2, 3), keepdim=True), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the luminance: 0 is grey, 1 the image; grey images are returned as they are.

    Args:
        images: float, in [0, 1], ``(N, C, H, W)``.
        factor: >= 0, ``(N,)``.

    Returns:
        Images in [0, 1], ``(N, C, H, W)``.
    """
    return images if images.shape[1] == 1 else _blend(images, grayscale(images), factor)


def adjust_hue(images: Tensor, factor: Tensor) -> Tensor:
    """Turn the colour circle; grey images are returned as they are.

    Args:
        images: float, in [0, 1], ``(N, C, H, W)``.
        factor: in turns, in [-0.5, 0.5], ``(N,)``.

    Returns:
        Images in [0, 1], ``(N, C, H, W)``.
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    value, low = images.amax(dim=1), images.amin(dim=1)
    chroma = value - low
    unit = 1 / chroma.where(chroma > 0, 1.0)
    # sixths of a turn, from the largest channel; where all are equal the hue does not matter
    hue = torch.where(
        value == red,
        (green - blue) * unit,
        torch.where(value == green, 2 + (blue - red) * unit, 4 + (red - green) * unit),
    )
    hue.add_(6 * factor.to(images).view(-1, 1, 1))
    turned = torch.empty_like(images)
    for channel, offset in enumerate((5, 3, 1)):
        # the closed form of HSV to RGB, which needs no case for each sector: value - chroma * clamp(2 - |sector - 2|)
        weight = (hue + offset).remainder_(6).sub_(2).abs_().neg_().add_(2).clamp_(0, 1)
        torch.addcmul(value, chroma, weight, value=-1, out=turned[:, channel])
    return turned.clamp_(0, 1)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(other.expand_as(images), images, _spread(factor, images)).clamp_(0, 1)


def _spread(factor: Tensor, images: Tensor) -> Tensor:
    return factor.to(images).view(-1, 1, 1, 1)

"""Torchvision's colour adjustments, with a factor for each image of a batch.

Those with an underscore work in place, plane by plane, so that a chunk of images stays in the processor's cache from
one to the next. Images of other than three channels have no hue and no saturation; their luminance is their mean.
"""

import torch
from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)  # torchvision's
_NO_CHROMA = 1e-12
_STEEP = 1e15  # beyond the smallest difference of two channels that are not black


def grayscale(images: Tensor) -> Tensor:
    """Luminance of images ``(N, C, H, W)``, as ``(N, 1, H, W)``: of colours weighted, otherwise the channels' mean."""
    if images.shape[1] != 3:
        return images if images.shape[1] == 1 else images.mean(dim=1, keepdim=True)
    red, green, blue = torch.split(images, 1, dim=1)
    luminance: Tensor = _LUMA[0] * red
    return luminance.add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply: 0 is black, 1 the image.

    Args:
        images: float, in [0, 1], ``(N, C, H, W)``.
        factor: >= 0, ``(N,)``.

    Returns:
        Images in [0, 1], ``(N, C, H, W)``.
    """
    return brightness_(images.clone(), factor)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean luminance of the image: 0 is grey, 1 the image.

    Args:
        images: float, in [0, 1], ``(N, C, H, W)``.
        factor: >= 0, ``(N,)``.

    Returns:
        Images in [0, 1], ``(N, C, H, W)``.
    """
    return contrast_(images.clone(), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the luminance: 0 is grey, 1 the image; images without colours are returned as they are.

    Args:
        images: float, in [0, 1], ``(N, C, H, W)``.
        factor: >= 0, ``(N,)``.

    Returns:
        Images in [0, 1], ``(N, C, H, W)``.
    """
    return saturation_(images.clone(), factor)


def adjust_hue(images: Tensor, factor: Tensor) -> Tensor:
    """Turn the colour circle; images without colours are returned as they are.

    Args:
        images: float, in [0, 1], ``(N, C, H, W)``.
        factor: in turns, in [-0.5, 0.5], ``(N,)``.

    Returns:
        Images in [0, 1], ``(N, C, H, W)``.
    """
    return hue_(images.clone(), factor)


def brightness_(images: Tensor, factor: Tensor) -> Tensor:
    """`adjust_brightness` in place."""
    return images.mul_(_spread(factor, images)).clamp_(0, 1)


def contrast_(images: Tensor, factor: Tensor) -> Tensor:
    """`adjust_contrast` in place."""
    means = images.mean(dim=(2, 3))  # (N, C): the mean of a luminance is the luminance of means
    if images.shape[1] == 3:
        grey = _LUMA[0] * means[:, 0] + _LUMA[1] * means[:, 1] + _LUMA[2] * means[:, 2]
    else:
        grey = means.mean(dim=1)
    spread = _spread(factor, images)
    return images.mul_(spread).add_((1 - spread) * grey.view(-1, 1, 1, 1)).clamp_(0, 1)


def saturation_(images: Tensor, factor: Tensor) -> Tensor:
    """`adjust_saturation` in place."""
    if images.shape[1] != 3:
        return images
    spread = _spread(factor, images)
    grey = grayscale(images).mul_(1 - spread)
    return images.mul_(spread).add_(grey).clamp_(0, 1)


def hue_(images: Tensor, factor: Tensor) -> Tensor:
    """`adjust_hue` in place."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.unbind(1)
    value = torch.maximum(red, green)
    low = torch.minimum(red, green)
    torch.maximum(value, blue, out=value)
    torch.minimum(low, blue, out=low)
    chroma = value - low
    # sixths of a turn from the largest channel, times the chroma; where that is 0, all differences are
    hue = (red - green).add_(chroma, alpha=4)
    hue = torch.lerp(hue, (blue - red).add_(chroma, alpha=2), _equal(green, value))
    hue = torch.lerp(hue, green - blue, _equal(red, value))
    hue.div_(chroma.clamp_min(_NO_CHROMA)).div_(6)
    hue.add_(1 + factor.to(images).view(-1, 1, 1)).frac_().mul_(6)
    # HSV to RGB without a case for each sector: how far the hue is from a corner of the circle, between 1 and 2
    torch.addcmul(low - chroma, chroma, (hue - 3).abs_().clamp_(1, 2), out=red)
    top = low.add_(chroma, alpha=2)
    torch.addcmul(top, chroma, (hue - 2).abs_().clamp_(1, 2), value=-1, out=green)
    torch.addcmul(top, chroma, hue.sub_(4).abs_().clamp_(1, 2), value=-1, out=blue)
    return images.clamp_(0, 1)


def _equal(channel: Tensor, largest: Tensor) -> Tensor:
    """1 where they are equal, else 0: arithmetic is several times faster than a mask and a choice by it."""
    return (channel - largest).mul_(_STEEP).add_(1).clamp_(min=0)


def _spread(factor: Tensor, images: Tensor) -> Tensor:
    return factor.to(images).view(-1, 1, 1, 1)

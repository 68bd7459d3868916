"""Torchvision's augmentations for a whole batch at once, with random parameters of its own for each image.

A resized crop is a product with two small matrices an image, so it runs on any device and needs no loop; large images
on the CPU are resized one by one, which saves the zeros of the matrices. Parameters are drawn on the CPU, so that one
generator gives the same crops and colours everywhere, and a GPU is never waited for.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lit_papers.continual.colors import brightness_, contrast_, grayscale, hue_, saturation_

_ROUNDING = 1e-5  # how far above 1 a resized white may come
_TRIES = 10  # torchvision's, before it falls back to the middle
_SMALL = 64  # pixels of a side up to which products of matrices are faster than a loop
_CHUNK = 2**16  # pixels of a channel that stay in a processor's cache through all adjustments
_BLUR_KERNEL, _BLUR_SIGMA = 7, (0.1, 2.0)  # the authors', for Tiny-ImageNet


def sample_boxes(
    n: int,
    height: int,
    width: int,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw crops as torchvision's ``RandomResizedCrop`` does: ten tries each, then the middle.

    Args:
        n: crops to draw.
        height: of the images, in pixels.
        width: of the images, in pixels.
        scale: share of the area, lowest and highest, in (0, 1].
        ratio: width over height, lowest and highest.
        generator: of the draw, on the CPU; None is torch's own.

    Returns:
        Whole numbers of pixels as floats, ``(n, 4)``: top, left, height, width.

    >>> sample_boxes(1, 8, 8, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    tensor([[0., 0., 8., 8.]])
    """
    area, shape, top, left = torch.rand(4, n, _TRIES, generator=generator, dtype=torch.float64)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * area)  # (n, tries)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = (low + (high - low) * shape).exp()
    heights, widths = (area / shape).sqrt().round(), (area * shape).sqrt().round()
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    tops, lefts = (top * (height - heights + 1)).floor(), (left * (width - widths + 1)).floor()
    tries = torch.stack([tops, lefts, heights, widths], dim=-1)  # (n, tries, 4)
    chosen = tries[torch.arange(n), fits.int().argmax(dim=1)]
    middle = tries.new_tensor(_middle(height, width, ratio))
    return torch.where(fits.any(dim=1, keepdim=True), chosen, middle).float()


def _middle(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    crop_height, crop_width = height, width
    if width / height < min(ratio):
        crop_height = round(width / min(ratio))
    elif width / height > max(ratio):
        crop_width = round(height * max(ratio))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def resized_crop(
    images: Tensor,
    boxes: Tensor,
    size: int,
    flip: Tensor | None = None,
    mode: Literal["bilinear", "nearest"] = "bilinear",
) -> Tensor:
    """Cut a box out of each image and resize it, as torchvision does with antialiasing.

    Args:
        images: float ``(N, C, H, W)``.
        boxes: top, left, height and width in pixels, inside the image, ``(N, 4)``.
        size: height and width of the result.
        flip: mirror the result left to right, bool ``(N,)``.
        mode: of interpolation.

    Returns:
        float ``(N, C, size, size)``.

    Raises:
        ValueError: the mode is unknown.

    >>> image = torch.arange(16.0).view(1, 1, 4, 4)
    >>> resized_crop(image, torch.tensor([[1.0, 1.0, 2.0, 2.0]]), size=2).flatten()
    tensor([ 5.,  6.,  9., 10.])
    """
    if mode not in ("bilinear", "nearest"):
        raise ValueError(f"`mode` must be 'bilinear' or 'nearest', got {mode!r}")
    boxes = boxes.to(images.device, images.dtype, non_blocking=True)
    rows = _interpolation(boxes[:, 0], boxes[:, 2], images.shape[2], size, mode)  # (N, size, H)
    columns = _interpolation(boxes[:, 1], boxes[:, 3], images.shape[3], size, mode)  # (N, size, W)
    if flip is not None:
        columns = torch.where(flip.to(columns.device, non_blocking=True).view(-1, 1, 1), columns.flip(1), columns)
    return _apply(images, rows, columns)


def _interpolation(start: Tensor, length: Tensor, pixels: int, size: int, mode: str) -> Tensor:
    """Weights of an axis' pixels in each resulting pixel, ``(N, size, pixels)``; 0 outside the box."""
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    pixel = torch.arange(pixels, device=start.device, dtype=start.dtype) - start  # (N, 1, pixels), from the box's edge
    target = torch.arange(size, device=start.device, dtype=start.dtype).view(1, -1, 1)
    scale = length / size
    if mode == "nearest":
        return (pixel == (target * scale).floor()).to(start.dtype)
    # a triangle; wider than a pixel where the box shrinks, which is the antialiasing
    distance = ((target + 0.5) * scale - 0.5 - pixel).abs_()
    weights = distance.div_(scale.clamp(min=1)).neg_().add_(1).clamp_(min=0)
    weights = weights.masked_fill_((pixel < 0) | (pixel >= length), 0)  # clamped to the box, not to the image
    return weights.div_(weights.sum(dim=2, keepdim=True))


def _apply(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``rows @ image @ columns.T`` of each image."""
    n, channels, height, _ = images.shape
    sideways = torch.bmm(images.reshape(n, channels * height, -1), columns.transpose(1, 2))  # (N, C H, size)
    return rows.unsqueeze(1) @ sideways.view(n, channels, height, -1)


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_size: int = _BLUR_KERNEL) -> Tensor:
    """Blur each image by its own sigma, with mirrored borders, as torchvision does.

    Args:
        images: float ``(N, C, H, W)``, with more than ``kernel_size // 2`` pixels a side.
        sigma: of the Gaussian in pixels, > 0, ``(N,)``.
        kernel_size: odd.

    Returns:
        float ``(N, C, H, W)``.
    """
    offsets = torch.arange(kernel_size, device=images.device, dtype=images.dtype) - kernel_size // 2
    kernel = (-0.5 * (offsets / sigma.to(images)[:, None]).square()).exp()
    kernel = kernel / kernel.sum(dim=1, keepdim=True)  # (N, kernel_size)
    rows, columns = (_blur_matrix(kernel, offsets.long(), pixels) for pixels in images.shape[2:])
    return _apply(images, rows, columns)


def _blur_matrix(kernel: Tensor, offsets: Tensor, pixels: int) -> Tensor:
    place = torch.arange(pixels, device=kernel.device)[:, None] + offsets  # (pixels, kernel_size)
    place = place.abs()
    place = torch.where(place >= pixels, 2 * (pixels - 1) - place, place)
    spread = place.expand(len(kernel), -1, -1)
    return kernel.new_zeros(len(kernel), pixels, pixels).scatter_add_(
        2, spread, kernel[:, None].expand_as(spread).contiguous()
    )


class SSLTransform(nn.Module):
    """A random view of each image: crop, mirror image, colours, blur; then the channels are normalised.

    In ``train()`` each image gets parameters of its own; the four colour adjustments come in an order drawn for the
    batch. In ``eval()`` images are only scaled to [0, 1] and normalised. On images of other than three channels
    saturation, hue and greyscale do nothing.

    Args:
        size: of the views; the paper has 32, and 64 for Tiny-ImageNet.
        scale: share of the area that a crop has, lowest and highest.
        flip_p: chance of a mirror image.
        jitter: strength of brightness, contrast, saturation and hue.
        jitter_p: chance of the colour adjustments.
        grayscale_p: chance of greyscale.
        blur_p: chance of a blur, of kernel 7 and sigma 0.1 to 2; the paper has 0.5 for Tiny-ImageNet.
        mean: of the channels in [0, 1]: one number, or one for each.
        std: of the channels, likewise.
        padding: instead of a resized crop, pad by so many black pixels and cut ``size`` out at random, as the
            supervised methods of the paper do with 4; 0 leaves images as they are.

    Raises:
        ValueError: an argument is out of its range.

    >>> SSLTransform(8, mean=(0.5,), std=(0.5,))(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape
    torch.Size([2, 1, 8, 8])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.2, 1.0),
        flip_p: float = 0.5,
        jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1),
        jitter_p: float = 0.8,
        grayscale_p: float = 0.2,
        blur_p: float = 0.0,
        mean: Sequence[float] = (0.4914, 0.4822, 0.4465),
        std: Sequence[float] = (0.2470, 0.2435, 0.2615),
        padding: int | None = None,
    ) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"`size` must be at least 1, got {size}")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"`scale` must be two ascending numbers in (0, 1], got {tuple(scale)}")
        chances = {"flip_p": flip_p, "jitter_p": jitter_p, "grayscale_p": grayscale_p, "blur_p": blur_p}
        for name, chance in chances.items():
            if not 0 <= chance <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {chance}")
        if len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5:
            raise ValueError(f"`jitter` must be four numbers >= 0, the last at most 0.5, got {tuple(jitter)}")
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"`mean` and positive `std` must be of one length, got {tuple(mean)} and {tuple(std)}")
        if padding is not None and padding < 0:
            raise ValueError(f"`padding` must be at least 0, got {padding}")
        self.size = size
        self.scale = scale
        self.flip_p = flip_p
        self.jitter = tuple(jitter)
        self.jitter_p = jitter_p
        self.grayscale_p = grayscale_p
        self.blur_p = blur_p
        self.padding = padding
        self._floats_were_seen = False
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Views of images.

        Args:
            images: uint8, uint16, or float in [0, 1]; ``(N, C, H, W)``. Floats are checked on the CPU, and elsewhere
                in the first call alone, as it would wait for the device.
            generator: of all random parameters, on the CPU; None is torch's own.

        Returns:
            float ``(N, C, size, size)``; in ``eval()`` of the images' own size.

        Raises:
            TypeError: images are of other numbers, whose white could be anything.
            ValueError: floats are not in [0, 1], channels come last, ``mean`` has neither one number nor one for each
                channel, or a crop does not fit.
        """
        self._check(images)
        if self.training:
            return self._view(images, generator)
        return self._floats(images).sub_(self.mean).div_(self.std)

    def _check(self, images: Tensor) -> None:
        if images.dim() != 4:
            raise ValueError(f"images must be (N, C, H, W), got {tuple(images.shape)}")
        first, middle, last = images.shape[1:]
        numbers = self.mean.numel()
        if numbers not in (1, first):
            raise ValueError(
                f"`mean` and `std` have {numbers} numbers, but the images have {first} channels: they are "
                f"(N, C, H, W) = {tuple(images.shape)}"
            )
        square = first == middle != last and last <= 32 < first + middle
        if numbers == 1 and (square or last <= 4 < min(first, middle)):
            raise ValueError(f"images must have their channels first, (N, C, H, W), got {tuple(images.shape)}")
        if images.dtype in (torch.uint8, torch.uint16):
            return
        if not images.is_floating_point():
            raise TypeError(f"images must be uint8, uint16 or floats in [0, 1], got {images.dtype}: convert them")
        if images.numel() and (images.device.type == "cpu" or not self._floats_were_seen):
            self._floats_were_seen = True
            low, high = images.aminmax()
            if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # NaN neither
                raise ValueError(
                    f"images of floats must be in [0, 1], got {low.item():.3g} to {high.item():.3g}: scale them first"
                )

    def _floats(self, images: Tensor) -> Tensor:
        """A copy in [0, 1], to be changed in place."""
        white = {torch.uint8: 255, torch.uint16: 65535}.get(images.dtype, 1)
        return images.to(self.mean.dtype, copy=True).div_(white)

    def _view(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        # all that is random comes first, on the CPU: what follows only computes
        n, _, height, width = images.shape
        flip = torch.rand(n, generator=generator) < self.flip_p
        if self.padding is None:
            boxes = sample_boxes(n, height, width, self.scale, generator=generator)
        else:
            spare = torch.tensor([height, width]) + 2 * self.padding - self.size  # (2,)
            if spare.min() < 0:
                raise ValueError(f"images of {(height, width)} pixels padded by {self.padding} are below `size`")
            boxes = (torch.rand(n, 2, generator=generator) * (spare + 1)).long()
        jittered = torch.rand(n, generator=generator) < self.jitter_p
        factors = 2 * torch.rand(4, n, generator=generator) - 1  # (4, N), in [-1, 1]
        order = torch.randperm(4, generator=generator).tolist()
        grey = torch.rand(n, generator=generator) < self.grayscale_p
        sigma = torch.zeros(n)  # 0 is no blur
        if self.blur_p:
            blurred = torch.rand(n, generator=generator) < self.blur_p
            low, high = _BLUR_SIGMA
            sigma = torch.where(blurred, low + (high - low) * torch.rand(n, generator=generator), 0)
        made = torch.empty(n, images.shape[1], self.size, self.size, dtype=self.mean.dtype, device=images.device)
        at_once = max(1, _CHUNK // self.size**2) if images.device.type == "cpu" else max(1, n)
        for part in torch.split(torch.arange(n), at_once):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            view = self._cropped(images[rows], boxes[rows], flip[rows])
            self._jitter_(view, jittered[rows], factors[:, rows], order)
            if view.shape[1] == 3 and grey[rows].any():
                chosen = _numbers(grey[rows], view.device)
                view[chosen] = grayscale(view[chosen]).expand(-1, 3, -1, -1)
            if self.blur_p and sigma[rows].any():
                chosen = _numbers(sigma[rows] > 0, view.device)
                widths = sigma[rows][sigma[rows] > 0].to(view.device, non_blocking=True)
                view[chosen] = gaussian_blur(view[chosen], widths)
            torch.sub(view, self.mean, out=made[rows]).div_(self.std)
        return made

    def _cropped(self, images: Tensor, boxes: Tensor, flip: Tensor) -> Tensor:
        """Floats in [0, 1], ``(n, C, size, size)``."""
        if self.padding is not None:
            return self._shifted(self._floats(images), boxes, flip, self.padding)
        if images.device.type != "cpu" or max(images.shape[2], self.size) <= _SMALL:
            return resized_crop(self._floats(images), boxes, self.size, flip)
        found = []
        for image, (top, left, height, width), mirrored in zip(images, boxes.int().tolist(), flip, strict=True):
            crop = image[None, :, top : top + height, left : left + width]
            if image.dtype != torch.uint8:
                crop = self._floats(crop)
            # bytes stay bytes, as in torchvision and PIL: rounding costs half a level, and saves half the time
            crop = nn.functional.interpolate(crop, (self.size, self.size), mode="bilinear", antialias=True)
            found.append(crop.flip(3) if mirrored else crop)
        resized = torch.cat(found)
        return self._floats(resized) if resized.dtype == torch.uint8 else resized

    def _shifted(self, images: Tensor, corner: Tensor, flip: Tensor, padding: int) -> Tensor:
        padded = nn.functional.pad(images, (padding,) * 4)
        corner = corner.to(images.device, non_blocking=True)
        pixel = torch.arange(self.size, device=images.device)
        mirrored = flip.to(images.device, non_blocking=True)[:, None]
        column = torch.where(mirrored, pixel.flip(0), pixel)  # (N, size)
        rows, columns = corner[:, :1] + pixel, corner[:, 1:] + column
        image = torch.arange(len(images), device=images.device).view(-1, 1, 1)
        return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2).contiguous()

    def _jitter_(self, images: Tensor, chosen: Tensor, factors: Tensor, order: list[int]) -> None:
        """Adjust the colours of those that are chosen, in place."""
        if not chosen.any() or not any(self.jitter):
            return
        every = bool(chosen.all())
        rows = _numbers(chosen, images.device)
        part = images if every else images[rows]
        for which in order:
            strength = self.jitter[which]
            if strength == 0:
                continue
            factor = strength * factors[which, chosen]
            if which != 3:
                # torchvision draws from [max(0, 1 - strength), 1 + strength]
                low = max(0.0, 1 - strength)
                factor = low + (1 + strength - low) * (factor / strength + 1) / 2
            adjust = (brightness_, contrast_, saturation_, hue_)[which]
            adjust(part, factor.to(images.device, non_blocking=True))
        if not every:
            images[rows] = part


def _numbers(chosen: Tensor, device: torch.device) -> Tensor:
    """Numbers of the rows that are chosen; a mask on a GPU would have to be counted there, and waited for."""
    return chosen.nonzero().flatten().to(device, non_blocking=True)

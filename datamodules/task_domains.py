"""Domains made of one data set: each task sees the same images, permuted or rotated in a way of its own."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


class PermutedPixels:
    """The pixels of all images of a task in another order, the same for all channels (Goodfellow et al. 2013).

    The first task is as it was.

    Args:
        seed: of the orders, at least 0.

    Raises:
        ValueError: ``seed`` is negative.

    >>> image = torch.arange(6, dtype=torch.uint8).view(1, 1, 2, 3)
    >>> PermutedPixels()(image, 1).flatten().sort().values.tolist()
    [0, 1, 2, 3, 4, 5]
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = _checked(seed)

    def __call__(self, images: Tensor, task: int) -> Tensor:
        """Images ``(N, C, H, W)`` as they look in a task, of the same type."""
        if task == 0:
            return images
        flat = images.flatten(2)
        order = np.random.default_rng([self._seed, task]).permutation(flat.shape[2])
        return flat[:, :, torch.from_numpy(order).to(images.device)].view_as(images)


class RotatedImages:
    """All images of a task turned by one angle about their middle (Lopez-Paz & Ranzato 2017).

    Corners are black; uint8 images are rounded to uint8. The first task is as it was, unless angles are given.

    Args:
        angles: of each task in degrees, counter-clockwise; None draws them from [0, 180).
        seed: of the draws, at least 0.

    Raises:
        ValueError: ``seed`` is negative, or (when called) there is no angle for a task.

    >>> image = torch.tensor([[[[0, 255], [0, 0]]]], dtype=torch.uint8)
    >>> RotatedImages([90.0])(image, 0).flatten().tolist()
    [255, 0, 0, 0]
    """

    def __init__(self, angles: Sequence[float] | None = None, seed: int = 0) -> None:
        self._angles = angles
        self._seed = _checked(seed)

    def angle(self, task: int) -> float:
        """Degrees by which the images of a task are turned."""
        if self._angles is None:
            return 180 * np.random.default_rng([self._seed, task]).random() if task else 0.0
        if task >= len(self._angles):
            raise ValueError(f"`angles` has {len(self._angles)} numbers, none for task {task}")
        return self._angles[task]

    def __call__(self, images: Tensor, task: int) -> Tensor:
        """Images ``(N, C, H, W)`` as they look in a task, of the same type."""
        radians = math.radians(self.angle(task))
        if radians == 0:
            return images
        height, width = images.shape[2:]
        cos, sin = math.cos(radians), math.sin(radians)
        # `affine_grid` counts in halves of the image, so that a turn of a long image is no turn
        turn = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]], device=images.device)
        grid = nn.functional.affine_grid(turn[None], [1, 1, height, width], align_corners=False)
        turned = nn.functional.grid_sample(
            images.float(), grid.expand(len(images), -1, -1, -1), padding_mode="zeros", align_corners=False
        )
        return turned.round().to(torch.uint8) if images.dtype == torch.uint8 else turned


def _checked(seed: int) -> int:
    if seed < 0:
        raise ValueError(f"`seed` must be at least 0, got {seed}")
    return seed

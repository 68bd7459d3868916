"""Scikit-learn's handwritten digits: real data that need no download."""

import numpy as np
import torch

from lit_papers.datamodules.images import ImageArrays, ImageDataModule, Splits, check_integer, import_extra
from lit_papers.datamodules.splits import shuffled_classes


class Digits(ImageDataModule[ImageArrays]):
    """The 1797 digits of 8 x 8 pixels inside scikit-learn (a part of UCI's "Optical Recognition" data).

    They come without a test split. ``samples_per_class`` images of each class train; the rest, 397 by
    default, serve for validation **and** for testing, so do not tune on the one and report the other. Pixels
    are ``x / 8 - 1``, in [-1, 1].

    Args:
        batch_size: images in a batch, on each process; at least 1.
        samples_per_class: training images of each class, from 1 to 173.
        seed: of the split, at least 0.
        num_workers: processes that load, at least 0; 0 loads in the main process, which is fastest here.

    Raises:
        ImportError: scikit-learn is missing (at ``setup``).
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range.

    >>> data = Digits()
    >>> data.setup()
    >>> images, targets = next(iter(data.train_dataloader()))
    >>> images.shape, len(data.train_set), len(data.val_set)
    (torch.Size([70, 1, 8, 8]), 1400, 397)
    """

    num_classes = 10
    input_shape = (1, 8, 8)

    def __init__(self, batch_size: int = 70, samples_per_class: int = 140, seed: int = 0, num_workers: int = 0) -> None:
        super().__init__(batch_size, seed, num_workers)
        check_integer("samples_per_class", samples_per_class, least=1)
        if samples_per_class > 173:  # the rarest class, 8, has 174
            raise ValueError(
                f"`samples_per_class` must be at most 173, to leave some of each class for validation, "
                f"got {samples_per_class}"
            )
        self.samples_per_class = samples_per_class

    def load(self) -> Splits[ImageArrays]:
        """Read scikit-learn's copy and split it."""
        digits = import_extra("sklearn.datasets", "data").load_digits()
        images = torch.from_numpy(digits.images.astype(np.uint8)).unsqueeze(1)  # (1797, 1, 8, 8), 0 to 16
        targets = torch.from_numpy(digits.target.astype(np.int64))  # (1797,)
        everything = ImageArrays(images, targets, mean=(0.5,), std=(0.5,), white=16)
        chosen = [members[: self.samples_per_class] for _, members in shuffled_classes(targets, self.seed)]
        train = torch.zeros(len(targets), dtype=torch.bool)
        train[torch.cat(chosen)] = True
        rest = everything.subset(~train)
        return Splits(train=everything.subset(train), val=rest, test=rest)

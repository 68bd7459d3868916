"""MNIST and its drop-in sibling FashionMNIST, read from IDX files, plain or gzipped."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_papers.datamodules.images import CorruptDataError
from lit_papers.datamodules.named_sets import NamedImages

_UNSIGNED_BYTES = 8

# The siblings' files have the same names, and either would load as the other: the first training labels tell.
_FIRST_LABELS = {
    "MNIST": (5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5, 3, 6, 1, 7),
    "FashionMNIST": (9, 0, 0, 3, 0, 2, 7, 2, 5, 5, 0, 9, 5, 5, 7, 9),
}


class MNIST(NamedImages):
    """Handwritten digits (LeCun et al. 1998): 60,000 to train and 10,000 to test, grey.

    The 28 x 28 pixels are padded with black to 32 x 32, and then normalised. See ``NamedImages`` for the
    arguments.
    """

    name = "MNIST"
    num_classes = 10
    input_shape = (1, 32, 32)
    mean = (0.1307,)
    std = (0.3081,)

    def read(self, folder: Path, *, train: bool) -> tuple[Tensor, Tensor]:
        """Read and check one pair of IDX files; see ``NamedImages.read``."""
        part = "train" if train else "t10k"
        image_file = _plain_or_gzipped(folder / f"{part}-images-idx3-ubyte")
        label_file = _plain_or_gzipped(folder / f"{part}-labels-idx1-ubyte")
        images, labels = read_idx(image_file, dimensions=3), read_idx(label_file, dimensions=1)
        if len(images) != len(labels):
            raise CorruptDataError(
                f"{image_file} has {len(images)} images, but {label_file} has {len(labels)} labels: "
                f"get both from one source"
            )
        if images.shape[1:] != (28, 28):
            raise CorruptDataError(
                f"{image_file} has images of {images.shape[1]} x {images.shape[2]} pixels instead of 28 x 28"
            )
        if len(labels) == 0 or labels.max() >= self.num_classes:
            found = f"label {labels.max()}" if len(labels) else "no label at all"
            raise CorruptDataError(f"{label_file} has {found}; {self.name} has the labels 0 to 9")
        for name, first in _FIRST_LABELS.items():
            if train and name != self.name and tuple(labels[: len(first)].tolist()) == first:
                raise CorruptDataError(
                    f"{label_file} is {name}'s, not {self.name}'s (their files have the same "
                    f"names): point `root` at another folder, or use {name}"
                )
        padded = torch.nn.functional.pad(images.unsqueeze(1), (2, 2, 2, 2))  # (N, 1, 32, 32)
        return padded, labels.long()


class FashionMNIST(MNIST):
    """Pictures of clothes (Xiao et al. 2017): 60,000 to train and 10,000 to test, grey.

    Debian and Ubuntu have it as a package, ``dataset-fashion-mnist``, which is found without any argument.
    The 28 x 28 pixels are padded with black to 32 x 32, and then normalised. See ``NamedImages`` for the
    arguments.
    """

    name = "FashionMNIST"
    mean = (0.2860,)
    std = (0.3530,)


def read_idx(path: Path, *, dimensions: int) -> Tensor:
    """Read an IDX file of unsigned bytes.

    It has two zero bytes, the type, the number of dimensions, their sizes (big-endian, 4 bytes each), and
    the numbers.

    Args:
        path: the file; gzipped if its name ends with ``.gz``.
        dimensions: how many the array must have.

    Returns:
        uint8 tensor of the shape that the file declares.

    Raises:
        CorruptDataError: the file cannot be unpacked, is not such a file, or has not the length it declares.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CorruptDataError(f"{path} is damaged or cut short ({error}): delete it and get it again") from error
    header = 4 * (1 + dimensions)
    if len(content) < header or tuple(content[:4]) != (0, 0, _UNSIGNED_BYTES, dimensions):
        raise CorruptDataError(
            f"{path} is no IDX file of bytes in {dimensions} dimension{'s' * (dimensions > 1)}: it starts "
            f"with {content[:4].hex(' ') or 'nothing'}, not with 00 00 08 {dimensions:02x}"
        )
    shape = tuple(np.frombuffer(content, dtype=">u4", count=dimensions, offset=4).tolist())
    if len(content) - header != math.prod(shape):
        raise CorruptDataError(
            f"{path} declares {' x '.join(map(str, shape))} = {math.prod(shape)} bytes but has "
            f"{len(content) - header}: delete it and get it again"
        )
    numbers = np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
    return torch.from_numpy(numbers.copy())  # `content` is read-only, which a tensor cannot be


def _plain_or_gzipped(path: Path) -> Path:
    return path if path.is_file() else path.with_name(path.name + ".gz")

"""Images of the user's own, one folder a class, in a folder or in a .zip."""

import io
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_papers.datamodules.file_tree import FileTree
from lit_papers.datamodules.images import (
    CorruptDataError,
    ImageDataModule,
    LabelledImages,
    Splits,
    check_integer,
    import_extra,
)
from lit_papers.datamodules.splits import check_split_arguments, split_by_class
from lit_papers.locations import MissingDataError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
_OTHER_IMAGES = (".gif", ".heic", ".heif", ".avif", ".jp2", ".jfif", ".jpe", ".tga", ".svg")  # which are not read
_MODES = {1: "L", 3: "RGB"}
_DEFAULT_STATISTICS = {  # ImageNet's, and for grey images the average over its channels
    1: ((0.449,), (0.226,)),
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class ImageFiles(LabelledImages):
    """Images that are decoded when they are fetched.

    Args:
        tree: where the files are.
        names: of the files in the tree, ``N`` of them.
        targets: the class of each, int64, ``(N,)``.
        image_size: images of another size are resized until the shorter side fits, and cropped around the
            centre.
        channels: 3 for colour or 1 for grey.
        convert: turn images with another number of channels into these, instead of raising an error.
        mean: of each channel, in units of a full pixel.
        std: of each channel, likewise.
    """

    def __init__(
        self,
        tree: FileTree,
        names: list[str],
        targets: Tensor,
        *,
        image_size: int,
        channels: int,
        convert: bool,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__(targets, mean, std)
        self.tree = tree
        self.names = names
        self.image_size = image_size
        self.channels = channels
        self.convert = convert
        transforms = import_extra("torchvision.transforms.v2", "vision")
        self._fit = transforms.Compose([transforms.Resize(image_size), transforms.CenterCrop(image_size)])

    def fetch(self, indices: list[int]) -> Tensor:
        """Decode images: uint8, ``(len(indices), channels, image_size, image_size)``."""
        images = np.stack([self._decoded(self.names[index]) for index in indices])  # (B, H, W[, C])
        pixels = torch.from_numpy(images).view(*images.shape[:3], self.channels)
        return pixels.permute(0, 3, 1, 2).contiguous()  # (B, C, H, W)

    def subset(self, indices: Tensor) -> "ImageFiles":
        """These images alone, read in the same way."""
        part = copy(self)
        part.names, part.targets = [self.names[i] for i in indices.tolist()], self.targets[indices]
        return part

    def _decoded(self, name: str) -> np.ndarray[Any, Any]:
        from PIL import Image  # torchvision, imported by the constructor, brings it

        content = self.tree.read(name)
        try:
            image = Image.open(io.BytesIO(content))
            image.load()
        except Exception as error:  # PIL's decoders raise OSError, SyntaxError, struct.error, ...
            raise CorruptDataError(f"{self.tree.describe(name)} is not an intact image: {error}") from error
        image = self._with_channels(image, name)
        if image.size != (self.image_size, self.image_size):
            image = self._fit(image)
        return np.asarray(image)  # (H, W) or (H, W, C)

    def _with_channels(self, image: Any, name: str) -> Any:
        mode = _MODES[self.channels]
        if image.mode == mode:
            return image
        if image.mode[0] in "IF":
            raise ValueError(
                f"{self.tree.describe(name)} has more than 8 bits a channel (PIL calls it {image.mode!r}), "
                f"which would be clipped: save it with 8 bits"
            )
        lossless = {"P": "RGB", "1": "L"}  # a palette is one channel of indices, but it means colours
        if image.mode in lossless:
            image = image.convert(lossless[image.mode])
        found = len(image.getbands())
        if found != self.channels and not self.convert:
            raise ValueError(
                f"{self.tree.describe(name)} has {found} channel{'s' * (found > 1)}, but "
                f"`channels`={self.channels}: set `convert: true` (--data.convert=true) to turn such images "
                f"into {mode}, or change `channels`"
            )
        return image.convert(mode)


class ImageFolder(ImageDataModule[ImageFiles]):
    """Images in folders named after their class, or in a .zip of such folders, decoded as they are needed.

    Accepted are ``train/<class>/<image>``, with ``val/`` and ``test/`` beside it if you have them, and just
    ``<class>/<image>``; a single folder around all of it is entered, and images may lie deeper below their
    class. Classes are numbered alphabetically. Without ``val/``, validation images are held out of the
    training images by ``val_fraction``, which is otherwise ignored; without ``test/``, **the validation
    images are the test images**.

    Args:
        root: the folder or .zip.
        image_size: images of another size are resized until the shorter side fits, and cropped around the
            centre.
        channels: 3 for colour or 1 for grey.
        convert: turn images with another number of channels into these, instead of raising an error.
            (ImageNet has a few grey ones.) Images with a palette count as colour.
        mean: of each channel, in units of a full pixel; None is ImageNet's.
        std: of each channel, likewise.
        batch_size: images in a batch, on each process; at least 1.
        val_fraction: share of each class held out of the training images for validation, in [0, 1).
        samples_per_class: train on this many images of each class; None is all.
        seed: of the splits, at least 0.
        num_workers: processes that decode, at least 0; 0 decodes in the main process.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range; or an image has other channels (when it is fetched).
        MissingDataError: ``root`` does not exist, or has no images in folders (at ``setup``, or when
            ``classes`` or ``num_classes`` is read).
        CorruptDataError: the .zip (at ``setup``) or an image (when it is fetched) is damaged.
    """

    def __init__(
        self,
        root: str | Path,
        image_size: int = 32,
        channels: int = 3,
        convert: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        batch_size: int = 128,
        val_fraction: float = 0.1,
        samples_per_class: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        check_integer("image_size", image_size, least=1)
        check_split_arguments(val_fraction, samples_per_class)
        if channels not in _MODES:
            raise ValueError(f"`channels` must be 1 (grey) or 3 (colour), got {channels!r}")
        usual = _DEFAULT_STATISTICS[channels]
        self.mean = _one_a_channel("mean", usual[0] if mean is None else mean, channels)
        self.std = _one_a_channel("std", usual[1] if std is None else std, channels)
        if min(self.std) <= 0:
            raise ValueError(f"`std` must be positive, got {std}")
        self.root = root
        self.image_size = image_size
        self.channels = channels
        self.convert = convert
        self.val_fraction = val_fraction
        self.samples_per_class = samples_per_class
        self.input_shape = (channels, image_size, image_size)

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of their numbers; reading this looks at ``root``."""
        return sorted(self._files["train"])

    @property
    def num_classes(self) -> int:
        """How many classes ``root`` has."""
        return len(self.classes)

    def prepare_data(self) -> None:
        """Look at ``root``, so that what is wrong with it is known early."""
        _ = self._files

    def load(self) -> Splits[ImageFiles]:
        """Number the classes and hold a part of the training images out, if need be."""
        everything = self._images("train")
        given_val = "val" in self._files
        train, held_out = split_by_class(
            everything.targets,
            val_fraction=0.0 if given_val else self.val_fraction,
            samples_per_class=self.samples_per_class,
            seed=self.seed,
        )
        val = self._images("val") if given_val else everything.subset(held_out)
        test = self._images("test") if "test" in self._files else val
        return Splits(everything.subset(train), val, test)

    def _images(self, split: str) -> ImageFiles:
        number = {name: i for i, name in enumerate(self.classes)}
        pairs = [(file, number[name]) for name, files in self._files[split].items() for file in files]
        return ImageFiles(
            self._tree,
            [file for file, _ in pairs],
            torch.tensor([target for _, target in pairs]),
            image_size=self.image_size,
            channels=self.channels,
            convert=self.convert,
            mean=self.mean,
            std=self.std,
        )

    @cached_property
    def _tree(self) -> FileTree:
        return FileTree(self.root)

    @cached_property
    def _files(self) -> dict[str, dict[str, list[str]]]:
        return files_by_class(self._tree)


def files_by_class(tree: FileTree) -> dict[str, dict[str, list[str]]]:
    """Find out which images of a tree belong to which split and class.

    Args:
        tree: has ``train/<class>/<image>`` and maybe ``val/`` and ``test/``, or ``<class>/<image>``.

    Returns:
        For ``"train"``, and for ``"val"`` and ``"test"`` if they are there: the images of each class.

    Raises:
        MissingDataError: there are no images in folders.
        ValueError: a class has no images, or is in ``val/`` or ``test/`` alone; or images are in no class.
    """
    names = tree.names()
    images = [name for name in names if name.lower().endswith(IMAGE_ENDINGS) and "/" in name]
    others = [name for name in names if name.lower().endswith(_OTHER_IMAGES) and "/" in name]
    if others:
        rank_zero_warn(
            f"{len(others)} images such as {tree.describe(others[0])} are left out: only those with one of the endings "
            f"{', '.join(IMAGE_ENDINGS)} are read, so convert them"
        )
    tops = {name.split("/")[0] for name in images}
    around = ""
    if len(tops) == 1 and "train" not in tops and all(name.count("/") > 1 for name in images):
        around = tops.pop() + "/"
        tops = {name.split("/")[1] for name in images}
    prefixes: dict[str, str]
    if "train" in tops:
        prefixes = {split: f"{around}{split}/" for split in ("train", "val", "test") if split in tops}
    elif tops & {"val", "test"}:
        found = " and ".join(f"{split}/" for split in ("val", "test") if split in tops)
        raise ValueError(f"{tree.root} has {found}, but no train/")
    else:
        prefixes = {"train": around}
    files: dict[str, dict[str, list[str]]] = {
        split: _by_class(names, images, prefix) for split, prefix in prefixes.items()
    }
    if not files["train"]:
        raise MissingDataError(
            f"{tree.root} has no images in folders: train/<class>/<image> or <class>/<image> was expected, "
            f"with one of the endings {', '.join(IMAGE_ENDINGS)}"
        )
    for split, classes in files.items():
        if not classes:
            raise ValueError(f"{split}/ of {tree.root} has images, but none in a folder named after its class")
        for name, members in classes.items():
            if not members:
                empty = tree.describe(prefixes[split] + name)
                raise ValueError(f"{empty} has no images, so that it is no class: remove it")
            if name not in files["train"]:
                raise ValueError(f"{split}/ of {tree.root} has the class {name!r}, which train/ lacks")
    return files


def _by_class(names: list[str], images: list[str], prefix: str) -> dict[str, list[str]]:
    below = len(prefix)
    folders = (name[below:] for name in names if name.startswith(prefix) and name.endswith("/"))
    files: dict[str, list[str]] = {name[:-1]: [] for name in folders if name.count("/") == 1}
    for image in images:
        if image.startswith(prefix) and "/" in image[below:]:
            files[image[below:].split("/")[0]].append(image)
    return files


def _one_a_channel(name: str, values: Any, channels: int) -> tuple[float, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != channels:
        raise ValueError(f"`{name}` must have one number for each of {channels} channels, got {values!r}")
    return tuple(float(value) for value in values)

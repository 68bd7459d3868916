"""What all image data modules share: arrays in memory, loaders and checks."""

import importlib
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class CorruptDataError(ValueError):
    """A file of a data set is damaged, or is not what its name promises; the message names the file."""


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """A data set of images that are normalised when they are fetched; a child says where the bytes come from.

    A loader fetches a whole batch at once (``__getitems__``), as Python would be the bottleneck of small
    images. What the loader gets is still a list of samples, so any ``collate_fn`` and
    ``torch.utils.data.Subset`` work.

    Args:
        targets: the class of each image, int64, ``(N,)``.
        mean: of each channel, ``C`` numbers in units of a full pixel.
        std: of each channel, likewise.
        white: the value of a full pixel.
    """

    def __init__(self, targets: Tensor, mean: Sequence[float], std: Sequence[float], white: int = 255) -> None:
        self.targets = targets
        self.white = white
        self._mean = white * torch.tensor(mean).view(-1, 1, 1)  # (C, 1, 1)
        self._std = white * torch.tensor(std).view(-1, 1, 1)

    def fetch(self, indices: list[int]) -> Tensor:
        """The images as they are stored: uint8, ``(len(indices), C, H, W)``."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        images = self.fetch(indices).float().sub_(self._mean).div_(self._std)  # (B, C, H, W)
        return list(zip(images.unbind(), self.targets[indices].tolist(), strict=True))


class ImageArrays(LabelledImages):
    """Images in memory, as bytes.

    Args:
        images: uint8, ``(N, C, H, W)``.
        targets: the class of each image, int64, ``(N,)``.
        mean: of each channel, ``C`` numbers in units of a full pixel.
        std: of each channel, likewise.
        white: the value of a full pixel.

    >>> data = ImageArrays(torch.full((5, 1, 2, 2), 255, dtype=torch.uint8), torch.arange(5), (0.5,), (0.25,))
    >>> data[3]
    (tensor([[[2., 2.],
             [2., 2.]]]), 3)
    """

    def __init__(
        self, images: Tensor, targets: Tensor, mean: Sequence[float], std: Sequence[float], white: int = 255
    ) -> None:
        super().__init__(targets, mean, std, white)
        self.images = images

    def fetch(self, indices: list[int]) -> Tensor:
        """The images as they are stored: uint8, ``(len(indices), C, H, W)``."""
        return self.images[indices]

    def subset(self, indices: Tensor) -> "ImageArrays":
        """These images alone, copied, with the same normalisation."""
        part = copy(self)
        part.images, part.targets = self.images[indices], self.targets[indices]
        return part


DatasetT = TypeVar("DatasetT", bound=LabelledImages)


@dataclass(frozen=True)
class Splits(Generic[DatasetT]):  # a NamedTuple cannot be generic before Python 3.11
    """What a data module serves; ``val`` may be empty."""

    train: DatasetT
    val: DatasetT
    test: DatasetT


class ImageDataModule(LightningDataModule, Generic[DatasetT]):
    """Loaders and bookkeeping of every image data module; a child says how its ``Splits`` are loaded.

    Batches are ``(images, targets)``: float32 ``(B, C, H, W)``, normalised and not augmented, and int64
    ``(B,)``.

    Args:
        batch_size: images in a batch, on each process; at least 1.
        seed: of the splits, at least 0. The order of training images comes from the global random state, as
            in any Lightning project (``seed_everything``).
        num_workers: processes that load, at least 0; 0 loads in the main process.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range.
    """

    input_shape: tuple[int, int, int]
    """``(C, H, W)`` of an image as delivered; known before ``setup``."""
    samples: str = "images"
    """What errors call the samples."""

    def __init__(self, batch_size: int, seed: int, num_workers: int) -> None:
        super().__init__()
        check_integer("batch_size", batch_size, least=1)
        check_integer("seed", seed, least=0)
        check_integer("num_workers", num_workers, least=0)
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self._splits: Splits[DatasetT] | None = None

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        raise NotImplementedError

    def load(self) -> Splits[DatasetT]:
        """Read the data; called once, on every process, by ``setup``."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Load everything, once: a run that fits and then tests does not read twice."""
        if self._splits is None:
            self._splits = self.load()

    @property
    def train_set(self) -> DatasetT:
        """The training images, after ``setup``."""
        return self._loaded().train

    @property
    def val_set(self) -> DatasetT:
        """The validation images, after ``setup``; empty where nothing is held out."""
        return self._loaded().val

    @property
    def test_set(self) -> DatasetT:
        """The test images, after ``setup``."""
        return self._loaded().test

    def train_dataloader(self) -> DataLoader[Any]:
        """Training images, shuffled; the last incomplete batch is dropped.

        Raises:
            ValueError: there are fewer training images than one batch (on each process) takes.
        """
        processes = self.trainer.world_size if self.trainer else 1
        if len(self.train_set) < self.batch_size * processes:
            among = f" on each of {processes} processes" if processes > 1 else ""
            raise ValueError(
                f"`batch_size`={self.batch_size}{among}, but there are only {len(self.train_set)} training "
                f"{self.samples}, and an incomplete batch is dropped: choose a smaller `batch_size`"
            )
        return self._loader(self.train_set, training=True)

    def train_eval_dataloader(self) -> DataLoader[Any]:
        """Exactly the training images, each once and in a fixed order, for measuring on them."""
        return self._loader(self.train_set)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Validation images in a fixed order; an empty list, which Lightning skips, if there are none."""
        return self._loader(self.val_set) if len(self.val_set) else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Test images in a fixed order.

        Raises:
            ValueError: there are none.
        """
        if not len(self.test_set):
            raise ValueError(f"{type(self).__name__} has no test images, as `val_fraction`=0 holds none out")
        return self._loader(self.test_set)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test images again."""
        return self.test_dataloader()

    def _loader(self, dataset: DatasetT, *, training: bool = False) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=training,
            drop_last=training,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _loaded(self) -> Splits[DatasetT]:
        if self._splits is None:
            name = type(self).__name__
            raise RuntimeError(f"{name} has not read its data yet: call `setup()`, or hand it to a Trainer")
        return self._splits


def check_integer(name: str, value: Any, *, least: int) -> None:
    """Raise an error that names the argument unless it is an integer, and large enough.

    >>> check_integer("batch_size", 0, least=1)
    Traceback (most recent call last):
    ValueError: `batch_size` must be at least 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be an integer, got {value!r} ({type(value).__name__})")
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value}")


def import_extra(module: str, extra: str) -> Any:
    """Import an optional package, or say which extra of ours brings it.

    Raises:
        ImportError: the package is missing.

    >>> import_extra("no_such_package", "vision")
    Traceback (most recent call last):
    ImportError: No module named 'no_such_package': install `lit-papers[vision]`
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{error}: install `lit-papers[{extra}]`") from error

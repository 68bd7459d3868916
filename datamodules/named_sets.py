"""What the data sets share that are known by name: where they are found, and how they are fetched."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from lit_papers.datamodules.images import ImageArrays, ImageDataModule, Splits, import_extra
from lit_papers.datamodules.splits import check_split_arguments, split_by_class
from lit_papers.locations import ENVIRONMENT_VARIABLE, MissingDataError, find_data, own_place


class NamedImages(ImageDataModule[ImageArrays]):
    """A published data set, kept in memory.

    It is looked for in ``root``, then in ``$LIT_PAPERS_DATA``, then in the system's own copy if there is one.

    Args:
        root: folder that has the files, as torchvision lays them out or directly.
        batch_size: images in a batch, on each process; at least 1.
        val_fraction: share of each class held out of the training images for validation, in [0, 1); 0 trains
            on all of them, and then there is no validation.
        samples_per_class: train on this many images of each class; None is all.
        seed: of the splits, at least 0.
        num_workers: processes that load, at least 0; 0 loads in the main process, which is fastest here.
        download: let torchvision fetch the files into ``root`` (else ``$LIT_PAPERS_DATA``) if they are not
            found.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range, or ``download`` has no folder to fill (at ``prepare_data``).
        MissingDataError: the files were not found (at ``prepare_data`` and ``setup``).
        CorruptDataError: a file is damaged (at ``setup``).
    """

    name: str
    """What torchvision and ``lit_papers.locations.LAYOUTS`` call the data set."""
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(
        self,
        root: str | Path | None = None,
        batch_size: int = 128,
        val_fraction: float = 0.1,
        samples_per_class: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        download: bool = False,
    ) -> None:
        super().__init__(batch_size, seed, num_workers)
        check_split_arguments(val_fraction, samples_per_class)
        self.root = root
        self.val_fraction = val_fraction
        self.samples_per_class = samples_per_class
        self.download = download

    def read(self, folder: Path, *, train: bool) -> tuple[Tensor, Tensor]:
        """Read the training or the test images.

        Args:
            folder: where the files lie side by side.
            train: whether the training or the test images are wanted.

        Returns:
            Images, uint8 ``(N, C, H, W)``, and their classes, int64 ``(N,)``.

        Raises:
            CorruptDataError: a file is damaged.
        """
        raise NotImplementedError

    def fetch(self, root: Path) -> None:
        """Let torchvision download the files into ``root``."""
        getattr(import_extra("torchvision.datasets", "vision"), self.name)(root, download=True)

    def prepare_data(self) -> None:
        """Make sure that the data are there, or fetch them if asked to; Lightning calls this once a node."""
        find_or_fetch(self.name, self.root, find_data, self.fetch if self.download else None)

    def load(self) -> Splits[ImageArrays]:
        """Read the files and hold a part of the training images out."""
        folder = find_data(self.name, self.root)
        everything = ImageArrays(*self.read(folder, train=True), self.mean, self.std)
        train, val = split_by_class(
            everything.targets,
            val_fraction=self.val_fraction,
            samples_per_class=self.samples_per_class,
            seed=self.seed,
        )
        test = ImageArrays(*self.read(folder, train=False), self.mean, self.std)
        return Splits(everything.subset(train), everything.subset(val), test)


def find_or_fetch(
    name: str,
    root: str | Path | None,
    find: Callable[[str, str | Path | None], Path],
    fetch: Callable[[Path], None] | None,
) -> None:
    """Make sure that the files of a data set are there, or download them.

    Args:
        name: of the data set.
        root: the user's folder, or None.
        find: from both to the place of the files.
        fetch: downloads them into a folder; None where nobody asked for that.

    Raises:
        MissingDataError: they are not there, and not to be fetched.
        RuntimeError: the download failed.
        ValueError: there is no folder to put them in.
    """
    try:
        find(name, root)
    except MissingDataError:
        if fetch is None:
            raise
    else:
        return
    target = own_place(root)
    if target is None:
        raise ValueError(
            f"`download` is true, but there is no folder to put {name} in: give `root` "
            f"(--data.root=FOLDER) or set ${ENVIRONMENT_VARIABLE}"
        )
    target.mkdir(parents=True, exist_ok=True)
    try:
        fetch(target)
    except (OSError, RuntimeError) as error:  # URLError is an OSError, torchvision raises RuntimeError
        raise RuntimeError(f"{name} could not be downloaded into {target}: {error}") from error

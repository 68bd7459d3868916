"""Tiny-ImageNet as it is distributed, and as others have re-arranged it."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from posixpath import basename

from lit_papers.datamodules.file_tree import FileTree
from lit_papers.datamodules.image_folder import ImageFolder, files_by_class
from lit_papers.datamodules.images import CorruptDataError, check_integer

ANNOTATIONS = "val/val_annotations.txt"


class OfficialTree(FileTree):
    """The official layout, seen as class folders: ``val/images/x.JPEG`` appears as ``val/<class>/x.JPEG``.

    The test images, which have no labels, do not appear. A tree without ``val/val_annotations.txt`` is shown as it is.

    Args:
        root: the folder or .zip.

    Raises:
        MissingDataError: ``root`` does not exist.
        CorruptDataError: ``root`` is a file, but no intact .zip.
    """

    def names(self) -> list[str]:
        """All files and folders under the names of class folders.

        Raises:
            CorruptDataError: images and annotations of ``val/`` do not match.
        """
        return sorted(self._stored)

    def read(self, name: str) -> bytes:
        """The content of one file, by the name under which `names` shows it."""
        return super().read(self._stored.get(name, name))

    def describe(self, name: str) -> str:
        """What to call a file in an error: where it really is."""
        return super().describe(self._stored.get(name, name))

    @cached_property
    def _stored(self) -> dict[str, str]:
        """From shown to stored names."""
        names = super().names()
        annotations = next((name for name in names if name in (ANNOTATIONS, *_nested(names))), None)
        if annotations is None:
            return {name: name for name in names}
        around = annotations.removesuffix(ANNOTATIONS)
        outside = (f"{around}val/", f"{around}test/")
        shown = {name: name for name in names if not name.startswith(outside)}
        label = self._labels(annotations)
        images = {name for name in names if name.startswith(f"{around}val/images/") and not name.endswith("/")}
        for stored in images:
            image = basename(stored)
            if image not in label:
                raise CorruptDataError(f"{super().describe(annotations)} does not say which class {image} is")
            folder = f"{around}val/{label.pop(image)}/"
            shown |= {folder: folder, folder + image: stored}
        if label:
            raise CorruptDataError(
                f"{super().describe(annotations)} names {next(iter(label))}, which is not among the "
                f"{len(images)} images beside it"
            )
        return shown

    def _labels(self, annotations: str) -> dict[str, str]:
        """The class of each validation image; the other columns are a bounding box."""
        lines = super().read(annotations).decode().splitlines()
        try:
            return {image: name for image, name, *_ in (line.split("\t") for line in lines if line)}
        except ValueError as error:
            raise CorruptDataError(
                f"{super().describe(annotations)} must have lines of an image and its class, split by tabs"
            ) from error


class TinyImageNet(ImageFolder):
    """Tiny-ImageNet: 200 classes, 500 training and 50 validation images of 64 pixels each.

    ``root`` is the folder ``tiny-imagenet-200`` or its .zip as distributed, with ``val/val_annotations.txt``, or the
    same images in class folders (see `ImageFolder`). The official test images have no labels, so **the validation
    images are the test images**: do not tune on the one and report the other.

    Args:
        root: the folder or .zip.
        n_classes: keep the first classes in alphabetical order, at least 2 (the paper uses 50); None keeps all.
        image_size: other than 64, images are resized.
        batch_size: images in a batch, on each process; at least 1.
        val_fraction: share of each class held out of the training images where there is no ``val/``.
        samples_per_class: train on this many images of each class; None is all.
        seed: of the splits, at least 0.
        num_workers: processes that decode, at least 0; 0 decodes in the main process.
        mean: of each channel, in units of a full pixel; None is ImageNet's.
        std: of each channel, likewise.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range, or there are fewer than ``n_classes`` (at ``setup``).
        MissingDataError: ``root`` does not exist, or has no images in folders (at ``setup``).
        CorruptDataError: the .zip, the annotations (at ``setup``) or an image (when it is fetched) is damaged.
    """

    def __init__(
        self,
        root: str | Path,
        n_classes: int | None = None,
        image_size: int = 64,
        batch_size: int = 128,
        val_fraction: float = 0.1,
        samples_per_class: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(
            root,
            image_size=image_size,
            convert=True,  # some of its images are grey
            mean=mean,
            std=std,
            batch_size=batch_size,
            val_fraction=val_fraction,
            samples_per_class=samples_per_class,
            seed=seed,
            num_workers=num_workers,
        )
        if n_classes is not None:
            check_integer("n_classes", n_classes, least=2)
        self.n_classes = n_classes

    @cached_property
    def _tree(self) -> FileTree:
        return OfficialTree(self.root)

    @cached_property
    def _files(self) -> dict[str, dict[str, list[str]]]:
        files = files_by_class(self._tree)
        if self.n_classes is None:
            return files
        there = sorted(files["train"])
        if len(there) < self.n_classes:
            raise ValueError(f"`n_classes`={self.n_classes}, but {self.root} has {len(there)} classes")
        kept = there[: self.n_classes]
        return {split: {name: classes[name] for name in kept if name in classes} for split, classes in files.items()}


def _nested(names: list[str]) -> list[str]:
    """Annotations one folder down, as in the .zip that is distributed."""
    return [name for name in names if name.endswith(f"/{ANNOTATIONS}") and name.count("/") == 2]

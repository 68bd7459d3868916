"""CIFAR-10, CIFAR-100, SVHN and STL-10, read and checked by torchvision."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_papers.datamodules.images import CorruptDataError, import_extra
from lit_papers.datamodules.named_sets import NamedImages


class CIFAR10(NamedImages):
    """Photographs of 10 kinds of things (Krizhevsky 2009): 50,000 to train, 10,000 to test, 3 x 32 x 32.

    See ``NamedImages`` for the arguments.
    """

    name = "CIFAR10"
    num_classes = 10
    input_shape = (3, 32, 32)
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)

    def read(self, folder: Path, *, train: bool) -> tuple[Tensor, Tensor]:
        """Read torchvision's pickles, whose checksums it verifies first; see ``NamedImages.read``."""
        theirs = _in_folder(self.name)
        files = [*theirs.train_list, *theirs.test_list, (theirs.meta["filename"], theirs.meta["md5"])]
        data = _opened(theirs, folder, files, train=train)
        return torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)


class CIFAR100(CIFAR10):
    """Photographs of 100 kinds of things (Krizhevsky 2009): 50,000 to train, 10,000 to test, 3 x 32 x 32.

    See ``NamedImages`` for the arguments.
    """

    name = "CIFAR100"
    num_classes = 100
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)


class SVHN(NamedImages):
    """House numbers, cropped to digits (Netzer et al. 2011): 73,257 to train and 26,032 to test, 3 x 32 x 32.

    The ``extra`` images are not used. See ``NamedImages`` for the arguments.
    """

    name = "SVHN"
    num_classes = 10
    input_shape = (3, 32, 32)
    mean = (0.4377, 0.4438, 0.4728)
    std = (0.1980, 0.2010, 0.1970)

    def read(self, folder: Path, *, train: bool) -> tuple[Tensor, Tensor]:
        """Read a .mat file, whose checksum torchvision verifies first; see ``NamedImages.read``."""
        import_extra("scipy.io", "vision")
        split = "train" if train else "test"
        theirs = import_extra("torchvision.datasets", "vision").SVHN
        data = _opened(theirs, folder, [theirs.split_list[split][1:]], split=split)
        return _contiguous(data.data), torch.from_numpy(data.labels)

    def fetch(self, root: Path) -> None:
        """Let torchvision download both files into ``root``."""
        for split in ("train", "test"):
            import_extra("torchvision.datasets", "vision").SVHN(root, split=split, download=True)


class STL10(NamedImages):
    """Photographs of 10 kinds of things (Coates et al. 2011): 5,000 to train and 8,000 to test, 3 x 96 x 96.

    The unlabelled images are neither needed nor read. See ``NamedImages`` for the arguments.
    """

    name = "STL10"
    num_classes = 10
    input_shape = (3, 96, 96)
    mean = (0.4467, 0.4398, 0.4066)
    std = (0.2603, 0.2566, 0.2713)

    def read(self, folder: Path, *, train: bool) -> tuple[Tensor, Tensor]:
        """Read two .bin files, whose checksums torchvision verifies first; see ``NamedImages.read``."""
        theirs = _in_folder(self.name)
        theirs.train_list = theirs.train_list[:2]  # the third, 2.8 GB without labels, would have to be there
        files = theirs.train_list + theirs.test_list
        data = _opened(theirs, folder, files, split="train" if train else "test")
        return _contiguous(data.data), torch.from_numpy(data.labels).long()


def _in_folder(name: str) -> Any:
    """Torchvision's class, made to read files that lie directly in its ``root``, whatever that is called."""
    theirs = getattr(import_extra("torchvision.datasets", "vision"), name)
    return type(name, (theirs,), {"base_folder": ""})


def _opened(theirs: Any, folder: Path, files: list[Any], **which: Any) -> Any:
    """Let torchvision read, and if it finds a damaged file, say which: its own error does not."""
    try:
        return theirs(folder, **which)
    except RuntimeError as error:
        intact = import_extra("torchvision.datasets.utils", "vision").check_integrity
        bad = [str(folder / name) for name, md5 in files if not intact(folder / name, md5)]
        damaged = ", ".join(bad) or str(folder)
        raise CorruptDataError(
            f"{damaged}: damaged, as the checksum (MD5) is not the published one; delete and get again"
        ) from error


def _contiguous(images: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images))

"""Where data may lie: the one table that the data modules and ``python -m lit_papers list`` read.

Nothing here imports torch, so that listing what can be run stays instant.
"""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ENVIRONMENT_VARIABLE = "LIT_PAPERS_DATA"


class MissingDataError(FileNotFoundError):
    """The files of a data set were found nowhere; the message says where we looked and what helps."""


@dataclass(frozen=True)
class Layout:
    """How a data set lies on disk.

    Attributes:
        files: the files that must all be there, side by side.
        folders: where they may be below a searched place, tried in this order; ``""`` is the place itself.
        gzipped: whether ``<file>.gz`` serves as well as ``<file>``.
        system: where a Linux distribution's own copy lies.
        system_package: what ``apt install`` calls that copy.
    """

    files: tuple[str, ...]
    folders: tuple[str, ...]
    gzipped: bool = False
    system: Path | None = None
    system_package: str | None = None

    def lacks(self, folder: Path) -> list[str]:
        """The files that are not in ``folder``."""
        endings = ("", ".gz") if self.gzipped else ("",)
        return [name for name in self.files if not any(_is_file(folder / (name + end)) for end in endings)]


def _is_file(path: Path) -> bool:
    return exists(path) and path.is_file()


def exists(path: Path) -> bool:
    """Whether there is something at a path.

    Raises:
        PermissionError: a folder on the way may not be looked into; newer Pythons call that "no".
    """
    try:
        path.stat()
    except PermissionError as error:
        raise PermissionError(error.errno, f"cannot look for {path}, as a folder on the way may not be read") from error
    except (OSError, ValueError):  # not there, a name too long, a loop of links
        return False
    return True


_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

# The first folder of each is where torchvision puts its download.
LAYOUTS: dict[str, Layout] = {
    "MNIST": Layout(_IDX_FILES, ("MNIST/raw", "mnist", ""), gzipped=True),
    "FashionMNIST": Layout(
        _IDX_FILES,
        ("FashionMNIST/raw", "fashion-mnist", ""),
        gzipped=True,
        system=Path("/usr/share/datasets/fashion-mnist"),
        system_package="dataset-fashion-mnist",
    ),
    "CIFAR10": Layout(
        (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"), ("cifar-10-batches-py", "")
    ),
    "CIFAR100": Layout(("train", "test", "meta"), ("cifar-100-python", "")),
    "SVHN": Layout(("train_32x32.mat", "test_32x32.mat"), ("", "SVHN", "svhn")),
    # torchvision also wants unlabeled_X.bin, 2.8 GB that nobody here reads
    "STL10": Layout(("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"), ("stl10_binary", "")),
}


# What `TaskSequence` calls data sets, and the data modules that read them.
SHORT_NAMES: dict[str, str] = {
    "digits": "Digits",
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "tiny_imagenet": "TinyImageNet",
}


@dataclass(frozen=True)
class Tree:
    """How a data set of many files is called.

    Attributes:
        names: what its folder or archive is called below a searched place, tried in this order.
        holds: what lies in it.
        source: where people get it.
    """

    names: tuple[str, ...]
    holds: str
    source: str


TREES: dict[str, Tree] = {
    "SpokenDigits": Tree(
        ("fsdd.zip", "fsdd", "free-spoken-digit-dataset", "free-spoken-digit-dataset-master"),
        "{digit}_{speaker}_{index}.wav",
        "get the Free Spoken Digit Dataset (github.com/Jakobovski/free-spoken-digit-dataset), as a folder or .zip",
    ),
    "SpeechCommands": Tree(
        ("SpeechCommands/speech_commands_v0.02", "speech_commands_v0.02"),
        "<word>/<recording>.wav and the lists of validation and test files",
        "let torchaudio fetch it into that folder: `download: true` (--data.download=true)",
    ),
}


def find_tree(name: str, root: str | Path | None = None) -> Path:
    """The folder or archive of a data set of many files.

    Args:
        name: a key of ``TREES``, such as ``"SpokenDigits"``.
        root: the folder or archive itself, or a folder that contains it; looked at before ``$LIT_PAPERS_DATA``.

    Returns:
        The first that exists; ``root`` itself if nothing of the usual name lies in it.

    Raises:
        KeyError: the data set is not in ``TREES``.
        MissingDataError: there is nothing.
    """
    tree = TREES[name]
    for place in dict.fromkeys((own_place(root), own_place())):
        if place is None:
            continue
        for below in tree.names:
            if exists(place / below):
                return place / below
        if root and place == own_place(root) and exists(place):
            return place
    looked = " and ".join(str(place) for place in dict.fromkeys((own_place(root), own_place())) if place)
    raise MissingDataError(
        f"{name} was not found. It is a folder or .zip with {tree.holds} in it.\n"
        + (f"Looked in {looked}, also for {', '.join(tree.names)}.\n" if looked else "There was nowhere to look.\n")
        + f"What helps:\n  - point `root` (--data.root=PATH) or ${ENVIRONMENT_VARIABLE} at it, or\n  - {tree.source}"
    )


def own_place(root: str | Path | None = None) -> Path | None:
    """The user's own data folder: ``root``, else ``$LIT_PAPERS_DATA``, else None.

    >>> own_place("/data").as_posix()
    '/data'
    """
    chosen = root or os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(chosen).expanduser() if chosen else None


def search_places(name: str, root: str | Path | None = None) -> list[Path]:
    """The places where a data set is looked for, best first.

    Args:
        name: a key of ``LAYOUTS``, such as ``"FashionMNIST"``.
        root: a folder of the user's, which goes before all others.

    Returns:
        ``root`` and ``$LIT_PAPERS_DATA`` if given, then the system's copy if the data set has one.

    Raises:
        KeyError: the data set is not in ``LAYOUTS``.

    >>> search_places("CIFAR10", "/data")[0].as_posix()
    '/data'
    """
    places = [own_place(root), own_place(), LAYOUTS[name].system]
    return list(dict.fromkeys(place for place in places if place is not None))


def find_data(name: str, root: str | Path | None = None) -> Path:
    """The folder that holds the files of a data set.

    Args:
        name: a key of ``LAYOUTS``, such as ``"CIFAR10"``.
        root: a folder of the user's, looked at before ``$LIT_PAPERS_DATA`` and the system's copy.

    Returns:
        The folder in which the files of ``LAYOUTS[name]`` lie side by side.

    Raises:
        KeyError: the data set is not in ``LAYOUTS``.
        MissingDataError: no place has all the files.
    """
    layout = LAYOUTS[name]
    looked_at = []
    for place in search_places(name, root):
        for below in ("",) if place == layout.system else layout.folders:
            folder = place / below
            lacking = layout.lacks(folder)
            if not lacking:
                return folder
            partly = len(lacking) < len(layout.files)
            looked_at.append(f"  {folder}" + (f" (lacks {', '.join(lacking)})" if partly else ""))
    raise MissingDataError(_what_helps(name, looked_at))


def is_present(name: str, root: str | Path | None = None) -> bool | None:
    """Whether the data of a data module are on this machine, found out without importing torch.

    Args:
        name: the class of the data module, bare or dotted.
        root: its ``root`` argument.

    Returns:
        None if the class is not one of ours, so that nothing can be said.

    >>> is_present("lit_papers.datamodules.ImageFolder", "/no/such/folder"), is_present("my.DataModule")
    (False, None)
    """
    name = name.rpartition(".")[-1]
    if name == "Components":
        return True  # made by the model
    if name == "Digits":
        return find_spec("sklearn") is not None
    if name == "GraphPairs":
        return root is None or _may_exist(root)
    if name == "GaussianRegression":
        return True  # drawn
    if name == "BreastCancer":
        return find_spec("sklearn") is not None
    if name == "Adult":
        return find_spec("shapiq") is not None
    if name in ("ImageFolder", "TinyImageNet"):
        return bool(root) and _may_exist(root)
    if name not in LAYOUTS and name not in TREES:
        return None
    try:
        find_data(name, root) if name in LAYOUTS else find_tree(name, root)
    except (MissingDataError, PermissionError):
        return False
    return True


def _may_exist(root: str | Path | None) -> bool:
    try:
        return exists(Path(str(root)).expanduser())
    except PermissionError:
        return False


def _what_helps(name: str, looked_at: list[str]) -> str:
    layout = LAYOUTS[name]
    wanted = ", ".join(layout.files) + (" (plain or .gz)" if layout.gzipped else "")
    lines = [f"{name} was not found. Its files are {wanted}."]
    if looked_at:
        lines += ["Looked in:", *looked_at]
    else:
        lines += [f"There was nowhere to look: neither `root` nor ${ENVIRONMENT_VARIABLE} is set."]
    lines += [
        "What helps:",
        f"  - point `root` (--data.root=FOLDER) or ${ENVIRONMENT_VARIABLE} at a folder that has them, or",
        "  - let torchvision fetch them into that folder: `download: true` (--data.download=true)",
    ]
    if layout.system_package:
        lines[-1] += ", or"
        lines.append(f"  - on Debian and Ubuntu: apt install {layout.system_package}")
    return "\n".join(lines)

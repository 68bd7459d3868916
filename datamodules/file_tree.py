"""A tree of files, in a folder or in a .zip: what names are in it, and the bytes behind a name."""

import errno
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_papers.datamodules.images import CorruptDataError
from lit_papers.locations import MissingDataError, exists


class FileTree:
    """The files below a folder, or inside a .zip, under names with forward slashes.

    A .zip is opened once in each process: worker processes that shared one open file would move each other's
    position.

    Args:
        root: the folder or .zip.
        layout: what should be in it, for the error if there is nothing.

    Raises:
        MissingDataError: ``root`` does not exist.
        CorruptDataError: ``root`` is a file, but no intact .zip.
        PermissionError: ``root`` may not be read.
    """

    def __init__(self, root: str | Path, layout: str = "train/<class>/<image> or <class>/<image>") -> None:
        self.root = Path(root).expanduser()
        if not exists(self.root):
            raise MissingDataError(
                f"there is nothing at {self.root}: point `root` (--data.root=PATH) at a folder or .zip "
                f"with {layout} in it"
            )
        self._zip: zipfile.ZipFile | None = None
        self._zip_process = 0
        if self.root.is_file():
            self._opened()

    def names(self) -> list[str]:
        """All files and, with a trailing slash, all folders, sorted; hidden ones are left out.

        Links are followed.

        Raises:
            PermissionError: a folder or file may not be read, so that it would be missing from the data.
            ValueError: a link leads back to a folder around it, so that its files would be there again and again, or
            something is no file.
        """
        if self.root.is_file():
            found = set(self._opened().namelist())
            for name in tuple(found):  # a .zip need not list its folders
                parts = name.split("/")
                found.update("/".join(parts[:i]) + "/" for i in range(1, len(parts)))
        else:
            found = set(_names_below(self.root, "", ()))
        return sorted(name for name in found if not _hidden(name))

    def read(self, name: str) -> bytes:
        """The content of one file.

        Raises:
            CorruptDataError: it cannot be unpacked, or wants a password.
            FileNotFoundError: it has gone since.
        """
        if not self.root.is_file():
            return (self.root / name).read_bytes()
        try:
            return self._opened().read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise CorruptDataError(f"{self.describe(name)} is damaged: {error}") from error
        except (RuntimeError, NotImplementedError) as error:  # what zipfile raises of encryption, and of its own limits
            raise CorruptDataError(f"{self.describe(name)} cannot be unpacked: {error}") from error

    def describe(self, name: str) -> str:
        """What to call a file in an error."""
        return f"{name} in {self.root}" if self.root.is_file() else str(self.root / name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None}

    def _opened(self) -> zipfile.ZipFile:
        if self._zip is None or self._zip_process != os.getpid():
            try:
                self._zip = zipfile.ZipFile(self.root)
            except zipfile.BadZipFile as error:
                raise CorruptDataError(
                    f"{self.root} is neither a folder nor an intact .zip ({error}): get it again, or "
                    f"unpack it and point `root` at the folder"
                ) from error
            self._zip_process = os.getpid()
        return self._zip


def _names_below(folder: Path, prefix: str, around: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Names of what is in a folder; ``around`` are the folders it lies in, by device and inode."""
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in around:
        raise ValueError(
            f"{folder} is a link to a folder that it lies in, so that its files would never end: remove it"
        )
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError as error:
        raise PermissionError(error.errno, f"the folder may not be read, give yourself access: {folder}") from error
    for entry in entries:
        if _hidden(entry.name):
            continue
        if entry.is_dir():
            yield f"{prefix}{entry.name}/"
            yield from _names_below(folder / entry.name, f"{prefix}{entry.name}/", (*around, identity))
        elif not entry.is_symlink() and not entry.is_file():
            raise ValueError(f"{entry.path} is a pipe, socket or device, which would be read for ever: remove it")
        elif os.access(entry.path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
            yield prefix + entry.name
        elif entry.is_symlink() and not entry.is_file():
            raise ValueError(f"{entry.path} is a link to nothing: remove it, or bring back what it leads to")
        else:
            raise PermissionError(errno.EACCES, f"the file may not be read, give yourself access: {entry.path}")


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))

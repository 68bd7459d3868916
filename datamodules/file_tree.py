"""A tree of files, in a folder or in a .zip: what names are in it, and the bytes behind a name."""

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

from lit_papers.datamodules.images import CorruptDataError
from lit_papers.locations import MissingDataError


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
    """

    def __init__(self, root: str | Path, layout: str = "train/<class>/<image> or <class>/<image>") -> None:
        self.root = Path(root).expanduser()
        if not self.root.exists():
            raise MissingDataError(
                f"there is nothing at {self.root}: point `root` (--data.root=PATH) at a folder or .zip "
                f"with {layout} in it"
            )
        self._zip: zipfile.ZipFile | None = None
        self._zip_process = 0
        if self.root.is_file():
            self._opened()

    def names(self) -> list[str]:
        """All files and, with a trailing slash, all folders, sorted; hidden ones are left out."""
        if self.root.is_file():
            found = set(self._opened().namelist())
            for name in tuple(found):  # a .zip need not list its folders
                parts = name.split("/")
                found.update("/".join(parts[:i]) + "/" for i in range(1, len(parts)))
        else:
            found = set()
            for folder, subfolders, files in os.walk(self.root, followlinks=True):
                here = Path(folder).relative_to(self.root).as_posix() + "/"
                here = "" if here == "./" else here
                found.update(here + name + "/" for name in subfolders)
                found.update(here + name for name in files)
        return sorted(name for name in found if not _hidden(name))

    def read(self, name: str) -> bytes:
        """The content of one file.

        Raises:
            CorruptDataError: it cannot be unpacked.
            FileNotFoundError: it has gone since.
        """
        if not self.root.is_file():
            return (self.root / name).read_bytes()
        try:
            return self._opened().read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise CorruptDataError(f"{self.describe(name)} is damaged: {error}") from error

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


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))

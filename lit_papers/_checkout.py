"""How a checkout finds the three packages that lie beside ``lit_papers/``, and nothing else that lies there."""

import sys
from collections.abc import Iterator
from importlib.machinery import FileFinder, ModuleSpec, SourceFileLoader
from pathlib import Path

BESIDE = ("callbacks", "datamodules", "sweeps")
_MARK = "?lit_papers"  # no folder has such a name, so no other finder takes the entry for a folder


class _Beside:
    """Finder for one entry of ``lit_papers.__path__``: the checkout, seen through a slit."""

    def __init__(self, entry: str) -> None:
        if not entry.endswith(_MARK):
            raise ImportError
        self._finder = FileFinder(entry.removesuffix(_MARK), (SourceFileLoader, [".py"]))

    def find_spec(self, fullname: str, target: object = None) -> ModuleSpec | None:
        """The spec of one of the three packages."""
        return self._finder.find_spec(fullname) if fullname.rpartition(".")[2] in BESIDE else None

    def iter_modules(self, prefix: str = "") -> Iterator[tuple[str, bool]]:
        """Name, and that it is a package, of each; for `pkgutil`."""
        yield from ((prefix + name, True) for name in BESIDE)

    def invalidate_caches(self) -> None:
        """As Python asks of finders."""
        self._finder.invalidate_caches()


def entry_for(checkout: Path) -> str:
    """An entry for ``__path__`` that finds exactly the three packages in a checkout."""
    if _Beside not in sys.path_hooks:
        sys.path_hooks.append(_Beside)
    return f"{checkout}{_MARK}"

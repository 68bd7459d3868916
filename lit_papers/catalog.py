"""The shipped configurations: found by name, described by the comments they begin with.

Free of torch, so that ``python -m lit_papers list`` answers at once.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_papers.extras import is_installed
from lit_papers.locations import SHORT_NAMES

CONFIG_FOLDER = Path(__file__).parent / "configs"
CLAIMS_FILE = "claims.yaml"  # what `reproduce` runs; no configuration
_HEADER_KEYS = ("paper", "shows", "time")


@dataclass(frozen=True)
class ShippedConfig:
    """What one shipped configuration runs.

    Attributes:
        name: ``<paper>/<name>``, what ``--config`` takes.
        path: the YAML file.
        paper: authors and venue.
        shows: one line, what a reader sees when it has run.
        time: rough duration and the machine it refers to.
        data_class: import path of the data module, or the name of the one that a stream reads; None where the model
            brings its data.
        data_root: the ``root`` the file gives to the data module, if any.
        needs: the optional packages that a run imports, by the extra that brings them.
    """

    name: str
    path: Path
    paper: str
    shows: str
    time: str
    data_class: str | None
    data_root: str | None
    needs: Mapping[str, tuple[str, ...]]

    def missing_extras(self) -> list[str]:
        """The extras of which a needed package is not installed."""
        return [extra for extra, modules in self.needs.items() if not all(map(is_installed, modules))]


def config_names() -> list[str]:
    """Names of all shipped configurations, sorted.

    >>> "neural_collapse/digits" in config_names()
    True
    """
    paths = [path for path in CONFIG_FOLDER.glob("*/*.yaml") if path.name != CLAIMS_FILE]
    return sorted(path.relative_to(CONFIG_FOLDER).with_suffix("").as_posix() for path in paths)


def find_config(name: str) -> Path | None:
    """The file of the shipped configuration or overlay ``name``, or None if there is none.

    An overlay, such as ``wandb``, is no run of its own: it is given after a configuration, and changes it.
    """
    return CONFIG_FOLDER / f"{name}.yaml" if name in (*config_names(), *overlay_names()) else None


def overlay_names() -> list[str]:
    """Names of the shipped files that change another configuration, sorted.

    >>> overlay_names()
    ['diagnose', 'diffstride_cifar100', 'diffstride_intended', 'wandb']
    """
    return sorted(path.stem for path in CONFIG_FOLDER.glob("*.yaml"))


def near_names(name: str) -> list[str]:
    """Shipped names that resemble ``name``, best first; three, or all that end alike.

    >>> near_names("neural_colapse/digit")[0]
    'neural_collapse/digits'
    """
    wanted = name.removesuffix(".yaml")
    # people forget the paper as often as they misspell it
    by_last_part = [known for known in config_names() if known.split("/")[-1] == wanted]
    close = difflib.get_close_matches(wanted, config_names() + overlay_names(), n=3, cutoff=0.5)
    return (by_last_part + close)[: max(3, len(by_last_part))]


def describe(name: str) -> ShippedConfig:
    """Read the header comments and the data section of one shipped configuration.

    Beside the three of every file there may be ``# needs: convex (cvxpy, scipy); data (sklearn)``: extras, and in
    brackets the packages of theirs that a run imports.

    Raises:
        ValueError: the file lacks one of the header comments ``# paper:``, ``# shows:`` and ``# time:``.
    """
    path = CONFIG_FOLDER / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    header = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        key, _, value = line.lstrip("# ").partition(":")
        header[key] = value.strip()
    missing = [key for key in _HEADER_KEYS if not header.get(key)]
    if missing:
        raise ValueError(f"{path} must begin with the comments {', '.join(f'`# {key}: ...`' for key in missing)}")
    data: dict[str, Any] = yaml.safe_load(text).get("data") or {}
    data = (data.get("init_args") or {}).get("datamodule") or data  # a wrapper such as Sharded has no data of its own
    options = data.get("init_args") or {}
    return ShippedConfig(
        name=name,
        path=path,
        **{key: header[key] for key in _HEADER_KEYS},
        data_class=SHORT_NAMES.get(str(options.get("dataset")), data.get("class_path")),
        data_root=options.get("root"),
        needs={
            extra: tuple(modules.replace(",", " ").split())
            for extra, modules in re.findall(r"(\w+) \(([\w, ]+)\)", header.get("needs", ""))
        },
    )

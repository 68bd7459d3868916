"""YAML as people write it, with the one thing refused that PyYAML passes over: a key that stands there twice."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml


class YamlError(ValueError):
    """A file that is no YAML, or has a key twice; the message names file and line."""


class _UniqueKeys(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if isinstance(key, str) and key != "<<":  # a merge key may well be repeated
                if key in seen:
                    raise YamlError(f"the key {key!r} stands there twice, in lines {seen[key]} and {line}")
                seen[key] = line
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, name: str) -> Any:
    """Parse YAML (or JSON) and refuse duplicate keys, of which only the last would count.

    Args:
        text: the YAML.
        name: what to call it in an error.

    Raises:
        YamlError: as said.

    >>> parse_yaml("{lr: 0.1, lr: 0.2}", "mine.yaml")
    Traceback (most recent call last):
    lit_papers.yaml_files.YamlError: mine.yaml: the key 'lr' stands there twice, in lines 1 and 1
    """
    try:
        return yaml.load(text, Loader=_UniqueKeys)  # noqa: S506  # a SafeLoader
    except YamlError as error:
        raise YamlError(f"{name}: {error}") from None
    except yaml.YAMLError as error:
        raise YamlError(f"{name} is no YAML: {' '.join(str(error).split())}") from error


def read_yaml(path: Path) -> Any:
    """Read and parse a file as `parse_yaml` does.

    Raises:
        YamlError: it is no text, no YAML, or has a key twice.
        OSError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise YamlError(f"{path} is no text file: {error}") from error
    return parse_yaml(text, str(path))

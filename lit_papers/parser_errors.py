"""Boil the reports of the argument parser down to the line that matters, with the name that was probably meant.

A report of jsonargparse is a tree: a key that fits none of several types lists what each of them has against it, and
one of those may be a class with such a key again. Of each such list the branch counts that went furthest: that a
mapping is no string is no news beside an argument that a class named in it does not have.
"""

import difflib
import inspect
import re
from argparse import ArgumentParser
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import import_module
from textwrap import dedent

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy

_CLASSES_BY_NAME = (Callback, LightningDataModule, LightningModule, Logger, Strategy)
_CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
# how far a branch went
_WRONG_TYPE, _OF_THE_BASE_CLASS, _NO_SUCH_CLASS, _INSIDE_A_CLASS = range(4)


@dataclass(frozen=True)
class _Finding:
    text: str
    rank: int
    hint: str | None = None

    def __str__(self) -> str:
        return self.text


def explain(message: str, parser: ArgumentParser) -> tuple[str, str | None]:
    """What a report of the parser means.

    Args:
        message: the report, often a dozen lines about every type that was tried.
        parser: the parser that made it; its options are the candidates for what was meant.

    Returns:
        The complaint, and a suggestion or None.
    """
    text = " ".join(message.split())
    if found := re.search(r"does not accept option '([\w.]+)'|unrecognized arguments: --([\w.]+)", text):
        option = found[1] or found[2]
        return f"unknown option {option!r}", did_you_mean(option, _options(parser))
    if found := re.search(r"Option '([\w.]+)' is not accepted before subcommand '(\w+)'", text):
        return f"write {found[2]!r} first, and --{found[1]} behind it", None
    finding = _read(message)
    return finding.text, finding.hint


def did_you_mean(name: str, candidates: Iterable[str]) -> str | None:
    """A suggestion, if a candidate is near.

    >>> did_you_mean("max_epoch", ["max_epochs", "min_epochs"])
    "did you mean 'max_epochs'?"
    """
    near = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else None


def _read(report: str, class_path: str | None = None) -> _Finding:
    """One node of the tree."""
    report = dedent(report).strip()
    if found := re.match(r'Parser key "([\w.\[\]]+)":', report):
        inner = _read(report[found.end() :], class_path)
        return replace(inner, text=f"{found[1]}: {inner.text}")
    if found := re.match(r"Problem with given class_path '([\w.]+)':", report):
        inner = _read(report[found.end() :], found[1])
        is_named = not _is_a_base_class(found[1])
        text = inner.text if not is_named or inner.text.startswith(found[1]) else f"{found[1]}: {inner.text}"
        return replace(inner, text=text, rank=_INSIDE_A_CLASS if is_named else _OF_THE_BASE_CLASS)
    if "Does not validate against any of the Union subtypes" in report:
        return _read_union(report)
    if found := re.match(r"Option '([\w.]+)' is not accepted", report):
        return _unknown_argument(found[1], class_path)
    text = " ".join(report.split()).lstrip("- ")
    if found := re.search(r"Expected a dot import path string: (.+)", text):
        return _Finding(f"no class of the name {found[1]!r} is known", _NO_SUCH_CLASS, _near_class(found[1]))
    if found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", text):
        hint = did_you_mean(found[2], dir(import_module(found[1])))
        return _Finding(f"{found[1]} has no {found[2]!r}", _NO_SUCH_CLASS, hint)
    if found := re.search(r"No module named '([\w.]+)'", text):
        return _Finding(f"there is no module {found[1]!r}", _NO_SUCH_CLASS)
    if found := re.fullmatch(r"Expected an? (.+?)\. Got value: (.*)", text):
        return _Finding(f"expected {_type(found[1])}, got {found[2]}", _INSIDE_A_CLASS)
    is_dull = re.match(r"Expected a |Not a valid subclass", text)
    return _Finding(text, _WRONG_TYPE if is_dull else _NO_SUCH_CLASS)


def _read_union(report: str) -> _Finding:
    """A value that fits none of several types: what the most telling of them has against it."""
    types = re.search(r"Subtypes: \[(.*)\]", report)
    errors, _, value = report.partition("Errors:\n")[2].rpartition("Given value:")
    errors = errors.rpartition("Given value type:")[0]
    findings = [_read(bullet) for bullet in re.split(r"^- ", dedent(errors), flags=re.MULTILINE)[1:]]
    best = max(findings, key=lambda finding: finding.rank)
    value = value.strip()
    if best.rank == _WRONG_TYPE and types:
        return replace(best, text=f"expected {_type(types[1])}, got {_shown(value)}")
    if best.rank == _OF_THE_BASE_CLASS and "'class_path':" in value and best.hint is None:
        # a mapping that names a class, so what is wrong is a key beside that name
        keys = re.findall(r"'(\w+)':", value)
        wrong = [key for key in keys if key not in _CLASS_KEYS and did_you_mean(key, _CLASS_KEYS)]
        if wrong:
            return _Finding(f"unknown key {wrong[0]!r}", _INSIDE_A_CLASS, did_you_mean(wrong[0], _CLASS_KEYS))
    return best


def _unknown_argument(option: str, class_path: str | None) -> _Finding:
    if class_path is None or _is_a_base_class(class_path):
        # "implicit class_path": a mapping without a class was tried as the base class
        key = option.partition(".")[0]
        hint = did_you_mean(key, _CLASS_KEYS) or "give the class as `class_path`, its arguments as `init_args`"
        return _Finding(f"unknown key {key!r}", _OF_THE_BASE_CLASS, hint)
    known = _arguments_of(class_path)
    hint = did_you_mean(option, known) or f"its arguments are {', '.join(known) or 'none'}"
    return _Finding(f"{class_path} has no argument {option!r}", _INSIDE_A_CLASS, hint)


def _type(text: str) -> str:
    """Types as people write them.

    >>> _type("<class 'int'>, collections.abc.Sequence[int], <class 'NoneType'>")
    'int or Sequence[int]'
    >>> _type("typing.Literal['a', 'b']")
    "'a', 'b'"
    """
    text = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", text)
    text = re.sub(r"(?:typing\.)?Literal\[([^\]]*)\]", r"\1", text)
    text = re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z])", "", text)
    parts = [part for part in re.split(r", (?![^\[]*\])", text) if part != "NoneType"]
    return ", ".join(parts) if any(part.startswith("'") for part in parts) else " or ".join(parts)


def _shown(value: str) -> str:
    nested = re.fullmatch(r"NestedArg\(key='(.*?)', val='?(.*?)'?\)", value)
    value = nested[2] if nested else value
    return value if len(value) <= 80 else f"{value[:80]} ..."


def _is_a_base_class(class_path: str) -> bool:
    return class_path.rpartition(".")[2] in {base.__name__ for base in _CLASSES_BY_NAME}


def _near_class(name: str) -> str | None:
    return did_you_mean(name, _class_names())


def _arguments_of(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    return list(inspect.signature(getattr(import_module(module), name)).parameters)


def _options(parser: ArgumentParser) -> set[str]:
    options = {action.dest for action in parser._actions}
    for action in parser._actions:
        if isinstance(action.choices, dict):  # the main parser complains of words that belong to a subcommand
            options.update(*({option.dest for option in sub._actions} for sub in action.choices.values()))
    return options


def _class_names() -> set[str]:
    names: set[str] = set()
    classes: list[type] = list(_CLASSES_BY_NAME)
    while classes:
        subclasses: list[type] = classes.pop().__subclasses__()
        names.update(subclass.__name__ for subclass in subclasses)
        classes += subclasses
    return names

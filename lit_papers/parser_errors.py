"""Boil the reports of the argument parser down to the line that matters, with the name that was probably meant."""

import difflib
import inspect
import re
from argparse import ArgumentParser
from collections.abc import Iterable
from importlib import import_module

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.loggers import Logger

_CLASSES_BY_NAME = (Callback, LightningDataModule, LightningModule, Logger)


def explain(message: str, parser: ArgumentParser) -> tuple[str, str | None]:
    """What a report of the parser means.

    Args:
        message: the report, often a dozen lines about every type that was tried.
        parser: the parser that made it; its options are the candidates for what was meant.

    Returns:
        The complaint, and a suggestion or None.
    """
    text = " ".join(message.split())
    key = re.match(r"Parser key \"([\w.]+)\":", text)
    subject = f"{key[1]}: " if key else ""

    if found := re.search(r"class_path '([\w.]+)': Option '([\w.]+)' is not accepted", text):
        class_path, option = found.groups()
        known = _arguments_of(class_path)
        hint = did_you_mean(option, known) or f"its arguments are {', '.join(known)}"
        return f"{subject}{class_path} has no argument {option!r}", hint
    if found := re.search(r"does not accept option '([\w.]+)'|unrecognized arguments: --([\w.]+)", text):
        option = found[1] or found[2]
        return f"unknown option {option!r}", did_you_mean(option, _options(parser))
    if found := re.search(r"Expected a dot import path string: (\w+)", text):
        name = found[1]
        return f"{subject}no class of the name {name!r} is known", did_you_mean(name, _class_names())
    if found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", text):
        module, name = found.groups()
        return f"{subject}{module} has no {name!r}", did_you_mean(name, dir(import_module(module)))
    if "Union subtypes" in text:
        return subject + _first_real_error(message), None
    return text, None


def did_you_mean(name: str, candidates: Iterable[str]) -> str | None:
    """A suggestion, if a candidate is near.

    >>> did_you_mean("max_epoch", ["max_epochs", "min_epochs"])
    "did you mean 'max_epochs'?"
    """
    near = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else None


def _first_real_error(message: str) -> str:
    """Of the errors of a union of types, the first; that the value is not None either is no news."""
    errors = message.partition("Errors:")[2].partition("Given value type:")
    bullets = [" ".join(bullet.split()) for bullet in re.split(r"\n\s*- ", errors[0])[1:]]
    value = errors[2].partition("Given value:")[2].strip()
    is_class = "Namespace" in value or "NestedArg" in value
    # that a class with arguments is no string either is no news
    dull = r"Expected a <class '\w+'>" if is_class else r"Expected a <class 'NoneType'>"
    real = [bullet for bullet in bullets if not re.fullmatch(dull, bullet)] or bullets
    is_short = value and not is_class
    return re.sub(r"<class '(\w+)'>", r"\1", real[0]) + (f", got {value}" if is_short else "")


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

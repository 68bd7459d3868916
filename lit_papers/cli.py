"""The front door of ``python -m lit_papers``: help, version, list, and config names, all without torch.

Importing Lightning takes seconds; whatever can be answered or refused without it is answered here. The rest goes
to `lit_papers.lightning_cli`. Whatever ends in an error, of any command, goes by `lit_papers.mistakes`.
"""

import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lit_papers
from lit_papers import catalog
from lit_papers.extras import install_command
from lit_papers.mistakes import INTERRUPTED, MISTAKE, mistake
from lit_papers.yaml_files import parse_yaml, read_yaml

if TYPE_CHECKING:
    from lightning.pytorch import Callback

TRAINER_COMMANDS = {
    "fit": "train a model",
    "validate": "run the validation data through a model",
    "test": "run the test data through a model",
    "predict": "predict on a data set",
}
_COMMANDS = (*TRAINER_COMMANDS, "diagnose", "list", "sweep", "reproduce", "expressiveness")
_USAGE = f"usage: python -m lit_papers {{{','.join(_COMMANDS)}}} [options]"
_HELP = f"""{_USAGE}

Papers that explain deep networks, as PyTorch Lightning plugins.

commands:
{chr(10).join(f"  {name:<10}{text}" for name, text in TRAINER_COMMANDS.items())}
  diagnose  look at a trained network through every lens that fits it, on one page
  list      show every shipped configuration and whether its data are here
  sweep     search hyperparameters on this machine, by the file of a Weights & Biases sweep
  reproduce say which claims of the papers hold here, with seeds and spread
  expressiveness  say what a graph network can tell apart: an expression, or an architecture's name

options:
  --help     show this text; after a command, its options
  --version  show the version

examples:
  python -m lit_papers fit --config neural_collapse/digits
  python -m lit_papers fit --config neural_collapse/digits --model.lr=0.1 --trainer.max_epochs=50
  python -m lit_papers fit --config neural_collapse/digits --print_config
  python -m lit_papers sweep neural_collapse --trials 20 --jobs 2
  python -m lit_papers reproduce neural_collapse --jobs 2
  python -m lit_papers diagnose --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt
"""


def main(arguments: Sequence[str] | None = None, callbacks: Sequence["Callback"] = ()) -> int:
    """Run one command line.

    Args:
        arguments: what follows ``python -m lit_papers``; None takes ``sys.argv``.
        callbacks: of the run, beside those of its configuration, which does not record them.

    Returns:
        Exit status: 0 for success; 2 for what the user can mend, told in one line; 130 after Ctrl-C and 143 after
        SIGTERM; 1 where a sweep has no complete trial.

    Raises:
        Exception: a bug, here or in the user's own code. ``python -X dev`` shows the traceback of a mistake too.
    """
    try:
        return _run(arguments, callbacks)
    except KeyboardInterrupt:  # before there is a Trainer that would end tidily
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `... | head`: whoever read us has gone, and the interpreter must not write to it either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return MISTAKE
    except Exception as error:
        line = mistake(error)
        if line is None:
            raise
        if sys.flags.dev_mode:
            traceback.print_exc()
        print(f"error: {line}", file=sys.stderr)
        return MISTAKE


def _run(arguments: Sequence[str] | None, callbacks: Sequence["Callback"]) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(_HELP, end="")
        return 0 if given else MISTAKE
    if given[0] == "--version":
        print(f"lit-papers {lit_papers.__version__}")
        return 0
    command = given[0]
    if command == "list":
        return _list(given[1:])
    if command == "sweep":
        from lit_papers.tuning.command import main as sweep

        return sweep(given[1:])
    if command == "reproduce":
        from lit_papers.reproduce.command import main as reproduce

        return reproduce(given[1:])
    if command == "diagnose":
        from lit_papers.diagnose.command import main as diagnose

        return diagnose(given[1:], _resolve_config_names)
    if command == "expressiveness":
        from lit_papers.expressiveness.report import main as report

        return report(given[1:])
    if command not in TRAINER_COMMANDS:
        near = difflib.get_close_matches(command, _COMMANDS, n=1)
        return _refuse(f"unknown command {command!r}" + (f"; did you mean {near[0]!r}?" if near else ""))

    resolved, names = _resolve_config_names(given)
    if arguments is None:
        sys.argv[1:] = resolved  # the processes that a strategy starts read it again

    from lit_papers.lightning_cli import run

    run_name = names[0] if names else command
    return run(None if arguments is None else resolved, run_name=run_name, callbacks=callbacks)


def _refuse(message: str) -> int:
    print(f"{_USAGE}\nerror: {message}", file=sys.stderr)
    return MISTAKE


def _resolve_config_names(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Replace the names of shipped configurations by their paths.

    Returns:
        The new arguments, and a name for each ``--config`` in them: what a run of it is called.

    Raises:
        ValueError: a value is neither a file, nor inline YAML, nor the name of a shipped configuration.
        YamlError: a file is no YAML, or has a key twice.
        OSError: a file cannot be read.
    """
    resolved: list[str] = []
    names: list[str] = []
    is_value = False
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if is_value:
            option, equals, value = "", "", argument
        elif option not in ("--config", "-c"):
            resolved.append(argument)
            continue
        elif not equals:
            is_value = True
            resolved.append(argument)
            continue
        is_value = False
        path, name = _config_path(value)
        resolved.append(f"{option}{equals}{path}")
        if name:
            names.append(name)
    return resolved, names


def _config_path(value: str) -> tuple[str, str | None]:
    if "{" in value or "\n" in value:  # inline JSON or YAML, which the parser reads itself
        parse_yaml(value, "--config")
        return value, None
    path = Path(value)
    if path.is_file():
        if not isinstance(read_yaml(path), dict):
            raise ValueError(f"--config {value}: a configuration is a mapping such as `trainer: {{max_epochs: 5}}`")
        return value, path.stem
    shipped = catalog.find_config(value)
    if shipped is not None:
        return str(shipped), value
    if path.is_dir():
        raise ValueError(f"--config {value}: this is a folder; name the file in it, such as {path / 'config.yaml'}")
    near = catalog.near_names(value)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(
        f"--config {value}: no such file, and no shipped configuration of that name; {hint}"
        "`python -m lit_papers list` shows them all"
    )


def _list(arguments: Sequence[str]) -> int:
    if arguments:
        return _refuse(f"`list` takes no arguments, got {' '.join(arguments)}")
    from rich.console import Console
    from rich.table import Table

    from lit_papers.locations import is_present

    table = Table("config", "shows", "data", "here?", "time", title="python -m lit_papers fit --config <config>")
    paper = None
    lacking: set[str] = set()
    for name in catalog.config_names():
        config = catalog.describe(name)
        if config.paper != paper:
            paper = config.paper
            table.add_section()
            table.add_row(f"[bold]{name.split('/')[0]}", f"[bold]{paper}")
        data = (config.data_class or "none needed").rsplit(".", 1)[-1]
        needs = config.missing_extras()
        lacking.update(needs)
        if needs:
            present = f"needs \\[{', '.join(needs)}]"
        else:
            present = {True: "yes", False: "no", None: "?"}[is_present(data, config.data_root)]
        table.add_row(name, config.shows, data, present, config.time)
    # a pipe has no width: let no name be cut there
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)
    if lacking:
        extras = ",".join(sorted(lacking))
        console.print(f"packages are missing: {install_command(extras)}", soft_wrap=True, highlight=False, markup=False)
    return 0

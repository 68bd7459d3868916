"""``python -m lit_papers diagnose``: arguments, and what is printed in the end; torch comes when they are right."""

import argparse
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lit_papers.diagnose.names import check_names

if TYPE_CHECKING:
    from lit_papers.diagnose.report import Report

_EPILOG = """The configuration is that of a run (runs/.../config.yaml), a shipped name (neural_collapse/digits), or
your own LightningCLI's; --model=..., --data=... and other options of `fit` go beside it. Several checkpoints are a
time line.

example: python -m lit_papers diagnose --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt --minutes 2
"""


def diagnose_parser() -> argparse.ArgumentParser:
    """The options of the command; others are LightningCLI's."""
    parser = argparse.ArgumentParser(
        prog="python -m lit_papers diagnose",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Look at a trained network through every lens that fits it, and write one page about it.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "--ckpt_path", nargs="+", metavar="FILE", help="checkpoints of the run; several are a time line"
    )
    parser.add_argument("--lenses", metavar="A,B", help="only these lenses (default: all that fit)")
    parser.add_argument("--minutes", type=_positive, default=5.0, help="that it may take (default: 5)")
    parser.add_argument(
        "--out", type=Path, help="folder of report.html and report.json (default: beside the checkpoint)"
    )
    parser.add_argument("--log", action="store_true", help="give the numbers to the configuration's loggers, too")
    return parser


def main(arguments: Sequence[str], resolve: Callable[[Sequence[str]], tuple[list[str], list[str]]]) -> int:
    """Diagnose the network of a configuration.

    Args:
        arguments: what follows ``diagnose`` on the command line.
        resolve: replaces names of shipped configurations by their paths, and tells the names.

    Returns:
        Exit status 0.

    Raises:
        ValueError: what the user can mend: a file, a name, a checkpoint of another network.
        SystemExit: an option is wrong; the message is printed.
    """
    parser = diagnose_parser()
    given, others = parser.parse_known_args(arguments)
    if not any(other.partition("=")[0] in ("--config", "-c", "--model") for other in others):
        parser.error("--config is missing: the config.yaml of a run, or the name of a shipped configuration")
    for path in given.ckpt_path or ():
        if not Path(path).is_file():
            raise ValueError(f"--ckpt_path {path}: " + ("this is a folder" if Path(path).is_dir() else "no such file"))
    out = given.out or _beside(given.ckpt_path)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: this is a file, and a folder is needed")
    lenses = None if given.lenses is None else [name.strip() for name in given.lenses.split(",") if name.strip()]
    check_names(lenses)
    resolved, names = resolve(others)

    from rich.console import Console

    from lit_papers.diagnose.configured import diagnose_configured

    # a run's file is always called config.yaml: the folder says more
    named = [str(_beside(given.ckpt_path).parent) if name == "config" and given.ckpt_path else name for name in names]
    title = f"Diagnosis of {named[-1]}" if named else None

    def finish(report: "Report") -> None:
        page = report.save(out)
        console = Console(highlight=False, markup=False)
        console.print(report.rich_table())
        for kind, path in (("page", page), ("numbers", page.with_suffix(".json"))):
            console.print(f"{kind:<11} {os.path.relpath(path)}", soft_wrap=True)

    diagnose_configured(
        resolved, given.ckpt_path or (), finish, lenses=lenses, minutes=given.minutes, title=title, log=given.log
    )
    return 0


def _beside(checkpoints: Sequence[str] | None) -> Path:
    """Where a report goes: into the run's folder, as its figures do."""
    if not checkpoints:
        return Path("diagnosis")
    folder = Path(checkpoints[-1]).parent
    return (folder.parent if folder.name == "checkpoints" else folder) / "diagnosis"


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not number > 0 or math.isnan(number):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return number

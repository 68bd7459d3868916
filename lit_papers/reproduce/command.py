"""``python -m lit_papers reproduce``: arguments, progress, and what is printed and written."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_papers.mistakes import INTERRUPTED, TERMINATED
from lit_papers.reproduce.claims import Claim, ClaimError, find_claims
from lit_papers.reproduce.results import ROOMS, Results, is_old, kept, kept_path, verdict_of
from lit_papers.reproduce.verdicts import FAILED, FAILS, HOLDS, NOT_RUN, WITHIN, RuleError, Verdict
from lit_papers.trials.arguments import at_least_one
from lit_papers.trials.processes import Terminated, sigterm_interrupts

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

    from lit_papers.reproduce.plan import Planned

FOLDER = Path("runs") / "reproduce"
LONGEST = 10.0  # minutes of a claim that is run without being named


def main(arguments: Sequence[str]) -> int:
    """Run claims, or list them.

    Args:
        arguments: what follows ``reproduce`` on the command line.

    Returns:
        Exit status: 0, whatever the verdicts; 1 where a run failed; 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        ClaimError: there is no such claim, a claims file is wrong, or a seed is negative.
        FolderInUseError: another command works in the same folder.
    """
    given = parser().parse_args(arguments)
    if given.seeds is not None:
        given.seeds = list(dict.fromkeys(given.seeds))  # one that is named twice says nothing of spread
        if min(given.seeds) < 0:
            raise ClaimError(f"--seeds must be at least 0, got {min(given.seeds)}")
    claims = find_claims(given.claims)
    if given.list:
        return _list(claims)
    if given.write and given.seeds is not None:
        raise ClaimError("--write keeps what a claims file asks for: run it without --seeds")
    if given.write and not (ROOMS.parent / "pyproject.toml").is_file():
        raise ClaimError("--write changes results and READMEs of a checkout, and this is an installed package")
    return _reproduce(claims, given)


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(
        prog="python -m lit_papers reproduce",
        allow_abbrev=False,
        description="Run the claims of the papers, each with several seeds, and say which hold here. Ctrl-C keeps what "
        "is finished; the same command goes on.",
    )
    made.add_argument(
        "claims",
        nargs="*",
        metavar="paper[/claim]",
        help=f"which; default: all that need {LONGEST:g} minutes or less. A longer one runs when it is named",
    )
    made.add_argument("--list", action="store_true", help="show claims, their time and their verdict; run nothing")
    made.add_argument(
        "--jobs", type=at_least_one, default=1, help="runs side by side, each with one thread (default: 1)"
    )
    made.add_argument("--seeds", type=int, nargs="+", help="instead of those of the claims")
    made.add_argument("--out", type=Path, default=FOLDER, help="folder of the runs (default: %(default)s)")
    made.add_argument(
        "--write", action="store_true", help="keep results, figures and READMEs' tables with the code of a checkout"
    )
    return made


def _console() -> "Console":
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200)  # a pipe has no width: let nothing be cut there


def _list(claims: Sequence[Claim]) -> int:
    from rich.markup import escape
    from rich.table import Table

    table = Table("claim", "says", "in the paper", "minutes", "verdict", title="python -m lit_papers reproduce <claim>")
    paper = None
    for claim in claims:
        if claim.paper != paper:
            paper = claim.paper
            table.add_section()
        results = kept(claim)
        word = verdict_of(claim, results).word
        if results is not None and word in (HOLDS, WITHIN, FAILS) and is_old(claim, results):
            word += " (as it was; changed since)"
        cells = (claim.path, claim.statement, claim.source, f"{claim.minutes:g}", word)
        table.add_row(*map(escape, cells))
    console = _console()
    console.print(table)
    console.print(f"{len(claims)} claims", highlight=False)
    return 0


def _reproduce(claims: Sequence[Claim], given: argparse.Namespace) -> int:
    from lit_papers.reproduce.plan import plan
    from lit_papers.trials.runs import alone_in

    console = _console()
    wanted = []
    for claim in claims:
        reason = _not_run(claim, given.claims)
        if reason is None:
            wanted.append(claim)
        else:
            console.print(f"{claim.path}: {reason}", soft_wrap=True, highlight=False, markup=False)
    reasons: dict[str, str] = {}
    try:
        with sigterm_interrupts(), alone_in(given.out):
            planned = plan(wanted, given.seeds, given.out)
            _run(planned, given.jobs, console, reasons)
    except KeyboardInterrupt as signal_received:
        console.print("Interrupted: finished runs are kept, and the same command goes on.", soft_wrap=True)
        return TERMINATED if isinstance(signal_received, Terminated) else INTERRUPTED
    for claim in wanted:
        _report(claim, [each for each in planned if each.claim is claim], reasons, given, console)
    if given.write:
        from lit_papers.reproduce.tables import write_readmes

        for path in write_readmes():
            _print_path(console, "written", path)
    return 1 if reasons else 0


def _not_run(claim: Claim, names: Sequence[str]) -> str | None:
    lacking = claim.lacking()
    if lacking:
        return f"{NOT_RUN} (needs {', '.join(lacking)})"
    if claim.minutes > LONGEST and claim.path not in names:
        return f"takes {claim.minutes:g} minutes: name it to run it"
    return None


def _run(planned: "Sequence[Planned]", jobs: int, console: "Console", reasons: dict[str, str]) -> None:
    """Run what is missing; ``reasons`` gets the first failure of each claim."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from lit_papers.reproduce.plan import MODULE, PRELOAD
    from lit_papers.trials.runs import Run, run_all

    owners: dict[Path, list[Planned]] = {}
    for each in planned:
        owners.setdefault(each.run.folder, []).append(each)
    missing = [shared[0].run for shared in owners.values() if shared[0].run.answer() is None]
    if not missing:
        console.print(f"all of {len(owners)} runs are there", highlight=False)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(f"0 of {len(missing)} runs", total=sum(run.weight for run in missing))
        done = 0

        def show(run: Run, reason: str | None) -> None:
            nonlocal done
            done += 1
            for each in owners[run.folder] if reason is not None else ():
                reasons.setdefault(each.claim.path, str(reason))
                said = f"{each.claim.path} {each.arm} seed {each.seed}: failed, {reason}"
                progress.console.print(said, soft_wrap=True, markup=False, highlight=False)
            progress.update(task, advance=run.weight, description=f"{done} of {len(missing)} runs")

        run_all(MODULE, missing, jobs, show, PRELOAD)


def _report(
    claim: Claim,
    planned: "Sequence[Planned]",
    reasons: dict[str, str],
    given: argparse.Namespace,
    console: "Console",
) -> None:
    """Print what came out of one claim, and write it into its folder, and into the checkout where that is asked."""
    from lit_papers.reproduce.plan import versions
    from lit_papers.reproduce.tables import arms_table

    folder = given.out / claim.path
    verdict = Verdict(FAILED, "")
    results = None
    if claim.path not in reasons:
        try:
            outcomes = [outcome for each in planned if (outcome := each.outcome()) is not None]
            results = Results.of(claim, outcomes, versions())
            verdict = verdict_of(claim, results)
        except RuleError as error:
            reasons[claim.path] = str(error)
    word = f"{FAILED} ({reasons[claim.path]})" if claim.path in reasons else verdict.word
    console.print()
    console.print(f"{claim.path}: {word}", style="bold", soft_wrap=True, highlight=False, markup=False)
    console.print(f"  {claim.statement} ({claim.source})", soft_wrap=True, highlight=False, markup=False)
    if results is None or claim.path in reasons:
        return
    results.write(folder / "results.json")
    console.print(f"  {verdict.because}", soft_wrap=True, highlight=False, markup=False)
    console.print(arms_table(claim, results), soft_wrap=True, highlight=False, markup=False)
    if given.write:
        before = kept(claim)
        if before is None or before.asked != results.asked or before.outcomes != _as_kept(results, folder):
            results.write(kept_path(claim))
            _print_path(console, "results", kept_path(claim))
    if claim.figure is not None:
        figure = _figure(claim.figure, results)
        path = folder / f"{claim.name}.png"
        figure.savefig(path)
        if given.write:
            path = ROOMS / claim.paper / f"{claim.name}.png"
            figure.savefig(path)
        _print_path(console, "figure", path)


def _as_kept(results: Results, folder: Path) -> tuple[Any, ...]:
    """The outcomes with the digits that a file has."""
    return Results.read(folder / "results.json").outcomes


def _figure(path: str, results: Results) -> "Figure":
    """What a function of the paper's room draws of the outcomes."""
    module, _, name = path.rpartition(".")
    figure: Figure = getattr(importlib.import_module(module), name)(results.outcomes)
    return figure


def _print_path(console: "Console", kind: str, path: Path) -> None:
    console.print(f"{kind:<11} {os.path.relpath(path)}", soft_wrap=True, highlight=False, markup=False)

"""``python -m lit_papers sweep``: arguments, progress, and what is printed in the end."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lit_papers.extras import install_command
from lit_papers.mistakes import INTERRUPTED, TERMINATED
from lit_papers.trials.arguments import at_least_one
from lit_papers.trials.processes import Terminated, sigterm_interrupts
from lit_papers.tuning.sweep_file import Sweep, SweepFileError, find_sweep, read_sweep

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from rich.console import Console

    from lit_papers.tuning.search import Search

FOLDER = Path("runs") / "sweeps"


def main(arguments: Sequence[str]) -> int:
    """Run one sweep on this machine.

    Args:
        arguments: what follows ``sweep`` on the command line.

    Returns:
        Exit status: 0 where a trial is complete; 1 where none is; 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        SweepFileError: the file is wrong, or wants what only W&B's servers do.
        ImportError: Optuna is missing.
        SearchError: the search cannot go on.
        StorageError: the database cannot be used.
    """
    given = sweep_parser().parse_args(arguments)
    sweep = read_sweep(find_sweep(given.sweep))
    trials = _number_of_trials(sweep, given.trials)
    if find_spec("optuna") is None:
        raise ImportError(f"a sweep on this machine needs Optuna, of lit-papers[sweep]: {install_command('sweep')}")
    return _search(sweep, trials, given.jobs, given.storage)


def sweep_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m lit_papers sweep",
        allow_abbrev=False,
        description="Search hyperparameters on this machine with Optuna, by the file of a Weights & Biases sweep. "
        "Ctrl-C keeps what is finished; the same command goes on.",
    )
    parser.add_argument("sweep", help="a sweep file, or the name of a shipped one such as neural_collapse")
    parser.add_argument(
        "--trials",
        type=at_least_one,
        help="trials of the study in all (default: the file's run_cap, or its whole grid)",
    )
    parser.add_argument("--jobs", type=at_least_one, default=1, help="trials side by side (default: 1)")
    parser.add_argument(
        "--storage",
        help="database URL of the study, which several machines may share "
        "(default: sqlite file in runs/sweeps/<name of the sweep>)",
    )
    return parser


def _number_of_trials(sweep: Sweep, asked: int | None) -> int:
    if sweep.method == "grid":
        return min(asked or sweep.run_cap or sweep.grid_size, sweep.grid_size)
    number = asked or sweep.run_cap
    if number is None:
        raise SweepFileError("--trials is missing, and the file has no run_cap")
    return number


def _search(sweep: Sweep, trials: int, jobs: int, storage: str | None) -> int:
    import optuna
    from rich.console import Console
    from sqlalchemy.exc import SQLAlchemyError

    from lit_papers.tuning.search import Search, resolve
    from lit_papers.tuning.storage import StorageError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = FOLDER / sweep.name
    folder.mkdir(parents=True, exist_ok=True)
    storage = storage or f"sqlite:///{(folder / 'study.db').resolve()}"
    console = Console(width=None if sys.stdout.isatty() else 160)
    search = None
    try:
        with sigterm_interrupts():
            resolve(sweep, sweep.an_example(), folder)  # a misspelt key is found before any trial begins
            search = Search(sweep, folder, storage)
            _run(search, trials, jobs, console)
            return _report(search, console)
    except KeyboardInterrupt as signal_received:
        if search is not None:
            _print_trials(search, console)
        console.print("Interrupted: finished trials are kept, and the same command goes on.", soft_wrap=True)
        return TERMINATED if isinstance(signal_received, Terminated) else INTERRUPTED
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError, ImportError) as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise StorageError(f"the study's storage {_without_password(storage)} cannot be used: {cause}") from error
    finally:
        if search is not None:
            search.close()


def _run(search: "Search", trials: int, jobs: int, console: "Console") -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from lit_papers.tuning.results import describe, ended

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[best]}"), console=console) as progress:
        task = progress.add_task(search.sweep.name, total=trials, completed=len(ended(search.study)), best="")

        def show(trial: "FrozenTrial | None") -> None:
            if trial is not None:
                progress.console.print(describe(trial, search.sweep), soft_wrap=True, markup=False)
            known = ended(search.study)
            is_success = bool(known) and known[0].value is not None
            best = f"best {known[0].value:.4g} (trial {known[0].number})" if is_success else ""
            progress.update(task, completed=len(known), best=best)

        show(None)
        search.run(trials, jobs, on_finish=show)


def _print_trials(search: "Search", console: "Console") -> None:
    from lit_papers.tuning.results import summary, table

    console.print(table(search.study, search.sweep))
    console.print(summary(search.study), soft_wrap=True)


def _report(search: "Search", console: "Console") -> int:
    """Print the trials, draw the figures and write the best configuration."""
    from optuna.trial import TrialState

    from lit_papers.tuning.results import write_best
    from lit_papers.tuning.search import resolve, values_of
    from lit_papers.tuning.storage import PATIENCE

    study, sweep, folder = search.study, search.sweep, search.folder
    _print_trials(search, console)
    elsewhere = len(study.get_trials(deepcopy=False, states=[TrialState.RUNNING]))
    if elsewhere:
        console.print(
            f"{elsewhere} more are marked as running, by other machines or processes; those that are gone for good are "
            f"taken back by the same command, of another machine after {PATIENCE} seconds.",
            soft_wrap=True,
        )
    if not study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
        print("error: no trial is complete", file=sys.stderr)
        return 1

    from lit_papers.tuning.figures import write_figures  # imports Lightning, which takes seconds

    for figure in write_figures(folder, study, sweep):
        _print_path(console, "figure", figure)
    best = folder / "best.yaml"
    write_best(best, study, sweep, resolve(sweep, values_of(sweep, study.best_params), folder))
    _print_path(console, "best", best)
    console.print(f"{'run it':<11} python -m lit_papers fit --config {best}", soft_wrap=True, highlight=False)
    return 0


def _print_path(console: "Console", kind: str, path: Path) -> None:
    console.print(f"{kind:<11} {os.path.relpath(path)}", soft_wrap=True, highlight=False, markup=False)


def _without_password(url: str) -> str:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "that --storage names"

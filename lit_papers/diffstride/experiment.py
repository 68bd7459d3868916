"""Accuracy against cost over a grid of initial strides: ``python -m lit_papers.diffstride.experiment``.

DiffStride is compared at equal map sizes, and so at equal cost, with spectral pooling of the strides that are given.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from lit_papers.diffstride.matching import MATCHES
from lit_papers.diffstride.pooling import Pooling
from lit_papers.plotting import STYLES, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Cell:
    """One training run of the grid.

    Attributes:
        config: name or path of the configuration.
        pooling: one of `Pooling`.
        strides: initial strides, as in the configuration: ``"1,1,2,2"``.
        weight: of the complexity penalty.
        seed: of everything.
        match: what DiffStride begins with: the map ``"sizes"`` of spectral pooling at these strides, its ``"macs"``, or
            the ``"strides"`` themselves; empty for baselines.
        overrides: further options of ``fit``, as typed.
    """

    config: str
    pooling: str
    strides: str
    weight: float
    seed: int
    match: str = "sizes"
    overrides: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """The command line of the run."""
        own = [f"--model.match={self.match}"] if self.pooling == "diffstride" else ["--trainer.callbacks=null"]
        return [
            "fit", "--config", self.config, f"--seed_everything={self.seed}", f"--model.model.pooling={self.pooling}",
            f"--model.model.strides=[{self.strides}]", f"--model.complexity_weight={self.weight}",
            "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
            "--trainer.enable_checkpointing=false", *own, *self.overrides,
        ]  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a run ended with.

    Attributes:
        cell: which run.
        accuracy: on the test split, in [0, 1].
        gmacs_before: 1e9 multiply-adds for each sample at the initial strides.
        gmacs_after: at the final ones.
        strides_after: of each layer, in module order; empty for baselines.
        epochs: trained.
        seconds: it took.
    """

    cell: Cell
    accuracy: float
    gmacs_before: float
    gmacs_after: float
    strides_after: list[list[float]]
    epochs: int
    seconds: float


def grid(
    config: str,
    poolings: Sequence[str],
    strides: Sequence[str],
    weights: Sequence[float],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    match: str = "sizes",
) -> list[Cell]:
    """All combinations; the penalty is for DiffStride alone, as baselines have nothing that it could change.

    >>> len(grid("diffstride/digits", ["strided", "diffstride"], ["1,1,2,2"], [0.0, 0.1], [0, 1]))
    6
    """
    return [
        Cell(config, pooling, stride, weight, seed, match if pooling == "diffstride" else "", tuple(overrides))
        for seed, stride, pooling, weight in itertools.product(seeds, strides, poolings, weights)
        if pooling == "diffstride" or weight == weights[0]
    ]


def run_cell(cell: Cell, folder: Path) -> Outcome:
    """Train and test one cell, through the very command line that users have; its output goes to a log.

    Args:
        cell: what to train.
        folder: gets ``logs/<the cell's name>.log``.

    Raises:
        RuntimeError: the run failed; the message names the log.
    """
    # the command line brings all papers, which a paper does not import
    from lit_papers.catalog import find_config
    from lit_papers.lightning_cli import PapersCLI

    matched = f"_{cell.match}" if cell.match else ""
    log = folder / "logs" / f"{cell.pooling}{matched}_{cell.strides}_{cell.weight:g}_{cell.seed}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    for name in ("lightning.pytorch", "lightning.fabric"):  # their handlers would write into the progress bar
        logging.getLogger(name).setLevel(logging.WARNING)
    begin = time.perf_counter()
    with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            arguments = cell.arguments
            arguments[2] = str(find_config(cell.config) or cell.config)
            cli = PapersCLI("experiment", [*arguments, "--trainer.logger=false"])
            (tested,) = cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
        except BaseException as error:
            print(error, file=file)
            raise RuntimeError(f"{' '.join(cell.arguments)} failed, see {log}: {error}") from None
    return Outcome(
        cell, tested["test/accuracy"], *_costs(cli), [layer.strides.tolist() for layer in cli.model.stride_layers],
        cli.trainer.current_epoch, time.perf_counter() - begin,
    )  # fmt: skip


def _costs(cli: Any) -> tuple[float, float]:
    import torch

    from lit_papers.diffstride.layers import CostCounter

    (inputs, _) = next(iter(cli.datamodule.test_dataloader()))
    with torch.no_grad(), CostCounter(cli.model.eval()) as counter:
        cli.model(inputs[:1])
    after = counter.macs / 1e9
    histories = [callback.history for callback in cli.trainer.callbacks if hasattr(callback, "history")]
    return (histories[0][0]["gmacs"] if histories else after), after


def run(cells: Sequence[Cell], folder: Path, jobs: int) -> list[Outcome]:
    """Run what has not run yet; outcomes are kept in ``results.jsonl``, line by line.

    Args:
        cells: the grid.
        folder: of the results.
        jobs: processes at a time.

    Returns:
        An outcome for each cell, in their order.

    Raises:
        RuntimeError: a run failed; others were finished and kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.jsonl"
    done = {outcome.cell: outcome for outcome in load(file)}
    missing = [cell for cell in cells if cell not in done]
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    # spawned anew for each run: a forked process would inherit threads, and runs each other's global state
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1)
    failed: list[BaseException] = []
    with Progress(*columns) as bar, pool:
        task = bar.add_task("runs", total=len(missing))
        try:
            for future in as_completed([pool.submit(run_cell, cell, folder) for cell in missing]):
                error = future.exception()
                if error is not None:
                    failed.append(error)
                else:
                    outcome = future.result()
                    done[outcome.cell] = outcome
                    with file.open("a") as lines:
                        lines.write(json.dumps(asdict(outcome)) + "\n")
                bar.advance(task)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(missing)} runs failed; the first: {failed[0]}")
    return [done[cell] for cell in cells]


def load(file: Path) -> Iterator[Outcome]:
    """The outcomes in a ``results.jsonl``; none if there is no such file."""
    for line in file.read_text().splitlines() if file.is_file() else ():
        fields = json.loads(line)
        cell = fields.pop("cell")
        yield Outcome(Cell(**{**cell, "overrides": tuple(cell["overrides"])}), **fields)


def groups(outcomes: Sequence[Outcome]) -> dict[tuple[str, str, float], list[Outcome]]:
    """Outcomes that differ in the seed alone, by strides, pooling (and what was matched) and weight."""
    found: dict[tuple[str, str, float], list[Outcome]] = {}
    for outcome in outcomes:
        cell = outcome.cell
        found.setdefault((cell.strides, cell.pooling, cell.weight), []).append(outcome)
    return found


def table(outcomes: Sequence[Outcome]) -> str:
    """A Markdown table: mean and standard deviation of the accuracy over seeds, and the cost of a sample."""
    lines = ["| initial strides | pooling | weight | accuracy, % | MMAC at start | MMAC at end | minutes a run |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for (strides, pooling, weight), same in groups(outcomes).items():
        before, after = (
            statistics.mean(getattr(each, f"gmacs_{when}") for each in same) for when in ("before", "after")
        )
        minutes = statistics.mean(each.seconds for each in same) / 60
        shown = f"{weight:g}" if pooling == "diffstride" else ""
        lines.append(
            f"| ({strides.replace(',', ', ')}) | {pooling} | {shown} | {_spread(same)} "
            f"| {1e3 * before:.2f} | {1e3 * after:.2f} | {minutes:.1f} |"
        )
    return "\n".join(lines)


def _spread(outcomes: Sequence[Outcome]) -> str:
    accuracies = [100 * outcome.accuracy for outcome in outcomes]
    spread = f" ± {statistics.stdev(accuracies):.2f} ({len(accuracies)})" if len(accuracies) > 1 else ""
    return f"{statistics.mean(accuracies):.2f}{spread}"


def plot(outcomes: Sequence[Outcome]) -> Figure:
    """Accuracy against the final cost: a point for each group, its error bar the standard deviation over seeds."""
    figure, (axis,) = new_figure(1, 1)
    figure.set_size_inches(6.4, 4.4)
    for pooling, style in zip(get_args(Pooling), STYLES, strict=False):
        labelled = False
        for (strides, kind, weight), same in groups(outcomes).items():
            if kind != pooling:
                continue
            accuracies = [100 * each.accuracy for each in same]
            spread = statistics.stdev(accuracies) if len(same) > 1 else math.nan
            cost = 1e3 * statistics.mean(each.gmacs_after for each in same)
            mean = statistics.mean(accuracies)
            axis.errorbar(
                cost, mean, spread, **{**style, "linestyle": "none"}, capsize=3, label=None if labelled else pooling
            )
            note = strides + (f", λ={weight:g}" if weight else "")
            axis.annotate(note, (cost, mean), xytext=(5, 4), textcoords="offset points", fontsize="x-small")
            labelled = True
    axis.set_xscale("log")
    axis.set(xlabel=r"cost of a sample after training ($10^6$ multiply-adds)", ylabel="test accuracy (%)")
    axis.margins(x=0.25)
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the grid, print the table and draw the figure."""
    parser = argparse.ArgumentParser(prog="python -m lit_papers.diffstride.experiment", description=__doc__)
    parser.add_argument("--config", default="diffstride/digits", help="configuration with a network that has strides")
    parser.add_argument("--pooling", nargs="+", choices=get_args(Pooling), default=list(get_args(Pooling)))
    parser.add_argument("--strides", nargs="+", default=["1,1,2,2", "1,1,3,2", "1,1,1,3"], metavar="S,S,...")
    parser.add_argument("--weights", nargs="+", type=float, default=[0.0], help="of the complexity penalty")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--match", choices=MATCHES, default="sizes",
        help="DiffStride at equal map sizes (sizes) or equal cost in multiply-adds (macs) with spectral pooling of the "
        "strides given, or at these strides themselves, where it costs several times as much (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/diffstride/experiment"), help="folder of the results")
    parser.add_argument("overrides", nargs="*", help="further options of `fit`, after a lone --")
    chosen = parser.parse_args(arguments)
    if chosen.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {chosen.jobs}")
    cells = grid(
        chosen.config, chosen.pooling, chosen.strides, chosen.weights, chosen.seeds, chosen.overrides,
        chosen.match,
    )  # fmt: skip
    outcomes = run(cells, chosen.out, chosen.jobs)
    Console().print(table(outcomes), soft_wrap=True, highlight=False, markup=False)
    figure = chosen.out / "accuracy_against_cost.png"
    plot(outcomes).savefig(figure)
    (chosen.out / "table.md").write_text(table(outcomes) + "\n")
    print(f"figure      {figure}")


if __name__ == "__main__":
    main()

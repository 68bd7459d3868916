"""Methods beside each other, over seeds: ``python -m lit_papers.continual.experiment``."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from lit_papers.locations import MissingDataError
from lit_papers.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = (
    "Finetune", "SI", "PNN", "DER", "LUMP", "CaSSLe", "AGEM", "GSS", "ER", "DERpp", "EWC", "LwF", "ICaRL", "Multitask"
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What one run ended with.

    Attributes:
        method: one of `METHODS`, or a method with its arguments, as typed.
        seed: of everything.
        accuracy: average accuracy, in [0, 1].
        forgetting: by the convention of the configuration.
        knn_accuracy: of the nearest neighbours among each task's own images, averaged over tasks.
        transfer: accuracy on each further data set, by name.
        seconds: it took.
        settings: configuration, hash of its content, and options: a finished run of others is not read again.
        knn_accuracy_seen: of the nearest neighbours among the images of all tasks seen, averaged over tasks.
    """

    method: str
    seed: int
    accuracy: float
    forgetting: float
    knn_accuracy: float
    transfer: dict[str, float]
    seconds: float
    settings: str = ""
    knn_accuracy_seen: float = math.nan


def arguments_of(method: str) -> list[str]:
    """The options of ``fit`` that choose a method.

    Args:
        method: one of `METHODS`, with arguments behind a colon if need be: ``"DER:alpha=0.5,buffer_size=100"``.

    Raises:
        ValueError: there is no such method.

    >>> arguments_of("DER:alpha=0.5")
    ['--model.method=lit_papers.continual.methods.DER', '--model.method.alpha=0.5']
    >>> arguments_of("Multitask")
    ['--model.method=lit_papers.continual.methods.Finetune', '--data.multitask=true']
    """
    name, _, given = method.partition(":")
    if name not in METHODS:
        raise ValueError(f"the method must be one of {', '.join(METHODS)}, got {name!r}")
    kind = "Finetune" if name == "Multitask" else name
    options = [f"--model.method=lit_papers.continual.methods.{kind}"]
    options += [f"--model.method.{option}" for option in given.split(",") if option]
    return options + (["--data.multitask=true"] if name == "Multitask" else [])


def run(config: str, method: str, seed: int, folder: Path, ood: Sequence[str], overrides: Sequence[str]) -> Outcome:
    """Train one method, through the very command line that users have; or read what it ended with before.

    Args:
        config: shipped name or path.
        method: as in `arguments_of`.
        seed: of everything.
        folder: keeps log and outcome of the run; a finished one is not repeated.
        ood: names of data sets on which the features are judged at the end, as of ``TaskSequence``.
        overrides: further options of ``fit``, as typed.

    Raises:
        ValueError: the folder holds a run of other settings, or there is no such configuration.
        RuntimeError: the run failed; the message names the log.
        MissingDataError: there are no data.
    """
    # the command line brings all papers and data modules, which a paper does not import
    from lit_papers.catalog import find_config
    from lit_papers.lightning_cli import PapersCLI

    path = find_config(config) or Path(config)
    if not path.is_file():
        raise ValueError(f"--config {config}: no such file, and no shipped configuration of that name")
    content = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    settings = shlex.join([config, content, method, str(seed), *ood, *overrides])
    done = folder / "outcome.json"
    if done.is_file():
        found_before = json.loads(done.read_text())
        if found_before.get("settings") != settings:
            raise ValueError(
                f"{folder} holds a run of other settings ({found_before.get('settings') or 'unknown'}); "
                "give another --out"
            )
        return Outcome(**found_before)
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    arguments = [
        "fit", "--config", str(path), f"--seed_everything={seed}", f"--model.seed={seed}",
        f"--data.seed={seed}", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
        "--trainer.logger=false", *arguments_of(method), *overrides,
    ]  # fmt: skip
    with (folder / "log.txt").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            cli = PapersCLI("experiment", [*arguments, f"--trainer.default_root_dir={folder}"])
            callbacks: Any = cli.trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it in a connector
            (forgetting,) = [c for c in callbacks if type(c).__name__ == "Forgetting"]
            found = cli.trainer.callback_metrics
            knn, seen = (
                [float(value) for name, value in found.items() if name.startswith(f"val/{key}/")]
                for key in ("knn_accuracy", "knn_accuracy_seen")
            )
            transfer = {name: _transfer(cli, name) for name in ood}
        except MissingDataError:
            raise
        except BaseException as error:
            print(error, file=log)
            raise RuntimeError(f"{' '.join(arguments)} failed, see {log.name}: {error}") from error
    outcome = Outcome(
        method, seed, forgetting.average_accuracy, forgetting.forgetting, statistics.mean(knn), transfer,
        time.perf_counter() - begin, settings, statistics.mean(seen),
    )  # fmt: skip
    done.write_text(json.dumps(asdict(outcome)))
    forgetting.plot().savefig(folder / "forgetting.png")
    return outcome


def _transfer(cli: Any, name: str) -> float:
    from lit_papers.continual.evaluation import out_of_distribution_accuracy
    from lit_papers.datamodules import TaskSequence

    images, _ = next(iter(cli.datamodule.memory_dataloader(0)))
    other = TaskSequence(name, num_tasks=1)
    other.setup()
    cli.model.eval()
    return out_of_distribution_accuracy(cli.model, other, tuple(images.shape[1:]))


def table(outcomes: Sequence[Outcome]) -> str:
    """Mean and standard deviation over seeds, in %, as Markdown.

    >>> runs = [Outcome("LUMP", seed, 0.9 - seed / 10, 0.05 - seed / 50, 0.9, {}, 1.0, "", 0.7) for seed in (0, 1)]
    >>> print(table(runs))
    | method | seeds | average accuracy | forgetting | KNN in a task | KNN over all |
    |---|---|---|---|---|---|
    | LUMP | 2 | 85.0 ± 7.1 | 4.0 ± 1.4 | 90.0 ± 0.0 | 70.0 ± 0.0 |
    """
    names = list(outcomes[0].transfer)
    head = ["method", "seeds", "average accuracy", "forgetting", "KNN in a task", "KNN over all"]
    head += [f"KNN on {name}" for name in names]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for method, group in _by_method(outcomes).items():
        columns = [[o.accuracy for o in group], [o.forgetting for o in group], [o.knn_accuracy for o in group]]
        columns += [[o.knn_accuracy_seen for o in group]]
        columns += [[o.transfer[name] for o in group] for name in names]
        lines.append("| " + " | ".join([method, str(len(group)), *(_spread(column) for column in columns)]) + " |")
    return "\n".join(lines)


def figure(outcomes: Sequence[Outcome]) -> Figure:
    """Average accuracy and forgetting of each method, a point a seed.

    Raises:
        ImportError: matplotlib is missing.
    """
    drawn, axes = new_figure(1, 2)
    groups = _by_method(outcomes)
    labels = ("average accuracy (%)", "forgetting (points)")
    for axis, attribute, label in zip(axes, ("accuracy", "forgetting"), labels, strict=True):
        for place, group in enumerate(groups.values()):
            values = [100 * getattr(outcome, attribute) for outcome in group]
            axis.plot(values, [place] * len(values), "o", color="black", fillstyle="none")
            axis.plot(statistics.mean(values), place, "|", color="black", markersize=18)
        axis.set_yticks(range(len(groups)), list(groups))
        axis.invert_yaxis()
        axis.set_ylabel("method")
        axis.set_xlabel(label)
        axis.grid(axis="x", linewidth=0.4)
    return drawn


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not finished, then write and print the table, and draw it.

    Args:
        arguments: of the command line; None for ``sys.argv``.

    Returns:
        Exit status: 0 for success, 1 where the data are missing.
    """
    options = _parser().parse_args(arguments)
    for method in options.methods:
        arguments_of(method)  # refuses before hours are spent
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    jobs = [(method, seed) for seed in options.seeds for method in options.methods]
    outcomes: list[Outcome] = []
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console()) as progress:
        bar = progress.add_task("", total=len(jobs))
        for method, seed in jobs:
            progress.update(bar, description=f"{method}, seed {seed}")
            folder = options.out / f"{method.replace(':', '_')}_{seed}"
            try:
                outcomes.append(run(options.config, method, seed, folder, options.ood, options.overrides))
            except (MissingDataError, ValueError) as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
            progress.advance(bar)
    outcomes.sort(key=lambda outcome: options.methods.index(outcome.method))
    minutes = sum(outcome.seconds for outcome in outcomes) / 60
    text = f"`--config {options.config}`, {minutes:.1f} minutes in all.\n\n{table(outcomes)}\n"
    (options.out / "table.md").write_text(text)
    figure(outcomes).savefig(options.out / "comparison.png")
    print(text)
    for name in ("table.md", "comparison.png"):
        print(options.out / name)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lit_papers.continual.experiment", description=__doc__)
    parser.add_argument("--config", default="continual/digits", help="shipped name or path (default: %(default)s)")
    parser.add_argument(
        "--methods", nargs="+", default=["Finetune", "SI", "PNN", "DER", "LUMP", "Multitask"],
        help=f"of {', '.join(METHODS)}, with arguments as in DER:alpha=0.5 (default: those without labels)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--ood", nargs="+", default=[], help="data sets by name, to judge the features on at the end")
    parser.add_argument("--out", type=Path, default=Path("experiment"), help="folder; finished runs in it are kept")
    parser.add_argument(
        "overrides", nargs="*", help="after `--`: options of `python -m lit_papers fit`, such as --data.root=FOLDER"
    )
    return parser


def _by_method(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    return {name: [o for o in outcomes if o.method == name] for name in dict.fromkeys(o.method for o in outcomes)}


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


if __name__ == "__main__":
    sys.exit(main())

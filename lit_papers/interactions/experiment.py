"""The paper's comparison: networks biased to low, middle and high orders beside the ordinary one, over seeds.

``python -m lit_papers.interactions.experiment --config interactions/adult --seeds 0 1 2 --out adult``
"""

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from torch import Tensor

from lit_papers import catalog
from lit_papers.interactions.evaluation import (
    masking_curve,
    pgd_accuracy,
    plot_masking_curves,
    structural_sensitivity,
)
from lit_papers.interactions.losses import ORDER_BIAS
from lit_papers.interactions.players import PatchGrid
from lit_papers.interactions.samples import balanced
from lit_papers.locations import MissingDataError
from lit_papers.plotting import STYLES, log_scale, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRACTIONS = tuple(k / 10 for k in range(11))


@dataclass(frozen=True)
class Attack:
    """How networks are attacked; see `lit_papers.interactions.evaluation.pgd_accuracy`.

    Attributes:
        eps: largest change of an input.
        step_size: change in the first steps; None leaves it to ``eps`` and ``steps``.
        steps: how many steps.
        samples: test samples that are attacked, and masked if they are images; balanced over classes.
    """

    eps: float = 0.6
    step_size: float | None = None
    steps: int = 100
    samples: int = 2000


@dataclass(frozen=True)
class Cell:
    """What one trained network came to.

    Attributes:
        command: options of the run, fingerprint of its configuration, and the attack: what a finished cell must
            share with the one that is asked for.
        bias: a key of `ORDER_BIAS`.
        seed: of weights, batches and masks.
        test_accuracy: on all test samples.
        pgd_accuracy: under attack.
        orders: the measured orders m.
        n_players: how many players there are.
        strength: S of each order, after training.
        relative_strength: J of each order, after training.
        untrained: J of each order, before training.
        random: accuracy at each of ``FRACTIONS`` of masked patches, at random; None for tables.
        border: likewise, from the border inwards.
        seconds: training and measuring.
    """

    command: str
    bias: str
    seed: int
    test_accuracy: float
    pgd_accuracy: float
    orders: list[int]
    n_players: int
    strength: list[float]
    relative_strength: list[float]
    untrained: list[float]
    random: list[float] | None
    border: list[float] | None
    seconds: float

    @property
    def area(self) -> float:
        """Between the masking curves; NaN for tables."""
        if self.random is None or self.border is None:
            return math.nan
        return structural_sensitivity(FRACTIONS, torch.tensor(self.random), torch.tensor(self.border))


def run_cell(config: str, bias: str, seed: int, folder: Path, attack: Attack, overrides: Sequence[str] = ()) -> Cell:
    """Train one network through the command line's own configuration, or read what an earlier call found.

    Args:
        config: name of a shipped configuration, or a path; with `lit_papers.callbacks.InteractionStrength` in it.
        bias: a key of `ORDER_BIAS`.
        seed: of weights, batches and masks.
        folder: of this cell: logs, figure, checkpoint and ``cell.json``.
        attack: how the network is attacked.
        overrides: further options of ``python -m lit_papers fit``.

    Returns:
        The results.

    Raises:
        ValueError: the folder holds a cell of other settings, there is no such configuration, it measures no
            interactions, or the network learned nothing.
        MissingDataError: the data are missing.
    """
    ranges = {mode: list(ORDER_BIAS[bias].get(mode, [])) or "null" for mode in ("encourage", "penalize")}
    path = catalog.find_config(config) or Path(config)
    if not path.is_file():
        raise ValueError(f"--config {config}: no such file, and no shipped configuration of that name")
    arguments = [
        "fit",
        f"--config={path}",
        f"--seed_everything={seed}",
        *(f"--model.{mode}={range_}" for mode, range_ in ranges.items()),
        "--trainer.logger=CSVLogger",
        f"--trainer.logger.save_dir={folder.parent}",
        f"--trainer.logger.name={folder.name}",
        "--trainer.logger.version=",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        *overrides,
    ]
    content = hashlib.sha256(path.read_bytes()).hexdigest()[:16]  # the file may change between two calls
    command = f"{shlex.join([f'--config={config}', *arguments[2:5], *overrides])} {content} {attack}"
    finished = folder / "cell.json"
    if finished.is_file():
        cell = Cell(**json.loads(finished.read_text()))
        if cell.command != command:
            raise ValueError(f"{finished} was made by other settings: choose another --out, or delete it")
        return cell

    cell = _train_and_measure(arguments, command, bias, seed, attack)
    unfinished = folder / "cell.json.part"  # so that a cell is there as a whole, or not at all
    unfinished.write_text(json.dumps(asdict(cell), indent=1))
    unfinished.replace(finished)
    return cell


def _train_and_measure(arguments: Sequence[str], command: str, bias: str, seed: int, attack: Attack) -> Cell:
    started = time.perf_counter()
    trainer, model, data = _fit(arguments)
    measured = next((c for c in trainer.callbacks if type(c).__name__ == "InteractionStrength"), None)
    if measured is None:
        raise ValueError(
            "the configuration measures no interactions: give its trainer the callback InteractionStrength"
        )
    by_epoch = {entry["epoch"]: entry for entry in measured.history}
    if "reason" in by_epoch[trainer.current_epoch]:
        raise ValueError(f"{bias}, seed {seed}: after training no sample is classified correctly, so none was measured")
    trained, control = by_epoch[trainer.current_epoch], by_epoch[0]
    (tested,) = trainer.test(model, data, verbose=False)
    device = trainer.strategy.root_device
    model.to(device)
    x, y = (tensor.to(device) for tensor in _balanced(data.test_dataloader(), attack.samples))
    accuracy = pgd_accuracy(
        model, x, y, attack.eps, attack.step_size, attack.steps, torch.Generator().manual_seed(seed)
    )
    curves: dict[str, list[float]] = {}
    if isinstance(measured.lens.players, PatchGrid):
        for layout in ("random", "border"):
            generator = torch.Generator().manual_seed(seed)
            baseline = measured.lens.estimator["baseline"]
            curve = masking_curve(model, measured.lens.players, x, y, FRACTIONS, layout, baseline, generator)
            curves[layout] = curve.tolist()
    return Cell(
        command=command,
        bias=bias,
        seed=seed,
        test_accuracy=tested["test/acc"],
        pgd_accuracy=accuracy,
        orders=trained["orders"],
        n_players=measured.lens.players.n_players,
        strength=trained["strength"],
        relative_strength=trained["relative_strength"],
        untrained=control["relative_strength"],
        random=curves.get("random"),
        border=curves.get("border"),
        seconds=time.perf_counter() - started,
    )


def table(cells: Sequence[Cell]) -> str:
    """A Markdown table, one row a bias: mean over seeds, plus or minus the standard deviation.

    Args:
        cells: of any biases and seeds.

    Returns:
        The lines of the table.
    """
    images = cells[0].random is not None
    head = ["bias", "seeds", "test accuracy", "PGD accuracy", "J(0)", "J(n-2)", "J(0) of each seed", "mean S"]
    rows = [[*head, *(["area between masking curves"] if images else [])]]
    rows.append(["---"] * len(rows[0]))
    for bias, group in _by_bias(cells).items():
        row = [
            bias,
            str(len(group)),
            _spread([cell.test_accuracy for cell in group]),
            _spread([cell.pgd_accuracy for cell in group]),
            _spread([cell.relative_strength[0] for cell in group], 2),
            _spread([cell.relative_strength[-1] for cell in group], 2),
            " ".join(f"{cell.relative_strength[0]:.2f}" for cell in group),
            _spread([statistics.mean(cell.strength) for cell in group]),
        ]
        rows.append([*row, *([_spread([cell.area for cell in group])] if images else [])])
    untrained = [cell.untrained for cell in cells if cell.bias == cells[0].bias]
    control = [_spread([j[k] for j in untrained], 2) for k in (0, -1)]
    each = " ".join(f"{j[0]:.2f}" for j in untrained)
    rows.append(["untrained", str(len(untrained)), "", "", *control, each, "", *([""] if images else [])])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def comparison_figure(cells: Sequence[Cell]) -> Figure:
    """J and S of each order by bias, and the accuracies; thin lines and small points are single seeds.

    Args:
        cells: of any biases and seeds.

    Returns:
        A figure of three panels.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure, (relative, raw, accuracy) = new_figure(1, 3)
    place = [m / max(1, cells[0].n_players - 2) for m in cells[0].orders]
    groups = _by_bias(cells)
    for axis, key in ((relative, "relative_strength"), (raw, "strength")):
        for style, (bias, group) in zip(STYLES, groups.items(), strict=False):
            curves = [getattr(cell, key) for cell in group]
            for curve in curves if len(curves) > 1 else []:
                axis.plot(place, curve, color=style["color"], linewidth=0.5, alpha=0.6)
            mean = [statistics.mean(values) for values in zip(*curves, strict=True)]
            axis.plot(place, mean, label=bias, markersize=4, **style)
    untrained = [cell.untrained for cell in groups[cells[0].bias]]
    control = [statistics.mean(values) for values in zip(*untrained, strict=True)]
    relative.plot(place, control, color="0.5", linewidth=3, zorder=0, label="untrained")
    relative.set(xlabel="order of interaction m / (n - 2)", ylabel="relative strength J")
    relative.set_ylim(bottom=0)
    relative.legend(fontsize=8)
    raw.set(xlabel="order of interaction m / (n - 2)", ylabel="strength S [log-odds]")
    log_scale(raw)
    for k, (key, label) in enumerate((("test_accuracy", "test"), ("pgd_accuracy", "under attack (PGD)"))):
        for position, group in enumerate(groups.values()):
            values = [getattr(cell, key) for cell in group]
            marker, color = STYLES[k]["marker"], STYLES[k]["color"]
            accuracy.plot([position] * len(values), values, marker, color=color, markersize=4, alpha=0.6)
            middle = statistics.mean(values)
            name = label if position == 0 else None
            accuracy.plot([position], [middle], marker, color=color, markersize=9, fillstyle="none", label=name)
    accuracy.set_xticks(range(len(groups)), list(groups))
    accuracy.set(xlabel="bias", ylabel="accuracy", ylim=(0, 1.05), xlim=(-0.5, len(groups) - 0.5))
    accuracy.legend(fontsize=8, loc="center")
    for axis in (relative, raw, accuracy):
        axis.grid(alpha=0.3, which="both")
    return figure


def masking_figure(cells: Sequence[Cell]) -> Figure:
    """The masking curves of each bias, averaged over seeds, with the area between them.

    Args:
        cells: of any biases and seeds, on images.

    Returns:
        A figure with a panel for each bias.

    Raises:
        ImportError: matplotlib is missing.
    """
    groups = _by_bias(cells)
    figure, axes = new_figure(1, len(groups))
    for axis, (bias, group) in zip(axes, groups.items(), strict=True):
        random, border = (
            torch.tensor([getattr(cell, layout) for cell in group], dtype=torch.float64).mean(dim=0)
            for layout in ("random", "border")
        )
        plot_masking_curves(FRACTIONS, random, border, ax=axis)
        axis.set_title(bias, fontsize=10)
        axis.set_ylim(0, 1)
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all cells that are not finished, then write and print the table and write the figures.

    Args:
        arguments: of the command line; None for ``sys.argv``.

    Returns:
        Exit status: 0 for success, 1 where the data are missing.
    """
    options = _parser().parse_args(arguments)
    attack = Attack(options.eps, options.step_size, options.steps, options.samples)
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    jobs = [(bias, seed) for seed in options.seeds for bias in options.biases]
    cells = []
    console = Console()
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(jobs))
        for bias, seed in jobs:
            progress.update(task, description=f"{bias}, seed {seed}")
            folder = options.out / f"{bias}_{seed}"
            try:
                cells.append(run_cell(options.config, bias, seed, folder, attack, options.overrides))
            except MissingDataError as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
            progress.advance(task)
    minutes = sum(cell.seconds for cell in cells) / 60
    about = f"`--config {options.config}`, {attack.samples} test samples attacked with eps {attack.eps} in "
    about += f"{attack.steps} steps; {minutes:.1f} minutes in all."
    text = f"{about}\n\n{table(cells)}\n"
    (options.out / "table.md").write_text(text)
    figures = {"comparison.png": comparison_figure(cells)}
    if cells[0].random is not None:
        figures["masking.png"] = masking_figure(cells)
    for name, figure in figures.items():
        figure.savefig(options.out / name)
    print(text)
    for name in ("table.md", *figures):
        print(options.out / name)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lit_papers.interactions.experiment", description=__doc__)
    attack = Attack()
    parser.add_argument("--config", default="interactions/adult", help="shipped name or path (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="default: 0 1")
    parser.add_argument("--biases", nargs="+", choices=ORDER_BIAS, default=list(ORDER_BIAS), help="default: all")
    parser.add_argument("--out", type=Path, default=Path("experiment"), help="folder; finished runs in it are kept")
    parser.add_argument("--eps", type=float, default=attack.eps, help="of the attack (default: %(default)s)")
    parser.add_argument(
        "--step-size", type=float, default=attack.step_size, help="of the attack; default: by eps, steps"
    )
    parser.add_argument("--steps", type=int, default=attack.steps, help="of the attack (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=attack.samples, help="attacked and masked (%(default)s)")
    parser.add_argument(
        "overrides", nargs="*", help="after `--`: options of `python -m lit_papers fit`, such as --trainer.max_epochs=5"
    )
    return parser


def _fit(arguments: Sequence[str]) -> tuple[Any, Any, Any]:
    from lit_papers.lightning_cli import PapersCLI

    class Quiet(PapersCLI):
        def after_fit(self) -> None:
            """Print no report: the table comes at the end."""

    cli = Quiet("experiment", arguments)
    return cli.trainer, cli.model, cli.datamodule


def _balanced(loader: Any, samples: int) -> tuple[Tensor, Tensor]:
    inputs, targets = (torch.cat(parts) for parts in zip(*loader, strict=True))
    chosen = balanced(targets, samples)
    return inputs[chosen], targets[chosen]


def _by_bias(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    return {bias: [cell for cell in cells if cell.bias == bias] for bias in dict.fromkeys(c.bias for c in cells)}


def _spread(values: Sequence[float], digits: int = 3) -> str:
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


if __name__ == "__main__":
    sys.exit(main())

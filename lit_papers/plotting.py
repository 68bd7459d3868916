"""What all our figures and tables share: made without pyplot, which has global state, and kept with the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Trainer

from lit_papers.run_folder import run_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart in grey by line style and marker, so colour is never the only difference.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "black", "linestyle": "-", "marker": "o"},
    {"color": "tab:red", "linestyle": "--", "marker": "s"},
    {"color": "tab:blue", "linestyle": "-.", "marker": "^"},
    {"color": "tab:green", "linestyle": ":", "marker": "D"},
    {"color": "tab:purple", "linestyle": (0, (5, 1)), "marker": "v"},
)


def new_figure(rows: int, columns: int) -> tuple[Figure, Sequence[Axes]]:
    """An empty figure with a grid of axes, in reading order.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install lit-papers (or pip install matplotlib)") from error
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained", dpi=120)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def log_scale(axis: Axes) -> None:
    """Make the vertical axis logarithmic, unless nothing on it is positive (collapse can be complete)."""
    if any((np.asarray(line.get_ydata(), dtype=float) > 0).any() for line in axis.lines):
        axis.set_yscale("log")


def save_figure(figure: Figure, trainer: Trainer, name: str) -> None:
    """Write ``<name>.png`` into the folder of the run, and to loggers that take images (W&B).

    Nothing is written where the run has no folder. Call it on one process only.
    """
    folder = run_folder(trainer)
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    figure.savefig(path)
    for logger in trainer.loggers:
        log_image = getattr(logger, "log_image", None)
        if log_image is not None:
            log_image(key=name, images=[str(path)])


def log_table(trainer: Trainer, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Give a table to loggers that take tables (W&B); others have the same numbers as metrics.

    Call it on one process only.

    Args:
        trainer: of the run.
        name: key of the table, other than that of any metric or figure.
        columns: their names.
        rows: values of each row, plain types; NaN is left empty.
    """
    data = [[None if isinstance(value, float) and math.isnan(value) else value for value in row] for row in rows]
    for logger in trainer.loggers:
        log = getattr(logger, "log_table", None)
        if log is not None:
            log(key=name, columns=list(columns), data=data)

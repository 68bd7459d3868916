"""What all our figures and tables share: made without pyplot, which has global state, and kept with the run."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn

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
    """Write ``<name>.png`` into the folder of the run, and to loggers that take images: W&B, TensorBoard, MLflow.

    Without a folder the loggers get it all the same. A logger that fails is warned of: no figure ends a training.
    Call it on one process only.
    """
    content = io.BytesIO()
    figure.savefig(content, format="png")
    folder = run_folder(trainer)
    if folder is not None:
        path = folder / f"{name}.png"  # the name of a callback may have a slash, as keys have
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.getvalue())
    for logger in trainer.loggers:
        with _warning_of(logger, f"the figure {name!r}"):
            _send_image(logger, name, content.getvalue(), trainer.global_step)


def log_table(trainer: Trainer, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write ``<name>.csv`` into the folder of the run, and to loggers that take tables: W&B, TensorBoard, MLflow.

    As with figures, a logger that fails is warned of. Call it on one process only.

    Args:
        trainer: of the run.
        name: key of the table, other than that of any metric or figure.
        columns: their names.
        rows: values of each row, plain types; NaN is left empty.
    """
    data = [[None if isinstance(value, float) and math.isnan(value) else value for value in row] for row in rows]
    folder = run_folder(trainer)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *data])
    for logger in trainer.loggers:
        with _warning_of(logger, f"the table {name!r}"):
            _send_table(logger, name, list(columns), data, trainer.global_step)


def _send_image(logger: Logger, name: str, png: bytes, step: int) -> None:
    # by the name of the class: each needs its own package, none of which is imported here
    kind = _kind(logger)
    if kind == "TensorBoardLogger":
        logger.experiment.add_image(name, _pixels(png), step, dataformats="HWC")  # type: ignore[attr-defined]
    elif kind == "MLFlowLogger":
        # a file of that name: its `log_image` would want Pillow
        with TemporaryDirectory() as folder:
            path = Path(folder) / f"{name.replace('/', '_')}.png"
            path.write_bytes(png)
            logger.experiment.log_artifact(logger.run_id, str(path))  # type: ignore[attr-defined]
    elif hasattr(logger, "log_image"):  # W&B
        logger.log_image(key=name, images=[_pixels(png)])


def _send_table(logger: Logger, name: str, columns: list[str], data: list[list[Any]], step: int) -> None:
    kind = _kind(logger)
    if kind == "TensorBoardLogger":
        lines = [columns, ["---"] * len(columns), *data]
        text = "\n".join("| " + " | ".join("" if cell is None else str(cell) for cell in line) + " |" for line in lines)
        logger.experiment.add_text(name, text, step)  # type: ignore[attr-defined]
    elif kind == "MLFlowLogger":
        content = {column: [row[i] for row in data] for i, column in enumerate(columns)}
        logger.experiment.log_dict(logger.run_id, content, f"{name}.json")  # type: ignore[attr-defined]
    elif hasattr(logger, "log_table"):
        logger.log_table(key=name, columns=columns, data=data)


def _kind(logger: Logger) -> str:
    names = [ancestor.__name__ for ancestor in type(logger).__mro__]
    return next((name for name in names if name in ("TensorBoardLogger", "MLFlowLogger")), names[0])


def _pixels(png: bytes) -> np.ndarray:
    from matplotlib.image import imread

    image = imread(io.BytesIO(png), format="png")  # (H, W, 4), in [0, 1]
    return np.asarray(np.round(255 * image[..., :3]), dtype=np.uint8)


@contextmanager
def _warning_of(logger: Logger, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a service raises
        rank_zero_warn(f"{type(logger).__name__} did not take {what}: {type(error).__name__}: {error}")

"""Where one run keeps its files."""

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers.logger import DummyLogger


def run_folder(trainer: Trainer) -> Path | None:
    """The folder of this run alone, which its checkpoints lie in too.

    ``Trainer.log_dir`` is shared by all runs under loggers such as W&B, so that one run would overwrite the next.

    Returns:
        The folder, which need not exist yet; without a logger, the ``default_root_dir`` of the Trainer, if it was given
        one. None where there is neither, or a ``fast_dev_run`` asks that nothing be left behind.
    """
    logger = trainer.logger
    if isinstance(logger, DummyLogger) or trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by a connector
        return None
    if logger is None:
        folder = Path(trainer.default_root_dir)
        return None if folder.resolve() == Path.cwd().resolve() else folder
    own = getattr(logger, "log_dir", None)
    if own is not None:
        return Path(own)
    if logger.save_dir is None:
        return None
    return Path(logger.save_dir) / str(logger.name) / str(logger.version)


def next_version(folder: Path) -> Path:
    """The first free one of ``version_0``, ``version_1``, ... below a folder, as Lightning's loggers number runs."""
    numbers = [int(path.name[8:]) for path in folder.glob("version_*") if path.name[8:].isdigit()]
    return folder / f"version_{max(numbers, default=-1) + 1}"

"""Where one run keeps its files."""

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers.logger import DummyLogger


def run_folder(trainer: Trainer) -> Path | None:
    """The folder of this run alone, which its checkpoints lie in too.

    ``Trainer.log_dir`` is shared by all runs under loggers such as W&B, so that one run would overwrite the next.

    Returns:
        The folder, which need not exist yet; None where nothing is logged (no logger, ``fast_dev_run``).
    """
    logger = trainer.logger
    if logger is None or isinstance(logger, DummyLogger):
        return None
    own = getattr(logger, "log_dir", None)
    if own is not None:
        return Path(own)
    if logger.save_dir is None:
        return None
    return Path(logger.save_dir) / str(logger.name) / str(logger.version)

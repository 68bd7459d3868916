"""Weights & Biases under bad conditions: not installed, not logged in, no network.

W&B is an optional service, so nothing here imports it before a run has asked for it.
"""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import Logger, WandbLogger

from lit_papers.extras import install_command


class WandbUnusableError(RuntimeError):
    """A run asked for W&B, which is not installed or refuses the login; the message says what to do."""


def check_installed(logger: Any) -> None:
    """Refuse a configuration that logs to W&B where it is not installed.

    Args:
        logger: value of ``trainer.logger`` in a parsed configuration.

    Raises:
        WandbUnusableError: the package is asked for, but missing.
    """
    loggers = logger if isinstance(logger, list) else [logger]
    names = [entry.class_path for entry in loggers if isinstance(entry, Namespace)]
    if any(name.endswith("WandbLogger") for name in names) and find_spec("wandb") is None:
        raise WandbUnusableError(
            "logging to W&B needs the package of lit-papers[wandb]: leave out `--config wandb`, or "
            f"{install_command('wandb')}"
        )


def start_runs(loggers: Sequence[Logger]) -> None:
    """Start the runs of W&B loggers now, and offline where the server cannot be reached.

    Lightning would start them in the middle of ``fit``, where an unreachable server ends the training. W&B itself waits
    ``WANDB_INIT_TIMEOUT`` seconds (90) before it gives up. Processes of a rank other than 0 start nothing.

    Args:
        loggers: those of a trainer; others than W&B's are left alone.

    Raises:
        WandbUnusableError: W&B refuses the login, so that not even ``wandb sync`` could send the run later.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            # W&B writes to the system's temporary folder where its own does not exist
            Path(logger.save_dir or ".").mkdir(parents=True, exist_ok=True)
            _start(logger)


def _start(logger: WandbLogger) -> None:
    from wandb.errors import CommError, UsageError

    try:
        _ = logger.experiment
    except UsageError as error:
        raise WandbUnusableError(
            f"W&B: {error} To log without an account set WANDB_MODE=offline; to create or enter one run `wandb login`."
        ) from error
    except CommError as error:
        _start_offline(logger, error)


def _start_offline(logger: WandbLogger, reason: Exception) -> None:
    import wandb

    wandb.teardown()  # a session that has begun no longer looks at the environment
    os.environ["WANDB_MODE"] = "offline"
    folder = os.path.relpath(Path(logger.experiment.dir).parent)
    print(
        f"warning: W&B cannot be reached ({str(reason).splitlines()[0]}). The run is kept offline in {folder}; send it "
        f"later with: wandb sync {folder}",
        file=sys.stderr,
    )

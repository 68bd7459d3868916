"""``fit``, ``validate``, ``test`` and ``predict`` on LightningCLI, with run folders, clear errors and a report."""

import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from rich.table import Table

# short class names on the command line are those of imported classes, and strategies' names are registered by import
import lit_papers.local_sgd  # noqa: F401
from lit_papers.locations import MissingDataError
from lit_papers.parser_errors import explain
from lit_papers.run_folder import run_folder
from lit_papers.wandb_runs import WandbUnusableError, check_installed, start_runs

RUNS = "runs"
_CHECKPOINT_WORDS = ("best", "last", "hpc")


class Parser(LightningArgumentParser):
    """LightningCLI's parser, whose errors are one message and the nearest valid name."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what was wrong and what was probably meant, then exit with status 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        complaint, hint = explain(message, parser)
        print(f"error: {complaint}", file=sys.stderr)
        if hint:
            print(f"       {hint}", file=sys.stderr)
        print(
            "tip: `--help` after the command lists its options; `--print_config` shows the merged ones.",
            file=sys.stderr,
        )
        raise SystemExit(2) from ex


class SaveRunConfig(SaveConfigCallback):
    """Writes the merged configuration into the run's own folder, and to the logger where that is a service.

    There it is the mapping ``config``, whose leaves a service can filter by: ``config.model.init_args.lr``. The keys
    above it are left to others, as those of a sweep (``model.init_args.lr``) would collide with it.
    """

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write ``config.yaml``; called on the first process only."""
        folder = run_folder(trainer)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, folder / "config.yaml", skip_unset=False, overwrite=True)
        # by way of JSON: a mapping of plain types, whatever objects the configuration has
        nested = json.loads(self.parser.dump(self.config, skip_unset=False, format="json"))
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger):
                logger.log_hyperparams({"config": nested})


class PapersCLI(LightningCLI):
    """LightningCLI with run folders, resume warnings and a closing report.

    Args:
        run_name: folder of the run below ``runs``, where no logger is configured.
        arguments: the command line, or None for ``sys.argv``.
        callbacks: beside those of the configuration, which does not record them.
    """

    def __init__(self, run_name: str, arguments: Sequence[str] | None, callbacks: Sequence[Callback] = ()) -> None:
        self.run_name = run_name
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,  # the modules bring their own
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            trainer_defaults={"callbacks": list(callbacks)},
            parser_class=Parser,
            parser_kwargs={"allow_abbrev": False, "prog": "python -m lit_papers"},
            args=None if arguments is None else list(arguments),
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and keep a copy of what was asked for: a checkpoint's hyperparameters are merged over it next."""
        super().parse_arguments(parser, args)
        self.asked = self.config[self.config.subcommand].clone()
        checkpoint = self.asked.get("ckpt_path")
        if checkpoint and checkpoint not in _CHECKPOINT_WORDS and not Path(checkpoint).exists():
            parser.error(f"--ckpt_path {checkpoint}: no such file")

    def before_instantiate_classes(self) -> None:
        """Give the run its folder, and say which values a checkpoint overrides."""
        config = self.config[self.subcommand]
        for key, asked, used in _differences(self.asked.get("model"), config.get("model"), "model"):
            warnings.warn(
                f"{key}: {asked!r} was asked for, but {used!r} is used, the value in {config.ckpt_path}; to change a "
                "hyperparameter of the model start a new run",
                stacklevel=1,
            )
        check_installed(config.trainer.logger)
        if config.trainer.logger in (None, True):
            init_args = Namespace(save_dir=RUNS, name=self.run_name)  # type: ignore[no-untyped-call]
            config.trainer.logger = Namespace(  # type: ignore[no-untyped-call]
                class_path="lightning.pytorch.loggers.CSVLogger", init_args=init_args
            )

    def instantiate_classes(self) -> None:
        """Build model, data and trainer, and start the logging; what constructors refuse is a wrong command line."""
        try:
            super().instantiate_classes()
        except (TypeError, ValueError) as error:
            self._parser(self.subcommand).error(str(error), error)
        start_runs(self.trainer.loggers)

    def after_fit(self) -> None:
        """Print the final metrics and where the run's files are."""
        if self.trainer.is_global_zero:
            print_report(self.trainer)


def _differences(asked: Any, used: Any, key: str) -> list[tuple[str, Any, Any]]:
    """Leaves at which two parsed values differ, as (dotted key, first, second)."""
    if isinstance(asked, Namespace) and isinstance(used, Namespace):
        shared = [name for name in vars(asked) if name in used]
        return [leaf for name in shared for leaf in _differences(asked[name], used[name], f"{key}.{name}")]
    return [] if asked == used else [(key, asked, used)]


def print_report(trainer: Trainer) -> None:
    """Print the last value of every logged metric, and the files that the run wrote."""
    console = Console()
    table = Table("metric", "final value", title="Results")
    for name, value in sorted(trainer.callback_metrics.items()):
        table.add_row(name, f"{value.item():.4g}")
    console.print(table)
    files: list[tuple[str, Path]] = []
    folder = run_folder(trainer)
    if folder is not None:
        files += [("figure", figure) for figure in sorted(folder.glob("*.png"))]
        files += [("run folder", folder)]
    checkpoint = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if checkpoint:
        files += [("checkpoint", Path(checkpoint))]
    for kind, path in files:
        # whole, however narrow the terminal: these lines are there to be copied
        console.print(f"{kind:<11} {os.path.relpath(path)}", soft_wrap=True, highlight=False, markup=False)


def run(arguments: Sequence[str] | None, run_name: str, callbacks: Sequence[Callback] = ()) -> int:
    """Run one Trainer command.

    Args:
        arguments: the command and its options, config names resolved; None for ``sys.argv``.
        run_name: folder of the run below ``runs``.
        callbacks: beside those of the configuration.

    Returns:
        Exit status: 0 for success, 1 where the data are missing or W&B was asked for and cannot be used.
    """
    # our image sets lie in memory: workers would only copy them
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    try:
        PapersCLI(run_name, arguments, callbacks)
    except (MissingDataError, WandbUnusableError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0

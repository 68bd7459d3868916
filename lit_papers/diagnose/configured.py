"""Model and data of a LightningCLI configuration, set up as for a fit by Lightning itself, and diagnosed."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lit_papers.diagnose.checkpoints import read_checkpoints
from lit_papers.diagnose.diagnosis import diagnose
from lit_papers.diagnose.report import Report
from lit_papers.lightning_cli import Parser, instantiating

# what a fit does, and a look at a network does not
_NOTHING_ELSE: dict[str, Any] = {
    "callbacks": None, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    "num_sanity_val_steps": 0, "min_epochs": None, "min_steps": None, "max_epochs": 1, "max_steps": -1,
    "max_time": None, "fast_dev_run": False, "profiler": None, "barebones": False, "default_root_dir": None,
}  # fmt: skip


class _Look(Callback):
    """Diagnoses before the first step, when Lightning has set up all that a fit needs, and ends the fit there."""

    def __init__(self, finish: Callable[[Report], None], options: dict[str, Any]) -> None:
        self._finish = finish
        self._options = options

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, and stop."""
        report = diagnose(pl_module, trainer=trainer, **self._options)
        trainer.should_stop = True
        if trainer.is_global_zero:
            report.log(trainer.loggers)
            self._finish(report)


class _Configured(LightningCLI):
    """Parses and makes trainer, model and data, and runs nothing."""

    def __init__(self, arguments: Sequence[str], *, with_loggers: bool) -> None:
        self._with_loggers = with_loggers
        self._several = any(argument.partition("=")[0] == "--trainer.devices" for argument in arguments)
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=None,
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={"allow_abbrev": False, "prog": "python -m lit_papers diagnose"},
            args=list(arguments),
            run=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """A run's config.yaml has keys that are of `fit` alone."""
        parser.add_argument("--ckpt_path", default=None, type=Any, help="of the run; not used")
        parser.add_argument("--weights_only", default=None, type=Any, help="of the run; not used")

    def before_instantiate_classes(self) -> None:
        """Leave out what only a training needs."""
        for key, value in _NOTHING_ELSE.items():
            self.config.trainer[key] = value
        if not self._with_loggers:
            self.config.trainer.logger = False
        if not self._several:  # what trained on eight GPUs can be looked at on one
            self.config.trainer.devices, self.config.trainer.num_nodes = 1, 1
            self.config.trainer.strategy = "auto"

    def instantiate_classes(self) -> None:
        """Build all, with errors as they are raised."""
        with instantiating(self.parser):
            super().instantiate_classes()


def diagnose_configured(
    arguments: Sequence[str],
    checkpoints: Sequence[str],
    finish: Callable[[Report], None],
    *,
    lenses: Sequence[str] | None = None,
    minutes: float = 5.0,
    title: str | None = None,
    log: bool = False,
) -> None:
    """Diagnose the network of a configuration, on its data, in its precision.

    It runs in one process, whatever the run did; ``--trainer.devices`` among the arguments asks for several.

    Args:
        arguments: of LightningCLI, with paths of configurations.
        checkpoints: of this network.
        finish: what to do with the report, on the first process, while the others wait.
        lenses: as for `diagnose`.
        minutes: as for `diagnose`.
        title: as for `diagnose`.
        log: give the numbers to the loggers.

    Raises:
        ValueError: a name is wrong, or a checkpoint is of another network.
        SystemExit: the configuration is wrong; the message is printed.
    """
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*args parameter is intended to run from within Python.*")
    cli = _Configured(arguments, with_loggers=log)
    if checkpoints:
        read_checkpoints(checkpoints, cli.model)  # before data are prepared
    else:
        warnings.warn(
            "no --ckpt_path is given, so the weights are those the model begins with: random, unless its class loads "
            "others",
            stacklevel=1,
        )
    options = {"checkpoints": checkpoints, "lenses": lenses, "minutes": minutes, "title": title, "progress": True}
    look = _Look(finish, options)
    cli.trainer.callbacks.append(look)  # type: ignore[attr-defined]  # set by a connector
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)

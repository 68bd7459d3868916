"""``fit``, ``validate``, ``test`` and ``predict`` on LightningCLI, with run folders, clear errors and a report."""

import inspect
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, get_args, get_type_hints

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from rich.table import Table

# short class names on the command line are those of imported classes, and strategies' names are registered by import
import lit_papers.callbacks
import lit_papers.local_sgd  # noqa: F401
from lit_papers.checkpoint_files import check_checkpoint
from lit_papers.extras import with_install_command
from lit_papers.mistakes import INTERRUPTED, MISTAKE, TERMINATED, raised_in_users_code
from lit_papers.parser_errors import explain
from lit_papers.predictions import WritePredictions
from lit_papers.run_folder import next_version, run_folder
from lit_papers.wandb_runs import check_installed, start_runs

RUNS = "runs"
# the Trainer divides by them, unchecked
_AT_LEAST_ONE = ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval")


class ConstructorFailed(BaseException):
    """Carries what a constructor raised past the parser, which would make it one of the types that do not fit."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Maker:
    """An instantiator of the parser that lets what a constructor raises arrive as it is.

    Only while the parser instantiates: what is made later, as an optimizer is, is made by the training.
    """

    is_instantiating = False

    def __init__(self, instantiator: Callable[..., Any]) -> None:
        self.__wrapped__ = instantiator  # whose signature the parser reads

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Make an object of the class that comes first."""
        try:
            if Maker.is_instantiating:
                _refuse_null(args[0], kwargs)
            return self.__wrapped__(*args, **kwargs)
        except Exception as error:
            if not Maker.is_instantiating:
                raise
            raise ConstructorFailed(error) from None


def make(class_type: type, *args: Any, **kwargs: Any) -> Any:
    """As the parser does by default."""
    return class_type(*args, **kwargs)


def _refuse_null(class_type: Any, arguments: dict[str, Any]) -> None:
    """Refuse what the parser lets pass: null for an argument of one of our classes that takes none.

    Raises:
        ValueError: there is one.
    """
    if not class_type.__module__.startswith("lit_papers."):  # others may take more than they declare
        return
    for name, kind in get_type_hints(class_type.__init__).items():
        if name in arguments and arguments[name] is None and kind is not Any and NoneType not in get_args(kind):
            raise ValueError(
                f"{class_type.__name__}: {name} is null, but its type is {inspect.formatannotation(kind)}: give a "
                "value, or leave the key out for the default"
            )


@contextmanager
def instantiating(parser: LightningArgumentParser) -> Iterator[None]:
    """Inside, a parser makes objects, and what a constructor raises arrives as it was raised."""
    parser.add_instantiator(make, object)
    Maker.is_instantiating = True
    try:
        yield
    except ConstructorFailed as failed:
        raise failed.error from failed.error.__cause__
    finally:
        Maker.is_instantiating = False


class Parser(LightningArgumentParser):
    """LightningCLI's parser, whose errors are one message and the nearest valid name."""

    def add_instantiator(
        self, instantiator: Callable[..., Any], class_type: type, subclasses: bool = True, prepend: bool = False
    ) -> None:
        """Register how classes are made."""
        with warnings.catch_warnings():
            # jsonargparse calls it deprecated, and LightningCLI calls it
            warnings.simplefilter("ignore", DeprecationWarning)
            super().add_instantiator(Maker(instantiator), class_type, subclasses, prepend)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what was wrong and what was probably meant, then exit with status 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        bug = raised_in_users_code(ex)
        if bug is not None:
            raise bug
        parser = getattr(ex, "subcommand_parser", None) or self
        complaint, hint = explain(message, parser)
        print(f"error: {with_install_command(complaint)}", file=sys.stderr)
        if hint:
            print(f"       {hint}", file=sys.stderr)
        print(
            "tip: `--help` after the command lists its options; `--print_config` shows the merged ones.",
            file=sys.stderr,
        )
        raise SystemExit(MISTAKE) from ex


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


class Interruption(Callback):
    """Remembers the Trainer that a signal ended, to say what is left of the run and how to go on."""

    def __init__(self) -> None:
        self._trainer: Trainer | None = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Called by Lightning before the callbacks that save a checkpoint on an exception: so do not look yet."""
        self._trainer = trainer

    def tell(self, signal_name: str) -> None:
        """Print what was written, and the command that goes on; on the first process."""
        trainer = self._trainer
        if trainer is None:
            print(f"ended by {signal_name}, before the run began", file=sys.stderr)
            return
        if not trainer.is_global_zero:
            return
        console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
        console.print(f"ended by {signal_name} in epoch {trainer.current_epoch}")
        folder, checkpoint = run_folder(trainer), newest_checkpoint(trainer)
        files = [("run folder", folder)] if folder is not None and folder.is_dir() else []
        files += [("checkpoint", checkpoint)] if checkpoint else []
        print_files(files, console)
        if checkpoint is None:
            console.print("no checkpoint was written yet")
        elif folder is not None and (folder / "config.yaml").is_file():
            config, path = os.path.relpath(folder / "config.yaml"), os.path.relpath(checkpoint)
            console.print(f"{'go on with':<11} python -m lit_papers fit --config {config} --ckpt_path {path}")


class PapersCLI(LightningCLI):
    """LightningCLI with run folders, resume warnings and a closing report.

    Args:
        run_name: folder of the run below ``runs``, where no logger is configured.
        arguments: the command line, or None for ``sys.argv``.
        callbacks: beside those of the configuration, which does not record them.
    """

    def __init__(self, run_name: str, arguments: Sequence[str] | None, callbacks: Sequence[Callback] = ()) -> None:
        self.run_name = run_name
        given = sys.argv[1:] if arguments is None else arguments
        self._command = given[0] if given else None
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

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # a static method of LightningCLI
        """The one that was asked for: to set up the parsers of all four takes four times as long."""
        everything = LightningCLI.subcommands()
        return {self._command: everything[self._command]} if self._command in everything else everything

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and keep a copy of what was asked for: a checkpoint's hyperparameters are merged over it next."""
        super().parse_arguments(parser, args)
        self.asked = self.config[self.config.subcommand].clone()
        checkpoint = self.asked.get("ckpt_path")
        if checkpoint:
            check_checkpoint(checkpoint)
        elif self.config.subcommand != "fit":
            print(
                "warning: no --ckpt_path is given, so the weights are those the model begins with: random, unless its "
                "class loads others",
                file=sys.stderr,
            )

    def before_instantiate_classes(self) -> None:
        """Give the run its folder, and say which values a checkpoint overrides."""
        config = self.config[self.subcommand]
        if config.trainer is None:
            raise ValueError("trainer is null in the configuration: leave the key out, or give it options below")
        for key, asked, used in _differences(self.asked.get("model"), config.get("model"), "model"):
            warnings.warn(
                f"{key}: {asked!r} was asked for, but {used!r} is used, the value in {config.ckpt_path}; to change a "
                "hyperparameter of the model start a new run",
                stacklevel=1,
            )
        check_installed(config.trainer.logger)
        for name in _AT_LEAST_ONE:
            value = config.trainer.get(name)  # an interval may also be a time, or a share of an epoch
            if isinstance(value, int) and value < 1:
                raise ValueError(f"trainer.{name} must be at least 1, got {config.trainer[name]}")
        if config.trainer.logger in (None, True):
            init_args = Namespace(save_dir=RUNS, name=self.run_name)  # type: ignore[no-untyped-call]
            config.trainer.logger = Namespace(  # type: ignore[no-untyped-call]
                class_path="lightning.pytorch.loggers.CSVLogger", init_args=init_args
            )
        elif config.trainer.logger is False and config.trainer.default_root_dir is None:
            config.trainer.default_root_dir = str(next_version(Path(RUNS) / self.run_name))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer; that of ``predict`` keeps what is predicted."""
        trainer = super().instantiate_trainer(**kwargs)
        if self.subcommand == "predict":
            trainer.callbacks.append(WritePredictions())  # type: ignore[attr-defined]  # set by a connector
        return trainer

    def instantiate_classes(self) -> None:
        """Build model, data and trainer, and start the logging."""
        try:
            with instantiating(self.parser):
                super().instantiate_classes()
        except ValueError as error:
            if "Union subtypes" not in str(error):
                raise
            # the parser's, about a function that makes an argument
            self._parser(self.subcommand).error(str(error), error)
        start_runs(self.trainer.loggers)

    def after_fit(self) -> None:
        """Print the final metrics and where the run's files are."""
        if self.trainer.is_global_zero:
            print_report(self.trainer)

    def after_predict(self) -> None:
        """Print where the predictions are."""
        folder = run_folder(self.trainer)
        if self.trainer.is_global_zero and folder is not None:
            files = [("predictions", path) for path in sorted(folder.glob("predictions*.pt"))]
            print_files(files, Console())


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
    print_files(files, console)


def print_files(files: Sequence[tuple[str, Path]], console: Console) -> None:
    """Print what was written, one line a file, by paths that can be copied."""
    for kind, path in files:
        # whole, however narrow the terminal: these lines are there to be copied
        console.print(f"{kind:<11} {os.path.relpath(path)}", soft_wrap=True, highlight=False, markup=False)


def newest_checkpoint(trainer: Trainer) -> Path | None:
    """The checkpoint of this run that was written last, if any was."""
    folders = {Path(path) for saver in trainer.checkpoint_callbacks if (path := getattr(saver, "dirpath", None))}
    written = [path for folder in folders for path in folder.glob("*.ckpt")]
    return max(written, key=lambda path: path.stat().st_mtime_ns, default=None)


def run(arguments: Sequence[str] | None, run_name: str, callbacks: Sequence[Callback] = ()) -> int:
    """Run one Trainer command.

    Args:
        arguments: the command and its options, config names resolved; None for ``sys.argv``.
        run_name: folder of the run below ``runs``.
        callbacks: beside those of the configuration.

    Returns:
        Exit status: 0 for success, 130 after Ctrl-C, 143 after SIGTERM.
    """
    # our image sets lie in memory: workers would only copy them
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    interruption = Interruption()
    try:
        PapersCLI(run_name, arguments, [*callbacks, interruption])
    except SIGTERMException:
        interruption.tell("SIGTERM")
        return TERMINATED
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):  # Lightning turns it into `sys.exit(1)`
            raise
        interruption.tell("Ctrl-C")
        return INTERRUPTED
    return 0

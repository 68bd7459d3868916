"""What a callback found: kept, checkpointed, logged and drawn, whatever its clock is."""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lit_papers.lens import NotApplicable
from lit_papers.plotting import save_figure
from lit_papers.run_folder import run_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Record(Callback, ABC):
    """Keeps what a callback found in a training.

    A fit of another module begins anew. A fit of the same module goes on, as one fit a task does; its entries carry
    another ``fit``. A resumed run takes up the history of its checkpoint.

    Args:
        name: prefix of the logged keys (``name/<key>``) and name of the figure; give each instance of one class its
            own.

    Attributes:
        history: one dict an entry, in plain types, with ``fit`` (from 0), ``epoch`` (from 1; 0 is the untrained
            network), ``step`` (optimizer steps before it) and what was found; kept in checkpoints.
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not name or name.strip("/") != name:
            raise ValueError(f"name must be a word for the logged keys, got {name!r}")
        self.name = name
        self.history: list[dict[str, Any]] = []
        self.fit = 0
        self._module: weakref.ref[LightningModule] | None = None
        self._said: set[str] = set()
        self._evaluates = False

    @property
    def state_key(self) -> str:
        """Tells apart the states of several instances in a checkpoint."""
        return self._generate_state_key(name=self.name)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin anew for another module, or go on with the same; refuse a name that another callback has."""
        for other in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it in a connector
            if isinstance(other, Record) and other is not self and other.name == self.name:
                raise NotApplicable(
                    f"{type(self).__name__} and {type(other).__name__} both have name={self.name!r}, by which keys and "
                    "figures of one would overwrite those of the other: give each a `name` of its own"
                )
        self._evaluates = stage != "fit"
        if self._evaluates:
            return
        before = None if self._module is None else self._module()
        if self._module is not None and before is not pl_module:
            self.begin_anew()
        elif before is pl_module or self.history:  # a copy of a callback does not know whose history it has
            self.fit += 1
        self._module = weakref.ref(pl_module)

    def begin_anew(self) -> None:
        """Forget what was found about another network."""
        self.history, self.fit = [], 0
        self._said.clear()

    @property
    def this_fit(self) -> list[dict[str, Any]]:
        """Entries of the present fit."""
        return [entry for entry in self.history if entry["fit"] == self.fit]

    def keep(
        self,
        trainer: Trainer,
        numbers: Mapping[str, Any],
        *,
        epoch: int | None = None,
        step: int | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Add an entry, and log its floats to every logger and to ``trainer.callback_metrics``.

        Call it on every process, with the same numbers.

        Args:
            trainer: of the training.
            numbers: by key without prefix.
            epoch: that is or was finished, from 1; None is the one that goes on.
            step: optimizer steps before what was found; None for all so far.
            more: kept beside the numbers, but not logged.
        """
        epoch = trainer.current_epoch + 1 if epoch is None else epoch
        step = trainer.global_step if step is None else step
        entry = {"fit": self.fit, "epoch": epoch, "step": step, **(more or {}), **numbers}
        self.history.append(entry)
        self._publish(trainer, numbers, epoch, step)
        return entry

    def _publish(self, trainer: Trainer, numbers: Mapping[str, Any], epoch: int, step: int) -> None:
        """Give the floats among numbers to loggers, whatever ``log_every_n_steps`` is, and to who watches metrics."""
        logged = {f"{self.name}/{key}": value for key, value in numbers.items() if isinstance(value, float)}
        for logger in trainer.loggers:  # not `self.log`, which is refused or counted into the next epoch in some hooks
            logger.log_metrics({**logged, **({"epoch": epoch - 1} if epoch else {})}, step=step)
        tensors = {key: torch.tensor(value) for key, value in logged.items()}
        trainer.callback_metrics.update(tensors)
        trainer.logged_metrics.update(tensors)

    @abstractmethod
    def plot(self) -> "Figure":
        """What was found as a figure.

        Raises:
            RuntimeError: nothing was found yet.
        """

    def figures(self) -> "dict[str, Figure]":
        """Figures to save at the end of a fit, by name."""
        return {self.name: self.plot()}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the figures into the folder of the run and to loggers that take them."""
        somewhere = run_folder(trainer) is not None or trainer.loggers  # drawing takes a second
        if trainer.is_global_zero and self.history and somewhere:
            for name, figure in self.figures().items():
                save_figure(figure, trainer, name)

    @property
    def has_its_own(self) -> bool:
        """Whether a checkpoint is evaluated after a training: Lightning would put its shorter history in place."""
        return self._evaluates and bool(self.history)

    def state_dict(self) -> dict[str, Any]:
        """The history, in plain types."""
        return {"history": self.history, "fit": self.fit}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the history of the run that is resumed."""
        if self.has_its_own:
            return
        self.history = list(state_dict["history"])
        self.fit = state_dict.get("fit", 0)

    def warn_once(self, message: str) -> None:
        """Warn on the first process, once for each message."""
        if message not in self._said:
            self._said.add(message)
            rank_zero_warn(f"{type(self).__name__}: {message}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_module": None}  # a weak reference cannot be sent to another process


def nothing_yet(name: str) -> RuntimeError:
    """The error of `Record.plot` before anything was found."""
    return RuntimeError(f"{name} has nothing to plot: `history` is empty until the first measurement")

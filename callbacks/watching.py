"""When to look: after chosen epochs, after the last, after a resume, and when a checkpoint is evaluated."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from lit_papers.callbacks.record import Record, nothing_yet
from lit_papers.lens import Call, Lens, Subject, Unpack
from lit_papers.lens.linears import resolve_classifier

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EVALUATIONS = ("validate", "test")


@dataclass
class _Sight:
    """A data set that is watched: its subject in this fit, what the lens prepared, and what a pass must gather."""

    subject: Subject
    prepared: Any
    keys: list[Any] = field(default_factory=list)


class Watch(Record):
    """Has a lens look at the network at the right moments of a training.

    Measured are the chosen epochs at their end, before callbacks that watch metrics; the last epoch, also where early
    stopping makes it the last; after a resume an epoch whose measurement was not saved; and in ``trainer.validate`` and
    ``trainer.test`` the network that is evaluated, on the loaders of the evaluation. What the lens cannot look at is
    refused before the first step. What fails later is recorded as NaN with a ``reason`` and a warning, and never ends
    the training; nor does what cannot be measured end an evaluation that follows a fit.

    Watches of one trainer that ask for the same data, call and layer share the copy of the network and the pass over
    the data.

    Args:
        lens: what is measured.
        dataloader: the data to look at, or a dict of several by name, measured side by side; None takes what the lens
            is about from the trainer.
        epochs: k to measure after every k-th epoch and after the last, or the list of epochs, counted from 1; 0 in the
            list is the untrained network.
        classifier: last ``nn.Linear`` or its dotted path, where it cannot be found.
        unpack: from a batch to (argument of ``forward``, class indices).
        call: from (module, batch) to (logits, class indices).
        max_batches: most batches of a pass.
        name: prefix of keys and name of the figure; None takes the lens's.

    Attributes:
        evaluated: what the last ``trainer.validate`` or ``trainer.test`` found, by key as logged without prefix.
    """

    always_untrained = False

    def __init__(
        self,
        lens: Lens,
        *,
        dataloader: Any = None,
        epochs: int | Sequence[int] = 1,
        classifier: str | nn.Module | None = None,
        unpack: Unpack | None = None,
        call: Call | None = None,
        max_batches: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(lens.name if name is None else name)
        if classifier is not None and not isinstance(classifier, (str, nn.Module)):
            raise TypeError(f"classifier must be a module or its dotted path, got {type(classifier).__name__}")
        if max_batches is not None and max_batches < 1:
            raise ValueError(f"max_batches must be at least 1, or None, got {max_batches}")
        if isinstance(dataloader, Mapping) and not dataloader:
            raise ValueError("dataloader is an empty dict: give it a loader for each name, or pass None")
        self.lens = lens
        named = isinstance(dataloader, Mapping)
        self.dataloader = {str(data): loader for data, loader in dataloader.items()} if named else dataloader
        self.epochs = _checked_epochs(epochs)
        self.classifier = classifier
        self.unpack = unpack
        self.call = call
        self.max_batches = max_batches
        self.evaluated: dict[str, Any] = {}
        self._sights: dict[str | None, _Sight] = {}
        self._looks, self._seconds = 0, 0.0

    def is_due(self, epoch: int, *, last: bool) -> bool:
        """Whether to look after this epoch, counted from 1."""
        if epoch == 0:
            return self.always_untrained or (not isinstance(self.epochs, int) and 0 in self.epochs)
        if isinstance(self.epochs, int):
            return last or epoch % self.epochs == 0
        return epoch in self.epochs

    # -- moments of a fit ----------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a wrong ``classifier`` before the sanity check."""
        self._looks, self._seconds = 0, 0.0
        if self.classifier is not None:
            resolve_classifier(pl_module, self.classifier)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the lens; look at the untrained network where asked, or after a resume at what was missed."""
        self._prepare(trainer, pl_module, self._named_loaders(self.dataloader))
        loop, epoch = trainer.fit_loop, trainer.current_epoch
        if trainer.global_step == 0:
            self._look_if_due(trainer, 0, last=False)
        elif epoch > 0 and (_epoch_is_over(trainer) or not loop.restarted_mid_epoch):
            goes_on = any((entry["epoch"], entry["step"]) == (epoch, trainer.global_step) for entry in self.history)
            if not goes_on:
                self._look_if_due(trainer, epoch, last=False)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of the copies of the last look."""
        self._forget_moments()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the end of a due epoch, in time for callbacks that watch validation metrics."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and _epoch_is_over(trainer):
            self._look_if_due(trainer, trainer.current_epoch + 1, last=_is_last_epoch(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the end of a due epoch that had no validation at its end."""
        self._look_if_due(trainer, trainer.current_epoch + 1, last=_is_last_epoch(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the last epoch if it turned out only now to be the last (early stopping after our hook)."""
        if trainer.current_epoch > 0:
            self._look_if_due(trainer, trainer.current_epoch, last=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the figures and tell what looking cost."""
        super().on_fit_end(trainer, pl_module)
        if self._looks:
            rank_zero_info(f"{self.name}: measured {self._looks} times, in {self._seconds:.2f} s")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the loaders and the network."""
        self._sights = {}

    # -- evaluation of a checkpoint ------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the lens before ``trainer.validate`` runs."""
        self._prepare_evaluation(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the lens before ``trainer.test`` runs."""
        self._prepare_evaluation(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the network that ``trainer.validate`` evaluates."""
        self._evaluate(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the network that ``trainer.test`` evaluates."""
        self._evaluate(trainer, pl_module)

    def plot(self, data: str | None = None) -> "Figure":
        """The history as a figure.

        Args:
            data: name of one data set, where there are several; None takes the first.

        Raises:
            RuntimeError: nothing was measured yet.
        """
        return self.lens.figure(next(iter(self.histories(data).values())))

    def histories(self, data: str | None = None) -> dict[str | None, list[dict[str, Any]]]:
        """The history of each data set, with the keys that the lens gave them.

        Args:
            data: name of the only one that is wanted.

        Raises:
            RuntimeError: nothing was measured yet.
            ValueError: there are no data of that name.
        """
        if not self.history:
            raise nothing_yet(type(self).__name__)
        names = self._data_names()
        if data is not None and data not in names:
            raise ValueError(f"there are no data of the name {data!r}: {', '.join(map(str, names))}")
        return {name: _of(self.history, name) for name in (names if data is None else [data])}

    def figures(self) -> "dict[str, Figure]":
        """One figure for each data set."""
        return {f"{self.name}_{data}" if data else self.name: self.plot(data) for data in self._data_names()}

    # -- how -----------------------------------------------------------------------------------------------------

    def _data_names(self) -> list[str | None]:
        return list(self.dataloader) if isinstance(self.dataloader, Mapping) else [None]

    @staticmethod
    def _named_loaders(loaders: Any) -> dict[str | None, Any]:
        return dict(loaders) if isinstance(loaders, Mapping) else {None: loaders}

    def _prepare(
        self,
        trainer: Trainer,
        module: LightningModule,
        loaders: dict[str | None, Any],
        limits: Sequence[float] = (),
    ) -> None:
        self._sights = {}
        limits = limits if len(limits) == len(loaders) else [math.inf] * len(loaders)
        for (data, loader), limit in zip(loaders.items(), limits, strict=True):
            most = min(limit * trainer.world_size, math.inf if self.max_batches is None else self.max_batches)
            max_batches = None if most == math.inf else max(1, int(most))
            subject = self._subject_of_another(trainer, loader, max_batches) or Subject(
                module,
                loader,
                trainer=trainer,
                reads=self.lens.reads,
                call=self.call,
                unpack=self.unpack,
                classifier=self.classifier,
                max_batches=max_batches,
            )
            before = len(subject.asked)
            try:
                with subject.processes.same_fate(f"checking {self.name}"):
                    prepared = self.lens.check(subject)
            except Exception as error:
                if trainer.state.fn == "fit" or self._module is None:
                    raise
                # attached for the fit that was: its test set, perhaps without labels, is tested all the same
                rank_zero_warn(f"{type(self).__name__}: nothing measured in {_evaluation(trainer)}: {error}")
                continue
            self._sights[data] = _Sight(subject, prepared, subject.asked[before:])

    def _subject_of_another(self, trainer: Trainer, loader: Any, max_batches: int | None) -> Subject | None:
        for other in _watches(trainer):
            same = (
                other is not self
                and other.lens.reads == self.lens.reads
                and other.unpack is self.unpack
                and other.call is self.call
                and (other.classifier is self.classifier or _equal_names(other.classifier, self.classifier))
            )
            for data, sight in other._sights.items() if same else ():
                found = other._named_loaders(other.dataloader).get(data) is loader
                if found and sight.subject.max_batches == max_batches:
                    return sight.subject
        return None

    def _look_if_due(self, trainer: Trainer, epoch: int, *, last: bool) -> None:
        if not self.is_due(epoch, last=last) or any(entry["epoch"] == epoch for entry in self.this_fit):
            return
        stamp = (self.fit, epoch, trainer.global_step)
        peers = [other for other in _watches(trainer) if other.is_due(epoch, last=last)]
        numbers, reasons = self._look(f"after epoch {epoch}", stamp, peers)
        self.keep(trainer, numbers, epoch=epoch, more={"reason": "; ".join(reasons)} if reasons else None)

    def _look(self, when: str, stamp: Any, peers: "Sequence[Watch]" = ()) -> tuple[dict[str, Any], list[str]]:
        """What the lens sees of each data set, with the keys as logged, and why it saw nothing of some."""
        found: dict[str, Any] = {}
        reasons = []
        for data, sight in self._sights.items():
            started = time.perf_counter()
            theirs = [its for peer in peers for its in peer._sights.values() if its.subject is sight.subject]
            keys = dict.fromkeys(key for its in (sight, *theirs) for key in its.keys)  # one pass for all that are due
            moment = sight.subject.moment(stamp, list(keys))
            try:
                with sight.subject.processes.same_fate(f"measuring {self.name}"):
                    numbers = self.lens.look(moment, sight.prepared, _of(self.this_fit, data))
            except Exception as error:  # a stranger's training goes on
                reasons.append(str(error))
                rank_zero_warn(f"{type(self).__name__}: nothing measured {when}: {error}; NaN is recorded")
                numbers = self.lens.unknown(sight.prepared)
            found |= {f"{data}/{key}" if data else key: value for key, value in numbers.items()}
            self._looks += 1
            self._seconds += time.perf_counter() - started
        return found, reasons

    def _prepare_evaluation(self, trainer: Trainer, module: LightningModule) -> None:
        if _evaluation(trainer) is None:
            return
        loaders = self.dataloader
        limits: Sequence[float] = ()
        if loaders is None and self.lens.reads is not None:
            validates = trainer.state.fn == "validate"
            loop = trainer.validate_loop if validates else trainer.test_loop
            share = trainer.limit_val_batches if validates else trainer.limit_test_batches
            limits = () if share == 1.0 and isinstance(share, float) else loop.max_batches
            loaders = trainer.val_dataloaders if trainer.state.fn == "validate" else trainer.test_dataloaders
            if isinstance(loaders, (list, tuple)):
                named = {f"dataloader_idx_{index}": loader for index, loader in enumerate(loaders)}
                loaders = named if len(loaders) > 1 else loaders[0]
        self._prepare(trainer, module, self._named_loaders(loaders), limits)

    def _evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        evaluation = _evaluation(trainer)
        if evaluation is None:
            return
        self.evaluated, _ = self._look(f"in {evaluation}", None)
        logged = {f"{self.name}/{key}": value for key, value in self.evaluated.items() if isinstance(value, float)}
        module.log_dict(logged, batch_size=1, sync_dist=False, add_dataloader_idx=False)

    def _forget_moments(self) -> None:
        for sight in self._sights.values():
            sight.subject.forget_moment()


def _evaluation(trainer: Trainer) -> str | None:
    fn = trainer.state.fn
    return None if fn is None or fn not in _EVALUATIONS else str(fn.value)


def _watches(trainer: Trainer) -> Iterator[Watch]:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it in a connector
        if isinstance(callback, Watch):
            yield callback


def _equal_names(first: Any, second: Any) -> bool:
    return isinstance(first, str) and first == second


def _of(history: Sequence[Mapping[str, Any]], data: str | None) -> list[dict[str, Any]]:
    """The entries of one data set, with the keys that its lens gave them."""
    if data is None:
        return [dict(entry) for entry in history]
    prefix = f"{data}/"
    when = ("fit", "epoch", "step")
    return [
        {key.removeprefix(prefix): value for key, value in entry.items() if key in when or key.startswith(prefix)}
        for entry in history
    ]


def _checked_epochs(epochs: Any) -> int | tuple[int, ...]:
    """An interval, or epochs, out of whole numbers of any type: NumPy makes those at equal distances of a log scale."""
    try:
        asked, several = list(epochs), not isinstance(epochs, str)
    except TypeError:
        asked, several = [epochs], False
    least = 0 if several else 1
    if not asked or not all(_is_whole(epoch) and epoch >= least for epoch in asked):
        if several:
            raise ValueError(f"epochs must list epochs counted from 1 (0 is the untrained network), got {asked}")
        raise ValueError(f"epochs must be at least 1, or a list of epochs, got {epochs!r}")
    return tuple(map(int, asked)) if several else int(epochs)


def _is_whole(number: Any) -> bool:
    try:
        return bool(int(number) == number)
    except (TypeError, ValueError, OverflowError):
        return False


def renamed(old: Any) -> None:
    """Refuse the argument ``every_n_epochs`` of versions before 0.2, with the name that it has now."""
    if old is not None:
        raise ValueError(f"`every_n_epochs` is called `epochs` now: pass epochs={old!r}")


def _epoch_is_over(trainer: Trainer) -> bool:
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def _is_last_epoch(trainer: Trainer) -> bool:
    steps_are_up = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return trainer.should_stop or steps_are_up or trainer.current_epoch + 1 == trainer.max_epochs

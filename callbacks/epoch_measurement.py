"""Measuring at chosen epochs: when to run the shared pass, and what becomes of the numbers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from lit_papers.callbacks.feature_pass import FeaturePass, Measurement
from lit_papers.callbacks.guest import Unpack, unpack_batch
from lit_papers.callbacks.heads import resolve_classifier
from lit_papers.plotting import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class EpochMeasurement(Callback, ABC):
    """Measures the features of the training data after chosen epochs; what `NeuralCollapse` and `CentralPath` share.

    Callbacks of this kind with the same ``dataloader``, ``classifier`` and ``unpack`` in one trainer share one pass.

    Attributes:
        history: one dict a measured epoch, with ``epoch`` (1-based) and Python floats; kept in checkpoints.
    """

    name: str

    def __init__(
        self,
        dataloader: Any,
        classifier: str | nn.Module | None,
        epochs: int | Sequence[int],
        unpack: Unpack | None,
    ) -> None:
        if isinstance(epochs, int):
            if epochs < 1:
                raise ValueError(f"epochs must be at least 1, or a list of epochs, got {epochs}")
        elif not epochs or any(epoch < 1 for epoch in epochs):
            raise ValueError(f"epochs must list epochs counted from 1, got {list(epochs)}")
        if classifier is not None and not isinstance(classifier, (str, nn.Module)):
            raise TypeError(f"classifier must be a module or its dotted path, got {type(classifier).__name__}")
        self.dataloader = dataloader
        self.classifier = classifier
        self.epochs = epochs if isinstance(epochs, int) else tuple(epochs)
        self.unpack = unpack
        self.history: list[dict[str, Any]] = []
        self._pass: FeaturePass | None = None
        self._brings_the_pass = False
        self._warned: set[str] = set()

    @abstractmethod
    def record(self, measurement: Measurement, trainer: Trainer) -> dict[str, Any]:
        """The numbers of one epoch, by key of `history`.

        Raises:
            ValueError: they do not exist for these features; `history` then gets what `unknown` returns.
        """

    @abstractmethod
    def unknown(self) -> dict[str, Any]:
        """What `record` returns where nothing can be measured: the same keys, NaN."""

    @abstractmethod
    def plot(self) -> "Figure":
        """The history as a figure.

        Raises:
            RuntimeError: nothing was measured yet.
        """

    @property
    def wants_ncc(self) -> bool:
        """Whether the pass must compare predictions with the nearest class mean."""
        return False

    @property
    def state_key(self) -> str:
        """Tells apart two instances of one class that look at different layers."""
        classifier = self.classifier if isinstance(self.classifier, str) else type(self.classifier).__name__
        return self._generate_state_key(classifier=classifier)

    def is_due(self, epoch: int, *, last: bool) -> bool:
        """Whether to measure after this epoch, counted from 1."""
        if isinstance(self.epochs, int):
            return last or epoch % self.epochs == 0
        return epoch in self.epochs

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Join the pass of an earlier callback that asks for the same one, or bring an own one."""
        if stage != "fit":
            return
        self._brings_the_pass = True
        self._pass = FeaturePass(self.dataloader, self.classifier, self.unpack or unpack_batch)
        for other in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it in a connector
            if other is self:
                break
            if isinstance(other, EpochMeasurement) and other._pass is not None and self._asks_the_same(other):
                self._pass, self._brings_the_pass = other._pass, False
                break

    def _asks_the_same(self, other: "EpochMeasurement") -> bool:
        return (
            other.dataloader is self.dataloader
            and other.unpack is self.unpack
            and (
                other.classifier is self.classifier
                or (isinstance(self.classifier, str) and other.classifier == self.classifier)
            )
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a wrong ``classifier`` before the sanity check."""
        if self.classifier is not None:
            resolve_classifier(pl_module, self.classifier)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find data and classifier; after a resume, make up for an epoch whose measurement was not saved."""
        self._shared_pass.prepare(trainer, pl_module)
        loop = trainer.fit_loop
        in_the_middle = loop.restarted_mid_epoch and not loop.epoch_loop.batch_progress.is_last_batch
        epoch = trainer.current_epoch
        if epoch > 0 and not in_the_middle and self.is_due(epoch, last=False) and self._missing(epoch):
            self._measure_late(trainer, pl_module, epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure where this epoch is due."""
        epoch = trainer.current_epoch + 1
        if not self.is_due(epoch, last=_is_last_epoch(trainer)) or not self._missing(epoch):
            return
        logged = self._measure(trainer, pl_module, epoch)
        pl_module.log_dict(logged, on_step=False, on_epoch=True, sync_dist=trainer.world_size > 1, batch_size=1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the last epoch if it turned out only now to be the last (early stopping after our hook)."""
        epoch = trainer.current_epoch
        if epoch > 0 and self.is_due(epoch, last=True) and self._missing(epoch):
            self._measure_late(trainer, pl_module, epoch)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the figure beside the logs and tell what measuring cost."""
        if trainer.is_global_zero and self.history:
            save_figure(self.plot(), trainer, self.name)
        if self._brings_the_pass:
            cost = self._shared_pass
            rank_zero_info(f"measured {cost.passes} times on the training data, in {cost.seconds:.2f} s")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the loader and the network."""
        if stage == "fit" and self._pass is not None:
            self._pass.release()

    def state_dict(self) -> dict[str, Any]:
        """The history, in plain types."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the history of the run that is resumed."""
        self.history = state_dict["history"]

    @property
    def _shared_pass(self) -> FeaturePass:
        assert self._pass is not None, "Lightning calls setup first"  # noqa: S101
        return self._pass

    def _missing(self, epoch: int) -> bool:
        return not any(entry["epoch"] == epoch for entry in self.history)

    def _measure(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> dict[str, float]:
        last = _is_last_epoch(trainer)
        ncc = any(
            other.wants_ncc and other.is_due(epoch, last=last)
            for other in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(other, EpochMeasurement) and other._pass is self._pass
        )
        measurement = self._shared_pass.measure(trainer, pl_module, epoch, ncc=ncc)
        try:
            if measurement.stats is None:
                raise ValueError("the features are not finite (NaN or infinite)")
            self._warn_of_unseen_classes(measurement)
            numbers = self.record(measurement, trainer)
        except ValueError as error:
            rank_zero_warn(f"{type(self).__name__}: nothing measured after epoch {epoch}: {error}; NaN is recorded")
            numbers = self.unknown()
        self.history.append({"epoch": epoch, **numbers})
        return {f"{self.name}/{key}": value for key, value in numbers.items() if isinstance(value, float)}

    def _measure_late(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        # between epochs `self.log` would count the numbers into the next epoch, or is refused
        logged = self._measure(trainer, pl_module, epoch)
        for logger in trainer.loggers:
            logger.log_metrics({**logged, "epoch": epoch - 1}, step=trainer.global_step)

    def _warn_of_unseen_classes(self, measurement: Measurement) -> None:
        assert measurement.stats is not None  # noqa: S101
        unseen = (measurement.stats.counts == 0).nonzero().flatten().tolist()
        if unseen:
            self._warn_once(f"no training sample has class {', '.join(map(str, unseen))}: left out of every measure")

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            rank_zero_warn(f"{type(self).__name__}: {message}")


def _is_last_epoch(trainer: Trainer) -> bool:
    steps_are_up = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return trainer.should_stop or steps_are_up or trainer.current_epoch + 1 == trainer.max_epochs

"""One pass of the training data through a network, shared by the callbacks that ask for the same one."""

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from lit_papers.callbacks.guest import Unpack, untouched
from lit_papers.callbacks.heads import Head, captured_input, find_head, tensors_in
from lit_papers.neural_collapse.functional import ClassStatistics, nearest_class_mean
from lit_papers.neural_collapse.metrics import ClassStatisticsMetric


@dataclass(frozen=True)
class Measurement:
    """What one pass found; the same on every process.

    Attributes:
        stats: class statistics of the features, or None if some were NaN or infinite.
        weight: of the classifier, (C, d).
        bias: of the classifier, (C,), or None.
        train_error: share of samples whose largest logit is another class; NaN where ``stats`` is None.
        ncc_mismatch: share of samples whose largest logit is not the class with the nearest mean; None if not asked.
    """

    stats: ClassStatistics | None
    weight: Tensor
    bias: Tensor | None
    train_error: float
    ncc_mismatch: float | None


class _EveryNth:
    """The batches of one process: every ``world_size``-th of those that a single process would see."""

    def __init__(self, batches: Iterable[Any], rank: int, world_size: int) -> None:
        self._batches = batches
        self._slice = (rank, None, world_size)

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self._batches), *self._slice)


class FeaturePass:
    """Runs the training data through the network once per measured epoch and keeps the sufficient statistics.

    Args:
        dataloader: complete training data, un-augmented; None takes the data module's ``train_eval_dataloader()``,
            or else the dataset of the training loader in sequential order.
        classifier: last linear layer, its dotted path, or None to find it.
        unpack: from a batch to (argument of forward, class indices).
    """

    def __init__(self, dataloader: Any, classifier: str | nn.Module | None, unpack: Unpack) -> None:
        self.dataloader = dataloader
        self.classifier = classifier
        self.unpack = unpack
        self.passes = 0
        self.seconds = 0.0
        self._loader: Any = None
        self._head: Head | None = None
        self._last: tuple[int, Measurement] | None = None

    @property
    def head(self) -> Head:
        """The classifier of this fit; `prepare` finds it."""
        if self._head is None:
            raise RuntimeError("the classifier is found when training starts")
        return self._head

    def prepare(self, trainer: Trainer, module: LightningModule) -> None:
        """Find loader and classifier with one probing batch; does nothing the second time in a fit.

        Raises:
            ValueError: the loader or the classifier cannot be found, or the batch does not fit them; the message
                names the argument to change.
            TypeError: the targets are not class indices.
        """
        if self._head is not None:
            return
        loader = self.dataloader if self.dataloader is not None else _default_loader(trainer)
        if isinstance(getattr(loader, "sampler", None), DistributedSampler):
            raise ValueError("dataloader must not have a DistributedSampler: the batches are shared out here")
        with untouched(trainer, module):
            batch = next(iter(loader), None)
            if batch is None:
                raise ValueError("dataloader has no batch to measure on")
            inputs, targets = self.unpack(self._to_device(batch, trainer))
            head, faithful = find_head(module, inputs, self.classifier)
            if targets.is_floating_point() or targets.ndim != 1:
                raise TypeError(
                    "neural collapse needs one class index per sample (integers of shape (N,)), got targets of "
                    f"{targets.dtype} and shape {tuple(targets.shape)}; pass `unpack` to turn soft targets into classes"
                )
        if not faithful:
            rank_zero_warn(
                f"the logits are not W h + b of the classifier {head.name!r}: something comes after it, so measures "
                "that use its weight describe another network; pass `classifier` if this is the wrong layer"
            )
        self._loader = _share(loader, trainer)
        self._head = head

    def release(self) -> None:
        """Forget what belongs to one fit."""
        self._loader = self._head = self._last = None

    def measure(self, trainer: Trainer, module: LightningModule, epoch: int, *, ncc: bool) -> Measurement:
        """Statistics of the network as it is now; a second call in the same epoch costs nothing.

        Args:
            trainer: the stranger's trainer.
            module: the LightningModule itself, not its distributed wrapper.
            epoch: number of finished epochs, which names the measurement.
            ncc: whether to compare with the nearest class mean, which keeps features (float32, on the host:
                4 N d bytes) until the pass ends.

        Raises:
            Exception: whatever the loader or the network raised, on the process where it happened; RuntimeError on
                the others, so that none waits for it.
        """
        if self._last is not None and self._last[0] == epoch and (self._last[1].ncc_mismatch is not None or not ncc):
            return self._last[1]
        started = time.perf_counter()
        measurement = self._measure(trainer, module, ncc)
        self._last = (epoch, measurement)
        self.passes += 1
        self.seconds += time.perf_counter() - started
        return measurement

    def _to_device(self, batch: Any, trainer: Trainer) -> Any:
        # the strategy runs the stranger's own transfer hooks
        return trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))

    def _measure(self, trainer: Trainer, module: LightningModule, ncc: bool) -> Measurement:
        linear = self.head.linear
        num_classes, num_features = linear.weight.shape
        # Apple's GPUs have no float64
        device = torch.device("cpu") if module.device.type == "mps" else module.device
        metric = ClassStatisticsMetric(num_classes, num_features).to(device)
        counts = torch.zeros(3, dtype=torch.float64, device=device)  # samples, wrong, not finite
        kept: list[tuple[Tensor, Tensor]] = []
        failure: Exception | None = None
        try:
            with untouched(trainer, module), captured_input(linear) as seen:
                for batch in self._loader:
                    seen.clear()
                    inputs, targets = self.unpack(self._to_device(batch, trainer))
                    logits = tensors_in(module(inputs))[self.head.position]
                    features, predictions = seen[-1], logits.argmax(dim=1)
                    metric.update(features.to(device), targets.to(device))
                    finite = torch.isfinite(features).all()
                    counts += torch.stack(
                        (
                            torch.tensor(len(targets), device=targets.device),
                            (predictions != targets).sum(),
                            ~finite,
                        )
                    ).to(counts)
                    if ncc:
                        kept.append((features.float().cpu(), predictions.cpu()))
        except Exception as error:
            failure = error
        # agree before the first collective: a process that fails alone would leave the others waiting
        if not trainer.strategy.reduce_boolean_decision(failure is None, all=True):
            raise failure or RuntimeError("measuring failed on another process; its error tells why")

        counts = trainer.strategy.reduce(counts, reduce_op="sum")
        weight, bias = linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
        if counts[2] > 0:
            return Measurement(None, weight, bias, float("nan"), float("nan") if ncc else None)
        stats = metric.compute()
        mismatch = None
        if ncc and (stats.counts > 0).sum() < 2:
            mismatch = float("nan")
        elif ncc:
            differ = torch.zeros(1, dtype=torch.float64, device=device)
            for features, predictions in kept:
                nearest = nearest_class_mean(features.to(device), stats)
                differ += (nearest != predictions.to(device)).sum()
            mismatch = (trainer.strategy.reduce(differ, reduce_op="sum") / counts[0]).item()
        return Measurement(stats, weight, bias, (counts[1] / counts[0]).item(), mismatch)


def _default_loader(trainer: Trainer) -> Any:
    own = getattr(getattr(trainer, "datamodule", None), "train_eval_dataloader", None)
    if own is not None:
        return own()
    training = trainer.train_dataloader
    if not isinstance(training, DataLoader) or isinstance(training.dataset, IterableDataset):
        raise ValueError(
            "the training data cannot be read in a fixed order (an iterable dataset, or not one DataLoader): pass "
            "`dataloader`, a loader of the complete training data without augmentation"
        )
    rank_zero_warn(
        "measuring on the dataset of the training loader, with its train-time transforms; for clean images pass "
        "`dataloader`, or give the data module a `train_eval_dataloader()`"
    )
    return DataLoader(
        training.dataset,
        batch_size=training.batch_size or getattr(training.batch_sampler, "batch_size", 1),
        collate_fn=training.collate_fn,
        num_workers=training.num_workers,
    )


def _share(loader: Any, trainer: Trainer) -> Any:
    """What this process reads of a loader: all of it, or its share of the batches."""
    rank, world_size = trainer.global_rank, trainer.world_size
    if world_size == 1:
        return loader
    if isinstance(loader, DataLoader) and loader.batch_sampler is not None:
        return DataLoader(
            loader.dataset,
            batch_sampler=_EveryNth(loader.batch_sampler, rank, world_size),
            collate_fn=loader.collate_fn,
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            worker_init_fn=loader.worker_init_fn,
        )
    return _EveryNth(loader, rank, world_size)  # a stream cannot be indexed: read all, keep our batches

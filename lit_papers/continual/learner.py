"""What the supervised and the unsupervised learner share: keyed randomness, tasks, methods and evaluation."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lit_papers.continual.augmentations import SSLTransform
from lit_papers.continual.knn import KNNClassifier
from lit_papers.continual.methods import Finetune, Method, ProgressiveColumns, Step
from lit_papers.continual.resnet import ResNet

Batch = tuple[Tensor, Tensor]


class ContinualLearner(LightningModule, ABC):
    """Trains a backbone on a stream of tasks by a `Method`, and evaluates its features on every task.

    All randomness of training is keyed by (seed, epoch, batch, process, purpose), so that a resumed run draws what
    the uninterrupted one draws, and a method that draws more leaves the views as they are.

    Args:
        method: against forgetting.
        backbone: from images to features ``(N, D)``.
        transform: from images and a generator to a view; in ``eval()`` it only scales and normalises.
        lr: learning rate, constant over the stream.
        momentum: of SGD.
        weight_decay: of SGD.
        knn_k: neighbours, or ``"tasks_seen"``.
        knn_temperature: of their weights.
        seed: of views, replay and heads' draws; at least 0.
    """

    def __init__(
        self,
        method: Method | None,
        backbone: nn.Module | None,
        transform: nn.Module | None,
        lr: float,
        momentum: float,
        weight_decay: float,
        knn_k: int | Literal["tasks_seen"],
        knn_temperature: float,
        seed: int,
    ) -> None:
        super().__init__()
        if lr <= 0:
            raise ValueError(f"`lr` must be positive, got {lr}")
        if seed < 0:
            raise ValueError(f"`seed` must be at least 0, got {seed}")
        if isinstance(knn_k, str) and knn_k != "tasks_seen":
            raise ValueError(f"`knn_k` must be a number or 'tasks_seen', got {knn_k!r}")
        KNNClassifier(k=1 if isinstance(knn_k, str) else knn_k, temperature=knn_temperature)  # refuses early
        self.method = Finetune() if method is None else method
        self.backbone: nn.Module = ResNet() if backbone is None else backbone
        self.transform: nn.Module = SSLTransform(32) if transform is None else transform
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.knn_k = knn_k
        self.knn_temperature = knn_temperature
        self.seed = seed
        self._task = -1  # the one that was begun last
        self._step: Step | None = None
        self._bank: tuple[int, KNNClassifier] | None = None
        self._prepared = False

    @abstractmethod
    def build_head(self, feature_dim: int) -> None:
        """Make ``head``, what comes behind the features; at once if the backbone knows its ``num_features``."""

    @abstractmethod
    def check_method(self) -> None:
        """Raise a MisconfigurationException that names the method if it does not fit."""

    @abstractmethod
    def views(self, images: Tensor, step: Step, purpose: str = "") -> tuple[Tensor, ...]:
        """Augmented views of raw images."""

    @abstractmethod
    def outputs(self, view: Tensor) -> Tensor:
        """What methods replay: features or logits."""

    @abstractmethod
    def task_loss(self, outputs: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        """The objective, a scalar."""

    def forward(self, view: Tensor) -> Tensor:
        """The outputs of images that are scaled and normalised."""
        return self.outputs(view)

    # -- building ------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check what was combined; build columns and heads, once the data are known.

        Raises:
            MisconfigurationException: the data are no stream, the method does not fit, or gradients are accumulated.
        """
        data = self._stream
        self.check_method()
        name = type(self.method).__name__
        if stage == "fit" and self.trainer.accumulate_grad_batches != 1:
            raise MisconfigurationException(
                f"`accumulate_grad_batches`={self.trainer.accumulate_grad_batches} does not work with a stream, whose "
                "memory is filled after each batch: set it to 1 and choose a larger `batch_size`"
            )
        if self.method.single_process and self.trainer.world_size > 1:
            raise MisconfigurationException(f"{name} selects its memory on one process, but there are several")
        if self._prepared:
            return
        images, _ = next(iter(data.memory_dataloader(0)))
        example = self.plain(images[:2].to(self.device))
        given = self.backbone
        self.backbone = self.method.prepare(given, example, data.num_tasks)
        if self.backbone is not given or not hasattr(self, "head"):
            with _evaluating(self.backbone), torch.no_grad():
                self.build_head(self.backbone(example).shape[1])
        self._prepared = True

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD at a constant rate, one optimizer for the whole stream."""
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

    # -- tasks ---------------------------------------------------------------------------------------------------

    @property
    def _stream(self) -> Any:
        data = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "task_of") or not hasattr(data, "memory_dataloader"):
            raise MisconfigurationException(
                f"{type(self).__name__} trains on a stream: it needs a datamodule with `task_of` and "
                "`memory_dataloader`, such as lit_papers.datamodules.TaskSequence"
            )
        return data

    def _reach(self, task: int) -> None:
        """End and begin tasks until this one has begun.

        A resume may skip any single hook, so several call this; it does nothing twice.
        """
        if self._task < 0:
            self._task = self._stream.task_of(0) - 1  # of several tasks at once only the last begins
        while self._task < task:
            if self._task >= self._stream.task_of(0):
                self._end_task()
            self._task += 1
            if self._task < self._stream.num_tasks:
                self.method.begin_task(self.backbone, self._task)

    def _end_task(self) -> None:
        self.method.end_task(self.backbone, self._task)
        wanted = self.method.samples_per_task(self._stream.num_tasks)
        if not wanted:
            return
        batches = list(self._stream.memory_dataloader(self._task))
        images, labels = (torch.cat([batch[i] for batch in batches]) for i in range(2))
        generator = self._generator(self._task, 0, "kept images", rank=0)
        chosen = torch.randperm(len(labels), generator=generator)[:wanted]
        chosen = chosen.tensor_split(self.trainer.world_size)[self.trainer.global_rank]
        self.method.keep(images[chosen].to(self.device), labels[chosen].to(self.device))

    def on_train_start(self) -> None:
        """Begin the task, also after a resume."""
        self._reach(self._stream.task_of(self.current_epoch))

    def on_train_epoch_start(self) -> None:
        """Begin the task."""
        self._reach(self._stream.task_of(self.current_epoch))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Begin the task, where a resume skipped both others."""
        self._reach(self._stream.task_of(self.current_epoch))

    def on_train_end(self) -> None:
        """End the last task, if the stream is over."""
        self._reach_the_end()

    def on_fit_end(self) -> None:
        """End the last task, where a finished run was resumed."""
        self._reach_the_end()

    def _reach_the_end(self) -> None:
        total = getattr(self._stream, "total_epochs", None)
        if total is not None and self.current_epoch >= total:
            self._reach(self._stream.num_tasks)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save which task was begun."""
        checkpoint["continual_task"] = self._task

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up which task was begun; PNN's columns follow."""
        self._task = checkpoint["continual_task"]
        if 0 <= self._task < self._stream.num_tasks and isinstance(self.backbone, ProgressiveColumns):
            self.backbone.begin(self._task)

    # -- training ------------------------------------------------------------------------------------------------

    def plain(self, images: Tensor) -> Tensor:
        """Images as they are evaluated: scaled and normalised."""
        with _evaluating(self.transform):
            return cast(Tensor, self.transform(images))

    def view(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """One random view of each image."""
        return cast(Tensor, self.transform(images, generator))

    def _generator(self, epoch: int, batch_idx: int, purpose: str, rank: int | None = None) -> torch.Generator:
        key = [self.seed, epoch, batch_idx, self.global_rank if rank is None else rank, zlib.crc32(purpose.encode())]
        return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch by the method.

        Raises:
            FloatingPointError: it is NaN or infinite; nothing was changed by this step yet.
        """
        images, labels = batch
        generator: Callable[[str], torch.Generator] = partial(self._generator, self.current_epoch, batch_idx)
        self._step = step = Step(images, labels, generator)
        loss = self.method.loss(self, step)
        if not bool(torch.isfinite(loss)):
            task = self._stream.task_of(self.current_epoch)
            raise FloatingPointError(
                f"the training loss is {loss.item()} in task {task}, epoch {self.current_epoch}, step {batch_idx} "
                "(counted from 0); try a lower `lr`"
            )
        self.log("train/loss", loss, prog_bar=True, batch_size=len(labels))
        for name, value in step.logs.items():
            self.log(f"train/{name}", value, batch_size=len(labels))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the method look at the gradients, or change them."""
        self.method.before_step(self.backbone, lr=optimizer.param_groups[0]["lr"], penalised=True)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step, then let the method remember.

        Not in ``on_train_batch_end``: callbacks save their checkpoints before the module's own.
        """
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        assert self._step is not None  # noqa: S101
        self.method.after_step(self.backbone)
        self.method.remember(self, self._step)
        self._step = None

    # -- evaluation ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def features(self, images: Tensor, task: int | None = None) -> Tensor:
        """Features of raw images, in evaluation mode; not normalised.

        Args:
            images: uint8, or float in [0, 1]; ``(N, C, H, W)``.
            task: whose column of a progressive network; other networks have one for all.

        Returns:
            float ``(N, D)``.
        """
        view = self.plain(images.to(self.device))
        with _evaluating(self.backbone):
            if isinstance(self.backbone, ProgressiveColumns):
                return cast(Tensor, self.backbone(view, task))
            return cast(Tensor, self.backbone(view))

    def on_validation_epoch_start(self) -> None:
        """Forget the bank of earlier features."""
        self._bank = None

    def on_test_epoch_start(self) -> None:
        """Forget the bank of earlier features."""
        self._bank = None

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs ``val/knn_accuracy`` of one task."""
        self.evaluate(batch, dataloader_idx, "val")

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs ``test/knn_accuracy`` of one task."""
        self.evaluate(batch, dataloader_idx, "test")

    def evaluate(self, batch: Batch, task: int, prefix: str) -> Tensor:
        """Log the accuracy of the nearest-neighbour classifier; returns the features of the batch."""
        images, labels = batch
        features = self.features(images, task)
        found = self._bank_of(task).predict(features) == labels
        self._log_mean(f"{prefix}/knn_accuracy", found)
        return features

    def _log_mean(self, name: str, values: Tensor) -> None:
        self.log(name, values.float().mean(), batch_size=len(values), sync_dist=True, prog_bar=False)

    def _bank_of(self, task: int) -> KNNClassifier:
        """The training images of one task, on every process: each has some of the queries."""
        if self._bank is None or self._bank[0] != task:
            seen = max(self._task, 0) + 1
            knn = KNNClassifier(seen if self.knn_k == "tasks_seen" else int(self.knn_k), self.knn_temperature)
            for images, labels in self._stream.memory_dataloader(task):
                knn.update(self.features(images, task), labels.to(self.device))
                if self.trainer.sanity_checking or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
                    break
            self._bank = (task, knn)
        return self._bank[1]

    def on_validation_epoch_end(self) -> None:
        """Free the bank."""
        self._bank = None


@contextmanager
def _evaluating(module: nn.Module) -> Any:
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, mode in modes:
            submodule.training = mode

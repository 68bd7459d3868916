"""What the supervised and the unsupervised learner share: keyed randomness, tasks, methods and evaluation."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import Tensor, nn

from lit_papers.continual.augmentations import SSLTransform
from lit_papers.continual.knn import KNNClassifier
from lit_papers.continual.methods import Finetune, Method, ProgressiveColumns, Step, TaskData
from lit_papers.continual.methods.base import evaluating
from lit_papers.continual.resnet import ResNet
from lit_papers.continual.tasks import TaskEvents

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

    head: nn.Module
    """What comes behind the features; made by `build_head`."""

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
        self.tasks = TaskEvents()
        self.tasks.listen(self._begin_task, self._end_task)
        self._step: Step | None = None
        self._features: dict[tuple[int, int | None], tuple[Tensor, Tensor]] = {}  # of banks, while one evaluates
        self._classifiers: dict[tuple[tuple[int, ...], int | None], KNNClassifier] = {}
        self._built: dict[str, Any] | None = None  # what backbone and head were built for

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
        self.check_method()
        name = type(self.method).__name__
        if stage == "fit" and self.trainer.accumulate_grad_batches != 1:
            raise MisconfigurationException(
                f"`accumulate_grad_batches`={self.trainer.accumulate_grad_batches} does not work with a stream, whose "
                "memory is filled after each batch: set it to 1 and choose a larger `batch_size`"
            )
        if self.method.single_process and self.trainer.world_size > 1:
            raise MisconfigurationException(f"{name} selects its memory on one process, but there are several")
        if self._built is None:
            self.configure_model()
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it in a connector
                if isinstance(callback, StochasticWeightAveraging):  # it has copied a network without what is built
                    callback.setup(self.trainer, self, stage)

    def configure_model(self) -> None:
        """Build columns and heads, once; callbacks that copy the network (`WeightAveraging`) ask before ``setup``."""
        if self._built is None and self._trainer is not None:  # a checkpoint that is loaded says what to build
            data = self._stream
            images, _ = next(iter(data.memory_dataloader(0)))
            self._build(self.plain(images[:2].to(self.device)), data.num_tasks)

    def _build(self, example: Tensor, num_tasks: int) -> None:
        """Columns, head and what the method has of its own."""
        given = self.backbone
        self.backbone = self.method.prepare(given, example, num_tasks)
        if self.backbone is not given or not hasattr(self, "head"):
            with evaluating(self.backbone), torch.no_grad():
                self.build_head(self.backbone(example).shape[1])
        self.method.connect(self)
        self._built = {"image_shape": list(example.shape[1:]), "num_tasks": num_tasks}

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
        first = self._stream.task_of(0)
        if self.tasks.task < first:
            self.tasks.begin_task(first)  # of several tasks at once only the last begins
        self.tasks.reach(task)

    def _begin_task(self, task: int) -> None:
        self.method.begin_task(self.backbone, task)

    def _end_task(self, task: int) -> None:
        self.method.end_task(self.backbone, task)
        self.method.look_back(self, self._data_of(task))

    def _data_of(self, task: int) -> TaskData:
        stream = self._stream

        def batches() -> Iterator[Batch]:
            for images, labels in stream.memory_dataloader(task):
                yield images.to(self.device), labels.to(self.device)

        def sample(count: int) -> Batch:
            """The images of the smallest random keys, so that they need not be held all at once."""
            generator = self._generator(task, 0, "kept images", rank=0)
            keys = torch.empty(0, dtype=torch.float64)
            kept: tuple[Tensor, ...] = ()
            for batch in stream.memory_dataloader(task):
                keys = torch.cat([keys, torch.rand(len(batch[1]), dtype=torch.float64, generator=generator)])
                best = keys.argsort()[:count]
                keys = keys[best]
                kept = tuple(torch.cat(pair)[best] for pair in zip(kept, batch, strict=True)) if kept else tuple(
                    field[best] for field in batch
                )  # fmt: skip
            mine = torch.arange(len(keys)).tensor_split(self.trainer.world_size)[self.trainer.global_rank]
            return kept[0][mine].to(self.device), kept[1][mine].to(self.device)

        classes = list(stream.classes(task)) if hasattr(stream, "classes") else []  # only methods with labels ask
        return TaskData(task, stream.num_tasks, classes, batches, sample)

    def on_train_start(self) -> None:
        """Begin the task, also after a resume; in a fit that starts anew, also one that ended in an earlier fit."""
        first = self._stream.task_of(0)
        anew = self.trainer.current_epoch == 0 and self.trainer.global_step == 0
        if anew and self.tasks.task >= first and not (self.tasks.running and self.tasks.task == first):
            self.tasks.begin_task(first)
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
        stream = self._stream
        total = getattr(stream, "total_epochs", None)
        own = getattr(stream, "fit_per_task", False)  # then also where early stopping ended the fit
        if own or (total is not None and self.current_epoch >= total):
            self._reach(stream.task_of(self.current_epoch))
            if self.tasks.running:
                self.tasks.end_task()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save which task runs, and what the network was built for."""
        checkpoint["continual"] = {**self.tasks.state_dict(), "built": self._built}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up which task runs; without a Trainer, build what ``setup`` would build."""
        state = checkpoint.get("continual")
        if state is None:
            raise ValueError(f"the checkpoint was not saved by {type(self).__name__}, or by an older version")
        self.tasks.load_state_dict(state)
        if self._built is None and state["built"] is not None:
            self._build(torch.zeros(2, *state["built"]["image_shape"], device=self.device), state["built"]["num_tasks"])
        if isinstance(self.backbone, ProgressiveColumns) and self.tasks.task >= 0:
            self.backbone.begin(self.tasks.task)

    # -- training ------------------------------------------------------------------------------------------------

    def plain(self, images: Tensor) -> Tensor:
        """Images as they are evaluated: scaled and normalised."""
        with evaluating(self.transform):
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
        with evaluating(self.backbone):
            if isinstance(self.backbone, ProgressiveColumns):
                return cast(Tensor, self.backbone(view, task)).float()
            return cast(Tensor, self.backbone(view)).float()

    def on_validation_epoch_start(self) -> None:
        """Forget the features of earlier weights; let the method prepare."""
        self._begin_evaluation()

    def on_test_epoch_start(self) -> None:
        """Forget the features of earlier weights; let the method prepare."""
        self._begin_evaluation()

    def _begin_evaluation(self) -> None:
        self._features, self._classifiers = {}, {}
        if not self.trainer.sanity_checking:
            self.method.before_evaluation(self, self._data_of(max(self.tasks.task, 0)))

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs ``val/knn_accuracy`` of one task, and ``val/knn_accuracy_seen`` if that was seen."""
        self.evaluate(batch, dataloader_idx, "val")

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs ``test/knn_accuracy`` of one task, and ``test/knn_accuracy_seen`` if that was seen."""
        self.evaluate(batch, dataloader_idx, "test")

    def evaluate(self, batch: Batch, task: int, prefix: str) -> Tensor:
        """Log the accuracies of the nearest-neighbour classifiers; returns the features of the batch.

        Neighbours are the task's own training images and, if the task was seen, those of all tasks seen: nobody says
        then which task an image is of.
        """
        images, labels = batch
        features = self.features(images, task)
        self._log_mean(f"{prefix}/knn_accuracy", self._neighbours((task,), task).predict(features) == labels)
        seen = self._seen()
        if task in seen:
            several = isinstance(self.backbone, ProgressiveColumns)
            query = self.features(images) if several else features  # by the newest column, as the task is unknown
            self._log_mean(f"{prefix}/knn_accuracy_seen", self._neighbours(seen, None).predict(query) == labels)
        return features

    def _seen(self) -> tuple[int, ...]:
        """The tasks that were trained on so far."""
        last = max(self.tasks.task, 0)
        return tuple(range(self._stream.num_tasks))[: last + 1]

    def _log_mean(self, name: str, values: Tensor) -> None:
        # Lightning averages the sizes of all processes as integers: 12 and 11 would make 11, and an accuracy above 1
        size = len(values) * self.trainer.world_size
        self.log(name, values.float().mean(), batch_size=size, sync_dist=True, prog_bar=False)

    def _neighbours(self, tasks: tuple[int, ...], column: int | None) -> KNNClassifier:
        """The training images of some tasks, on every process: each has some of the queries."""
        if not isinstance(self.backbone, ProgressiveColumns):
            column = None
        if (tasks, column) not in self._classifiers:
            k = len(self._seen()) if self.knn_k == "tasks_seen" else int(self.knn_k)
            knn = KNNClassifier(k, self.knn_temperature)
            for task in tasks:
                knn.update(*self._features_of(task, column))
            self._classifiers[tasks, column] = knn
        return self._classifiers[tasks, column]

    def _features_of(self, task: int, column: int | None) -> tuple[Tensor, Tensor]:
        if (task, column) not in self._features:
            parts = []
            for images, labels in self._stream.memory_dataloader(task):
                parts.append((self.features(images, column), labels.to(self.device)))
                if self.trainer.sanity_checking or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
                    break
            features, labels = zip(*parts, strict=True)
            self._features[task, column] = torch.cat(features), torch.cat(labels)
        return self._features[task, column]

    def on_validation_epoch_end(self) -> None:
        """Free the features."""
        self._features, self._classifiers = {}, {}

    def on_test_epoch_end(self) -> None:
        """Free the features."""
        self._features, self._classifiers = {}, {}

"""The paper's two learners: on a stream of images without labels, and with them."""

from typing import Literal, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lit_papers.continual.learner import Batch, ContinualLearner
from lit_papers.continual.losses import BarlowTwins, SimSiam
from lit_papers.continual.methods import Method, Step


class UnsupervisedContinual(ContinualLearner):
    """Learns a representation on a stream of tasks, without ever looking at a label (Madaan et al., ICLR 2022).

    It needs a data module with ``task_of`` and ``memory_dataloader``, such as `lit_papers.datamodules.TaskSequence`.
    Each step takes two random views of every image; the method decides what else happens. Validation is by nearest
    neighbours: among each task's own training images, so that a task is told apart from within, and among those of all
    tasks seen, where nobody says which task an image is of.

    Logs ``train/loss``, ``train/penalty`` (SI, DER, CaSSLe), ``train/lambda`` (LUMP), for each task i
    ``val/knn_accuracy/dataloader_idx_i``, and for each task seen ``val/knn_accuracy_seen/dataloader_idx_i``.

    Args:
        method: one of `lit_papers.continual.methods`; None is `Finetune`.
        backbone: from images to features ``(N, D)``; D is its ``num_features``, else found out before training. None
            is the paper's ResNet-18.
        objective: ``"simsiam"`` or ``"barlow_twins"``.
        projection_dim: of projections and predictions.
        transform: from images and a generator to random views, in ``eval()`` without randomness; None is
            ``SSLTransform(32)``.
        lr: learning rate, constant; the authors' is 0.03 for batches of 256, in proportion.
        momentum: of SGD.
        weight_decay: of SGD.
        knn_k: neighbours; ``"tasks_seen"`` as in the authors' code.
        knn_temperature: of the neighbours' weights.
        seed: of all that is drawn in training, at least 0.

    Raises:
        ValueError: an argument is out of its range.
        MisconfigurationException: (before training) the method needs labels, or the data are no stream.
        FloatingPointError: the loss became NaN or infinite.
    """

    def __init__(
        self,
        method: Method | None = None,
        backbone: nn.Module | None = None,
        objective: Literal["simsiam", "barlow_twins"] = "simsiam",
        projection_dim: int = 2048,
        transform: nn.Module | None = None,
        lr: float = 0.03,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        knn_k: int | Literal["tasks_seen"] = 200,
        knn_temperature: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(method, backbone, transform, lr, momentum, weight_decay, knn_k, knn_temperature, seed)
        if objective not in ("simsiam", "barlow_twins"):
            raise ValueError(f"`objective` must be 'simsiam' or 'barlow_twins', got {objective!r}")
        if projection_dim < 1:
            raise ValueError(f"`projection_dim` must be at least 1, got {projection_dim}")
        self.objective = objective
        self.projection_dim = projection_dim
        self.head: nn.Module
        if hasattr(self.backbone, "num_features"):
            self.build_head(int(cast(int, self.backbone.num_features)))

    def build_head(self, feature_dim: int) -> None:
        """Projector and predictor."""
        kind = SimSiam if self.objective == "simsiam" else BarlowTwins
        self.head = kind(feature_dim, self.projection_dim)

    def check_method(self) -> None:
        """Refuse methods that need labels."""
        if self.method.needs_labels:
            raise MisconfigurationException(
                f"{type(self.method).__name__} needs labels, and UnsupervisedContinual does not look at any: use "
                "SupervisedContinual, or another method"
            )

    def views(self, images: Tensor, step: Step, purpose: str = "") -> tuple[Tensor, ...]:
        """Two random views of each image."""
        return tuple(self.view(images, step.generator(f"{purpose}view {i}")) for i in (1, 2))

    def outputs(self, view: Tensor) -> Tensor:
        """Features ``(N, D)``."""
        return cast(Tensor, self.backbone(view))

    def task_loss(self, outputs: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        """SimSiam's or Barlow Twins' loss of two views."""
        return cast(Tensor, self.head(*outputs))


class SupervisedContinual(ContinualLearner):
    """Learns classes on a stream of tasks with one head over all of them, the paper's supervised counterpart.

    Logs, beside what `UnsupervisedContinual` logs, for each task i ``val/accuracy/dataloader_idx_i`` (of the head, or
    of nearest means for `ICaRL`, over all classes) and ``val/task_accuracy/dataloader_idx_i`` (over the classes of the
    task).

    Args:
        num_classes: one more than the largest label.
        method: one of `lit_papers.continual.methods`; None is `Finetune`.
        backbone: as in `UnsupervisedContinual`.
        transform: likewise; the authors use ``SSLTransform(32, padding=4)``.
        lr: learning rate, constant.
        momentum: of SGD.
        weight_decay: of SGD.
        knn_k: neighbours; ``"tasks_seen"`` as in the authors' code.
        knn_temperature: of the neighbours' weights.
        seed: of all that is drawn in training, at least 0.

    Raises:
        ValueError: an argument is out of its range, or (in training) a label is.
        MisconfigurationException: (before training) the method is one without labels, or the data are no stream.
        FloatingPointError: the loss became NaN or infinite.
    """

    def __init__(
        self,
        num_classes: int,
        method: Method | None = None,
        backbone: nn.Module | None = None,
        transform: nn.Module | None = None,
        lr: float = 0.03,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        knn_k: int | Literal["tasks_seen"] = 200,
        knn_temperature: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(method, backbone, transform, lr, momentum, weight_decay, knn_k, knn_temperature, seed)
        if num_classes < 2:
            raise ValueError(f"`num_classes` must be at least 2, got {num_classes}")
        self.num_classes = num_classes
        self.head: nn.Module
        if hasattr(self.backbone, "num_features"):
            self.build_head(int(cast(int, self.backbone.num_features)))

    def build_head(self, feature_dim: int) -> None:
        """One linear layer for all classes."""
        self.head = nn.Linear(feature_dim, self.num_classes)

    def check_method(self) -> None:
        """Refuse methods without labels, and labels without a row of the head."""
        if self.method.needs_no_labels:
            raise MisconfigurationException(
                f"{type(self.method).__name__} mixes images regardless of their labels: use UnsupervisedContinual, or "
                "another method"
            )
        labels = [label for task in range(self._stream.num_tasks) for label in self._stream.classes(task)]
        if max(labels) >= self.num_classes or min(labels) < 0:
            raise ValueError(
                f"`num_classes`={self.num_classes}, but the tasks have labels {min(labels)} to {max(labels)}"
            )

    def views(self, images: Tensor, step: Step, purpose: str = "") -> tuple[Tensor, ...]:
        """One random view of each image."""
        return (self.view(images, step.generator(f"{purpose}view 1")),)

    def outputs(self, view: Tensor) -> Tensor:
        """Logits ``(N, C)``."""
        return cast(Tensor, self.head(self.backbone(view)))

    def task_loss(self, outputs: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        """Cross-entropy over all classes."""
        return nn.functional.cross_entropy(outputs[0], labels)

    def evaluate(self, batch: Batch, task: int, prefix: str) -> Tensor:
        """Log also the accuracy of the method's scores, over all classes and over those of the task."""
        features = super().evaluate(batch, task, prefix)
        labels = batch[1]
        # features are float32, also where all is trained in another precision
        kind = next(self.head.parameters()).dtype
        logits = self.method.scores(features, self.head(features.to(kind)))
        classes = torch.tensor(self._stream.classes(task), device=labels.device)
        self._log_mean(f"{prefix}/accuracy", logits.argmax(dim=1) == labels)
        self._log_mean(f"{prefix}/task_accuracy", classes[logits[:, classes].argmax(dim=1)] == labels)
        return features

"""The experiment of the paper as a LightningModule: a classifier trained by MSE (or cross-entropy) to collapse."""

from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lit_papers.neural_collapse.models import build_network

# The epochs after which the official notebook measures a run of 350.
PAPER_EPOCHS: tuple[int, ...] = (
    *range(1, 15), 16, 17, 19, 20, 22, 24, 27, 29, 32, 35, 38, 42, 45, 50, 54, 59, 65, 71, 77, 85, 92, 101, 110, 121,
    132, 144, 158, 172, 188, 206, 225, 245, 268, 293, 320, 350,
)  # fmt: skip

_LOSSES: dict[str, type[nn.Module]] = {"mse": nn.MSELoss, "ce": nn.CrossEntropyLoss}


class ImageClassifier(LightningModule):
    """Image classifier trained by SGD into the terminal phase (Han, Papyan & Donoho, ICLR 2022).

    The recipe of the official notebook: momentum, weight decay on all parameters, learning rate x0.1 after one and
    two thirds of ``max_epochs``, ``nn.MSELoss()`` on one-hot targets. Batches are ``(images, targets)``, images
    ``(N, *input_shape)`` and integer targets ``(N,)``.

    Args:
        network: a name of `lit_papers.neural_collapse.models.NETWORKS`, or any module from images to logits.
        num_classes: number of classes C.
        input_shape: ``(channels, height, width)``.
        loss: ``"mse"`` (mean over samples and classes) or ``"ce"``.
        lr: initial learning rate, > 0.
        momentum: of SGD, in [0, 1).
        weight_decay: of SGD, >= 0, on every parameter.

    Raises:
        ValueError: an argument is out of its range, the network or loss is unknown, or (before training) the data
            module's images or classes do not fit; (in a step) targets are no classes.

    >>> ImageClassifier()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        network: str | nn.Module = "mlp",
        num_classes: int = 10,
        input_shape: tuple[int, int, int] = (1, 8, 8),
        loss: Literal["mse", "ce"] = "mse",
        lr: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
    ) -> None:
        super().__init__()
        if loss not in _LOSSES:
            raise ValueError(f"loss={loss!r} is unknown; choose one of {', '.join(_LOSSES)}")
        if lr <= 0:
            raise ValueError(f"lr must be > 0, got {lr}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if weight_decay < 0:
            raise ValueError(f"weight_decay must be >= 0, got {weight_decay}")
        self.save_hyperparameters(ignore=["network"] if isinstance(network, nn.Module) else None)
        self.num_classes = num_classes
        self.input_shape = tuple(input_shape)
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.network = (
            network
            if isinstance(network, nn.Module)
            else build_network(network, num_classes=num_classes, input_shape=input_shape)
        )
        self.criterion = _LOSSES[loss]()
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.eval_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def setup(self, stage: str) -> None:
        """Compare the data module's images and classes with ours, before anything runs."""
        data = getattr(self.trainer, "datamodule", None)
        for ours, attribute in ((self.num_classes, "num_classes"), (self.input_shape, "input_shape")):
            theirs = getattr(data, attribute, None)
            if theirs is None or callable(theirs):  # a method may want arguments
                continue
            theirs = tuple(int(size) for size in theirs) if attribute == "input_shape" else int(theirs)  # of any kind
            if theirs != ours:
                raise ValueError(
                    f"the data have {attribute}={theirs}, the model {attribute}={ours}: "
                    f"set --model.{attribute} to that of {type(data).__name__}"
                )

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, C)`` of images ``(N, *input_shape)``."""
        logits: Tensor = self.network(images)
        return logits

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if isinstance(self.criterion, nn.MSELoss):
            try:
                targets = nn.functional.one_hot(targets, self.num_classes).to(logits.dtype)
            except RuntimeError as error:
                raise ValueError(f"targets must be classes from 0 to {self.num_classes - 1}, int64: {error}") from error
        loss: Tensor = self.criterion(logits, targets)
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """One step; logs ``train/loss`` and ``train/accuracy`` per epoch."""
        images, targets = batch
        logits = self(images)
        loss = self._loss(logits, targets)
        self.train_accuracy(logits, targets)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def _evaluate(self, batch: tuple[Tensor, Tensor], prefix: str) -> None:
        images, targets = batch
        logits = self(images)
        self.log(f"{prefix}/loss", self._loss(logits, targets), sync_dist=True)
        self.eval_accuracy(logits, targets)
        self.log(f"{prefix}/accuracy", self.eval_accuracy, prog_bar=True)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Logs ``val/loss`` and ``val/accuracy``."""
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Logs ``test/loss`` and ``test/accuracy``."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Predicted classes ``(N,)`` of a batch."""
        predictions: Tensor = self(batch[0]).argmax(dim=1)
        return predictions

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD, with the learning rate x0.1 after one and two thirds of the epochs (constant without a last one)."""
        optimizer = torch.optim.SGD(
            self.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        epochs = self.trainer.max_epochs or 0
        # a milestone at 0 would already lower the first epoch's rate
        milestones = [epoch for epoch in (epochs // 3, 2 * epochs // 3) if epoch > 0]
        schedule: Any = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

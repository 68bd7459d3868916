"""What the paper's algorithms train, as LightningModules: its lower-bound functions, and any classifier."""

from typing import cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lit_papers.local_sgd.lower_bound_functions import LowerBoundFunction


class ShufflingQuadratic(LightningModule):
    r"""A lower-bound function trained by plain SGD through a real Trainer (Yun, Rajput & Sra, ICLR 2022).

    .. math:: x \leftarrow x - \text{lr} \cdot \frac1b \sum_{i=1}^{b} f'(x; z_i)

    With `lit_papers.datamodules.Components` it takes the steps of `lit_papers.local_sgd.theory.simulate`: local SGD
    with ``batch_size=1``, ``lr`` :math:`= \eta` and ``LocalSGDStrategy(sync_every=B)``; minibatch SGD with
    ``batch_size=B``, ``lr`` :math:`= \eta B` and the strategy ``ddp``. Batches are data ``z``, shape ``(b,)``.

    At each epoch's end it logs ``local_sgd/suboptimality``, the mean over processes of :math:`F(x) - F^*`: that of the
    average, as the strategy averages at the end of an epoch.

    Args:
        function: what is minimised.
        lr: step size, > 0.
        start: :math:`x_0`.

    Attributes:
        x: the parameter, float64, shape ``()``.

    Raises:
        ValueError: ``lr`` is out of its range.

    >>> from lit_papers.local_sgd.theory import Quadratic
    >>> module = ShufflingQuadratic(Quadratic(), lr=0.1, start=2.0)
    >>> module.training_step(torch.tensor([1.0, -1.0], dtype=torch.float64), 0).item()
    2.0
    """

    def __init__(self, function: LowerBoundFunction, lr: float, start: float = 0.0) -> None:
        super().__init__()
        _check_lr(lr)
        self.save_hyperparameters(ignore=["function"])
        self.function = function
        self.lr = lr
        self.x = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        """Mean of the components ``batch`` at ``x``."""
        return self.function.value(self.x, batch).mean()

    def on_train_epoch_end(self) -> None:
        """Log ``local_sgd/suboptimality``."""
        error = self.function.suboptimality(self.x.detach())
        self.log("local_sgd/suboptimality", error, prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD with a constant step and nothing else."""
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class LocalSGDClassifier(LightningModule):
    """A classifier trained by SGD at a constant rate; it knows nothing of the strategy it runs under.

    Batches are ``(inputs, targets)`` with integer targets ``(N,)``; the loss is cross-entropy. Logs ``train/loss``,
    ``val/loss``, ``val/accuracy``, ``test/loss`` and ``test/accuracy`` once an epoch, so that under a strategy with
    rare communication no metric adds any in between.

    Args:
        model: any module from inputs to logits ``(N, C)``.
        lr: learning rate, > 0.
        momentum: in [0, 1).
        weight_decay: >= 0, on every parameter.

    Raises:
        ValueError: an argument is out of its range.

    >>> LocalSGDClassifier(nn.Linear(3, 2), lr=0.1)(torch.zeros(4, 3)).shape
    torch.Size([4, 2])
    """

    def __init__(self, model: nn.Module, lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__()
        _check_lr(lr)
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must be in [0, 1), got {momentum}")
        if weight_decay < 0:
            raise ValueError(f"`weight_decay` must be >= 0, got {weight_decay}")
        self.save_hyperparameters(ignore=["model"])
        self.model = model
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.accuracy = MeanMetric()  # of right or wrong: the number of classes is the model's own business

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(N, C)``."""
        return cast(Tensor, self.model(inputs))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Cross-entropy of one batch."""
        inputs, targets = batch
        loss = nn.functional.cross_entropy(self(inputs), targets)
        # not on_step: with sync_dist that would be a collective for every batch
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Logs ``val/loss`` and ``val/accuracy``."""
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Logs ``test/loss`` and ``test/accuracy``."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Predicted classes ``(N,)`` of a batch."""
        return cast(Tensor, self(batch[0]).argmax(dim=1))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD at a constant rate."""
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def _evaluate(self, batch: tuple[Tensor, Tensor], prefix: str) -> None:
        inputs, targets = batch
        logits = self(inputs)
        self.accuracy(logits.argmax(1) == targets)
        self.log(f"{prefix}/loss", nn.functional.cross_entropy(logits, targets), sync_dist=True)
        self.log(f"{prefix}/accuracy", self.accuracy, prog_bar=True)


def _check_lr(lr: float) -> None:
    if not lr > 0:
        raise ValueError(f"`lr` must be > 0, got {lr}")

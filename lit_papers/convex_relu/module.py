"""The non-convex side: a two-layer ReLU network trained with gradients, in the units of the convex program."""

from typing import Any, Literal, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import RandomSampler, SequentialSampler, WeightedRandomSampler

from lit_papers.convex_relu.losses import Loss, loss_value
from lit_papers.convex_relu.networks import to_network
from lit_papers.convex_relu.problem import check_beta
from lit_papers.convex_relu.solution import ConvexSolution


class TwoLayerReLU(LightningModule):
    """``f(x) = sum_j alpha_j (u_j . x)_+`` with weight decay, without biases (append a column of ones for one).

    The training loss of a batch of B samples out of N is the mean loss plus ``beta / (2 N)`` times the squared norm of
    all weights: over the full batch, the objective L of the convex program divided by N. The optimizer itself has no
    weight decay, so SGD and Adam both minimise L. The learning rate falls to 0 by a cosine over the run's steps.

    Batches are ``(x, y)``: (B, in_features), and (B,) or (B, 1). Logs ``train/loss`` (with the penalty), ``val/loss``
    (mean loss without it), and ``val/accuracy`` for the logistic loss; ``test/`` likewise.

    Args:
        in_features: d, at least 1.
        num_neurons: m, at least 1.
        beta: strength of the weight decay in L, which sums over samples; positive.
        loss: ``squared`` is ``(z - y)^2 / 2``; ``logistic`` wants targets -1 and +1.
        lr: initial learning rate, positive.
        optimizer: ``adam`` or ``sgd`` (without momentum).

    Raises:
        ValueError: an argument is out of range, or (in a step) targets are none of the loss.
        MisconfigurationException: at the start of training, if the training data have no length.
    """

    def __init__(
        self,
        in_features: int,
        num_neurons: int,
        *,
        beta: float,
        loss: Loss = "squared",
        lr: float = 1e-2,
        optimizer: Literal["adam", "sgd"] = "adam",
    ) -> None:
        super().__init__()
        for name, count in (("in_features", in_features), ("num_neurons", num_neurons)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1; got {count}.")
        if loss not in ("squared", "logistic"):
            raise ValueError(f"loss must be 'squared' or 'logistic'; got {loss!r}.")
        if optimizer not in ("adam", "sgd"):
            raise ValueError(f"optimizer must be 'adam' or 'sgd'; got {optimizer!r}.")
        if not lr > 0:
            raise ValueError(f"lr must be positive; got {lr}.")
        self.save_hyperparameters()
        self.beta = check_beta(beta)
        self.loss: Loss = loss
        self.lr = lr
        self.optimizer = optimizer
        self.hidden = nn.Linear(in_features, num_neurons, bias=False)
        self.output = nn.Linear(num_neurons, 1, bias=False)
        self._num_samples = 0

    @classmethod
    def from_solution(
        cls, solution: ConvexSolution, *, num_neurons: int | None = None, **kwargs: Any
    ) -> "TwoLayerReLU":
        """The optimal network of a solution of the ReLU program, in float32.

        Args:
            solution: of the ReLU program.
            num_neurons: pad with zero neurons to this width; None takes as many as are needed (at least 1).
            kwargs: ``lr`` and ``optimizer``.

        Raises:
            ValueError: `num_neurons` is too small.
        """
        weight, alpha = to_network(solution)
        weight, alpha = to_network(solution, num_neurons=max(len(alpha), 1) if num_neurons is None else num_neurons)
        module = cls(weight.shape[1], len(alpha), beta=solution.beta, loss=solution.loss, **kwargs)
        with torch.no_grad():
            module.hidden.weight.copy_(weight)
            module.output.weight.copy_(alpha[None])
        return module

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (n,) of samples (n, in_features)."""
        return cast(Tensor, self.output(self.hidden(x).relu())[:, 0])

    def on_fit_start(self) -> None:
        """Forget the data of a fit before, which a guest would be shown until training starts."""
        self._num_samples = 0

    def on_train_start(self) -> None:
        """Refuse data of unknown length, on which the share of the penalty depends, before any training is lost."""
        self._count_samples()

    def _count_samples(self) -> int:
        """Number of training samples; when a guest looks at a step, it may be asked for before training starts."""
        try:
            loader: Any = self.trainer.train_dataloader
            if loader is None:  # where a checkpoint is validated
                loader = cast(Any, self.trainer).datamodule.train_dataloader()
            self._num_samples = _rows(loader, self.trainer.num_training_batches)
        except (AttributeError, TypeError):
            raise MisconfigurationException(
                "TwoLayerReLU needs one training loader over a dataset with a length, whose batches are drawn from it: "
                "the penalty of a batch is its share of beta / 2 |weights|^2."
            ) from None
        return self._num_samples

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Loss of one batch."""
        x, y = self._targets(batch)
        mean = loss_value(self(x), y, self.loss) / len(x)
        penalty = self.hidden.weight.square().sum() + self.output.weight.square().sum()
        loss = mean + 0.5 * self.beta / (self._num_samples or self._count_samples()) * penalty
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=len(x))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Log ``val/loss``, and ``val/accuracy`` for the logistic loss."""
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Log ``test/loss``, and ``test/accuracy`` for the logistic loss."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Outputs (B,) of a batch."""
        return cast(Tensor, self(batch[0]))

    def _targets(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B,) of a batch."""
        x, y = batch
        y = y.reshape(-1).to(x.dtype)
        if len(y) != len(x):
            raise ValueError(f"targets must be one number a sample; got {len(y)} for {len(x)} samples.")
        if self.loss == "logistic" and not bool((y.abs() == 1).all()):
            raise ValueError(
                f"targets must be -1 or +1 under the logistic loss; got {y[y.abs() != 1][0].item():g}. 0/1 labels "
                "become 2 * y - 1."
            )
        return x, y

    def _evaluate(self, batch: tuple[Tensor, Tensor], prefix: str) -> None:
        x, y = self._targets(batch)
        z = self(x)
        self.log(f"{prefix}/loss", loss_value(z, y, self.loss) / len(x), sync_dist=True, batch_size=len(x))
        if self.loss == "logistic":
            hits = (z * y > 0).float().mean()
            self.log(f"{prefix}/accuracy", hits, prog_bar=True, sync_dist=True, batch_size=len(x))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, and its cosine over the run's steps; a run without end keeps its rate."""
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.SGD
        optimizer = kind(self.parameters(), lr=self.lr)
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            return optimizer
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, int(steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


def _rows(loader: Any, batches: float) -> int:
    """Number of samples that are trained on, over all processes, but for those that are held out.

    Args:
        loader: a ``DataLoader``.
        batches: of an epoch, on this process: where the order is fixed, what comes after them is held out.

    Raises:
        TypeError: its data have no length, or a sample of them is a batch.
    """
    if loader.batch_sampler is None:
        raise TypeError
    sampler = getattr(loader.batch_sampler, "sampler", None)
    if sampler is None:  # a batch sampler of one's own
        return len(loader.dataset)
    if isinstance(sampler, (RandomSampler, WeightedRandomSampler)):  # what an epoch leaves out comes in another
        return len(loader.dataset)
    shared = hasattr(sampler, "num_replicas")  # it deals out what it has to all processes
    rows: int = len(sampler.dataset) if shared else len(sampler)
    fixed = not sampler.shuffle if shared else isinstance(sampler, (SequentialSampler, list, tuple, range))
    size = getattr(loader.batch_sampler, "batch_size", None)
    if not fixed or size is None or batches == float("inf"):
        return rows
    reached: int = int(batches) * size * (sampler.num_replicas if shared else 1)
    return min(rows, reached)

"""The paper's experiment as a LightningModule: a classifier biased towards interactions of chosen orders."""

from typing import cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lit_papers.interactions.losses import InteractionOrderLoss
from lit_papers.interactions.players import Players


class OrderBiasedClassifier(LightningModule):
    r"""A classifier that learns interactions of chosen orders (Deng, Ren, Zhang & Zhang, ICLR 2022, section 4).

    .. math:: L = L_\text{cross-entropy} + \lambda_+ L_+(r_1, r_2) + \lambda_- L_-(r_1, r_2)

    The paper's networks are ``OrderBiasedClassifier(network, players, **ORDER_BIAS["mid"])`` and so on. Batches are
    ``(x, y)`` with integer classes ``(N,)``; ``x`` is normalised, so that ``baseline`` 0 is the average sample. SGD;
    the learning rate falls geometrically from ``lr`` in the first epoch to ``lr * lr_final_ratio`` in the last.

    Logs ``train/loss``, ``train/loss_cls``, ``train/loss_encourage``, ``train/loss_penalize``, ``train/acc``,
    ``val/loss``, ``val/acc``, ``test/loss`` and ``test/acc``, once an epoch.

    Args:
        backbone: any module from ``x`` to logits ``(N, C)``.
        players: what the losses mask; None for a classifier without bias.
        encourage: ``(r1, r2)`` of the loss that encourages the orders between two shares of the players, or None.
        penalize: ``(r1, r2)`` of the loss that penalises them, or None.
        encourage_weight: :math:`\lambda_+`.
        penalize_weight: :math:`\lambda_-`.
        baseline: what replaces absent players.
        lr: initial learning rate, > 0.
        momentum: in [0, 1).
        weight_decay: >= 0, on every parameter.
        lr_final_ratio: last learning rate by the first, in (0, 1].

    Raises:
        ValueError: an argument is out of its range, or ``players`` is missing where a loss needs them.

    >>> from lit_papers.interactions.players import FeaturePlayers
    >>> OrderBiasedClassifier(nn.Linear(4, 2), FeaturePlayers(4), encourage=(0.5, 1.0))(torch.zeros(3, 4)).shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        backbone: nn.Module,
        players: Players | None = None,
        encourage: tuple[float, float] | None = None,
        penalize: tuple[float, float] | None = None,
        encourage_weight: float = 1.0,
        penalize_weight: float = 1.0,
        baseline: float | Tensor = 0.0,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        lr_final_ratio: float = 0.1,
    ) -> None:
        super().__init__()
        if not lr > 0:
            raise ValueError(f"`lr` must be > 0, got {lr}")
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must be in [0, 1), got {momentum}")
        if not weight_decay >= 0:
            raise ValueError(f"`weight_decay` must be >= 0, got {weight_decay}")
        if not 0 < lr_final_ratio <= 1:
            raise ValueError(f"`lr_final_ratio` must be in (0, 1], got {lr_final_ratio}")
        self.save_hyperparameters(ignore=["backbone", "players"])
        self.backbone = backbone
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.lr_final_ratio = lr_final_ratio
        self.order_losses = nn.ModuleDict()
        if encourage is not None:
            r1, r2 = encourage
            self.order_losses["encourage"] = InteractionOrderLoss(
                _needed(players, "encourage"), r1, r2, "encourage", encourage_weight, baseline=baseline
            )
        if penalize is not None:
            r1, r2 = penalize
            self.order_losses["penalize"] = InteractionOrderLoss(
                _needed(players, "penalize"), r1, r2, "penalize", penalize_weight, baseline=baseline
            )
        self.train_accuracy = MeanMetric()  # of right or wrong: the number of classes is the backbone's own business
        self.eval_accuracy = MeanMetric()

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, C)``."""
        return cast(Tensor, self.backbone(x))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """One step; each bias costs a pass of three times the batch."""
        x, y = batch
        logits = self(x)
        losses = {"loss_cls": nn.functional.cross_entropy(logits, y)}
        for mode, order_loss in self.order_losses.items():
            losses[f"loss_{mode}"] = order_loss(self.backbone, x, y)
        loss = torch.stack(list(losses.values())).sum()
        self.train_accuracy(logits.argmax(dim=1) == y)
        for name, value in {"loss": loss, **losses}.items():
            shown = name == "loss"
            self.log(f"train/{name}", value, on_step=False, on_epoch=True, prog_bar=shown, sync_dist=True)
        self.log("train/acc", self.train_accuracy, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Logs ``val/loss``, the cross-entropy alone, and ``val/acc``."""
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Logs ``test/loss``, the cross-entropy alone, and ``test/acc``."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Predicted classes ``(N,)`` of a batch."""
        return cast(Tensor, self(batch[0]).argmax(dim=1))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD, whose rate falls geometrically over ``max_epochs`` (constant where training has no last epoch)."""
        optimizer = torch.optim.SGD(
            self.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        falls = max(1, (self.trainer.max_epochs or 0) - 1)
        gamma = self.lr_final_ratio ** (1 / falls) if (self.trainer.max_epochs or 0) > 1 else 1.0
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)}

    def _evaluate(self, batch: tuple[Tensor, Tensor], prefix: str) -> None:
        x, y = batch
        logits = self(x)
        self.eval_accuracy(logits.argmax(dim=1) == y)
        self.log(f"{prefix}/loss", nn.functional.cross_entropy(logits, y), sync_dist=True)
        self.log(f"{prefix}/acc", self.eval_accuracy, prog_bar=True)


def _needed(players: Players | None, mode: str) -> Players:
    if players is None:
        raise ValueError(f"`{mode}` masks players: pass `players`, such as PatchGrid(4) or FeaturePlayers(14)")
    return players

"""Training graph networks to tell graphs apart."""

from collections import deque
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lit_papers.expressiveness.adapter import GraphCall, Readout
from lit_papers.expressiveness.kmpnn import recalibrate

_BATCHES = 16  # of an epoch, from which statistics are taken


class SeparationModule(LightningModule):
    """Trains a graph network on batches of graphs, such as those of `lit_papers.datamodules.GraphPairs`.

    ``contrastive`` pushes the embeddings of rows (0, 1), (2, 3), ... apart: cosine embedding loss with target -1, as
    BREC does. ``classification`` and ``regression`` fit ``batch.y``, by cross-entropy or mean squared error.

    At the end of each epoch, batch norms get the statistics of its last batches with the weights of that moment
    (`lit_papers.expressiveness.kmpnn.recalibrate`), so that evaluation sees what was learned.

    Logs ``train/loss``, ``val/loss``, and ``val/accuracy`` for classification; ``test/`` likewise.

    Args:
        model: of any call that `lit_papers.expressiveness.adapter.GraphCall` knows.
        objective: see above.
        readout: for models with an output for each node.
        margin: of the contrastive loss, in [-1, 1].
        lr: of Adam.
        weight_decay: of Adam.

    Raises:
        ValueError: an argument is out of range, or a contrastive batch has an odd number of graphs, or
            outputs are not as many as the targets of a regression.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        objective: Literal["contrastive", "classification", "regression"] = "contrastive",
        readout: Readout | None = None,
        margin: float = 0.0,
        lr: float = 1e-4,
        weight_decay: float = 1e-4,
    ) -> None:
        super().__init__()
        if objective not in ("contrastive", "classification", "regression"):
            raise ValueError(f"objective must be contrastive, classification or regression; got {objective!r}.")
        if not -1 <= margin <= 1:
            raise ValueError(f"margin must lie in [-1, 1]; got {margin}.")
        if not lr > 0:
            raise ValueError(f"lr must be positive; got {lr}.")
        self.save_hyperparameters(ignore=["model"])
        self.model = model
        self.objective = objective
        self.call = GraphCall(readout=readout)
        self.margin = margin
        self.lr = lr
        self._recent: deque[Any] = deque(maxlen=_BATCHES)
        self.weight_decay = weight_decay

    def forward(self, batch: Any) -> Tensor:
        """Embeddings (B, d) of a PyG ``Batch``."""
        return self.call(self.model, batch)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """Loss of one batch."""
        loss = self._loss(self(batch), batch)
        self.log(
            "train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=batch.num_graphs
        )
        return loss

    def on_train_epoch_start(self) -> None:
        """Forget batches of a fit that was cut short."""
        self._recent.clear()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Keep the last batches."""
        self._recent.append(batch)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step, and after the last batch of an epoch recalibrate batch norms, before any validation.

        Not in ``on_train_batch_end`` alone: callbacks save their checkpoints before the module's own.
        """
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.trainer.is_last_batch:
            recalibrate(self.model, self._recent, self.call)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Once more, where processes averaged their weights since; the batches have served."""
        if self.trainer.is_last_batch:
            if self.trainer.world_size > 1:
                recalibrate(self.model, self._recent, self.call)
            self._recent.clear()

    def on_train_epoch_end(self) -> None:
        """Recalibrate batch norms where ``max_steps`` ended the epoch before its last batch."""
        if self._recent:
            recalibrate(self.model, self._recent, self.call)
            self._recent.clear()

    def validation_step(self, batch: Any, batch_index: int) -> None:
        """Log ``val/loss``, and ``val/accuracy`` for classification."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_index: int) -> None:
        """Log ``test/loss``, and ``test/accuracy`` for classification."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Any, prefix: str) -> None:
        output, size = self(batch), batch.num_graphs
        self.log(f"{prefix}/loss", self._loss(output, batch), sync_dist=True, batch_size=size)
        if self.objective == "classification":
            hits = (output.argmax(1) == batch.y).float().mean()
            self.log(f"{prefix}/accuracy", hits, prog_bar=True, sync_dist=True, batch_size=size)

    def _loss(self, output: Tensor, batch: Any) -> Tensor:
        if self.objective == "classification":
            return nn.functional.cross_entropy(output, batch.y)
        if self.objective == "regression":
            if batch.y.numel() != output.numel():
                raise ValueError(
                    f"regression wants a target for each output; got {batch.y.numel()} for {tuple(output.shape)}: do "
                    "the outputs of the network fit the targets?"
                )
            return nn.functional.mse_loss(output, batch.y.reshape(output.shape).to(output))
        if len(output) % 2:
            raise ValueError(f"a contrastive batch holds pairs of graphs; got {len(output)}.")
        apart = output.new_full((len(output) // 2,), -1.0)
        return nn.functional.cosine_embedding_loss(output[::2], output[1::2], apart, margin=self.margin)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.Adam(trained, lr=self.lr, weight_decay=self.weight_decay)

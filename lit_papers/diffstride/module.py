"""The paper's experiment as a LightningModule: a classifier whose strides are trained with its weights."""

from contextlib import nullcontext
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import SGD
from torchmetrics import MeanMetric

from lit_papers.diffstride.complexity import CostPenalty
from lit_papers.diffstride.cost import CostCounter
from lit_papers.diffstride.functional import complexity_penalty
from lit_papers.diffstride.layers import DiffStride
from lit_papers.diffstride.matching import MATCHES
from lit_papers.diffstride.matching import match as match_network

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def _paper_sgd(parameters: Any) -> SGD:
    """The official CIFAR optimiser: Keras' L2 penalty of 5e-4 is a weight decay of 1e-3."""
    return SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3)


class StridedClassifier(LightningModule):
    r"""A classifier that learns its strides, and can be made to pay for what they cost (Riad et al., ICLR 2022).

    The loss is cross-entropy plus ``complexity_weight`` times the complexity of all `DiffStride` layers of ``model``,
    in module order, each once. It takes any model, strided baselines included, whose complexity is 0. Batches are
    ``(inputs, targets)`` with integer targets ``(N,)``.

    The optimizer gets up to three parameter groups: weights with its own weight decay; parameters of normalisation
    layers without; strides without, at ``stride_lr``. After each step strides are raised to their lower bound.

    Logs ``train/loss``, ``train/accuracy`` (under mixup, of the image with the larger share), ``train/complexity``
    (without its weight), ``val/loss``, ``val/accuracy``, ``test/loss``, ``test/accuracy``, and beside them
    what a sample costs, ``val/gmacs`` and ``test/gmacs``: 1e9 multiply-adds, as `CostCounter` counts them.

    Args:
        model: any module from inputs to logits ``(N, C)``.
        complexity_weight: lambda, >= 0.
        mixup_alpha: of mixup's Beta distribution; 0 for none, the paper's runs have 0.2. Each image has a share of its
            own, as in the paper's code; pairs are of one batch.
        label_smoothing: in [0, 1), in training alone.
        stride_lr: learning rate of the strides; None for that of the weights, as in the paper.
        optimizer: from parameter groups to an optimizer.
        lr_scheduler: from the optimizer to a schedule; None for a constant rate.
        lr_interval: whether a step of the schedule is an ``"epoch"`` or an optimizer ``"step"``.
        match: what the learned strides begin with: the ``"strides"`` of the model; or those at which it has the map
            ``"sizes"``, or the ``"macs"``, of spectral pooling at these strides, for a comparison at equal cost
            (`lit_papers.diffstride.matching.match`; the smoothness is lowered where maps are small). The trainer needs
            a data module for it.
        complexity: ``"map_area"``, the paper's J; or ``"macs"``, true multiply-adds for each sample in units of 1e9,
            for which the model must run eagerly.

    Raises:
        ValueError: an argument is out of its range.

    >>> StridedClassifier(nn.Linear(3, 2))(torch.zeros(4, 3)).shape
    torch.Size([4, 2])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        complexity_weight: float = 0.0,
        mixup_alpha: float = 0.0,
        label_smoothing: float = 0.0,
        stride_lr: float | None = None,
        optimizer: OptimizerCallable = _paper_sgd,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        complexity: Literal["map_area", "macs"] = "map_area",
        match: Literal["strides", "sizes", "macs"] = "strides",
    ) -> None:
        super().__init__()
        for name, value in (("complexity_weight", complexity_weight), ("mixup_alpha", mixup_alpha)):
            if value < 0:
                raise ValueError(f"`{name}` must be >= 0, got {value}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"`label_smoothing` must be in [0, 1), got {label_smoothing}")
        if stride_lr is not None and stride_lr < 0:
            raise ValueError(f"`stride_lr` must be >= 0, got {stride_lr}")
        if complexity not in ("map_area", "macs"):
            raise ValueError(f"`complexity` must be 'map_area' or 'macs', got {complexity!r}")
        if lr_interval not in ("epoch", "step"):
            raise ValueError(f"`lr_interval` must be 'epoch' or 'step', got {lr_interval!r}")
        if match not in MATCHES:
            raise ValueError(f"`match` must be one of {', '.join(MATCHES)}, got {match!r}")
        self.save_hyperparameters(ignore=["model", "optimizer", "lr_scheduler"])
        self.model = model
        self.complexity_weight = complexity_weight
        self.mixup_alpha = mixup_alpha
        self.label_smoothing = label_smoothing
        self.stride_lr = stride_lr
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.complexity = complexity
        self.match = match
        self.train_accuracy, self.eval_accuracy = MeanMetric(), MeanMetric()

    @property
    def stride_layers(self) -> list[DiffStride]:
        """The layers with learnable strides, in module order, each once."""
        return [layer for layer in self.model.modules() if isinstance(layer, DiffStride)]

    def setup(self, stage: str) -> None:
        """Match what the strides begin with, once, and before a checkpoint is loaded.

        Raises:
            ValueError: there is no data module to take a sample from.
        """
        if self.match == "strides" or not self.stride_layers:
            return
        source = getattr(self.trainer, "datamodule", None)
        if source is None:
            raise ValueError(
                f"match={self.match!r} needs a data module; without one call lit_papers.diffstride.matching.match("
                f"{self.match!r}, model, example) before training"
            )
        loader = {"fit": source.train_dataloader, "validate": source.val_dataloader, "test": source.test_dataloader}
        with torch.random.fork_rng(devices=[]):  # training must not notice
            inputs = next(iter(loader.get(stage, source.predict_dataloader)()))[0]
        match_network(self.match, self.model, inputs[:1].to(self.device))
        self.match = "strides"

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(N, C)``."""
        return cast(Tensor, self.model(inputs))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Loss of one batch, mixed up if asked for."""
        inputs, targets = batch
        share, partner = self._mix(len(targets))
        if partner is not None:
            each = share.reshape(-1, *[1] * (inputs.ndim - 1)).to(inputs.dtype)
            inputs = each * inputs + (1 - each) * inputs[partner]
        in_macs = self.complexity == "macs" and bool(self.stride_layers)
        with CostPenalty(self.model) if in_macs else nullcontext() as cost:
            logits = self(inputs)
        loss = self._entropy(logits, targets, share)
        if partner is not None:
            loss = loss + self._entropy(logits, targets[partner], 1 - share)
        complexity = self._map_area() if cost is None else cost.macs() / 1e9
        if self.complexity_weight:
            loss = loss + self.complexity_weight * complexity
        self.train_accuracy(logits.argmax(1) == targets)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True, prog_bar=True)
        self.log("train/complexity", complexity, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def _entropy(self, logits: Tensor, targets: Tensor, share: Tensor) -> Tensor:
        losses = nn.functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing, reduction="none")
        return (share * losses).mean()

    def _mix(self, samples: int) -> tuple[Tensor, Tensor | None]:
        """The larger share of each sample, and its partner."""
        if self.mixup_alpha == 0:
            return torch.ones(samples, device=self.device), None
        # half precision, the default of a step, has no draws
        alpha = torch.tensor(self.mixup_alpha, dtype=torch.float32)
        share = torch.distributions.Beta(alpha, alpha).sample((samples,)).to(self.device)
        return torch.maximum(share, 1 - share), torch.randperm(samples, device=self.device)

    def _map_area(self) -> Tensor:
        each = [layer.strides.expand(layer.axes) for layer in self.stride_layers]
        # a sequence has no second axis to shrink
        areas = [torch.cat([strides, strides.new_ones(1)]) if len(strides) == 1 else strides for strides in each]
        return complexity_penalty(areas) if areas else torch.zeros((), device=self.device)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step, then raise strides to the bound below which they have no effect.

        Not in ``on_train_batch_end``: callbacks save their checkpoints before the module's own.
        """
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        for layer in self.stride_layers:
            layer.project_()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Logs ``val/loss``, ``val/accuracy`` and ``val/gmacs``."""
        self._evaluate(batch, batch_index, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Logs ``test/loss``, ``test/accuracy`` and ``test/gmacs``."""
        self._evaluate(batch, batch_index, "test")

    def _evaluate(self, batch: tuple[Tensor, Tensor], batch_index: int, prefix: str) -> None:
        inputs, targets = batch
        if batch_index == 0:
            self._log_cost(inputs[:1], prefix)
        logits = self(inputs)
        self.eval_accuracy(logits.argmax(1) == targets)
        self.log(f"{prefix}/loss", nn.functional.cross_entropy(logits, targets), sync_dist=True)
        self.log(f"{prefix}/accuracy", self.eval_accuracy, prog_bar=True)

    # for when all of us is compiled; the stance is for a compiled model
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _log_cost(self, inputs: Tensor, prefix: str) -> None:
        """Log what one sample costs; of baselines too, which no callback watches."""
        with torch.compiler.set_stance("force_eager"), CostCounter(self.model) as counter:
            self.model(inputs)
        self.log(f"{prefix}/gmacs", counter.macs / 1e9, sync_dist=True)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Predicted classes ``(N,)`` of a batch."""
        return cast(Tensor, self(batch[0])).argmax(dim=1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer on its parameter groups, and the schedule."""
        optimizer = self.optimizer(self.parameter_groups())
        if self.lr_scheduler is None:
            return optimizer
        schedule: Any = {"scheduler": self.lr_scheduler(optimizer), "interval": self.lr_interval}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Weights, parameters of normalisation layers, and strides, as far as there are any that train."""
        strides = {layer.strides for layer in self.stride_layers}
        norms = {
            parameter for layer in self.model.modules() if isinstance(layer, _NORMS) for parameter in layer.parameters()
        }
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [parameter for parameter in trained if parameter not in norms | strides]},
            {"params": [parameter for parameter in trained if parameter in norms], "weight_decay": 0.0},
            {"params": [parameter for parameter in trained if parameter in strides], "weight_decay": 0.0},
        ]
        if self.stride_lr is not None:
            groups[2]["lr"] = self.stride_lr
        return [group for group in groups if group["params"]]

"""A project as small as they come: any network, pairs as batches, SGD."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Small(LightningModule):
    def __init__(self, network: nn.Module, loss: nn.Module | None = None, **sgd: Any) -> None:
        super().__init__()
        self.network = network
        self.loss = loss or nn.MSELoss()
        self.sgd = {"lr": 0.1, **sgd}

    def forward(self, images: Tensor) -> Any:
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        images, targets = batch
        logits = self(images)
        logits = logits[0] if isinstance(logits, tuple) else logits
        if isinstance(self.loss, nn.MSELoss) and not targets.is_floating_point():
            targets = nn.functional.one_hot(targets, logits.shape[1]).to(logits)
        return self.loss(logits, targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), **self.sgd)


def pairs(classes: int = 3, per_class: int = 8, inputs: int = 5) -> TensorDataset:
    generator = torch.Generator().manual_seed(5)
    targets = torch.arange(classes * per_class) % classes
    centers = 3 * torch.randn(classes, inputs, generator=generator)
    return TensorDataset(centers[targets] + torch.randn(len(targets), inputs, generator=generator), targets)


def mlp(classes: int = 3, features: int = 4, inputs: int = 5, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, features), nn.Tanh(), nn.Linear(features, classes, bias=bias))


def fit(module: LightningModule, callbacks: list[Callback], data: Any = None, **options: Any) -> Trainer:
    loader = data if isinstance(data, DataLoader) else DataLoader(pairs() if data is None else data, batch_size=8)
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": Path.cwd(),
    }
    trainer = Trainer(callbacks=callbacks, **{**defaults, **options})
    trainer.fit(module, loader)
    return trainer

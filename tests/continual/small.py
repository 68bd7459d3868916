"""A stream of seconds, and learners on it."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import TensorDataset

from lit_papers.continual import ResNet, SSLTransform, SupervisedContinual, UnsupervisedContinual
from lit_papers.continual.methods import Method
from lit_papers.datamodules import TaskSequence

COUNTS = (14, 9, 10, 12, 15, 13)  # three tasks of 23, 22 and 28 images: of different length


def pair() -> tuple[TensorDataset, TensorDataset]:
    """Six classes of blobs at places of their own."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([label for label, count in enumerate(COUNTS) for _ in range(count)])
    images = 60 * torch.rand(len(labels), 1, 8, 8, generator=generator)
    for row, label in enumerate(labels.tolist()):
        images[row, 0, label % 3 * 3 : label % 3 * 3 + 2, label // 3 * 4 : label // 3 * 4 + 3] += 150
    data = TensorDataset(images.to(torch.uint8), labels)
    return data, data


def stream(**options: Any) -> TaskSequence:
    return TaskSequence(
        **{"dataset": pair(), "num_tasks": 3, "epochs_per_task": 2, "batch_size": 6, "eval_batch_size": 10, **options}
    )


def transform() -> SSLTransform:
    return SSLTransform(8, scale=(0.5, 1.0), mean=(0.5,), std=(0.5,))


def unsupervised(method: Method | None = None, **options: Any) -> UnsupervisedContinual:
    seed_everything(1, verbose=False)
    defaults = {"backbone": ResNet(1, 4, (1, 1)), "projection_dim": 8, "transform": transform(), "knn_k": 5}
    return UnsupervisedContinual(method, **{**defaults, **options})


def supervised(method: Method | None = None, **options: Any) -> SupervisedContinual:
    seed_everything(1, verbose=False)
    defaults = {"backbone": ResNet(1, 4, (1, 1)), "transform": transform(), "knn_k": 5}
    return SupervisedContinual(6, method, **{**defaults, **options})


def trainer(folder: Path, callbacks: list[Callback] | None = None, **options: Any) -> Trainer:
    callbacks = callbacks or []
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": -1,
        "check_val_every_n_epoch": 2,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "default_root_dir": folder,
    }
    return Trainer(callbacks=callbacks, **{**defaults, **options})

"""A regression problem small enough for its global optimum to be known exactly."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from lit_papers.datamodules.images import check_integer


class GaussianRegression(LightningDataModule):
    """Standard normal inputs with targets that are standard normal too: nothing to generalise, all to fit.

    Batches are ``(x, y)``: float32 ``(B, num_features)`` and ``(B,)``.

    Args:
        num_samples: n, at least 1.
        num_features: d, at least 1.
        batch_size: rows in a batch, at least 1; None takes all in one batch.
        seed: of the data, at least 0.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range.
    """

    def __init__(
        self, num_samples: int = 10, num_features: int = 3, batch_size: int | None = None, seed: int = 101
    ) -> None:
        super().__init__()
        check_integer("num_samples", num_samples, least=1)
        check_integer("num_features", num_features, least=1)
        check_integer("seed", seed, least=0)
        if batch_size is not None:
            check_integer("batch_size", batch_size, least=1)
        self.batch_size = batch_size
        draw = np.random.default_rng(seed)
        x = torch.from_numpy(draw.standard_normal((num_samples, num_features)))
        y = torch.from_numpy(draw.standard_normal(num_samples))
        self.train_set = TensorDataset(x.float(), y.float())

    def train_dataloader(self) -> DataLoader[Any]:
        """All rows, shuffled."""
        return DataLoader(self.train_set, batch_size=self.batch_size or len(self.train_set), shuffle=True)

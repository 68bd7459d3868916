"""scikit-learn's breast cancer table: real data for two-layer networks."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from lit_papers.datamodules.images import check_integer, import_extra

_ROWS = 569


class BreastCancer(LightningDataModule):
    """Wisconsin diagnostic breast cancer (569 tumours, 30 features), embedded in scikit-learn.

    Features are standardised with the training rows' mean and standard deviation and followed by a column of ones, the
    bias. Targets are +1 (benign) and -1 (malignant). Classes are split in proportion.

    Batches are ``(x, y)``: float32 ``(B, 31)`` and ``(B,)``.

    Args:
        batch_size: rows in a training batch, at least 1; None takes all in one batch.
        test_size: rows held out, between 2 and 567; they serve as validation data too.
        seed: of the split, at least 0.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range.
        ImportError: scikit-learn is missing (in ``setup``).

    >>> data = BreastCancer()
    >>> data.setup()
    >>> data.train_set.tensors[0].shape, len(data.test_set)
    (torch.Size([455, 31]), 114)
    """

    def __init__(self, batch_size: int | None = None, test_size: int = 114, seed: int = 0) -> None:
        super().__init__()
        if batch_size is not None:
            check_integer("batch_size", batch_size, least=1)
        check_integer("test_size", test_size, least=2)
        check_integer("seed", seed, least=0)
        if test_size > _ROWS - 2:
            raise ValueError(f"test_size must leave two of the {_ROWS} rows to train on, got {test_size}")
        self.batch_size = batch_size
        self.test_size = test_size
        self.seed = seed

    def setup(self, stage: str | None = None) -> None:
        """Read, split and standardise."""
        datasets = import_extra("sklearn.datasets", "data")
        selection = import_extra("sklearn.model_selection", "data")
        values, labels = datasets.load_breast_cancer(return_X_y=True)
        train, test = selection.train_test_split(
            range(len(labels)), test_size=self.test_size, random_state=self.seed, stratify=labels
        )
        x, y = torch.from_numpy(values), 2.0 * torch.from_numpy(labels) - 1
        x = (x - x[train].mean(0)) / x[train].std(0, correction=0)
        x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        self.train_set = TensorDataset(x[train].float(), y[train].float())
        self.test_set = TensorDataset(x[test].float(), y[test].float())

    def train_dataloader(self) -> DataLoader[Any]:
        """Training rows, shuffled."""
        return DataLoader(self.train_set, batch_size=self.batch_size or len(self.train_set), shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """The test rows: nothing is selected on them here."""
        return self.test_dataloader()

    def test_dataloader(self) -> DataLoader[Any]:
        """Test rows, in one batch."""
        return DataLoader(self.test_set, batch_size=len(self.test_set))

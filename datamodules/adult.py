"""The Adult census table: real tabular data that need no download."""

import csv
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lit_papers.datamodules.images import CorruptDataError, check_integer
from lit_papers.locations import MissingDataError

LABEL_COLUMN = "class"
POSITIVE_LABEL = ">50K"
_MISSING = ("", "?")  # the second is UCI's own way to write it
_ROWS, _HELD_OUT = 45_222, 7_611  # complete rows of the table; how many of them validate, and how many test


class Adult(LightningDataModule):
    """UCI's Adult (census income): whether a person earns more than 50,000 dollars, as 24.8 % do.

    The copy inside the installed shapiq package has 48,842 rows; the 45,222 without a missing value are used. All 14
    columns count as numbers (those of text by the alphabetical rank of the value), less the mean and divided by the
    standard deviation of the training rows, so that **0 is the average person**. A permutation drawn from ``seed``
    alone gives 30,000 rows to training and 7,611 each to validation and testing.

    Batches are ``(x, y)``: float32 ``(B, 14)`` and int64 ``(B,)``.

    Args:
        path: a csv file with a header, the label in a column ``class``; None takes shapiq's.
        batch_size: rows in a batch, on each process; at least 1.
        seed: of the split, at least 0.
        num_workers: processes that load, at least 0; 0 loads in the main process, which is fastest here.

    Attributes:
        feature_names: names of the columns, in the order of the features; after ``setup``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range.
        MissingDataError: there is no such file (in ``prepare_data`` or ``setup``), a FileNotFoundError.
        CorruptDataError: the file is not such a table (in ``setup``), a ValueError.

    >>> data = Adult()
    >>> data.setup()
    >>> x, y = data.train_set.tensors
    >>> x.shape, len(data.val_set), len(data.test_set)
    (torch.Size([30000, 14]), 7611, 7611)
    """

    num_classes = 2

    def __init__(
        self, path: str | Path | None = None, batch_size: int = 512, seed: int = 0, num_workers: int = 0
    ) -> None:
        super().__init__()
        check_integer("batch_size", batch_size, least=1)
        check_integer("seed", seed, least=0)
        check_integer("num_workers", num_workers, least=0)
        self.path = path
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.feature_names: list[str] = []
        self._splits: dict[str, TensorDataset] | None = None

    def prepare_data(self) -> None:
        """Look for the file, so that its absence is known early."""
        self._file()

    def setup(self, stage: str | None = None) -> None:
        """Read, split and standardise, once: a run that fits and then tests does not read twice."""
        if self._splits is not None:
            return
        self.feature_names, x, y = _read(self._file())
        held_out = len(y) * _HELD_OUT // _ROWS  # the same shares of any other file
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(self.seed))
        train, val, test = torch.split(order, [len(y) - 2 * held_out, held_out, held_out])
        mean, std = x[train].mean(dim=0), x[train].std(dim=0, correction=0)  # (14,)
        x = (x - mean) / std.where(std > 0, 1.0)  # a constant column becomes 0
        self._splits = {
            name: TensorDataset(x[rows].float(), y[rows])
            for name, rows in (("train", train), ("val", val), ("test", test))
        }

    @property
    def train_set(self) -> TensorDataset:
        """The training rows, after ``setup``."""
        return self._loaded("train")

    @property
    def val_set(self) -> TensorDataset:
        """The validation rows, after ``setup``."""
        return self._loaded("val")

    @property
    def test_set(self) -> TensorDataset:
        """The test rows, after ``setup``."""
        return self._loaded("test")

    def train_dataloader(self) -> DataLoader[Any]:
        """Training rows, shuffled."""
        return self._loader(self.train_set, shuffle=True)

    def train_eval_dataloader(self) -> DataLoader[Any]:
        """Exactly the training rows, each once and in a fixed order, for measuring on them."""
        return self._loader(self.train_set)

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation rows in a fixed order."""
        return self._loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Any]:
        """Test rows in a fixed order."""
        return self._loader(self.test_set)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test rows again."""
        return self.test_dataloader()

    def _loader(self, rows: TensorDataset, *, shuffle: bool = False) -> DataLoader[Any]:
        return DataLoader(
            rows,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _loaded(self, split: str) -> TensorDataset:
        if self._splits is None:
            raise RuntimeError("Adult has not read its data yet: call `setup()`, or hand it to a Trainer")
        return self._splits[split]

    def _file(self) -> Path:
        if self.path is not None:
            file = Path(self.path).expanduser()
            if not file.is_file():
                raise MissingDataError(f"there is no file at `path`={file}: point it (--data.path=FILE) at Adult's csv")
            return file
        # not importlib.resources, which would import all of shapiq: seconds, and only its csv is wanted
        package = find_spec("shapiq")
        for folder in (package and package.submodule_search_locations) or []:
            file = Path(folder) / "datasets" / "data" / "adult_census.csv"
            if file.is_file():
                return file
        raise MissingDataError(
            "Adult's table comes with the package shapiq, "
            + ("whose installed version has no such file: " if package else "which is missing: ")
            + "install `lit-papers[data]`, or point `path` (--data.path=FILE) at a csv of your own"
        )


def _read(file: Path) -> tuple[list[str], Tensor, Tensor]:
    """Names of the features, their values (float64), and the label (int64) of each complete row."""
    with file.open(newline="", encoding="utf-8") as stream:
        header, *rows = ([cell.strip() for cell in row] for row in csv.reader(stream) if row)
    if LABEL_COLUMN not in header:
        raise CorruptDataError(f"{file} has no column {LABEL_COLUMN!r}, but {', '.join(header)}")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise CorruptDataError(f"row {number} of {file} has {len(row)} cells, the header has {len(header)}")
    complete = [row for row in rows if not any(cell in _MISSING for cell in row)]
    if len(complete) < 3:
        raise CorruptDataError(f"{file} has {len(complete)} rows without a missing value")
    columns = dict(zip(header, zip(*complete, strict=True), strict=True))
    labels = columns.pop(LABEL_COLUMN)
    if len(set(labels)) != 2 or POSITIVE_LABEL not in labels:
        raise CorruptDataError(
            f"the column {LABEL_COLUMN!r} of {file} must hold {POSITIVE_LABEL!r} and one other value, "
            f"got {', '.join(sorted(set(labels))[:5])}"
        )
    x = torch.tensor([_numbers(column) for column in columns.values()], dtype=torch.float64).T
    return list(columns), x, torch.tensor([label == POSITIVE_LABEL for label in labels]).long()


def _numbers(column: tuple[str, ...]) -> list[float]:
    try:
        return [float(cell) for cell in column]
    except ValueError:
        rank = {level: float(i) for i, level in enumerate(sorted(set(column)))}
        return [rank[cell] for cell in column]

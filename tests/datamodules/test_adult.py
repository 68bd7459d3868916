"""Adult: the table inside shapiq, and what is done to it."""

import csv
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from lit_papers.datamodules import Adult, CorruptDataError, MissingDataError

SHAPIQ = find_spec("shapiq")
needs_shapiq = pytest.mark.skipif(SHAPIQ is None, reason="the table comes with shapiq")


@pytest.fixture(scope="module")
def adult() -> Adult:
    data = Adult()
    data.setup()
    return data


@pytest.fixture
def write(tmp_path: Path):
    def write(rows: list[list[str]], header: str = "age,job,class") -> Path:
        path = tmp_path / "adult.csv"
        path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
        return path

    return write


def small_rows(count: int = 60) -> list[list[str]]:
    return [[str(20 + i), ("Sales", "Farming", "Tech")[i % 3], ("<=50K", ">50K")[i % 4 == 0]] for i in range(count)]


@needs_shapiq
def test_the_table_is_the_one_that_is_meant(adult: Adult) -> None:
    splits = [adult.train_set.tensors, adult.val_set.tensors, adult.test_set.tensors]
    assert [len(y) for _, y in splits] == [30_000, 7_611, 7_611]
    assert all(x.shape == (len(y), 14) and x.dtype == torch.float32 and y.dtype == torch.int64 for x, y in splits)
    labels = torch.cat([y for _, y in splits])
    assert len(labels) == 45_222
    assert labels.sum() == 11_208  # 24.8 %
    assert adult.feature_names[0] == "age"
    assert adult.feature_names[-1] == "native-country"
    assert adult.num_classes == 2


@needs_shapiq
def test_zero_is_the_average_of_the_training_rows(adult: Adult) -> None:
    x, _ = adult.train_set.tensors
    torch.testing.assert_close(x.double().mean(0), torch.zeros(14).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(x.double().std(0, correction=0), torch.ones(14).double(), rtol=0, atol=1e-6)


@needs_shapiq
def test_text_is_coded_by_alphabetical_rank(adult: Adult) -> None:
    """Against the file itself: the first person is 25, works for a private firm, and is male."""
    with (Path(SHAPIQ.submodule_search_locations[0]) / "datasets/data/adult_census.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if all(row.values())]
    for name in ("age", "workclass", "sex"):
        column = adult.feature_names.index(name)
        x = torch.cat([split.tensors[0][:, column] for split in (adult.train_set, adult.val_set, adult.test_set)])
        levels = sorted({row[name] for row in rows}, key=(int if name == "age" else str))
        counts = [sum(row[name] == level for row in rows) for level in levels]
        _, found = torch.unique(x, return_counts=True)  # ascending, as standardising keeps the order
        assert found.tolist() == counts, name


@needs_shapiq
def test_the_split_depends_on_the_seed_alone(adult: Adult) -> None:
    torch.manual_seed(7)
    again, other = Adult(), Adult(seed=1)
    again.setup("fit")
    other.setup("fit")
    torch.testing.assert_close(again.train_set.tensors, adult.train_set.tensors, rtol=0, atol=0)
    assert not torch.equal(other.train_set.tensors[1], adult.train_set.tensors[1])


def test_a_file_of_your_own(write) -> None:
    rows = [*small_rows(), ["33", "?", ">50K"], ["", "Sales", ">50K"], []]
    data = Adult(write(rows), batch_size=7)
    data.prepare_data()
    data.setup()
    assert [len(data.train_set), len(data.val_set), len(data.test_set)] == [40, 10, 10]
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == (7, 2)
    assert y.shape == (7,)
    assert data.feature_names == ["age", "job"]
    in_order = torch.cat([x for x, _ in data.train_eval_dataloader()])
    torch.testing.assert_close(in_order, data.train_set.tensors[0], rtol=0, atol=0)
    assert not torch.equal(torch.cat([x for x, _ in data.train_dataloader()]), in_order)
    assert len(list(data.val_dataloader())) == len(list(data.predict_dataloader())) == 2


def test_a_constant_column_becomes_zero(write) -> None:
    data = Adult(write([["40", *row[1:]] for row in small_rows()]))
    data.setup()
    assert (data.train_set.tensors[0][:, 0] == 0).all()


def test_a_missing_package_and_a_missing_file_say_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shapiq", None)
    monkeypatch.setattr("lit_papers.datamodules.adult.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"shapiq.*lit-papers\[data\].*`path`"):
        Adult().prepare_data()
    with pytest.raises(MissingDataError, match=r"`path`=nowhere\.csv"):
        Adult("nowhere.csv").setup()


def test_a_package_without_the_table_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_papers.datamodules.adult.find_spec", lambda name: find_spec("json"))
    with pytest.raises(FileNotFoundError, match=r"shapiq, whose installed version has no such file"):
        Adult().setup()


@pytest.mark.parametrize(
    ("rows", "header", "complaint"),
    [
        (small_rows(), "age,job,income", "no column 'class', but age, job, income"),
        ([*small_rows(), ["1", "2"]], "age,job,class", "row 62 of .* has 2 cells, the header has 3"),
        ([["1", "a", "yes"], ["2", "b", "no"], ["1", "c", "no"]], "age,job,class", "must hold '>50K' and one other"),
        (small_rows(2), "age,job,class", "2 rows without a missing value"),
    ],
)
def test_another_table_is_refused(write, rows, header: str, complaint: str) -> None:
    with pytest.raises(CorruptDataError, match=complaint):
        Adult(write(rows, header)).setup()


@pytest.mark.parametrize(("argument", "value"), [("batch_size", 0), ("seed", -1), ("num_workers", -1)])
def test_arguments_out_of_range(argument: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"`{argument}` must be at least"):
        Adult(**{argument: value})


def test_nothing_is_served_before_setup() -> None:
    with pytest.raises(RuntimeError, match=r"call `setup\(\)`"):
        Adult().train_dataloader()


def test_a_trainer_uses_it(write) -> None:
    class Model(BoringModel):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def step(self, batch):
            return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

        def predict_step(self, batch, _):
            return self.layer(batch[0])

    model, data = Model(), Adult(write(small_rows()), batch_size=8)
    trainer = Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    assert sum(len(part) for part in trainer.predict(model, data)) == 10

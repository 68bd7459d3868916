"""What a run computes lies in its folder and reaches its loggers: figures, tables, predictions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from torch.utils.data import DataLoader

from lit_papers.cli import main
from lit_papers.plotting import log_table, new_figure, save_figure
from lit_papers.predictions import WritePredictions

DIGITS = ["--config", "neural_collapse/digits", "--trainer.enable_progress_bar=false"]


@pytest.fixture(autouse=True)
def _own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lit_papers"])


class Draws(Callback):
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        figure, (axis,) = new_figure(1, 1)
        axis.plot([0, 1])
        save_figure(figure, trainer, "line")
        log_table(trainer, "numbers", ["name", "value"], [["a", 1.5], ["b", float("nan")]])


class Client:
    """Of an MLflow server: what is sent to it."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []

    def log_artifact(self, run_id: str, path: str) -> None:
        self.sent.append((run_id, Path(path).name, Path(path).read_bytes()[:4]))

    def log_dict(self, run_id: str, content: dict[str, Any], name: str) -> None:
        self.sent.append((run_id, name, content))


class _Stub(Logger):
    name, version, save_dir = "stub", "0", "stub"

    def log_metrics(self, metrics: Any, step: int | None = None) -> None: ...

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None: ...


class MLFlowLogger(_Stub):
    """Of the name of Lightning's, whose package is large."""

    run_id = "run-1"

    def __init__(self) -> None:
        self.experiment = Client()


class Broken(_Stub):
    def log_image(self, **_: Any) -> None:
        raise ConnectionError("no network")


def fit(folder: Path, logger: Any) -> None:
    trainer = Trainer(
        max_epochs=1, limit_train_batches=1, limit_val_batches=0, logger=logger, callbacks=[Draws()],
        default_root_dir=folder, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(BoringModel(), BoringDataModule())


def test_tensorboard_gets_figures_and_tables(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fit(tmp_path, TensorBoardLogger(tmp_path, name="tb"))
    events = accumulator.EventAccumulator(str(next(tmp_path.glob("tb/version_0/events*"))))
    events.Reload()
    assert events.Tags()["images"] == ["line"]
    assert events.Images("line")[0].encoded_image_string.startswith(b"\x89PNG")
    (text,) = events.Tensors("numbers/text_summary")
    assert text.tensor_proto.string_val[0].decode().splitlines()[2:] == ["| a | 1.5 |", "| b |  |"]
    assert (tmp_path / "tb/version_0/line.png").is_file()


def test_mlflow_gets_figures_and_tables(tmp_path: Path) -> None:
    logger = MLFlowLogger()
    fit(tmp_path, logger)
    table = {"name": ["a", "b"], "value": [1.5, None]}
    assert logger.experiment.sent == [("run-1", "line.png", b"\x89PNG"), ("run-1", "numbers.json", table)]


def test_several_loggers_and_one_that_fails(tmp_path: Path) -> None:
    good = MLFlowLogger()
    with pytest.warns(UserWarning, match=r"Broken did not take the figure 'line': ConnectionError: no network"):
        fit(tmp_path, [CSVLogger(tmp_path, name="csv"), Broken(), good])
    assert [entry[1] for entry in good.experiment.sent] == ["line.png", "numbers.json"]
    assert (tmp_path / "csv/version_0/line.png").is_file()
    assert (tmp_path / "csv/version_0/numbers.csv").read_text().splitlines() == ["name,value", "a,1.5", "b,"]


def test_without_a_logger_the_folder_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(tmp_path / "mine", False)
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"line.png", "numbers.csv"}
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    fit(tmp_path / "here", False)
    assert list((tmp_path / "here").iterdir()) == [], "a folder that nobody named gets nothing"


def test_a_run_without_a_logger_has_a_folder(tmp_path: Path) -> None:
    words = ["fit", *DIGITS, "--trainer.max_epochs=1", "--trainer.logger=false"]
    assert main(words) == 0
    assert main(words) == 0
    for version in ("version_0", "version_1"):
        folder = tmp_path / "runs/neural_collapse/digits" / version
        assert (folder / "neural_collapse.png").is_file()
        assert (folder / "config.yaml").is_file()
        assert len(list(folder.glob("checkpoints/*.ckpt"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize("logger", [True, False])
def test_predictions_are_kept(logger: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", *DIGITS, *([] if logger else ["--trainer.logger=false"])]) == 0
    said = capsys.readouterr()
    assert "no --ckpt_path is given, so the weights are those the model begins with: random" in said.err
    (path,) = tmp_path.glob("runs/neural_collapse/digits/version_0/predictions.pt")
    assert f"predictions {path.relative_to(tmp_path)}" in said.out
    (loader,) = torch.load(path, weights_only=True)
    assert len(loader["predictions"]) == len(loader["indices"]) > 100
    assert loader["indices"] == list(range(len(loader["indices"])))


@pytest.mark.parametrize("command", ["validate", "test"])
def test_weights_without_a_checkpoint_are_random(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, *DIGITS, "--trainer.logger=false"]) == 0
    assert "random" in capsys.readouterr().err


class Predicts(BoringModel):
    """Tensors of different lengths, of one number, and none at all."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        rows = batch[:, :2] + dataloader_idx
        return {"rows": rows, "dict": {"x": rows}, "scalar": rows.sum()}[self.kind]


def predicted(folder: Path, kind: str, lengths: Sequence[int]) -> list[dict[str, Any]]:
    data = [DataLoader(torch.arange(3.0 * n).reshape(n, 3), batch_size=2) for n in lengths]
    trainer = Trainer(
        accelerator="cpu", logger=False, default_root_dir=folder, callbacks=[WritePredictions()],
        enable_progress_bar=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.predict(Predicts(kind), data if len(data) > 1 else data[0])
    return torch.load(folder / "predictions.pt", weights_only=True)


def test_the_documented_file(tmp_path: Path) -> None:
    (one,) = predicted(tmp_path / "a", "rows", [5])
    torch.testing.assert_close(one["predictions"], torch.arange(15.0).reshape(5, 3)[:, :2])
    assert one["indices"] == [0, 1, 2, 3, 4]
    first, second = predicted(tmp_path / "b", "rows", [3, 4])
    assert (len(first["predictions"]), second["indices"]) == (3, [0, 1, 2, 3])
    assert second["predictions"][0].tolist() == [1.0, 2.0]
    (batches,) = predicted(tmp_path / "c", "dict", [3])
    assert [batch["x"].shape[0] for batch in batches["predictions"]] == [2, 1]
    (scalars,) = predicted(tmp_path / "d", "scalar", [3])
    assert len(scalars["predictions"]) == 2

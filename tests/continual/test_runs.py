"""Through the command line: shipped streams, resuming one, and methods by name."""

import csv
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from lit_papers import catalog
from lit_papers.cli import main
from lit_papers.locations import MissingDataError, find_data

CONFIGS = [name for name in catalog.config_names() if name.startswith("continual/")]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture(autouse=True)
def _own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lit_papers"])  # LightningCLI warns of two command lines


def test_digits_end_with_a_matrix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    begin = time.perf_counter()
    assert main(["fit", "--config", "continual/digits", *QUIET]) == 0
    assert time.perf_counter() - begin < 120
    (run,) = tmp_path.glob("runs/continual/digits/version_0")
    assert (run / "continual.png").stat().st_size > 10_000
    shown = capsys.readouterr().out
    assert "continual/accuracy" in shown
    assert "continual.png" in shown
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["continual/accuracy"]]
    assert [int(row["epoch"]) for row in rows] == [7, 15, 23, 31, 39]
    assert float(rows[-1]["continual/accuracy"]) > 0.9
    (checkpoint,) = (run / "checkpoints").glob("*.ckpt")
    saved = torch.load(checkpoint, weights_only=True)
    assert (saved["continual"]["task"], saved["continual"]["running"]) == (4, True)


def test_a_stream_resumes_through_the_command_line(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    short = ["fit", "--config", "continual/digits", *QUIET, "--data.epochs_per_task=1",
             "--trainer.check_val_every_n_epoch=1", "--trainer.callbacks.save_top_k=-1"]  # fmt: skip
    assert main(short) == 0
    first = tmp_path / "runs/continual/digits/version_0/checkpoints"
    last = sorted(first.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    assert len(last) == 5
    assert main([*short, f"--ckpt_path={last[1]}"]) == 0
    (again,) = (tmp_path / "runs/continual/digits/version_1/checkpoints").glob("epoch=4*.ckpt")
    whole, resumed = (torch.load(path, weights_only=True) for path in (last[-1], again))
    for name, value in whole["state_dict"].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, resumed["state_dict"][name]), name
    states = [
        next(v for k, v in found["callbacks"].items() if k.startswith("Forgetting")) for found in (whole, resumed)
    ]
    assert states[0] == states[1]


@pytest.mark.parametrize("method", ["SI", "PNN", "Finetune"])
def test_a_method_is_one_argument(method: str) -> None:
    pytest.importorskip("sklearn")
    assert main(["fit", "--config", "continual/digits", *QUIET, "--trainer.fast_dev_run=true",
                 f"--model.method=lit_papers.continual.methods.{method}"]) == 0  # fmt: skip


def test_the_papers_settings() -> None:
    for name in CONFIGS:
        config = yaml.safe_load((catalog.CONFIG_FOLDER / f"{name}.yaml").read_text())
        data, trainer = config["data"]["init_args"], config["trainer"]
        assert trainer["max_epochs"] == -1
        assert trainer.get("check_val_every_n_epoch", 1) == data["epochs_per_task"]
    tasks = {"split_cifar10": 5, "split_cifar100": 20, "split_tiny_imagenet": 20}
    for name, number in tasks.items():
        config = yaml.safe_load((catalog.CONFIG_FOLDER / f"continual/{name}.yaml").read_text())
        assert config["data"]["init_args"]["num_tasks"] == number
        assert config["data"]["init_args"]["epochs_per_task"] == 200
        assert config["data"]["init_args"]["batch_size"] == 256
        assert config["model"]["init_args"]["method"]["init_args"] == {"alpha": 0.4, "buffer_size": 256}


def test_split_cifar10_takes_folders_of_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("torchvision")
    for split in ("train", "test"):
        for label in range(10):
            folder = tmp_path / "images" / split / f"class_{label}"
            folder.mkdir(parents=True)
            for i in range(2):
                image.new("RGB", (32, 32), (20 * label, 90 * i, 0)).save(folder / f"{i}.jpg")
    for name, options in (("split_cifar10", []), ("split_cifar10_supervised", ["--trainer.fast_dev_run=true"])):
        short = ["--data.epochs_per_task=1", "--trainer.check_val_every_n_epoch=1", "--data.batch_size=4",
                 "--model.backbone=lit_papers.continual.ResNet", "--model.backbone.width=4"]  # fmt: skip
        assert (
            main(
                ["fit", "--config", f"continual/{name}", *QUIET, *short, f"--data.root={tmp_path / 'images'}", *options]
            )
            == 0
        )
    assert (tmp_path / "runs/continual/split_cifar10/version_0/continual.png").is_file()


def test_missing_data_are_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchvision")
    for name in ("split_cifar100", "split_tiny_imagenet"):
        assert main(["fit", "--config", f"continual/{name}", f"--data.root={tmp_path / 'none'}"]) == 2
        assert str(tmp_path / "none") in capsys.readouterr().err


@pytest.mark.slow
def test_labels_are_forgotten_without_replay(tmp_path: Path) -> None:
    """At the sizes of `continual/split_fashion_mnist_supervised`: chance for all tasks but the last, or not."""
    try:
        find_data("FashionMNIST")
    except MissingDataError as error:
        pytest.skip(str(error))
    accuracy: dict[str, list[float]] = {}
    for seed in (0, 1):
        for method in ("Finetune", "DER", "AGEM"):
            chosen = [f"--model.method=lit_papers.continual.methods.{method}", f"--seed_everything={seed}"]
            chosen += [f"--model.seed={seed}", f"--data.seed={seed}"]
            chosen += ["--model.method.alpha=0.5"] if method == "DER" else []
            assert main(["fit", "--config", "continual/split_fashion_mnist_supervised", *QUIET, *chosen]) == 0
            metrics = max(tmp_path.glob("runs/continual/**/metrics.csv"), key=lambda path: path.stat().st_mtime_ns)
            with metrics.open() as file:
                rows = [row for row in csv.DictReader(file) if row.get("continual/accuracy")]
            accuracy.setdefault(method, []).append(float(rows[-1]["continual/accuracy"]))
    assert max(accuracy["Finetune"]) <= 0.25
    assert min(accuracy["DER"]) >= 0.55
    assert min(accuracy["AGEM"]) >= max(accuracy["Finetune"]) + 0.05

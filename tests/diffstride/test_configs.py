"""Every configuration builds its network, for each kind of pooling, and runs from the command line."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_papers import catalog
from lit_papers.callbacks import StrideComplexity
from lit_papers.cli import main
from lit_papers.diffstride import StridedClassifier
from lit_papers.lightning_cli import PapersCLI

NAMES = [name for name in catalog.config_names() if name.startswith("diffstride/")]


@pytest.fixture(autouse=True)
def _own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lit_papers"])  # LightningCLI warns of two command lines


def built(name: str, *options: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(PapersCLI, "_run_subcommand", lambda self, subcommand: None)
    path = str(catalog.find_config(name))
    # some of them ask for a precision that a small machine may not have
    return PapersCLI("test", ["fit", "--config", path, "--trainer.accelerator=cpu", "--trainer.logger=false", *options])


@pytest.mark.parametrize("pooling", ["strided", "spectral", "diffstride"])
@pytest.mark.parametrize("name", NAMES)
def test_every_config_builds_with_every_pooling(name: str, pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchaudio")
    baseline = [] if pooling == "diffstride" else ["--trainer.callbacks=null"]
    cli = built(name, f"--model.model.pooling={pooling}", *baseline, monkeypatch=monkeypatch)
    assert isinstance(cli.model, StridedClassifier)
    assert bool(cli.model.stride_layers) == (pooling == "diffstride")
    watched = any(isinstance(callback, StrideComplexity) for callback in cli.trainer.callbacks)
    assert watched == (pooling == "diffstride")
    cli.model.configure_optimizers()


def test_digits_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "diffstride/digits", "--trainer.max_epochs=2"]) == 0
    (run,) = tmp_path.glob("runs/diffstride/digits/version_0")
    assert (run / "diffstride.png").is_file()
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    for key in ("val/accuracy", "diffstride/gmacs", "diffstride/model.stages.1.0.pool/stride_w", "train/complexity"):
        assert key in header
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["class_path"].endswith("StridedClassifier")
    (checkpoint,) = run.glob("checkpoints/*.ckpt")
    before = torch.load(checkpoint, weights_only=True)
    strides = before["state_dict"]["model.stages.1.0.pool.strides"]
    assert not torch.equal(strides, torch.tensor([2.0, 2.0]))
    resumed = ["fit", "--config", "diffstride/digits", "--trainer.max_epochs=3", f"--ckpt_path={checkpoint}"]
    assert main(resumed) == 0
    (again,) = tmp_path.glob("runs/diffstride/digits/version_1/checkpoints/*.ckpt")
    after = torch.load(again, weights_only=True)
    assert (after["epoch"], after["global_step"]) == (2, 60)
    history = after["callbacks"]["StrideComplexity{'name': 'diffstride'}"]["history"]
    assert [entry["step"] for entry in history] == list(range(0, 60, 10))


def test_overlays_change_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*names: str) -> Any:
        configs = [part for name in ("diffstride/cifar10", *names) for part in ("--config", name)]
        with pytest.raises(SystemExit) as caught:
            main(["fit", *configs, "--print_config"])
        assert not caught.value.code
        return yaml.safe_load(capsys.readouterr().out)

    base, both = printed(), printed("diffstride_cifar100", "diffstride_intended")
    assert base["model"]["init_args"]["model"]["init_args"]["variant"] == "official"
    assert both["data"]["class_path"].endswith("CIFAR100")
    assert both["data"]["init_args"]["batch_size"] == base["data"]["init_args"]["batch_size"]
    assert both["model"]["init_args"]["model"]["init_args"].pop("num_classes") == 100
    assert both["model"]["init_args"].pop("label_smoothing") == 0.2
    base["model"]["init_args"].pop("label_smoothing")
    base["model"]["init_args"]["model"]["init_args"].pop("num_classes")
    assert both["model"] == base["model"]
    assert both["trainer"] == base["trainer"]

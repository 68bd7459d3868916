"""The command: what is wrong is one line and status 2, before anything is lost; what is right is a page."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lit_papers.cli import main

CONFIG = {
    "model": {
        "class_path": "lit_papers.neural_collapse.ImageClassifier",
        "init_args": {"network": "mlp", "num_classes": 10, "input_shape": [1, 8, 8], "loss": "mse"},
    },
    "data": {"class_path": "lit_papers.datamodules.Digits", "init_args": {"samples_per_class": 20}},
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 30,
        "min_epochs": 20,
        "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logged"}},
    },
    "ckpt_path": None,  # as a run's file has it
    "weights_only": None,
}


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(CONFIG))
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--config is missing"),
        (["--config", "neural_collapse/digits", "--minutes", "no"], "must be a number above 0, got no"),
        (["--config", "neural_collapse/digits", "--ckpt_path", "none.ckpt"], "--ckpt_path none.ckpt: no such file"),
        (["--config", "neural_collapse/digits", "--lenses", "colapse"], "did you mean 'collapse'?"),
        (["--config", "neural_colapse/digits"], "did you mean neural_collapse/digits"),
        (["--config", "neural_collapse/digits", "--model.nose=1"], "nose"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["diagnose", *arguments])
    except SystemExit as end:
        status = int(end.code or 0)
    told = capsys.readouterr().err
    assert status == 2
    assert said in told
    assert "Traceback" not in told


def test_help_and_mistakes_come_without_torch() -> None:
    program = (
        "import sys; from lit_papers.cli import main\n"
        "status = main(['diagnose', '--config', 'neural_collapse/digits', '--ckpt_path', 'none'])\n"
        "sys.exit(3 if 'torch' in sys.modules else status)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr


def test_a_checkpoint_of_another_model_is_one_line(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": torch.nn.Linear(2, 2).state_dict()}, "other.ckpt")
    assert main(["diagnose", "--config", config, "--ckpt_path", "other.ckpt"]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(told) == 1
    assert "other.ckpt is of another model than ImageClassifier: it lacks network." in told[0]
    assert not Path("diagnosis").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_network_that_needs_a_gpu_is_one_line(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", "--config", config, "--trainer.accelerator=gpu"]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(told) == 1
    assert "gpu" in told[0].lower() or "cuda" in told[0].lower()


@pytest.mark.filterwarnings("ignore")
def test_a_page_of_a_run(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--config",
        config,
        "--lenses",
        "collapse,central_path,cost",
        "--minutes",
        "10",
        "--out",
        "page",
        "--log",
    ]
    assert main(["diagnose", *arguments]) == 0
    found = json.loads(Path("page/report.json").read_text())
    assert {lens["name"]: lens["status"] for lens in found["lenses"]} == dict.fromkeys(
        ("collapse", "central_path", "cost"), "measured"
    )
    path = next(lens for lens in found["lenses"] if lens["name"] == "central_path")
    assert (
        path["histories"]["train"][0]["loss"] > 0
    )  # weight decay is read from the optimizer, which no step was made by
    assert "page/report.html" in capsys.readouterr().out
    (logged,) = Path("logged").rglob("metrics.csv")
    assert "diagnose/central_path/loss" in logged.read_text()


def test_the_overlay_adds_the_page_to_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", "neural_collapse/digits", "--config", "diagnose", "--print_config"])
    assert not end.value.code
    callbacks = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    names = [callback["class_path"].rpartition(".")[2] for callback in callbacks]
    assert names == ["NeuralCollapse", "CentralPath", "Diagnosis"]

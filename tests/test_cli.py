"""The command line through the command line: names, errors, overrides, run folders, resuming."""

import csv
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lit_papers
from lit_papers import catalog
from lit_papers.__main__ import program
from lit_papers.cli import main
from tests.warm import run_warm

ROOT = Path(lit_papers.__file__).parent.parent
DIGITS = ["fit", "--config", "neural_collapse/digits"]
SHORT = [*DIGITS, "--trainer.max_epochs=2", "--trainer.enable_progress_bar=false"]


@pytest.fixture(autouse=True)
def _own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lit_papers"])  # LightningCLI warns of two command lines


def outcome(arguments: list[str]) -> int:
    """Exit status, whether returned or raised."""
    try:
        return main(arguments)
    except SystemExit as error:
        return int(error.code or 0)


def printed_config(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert outcome([*arguments, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("name", catalog.config_names())
def test_every_shipped_config_parses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = printed_config(["fit", "--config", name], capsys)
    assert config["model"]["class_path"].startswith("lit_papers.")


def test_extras_that_are_declared_exist() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    distributions = {"sklearn": "scikit-learn", "torch_geometric": "torch-geometric"}
    for name in catalog.config_names():
        for extra, modules in catalog.describe(name).needs.items():
            brought = {re.split(r"[<>=\[!]", requirement)[0] for requirement in extras[extra]}
            assert {distributions.get(module, module) for module in modules} <= brought, name


def test_the_console_script_is_the_same_command() -> None:
    tomllib = pytest.importorskip("tomllib")
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"lit-papers": f"{program.__module__}:{program.__name__}"}


@pytest.mark.parametrize("name", catalog.config_names())
def test_every_shipped_config_says_what_it_is(name: str) -> None:
    config = catalog.describe(name)
    assert config.shows
    assert config.time


def test_paper_epochs_of_the_configs_are_those_of_the_notebook() -> None:
    from lit_papers.neural_collapse import PAPER_EPOCHS

    config = yaml.safe_load((catalog.CONFIG_FOLDER / "neural_collapse/cifar10.yaml").read_text())
    for callback in config["trainer"]["callbacks"]:
        assert tuple(callback["init_args"]["epochs"]) == PAPER_EPOCHS


def test_a_config_without_header_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper/name.yaml").write_text("# paper: A\nmodel: {}\n")
    monkeypatch.setattr(catalog, "CONFIG_FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"# shows: .*# time: "):
        catalog.describe("paper/name")


def test_list_shows_every_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in catalog.config_names())
    assert "Han, Papyan & Donoho" in shown
    assert main(["list", "all"]) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--help"], "usage: python -m lit_papers"),
        (["--version"], lit_papers.__version__),
        (["list"], "neural_collapse/digits"),
        (["fit", "--config", "neural_colapse/digits"], "did you mean neural_collapse/digits"),
        (["fitt"], "did you mean 'fit'?"),
    ],
)
def test_the_front_door_answers_without_torch(arguments: list[str], says: str) -> None:
    check = "import sys, lit_papers.cli as c; s = c.main(sys.argv[1:]); assert 'torch' not in sys.modules; sys.exit(s)"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", check, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert time.perf_counter() - started < 3  # 0.1 s on an idle machine
    assert says in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stderr
    assert done.returncode == (2 if arguments[0] in ("fit", "fitt") else 0)


@pytest.mark.parametrize("name", ["digits", "zzz"])
def test_unknown_names_print_the_near_ones(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(["fit", "--config", name]) == 2
    said = capsys.readouterr().err
    assert ("did you mean neural_collapse/digits" in said or "continual/digits" in said) == (name == "digits")
    assert "`python -m lit_papers list` shows them all" in said


def test_configs_merge_and_the_last_word_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("trainer: {max_epochs: 7}\nmodel: {init_args: {lr: 0.2, momentum: 0.5}}\n")
    arguments = [*DIGITS, "--config=mine.yaml", '--config={"model.init_args.momentum": 0.6}', "--model.lr=0.1"]
    config = printed_config(arguments, capsys)
    assert config["trainer"]["max_epochs"] == 7
    assert config["model"]["init_args"]["lr"] == 0.1
    assert config["model"]["init_args"]["momentum"] == 0.6
    assert config["model"]["init_args"]["weight_decay"] == 5e-4


def test_a_run_leaves_its_folder_and_prints_where(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(SHORT) == 0
    folder = tmp_path / "runs/neural_collapse/digits/version_0"
    printed = capsys.readouterr().out
    for path in ("config.yaml", "metrics.csv", "neural_collapse.png", "central_path.png"):
        assert (folder / path).is_file()
    (checkpoint,) = (folder / "checkpoints").glob("*.ckpt")
    assert f"checkpoint  {checkpoint.relative_to(tmp_path)}" in printed
    assert "figure      runs/neural_collapse/digits/version_0/central_path.png" in printed
    assert "neural_collapse/nc1" in printed
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert any(row["neural_collapse/nc1"] for row in rows)

    # its own configuration repeats it, in the next folder, to the last bit
    repeat = ["fit", "--config", str(folder / "config.yaml"), "--trainer.enable_progress_bar=false"]
    assert main(repeat) == 0
    weights = [
        torch.load(next((folder.parent / f"version_{k}/checkpoints").glob("*.ckpt")), weights_only=True)["state_dict"]
        for k in (0, 1)
    ]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


def test_resuming_continues_and_says_what_it_overrides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, "--model.lr=0.2"]) == 0
    (checkpoint,) = tmp_path.glob("runs/neural_collapse/digits/version_0/checkpoints/*.ckpt")
    resume = [*DIGITS, "--trainer.enable_progress_bar=false", "--ckpt_path", str(checkpoint)]
    with pytest.warns(
        UserWarning, match=r"model.init_args.lr: 0.01 was asked for, but 0.2 is used, the value in .*ckpt"
    ):
        assert main([*resume, "--trainer.max_epochs=4", "--model.lr=0.01", "--data.batch_size=140"]) == 0
    (again,) = tmp_path.glob("runs/neural_collapse/digits/version_1/checkpoints/*.ckpt")
    resumed = torch.load(again, weights_only=True)
    assert resumed["epoch"] == 3
    assert resumed["global_step"] == 2 * 20 + 2 * 10, "what is not the model's is applied"
    history = next(state for key, state in resumed["callbacks"].items() if "NeuralCollapse" in key)["history"]
    assert [entry["epoch"] for entry in history] == [1, 2]


def test_two_processes_from_the_command_line(tmp_path: Path) -> None:
    """The second process is started from the same words; one folder, one set of files."""
    arguments = [*SHORT, "--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=35"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = run_warm(["-m", "lit_papers", *arguments], tmp_path, environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in (tmp_path / "runs/neural_collapse/digits").iterdir()] == ["version_0"]
    assert done.stdout.count("run folder") == 1


@pytest.mark.slow
def test_wandb_by_option_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, as a cluster without internet has it: metrics and figures end up in the run that W&B keeps."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    done = subprocess.run(
        [sys.executable, "-m", "lit_papers", *SHORT, "--trainer.logger=WandbLogger"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = tmp_path.glob("wandb/offline-run-*")
    assert {path.name.split("_")[0] for path in run.glob("files/media/images/*.png")} == {"central", "neural"}
    (folder,) = {path.parent for path in tmp_path.glob("**/config.yaml")}
    assert (folder / "neural_collapse.png").is_file()
    assert not (tmp_path / "runs").exists()


def test_long_inline_configurations_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    """Longer than any file name: asking the system for such a file is an error of its own."""
    text = "{trainer: {max_epochs: 3, callbacks: null}, model: {lr: 0.25}}" + " " * 300
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", "neural_collapse/digits", "--config", text, "--print_config"])
    assert end.value.code == 0
    assert "lr: 0.25" in capsys.readouterr().out

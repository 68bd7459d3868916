"""Every sweep file builds, by W&B's own functions, a command line that we accept and a metric that we log."""

import itertools
import json
import os
import random
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_papers.cli import main
from tests.warm import run_warm

ROOT = Path(__file__).parents[2]
needs_schema = pytest.mark.skipif("sweeps" not in packages_distributions(), reason="W&B's package `sweeps` is missing")
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))


def sample(parameter: dict[str, Any], draw: random.Random) -> Any:
    if "value" in parameter:
        return parameter["value"]
    if "values" in parameter:
        return draw.choice(parameter["values"])
    return parameter["min"]


def command_line(sweep: dict[str, Any], folder: Path) -> list[str]:
    """What ``wandb agent`` would start, after ``python -m lit_papers``."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    draw = random.Random(0)
    values = {key: {"value": sample(parameter, draw)} for key, parameter in sweep["parameters"].items()}
    arguments = utils.create_sweep_command_args({"args": values})
    (folder / "sampled.json").write_text(json.dumps(arguments["args_dict"]))
    command = utils.create_sweep_command(list(sweep["command"]))
    assert command[:4] == ["${env}", "${interpreter}", "-m", "lit_papers"]
    return [str(folder / "sampled.json") if word == "${args_json_file}" else word for word in command[4:]]


def holds(found: Any, value: Any) -> bool:
    """Whether a parsed configuration has the value; the arguments of a class may be completed by their defaults."""
    if isinstance(value, dict):
        return all(key in found and holds(found[key], part) for key, part in value.items())
    return bool(found == value)


ASK_WANDB = """\
import json, sys
from sweeps import schema_violations_from_proposed_config
from sweeps.config.schema import sweep_config_jsonschema
config = json.load(sys.stdin)
if "run_cap" not in sweep_config_jsonschema["properties"]:  # younger than the schema of sweeps 0.2.0
    config.pop("run_cap", None)
print(json.dumps(list(schema_violations_from_proposed_config(config))))
"""


def violations(sweep: dict[str, Any], folder: Path) -> list[str]:
    """What W&B's own schema says against a file; its package has the name of our folder, so it is asked elsewhere."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", ASK_WANDB], input=json.dumps(sweep), cwd=folder, env=environment,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


@needs_schema
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_file_is_what_wandb_calls_a_sweep(path: Path, tmp_path: Path) -> None:
    assert violations(yaml.safe_load(path.read_text()), tmp_path) == []


@needs_schema
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("metrics", {"name": "val/accuracy"}),
        ("parameters", {"lr": {"distribution": "log_uniform_values", "min": 0.1, "max": 0.01}}),
        ("method", "guess"),
    ],
)
def test_the_schema_refuses_mistakes(key: str, value: Any, tmp_path: Path) -> None:
    sweep = yaml.safe_load((ROOT / "sweeps/neural_collapse.yaml").read_text())
    assert violations({**sweep, key: value}, tmp_path) != []


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_sampled_values_arrive(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lit_papers"])
    arguments = command_line(yaml.safe_load(path.read_text()), tmp_path)
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert end.value.code == 0
    for key, value in json.loads((tmp_path / "sampled.json").read_text()).items():
        found = printed
        for part in key.split("."):
            found = found[part]
        assert holds(found, value), key


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_metric_is_logged(path: Path, tmp_path: Path) -> None:
    """In a process of its own, as the agent starts it: some sweeps start further processes."""
    sweep = yaml.safe_load(path.read_text())
    arguments = command_line(sweep, tmp_path)
    overlay = arguments.index("wandb")  # without it the run writes a table, which is easy to read
    assert arguments[overlay - 1] == "--config"
    del arguments[overlay - 1 : overlay + 1]
    short = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = run_warm(["-m", "lit_papers", *arguments, *short], tmp_path, environment)
    assert done.returncode == 0, done.stderr[-3000:]
    (metrics,) = tmp_path.glob("runs/*/*/version_0/metrics.csv")
    assert sweep["metric"]["name"] in metrics.read_text().splitlines()[0].split(",")


def points(name: str) -> list[dict[str, Any]]:
    """All of a grid, seeds apart."""
    parameters = yaml.safe_load((ROOT / f"sweeps/{name}.yaml").read_text())["parameters"]
    axes = {
        key: [axis["value"]] if "value" in axis else axis["values"]
        for key, axis in parameters.items()
        if not key.endswith(("seed", "seed_everything"))
    }
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


@pytest.mark.parametrize(
    ("config", "point"),
    [
        *(("diffstride/digits", point) for point in points("diffstride_grid")),
        *(("continual/digits", point) for point in points("continual_grid")),
    ],
)
def test_every_point_of_a_grid_trains(config: str, point: dict[str, Any], tmp_path: Path) -> None:
    """What fits by itself may not fit together, which one sample does not show."""
    pytest.importorskip("sklearn")
    if config.startswith("continual"):
        pytest.importorskip("lightly")
    (tmp_path / "point.json").write_text(json.dumps(point))
    assert main(["fit", "--config", config, "--config", "point.json", "--trainer.fast_dev_run=true"]) == 0

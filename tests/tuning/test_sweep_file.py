"""Sweep files mean what they mean to W&B, or are refused by name."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_papers.tuning.sweep_file import Choice, Range, SweepFileError, find_sweep, read_sweep

ROOT = Path(__file__).parents[2]
COMMAND = ["${env}", "${interpreter}", "-m", "lit_papers", "fit", "--config", "x", "--config", "${args_json_file}"]
GOOD: dict[str, Any] = {
    "method": "bayes",
    "metric": {"name": "val/loss"},
    "parameters": {"model.lr": {"min": 0.1, "max": 1.0}},
    "command": COMMAND,
}


def write(folder: Path, **changes: Any) -> Path:
    content = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    (folder / "my_sweep.yaml").write_text(yaml.safe_dump(content))
    return folder / "my_sweep.yaml"


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_files_are_read(path: Path) -> None:
    sweep = read_sweep(path)
    assert sweep.name == path.stem
    assert sweep.arguments[0] == "fit"
    assert sweep.method == "grid" or sweep.run_cap
    assert find_sweep(path.stem).samefile(path)


def test_what_is_read(tmp_path: Path) -> None:
    sweep = read_sweep(write(tmp_path, run_cap=7))
    assert (sweep.name, sweep.method, sweep.metric, sweep.maximize) == ("my_sweep", "bayes", "val/loss", False)
    assert sweep.arguments == ("fit", "--config", "x", "--config", "${args_json_file}")
    assert (sweep.run_cap, sweep.min_iter, sweep.fixed) == (7, None, {})


@pytest.mark.parametrize(
    ("before", "environment", "flags"),
    [
        (["${env}", "${interpreter}"], {}, ()),
        (["python3"], {}, ()),
        (["env", "A=1", "B=x=y", "python", "-u", "-Wignore"], {"A": "1", "B": "x=y"}, ("-u", "-Wignore")),
    ],
)
def test_words_before_the_module(
    before: list[str], environment: dict[str, str], flags: tuple[str, ...], tmp_path: Path
) -> None:
    sweep = read_sweep(write(tmp_path, command=[*before, *COMMAND[2:]]))
    assert (sweep.environment, sweep.flags) == (environment, flags)


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        ({"values": [1, None, [2], "a", False]}, Choice((1, None, [2], "a", False))),
        ({"min": 0.5, "max": 2.0}, Range(0.5, 2.0)),
        ({"min": 1, "max": 4}, Range(1, 4)),
        ({"distribution": "uniform", "min": 1, "max": 4}, Range(1.0, 4.0)),
        ({"distribution": "int_uniform", "min": 1, "max": 4}, Range(1, 4)),
        ({"distribution": "q_uniform", "min": 0.5, "max": 2.0, "q": 0.25}, Range(0.5, 2.0, step=0.25)),
        ({"distribution": "q_uniform", "min": 2, "max": 8}, Range(2, 8, step=1)),
        ({"distribution": "log_uniform_values", "min": 1, "max": 10}, Range(1.0, 10.0, log=True)),
        ({"distribution": "log_uniform", "min": -2, "max": 1}, Range(math.exp(-2), math.e, log=True)),
        ({"distribution": "inv_log_uniform", "min": -1, "max": 2}, Range(math.exp(-2), math.e, log=True)),
        ({"distribution": "inv_log_uniform_values", "min": 0.1, "max": 2}, Range(0.1, 2.0, log=True)),
    ],
)
def test_distributions(parameter: dict[str, Any], expected: Choice | Range, tmp_path: Path) -> None:
    (axis,) = read_sweep(write(tmp_path, parameters={"model.lr": parameter})).space.values()
    assert axis == expected
    if isinstance(axis, Range):
        assert type(axis.low) is type(expected.low)


def test_nested_parameters_are_dotted_keys(tmp_path: Path) -> None:
    nested = {"model": {"parameters": {"lr": {"min": 0.1, "max": 1.0}, "loss": {"value": None}}}}
    sweep = read_sweep(write(tmp_path, parameters=nested))
    assert set(sweep.space) == {"model.lr"}
    assert sweep.fixed == {"model.loss": None}


def test_grid_points(tmp_path: Path) -> None:
    axes = {"a": {"values": [1, 2, 3]}, "b": {"min": 2, "max": 5}, "c": {"value": 0}}
    sweep = read_sweep(write(tmp_path, method="grid", parameters=axes))
    assert sweep.space["b"] == Choice((2, 3, 4, 5))
    assert sweep.grid_size == 12


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"min_iter": 2}, (2, 3)),
        ({"min_iter": 2, "eta": 4}, (2, 4)),
        ({"max_iter": 27, "s": 2}, (3, 3)),
        ({"max_iter": 5, "s": 4}, (1, 3)),
    ],
)
def test_hyperband(settings: dict[str, int], expected: tuple[int, int], tmp_path: Path) -> None:
    sweep = read_sweep(write(tmp_path, early_terminate={"type": "hyperband", **settings}))
    assert (sweep.min_iter, sweep.eta) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": None}, "method: missing; one of bayes, random, grid"),
        ({"method": "custom"}, "method: 'custom'; one of"),
        ({"metod": "grid"}, "metod: unknown key; did you mean 'method'"),
        ({"controller": {"type": "local"}}, "controller: works on W&B's servers only"),
        ({"metric": None}, "metric: must be a mapping"),
        ({"metric": {"name": "a", "goal": "min"}}, "metric.goal: must be minimize or maximize, got 'min'"),
        ({"metric": {"name": "a", "target": 1}}, "metric.target: works on W&B's servers only"),
        ({"metric": {"name": "a", "gaol": "minimize"}}, "metric.gaol: unknown key; did you mean 'goal'"),
        ({"parameters": None}, "parameters: missing"),
        ({"parameters": {"a": {"value": 1}}}, "parameters: nothing varies"),
        ({"parameters": {"a": 1}}, "parameters.a: must be a mapping"),
        ({"parameters": {"a": {"min": 1.0}}}, "parameters.a: give `value`, `values`, or `min` and `max`"),
        ({"parameters": {"a": {"min": 2.0, "max": 1.0}}}, "parameters.a: min 2.0 must be less than max 1.0"),
        ({"parameters": {"a": {"min": 1, "max": 2.0}}}, "parameters.a: min 1 and max 2.0 are of different types"),
        ({"parameters": {"a": {"min": "1e-3", "max": 1.0, "distribution": "uniform"}}}, "parameters.a.min: '1e-3' is"),
        ({"parameters": {"a": {"min": 0, "max": 1.0, "distribution": "log_uniform_values"}}}, "must be above 0"),
        ({"parameters": {"a": {"min": 0.5, "max": 1, "distribution": "int_uniform"}}}, "a: int_uniform needs integer"),
        ({"parameters": {"a": {"min": 0.0, "max": 1.0, "distribution": "q_uniform", "q": 0.3}}}, "multiples of q"),
        ({"parameters": {"a": {"distribution": "normal", "mu": 0, "sigma": 1}}}, "a.distribution: Optuna has no count"),
        ({"parameters": {"a": {"distribution": "q_log_uniform", "min": 0, "max": 1}}}, "no counterpart"),
        ({"parameters": {"a": {"values": []}}}, "parameters.a.values: must be a list of at least one"),
        ({"parameters": {"a": {"values": [1, 2, 1]}}}, "parameters.a.values: 1 stands there twice"),
        ({"parameters": {"a": {"values": [1, 2], "probabilities": [0.1, 0.9]}}}, "parameters.a.probabilities"),
        ({"parameters": {"a": {"min": 1.0, "maxx": 2.0}}}, "parameters.a.maxx: unknown key; did you mean 'max'"),
        ({"method": "grid"}, "parameters.model.lr: a grid needs `values`, or integers"),
        ({"run_cap": 0}, "run_cap: must be a positive integer, got 0"),
        ({"early_terminate": {"type": "envelope"}}, "early_terminate: must be a mapping with `type: hyperband`"),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate: give either `min_iter`, or `max_iter` and `s`"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 1.5}}, "early_terminate.eta: must be an int"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "strict": True}}, "early_terminate.strict: works on"),
        ({"command": None}, "command: missing"),
        ({"command": ["python", "train.py", "${args_json_file}"]}, "command: only `-m lit_papers fit ...` is run"),
        ({"command": [*COMMAND, "${args}"]}, "command: \\${args} does not keep types"),
        (
            {"command": ["torchrun", "--nproc_per_node=2", *COMMAND[2:]]},
            "command: 'torchrun' before .* is not honoured",
        ),
        ({"command": ["srun", *COMMAND]}, "command: 'srun' before"),
        ({"command": ["mpirun", "-n", "2", *COMMAND[1:]]}, "command: 'mpirun' before"),
        ({"command": ["X=1", *COMMAND[1:]]}, "command: 'X=1' before"),
        ({"command": ["${env}", "nice", *COMMAND[1:]]}, "command: 'nice' before"),
        ({"command": ["python", "-c", *COMMAND[2:]]}, "command: '-c' before"),
        ({"command": ["/opt/python", *COMMAND[2:]]}, "command: '/opt/python' before"),
        ({"command": COMMAND[2:]}, "command: `python` before .* is missing"),
        ({"command": [*COMMAND, "--data.root=${envvar:DATA}"]}, "filled in by W&B's agent only"),
        ({"name": "../../elsewhere"}, "name: '../../elsewhere' is to be a folder below"),
        ({"name": "/var/x"}, "name: '/var/x' is to be"),
        ({"name": ".."}, "name: '..' is to be"),
        ({"command": COMMAND[:-2]}, "`--config`, `\\${args_json_file}` is missing"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(SweepFileError, match=message) as refused:
        read_sweep(path)
    assert str(refused.value).startswith(str(path))


def test_no_mapping_and_no_yaml(tmp_path: Path) -> None:
    for text in ("- a\n", "a: [\n", "method: grid\nmethod: random\n"):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(SweepFileError, match=r"x\.yaml"):
            read_sweep(tmp_path / "x.yaml")


def test_unknown_names() -> None:
    with pytest.raises(SweepFileError, match="did you mean 'neural_collapse'"):
        find_sweep("neural_colapse")
    with pytest.raises(SweepFileError, match="shipped: continual"):
        find_sweep("what.yaml")

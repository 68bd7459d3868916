"""Reading a Weights & Biases sweep file, and refusing by name what a search on this machine cannot do.

Free of torch and Optuna. What is accepted means the same as on W&B's servers; nothing is ignored silently.
"""

import difflib
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_papers.yaml_files import YamlError, read_yaml

SWEEP_FOLDERS = (Path(__file__).parents[1] / "sweeps", Path(__file__).parents[2] / "sweeps")  # installed; a checkout
ARGUMENTS_FILE = "${args_json_file}"
METHODS = ("bayes", "random", "grid")

_TOP_KEYS = (
    "method", "metric", "parameters", "command", "early_terminate", "run_cap",
    "name", "program", "project", "entity", "description",
)  # fmt: skip
_ONLINE_KEYS = ("controller", "scheduler", "metrics", "job", "image_uri")
_LAUNCH = ("-m", "lit_papers", "fit")
_INTERPRETERS = ("${interpreter}", "python", "python3")
_FLAG = re.compile(r"-[bBdEIOPqRsSuvx]+|-[WX]\S+")  # of the interpreter, in one word
_FOLDER_NAME = re.compile(r"[\w][\w .+=@-]*")


class SweepFileError(ValueError):
    """A sweep file that is wrong, or wants what only W&B's servers do; the message names the key."""


@dataclass(frozen=True)
class Choice:
    """One of a few values of any type.

    Attributes:
        values: the values, all different.
    """

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """A number between two bounds, both included.

    Attributes:
        low: the smaller bound; both bounds are integers where the parameter is one.
        high: the larger bound.
        log: uniform in the logarithm.
        step: distance of the values, from ``low`` on; None for all numbers.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None


@dataclass(frozen=True)
class Sweep:
    """What a sweep file asks for.

    Attributes:
        name: of the sweep; of the file where it says none.
        method: ``bayes``, ``random`` or ``grid``.
        metric: logged key that is optimised, by its last value.
        maximize: whether more of it is better.
        space: what varies, by dotted key of the configuration.
        fixed: what does not, by dotted key.
        arguments: words after ``python -m lit_papers``; `ARGUMENTS_FILE` stands for the file of the trial's values.
        environment: variables that ``command`` sets for each trial.
        flags: of the interpreter, such as ``-u``.
        run_cap: number of trials, or None.
        min_iter: number of logged values after which a trial is first compared with the others, or None.
        eta: of ``eta`` trials one goes on; the next comparison follows after ``eta`` times as many values.
    """

    name: str
    method: str
    metric: str
    maximize: bool
    space: Mapping[str, Choice | Range]
    fixed: Mapping[str, Any]
    arguments: tuple[str, ...]
    run_cap: int | None = None
    min_iter: int | None = None
    eta: int = 3
    environment: Mapping[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

    @property
    def grid_size(self) -> int:
        """Number of points of a grid search."""
        return math.prod(len(choice.values) for choice in self.space.values() if isinstance(choice, Choice))

    def an_example(self) -> dict[str, Any]:
        """The values of one possible trial, by dotted key."""
        first = {key: axis.values[0] if isinstance(axis, Choice) else axis.low for key, axis in self.space.items()}
        return {**self.fixed, **first}


def find_sweep(name: str) -> Path:
    """The sweep file at a path, or the shipped one of that name.

    Raises:
        SweepFileError: neither is there; the message lists what is shipped.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = {path.stem: path for folder in SWEEP_FOLDERS for path in folder.glob("*.yaml")}
    if name in shipped:
        return shipped[name]
    near = difflib.get_close_matches(Path(name).stem, shipped, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"shipped: {', '.join(sorted(shipped))}"
    raise SweepFileError(f"{name}: no such file, and no shipped sweep of that name; {hint}")


def read_sweep(path: Path) -> Sweep:
    """Read and check a sweep file.

    Args:
        path: a YAML file as `wandb sweep` takes it.

    Returns:
        The sweep.

    Raises:
        SweepFileError: the file is no YAML, a key is unknown or missing, a range is empty, or something is asked for
            that only W&B's servers do. The message names file and key.
        OSError: the file cannot be read.
    """
    try:
        content = read_yaml(path)
    except YamlError as error:
        raise SweepFileError(str(error)) from error
    try:
        if not isinstance(content, dict):
            raise SweepFileError("a sweep file is a mapping with `method`, `metric`, `parameters` and `command`")
        return _sweep(content, default_name=path.stem)
    except SweepFileError as error:
        raise SweepFileError(f"{path}: {error}") from error


def _sweep(content: Mapping[str, Any], default_name: str) -> Sweep:
    for key in content:
        if key in _ONLINE_KEYS:
            raise SweepFileError(f"{key}: works on W&B's servers only; remove it to search on this machine")
    _known_keys("", content, _TOP_KEYS)
    method = content.get("method")
    if method not in METHODS:
        raise SweepFileError(f"method: {'missing' if method is None else repr(method)}; one of {', '.join(METHODS)}")
    metric, maximize = _metric(content.get("metric"))
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        raise SweepFileError("parameters: missing; a mapping from dotted keys such as model.init_args.lr to ranges")
    space: dict[str, Choice | Range] = {}
    fixed: dict[str, Any] = {}
    _read_parameters(parameters, "", space, fixed)
    if not space:
        raise SweepFileError("parameters: nothing varies; give at least one of them `values`, or `min` and `max`")
    if method == "grid":
        space = {key: _grid_axis(key, axis) for key, axis in space.items()}
    run_cap = content.get("run_cap")
    if run_cap is not None and not (_is_integer(run_cap) and run_cap > 0):
        raise SweepFileError(f"run_cap: must be a positive integer, got {run_cap!r}")
    min_iter, eta = _early_terminate(content.get("early_terminate"))
    environment, flags, arguments = _command(content.get("command"))
    return Sweep(
        name=_name(content.get("name") or default_name),
        method=method,
        metric=metric,
        maximize=maximize,
        space=space,
        fixed=fixed,
        arguments=arguments,
        run_cap=run_cap,
        min_iter=min_iter,
        eta=eta,
        environment=environment,
        flags=flags,
    )


def _name(name: Any) -> str:
    if not _FOLDER_NAME.fullmatch(str(name)):
        raise SweepFileError(f"name: {name!r} is to be a folder below runs/sweeps, so leave out what leads elsewhere")
    return str(name)


def _known_keys(where: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise SweepFileError(f"{where}{key}: unknown key; {hint}")


def _metric(metric: Any) -> tuple[str, bool]:
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        raise SweepFileError("metric: must be a mapping with `name`, a logged key, and `goal`")
    for key in ("target", "impute", "impute_while_running"):
        if key in metric:
            raise SweepFileError(f"metric.{key}: works on W&B's servers only; remove it to search on this machine")
    _known_keys("metric.", metric, ("name", "goal"))
    goal = metric.get("goal", "minimize")  # W&B's default
    if goal not in ("minimize", "maximize"):
        raise SweepFileError(f"metric.goal: must be minimize or maximize, got {goal!r}")
    return metric["name"], goal == "maximize"


def _read_parameters(
    parameters: Mapping[str, Any], prefix: str, space: dict[str, Choice | Range], fixed: dict[str, Any]
) -> None:
    for name, parameter in parameters.items():
        key = f"{prefix}{name}"
        if not isinstance(parameter, dict):
            raise SweepFileError(f"parameters.{key}: must be a mapping such as {{value: ...}}, got {parameter!r}")
        if "parameters" in parameter:  # nested keys are dotted ones to the command line
            _known_keys(f"parameters.{key}.", parameter, ("parameters",))
            if not isinstance(parameter["parameters"], dict):
                raise SweepFileError(f"parameters.{key}.parameters: must be a mapping")
            _read_parameters(parameter["parameters"], f"{key}.", space, fixed)
        elif "value" in parameter:
            _known_keys(f"parameters.{key}.", parameter, ("value", "distribution"))
            fixed[key] = parameter["value"]
        elif "values" in parameter:
            space[key] = _choice(key, parameter)
        else:
            space[key] = _range(key, parameter)


def _choice(key: str, parameter: Mapping[str, Any]) -> Choice:
    if "probabilities" in parameter:
        raise SweepFileError(
            f"parameters.{key}.probabilities: Optuna draws all values equally often; remove it, or sweep with W&B"
        )
    _known_keys(f"parameters.{key}.", parameter, ("values", "distribution"))
    if parameter.get("distribution", "categorical") != "categorical":
        raise SweepFileError(f"parameters.{key}.distribution: with `values` it is categorical, or left out")
    values = parameter["values"]
    if not isinstance(values, list) or not values:
        raise SweepFileError(f"parameters.{key}.values: must be a list of at least one value, got {values!r}")
    for position, value in enumerate(values):
        if value in values[:position]:
            raise SweepFileError(f"parameters.{key}.values: {value!r} stands there twice")
    return Choice(tuple(values))


def _range(key: str, parameter: Mapping[str, Any]) -> Range:
    where = f"parameters.{key}"
    _known_keys(f"{where}.", parameter, ("value", "values", "distribution", "min", "max", "q", "mu", "sigma", "a", "b"))
    distribution = parameter.get("distribution")
    if distribution is None:
        if "min" not in parameter or "max" not in parameter:
            raise SweepFileError(f"{where}: give `value`, `values`, or `min` and `max`")
        integers = [_is_integer(parameter[bound]) for bound in ("min", "max")]
        if any(integers) and not all(integers):
            bounds = f"min {parameter['min']!r} and max {parameter['max']!r}"
            raise SweepFileError(f"{where}: {bounds} are of different types; say which `distribution`")
        distribution = "int_uniform" if all(integers) else "uniform"
    if distribution not in _DISTRIBUTIONS:
        raise SweepFileError(
            f"{where}.distribution: Optuna has no counterpart of {distribution!r}; "
            f"one of {', '.join(_DISTRIBUTIONS)}, or sweep with W&B"
        )
    _known_keys(f"{where}.", parameter, ("distribution", "min", "max", *(["q"] if "q_" in distribution else [])))
    for bound in ("min", "max", "q"):
        value = parameter.get(bound, 1 if bound == "q" else None)
        if isinstance(value, str):  # YAML 1.1 reads 1e-3 as a word
            raise SweepFileError(f"{where}.{bound}: {value!r} is a word; YAML wants a dot and a sign as in 1.0e-3")
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise SweepFileError(f"{where}.{bound}: must be a number, got {value!r}")
    low, high = parameter["min"], parameter["max"]
    if not low < high:
        raise SweepFileError(f"{where}: min {low!r} must be less than max {high!r}")
    try:
        return _DISTRIBUTIONS[distribution](low, high, parameter.get("q", 1))
    except (SweepFileError, OverflowError) as error:
        raise SweepFileError(f"{where}: {error}") from error


def _integers(low: float, high: float) -> Range:
    if not (_is_integer(low) and _is_integer(high)):
        raise SweepFileError(f"int_uniform needs integer bounds, got {low!r} and {high!r}")
    return Range(low, high)


def _logarithmic(low: float, high: float) -> Range:
    if low <= 0:
        raise SweepFileError(f"a logarithmic range must be above 0, got min {low!r} (log_uniform takes exponents)")
    return Range(float(low), float(high), log=True)


def _quantised(low: float, high: float, q: float) -> Range:
    # W&B rounds to multiples of q, Optuna counts from the lower bound: the same where both bounds are multiples
    if q <= 0 or any(abs(bound / q - round(bound / q)) > 1e-9 for bound in (low, high)):
        raise SweepFileError(f"min and max must be multiples of q, got {low!r}, {high!r} and q {q!r}")
    if all(map(_is_integer, (low, high, q))):
        return Range(low, high, step=q)
    return Range(float(low), float(high), step=float(q))


# W&B's names; the bounds of log_uniform and inv_log_uniform are exponents, and 1/X is log-uniform where X is
_DISTRIBUTIONS: dict[str, Callable[[float, float, float], Range]] = {
    "uniform": lambda low, high, q: Range(float(low), float(high)),
    "int_uniform": lambda low, high, q: _integers(low, high),
    "q_uniform": _quantised,
    "log_uniform": lambda low, high, q: _logarithmic(math.exp(low), math.exp(high)),
    "log_uniform_values": lambda low, high, q: _logarithmic(low, high),
    "inv_log_uniform": lambda low, high, q: _logarithmic(math.exp(-high), math.exp(-low)),
    "inv_log_uniform_values": lambda low, high, q: _logarithmic(low, high),
}


def _grid_axis(key: str, axis: Choice | Range) -> Choice:
    if isinstance(axis, Choice):
        return axis
    if not _is_integer(axis.low):
        raise SweepFileError(f"parameters.{key}: a grid needs `values`, or integers `min` and `max`")
    return Choice(tuple(range(int(axis.low), int(axis.high) + 1, int(axis.step or 1))))


def _early_terminate(content: Any) -> tuple[int | None, int]:
    if content is None:
        return None, 3
    if not isinstance(content, dict) or content.get("type") != "hyperband":
        raise SweepFileError("early_terminate: must be a mapping with `type: hyperband` and `min_iter`")
    if "strict" in content:
        raise SweepFileError("early_terminate.strict: works on W&B's servers only; remove it to search on this machine")
    _known_keys("early_terminate.", content, ("type", "min_iter", "max_iter", "s", "eta"))
    numbers = {key: value for key, value in content.items() if key != "type"}
    for key, value in numbers.items():
        least = 2 if key == "eta" else 1
        if not _is_integer(value) or value < least:
            raise SweepFileError(f"early_terminate.{key}: must be an integer of at least {least}, got {value!r}")
    eta = numbers.get("eta", 3)
    if "min_iter" in numbers and not {"max_iter", "s"} & set(numbers):
        return numbers["min_iter"], eta
    if set(numbers) - {"eta"} == {"max_iter", "s"}:
        return max(1, numbers["max_iter"] // eta ** numbers["s"]), eta
    raise SweepFileError("early_terminate: give either `min_iter`, or `max_iter` and `s`")


def _command(command: Any) -> tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]:
    """The environment, the flags of the interpreter, and the words after ``python -m lit_papers``.

    Each word is honoured or refused: a launcher that was left out would change how many processes train.
    """
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        raise SweepFileError(f"command: missing; a list of words with {' '.join(_LAUNCH)} and {ARGUMENTS_FILE}")
    starts = [i for i in range(len(command)) if tuple(command[i : i + len(_LAUNCH)]) == _LAUNCH]
    if not starts:
        raise SweepFileError(f"command: only `{' '.join(_LAUNCH)} ...` is run on this machine, got {' '.join(command)}")
    environment, flags = _before_the_module(command[: starts[0]])
    arguments = tuple(command[starts[0] + 2 :])
    for word in arguments:
        if "${" in word and word != ARGUMENTS_FILE:
            why = "is filled in by W&B's agent only" if "${envvar" in word else "does not keep types"
            raise SweepFileError(f"command: {word} {why}; write `--config`, `{ARGUMENTS_FILE}`")
    if ARGUMENTS_FILE not in arguments:
        raise SweepFileError(f"command: `--config`, `{ARGUMENTS_FILE}` is missing, so no trial would get its values")
    return environment, flags, arguments


def _before_the_module(words: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """``[env [NAME=VALUE ...]] python [flag ...]``."""
    rest = list(words)
    environment: dict[str, str] = {}
    if rest and rest[0] in ("${env}", "env", "/usr/bin/env"):
        rest.pop(0)
        while rest and re.match(r"[A-Za-z_]\w*=", rest[0]) and "${" not in rest[0]:
            name, _, value = rest.pop(0).partition("=")
            environment[name] = value
    if rest and rest[0] in _INTERPRETERS:
        flags = rest[1:]
        rest = [flag for flag in flags if not _FLAG.fullmatch(flag)]
        if not rest:
            return environment, tuple(flags)
    if not rest:
        raise SweepFileError(f"command: `python` before `{' '.join(_LAUNCH)}` is missing")
    word = rest[0]
    raise SweepFileError(
        f"command: {word!r} before `{' '.join(_LAUNCH)}` is not honoured by a search on this machine, which starts "
        "`[env NAME=VALUE ...] python` itself; remove it. For several processes a trial set trainer.devices and "
        "trainer.strategy; under SLURM start the sweep command itself by srun, with --storage"
    )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

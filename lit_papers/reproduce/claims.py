"""Claims as data: ``configs/<paper>/claims.yaml``, read and checked before anything runs. Free of torch."""

import difflib
import itertools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_papers import catalog
from lit_papers.extras import EXTRA_OF, is_installed
from lit_papers.locations import exists, is_present, own_place
from lit_papers.reproduce.verdicts import RULES
from lit_papers.trials.fingerprint import fingerprint
from lit_papers.yaml_files import YamlError, read_yaml

_KEYS = ("statement", "source", "minutes", "needs", "version", "runs", "test", "show", "cost", "figure")
_RUN_KEYS = ("config", "call", "set", "arms", "grid", "seeds", "seeded", "read")
_NEEDS = ("gpu", "data", "file", "packages")
_AT = ("last", "first", "min", "max", "all")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_FUNCTION = re.compile(r"lit_papers(\.\w+)+")
_SEED_KEYS = ("seed_everything",)
_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd")  # NVIDIA's, AMD's


class ClaimError(ValueError):
    """A claims file that is wrong, or a claim that is not there; the message names file and key."""


@dataclass(frozen=True)
class Reading:
    """What is read from the metrics that a run has logged.

    Attributes:
        metric: logged key.
        at: which of its values: ``last``, ``first``, ``min``, ``max``, or ``all`` as a list.
    """

    metric: str
    at: str = "last"


@dataclass(frozen=True)
class Plan:
    """The runs of a claim: one for each arm and seed.

    Attributes:
        configs: shipped configurations, the later over the earlier; empty where a function is called.
        call: dotted path of a function of the paper's room, or None.
        arms: by name, what each sets beside what all share; dotted keys, or arguments of the function.
        seeds: of the runs.
        seeded: dotted keys that get the seed.
        read: what is read from a run's metrics, by the name of the value.
    """

    configs: tuple[str, ...]
    call: str | None
    shared: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    seeded: tuple[str, ...]
    read: Mapping[str, Reading]


@dataclass(frozen=True)
class Claim:
    """One claim of a paper.

    Attributes:
        paper: whose room and configurations these are.
        name: of the claim, in its paper.
        statement: what is claimed, in our words.
        source: the place in the paper.
        minutes: that all runs take, one after the other, on one core.
        needs: what a machine must have: ``gpu`` and why, names of ``data``, a ``file`` below ``$LIT_PAPERS_DATA``,
            ``packages``.
        version: counted up when a called function computes something else.
        plan: the runs.
        rules: what decides, as `lit_papers.reproduce.verdicts` has them.
        show: columns of the table: values, and what they are called.
        cost: values that say what an arm costs.
        figure: dotted path of a function of the paper's room that draws the outcomes, or None.
    """

    paper: str
    name: str
    statement: str
    source: str
    minutes: float
    needs: Mapping[str, Any]
    version: int
    plan: Plan
    rules: tuple[Mapping[str, Any], ...]
    show: Mapping[str, str]
    cost: tuple[str, ...]
    figure: str | None

    @property
    def path(self) -> str:
        """What the command line calls it."""
        return f"{self.paper}/{self.name}"

    def lacking(self) -> list[str]:
        """What it needs and this machine does not have, in words."""
        missing = []
        if "gpu" in self.needs and not any(exists(Path(file)) for file in _GPU_FILES):
            missing.append(f"a GPU: {self.needs['gpu']}")
        missing += [f"the data set {name}" for name in _as_list(self.needs.get("data")) if not is_present(name)]
        for name in _as_list(self.needs.get("file")):
            place = own_place()
            if place is None or not exists(place / name):
                missing.append(f"{name} in $LIT_PAPERS_DATA")
        for name in _as_list(self.needs.get("packages")):
            if not is_installed(name):
                missing.append(f"{name}, of lit-papers[{EXTRA_OF.get(name, name)}]")
        return missing

    def needs_in_words(self) -> str:
        """What it needs that no package manager installs, whether it is here or not."""
        words = [f"a GPU: {self.needs['gpu']}"] if "gpu" in self.needs else []
        words += [f"the data set {name}" for name in _as_list(self.needs.get("data"))]
        words += [f"{name} in $LIT_PAPERS_DATA" for name in _as_list(self.needs.get("file"))]
        return ", ".join(words)

    def asked(self) -> str:
        """Fingerprint of what is run, seeds apart, from the files alone: kept results that differ in it are old."""
        plan = self.plan
        return fingerprint(
            {
                "configs": [read_yaml(_config_path(name)) for name in plan.configs],
                "call": plan.call,
                "arms": {name: {**plan.shared, **arm} for name, arm in plan.arms.items()},
                "seeded": list(plan.seeded),
                "read": {name: [reading.metric, reading.at] for name, reading in plan.read.items()},
                "version": self.version,
            }
        )


def _config_path(name: str) -> Path:
    path = catalog.find_config(name)
    if path is None:
        raise ClaimError(
            f"runs.config: there is no shipped configuration {name!r}{_near(name, catalog.config_names())}"
        )
    return path


def papers() -> list[str]:
    """The papers that have a claims file, sorted."""
    return sorted(path.parent.name for path in catalog.CONFIG_FOLDER.glob(f"*/{catalog.CLAIMS_FILE}"))


def find_claims(names: Sequence[str]) -> list[Claim]:
    """Claims by the names of papers and of ``paper/claim``; all of them where no name is given.

    Raises:
        ClaimError: there is no such paper or claim, or a file is wrong.
        OSError: a file cannot be read.
    """
    known = papers()
    wanted = [name.split("/")[0] for name in names] or known
    for paper in wanted:
        if paper not in known:
            raise ClaimError(f"{paper}: no paper of that name has claims{_near(paper, known)}")
    claims = {claim.path: claim for paper in dict.fromkeys(wanted) for claim in read_claims(paper)}
    found: dict[str, Claim] = {}
    for name in names or known:
        if "/" in name and name not in claims:
            raise ClaimError(f"{name}: there is no such claim{_near(name, claims)}")
        found |= {path: claim for path, claim in claims.items() if name in (path, claim.paper)}
    return list(found.values())


def read_claims(paper: str) -> list[Claim]:
    """The claims of one paper, in the order of the file.

    Raises:
        ClaimError: the file is no YAML, or a key is unknown, missing or wrong.
        OSError: it cannot be read.
    """
    return read_file(catalog.CONFIG_FOLDER / paper / catalog.CLAIMS_FILE, paper)


def read_file(path: Path, paper: str) -> list[Claim]:
    """The claims of a file; see `read_claims`."""
    try:
        content = read_yaml(path)
    except YamlError as error:
        raise ClaimError(str(error)) from error
    if not isinstance(content, dict) or not content:
        raise ClaimError(f"{path}: a claims file is a mapping from names to claims")
    claims = []
    for name, claim in content.items():
        try:
            claims.append(_claim(paper, str(name), claim))
        except ClaimError as error:
            raise ClaimError(f"{path}: {name}: {error}") from error
    return claims


def _claim(paper: str, name: str, content: Any) -> Claim:
    if not _NAME.fullmatch(name):
        raise ClaimError("a claim's name is also that of a file: small letters, digits and underscores")
    content = _mapping("a claim", content)
    _check_keys("", content, _KEYS)
    for key in ("statement", "source", "minutes", "runs", "test"):
        if key not in content:
            raise ClaimError(f"{key}: missing")
    minutes = content["minutes"]
    if not isinstance(minutes, int | float) or not minutes > 0:
        raise ClaimError(f"minutes: must be a positive number, got {minutes!r}")
    version = content.get("version", 1)
    if not isinstance(version, int):
        raise ClaimError(f"version: must be an integer, got {version!r}")
    needs = _mapping("needs", content.get("needs") or {})
    _check_keys("needs.", needs, _NEEDS)
    plan = _plan(_mapping("runs", content["runs"]), paper)
    rules = tuple(_mapping("test", rule) for rule in _as_list(content["test"]))
    for rule in rules:
        _check_rule(rule, plan)
    figure = content.get("figure")
    if figure is not None:
        _check_function("figure", figure, paper)
    values = [str(rule["value"]) for rule in rules]
    show = _mapping("show", content.get("show") or {value: value for value in dict.fromkeys(values)})
    return Claim(
        paper=paper,
        name=name,
        statement=" ".join(str(content["statement"]).split()),
        source=str(content["source"]),
        minutes=float(minutes),
        needs=needs,
        version=version,
        plan=plan,
        rules=rules,
        show={str(key): str(title) for key, title in show.items()},
        cost=tuple(map(str, _as_list(content.get("cost")))),
        figure=figure,
    )


def _plan(content: Mapping[str, Any], paper: str) -> Plan:
    _check_keys("runs.", content, _RUN_KEYS)
    if ("config" in content) == ("call" in content):
        raise ClaimError("runs: give one of `config`, a shipped configuration, and `call`, a function of the paper")
    call = content.get("call")
    if call is not None:
        _check_function("runs.call", call, paper)
        for key in ("read", "seeded"):
            if key in content:
                raise ClaimError(f"runs.{key}: is for runs of a `config`; a function returns its values by name")
    elif not content.get("read"):
        raise ClaimError("runs.read: missing; which logged metrics are read, as in {nc1: neural_collapse/nc1}")
    if "arms" in content and "grid" in content:
        raise ClaimError("runs: give `arms`, each by name, or a `grid` of all combinations, not both")
    configs = tuple(map(str, _as_list(content.get("config"))))
    for name in configs:
        _config_path(name)
    seeds = content.get("seeds", [0])
    seeds = list(range(seeds)) if isinstance(seeds, int) else seeds
    if not isinstance(seeds, list) or not seeds or not all(isinstance(seed, int) for seed in seeds):
        raise ClaimError(f"runs.seeds: must be a number of seeds or a list of them, got {content['seeds']!r}")
    return Plan(
        configs=configs,
        call=call,
        shared=_mapping("runs.set", content.get("set") or {}),
        arms=_arms(content),
        seeds=tuple(seeds),
        seeded=tuple(map(str, _as_list(content.get("seeded")))) or _SEED_KEYS,
        read={str(name): _reading(str(name), reading) for name, reading in (content.get("read") or {}).items()},
    )


def _arms(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    if "arms" in content:
        arms = _mapping("runs.arms", content["arms"])
        return {str(name): _mapping(f"runs.arms.{name}", arm or {}) for name, arm in arms.items()}
    grid = _mapping("runs.grid", content.get("grid") or {})
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ClaimError(f"runs.grid.{key}: must be a list of values, got {values!r}")
    points = [dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values())]
    short = {key: key.rpartition(".")[2] for key in grid}
    return {", ".join(f"{short[key]} {_label(value)}" for key, value in point.items()): point for point in points}


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _reading(name: str, content: Any) -> Reading:
    if isinstance(content, str):
        return Reading(content)
    content = _mapping(f"runs.read.{name}", content)
    _check_keys(f"runs.read.{name}.", content, ("metric", "at"))
    at = content.get("at", "last")
    if "metric" not in content or at not in _AT:
        raise ClaimError(f"runs.read.{name}: needs a `metric`, and `at` may be {', '.join(_AT)}; got {dict(content)}")
    return Reading(str(content["metric"]), at)


def _check_rule(rule: Mapping[str, Any], plan: Plan) -> None:
    kind = str(rule.get("rule"))
    if kind not in RULES:
        raise ClaimError(f"test.rule: {kind!r} is none of {', '.join(RULES)}{_near(kind, RULES)}")
    known = RULES[kind]
    _check_keys("test.", rule, ("rule", *known.required, *known.optional))
    for key in known.required:
        if key not in rule:
            raise ClaimError(f"test.{key}: missing; {kind} needs {', '.join(known.required)}")
    if "above" in known.optional and not {"above", "below"} & rule.keys():
        raise ClaimError(f"test: {kind} needs `above`, `below` or both")
    if "margin" in rule and "factor" in rule:
        raise ClaimError("test: give `margin`, in the value's units, or `factor`, not both")
    for key in ("above", "below", "margin", "factor", "tolerance"):
        if key in rule and (isinstance(rule[key], bool) or not isinstance(rule[key], int | float)):
            raise ClaimError(f"test.{key}: must be a number, got {rule[key]!r} (YAML wants a dot as in 1.0e-3)")
    for key in ("arms", "more", "than", "increasing"):
        for arm in _as_list(rule.get(key)):
            if arm not in plan.arms:
                raise ClaimError(f"test.{key}: there is no arm {arm!r}{_near(str(arm), plan.arms)}")
    for key in ("value", "per"):
        if plan.read and key in rule and rule[key] not in (*plan.read, "seconds"):
            raise ClaimError(f"test.{key}: {rule[key]!r} is not read{_near(str(rule[key]), plan.read)}")
    if len(plan.seeds) < known.needs_seeds:
        raise ClaimError(f"runs.seeds: {kind} is statistics, and needs {known.needs_seeds} seeds or more")


def _check_function(where: str, path: Any, paper: str) -> None:
    if not isinstance(path, str) or not _FUNCTION.fullmatch(path) or not path.startswith(f"lit_papers.{paper}."):
        raise ClaimError(
            f"{where}: must be a function of the paper's room, as lit_papers.{paper}.claims.name: {path!r}"
        )


def _mapping(where: str, content: Any) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise ClaimError(f"{where}: must be a mapping, got {content!r}")
    return content


def _as_list(content: Any) -> list[Any]:
    if content is None:
        return []
    return list(content) if isinstance(content, list) else [content]


def _check_keys(where: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    for key in given:
        if key not in known:
            raise ClaimError(f"{where}{key}: unknown key{_near(str(key), known)}")


def _near(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"

"""From claims to runs: what each is made of, whole, and the folder in which it is found again."""

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lit_papers.catalog import CLAIMS_FILE
from lit_papers.reproduce.claims import Claim, ClaimError, Reading
from lit_papers.reproduce.results import ROOMS
from lit_papers.reproduce.verdicts import Outcome, RuleError
from lit_papers.trials.fingerprint import fingerprint
from lit_papers.trials.runs import Run, run_all

MODULE = "lit_papers.reproduce.one_run"
PRELOAD = ("lit_papers.lightning_cli", "lit_papers.callbacks", "lit_papers.datamodules")
TRAINING = "training"  # folder of a training, in that of its run
VERSIONS = ("torch", "lightning", "numpy")


@dataclass(frozen=True)
class Planned:
    """A run of a claim.

    Attributes:
        claim: whose.
        arm: name of the arm.
        seed: of everything.
        run: its process and folder.
    """

    claim: Claim
    arm: str
    seed: int
    run: Run

    def outcome(self) -> Outcome | None:
        """What it has left; None if it has not finished.

        Raises:
            RuleError: a key that the claim reads was never logged.
        """
        answer = self.run.answer()
        if answer is None:
            return None
        values = dict(answer)
        seconds = values.pop("seconds")
        if self.claim.plan.read:
            values = read_metrics(self.run.folder / TRAINING / "metrics.csv", self.claim.plan.read)
        point = {key: value for key, value in self.claim.plan.arms[self.arm].items() if not isinstance(value, dict)}
        return Outcome(self.arm, self.seed, values, point, seconds)


def plan(claims: Sequence[Claim], seeds: Sequence[int] | None, folder: Path) -> list[Planned]:
    """All runs of some claims; what they are made of is found out once, in a process of its own.

    Args:
        claims: which.
        seeds: instead of those of the claims; None for these.
        folder: of all runs.

    Raises:
        ClaimError: ``fit`` refuses a configuration, as it does a misspelt key, or a function its arguments.
    """
    arms = [(claim, name) for claim in claims for name in claim.plan.arms]
    requests = [_request(claim, name) for claim, name in arms]
    planned = []
    sources = {paper: _source(paper) for paper in {claim.paper for claim in claims}}
    for (claim, name), request, whole in zip(arms, requests, _resolve(requests, folder), strict=True):
        if "error" in whole:
            raise ClaimError(f"{claim.path}{f', {name}' if name else ''}: {whole['error']}")
        for seed in seeds if seeds is not None else claim.plan.seeds:
            identity = {**whole, "call": claim.plan.call, "seed": seed, "version": claim.version}
            identity["source"] = sources[claim.paper]
            if claim.plan.call is None:
                identity["seeded"] = request["seeded"]
            # by paper: claims that ask for the same training share it
            where = folder / claim.paper / "runs" / f"{_kind(claim)}-seed{seed}-{fingerprint(identity)[:8]}"
            runs = len(claim.plan.arms) * len(claim.plan.seeds)
            run = Run(where, {**request, "seed": seed}, identity, weight=60 * claim.minutes / runs)
            planned.append(Planned(claim, name, seed, run))
    return planned


def _request(claim: Claim, arm: str) -> dict[str, Any]:
    """What `one_run` is asked to do, but for the seed."""
    chosen = claim.plan
    values = {**chosen.shared, **chosen.arms[arm]}
    if chosen.call is not None:
        return {"call": chosen.call, "set": values}
    return {"configs": list(chosen.configs), "set": values, "seeded": list(chosen.seeded)}


def _resolve(requests: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What each request is made of, with all defaults; kept as long as neither our code nor a version changes."""
    made_by = {"code": code(), "versions": versions()}
    kept = [{"resolve": request, **made_by} for request in requests]
    answers = [Run(folder / ".resolved" / fingerprint(identity), {}, identity) for identity in kept]
    missing = [index for index, each in enumerate(answers) if each.answer() is None]
    if missing:  # all by one process
        asked = [requests[index] for index in missing]
        identity = {"resolve": asked, **made_by}
        run = Run(folder / ".resolved" / "all", {"resolve": asked}, identity)
        failed: list[str] = []
        run_all(MODULE, [run], 1, lambda _, reason: failed.append(reason) if reason else None, PRELOAD)
        answer = run.answer()
        if answer is None:
            raise ClaimError(f"the configurations of the claims cannot be read: {failed[0]}")
        for index, whole in zip(missing, answer["resolved"], strict=True):
            answers[index].seal(whole)
    return [each.answer() or {} for each in answers]


def code() -> str:
    """Fingerprint of the package's own files, from which configurations take their defaults."""
    beside = (ROOMS.parent / name for name in ("callbacks", "datamodules"))  # where a checkout has them
    paths = [path for folder in (ROOMS, *beside) for kind in ("*.py", "*.yaml") for path in sorted(folder.rglob(kind))]
    texts = [path.read_text(encoding="utf-8") for path in paths if path.name != CLAIMS_FILE]
    return fingerprint({"texts": texts})


def versions() -> Mapping[str, str]:
    """What computes: Python and the packages whose numbers these are."""
    return {"python": ".".join(map(str, sys.version_info[:3])), **{name: version(name) for name in VERSIONS}}


def _source(paper: str) -> str:
    """Fingerprint of the code in a paper's room: nothing else says that equal settings compute something else now."""
    return fingerprint({"texts": [path.read_text(encoding="utf-8") for path in sorted((ROOMS / paper).rglob("*.py"))]})


def _kind(claim: Claim) -> str:
    """The configuration or function, for the eye: what tells runs apart is their fingerprint."""
    return (claim.plan.call or "-".join(claim.plan.configs)).rpartition("." if claim.plan.call else "/")[2]


def read_metrics(path: Path, readings: Mapping[str, Reading]) -> dict[str, Any]:
    """Values of a run's ``metrics.csv``.

    Args:
        path: of the file.
        readings: what to read, by the name of the value.

    Raises:
        RuleError: a key was never logged.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    values = {}
    for name, reading in readings.items():
        metric, at = reading.metric, reading.at
        logged = [float(row[metric]) for row in rows if row.get(metric)]
        if not logged:
            known = ", ".join(sorted({key for row in rows for key, cell in row.items() if cell}))
            raise RuleError(f"runs.read.{name}: {metric!r} was never logged; logged were {known}")
        pick: dict[str, Any] = {"last": logged[-1], "first": logged[0], "min": min(logged), "max": max(logged)}
        values[name] = logged if at == "all" else pick[at]
    return values

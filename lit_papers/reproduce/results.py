"""Results as data: ``lit_papers/<paper>/results/<claim>.json``, with the values of each seed. Free of torch."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import lit_papers
from lit_papers.files import write_whole
from lit_papers.reproduce.claims import Claim
from lit_papers.reproduce.verdicts import NOT_RUN, Outcome, RuleError, Verdict, judge

ROOMS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Results:
    """What has been found for a claim, and on what.

    Attributes:
        outcomes: of each arm and seed.
        asked: `Claim.asked` of the claim at that time.
        versions: of lit-papers and what computes.
        machine: its class, as in ``2 cores, CPU``.
        date: of the run, as in 2026-01-31.
        command: that made it.
    """

    outcomes: tuple[Outcome, ...]
    asked: str
    versions: Mapping[str, str]
    machine: str
    date: str
    command: str

    @classmethod
    def of(cls, claim: Claim, outcomes: Sequence[Outcome], versions: Mapping[str, str]) -> "Results":
        """Results of now, on this machine."""
        command = f"python -m lit_papers reproduce {claim.path}"
        return cls(tuple(outcomes), claim.asked(), **made_now(command, versions))

    def write(self, path: Path) -> None:
        """Write the file, one line for each run."""
        runs = [
            {"arm": o.arm, "seed": o.seed, "point": dict(o.point), "seconds": o.seconds, "values": dict(o.values)}
            for o in self.outcomes
        ]
        head = {key: getattr(self, key) for key in ("command", "date", "machine", "versions", "asked")}
        lines = [json.dumps(rounded(run)) for run in runs]
        write_lines(path, head, "runs", lines, "[]")

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Read the file.

        Raises:
            ValueError: it is damaged.
            OSError: it is not there.
        """
        content = json.loads(path.read_text(encoding="utf-8"))
        try:
            runs = content.pop("runs")
            outcomes = tuple(Outcome(**run) for run in runs)
            return cls(outcomes, **content)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} holds no results of a claim: {error}") from error


def made_now(command: str, versions: Mapping[str, str]) -> dict[str, Any]:
    """What made results: ``command``, ``versions`` with our own, the ``machine``'s class and the ``date``."""
    return {
        "command": command,
        "versions": {"lit-papers": lit_papers.__version__, **versions},
        "machine": machine(),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def write_lines(path: Path, head: Mapping[str, Any], name: str, lines: Sequence[str], brackets: str) -> None:
    """Write ``head`` as JSON, and behind it an entry for each line, so that a change shows in its line alone.

    Args:
        path: of the file, whose folder is made.
        head: what stands before.
        name: of the list or mapping that the lines are in.
        lines: in JSON.
        brackets: its two.
    """
    body = ",\n".join(f"    {line}" for line in lines)
    text = json.dumps(head, indent=2)[:-2] + f',\n  "{name}": {brackets[0]}\n{body}\n  {brackets[1]}\n}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)


def rounded(value: Any) -> Any:
    """Six significant digits: more would only say which machine it was."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


def kept_path(claim: Claim) -> Path:
    """Where the results of a claim are kept with the code."""
    return ROOMS / claim.paper / "results" / f"{claim.name}.json"


def kept(claim: Claim) -> Results | None:
    """The results that are kept with the code; None if there are none.

    Raises:
        ValueError: the file is damaged.
    """
    path = kept_path(claim)
    return Results.read(path) if path.is_file() else None


def verdict_of(claim: Claim, results: Results | None) -> Verdict:
    """The verdict of a claim by its results; *not run here* and what it needs, where there are none.

    Raises:
        RuleError: the results have not what the claim asks for, though they are of this claim.
    """
    if results is None:
        needed = claim.needs_in_words()
        return Verdict(f"{NOT_RUN} (needs {needed})" if needed else "not run yet", "")
    try:
        return judge(claim.rules, results.outcomes, claim.show)
    except RuleError:
        if not is_old(claim, results):
            raise
        return Verdict("not run since it was changed", "")


def is_old(claim: Claim, results: Results) -> bool:
    """Whether the claim, or a configuration that it runs, has changed since."""
    return results.asked != claim.asked()


def machine() -> str:
    """The class of this machine, not which one it is."""
    gpu = Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()
    return f"{os.cpu_count()} cores, {platform.machine()}, {'GPU' if gpu else 'CPU'}"

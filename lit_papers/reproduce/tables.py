"""Tables of claims in Markdown, and the places in READMEs that are written from results. Free of torch."""

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from lit_papers.files import write_whole
from lit_papers.reproduce.claims import Claim, ClaimError, find_claims, papers
from lit_papers.reproduce.measured import Measured, measured_path
from lit_papers.reproduce.results import ROOMS, Results, kept, verdict_of
from lit_papers.reproduce.verdicts import Outcome, Verdict, by_arm, spread

_BLOCK = re.compile(
    r"(<!-- (?P<kind>reproduce|measured): (?P<name>[\w/]+) -->\n)(?P<body>.*?)(<!-- /(?P=kind) -->)", re.DOTALL
)
_NOTICEABLE = 1.05  # ratio of costs from which on they are unequal; of seconds, which vary, it is this:
_NOTICEABLE_SECONDS = 1.25


def arms_table(claim: Claim, results: Results) -> str:
    """One row an arm: means and standard deviations over its seeds, and what it costs."""
    has_arms = len(claim.plan.arms) > 1
    columns = {**claim.show, **{key: key for key in claim.cost if key not in claim.show}, "seconds": "CPU time [s]"}
    rows = []
    for name, arm in by_arm(results.outcomes).items():
        cells = [name] if has_arms else []
        cells += [_cell(arm, key) for key in columns]
        rows.append([*cells, str(len(arm))])
    header = [*(["" if not has_arms else "arm"] if has_arms else []), *columns.values(), "seeds"]
    lines = _markdown(header, rows)
    note = unequal_cost(claim, results)
    return f"{lines}\n\n{note}\n" if note else f"{lines}\n"


def _cell(arm: Sequence[Outcome], key: str) -> str:
    values = [outcome.seconds if key == "seconds" else outcome.values.get(key) for outcome in arm]
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(numbers) == len(values):
        return spread([float(number) for number in numbers])
    lists = [value for value in values if isinstance(value, list)]
    if len(lists) < len(values) or len({len(each) for each in lists}) != 1:
        return ""
    return ", ".join(spread([float(each) for each in column]) for column in zip(*lists, strict=True))


def unequal_cost(claim: Claim, results: Results) -> str:
    """A sentence that says at which unequal costs arms are compared; empty where they are equal, or not compared."""
    compared = [rule for rule in claim.rules if rule["rule"] in ("difference", "ordering")]
    arms = by_arm(results.outcomes)
    named: list[str] = []
    for rule in compared:
        than = rule.get("than", [])
        named += rule.get("increasing", []) or [rule["more"], *([than] if isinstance(than, str) else than)]
    names = [name for name in dict.fromkeys(named) if name in arms]
    said = []
    for key in claim.cost:
        if key != "seconds" and any(key not in outcome.values for outcome in results.outcomes):
            continue  # results of an earlier claim
        means = {
            name: statistics.fmean(o.seconds if key == "seconds" else float(o.values[key]) for o in arms[name])
            for name in names
        }
        if not means or min(means.values()) <= 0:
            continue
        dearest, cheapest = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        ratio = means[dearest] / means[cheapest]
        if ratio > (_NOTICEABLE_SECONDS if key == "seconds" else _NOTICEABLE):
            said.append(f"{dearest} costs {ratio:.2g} times the {claim.show.get(key, key)} of {cheapest}")
    return f"At unequal cost: {'; '.join(said)}." if said else ""


def summary(claims: Sequence[Claim]) -> str:
    """One row a claim: what is claimed, where, whether it holds here, and what was measured."""
    rows = []
    for claim, verdict, seeds in _verdicts(claims):
        rows.append([f"{claim.statement} ({claim.source})", _word(verdict), verdict.because, seeds, f"`{claim.path}`"])
    return _markdown(["claim", "here", "measured", "seeds", "`reproduce ...`"], rows) + "\n"


def overview(claims: Sequence[Claim]) -> str:
    """One row a claim of any paper, without the figures, which are in the papers' READMEs."""
    rows = [[claim.statement, _word(verdict), seeds, f"`{claim.path}`"] for claim, verdict, seeds in _verdicts(claims)]
    return _markdown(["claim", "here", "seeds", "`reproduce ...`"], rows) + "\n"


def _verdicts(claims: Sequence[Claim]) -> list[tuple[Claim, Verdict, str]]:
    """Each claim with its verdict by the kept results, and how many seeds these have."""
    found = []
    for claim in claims:
        results = kept(claim)
        seeds = str(len({outcome.seed for outcome in results.outcomes})) if results else ""
        found.append((claim, verdict_of(claim, results), seeds))
    return found


def _word(verdict: Verdict) -> str:
    return f"**{verdict.word}**" if verdict.because else verdict.word


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def block(name: str) -> str:
    """What stands in a README between ``<!-- reproduce: NAME -->`` and ``<!-- /reproduce -->``.

    Args:
        name: ``all``, a paper, or ``paper/claim`` for the table of its arms.

    Raises:
        ClaimError: there is no such paper or claim.
    """
    if "/" in name:
        (claim,) = find_claims([name])
        results = kept(claim)
        return arms_table(claim, results) if results else f"{verdict_of(claim, None).word}.\n"
    return overview(find_claims([])) if name == "all" else summary(find_claims([name]))


def measured_block(name: str) -> str:
    """What stands in a README between ``<!-- measured: PAPER/TABLE -->`` and ``<!-- /measured -->``.

    Raises:
        ClaimError: there is no such table.
    """
    path = measured_path(name)
    if not path.is_file():
        raise ClaimError(f"there is no measured table {name!r}: no file {path}")
    return _markdown(*Measured.read(path).table()) + "\n"


def readmes() -> list[Path]:
    """The READMEs of a checkout that may have blocks; of an installation, those of the papers."""
    top = ROOMS.parent / "README.md"
    return [*([top] if (ROOMS.parent / "pyproject.toml").is_file() else []), *sorted(ROOMS.glob("*/README.md"))]


def rewritten(text: str) -> str:
    """A README with all its blocks as the results say."""
    blocks = {"reproduce": block, "measured": measured_block}
    return _BLOCK.sub(lambda found: found[1] + blocks[found["kind"]](found["name"]) + found[5], text)


def write_readmes() -> list[Path]:
    """Write the blocks of all READMEs; those that have changed."""
    changed = []
    for path in readmes():
        before = path.read_text(encoding="utf-8")
        after = rewritten(before)
        if after != before:
            write_whole(path, after)
            changed.append(path)
    return changed


def missing_blocks(texts: Mapping[Path, str]) -> list[str]:
    """Papers with claims of which no README has the table."""
    blocks = [found for text in texts.values() for found in _BLOCK.finditer(text)]
    named = {found["name"] for found in blocks if found["kind"] == "reproduce"}
    return [paper for paper in papers() if paper not in named]

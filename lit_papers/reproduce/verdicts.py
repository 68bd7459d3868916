"""What decides a claim: a few rules over the values of several seeds, with the error that belongs to them.

A rule of statistics asks whether an interval of 90 % (Student's t over seeds, so 5 % on either side) lies on the right
side of what is claimed: wholly is *holds*, wholly on the other is *does not hold*, and between them it is *within the
spread*. One seed has no interval, so it never decides. A rule about exact mathematics asks every run instead.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HOLDS, WITHIN, FAILS = "holds", "within the spread", "does not hold"
FAILED, NOT_RUN = "failed", "not run here"

# 95 % quantiles of Student's t by degrees of freedom (any table; tests compare with scipy); beyond, the normal's
_T95 = (6.3138, 2.9200, 2.3534, 2.1318, 2.0150, 1.9432, 1.8946, 1.8595, 1.8331, 1.8125, 1.7959, 1.7823, 1.7709,
        1.7613, 1.7531, 1.7459, 1.7396, 1.7341, 1.7291, 1.7247)  # fmt: skip
_NORMAL95 = 1.6449
_ROUNDING = 1e-6  # relative; kept results have six digits


class RuleError(ValueError):
    """A rule that does not fit the values; the message says which key or arm."""


@dataclass(frozen=True)
class Outcome:
    """What one run has left.

    Attributes:
        arm: what it is compared by.
        seed: of everything in it.
        values: numbers, or lists of them.
        point: what the arm sets, as far as it is one value a key.
        seconds: it took.
    """

    arm: str
    seed: int
    values: Mapping[str, Any]
    point: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """What is to be said of a claim, and why.

    Attributes:
        word: `HOLDS`, `WITHIN`, `FAILS`, `FAILED` or `NOT_RUN`.
        because: what was measured.
    """

    word: str
    because: str


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 90 % interval of a mean by Student's t; one value has all numbers, and what is not finite has none.

    >>> [round(bound, 3) for bound in interval([1.0, 2.0, 3.0])]
    [0.314, 3.686]
    """
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    if len(values) < 2:
        return -math.inf, math.inf
    freedom = len(values) - 1
    quantile = _T95[freedom - 1] if freedom <= len(_T95) else _NORMAL95
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - half, mean + half


def judge(
    rules: Sequence[Mapping[str, Any]], outcomes: Sequence[Outcome], titles: Mapping[str, str] | None = None
) -> Verdict:
    """The verdict of all rules together: the worst of them, with every reason.

    Args:
        rules: as `check_rule` accepts them.
        outcomes: of all runs of the claim.
        titles: what values are called to the reader, where that is not their name.

    Raises:
        RuleError: a rule names a value or an arm that is not there.
    """
    verdicts = [RULES[rule["rule"]].judge({**rule, "titles": titles or {}}, outcomes) for rule in rules]
    order = [FAILS, WITHIN, HOLDS]
    worst = min((verdict.word for verdict in verdicts), key=order.index)
    return Verdict(worst, "; ".join(verdict.because for verdict in verdicts))


def number(value: float) -> str:
    """Three significant digits, and no more zeros than they need.

    >>> number(0.12345), number(1234567.0), number(3e-12), number(0.0), number(100.0), number(10)
    ('.123', '1.23e+06', '3.00e-12', '0', '100', '10')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    if float(value).is_integer():
        return f"{value:.0f}"
    return _bare(f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}")


def _bare(text: str) -> str:
    """A number without the zero before its point."""
    return text.replace("0.", ".", 1) if abs(float(text)) < 1 else text


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, as tables have them: two digits of the deviation, at most four of the mean.

    Where all values are equal, but for rounding, there is no deviation to show.

    >>> spread([1.0, 2.0, 3.0]), spread([0.0123, 0.0134]), spread([2.0, 2.0]), spread([5e-9, 6e-9])
    ('2.0 ± 1.0', '.01285 ± .00078', '2', '5.50e-09 ± 7.07e-10')
    """
    mean = statistics.fmean(values)
    if not math.isfinite(mean) or max(values) - min(values) <= _ROUNDING * abs(mean):
        return number(mean)
    deviation = statistics.stdev(values)
    if mean == 0 or not 1e-3 <= abs(mean) < 1e5:
        return f"{number(mean)} ± {number(deviation)}"
    places = max(0, min(1 - math.floor(math.log10(deviation)), 3 - math.floor(math.log10(abs(mean)))))
    rounded = f"{deviation:.{places}f}"
    shown = _bare(rounded) if float(rounded) else number(deviation)
    return f"{_bare(f'{mean:.{places}f}')} ± {shown}"


def _by_side(bounds: tuple[float, float], low: float, high: float) -> str:
    """Where an interval lies: within [low, high], wholly outside, or across."""
    if low <= bounds[0] and bounds[1] <= high:
        return HOLDS
    return WITHIN if bounds[1] >= low and bounds[0] <= high else FAILS  # as NaN does


def by_arm(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Outcomes of each arm, in the order in which the arms came."""
    arms: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        arms.setdefault(outcome.arm, []).append(outcome)
    return arms


def _arms(rule: Mapping[str, Any], outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    arms = by_arm(outcomes)
    return {name: _arm(arms, name) for name in rule.get("arms", arms)}


def _arm(arms: Mapping[str, list[Outcome]], name: str) -> list[Outcome]:
    if name not in arms:
        raise RuleError(f"there is no arm {name!r}; the arms are {', '.join(arms)}")
    return arms[name]


def _value(outcome: Outcome, key: str) -> Any:
    if key == "seconds":
        return outcome.seconds
    if key not in outcome.values:
        raise RuleError(f"there is no value {key!r}; the runs left {', '.join(outcome.values)}")
    return outcome.values[key]


def _number(outcome: Outcome, key: str) -> float:
    value = _value(outcome, key)
    if not isinstance(value, int | float):
        raise RuleError(f"the value {key!r} is a list, and this rule wants one number")
    return float(value)


def _list(outcome: Outcome, key: str) -> list[float]:
    value = _value(outcome, key)
    return [float(each) for each in value] if isinstance(value, list) else [float(value)]


def _scaled(rule: Mapping[str, Any], outcome: Outcome) -> list[float]:
    """The numbers of a run, divided by its ``per`` where the rule has one."""
    scale = _number(outcome, rule["per"]) if "per" in rule else 1.0
    return [value / scale if scale else math.nan for value in _list(outcome, rule["value"])]


def _named(rule: Mapping[str, Any]) -> str:
    return f"{_title(rule, 'value')} / {_title(rule, 'per')}" if "per" in rule else _title(rule, "value")


def _title(rule: Mapping[str, Any], key: str) -> str:
    """What the value that stands under a key of a rule is called to the reader."""
    titles: Mapping[str, str] = rule.get("titles", {})
    return titles.get(rule[key], str(rule[key]))


def _bound(rule: Mapping[str, Any], outcomes: Sequence[Outcome]) -> Verdict:
    """The mean over seeds of value, or of value / ``per``, lies below ``below`` and above ``above``, in every arm."""
    low, high = rule.get("above", -math.inf), rule.get("below", math.inf)
    words, said = [], []
    for name, arm in _arms(rule, outcomes).items():
        _number(arm[0], rule["value"])  # refuses a list
        values = [_scaled(rule, outcome)[0] for outcome in arm]
        words.append(_by_side(interval(values), low, high))
        said.append(f"{name} {spread(values)}" if name else spread(values))
    return Verdict(_worst(words), f"{_named(rule)}{_range_text(low, high)}: {', '.join(said)}")


def _every(rule: Mapping[str, Any], outcomes: Sequence[Outcome]) -> Verdict:
    """Every number of every run, divided by ``per``, lies from ``above`` to ``below``, both included: no statistics."""
    low, high = rule.get("above", -math.inf), rule.get("below", math.inf)
    values = [v for arm in _arms(rule, outcomes).values() for outcome in arm for v in _scaled(rule, outcome)]
    # single precision logs .1 as .100000001; NaN is in no range
    least, most = low - _ROUNDING * abs(low), high + _ROUNDING * abs(high)
    holds = all(least <= value <= most for value in values)
    shown = number(min(values)) if min(values) == max(values) else f"{number(min(values))} to {number(max(values))}"
    asked = f" = {number(low)}" if low == high else _range_text(low, high).replace("<", "≤").replace(">", "≥")
    text = f"{_named(rule)}{asked} in all of {len(values)}: {shown}"
    return Verdict(HOLDS if holds else FAILS, text)


def _equality(rule: Mapping[str, Any], outcomes: Sequence[Outcome]) -> Verdict:
    """In every run the value equals ``to``, a number or another value, within ``tolerance`` times the larger one."""
    worst = 0.0
    for arm in _arms(rule, outcomes).values():
        for outcome in arm:
            ours = _list(outcome, rule["value"])
            theirs = _list(outcome, rule["to"]) if isinstance(rule["to"], str) else [float(rule["to"])] * len(ours)
            if len(ours) != len(theirs):
                raise RuleError(f"{rule['value']!r} has {len(ours)} numbers and {rule['to']!r} has {len(theirs)}")
            for one, other in zip(ours, theirs, strict=True):
                scale = max(abs(one), abs(other))
                error = 0.0 if one == other else abs(one - other) / scale
                worst = error if not error <= worst else worst  # NaN stays
    word = HOLDS if worst <= rule["tolerance"] else FAILS
    asked = f"{_named(rule)} = {_title(rule, 'to')}"
    return Verdict(word, f"{asked}: largest relative difference {number(worst)}, allowed {rule['tolerance']:g}")


def _paired(better: list[Outcome], worse: list[Outcome], key: str, is_ratio: bool) -> list[float]:
    mine = {outcome.seed: _number(outcome, key) for outcome in better}
    other = {outcome.seed: _number(outcome, key) for outcome in worse}
    seeds = sorted(mine.keys() & other.keys())
    if is_ratio:
        if any(not (mine[seed] > 0 and other[seed] > 0) for seed in seeds):
            raise RuleError(f"`factor` wants positive values, and {key!r} has others")
        return [math.log(mine[seed] / other[seed]) for seed in seeds]
    return [mine[seed] - other[seed] for seed in seeds]


def _difference(rule: Mapping[str, Any], outcomes: Sequence[Outcome]) -> Verdict:
    """``more`` exceeds each of ``than`` by ``margin`` (0), or ``factor`` times, in pairs of equal seeds."""
    arms = by_arm(outcomes)
    than = [rule["than"]] if isinstance(rule["than"], str) else list(rule["than"])
    words, said = [], []
    factor = rule.get("factor")
    for name in than:
        pairs = _paired(_arm(arms, rule["more"]), _arm(arms, name), rule["value"], factor is not None)
        if not pairs:
            raise RuleError(f"{rule['more']!r} and {name!r} have no seed in common")
        least = math.log(factor) if factor is not None else rule.get("margin", 0.0)
        words.append(_by_side(interval(pairs), least, math.inf))
        if factor is not None:
            said.append(f"{number(math.exp(statistics.fmean(pairs)))} times {name}")
        else:
            said.append(f"{spread(pairs)} more than {name}")
    asked = f", {number(factor)} times asked" if factor is not None else ""
    asked = asked or (f", {number(rule['margin'])} asked" if rule.get("margin") else "")
    return Verdict(_worst(words), f"{_named(rule)} of {rule['more']}: {', '.join(said)}{asked}")


def _ordering(rule: Mapping[str, Any], outcomes: Sequence[Outcome]) -> Verdict:
    """The value grows from arm to arm of ``increasing``, by ``margin`` (0) each time."""
    names = rule["increasing"]
    pairs = [
        {"value": rule["value"], "more": high, "than": low, "margin": rule.get("margin", 0.0)}
        for low, high in itertools.pairwise(names)
    ]
    verdicts = [_difference(pair, outcomes) for pair in pairs]
    arms = by_arm(outcomes)
    said = [f"{name} {spread([_number(o, rule['value']) for o in _arm(arms, name)])}" for name in names]
    return Verdict(_worst([verdict.word for verdict in verdicts]), f"{_named(rule)} grows: {' < '.join(said)}")


def _slope(rule: Mapping[str, Any], outcomes: Sequence[Outcome]) -> Verdict:
    """The slope of log(value) over log(``over``) lies between ``above`` and ``below``; one slope a seed."""
    by_seed: dict[int, list[tuple[float, float]]] = {}
    for arm in _arms(rule, outcomes).values():
        for outcome in arm:
            xs = [float(outcome.point[rule["over"]])] if rule["over"] in outcome.point else _list(outcome, rule["over"])
            by_seed.setdefault(outcome.seed, []).extend(zip(xs, _list(outcome, rule["value"]), strict=True))
    slopes = []
    for seed, points in by_seed.items():
        if len({x for x, _ in points}) < 2 or any(not (x > 0 and y > 0) for x, y in points):
            raise RuleError(f"a slope wants two or more different positive points, and seed {seed} has not")
        logs = [(math.log(x), math.log(y)) for x, y in points]
        slopes.append(statistics.linear_regression(*zip(*logs, strict=True)).slope)
    low, high = rule.get("above", -math.inf), rule.get("below", math.inf)
    text = f"slope of {_named(rule)} over {_title(rule, 'over')}{_range_text(low, high)}: {spread(slopes)}"
    return Verdict(_by_side(interval(slopes), low, high), text)


def _worst(words: Sequence[str]) -> str:
    return next(word for word in (FAILS, WITHIN, HOLDS) if word in words)


def _range_text(low: float, high: float) -> str:
    if math.isinf(low):
        return f" < {number(high)}"
    return f" > {number(low)}" if math.isinf(high) else f" in [{number(low)}, {number(high)}]"


@dataclass(frozen=True)
class Rule:
    """How a rule is written in a claims file.

    Attributes:
        judge: decides.
        required: keys that it must have, beside ``rule``.
        optional: keys that it may have.
        needs_seeds: how many seeds it takes to decide anything.
    """

    judge: Callable[[Mapping[str, Any], Sequence[Outcome]], Verdict]
    required: tuple[str, ...]
    optional: tuple[str, ...]
    needs_seeds: int = 2


RULES: Mapping[str, Rule] = {
    "bound": Rule(_bound, ("value",), ("above", "below", "per", "arms")),
    "every": Rule(_every, ("value",), ("above", "below", "per", "arms"), needs_seeds=1),
    "equality": Rule(_equality, ("value", "to", "tolerance"), ("arms",), needs_seeds=1),
    "difference": Rule(_difference, ("value", "more", "than"), ("margin", "factor")),
    "ordering": Rule(_ordering, ("value", "increasing"), ("margin",)),
    "slope": Rule(_slope, ("value", "over"), ("above", "below", "arms")),
}

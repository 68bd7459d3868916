"""Sharing out a given time over measurements that can each be made smaller."""

import math
from collections.abc import Mapping, Sequence

_SAFE = 0.8  # of the time is planned with: estimates are of a few batches
_WORTH = 0.8  # of the seconds: what saves less is no reason to measure with less


def share_out(costs: Mapping[str, Sequence[float]], seconds: float) -> dict[str, int | None]:
    """Choose how thoroughly each measurement is made, so that all fit into the time.

    What is cheap is made in full; what is left is shared out evenly among the others, and what one of them does not
    need goes to the next. Where even the least of all does not fit, those come first that stand first.

    Args:
        costs: seconds of each measurement at each of its levels, the most thorough first; the most wanted first.
        seconds: in all, > 0; infinite for no bound.

    Returns:
        For each name the place of its level, or None where it is left out.

    >>> share_out({"cheap": [1.0], "dear": [90.0, 20.0, 5.0], "hopeless": [900.0]}, seconds=30.0)
    {'cheap': 0, 'dear': 1, 'hopeless': None}
    """
    chosen: dict[str, int | None] = dict.fromkeys(costs)
    left = _SAFE * seconds
    levels_of = {name: _worth_it(levels) for name, levels in costs.items()}
    least = {name: min(levels.values()) for name, levels in levels_of.items()}
    taken: list[str] = []
    for name in costs:
        if sum(least[each] for each in taken) + least[name] <= left:
            taken.append(name)
    for place, name in enumerate(sorted(taken, key=lambda each: max(costs[each]))):
        others = sorted(taken, key=lambda each: max(costs[each]))[place:]
        spare = left - sum(least[each] for each in others)
        allowed = least[name] + spare / len(others)
        chosen[name] = next(level for level, cost in levels_of[name].items() if cost <= allowed)
        left -= costs[name][chosen[name] or 0]
    return chosen


def slower(levels: Sequence[float], level: int, seconds: float) -> list[float]:
    """Costs after a measurement was stopped, which took longer than was thought.

    Args:
        levels: seconds that were thought, the most thorough first.
        level: that was tried, < L; it and those before are given up. L gives up all.
        seconds: after which it was stopped.

    Returns:
        Seconds of each level, dearer by four times the factor that is known so far, as nobody knows how much was left.

    >>> slower([30.0, 10.0, 2.0], level=0, seconds=45.0)
    [inf, 60.0, 12.0]
    """
    if level == len(levels):
        return [math.inf] * level
    factor = 4 * max(1.0, seconds / max(levels[level], 1e-9))
    return [math.inf if place <= level else factor * cost for place, cost in enumerate(levels)]


def too_dear(least: float, remaining: float, stopped_after: float | None = None) -> str:
    """Why a measurement is left out, and what to do.

    Args:
        least: seconds that it takes at the least; infinite where it was stopped at its least.
        remaining: seconds that were left.
        stopped_after: seconds, where it was tried and took longer than was thought.

    >>> too_dear(90.0, 20.0)
    'it takes about 90 s at the least, and 20 s were left: give more time (--minutes 4)'
    """
    asked = stopped_after if stopped_after is not None and math.isinf(least) else least
    cure = f"give more time (--minutes {math.ceil((2 * asked + 60) / 60)})"
    if stopped_after is not None:
        return f"it took longer than was thought and was stopped after {_duration(stopped_after)}: {cure}"
    return f"it takes about {_duration(least)} at the least, and {_duration(remaining)} were left: {cure}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def _worth_it(levels: Sequence[float]) -> dict[int, float]:
    """The first level, and each that saves a good part of the time of the one before."""
    kept = {0: levels[0]}
    for level, cost in enumerate(levels):
        if cost <= _WORTH * min(kept.values()):
            kept[level] = cost
    return kept

"""Sharing out a given time over measurements that can each be made smaller."""

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


def _worth_it(levels: Sequence[float]) -> dict[int, float]:
    """The first level, and each that saves a good part of the time of the one before."""
    kept = {0: levels[0]}
    for level, cost in enumerate(levels):
        if cost <= _WORTH * min(kept.values()):
            kept[level] = cost
    return kept

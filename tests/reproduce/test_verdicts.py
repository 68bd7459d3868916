"""Each rule against closed forms, and the table of Student's t against scipy's."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest

from lit_papers.reproduce import verdicts
from lit_papers.reproduce.verdicts import FAILS, HOLDS, WITHIN, Outcome, RuleError, interval, judge


def runs(arm: str, *values: Any, key: str = "v", point: dict[str, Any] | None = None) -> list[Outcome]:
    return [Outcome(arm, seed, {key: value}, point or {}, 1.0 + seed) for seed, value in enumerate(values)]


def word(outcomes: list[Outcome], **rule: Any) -> str:
    return judge([rule], outcomes).word


def test_students_t_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom, quantile in enumerate(verdicts._T95, start=1):
        assert quantile == pytest.approx(stats.t.ppf(0.95, freedom), abs=6e-5)
    assert abs(verdicts._NORMAL95 - stats.norm.ppf(0.95)) < 6e-5


def test_the_interval_of_a_mean() -> None:
    values = [1.0, 2.0, 3.0, 4.0]
    low, high = interval(values)
    assert (low + high) / 2 == 2.5
    assert high - 2.5 == pytest.approx(2.3534 * statistics.stdev(values) / 2)
    assert interval([5.0]) == (-math.inf, math.inf)
    assert interval([5.0, 5.0]) == (5.0, 5.0)


@pytest.mark.parametrize(
    ("values", "rule", "expected"),
    [
        ([1, 1.1, 0.9], {"below": 2}, HOLDS),
        ([1, 1.1, 0.9], {"below": 0.5}, FAILS),
        ([1, 1.1, 0.9], {"below": 1.1}, WITHIN),
        ([1, 1.1, 0.9], {"above": 0.5, "below": 1.5}, HOLDS),
        ([1, 1.1, 0.9], {"above": 1.1, "below": 1.5}, WITHIN),
        ([1], {"below": 2}, WITHIN),  # one seed decides nothing
        ([math.nan, 1, 1], {"below": 2}, FAILS),
    ],
)
def test_bound(values: list[float], rule: dict[str, float], expected: str) -> None:
    assert word(runs("a", *values), rule="bound", value="v", **rule) == expected
    # the worst arm decides
    assert word([*runs("a", *values), *runs("b", 0, 0, 0)], rule="bound", value="v", below=-1) == FAILS


def test_bound_of_chosen_arms() -> None:
    both = [*runs("a", 1, 1, 1), *runs("b", 9, 9, 9)]
    assert word(both, rule="bound", value="v", below=2, arms=["a"]) == HOLDS
    assert word(both, rule="bound", value="v", below=2) == FAILS


def test_every() -> None:
    assert word(runs("a", [1, 2], [2, 3]), rule="every", value="v", above=1, below=3) == HOLDS
    assert word(runs("a", [1, 2], [2, 3.1]), rule="every", value="v", below=3) == FAILS
    assert word(runs("a", 1.0), rule="every", value="v", below=1) == HOLDS  # no statistics: one run will do
    assert word(runs("a", math.nan), rule="every", value="v", below=1) == FAILS
    assert word(runs("a", 0.10000000149), rule="every", value="v", below=0.1) == HOLDS  # .1 in single precision
    assert word(runs("a", 0.1001), rule="every", value="v", below=0.1) == FAILS


def test_what_is_divided_by_another_value() -> None:
    pairs = [Outcome("a", seed, {"v": 2.0 * scale, "w": scale}, {}, 1.0) for seed, scale in enumerate((1e-6, 1, 1e6))]
    assert word(pairs, rule="bound", value="v", per="w", above=1.9, below=2.1) == HOLDS
    assert word(pairs, rule="every", value="v", per="w", above=2, below=2) == HOLDS
    assert word(pairs, rule="every", value="v", per="w", below=1.9) == FAILS
    nothing = [Outcome("a", seed, {"v": 1.0, "w": 0.0}, {}, 1.0) for seed in range(2)]
    assert word(nothing, rule="bound", value="v", per="w", below=1) == FAILS


def test_equality_is_relative() -> None:
    def pair(one: float, other: float) -> list[Outcome]:
        return [Outcome("a", 0, {"v": one, "w": [other]}, {}, 1.0)]

    rule = {"rule": "equality", "value": "v", "to": "w", "tolerance": 1e-3}
    for scale in (1e-9, 1.0, 1e9):
        assert word(pair(scale, 1.0005 * scale), **rule) == HOLDS
        assert word(pair(scale, 1.01 * scale), **rule) == FAILS
    assert word(pair(0.0, 0.0), **rule) == HOLDS
    assert word(pair(math.nan, 1.0), **rule) == FAILS
    assert word(runs("a", 2, 2), rule="equality", value="v", to=2, tolerance=0) == HOLDS


def test_difference_is_of_pairs() -> None:
    """Seeds that differ a lot among each other, and not at all in the difference."""
    both = [*runs("a", 11, 21.1, 30.9), *runs("b", 10, 20, 30)]
    assert word(both, rule="difference", value="v", more="a", than="b") == HOLDS
    assert word(both, rule="difference", value="v", more="b", than="a") == FAILS
    assert word(both, rule="difference", value="v", more="a", than="b", margin=1.0) == WITHIN
    assert word(both, rule="difference", value="v", more="a", than="b", margin=2) == FAILS
    noisy = [*runs("a", 11, 19, 33), *runs("b", 10, 20, 30)]
    assert word(noisy, rule="difference", value="v", more="a", than="b") == WITHIN
    one = [*runs("a", 11), *runs("b", 10)]
    assert word(one, rule="difference", value="v", more="a", than="b") == WITHIN


def test_difference_by_a_factor() -> None:
    both = [*runs("a", 10, 200, 3000), *runs("b", 1, 20, 300), *runs("c", 9, 180, 2700)]
    assert word(both, rule="difference", value="v", more="a", than="b", factor=9) == HOLDS
    assert word(both, rule="difference", value="v", more="a", than="b", factor=11) == FAILS
    assert word(both, rule="difference", value="v", more="a", than=["b", "c"], factor=9) == FAILS
    assert (
        "10.0 times b"
        in judge([{"rule": "difference", "value": "v", "more": "a", "than": "b", "factor": 9}], both).because
    )
    with pytest.raises(RuleError, match="positive"):
        word([*runs("a", 1, 1), *runs("b", 0, 1)], rule="difference", value="v", more="a", than="b", factor=2)


def test_ordering() -> None:
    three = [*runs("low", 1, 2, 3), *runs("mid", 2, 3, 4), *runs("high", 5, 6, 7)]
    assert word(three, rule="ordering", value="v", increasing=["low", "mid", "high"]) == HOLDS
    assert word(three, rule="ordering", value="v", increasing=["mid", "low", "high"]) == FAILS
    assert word(three, rule="ordering", value="v", increasing=["low", "mid", "high"], margin=2) == FAILS


def test_slope_over_arms_and_over_lists() -> None:
    arms = [o for x in (1, 2, 4, 8) for o in runs(f"x {x}", 3 * x**-2.0, 5 * x**-2.1, 4 * x**-1.9, point={"k.x": x})]
    assert word(arms, rule="slope", value="v", over="k.x", above=-2.3, below=-1.7) == HOLDS
    assert word(arms, rule="slope", value="v", over="k.x", below=-3) == FAILS
    assert word(arms, rule="slope", value="v", over="k.x", below=-2) == WITHIN
    inside = [Outcome("", seed, {"v": [2.0, 4.0], "n": [1, 4]}, {}, 1.0) for seed in range(2)]
    assert word(inside, rule="slope", value="v", over="n", above=0.49, below=0.51) == HOLDS
    with pytest.raises(RuleError, match="positive"):
        word(runs("a", 1.0, 2.0, point={"x": 1}), rule="slope", value="v", over="x", below=1)


def test_the_worst_rule_decides_and_all_are_told() -> None:
    rules = [{"rule": "every", "value": "v", "below": 5}, {"rule": "bound", "value": "v", "below": 1.1}]
    verdict = judge(rules, runs("a", 1, 1.1, 0.9))
    assert verdict.word == WITHIN
    assert "v ≤ 5" in verdict.because
    assert "1.00 ± .10" in verdict.because


def test_values_have_titles() -> None:
    rules = [
        {"rule": "every", "value": "v", "per": "v", "below": 5},
        {"rule": "equality", "value": "v", "to": "v", "tolerance": 0},
    ]
    because = judge(rules, runs("a", 1, 2), {"v": "height [m]"}).because
    assert because.startswith("height [m] / height [m] ≤ 5")
    assert "height [m] = height [m]: largest" in because


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"rule": "bound", "value": "w", "below": 1}, "no value 'w'; the runs left v"),
        ({"rule": "bound", "value": "v", "below": 1, "arms": ["z"]}, "no arm 'z'; the arms are a"),
        ({"rule": "difference", "value": "v", "more": "a", "than": "z"}, "no arm 'z'"),
    ],
)
def test_what_does_not_fit_is_named(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(RuleError, match=message):
        judge([rule], runs("a", 1, 2))

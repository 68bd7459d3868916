"""Time is shared out so that all fit, the cheap in full."""

import math

import pytest
import torch
from torch import nn

from lit_papers.diagnose import plans
from lit_papers.diagnose.budget import share_out
from lit_papers.interactions.estimator import PROBES


def spent(costs: dict[str, list[float]], levels: dict[str, int | None]) -> float:
    return sum(costs[name][level] for name, level in levels.items() if level is not None)


def test_without_a_bound_everything_is_made_in_full() -> None:
    assert share_out({"a": [9.0, 1.0], "b": [1e6, 1.0]}, math.inf) == {"a": 0, "b": 0}


@pytest.mark.parametrize("seconds", [0.1, 1.0, 3.0, 10.0, 40.0, 200.0, 3000.0])
def test_never_more_than_there_is(seconds: float) -> None:
    costs = {"a": [1.0], "b": [900.0, 90.0, 9.0], "c": [40.0, 20.0, 10.0, 5.0], "d": [0.01], "e": [2.0, 0.5]}
    levels = share_out(costs, seconds)
    assert spent(costs, levels) <= seconds
    assert levels["d"] == 0
    if seconds >= 3000:
        assert set(levels.values()) == {0}


def test_what_a_cheap_one_does_not_need_goes_to_the_dear_ones() -> None:
    dear = [100.0, 60.0, 30.0, 10.0]
    alone = share_out({"dear": dear}, 80.0)
    beside = share_out({"dear": dear, "cheap": [1.0]}, 80.0)
    assert alone["dear"] == beside["dear"] == 1
    assert share_out({"x": dear, "y": dear}, 80.0) == {"x": 2, "y": 2}


def test_what_saves_little_is_no_reason_to_measure_less() -> None:
    assert share_out({"pass": [10.0, 9.5, 9.2, 9.1]}, 11.6) == {"pass": None}
    assert share_out({"pass": [10.0, 9.5, 5.0, 4.9]}, 11.6) == {"pass": 2}


def test_costs_that_are_equal_at_two_levels_take_the_first() -> None:
    assert share_out({"a": [1.0, 1.0]}, 10.0) == {"a": 0}


def test_measuring_rounding_is_planned_for() -> None:
    """A dozen inputs of each sample go through a copy in double precision: more than all the rest of a small plan."""
    setting = plans.Setting(nn.Linear(4, 2), torch.zeros(1, 3, 32, 32), "", forward=1.0)
    smallest = plans.interactions(setting)[-1]
    _, n_samples = smallest.make.args  # type: ignore[attr-defined]
    assert smallest.seconds > 4 * n_samples * PROBES

"""The figure of exponents, on a panel small enough for a second."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from lit_papers.local_sgd.exponents import PANELS, Curve, Panel, measure
from lit_papers.local_sgd.figures import exponents_figure, panel_figure
from lit_papers.local_sgd.theory import HeterogeneousQuadratic, exact_suboptimality, fit_loglog_slope

SMALL = Panel(
    "small",
    "epochs",
    (20, 40),
    {"machines": 2, "components": 8, "sync_every": 2},
    (
        Curve("minibatch WR", "minibatch", "with_replacement", 0, -1),
        Curve("local RR, B = N", "local", "reshuffle", 4, -2, {"sync_every": 0}),
    ),
)


def test_a_slope_comes_near_the_theory() -> None:
    errors = measure(SMALL, samples=4000)
    assert list(errors) == ["minibatch_wr", "local_rr_b_n"]
    assert [len(each) for each in errors.values()] == [2, 2]
    assert fit_loglog_slope([20, 40], errors["minibatch_wr"]) == pytest.approx(-1, abs=0.3)


def test_machines_that_differ_are_measured_exactly() -> None:
    panel = Panel(
        "small",
        "sync_every",
        (2, 4),
        {"machines": 2, "components": 8, "epochs": 10},
        (Curve("local", "local", "reshuffle", 4, 2, {}, HeterogeneousQuadratic(), 1),),
    )
    assert measure(panel)["local"][1] == exact_suboptimality(
        HeterogeneousQuadratic(), "local", "reshuffle",
        machines=2, components=8, epochs=10, sync_every=4, step_size=6 / 80,
    )  # fmt: skip


def test_the_figure_says_what_was_measured() -> None:
    errors = measure(SMALL, samples=16)
    (axis,) = panel_figure(SMALL, errors).axes
    assert axis.get_xlabel() == "epochs K"
    assert axis.get_ylabel() == "error F(x) - F*"
    assert axis.get_title() == "M = 2, N = 8, B = 2"
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    slope = fit_loglog_slope([20, 40], errors["minibatch_wr"])
    assert labels[0] == f"minibatch WR: {slope:.2f} (-1)"
    assert axis.get_xscale() == axis.get_yscale() == "log"


@dataclass
class Run:
    values: dict[str, Any]
    point: dict[str, Any] = field(default_factory=lambda: {"panel": "machines"})


def test_the_figure_of_several_seeds_has_their_means() -> None:
    panel = PANELS[1]
    runs = [Run({f"{c.key}_errors": [seed / m for m in panel.values] for c in panel.curves}) for seed in (1, 3)]
    (axis,) = exponents_figure(runs).axes
    assert axis.lines[1].get_ydata().tolist() == pytest.approx([2 / m for m in panel.values])
    assert axis.get_xlabel() == "machines M"


def test_every_panel_can_be_simulated() -> None:
    for panel in PANELS:
        assert len({curve.key for curve in panel.curves}) == len(panel.curves)
        for curve in panel.curves:
            for value in panel.values:
                settings = {**panel.settings, **curve.settings, panel.variable: value}
                assert set(settings) == {"machines", "components", "epochs", "sync_every"}
                interval = settings["sync_every"] or settings["components"]
                assert settings["components"] % interval == 0
                # synchronized minibatches that cover the data have no error at all, so no slope
                covers = settings["machines"] * interval % settings["components"] == 0
                assert curve.sampling != "synchronized" or not covers

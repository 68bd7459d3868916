"""The figure of exponents, on a panel small enough for a second."""

from pathlib import Path

import pytest

from lit_papers.local_sgd import figures
from lit_papers.local_sgd.figures import PANELS, Curve, Panel, measure, slope_figure
from lit_papers.local_sgd.theory import HeterogeneousQuadratic, exact_suboptimality

SMALL = Panel(
    "epochs",
    (20, 40),
    {"machines": 2, "components": 8, "sync_every": 2},
    (
        Curve("minibatch WR", "minibatch", "with_replacement", 0, -1),
        Curve("local RR, B = N", "local", "reshuffle", 4, -2, {"sync_every": 0}),
    ),
)


def test_measured_slopes_come_with_their_error() -> None:
    points = []
    replacement, local = measure(SMALL, samples=2000, done=lambda: points.append(1))
    assert len(points) == 4
    assert replacement.slope == pytest.approx(-1, abs=4 * replacement.slope_error)
    assert 0.01 < replacement.slope_error < 0.2
    assert len(local.errors) == 2
    again = [measure(SMALL, samples=2000, seed=seed)[0].slope for seed in range(1, 13)]
    deviation = (sum((s - sum(again) / 12) ** 2 for s in again) / 11) ** 0.5
    assert 0.5 < deviation / replacement.slope_error < 2


def test_machines_that_differ_are_measured_exactly() -> None:
    panel = Panel(
        "sync_every",
        (2, 4),
        {"machines": 2, "components": 8, "epochs": 10},
        (Curve("local", "local", "reshuffle", 4, 2, {}, HeterogeneousQuadratic(), 1),),
    )
    (line,) = measure(panel)
    assert line.slope_error == 0
    assert line.errors[1] == exact_suboptimality(
        HeterogeneousQuadratic(), "local", "reshuffle",
        machines=2, components=8, epochs=10, sync_every=4, step_size=6 / 80,
    )  # fmt: skip


def test_the_figure_says_what_was_measured() -> None:
    lines = measure(SMALL, samples=16)
    (axis, _) = slope_figure([lines], [SMALL]).axes
    assert axis.get_xlabel() == "epochs K"
    assert axis.get_ylabel() == "error F(x) - F*"
    assert axis.get_title() == "M = 2, N = 8, B = 2"
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels[0] == f"minibatch WR: {lines[0].slope:.2f} (-1)"
    assert axis.get_xscale() == axis.get_yscale() == "log"


def test_the_command_writes_the_figure_and_prints_the_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(figures, "PANELS", (SMALL,))
    figures.main(["--out", "slopes.png", "--samples", "16"])
    assert (tmp_path / "slopes.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "minibatch WR" in printed
    assert "figure slopes.png" in printed


def test_every_panel_can_be_simulated() -> None:
    for panel in PANELS:
        for curve in panel.curves:
            for value in panel.values:
                settings = {**panel.settings, **curve.settings, panel.variable: value}
                assert set(settings) == {"machines", "components", "epochs", "sync_every"}
                interval = settings["sync_every"] or settings["components"]
                assert settings["components"] % interval == 0
                # synchronized minibatches that cover the data have no error at all, so no slope
                covers = settings["machines"] * interval % settings["components"] == 0
                assert curve.sampling != "synchronized" or not covers

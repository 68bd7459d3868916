"""What the claims are made of, at small size."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lit_papers.convex_relu import claims, figures
from lit_papers.convex_relu.networks import objective


def test_training_by_hand_is_that_of_autograd() -> None:
    problem = claims.instance(0, n=6, d=2)
    found = claims.train(problem, [2, 3], 1, steps=25)
    assert torch.equal(found[0][0, 2], torch.zeros(2, dtype=torch.float64))  # a narrow network stays narrow
    begin = claims.train(problem, [2, 3], 1, steps=0)
    weight, alpha = (part[1].clone().requires_grad_() for part in begin)
    stepper = torch.optim.Adam([weight, alpha], lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(stepper, 25)
    for _ in range(25):
        stepper.zero_grad()
        value = objective(problem.x, problem.y, weight, alpha, problem.solution.beta)
        value.backward()
        stepper.step()
        schedule.step()
    torch.testing.assert_close(found[0][1], weight.detach())
    torch.testing.assert_close(found[1][1], alpha.detach())
    last = objective(problem.x, problem.y, weight, alpha, problem.solution.beta)
    assert float(claims.values(problem, *found)[1]) == pytest.approx(float(last))


def test_training_comes_to_the_program_and_not_below() -> None:
    found = claims.optimum_is_convex(0, starts=2, steps=1000)
    assert max(found["proven"], found["mapped"], found["below"]) < 1e-9
    assert 0 < found["best"] < 1e-2


def test_stationary_points_are_optima_of_their_own_patterns() -> None:
    found = claims.stationary_points(0, starts=2, steps=6000)
    assert found["above"] > 1e-3
    assert abs(found["own"]) < 1e-4
    assert found["below_own"] < 1e-9


def drawn(name: str, outcomes: list[SimpleNamespace], folder: Path) -> None:
    getattr(figures, name)(outcomes).savefig(folder / "figure.png")
    assert (folder / "figure.png").stat().st_size > 10_000


def outcome(values: dict, arm: str = "", seed: int = 0) -> SimpleNamespace:
    return SimpleNamespace(values=values, arm=arm, seed=seed)


def test_paths_fall(tmp_path: Path) -> None:
    found = claims.descending_paths(0, starts=4, points=30)
    assert found["rise"] < 1e-9
    assert found["end"] < 1e-8 < found["start"]
    drawn("paths", [outcome(found)], tmp_path)


def test_drawn_optima_are_optimal(tmp_path: Path) -> None:
    found = claims.optimal_networks(0, samples=5)
    assert found["off"] < 1e-8
    assert (found["num_vertices"], found["neurons"]) == (2, 4)
    drawn("optimal_set", [outcome(found)], tmp_path)


def test_the_test_decides(tmp_path: Path) -> None:
    found = claims.optimality_test(0, sizes=(6, 12))
    assert found["wrong"] == 0
    assert found["patterns"] == [32, 134]
    assert max(found["around"]) <= 1 + 1e-6
    assert found["at_neurons"] == pytest.approx([1] * len(found["at_neurons"]), rel=1e-6)
    drawn("optimality_test", [outcome(found)], tmp_path)


def test_widths(tmp_path: Path) -> None:
    found = claims.valleys(0, starts=3, steps=400, optimizer="sgd")
    assert found["width"] == 5
    assert found["half_gap"] > found["wide_gap"] > 0
    assert found["half"] <= found["wide"] <= 1
    drawn("valleys", [outcome(found, "SGD"), outcome(found, "SGD", 1)], tmp_path)

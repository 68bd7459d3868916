"""What `reproduce` computes, at a small size: bounds on graphs, pairs told apart, names, and what is fitted."""

from __future__ import annotations

import pytest

from lit_papers.expressiveness import claims
from lit_papers.reproduce.verdicts import Outcome


def test_first_order_networks_fit_trees_and_second_order_ones_cycles() -> None:
    first, second = (claims.approximation(0, network=name) for name in ("1-MPNN", "2-FGNN"))
    assert first["csl"] == 0.1
    assert second["csl"] == 1
    for invariant in ("stars K1,3", "walks of 4"):
        assert max(first[invariant], second[invariant]) < 1e-6
    for invariant in ("triangles", "4-cycles"):
        assert first[invariant] > 0.05
        assert second[invariant] < 1e-6
    outcomes = [Outcome(arm, 0, values, {}, 1.0) for arm, values in (("1-MPNN", first), ("2-FGNN", second))]
    left, right = claims.approximation_figure(outcomes).axes
    assert [bar.get_height() for bar in left.patches] == [10, 100]
    assert len(right.patches) == 2 * len(claims.INVARIANTS)


def test_bounds_are_kept_and_met(monkeypatch: pytest.MonkeyPatch) -> None:
    some = {name: claims.ARCHITECTURES[name] for name in ("gin", "sage", "ppgn")}
    monkeypatch.setattr(claims, "ARCHITECTURES", some)
    found = claims.architecture_bounds(0, layers=1)
    assert found["architectures"] == 3
    assert found["broken"] == found["missed"] == 0
    assert found["tight"] == 3  # of gin with readout and without, and of ppgn without
    assert 0 < found["largest"] < 1e-12


def test_a_broken_bound_and_a_missed_one_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finer and a coarser colouring than the bound's."""
    some = {name: claims.ARCHITECTURES[name] for name in ("gin",)}
    monkeypatch.setattr(claims, "ARCHITECTURES", some)
    honest = claims._colours
    monkeypatch.setattr(claims, "_colours", lambda graphs, bound: honest(graphs, bound) * 0)
    assert claims.architecture_bounds(0)["broken"] == 2
    nodes = lambda graphs, bound: honest(graphs, bound) + 7 * honest(graphs, bound).argsort()  # noqa: E731
    monkeypatch.setattr(claims, "_colours", nodes)
    assert claims.architecture_bounds(0)["missed"] == 2


def test_names_of_patterns() -> None:
    found = claims.names_needed(0)
    assert found["names"] == found["treewidth_plus_one"] == [2, 2, 3, 3, 3, 4]
    assert found["written"] == found["rewritten"]
    assert max(found["written"]) > 0


def test_pairs_that_more_power_tells_apart() -> None:
    pairs = len(claims.hard_pairs())
    gin = claims.separated_pairs(0, name="gin", layers=2)
    assert gin == {"pairs": pairs, "separated": 0, "ceiling": 0, "names": gin["names"], "above": 0}
    ppgn = claims.separated_pairs(0, name="ppgn", layers=2)
    assert ppgn["above"] == 0
    assert ppgn["ceiling"] == pairs - 1, "all but Shrikhande's graph and the rook's"
    assert ppgn["separated"] == pairs - 1

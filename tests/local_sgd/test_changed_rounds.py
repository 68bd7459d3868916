"""What cheaper rounds cost on the paper's function: bfloat16 changes no slope, and a late average costs more than B."""

import pytest
import torch

from lit_papers.local_sgd.changed_rounds import averaged, local_errors
from lit_papers.local_sgd.claims import compressed_rounds, exponents, late_rounds
from lit_papers.local_sgd.exponents import panel_of
from lit_papers.local_sgd.theory import SkewedQuadratic, simulate


def test_the_loop_is_the_simulator() -> None:
    ours = local_errors(20, averaged(4), 4, runs=64)
    theirs = simulate(
        SkewedQuadratic(), "local", "reshuffle",
        machines=4, components=32, epochs=20, sync_every=4, step_size=6 / (32 * 20), runs=64,
    )  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)


def test_bfloat16_rounds_keep_the_slope_in_epochs() -> None:
    found = compressed_rounds(seed=0)
    assert abs(found["difference"]) <= 0.05
    assert found["bfloat16"] == pytest.approx(-2, abs=0.3)


@pytest.mark.parametrize("sync_every", [8, 16])
def test_an_average_that_comes_a_round_late_costs_more_than_twice_the_interval(sync_every: int) -> None:
    found = late_rounds(seed=0, sync_every=sync_every)
    assert 1.4 <= found["late"] <= 3
    assert found["late_beside_twice"] > 1


def test_exponents_have_the_names_of_their_curves() -> None:
    found = exponents(seed=0, panel="interval", samples=8)
    keys = {curve.key for curve in panel_of("interval").curves}
    assert set(found) == keys | {f"{key}_errors" for key in keys}
    assert found["local_unequal_machines_in_b_1"] == pytest.approx(2, abs=0.01)

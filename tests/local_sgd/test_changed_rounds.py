"""What cheaper rounds cost on the paper's function: bfloat16 changes no slope, and a late average costs more than B."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_papers.local_sgd.functional import round_to_bfloat16
from lit_papers.local_sgd.simulator import draw_order
from lit_papers.local_sgd.theory import SkewedQuadratic, fit_loglog_slope, simulate

RUNS, M, N = 512, 4, 32


def local_rr(
    epochs: int, sync_every: int, round_of: Callable[[Tensor], Callable[[Tensor, int], Tensor]], *, runs: int = RUNS
) -> Tensor:
    """Error of local SGD with reshuffling, ``round_of(x)(local, steps since a round) -> local`` after every step."""
    function, random = SkewedQuadratic(), np.random.default_rng(0)
    eta = 6 / (N * epochs)
    z = function.components(N, M).expand(runs, -1, -1)
    local = torch.zeros(runs, M, dtype=torch.float64)
    after_step, since = round_of(local), 0
    for _ in range(epochs):
        order = draw_order("reshuffle", runs=runs, machines=M, components=N, random=random)
        for datum in z.gather(-1, order).permute(2, 0, 1):
            local = local - eta * function.gradient(local, datum)
            since = since % sync_every + 1
            local = after_step(local, since)
    return function.suboptimality(local.mean(1))


def plain(sync_every: int) -> Callable[[Tensor], Callable[[Tensor, int], Tensor]]:
    def begin(_: Tensor) -> Callable[[Tensor, int], Tensor]:
        return lambda local, since: local.mean(1, keepdim=True).expand_as(local) if since == sync_every else local

    return begin


def bfloat16(sync_every: int) -> Callable[[Tensor], Callable[[Tensor, int], Tensor]]:
    def begin(start: Tensor) -> Callable[[Tensor, int], Tensor]:
        anchor, owed, mean_owed = start[:, :1].clone(), torch.zeros_like(start), torch.zeros_like(start[:, :1])

        def after_step(local: Tensor, since: int) -> Tensor:
            if since < sync_every:
                return local
            sent = round_to_bfloat16(local - anchor, owed).double()
            anchor.add_(round_to_bfloat16(sent.mean(1, keepdim=True), mean_owed).double())
            return anchor.expand_as(local)

        return after_step

    return begin


def late(sync_every: int) -> Callable[[Tensor], Callable[[Tensor, int], Tensor]]:
    """An average arrives one step before the next is due: what a machine did meanwhile is added to it."""

    def begin(start: Tensor) -> Callable[[Tensor, int], Tensor]:
        sent = start.clone()

        def after_step(local: Tensor, since: int) -> Tensor:
            nonlocal sent
            if since == sync_every - 1:
                local = sent.mean(1, keepdim=True) + (local - sent)
            if since == sync_every:
                sent = local
            return local

        return after_step

    return begin


def test_the_loop_is_the_simulator() -> None:
    ours = local_rr(20, 4, plain(4), runs=64)
    options = {"machines": M, "components": N, "epochs": 20, "sync_every": 4, "step_size": 6 / (N * 20), "runs": 64}
    torch.testing.assert_close(ours, simulate(SkewedQuadratic(), "local", "reshuffle", **options), rtol=1e-9, atol=0)  # type: ignore[arg-type]


def test_bfloat16_rounds_keep_the_slope_in_epochs() -> None:
    epochs = [40, 80, 160]
    slopes, spread = {}, {}
    for name, rounds in (("plain", plain(4)), ("bfloat16", bfloat16(4))):
        errors = [local_rr(k, 4, rounds) for k in epochs]
        slopes[name] = fit_loglog_slope(epochs, [error.mean().item() for error in errors])
        spread[name] = max((error.std() / error.mean() / RUNS**0.5).item() for error in errors)
    print(slopes, spread)
    assert abs(slopes["bfloat16"] - slopes["plain"]) <= 2 * (spread["plain"] + spread["bfloat16"])
    assert slopes["bfloat16"] == pytest.approx(-2, abs=0.3)


@pytest.mark.parametrize("sync_every", [8, 16])
def test_an_average_that_comes_a_round_late_costs_more_than_twice_the_interval(sync_every: int) -> None:
    on_time = local_rr(60, sync_every, plain(sync_every)).mean()
    delayed = local_rr(60, sync_every, late(sync_every)).mean()
    twice = local_rr(60, 2 * sync_every, plain(2 * sync_every)).mean()
    print(sync_every, delayed / on_time, twice / on_time)
    assert 1.5 <= delayed / on_time <= 3
    assert delayed > twice

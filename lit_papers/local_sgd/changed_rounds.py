"""Rounds that send less, or later, on the paper's function: what they do to the error."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lit_papers.local_sgd.functional import round_to_bfloat16
from lit_papers.local_sgd.simulator import draw_order
from lit_papers.local_sgd.theory import SkewedQuadratic

AfterStep = Callable[[Tensor, int], Tensor]
"""From iterates ``(R, M)`` and the steps since the last round, counted from 1, to iterates."""


def local_errors(
    epochs: int,
    begin: Callable[[Tensor], AfterStep],
    sync_every: int,
    *,
    machines: int = 4,
    components: int = 32,
    runs: int = 512,
    seed: int = 0,
) -> Tensor:
    r"""Error of local SGD with reshuffling, :math:`\eta = 6 / (\mu N K)`, whose rounds are given.

    Args:
        epochs: ``K``.
        begin: from the first iterates to what happens after each step, as `averaged`.
        sync_every: ``B``; unlike `theory.simulate` a round may reach over the end of an epoch.
        machines: ``M``.
        components: ``N``.
        runs: ``R``, independent ones.
        seed: of all draws.

    Returns:
        :math:`F(\bar x) - F^*` of the mean over the machines at the end, float64, shape ``(R,)``.
    """
    function, random = SkewedQuadratic(), np.random.default_rng(seed)
    eta = 6 / (function.mu * components * epochs)
    z = function.components(components, machines).expand(runs, -1, -1)  # (R, M, N)
    local = torch.zeros(runs, machines, dtype=torch.float64)
    after_step, since = begin(local), 0
    for _ in range(epochs):
        order = draw_order("reshuffle", runs=runs, machines=machines, components=components, random=random)
        for datum in z.gather(-1, order).permute(2, 0, 1):
            local = local - eta * function.gradient(local, datum)
            since = since % sync_every + 1
            local = after_step(local, since)
    return function.suboptimality(local.mean(1))


def averaged(sync_every: int) -> Callable[[Tensor], AfterStep]:
    """The average in time: the algorithm of the paper."""
    return lambda start: (
        lambda local, since: local.mean(1, keepdim=True).expand_as(local) if since == sync_every else local
    )


def averaged_as_bfloat16(sync_every: int) -> Callable[[Tensor], AfterStep]:
    """The average of changes in bfloat16, with error feedback in both directions, as ``compress="bf16"`` has it."""

    def begin(start: Tensor) -> AfterStep:
        anchor, owed, mean_owed = start[:, :1].clone(), torch.zeros_like(start), torch.zeros_like(start[:, :1])

        def after_step(local: Tensor, since: int) -> Tensor:
            if since < sync_every:
                return local
            sent = round_to_bfloat16(local - anchor, owed).double()
            anchor.add_(round_to_bfloat16(sent.mean(1, keepdim=True), mean_owed).double())
            return anchor.expand_as(local)

        return after_step

    return begin


def averaged_late(sync_every: int) -> Callable[[Tensor], AfterStep]:
    """An average arrives one step before the next is due: what a machine did meanwhile is added to it."""

    def begin(start: Tensor) -> AfterStep:
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

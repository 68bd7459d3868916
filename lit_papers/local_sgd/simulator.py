"""Minibatch and local SGD under the paper's three ways of drawing components, all runs at once, in float64.

Yun, Rajput & Sra, ICLR 2022: minibatch RR, local RR, and their variants with synchronized shuffling.
"""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lit_papers.local_sgd.lower_bound_functions import LowerBoundFunction

Algorithm = Literal["minibatch", "local"]
Sampling = Literal["reshuffle", "synchronized", "with_replacement"]


def simulate(
    function: LowerBoundFunction,
    algorithm: Algorithm,
    sampling: Sampling,
    *,
    machines: int,
    components: int,
    epochs: int,
    sync_every: int,
    step_size: float,
    start: float = 0.0,
    runs: int = 256,
    seed: int = 0,
) -> Tensor:
    r"""Error of the last iterate of many independent runs.

    A machine makes one pass over its ``N`` components in each of ``K`` epochs. For one ``seed`` the components come
    in the same order for both algorithms and every ``sync_every``, so that curves differ by the algorithm alone.

    Args:
        function: what is minimised, and its data.
        algorithm: ``"minibatch"`` (average ``B`` gradients of every machine, then step by :math:`\eta B`) or
            ``"local"`` (``B`` steps of :math:`\eta` on every machine, then average).
        sampling: ``"reshuffle"`` (a permutation for every machine and epoch), ``"synchronized"`` (one permutation an
            epoch, shifted by multiples of ``N/M``) or ``"with_replacement"``.
        machines: ``M``, >= 1; for ``"synchronized"`` a divisor of ``N``.
        components: ``N``, components on each machine, >= 2.
        epochs: ``K``, >= 1.
        sync_every: ``B``, components between two averagings, >= 1, a divisor of ``N``.
        step_size: :math:`\eta` for each component, > 0.
        start: :math:`x_0`.
        runs: ``R``, independent runs, >= 1.
        seed: of all draws, >= 0.

    Returns:
        :math:`F(x_K) - F^*`, float64, shape ``(R,)``.

    Raises:
        ValueError: an argument is out of its range or does not divide what it must; the message has the numbers.

    >>> from lit_papers.local_sgd.theory import SkewedQuadratic, simulate
    >>> simulate(SkewedQuadratic(), "local", "reshuffle", machines=2, components=4, epochs=20, sync_every=2,
    ...          step_size=0.05).shape
    torch.Size([256])
    """
    check_problem(
        algorithm, sampling, machines=machines, components=components, epochs=epochs, sync_every=sync_every,
        step_size=step_size,
    )  # fmt: skip
    if runs < 1:
        raise ValueError(f"`runs` must be at least 1, got {runs}")
    z = function.components(components, machines).expand(runs, -1, -1)  # (R, M, N)
    random = np.random.default_rng(seed)
    x = torch.full((runs,), start, dtype=torch.float64)
    for _ in range(epochs):
        order = draw_order(sampling, runs=runs, machines=machines, components=components, random=random)
        seen = z.gather(-1, order)  # (R, M, N)
        x = run_epoch(function, algorithm, x, seen, sync_every=sync_every, step_size=step_size)
    return function.suboptimality(x)


def run_epoch(
    function: LowerBoundFunction, algorithm: Algorithm, x: Tensor, z: Tensor, *, sync_every: int, step_size: float
) -> Tensor:
    """One pass over data that already lie in the order in which they are used.

    Args:
        function: what is minimised.
        algorithm: ``"minibatch"`` or ``"local"``.
        x: iterate at the start of the epoch, shape ``(R,)``.
        z: data in order of use, shape ``(R, M, N)``.
        sync_every: ``B``, a divisor of ``N``.
        step_size: for each component; see `simulate`.

    Returns:
        The iterate at the end of the epoch, shape ``(R,)``.

    >>> from lit_papers.local_sgd.theory import Quadratic, run_epoch
    >>> z = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)
    >>> run_epoch(Quadratic(), "local", torch.zeros(1, dtype=torch.float64), z, sync_every=1, step_size=0.1)
    tensor([0.0100], dtype=torch.float64)
    """
    rounds = torch.split(z.permute(2, 0, 1).contiguous(), sync_every)  # N/B of (B, R, M)
    for share in rounds:
        if algorithm == "minibatch":
            gradients = function.gradient(x[:, None], share)  # (B, R, M)
            x = x - step_size * sync_every * gradients.mean(dim=(0, 2))
        else:
            local = x[:, None].expand(share.shape[1:])  # (R, M)
            for datum in share:
                local = local - step_size * function.gradient(local, datum)
            x = local.mean(dim=1)  # (R,)
    return x


def draw_order(sampling: Sampling, *, runs: int, machines: int, components: int, random: np.random.Generator) -> Tensor:
    r"""Which component each machine uses at each position of one epoch.

    ``"synchronized"`` is :math:`\sigma_m(i) = \sigma((i + \tfrac{N}{M} \pi(m)) \bmod N)` with :math:`\sigma` and
    :math:`\pi` drawn anew each epoch and common to all machines of a run (Yun et al., ICLR 2022, SyncShuf).

    Args:
        sampling: see `simulate`.
        runs: ``R``.
        machines: ``M``.
        components: ``N``.
        random: what the draw comes from; it is advanced.

    Returns:
        Indices in [0, N), int64, shape ``(R, M, N)``.
    """
    if sampling == "with_replacement":
        return torch.from_numpy(random.integers(components, size=(runs, machines, components)))
    if sampling == "reshuffle":
        return torch.from_numpy(_permutations(random, (runs, machines), components))
    sigma = torch.from_numpy(_permutations(random, (runs,), components))  # (R, N)
    pi = torch.from_numpy(_permutations(random, (runs,), machines))  # (R, M)
    shift = components // machines * pi
    position = (torch.arange(components) + shift[..., None]) % components  # (R, M, N)
    return sigma[:, None].expand(-1, machines, -1).gather(-1, position)


def check_problem(
    algorithm: str,
    sampling: str,
    *,
    machines: int,
    components: int,
    epochs: int,
    sync_every: int,
    step_size: float,
) -> None:
    """Raise an error that names the argument and the numbers unless the algorithm is defined for them; see `simulate`.

    Raises:
        ValueError: an argument is out of its range or does not divide what it must.
    """
    if algorithm not in get_args(Algorithm):
        raise ValueError(f"`algorithm` must be one of {', '.join(get_args(Algorithm))}, got {algorithm!r}")
    if sampling not in get_args(Sampling):
        raise ValueError(f"`sampling` must be one of {', '.join(get_args(Sampling))}, got {sampling!r}")
    at_least = {"machines": (machines, 1), "components": (components, 2), "epochs": (epochs, 1)}
    for name, (number, least) in {**at_least, "sync_every": (sync_every, 1)}.items():
        if number < least:
            raise ValueError(f"`{name}` must be at least {least}, got {number}")
    if components % sync_every:
        raise ValueError(f"sync_every={sync_every} does not divide components={components}")
    if sampling == "synchronized" and components % machines:
        raise ValueError(
            f"machines={machines} does not divide components={components}, as `sampling`='synchronized' needs"
        )
    if not step_size > 0:
        raise ValueError(f"`step_size` must be > 0, got {step_size}")


def _permutations(
    random: np.random.Generator, shape: tuple[int, ...], length: int
) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
    """Independent permutations of ``range(length)``, shape ``(*shape, length)``; 4x faster than sorting in torch."""
    return random.permuted(np.broadcast_to(np.arange(length), (*shape, length)), axis=-1)

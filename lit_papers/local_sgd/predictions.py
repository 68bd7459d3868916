"""What the theory says beforehand: exact expectations, the paper's upper bounds and step size, and slopes to compare.

Yun, Rajput & Sra, ICLR 2022, theorems on minibatch RR, local RR and SyncShuf. `exact_suboptimality` is elementary
and ours.
"""

import math
from collections.abc import Sequence

import numpy as np

from lit_papers.local_sgd.lower_bound_functions import HeterogeneousQuadratic, LowerBoundFunction, Quadratic
from lit_papers.local_sgd.simulator import Algorithm, Sampling, check_problem


def exact_suboptimality(
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
) -> float:
    r"""Expected error of the last iterate, where a formula exists; the arguments are those of `simulate`.

    For `Quadratic`, with ``n`` updates of gain :math:`g` an epoch, :math:`r = 1 - g\mu` and ``b`` draws averaged in
    an update (minibatch: :math:`n = N/B,\ g = \eta B,\ b = B`; local: :math:`n = N,\ g = \eta,\ b = 1`):

    .. math:: \mathbb{E} F = \frac{\mu}{2}\Big[\frac{g^2 \nu^2}{M} V \frac{1 - r^{2nK}}{1 - r^{2n}}
              + (r^{nK} x_0)^2\Big], \qquad
              V = \frac{N}{N-1} \sum_i (w_i - \bar w)^2,\quad w_i = r^{\,n - 1 - \lfloor i/b \rfloor} / b

    for ``"reshuffle"``; ``"with_replacement"`` has :math:`V = \sum_i w_i^2`. For `HeterogeneousQuadratic`
    nothing is random: a round of local SGD is, with :math:`r = (1 - 2\eta\mu)^B`,
    :math:`y \leftarrow \tfrac12[(1 + r) y + B\eta\tau - \tfrac{\tau}{2\mu}(1 - r)]`, and one of minibatch SGD
    :math:`y \leftarrow (1 - \eta B \mu) y`.

    Returns:
        :math:`\mathbb{E} F(x_K) - F^*`, >= 0.

    Raises:
        NotImplementedError: no formula for this function and sampling.
        ValueError: as `simulate`.

    >>> from lit_papers.local_sgd.theory import Quadratic, exact_suboptimality
    >>> error = exact_suboptimality(Quadratic(), "local", "reshuffle", machines=4, components=32, epochs=60,
    ...                             sync_every=4, step_size=6 / (32 * 60))
    >>> f"{error:.5e}"
    '1.68466e-07'
    """
    check_problem(
        algorithm, sampling, machines=machines, components=components, epochs=epochs, sync_every=sync_every,
        step_size=step_size,
    )  # fmt: skip
    function.components(components, machines)  # refuses numbers that leave the data unbalanced
    draws = sync_every if algorithm == "minibatch" else 1
    gain, updates = step_size * draws, components // draws
    if isinstance(function, HeterogeneousQuadratic):
        y = start
        for _ in range(epochs * components // sync_every):
            if algorithm == "minibatch":
                y *= 1 - gain * function.mu
            else:
                r = (1 - 2 * step_size * function.mu) ** sync_every
                drift = sync_every * step_size * function.tau - function.tau / (2 * function.mu) * (1 - r)
                y = ((1 + r) * y + drift) / 2
        return function.mu * y**2 / 2
    if not isinstance(function, Quadratic) or sampling == "synchronized":
        raise NotImplementedError(f"no closed form for {type(function).__name__} with sampling={sampling!r}")

    r = 1 - gain * function.mu
    weights = np.repeat(r ** np.arange(updates - 1, -1, -1.0), draws) / draws  # (N,)
    if sampling == "reshuffle":
        weights = (weights - weights.mean()) * math.sqrt(components / (components - 1))
    variance = (gain * function.nu) ** 2 / machines * float(weights @ weights)  # of what one epoch adds
    kept = r ** (2 * updates)  # of a squared distance, in one epoch
    noise = variance * (epochs if kept == 1 else (1 - kept**epochs) / (1 - kept))
    return function.mu / 2 * (noise + kept**epochs * start**2)


def upper_bound(
    algorithm: Algorithm,
    sampling: Sampling,
    *,
    smoothness: float,
    mu: float,
    nu: float,
    machines: int,
    components: int,
    epochs: int,
    sync_every: int,
    tau: float = 0.0,
    lam: float = 0.0,
    gap: float = 0.0,
) -> float:
    r"""The paper's upper bounds for many epochs, without constants and logarithms: for slopes, not for values.

    .. math::
        \text{minibatch RR:}\quad & \tfrac{\Delta}{MNK^2} + \tfrac{L^2}{\mu^3} \tfrac{\nu^2}{MNK^2} \\
        \text{local RR:}\quad & \tfrac{\Delta}{MNK^2} + \tfrac{L^2}{\mu^3} \Big(\tfrac{\nu^2}{MNK^2}
            + \tfrac{\nu^2 B + \tau^2 B^2}{N^2K^2}\Big) \\
        \text{minibatch SyncShuf:}\quad & \tfrac{\Delta}{M^2NK^2} + \tfrac{L^2}{\mu^3}
            \Big(\tfrac{\nu^2}{M^2NK^2} + \tfrac{\lambda^2}{MK^2}\Big) \\
        \text{local SyncShuf:}\quad & \tfrac{\Delta}{M^2NK^2} + \tfrac{L^2}{\mu^3} \Big(\tfrac{\nu^2}{M^2NK^2}
            + \tfrac{\nu^2 B + \lambda^2 B^2}{N^2K^2} + \tfrac{\lambda^2}{MK^2}\Big)

    They hold with the step size of `theorem_step_size` once ``K`` is large against :math:`L/\mu`. With replacement,
    as the paper cites it: minibatch :math:`\tfrac{\nu^2}{\mu MNK}`, local :math:`\tfrac{L\nu^2}{\mu^2 MNK} +
    \tfrac{L^2}{\mu^3} \tfrac{\nu^2 B + \tau^2 B^2}{N^2K^2}`, both without :math:`\Delta`.

    Args:
        algorithm: ``"minibatch"`` or ``"local"``.
        sampling: ``"reshuffle"``, ``"synchronized"`` or ``"with_replacement"``.
        smoothness: :math:`L`, > 0.
        mu: :math:`\mu` of the Polyak-Lojasiewicz inequality, in (0, L].
        nu: :math:`\nu`, spread of a machine's component gradients, >= 0.
        machines: ``M``.
        components: ``N``.
        epochs: ``K``.
        sync_every: ``B``, a divisor of ``N``.
        tau: :math:`\tau`, spread of the machines' gradients, >= 0.
        lam: :math:`\lambda`, spread of equally numbered components over machines, >= 0 (SyncShuf only).
        gap: :math:`\Delta = F(x_0) - F^*`, >= 0.

    Returns:
        The expression, >= 0.

    Raises:
        ValueError: an argument is out of its range.

    >>> from lit_papers.local_sgd.theory import upper_bound
    >>> upper_bound("minibatch", "reshuffle", smoothness=1, mu=1, nu=1, machines=4, components=10, epochs=5,
    ...             sync_every=5)
    0.001
    """
    check_problem(
        algorithm, sampling, machines=machines, components=components, epochs=epochs, sync_every=sync_every,
        step_size=1.0,
    )  # fmt: skip
    if not 0 < mu <= smoothness:
        raise ValueError(f"`mu` must be in (0, smoothness={smoothness}], got {mu}")
    for name, value in {"nu": nu, "tau": tau, "lam": lam, "gap": gap}.items():
        if value < 0:
            raise ValueError(f"`{name}` must be >= 0, got {value}")
    spread = lam if sampling == "synchronized" else tau
    drift = (nu**2 * sync_every + spread**2 * sync_every**2) / (components * epochs) ** 2 if algorithm == "local" else 0
    scale = smoothness**2 / mu**3
    if sampling == "with_replacement":
        condition = smoothness / mu if algorithm == "local" else 1.0
        return condition * nu**2 / (mu * machines * components * epochs) + scale * drift
    if sampling == "reshuffle":
        steps = machines * components * epochs**2
        return gap / steps + scale * (nu**2 / steps + drift)
    steps = machines**2 * components * epochs**2
    return gap / steps + scale * (nu**2 / steps + drift + lam**2 / (machines * epochs**2))


def theorem_step_size(
    algorithm: Algorithm, sampling: Sampling, *, mu: float, machines: int, components: int, epochs: int
) -> float:
    r"""The step size for each component with which the upper bounds hold.

    .. math:: \eta = \frac{\log(MNK^2)}{\mu NK}, \qquad
              \eta = \frac{\log(M^2NK^2)}{\mu NK}\ \text{for SyncShuf}

    The same for both algorithms, as the minibatch update is :math:`\eta B`. With replacement, where the paper cites
    others, it is that of reshuffling. Errors measured with it carry :math:`\log^2`, which bends slopes in ``K`` by
    about 0.2: compare errors divided by it, or use :math:`c / (\mu NK)`.

    Args:
        algorithm: ``"minibatch"`` or ``"local"``.
        sampling: ``"reshuffle"``, ``"synchronized"`` or ``"with_replacement"``.
        mu: :math:`\mu`, > 0.
        machines: ``M``, >= 1.
        components: ``N``, >= 2.
        epochs: ``K``, >= 1.

    Returns:
        :math:`\eta` > 0.

    Raises:
        ValueError: an argument is out of its range.

    >>> from lit_papers.local_sgd.theory import theorem_step_size
    >>> round(theorem_step_size("local", "reshuffle", mu=1.0, machines=4, components=32, epochs=60), 6)
    0.006792
    """
    check_problem(
        algorithm, sampling, machines=machines, components=components, epochs=epochs, sync_every=1, step_size=1.0
    )
    if mu <= 0:
        raise ValueError(f"`mu` must be > 0, got {mu}")
    power = 2 if sampling == "synchronized" else 1
    return math.log(machines**power * components * epochs**2) / (mu * components * epochs)


def fit_loglog_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Least-squares slope of log ``y`` against log ``x``: the exponent ``a`` of a power law ``y = c x^a``.

    Args:
        x: at least two values > 0, not all equal.
        y: as many values > 0.

    Returns:
        The exponent.

    Raises:
        ValueError: fewer than two points, different lengths, a value <= 0, or no two different ``x``.

    >>> from lit_papers.local_sgd.theory import fit_loglog_slope
    >>> round(fit_loglog_slope([1, 2, 4], [3.0, 0.75, 0.1875]), 6)
    -2.0
    """
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"`x` and `y` must be at least 2 points each, and as many, got {len(x)} and {len(y)}")
    for name, values in {"x": x, "y": y}.items():
        if not all(value > 0 for value in values):
            raise ValueError(f"`{name}` must be > 0 to have a logarithm, got {min(values)}")
    log_x, log_y = np.log(np.asarray(x, dtype=float)), np.log(np.asarray(y, dtype=float))
    log_x = log_x - log_x.mean()
    if not log_x.any():
        raise ValueError(f"`x` must have two different values, got {x[0]} alone")
    return float(log_x @ log_y / (log_x @ log_x))

r"""Multi-order interactions between input variables (Deng, Ren, Zhang & Zhang, ICLR 2022).

With :math:`v(S)` a network's output where only the players in :math:`S` are present, the interaction of order
:math:`m` of players :math:`i, j` is the mean of

.. math:: \Delta v(i, j, S) = v(S \cup \{i, j\}) - v(S \cup \{i\}) - v(S \cup \{j\}) + v(S)

over all contexts :math:`S` of :math:`m` other players, :math:`m = 0 \ldots n - 2`.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

PAPER_RATIOS: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Orders at which the authors measure, as shares of ``n - 2``."""


def log_odds(logits: Tensor, target: Tensor) -> Tensor:
    r"""The paper's value of a coalition, :math:`\log p_y / (1 - p_y)`, finite however sure the network is.

    .. math:: v = z_y - \log \sum_{c \neq y} e^{z_c}

    Args:
        logits: z, ``(..., C)`` with ``C >= 2``.
        target: y, int64, ``(...)``.

    Returns:
        ``(...)``.

    Raises:
        ValueError: there is one logit, or a label is outside ``0 .. C - 1``.

    >>> log_odds(torch.tensor([40.0, 0.0, 0.0]), torch.tensor(0))
    tensor(39.3069)
    """
    classes = logits.shape[-1]
    if classes < 2:
        raise ValueError(f"log-odds need two or more logits, got {classes}")
    if target.numel() and not 0 <= int(target.min()) <= int(target.max()) < classes:
        wrong = target.min() if target.min() < 0 else target.max()
        raise ValueError(f"label {int(wrong)} is outside 0 to {classes - 1}")
    index = target.unsqueeze(-1)
    rest = logits.scatter(-1, index, -math.inf).logsumexp(-1)
    return logits.gather(-1, index).squeeze(-1) - rest


def orders_from_ratios(n_players: int, ratios: Sequence[float] = PAPER_RATIOS) -> list[int]:
    """Orders at given shares of the largest, rounded down, sorted and distinct.

    Args:
        n_players: n, >= 2.
        ratios: in [0, 1].

    >>> orders_from_ratios(256)
    [0, 12, 25, 50, 76, 101, 127, 152, 177, 203, 228, 241, 254]
    """
    return sorted({_share(n_players - 2, ratio) for ratio in ratios})


def _share(whole: int, ratio: float) -> int:
    return math.floor(whole * ratio + 1e-9)  # 0.29 * 100 is 28.999...


def exact_interactions(values: Tensor) -> Tensor:
    """All interactions of all orders, from the value of every coalition.

    Args:
        values: ``(..., 2**n)`` with ``n >= 2``; bit k of the index says whether player k is present.

    Returns:
        float64, ``(..., n, n, n - 1)``, symmetric in the players; NaN on their diagonal.

    Raises:
        ValueError: the last axis has not 4, 8, 16, ... entries.

    >>> both = torch.tensor([0.0, 0.0, 0.0, 1.0])  # a value only if both players are there
    >>> exact_interactions(both)[0, 1]
    tensor([1.], dtype=torch.float64)
    """
    coalitions = values.shape[-1]
    n = coalitions.bit_length() - 1
    if n < 2 or coalitions != 2**n:
        raise ValueError(f"`values` must have 2**n entries along the last axis with n >= 2, got {coalitions}")
    values = values.double()
    shape = values.shape[:-1]
    contexts = torch.arange(2 ** (n - 2), device=values.device)
    order = torch.zeros_like(contexts)
    for bit in range(n - 2):
        order += (contexts >> bit) & 1
    counts = torch.bincount(order, minlength=n - 1).double()
    found = values.new_full((*shape, n, n, n - 1), math.nan)
    for j in range(n):
        for i in range(j):  # bits i < j split the index into three ranges of the other players
            cube = values.reshape(*shape, 2 ** (n - 1 - j), 2, 2 ** (j - i - 1), 2, 2**i)
            with_j, without_j = cube[..., 1, :, :, :], cube[..., 0, :, :, :]
            difference = (with_j[..., 1, :] - with_j[..., 0, :]) - (without_j[..., 1, :] - without_j[..., 0, :])
            sums = values.new_zeros(*shape, n - 1).index_add_(-1, order, difference.reshape(*shape, -1))
            found[..., i, j, :] = found[..., j, i, :] = sums / counts
    return found


def interaction_strength(interactions: Tensor) -> Tensor:
    r"""S^(m): mean magnitude over samples and pairs (section 2; the magnitude is of the mean over contexts).

    Args:
        interactions: ``(..., M)``, one column an order; NaN entries do not count.

    Returns:
        ``(M,)``, >= 0.
    """
    return interactions.abs().reshape(-1, interactions.shape[-1]).nanmean(0)


def relative_strength(strength: Tensor) -> Tensor:
    r"""J^(m) = S^(m) / mean of S over the orders: of mean 1. It hides how large S is, so show both.

    Args:
        strength: S, ``(M,)``.

    Returns:
        ``(M,)``; NaN where S is zero throughout.

    >>> relative_strength(torch.tensor([3.0, 1.0, 2.0]))
    tensor([1.5000, 0.5000, 1.0000])
    """
    return strength / strength.mean()


def efficiency_weights(n_players: int) -> Tensor:
    r"""w^(m), with which interactions of all orders add up to the network's output.

    .. math:: v(N) - v(\emptyset) = \sum_i \mu_i + \sum_{i \neq j} \sum_m w^{(m)} I^{(m)}(i, j), \qquad
              w^{(m)} = \frac{n - 1 - m}{n (n - 1)}

    over *ordered* pairs, with :math:`\mu_i = v(\{i\}) - v(\emptyset)`.

    Args:
        n_players: n, >= 2.

    Returns:
        float64, ``(n - 1,)``.

    >>> efficiency_weights(3)
    tensor([0.3333, 0.1667], dtype=torch.float64)
    """
    orders = torch.arange(n_players - 1, dtype=torch.float64)
    return (n_players - 1 - orders) / (n_players * (n_players - 1))


def learning_strength(n_players: int, exponent: float = 0.5, log: bool = False) -> Tensor:
    r"""F^(m)/F^(0): how strongly each order is learned, in theory; smallest at middle orders.

    .. math:: F^{(m)} \propto \frac{n - m - 1}{n (n - 1) \binom{n-2}{m}^{1/2}}

    for contexts that contribute independent gradients of equal variance. The U shape comes from averaging over
    many contexts, so it is that of noise as well: compare with an untrained network.

    Args:
        n_players: n, >= 2.
        exponent: of the binomial.
        log: return the logarithm, which stays finite for any n.

    Returns:
        float64, ``(n - 1,)``; the first entry is 1, or 0 as a logarithm.

    >>> learning_strength(5)
    tensor([1.0000, 0.4330, 0.2887, 0.2500], dtype=torch.float64)
    """
    orders = torch.arange(n_players - 1, dtype=torch.float64)
    rest = torch.tensor(float(n_players - 2), dtype=torch.float64)
    log_binomial = torch.lgamma(rest + 1) - torch.lgamma(orders + 1) - torch.lgamma(rest - orders + 1)
    logarithm = torch.log((n_players - 1 - orders) / (n_players - 1)) - exponent * log_binomial
    return logarithm if log else logarithm.exp()


def delta_u_weights(n_players: int, s1: int, s2: int) -> Tensor:
    r"""With which weight each order stands in the expectation of the training losses' :math:`\Delta u`.

    .. math:: c_l = (l + 1)(s_2/s_1 - 1) \text{ for } l \le s_1 - 1, \quad s_2 - 1 - l \text{ up to } s_2 - 2, \quad 0

    of the mean interaction over all pairs. All lower orders have weight, none above ``s2 - 2`` has.

    Args:
        n_players: n.
        s1: players in the smaller coalition, >= 0.
        s2: in the larger one, > s1, at most n.

    Returns:
        float64, ``(n - 1,)``.

    Raises:
        ValueError: not ``0 <= s1 < s2 <= n``.

    >>> delta_u_weights(5, 2, 4)
    tensor([1., 2., 1., 0.], dtype=torch.float64)
    """
    _check_sizes(n_players, s1, s2)
    orders = torch.arange(n_players - 1, dtype=torch.float64)
    above = (s2 - 1 - orders).clamp(min=0)
    return above if s1 == 0 else torch.where(orders <= s1 - 1, (orders + 1) * (s2 / s1 - 1), above)


def nested_masks(
    batch: int,
    n_players: int,
    s1: int,
    s2: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """For each sample two random coalitions, the smaller inside the larger: the first players of one permutation.

    Args:
        batch: B, number of samples.
        n_players: n.
        s1: players in the smaller coalition, >= 0.
        s2: in the larger one, > s1, at most n.
        generator: of the permutations; None for the global one of ``device``.
        device: of the result; None for the generator's, or the default.

    Returns:
        S1 and S2, bool, ``(B, n)``.

    Raises:
        ValueError: not ``0 <= s1 < s2 <= n``.
    """
    _check_sizes(n_players, s1, s2)
    drawn_on = generator.device if generator is not None else device
    place = torch.rand(batch, n_players, generator=generator, device=drawn_on).argsort(1).argsort(1)
    if device is not None:
        place = place.to(device)
    return place < s1, place < s2


def _check_sizes(n_players: int, s1: int, s2: int) -> None:
    if not 0 <= s1 < s2 <= n_players:
        raise ValueError(f"coalitions must have 0 <= s1 < s2 <= {n_players} players, got s1={s1} and s2={s2}")


def order_loss(delta_u: Tensor, target: Tensor, mode: Literal["encourage", "penalize"]) -> Tensor:
    """L+ or L- of a batch: the orders in ``delta_u`` should classify, or should tell nothing.

    Args:
        delta_u: ``(B, C)``, logits of the larger coalition minus those of the smaller.
        target: int64, ``(B,)``; not used to penalise.
        mode: ``"encourage"``: cross-entropy; ``"penalize"``: minus the entropy, at least ``-ln C``.

    Returns:
        Scalar, the mean over the batch.

    Raises:
        ValueError: ``mode`` is unknown.

    >>> order_loss(torch.zeros(2, 4), torch.tensor([0, 1]), "penalize")
    tensor(-1.3863)
    """
    if mode == "encourage":
        return torch.nn.functional.cross_entropy(delta_u, target)
    if mode == "penalize":
        logarithms = delta_u.log_softmax(1)
        return (logarithms.exp() * logarithms).sum(1).mean()
    raise ValueError(f"`mode` must be 'encourage' or 'penalize', got {mode!r}")

"""Losses that encourage or penalise interactions of chosen orders (Deng et al., ICLR 2022, section 4)."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lit_papers.interactions.functional import nested_masks, order_loss
from lit_papers.interactions.outputs import find_outputs, two_logits
from lit_papers.interactions.players import Players

# What the authors train with to get networks of low, middle and high order (train.sh of their repository).
ORDER_BIAS: dict[str, dict[str, tuple[float, float]]] = {
    "normal": {},
    "low": {"penalize": (0.7, 1.0)},
    "mid": {"encourage": (0.3, 0.7)},
    "high": {"penalize": (0.0, 0.5)},
}


class InteractionOrderLoss(nn.Module):
    r"""Makes a network encode more, or fewer, interactions of the orders between two shares of the players.

    Each sample draws one permutation of the players; :math:`S_1 \subset S_2` are its first
    :math:`s_k = \lfloor r_k n \rfloor` ones. With the logits :math:`u` of the sample masked to them,

    .. math:: \Delta u = u(x_{S_2}) - q \, u(x_{S_1}), \qquad q = s_2 / s_1 \; (1 \text{ if } s_1 = 0)

    and the loss is the cross-entropy of :math:`\mathrm{softmax}(\Delta u)` with the true class to *encourage*, or the
    negative entropy of :math:`\mathrm{softmax}(\Delta u)`, which is at least :math:`-\ln C`, to *penalise*. In
    expectation :math:`\Delta u` contains the orders :math:`0 \ldots s_2 - 2`, most of all :math:`s_1 - 1`, with the
    weights of `lit_papers.interactions.functional.delta_u_weights` (Deng et al., ICLR 2022, section 4).

    The clean batch and both masked ones go through the model **side by side, as one batch** in its current mode: a
    masked batch by itself can be one image many times, of variance 0, by which batch norm would divide, so that
    gradients grow by 1 / sqrt(eps) = 316 a layer. No buffer of the model keeps what this pass did to it: running
    statistics and ``num_batches_tracked`` go on counting the ordinary passes alone.

    Args:
        players: what is masked.
        r1: share of the players in the smaller set, at least 0.
        r2: share of the players in the larger set, above ``r1`` and at most 1.
        mode: ``"encourage"`` or ``"penalize"``.
        weight: factor of the loss.
        ratio: ``"actual"`` takes :math:`s_2 / s_1` for :math:`q`, so that linear effects cancel; ``"nominal"`` takes
            :math:`r_2 / r_1`, as the authors' code does, which leaves a rest where :math:`r n` is rounded.
        baseline: what replaces absent players; 0 is the mean of normalised data.

    Raises:
        ValueError: a share is out of its range, the two sets have the same size, or ``mode`` or ``ratio`` is unknown.

    >>> from lit_papers.interactions.players import FeaturePlayers
    >>> loss = InteractionOrderLoss(FeaturePlayers(4), 0.5, 1.0, "penalize")
    >>> loss(nn.Linear(4, 2), torch.ones(8, 4), torch.zeros(8, dtype=torch.int64)).item() > -math.log(2)
    True
    """

    baseline: Tensor

    def __init__(
        self,
        players: Players,
        r1: float,
        r2: float,
        mode: Literal["encourage", "penalize"],
        weight: float = 1.0,
        ratio: Literal["actual", "nominal"] = "actual",
        baseline: float | Tensor = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= r1 < r2 <= 1:
            raise ValueError(f"shares of the players must satisfy 0 <= r1 < r2 <= 1, got r1={r1} and r2={r2}")
        if mode not in ("encourage", "penalize"):
            raise ValueError(f"mode={mode!r} is unknown; choose 'encourage' or 'penalize'")
        if ratio not in ("actual", "nominal"):
            raise ValueError(f"ratio={ratio!r} is unknown; choose 'actual' or 'nominal'")
        # 0.29 * 100 is a little less than 29
        self.s1, self.s2 = (math.floor(r * players.n_players + 1e-9) for r in (r1, r2))
        if self.s1 == self.s2:
            raise ValueError(
                f"r1={r1} and r2={r2} both mean {self.s1} of {players.n_players} players: move them apart, or take "
                "more players"
            )
        self.players = players
        self.r1 = r1
        self.r2 = r2
        self.mode = mode
        self.weight = weight
        self.ratio = ratio
        self.register_buffer("baseline", torch.as_tensor(baseline), persistent=False)  # moves to the model's device

    @property
    def q(self) -> float:
        """The factor of the smaller set's logits."""
        if self.s1 == 0:
            return 1.0
        return self.s2 / self.s1 if self.ratio == "actual" else self.r2 / self.r1

    def delta_u(self, model: nn.Module, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The difference of logits that contains the interactions.

        Args:
            model: a network whose output is, or holds, logits ``(B, C)`` or one logit ``(B,)`` of two classes.
            x: samples, ``(B, ...)``.
            generator: of the permutations, on the CPU; None draws from the global random state.

        Returns:
            Logits ``(B, C)``.

        Raises:
            ValueError: the smaller set is empty, and a layer of the model normalises each map by itself.
        """
        if self.s1 == 0:
            _check_norms(model)
        smaller, larger = nested_masks(len(x), self.players.n_players, self.s1, self.s2, generator, x.device)  # (B, n)
        baseline = self.baseline.to(x.dtype)
        together = torch.cat([x, self.players(x, smaller, baseline), self.players(x, larger, baseline)])  # (3 B, ...)
        # the model writes into copies of its buffers; putting old values back would break the backward pass
        copies: dict[str, Any] = {name: buffer.clone() for name, buffer in model.named_buffers()}
        logits = two_logits(find_outputs(functional_call(model, copies, (together,))))  # (3 B, C)
        _, u1, u2 = torch.split(logits, len(x))
        # under mixed precision logits are rounded already; their difference need not be
        wide = torch.promote_types(u1.dtype, torch.float32)
        difference: Tensor = u2.to(wide) - self.q * u1.to(wide)
        return difference

    def forward(self, model: nn.Module, x: Tensor, target: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The loss times ``weight``.

        Args:
            model: from a batch to logits ``(B, C)``.
            x: samples, ``(B, ...)``.
            target: true classes, int64, ``(B,)``.
            generator: of the permutations, on the CPU; None draws from the global random state.

        Returns:
            Scalar; a mean over the batch.
        """
        return self.weight * order_loss(self.delta_u(model, x, generator), target, self.mode)

    def extra_repr(self) -> str:
        """What ``print`` shows of the arguments."""
        return f"r1={self.r1}, r2={self.r2}, mode={self.mode!r}, weight={self.weight}, ratio={self.ratio!r}"


def _check_norms(model: nn.Module) -> None:
    """An image without players is constant; what normalises its maps one by one multiplies gradients without bound."""
    for name, layer in model.named_modules():
        instance = isinstance(layer, nn.modules.instancenorm._InstanceNorm)
        alone = instance or (isinstance(layer, nn.GroupNorm) and layer.num_groups == layer.num_channels)
        if alone and layer.affine:
            raise ValueError(
                f"r1 is so small that nothing of an image is left, and {name!r} ({type(layer).__name__}) divides each "
                "map by its standard deviation, which is 0 there: take r1 of one player or more, or another norm"
            )

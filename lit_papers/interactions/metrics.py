"""The strength of interactions, accumulated over batches and processes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_papers.accumulator import Float64Metric
from lit_papers.interactions.result import InteractionResult
from lit_papers.interactions.strength import Magnitudes, strength_curve


class RelativeInteractionStrength(Float64Metric):
    """S^(m) and J^(m) of all samples seen (Deng et al., ICLR 2022, section 2): J is a ratio of means.

    Args:
        orders: m of each column.
        metric_kwargs: as for `torchmetrics.Metric`.

    >>> metric = RelativeInteractionStrength([0, 3])
    >>> metric.update(torch.tensor([[1.0, -3.0], [-3.0, 9.0]]))
    >>> metric.compute()["relative_strength"]
    tensor([0.5000, 1.5000], dtype=torch.float64)
    """

    upper: Tensor
    lower: Tensor
    count: Tensor
    squared_error: Tensor
    squared_unseen: Tensor
    noise: Tensor
    rounding: Tensor

    def __init__(self, orders: Sequence[int], **metric_kwargs: Any) -> None:
        super().__init__(**metric_kwargs)
        self.orders = list(orders)
        for name in ("upper", "lower", "count", "squared_error", "squared_unseen", "noise", "rounding"):
            self.add_state(name, torch.zeros(len(self.orders), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, interactions: Tensor | InteractionResult) -> None:
        """Add interactions.

        Args:
            interactions: a result, whose errors count; or numbers without error, ``(..., M)``, a column for each order,
                in which NaN entries do not count.

        Raises:
            ValueError: there are other columns than orders.
        """
        self.writable()
        rows = interactions.magnitudes if isinstance(interactions, InteractionResult) else _without_error(interactions)
        if rows.upper.shape[-1] != len(self.orders):
            raise ValueError(f"`interactions` has {rows.upper.shape[-1]} columns for the {len(self.orders)} orders")
        rows = Magnitudes(*(part.to(self.upper.device) for part in rows))
        self.upper += rows.upper.sum(0)
        self.lower += rows.lower.sum(0)
        self.count += rows.number.sum(0)
        self.squared_error += (rows.number * rows.error).square().sum(0)
        self.squared_unseen += (rows.number * rows.unseen).square().sum(0)
        self.noise += (rows.number * rows.noise).sum(0)
        self.rounding += (rows.number * rows.rounding).sum(0)

    def compute(self) -> dict[str, Tensor]:
        """``strength``, ``relative_strength`` and ``noise_floor``, float64, ``(M,)``; their bands, ``(2, M)``.

        As in `lit_papers.interactions.strength.StrengthCurve`, under the same names.
        """
        together = Magnitudes(
            upper=self.upper,
            lower=self.lower,
            number=self.count,
            error=self.squared_error.sqrt() / self.count,
            unseen=self.squared_unseen.sqrt() / self.count,
            noise=self.noise / self.count,
            rounding=self.rounding / self.count,
        )
        curve = strength_curve(Magnitudes(*(part[None] for part in together)))
        names = ("strength", "strength_band", "relative_strength", "relative_band", "noise_floor")
        return {name: getattr(curve, name) for name in names}


def _without_error(interactions: Tensor) -> Magnitudes:
    rows = interactions.detach().abs().double().reshape(-1, interactions.shape[-1])
    upper, count = rows.nansum(0)[None], (~rows.isnan()).sum(0).double()[None]
    nothing = torch.zeros_like(upper)
    return Magnitudes(upper, upper, count, nothing, nothing, nothing, nothing)

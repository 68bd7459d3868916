"""The strength of interactions, accumulated over batches and processes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_papers.accumulator import Float64Metric
from lit_papers.interactions.functional import relative_strength


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

    magnitude: Tensor
    count: Tensor

    def __init__(self, orders: Sequence[int], **metric_kwargs: Any) -> None:
        super().__init__(**metric_kwargs)
        self.orders = list(orders)
        zeros = torch.zeros(len(self.orders), dtype=torch.float64)
        self.add_state("magnitude", zeros, dist_reduce_fx="sum")
        self.add_state("count", zeros.clone(), dist_reduce_fx="sum")

    def update(self, interactions: Tensor) -> None:
        """Add interactions.

        Args:
            interactions: ``(..., M)``, a column for each order; NaN entries do not count.

        Raises:
            ValueError: there are other columns than orders.
        """
        if interactions.shape[-1] != len(self.orders):
            raise ValueError(f"`interactions` has {interactions.shape[-1]} columns for the {len(self.orders)} orders")
        self.writable()
        rows = interactions.detach().abs().double().reshape(-1, len(self.orders)).to(self.magnitude.device)
        self.magnitude += rows.nansum(0)
        self.count += (~rows.isnan()).sum(0)

    def compute(self) -> dict[str, Tensor]:
        """``strength`` and ``relative_strength``, float64, ``(M,)``."""
        strength = self.magnitude / self.count
        return {"strength": strength, "relative_strength": relative_strength(strength)}

"""Class statistics gathered batch by batch, on any number of processes."""

from typing import Any

import torch
from torch import Tensor

from lit_papers.accumulator import Float64Metric
from lit_papers.neural_collapse.moments import (
    Moments,
    add_rows_,
    check_residual_dtype,
    merge_moments,
    recentre_,
    zero_moments,
)
from lit_papers.neural_collapse.statistics import ClassStatistics, check_batch, check_num_classes, statistics_of


class ClassStatisticsMetric(Float64Metric):
    r"""Counts, class means and within-class scatter of all batches, as if they had come at once.

    Accumulates :func:`~lit_papers.neural_collapse.functional.class_statistics` (the sufficient statistics of
    Han et al., ICLR 2022). The state is float64 and stays so whatever precision a surrounding module is cast
    to; it has ``(2 C + d)(d + 1)`` numbers. ``forward``, ``merge_state`` and synchronisation across processes
    give what one process would, up to rounding.

    Shapes:
        - ``update(features, targets)``: features ``(B, d)`` of any floating dtype, targets ``(B,)`` of any
          integer dtype with values in ``[0, C)``; ``B`` may be 0. Both may live on any device.
        - ``compute()``: a :class:`~lit_papers.neural_collapse.functional.ClassStatistics`.

    Args:
        num_classes: ``C``, at least 1.
        num_features: ``d``, at least 1.
        residual_dtype: of the matrix products; ``torch.float32`` for devices with slow float64, within the error bound
            of :func:`~lit_papers.neural_collapse.functional.class_statistics`. The state is float64 either way.
        **kwargs: arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: no class, no feature or another ``residual_dtype``; from ``update``, shapes that do not fit or a
            target outside ``[0, C)``; from ``compute``, no samples or non-finite features (not from ``update``: a
            process that stops in the middle of a pass would leave the others waiting).
        TypeError: from ``update``, features are not floating or targets are not integer.

    >>> metric = ClassStatisticsMetric(num_classes=2, num_features=1)
    >>> metric.update(torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]))
    >>> metric.update(torch.tensor([[3.0], [-3.0]]), torch.tensor([0, 1]))
    >>> metric.compute().means.tolist()
    [[2.0], [-2.0]]
    """

    moments: Tensor  # (2 C + d, d + 1): what `Moments.of` takes apart

    def __init__(
        self, num_classes: int, num_features: int, residual_dtype: torch.dtype = torch.float64, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_num_classes(num_classes)
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {num_features}")
        check_residual_dtype(residual_dtype)
        self.num_classes = num_classes
        self.residual_dtype = residual_dtype
        self.num_features = num_features
        # One tensor, because torchmetrics reduces every state on its own, and means need the counts.
        self.add_state("moments", default=zero_moments(num_classes, num_features), dist_reduce_fx=_merge_packed)
        # torchmetrics keeps a copy, which was written and so takes memory; zeros that nobody wrote take none.
        self._defaults["moments"] = zero_moments(num_classes, num_features)

    def update(self, features: Tensor, targets: Tensor) -> None:
        """Add a batch: features ``(B, d)`` and targets ``(B,)``."""
        check_batch(features, targets, self.num_classes)
        if features.shape[1] != self.num_features:
            raise ValueError(f"features must have shape (B, {self.num_features}), got {tuple(features.shape)}")
        self.writable()
        moments = Moments.of(self.moments)
        add_rows_(moments, features, targets, self.residual_dtype, blocks_before=self.update_count - 1)

    def compute(self) -> ClassStatistics:
        """Statistics of everything seen so far, on all processes."""
        self.writable()
        return statistics_of(Moments.of(self.moments))  # recentring changes what the state is, not what it means


def _merge_packed(stacked: Tensor) -> Tensor:
    """Merge the states of several processes, shape (processes, 2 C + d, d + 1), into one."""
    merged = stacked[0].clone()
    recentre_(Moments.of(merged))
    for other in stacked[1:]:
        part = other.clone()
        recentre_(Moments.of(part))
        merge_moments(Moments.of(merged), Moments.of(part))
    return merged

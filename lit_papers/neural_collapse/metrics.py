"""Class statistics gathered batch by batch, on any number of processes."""

from functools import partial
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
    to; it has ``2 C (1 + d) + d^2`` numbers. ``forward``, ``merge_state`` and synchronisation across processes
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

    moments: Tensor  # what `Moments.of` takes apart

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
        merge = partial(_merge_packed, num_classes)
        self.add_state("moments", default=zero_moments(num_classes, num_features), dist_reduce_fx=merge)
        # torchmetrics keeps a copy, as large as the state: one zero is enough, which `reset` copies to its full length
        self._defaults["moments"] = self.moments.new_zeros(()).expand(self.moments.shape)

    def update(self, features: Tensor, targets: Tensor) -> None:
        """Add a batch: features ``(B, d)`` and targets ``(B,)``."""
        check_batch(features, targets, self.num_classes)
        if features.shape[1] != self.num_features:
            raise ValueError(f"features must have shape (B, {self.num_features}), got {tuple(features.shape)}")
        self.writable()
        moments = Moments.of(self.moments, self.num_classes)
        add_rows_(moments, features, targets, self.residual_dtype, blocks_before=self.update_count - 1)

    def compute(self) -> ClassStatistics:
        """Statistics of everything seen so far, on all processes."""
        self.writable()
        # recentring changes what the state is, not what it means
        return statistics_of(Moments.of(self.moments, self.num_classes))


def _merge_packed(num_classes: int, stacked: Tensor) -> Tensor:
    """Merge the states of several processes, shape (processes, length), into one."""
    merged = stacked[0].clone()
    whole = Moments.of(merged, num_classes)
    recentre_(whole)
    for other in stacked[1:]:
        part = Moments.of(other.clone(), num_classes)
        recentre_(part)
        merge_moments(whole, part)
    return merged

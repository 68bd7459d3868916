"""A learning rate that is constant between given steps."""

from bisect import bisect_right
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class PiecewiseConstantLR(LambdaLR):
    """Multiply the learning rate by ``factors[i]`` from milestone ``i`` on, as in the official CIFAR run.

    ``MultiStepLR`` multiplies by one factor throughout, so it cannot warm up.

    Args:
        optimizer: whose learning rate is the unit.
        milestones: increasing steps at which the factor changes.
        factors: one more than there are milestones.
        last_epoch: the step before the first, -1 for a new run.

    Raises:
        ValueError: lengths do not fit, or milestones do not increase.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    >>> schedule = PiecewiseConstantLR(optimizer, milestones=[2, 3], factors=[0.1, 1, 0.5])
    >>> rates = []
    >>> for _ in range(4):
    ...     rates.append(optimizer.param_groups[0]["lr"])
    ...     optimizer.step()
    ...     schedule.step()
    >>> [round(rate, 3) for rate in rates]
    [0.01, 0.01, 0.1, 0.05]
    """

    def __init__(
        self, optimizer: Optimizer, milestones: Sequence[int], factors: Sequence[float], last_epoch: int = -1
    ) -> None:
        if len(factors) != len(milestones) + 1:
            raise ValueError(f"`factors` must be one more than `milestones`, got {len(factors)} and {len(milestones)}")
        if sorted(set(milestones)) != list(milestones):
            raise ValueError(f"`milestones` must increase, got {list(milestones)}")
        super().__init__(optimizer, lambda step: factors[bisect_right(milestones, step)], last_epoch)

"""How far apart the machines of local SGD have drifted."""

import torch
from torch import Tensor


def consensus_distance(local: Tensor, average: Tensor) -> Tensor:
    r"""Squared distance of one machine's parameters from the average of all machines.

    .. math:: \|x_m - \bar x\|^2

    Its mean over the machines m is the drift that local SGD pays for with its sync interval B (Yun, Rajput & Sra,
    ICLR 2022). It is summed from differences: :math:`\sum_m \|x_m\|^2 - M \|\bar x\|^2` would cancel.

    Args:
        local: parameters of this machine, any shape.
        average: the average, same shape.

    Returns:
        Scalar float64 tensor, shape ``()``, >= 0.

    Raises:
        ValueError: the shapes differ.

    >>> consensus_distance(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0]))
    tensor(5., dtype=torch.float64)
    """
    if local.shape != average.shape:
        raise ValueError(f"local and average must have one shape, got {tuple(local.shape)} and {tuple(average.shape)}")
    return (local.to(torch.float64) - average.to(torch.float64)).square().sum()

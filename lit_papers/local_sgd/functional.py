"""How far the machines of local SGD have drifted apart, and what they may round away when they average."""

from collections.abc import Iterable

import torch
from torch import Tensor

# Numbers whose differences, and their float64 copies, are in memory at a time: few enough for a CPU's cache; on other
# devices many, so that there are few kernels.
_BLOCK, _LARGE_BLOCK = 2**16, 2**24


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

    >>> round(consensus_distance(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])).item(), 6)
    5.0
    """
    if local.shape != average.shape:
        raise ValueError(f"local and average must have one shape, got {tuple(local.shape)} and {tuple(average.shape)}")
    size = _block(local)
    blocks = zip(torch.split(local.reshape(-1), size), torch.split(average.reshape(-1), size), strict=True)
    return _squared_lengths(mine - mean for mine, mean in blocks)


def squared_norm(values: Tensor) -> Tensor:
    """Squared Euclidean norm of a tensor of any shape, float64 with shape ``()``, without a float64 copy of it.

    >>> squared_norm(torch.tensor([[3.0, 4.0]]))
    tensor(25., dtype=torch.float64)
    """
    return _squared_lengths(torch.split(values.reshape(-1), _block(values)))


def _block(values: Tensor) -> int:
    return _BLOCK if values.device.type == "cpu" else _LARGE_BLOCK


def _squared_lengths(blocks: Iterable[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(block, dtype=torch.float64) for block in blocks]).square().sum()


def round_to_bfloat16(change: Tensor, owed: Tensor) -> Tensor:
    """Round a change to bfloat16, with error feedback: what was owed is added, and what rounding takes is owed next.

    Args:
        change: any shape.
        owed: same shape and type; replaced by the error of this rounding.

    Returns:
        bfloat16, the shape of ``change``.

    >>> owed = torch.zeros(1)
    >>> [round_to_bfloat16(torch.tensor([1.001]), owed).item() for _ in range(6)]  # steps of 2**-7 above 1, 2**-8 below
    [1.0, 1.0, 1.0, 1.0078125, 0.99609375, 1.0]
    """
    exact = change + owed
    rounded = exact.to(torch.bfloat16)
    torch.sub(exact, rounded.to(exact.dtype), out=owed)
    return rounded

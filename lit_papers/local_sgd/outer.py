"""The step that follows an average: SlowMo's and DiLoCo's outer optimizer."""

from collections.abc import Callable, Iterable

from torch import Tensor
from torch.optim import Optimizer

OuterOptimizer = Callable[[Iterable[Tensor]], Optimizer]


class OuterStep:
    r"""Takes the way from the last average to the new one for a gradient, and steps an optimizer on it.

    With the anchor :math:`a` (the weights that all ranks started the round from) and their new mean :math:`\bar x`,
    the pseudo-gradient is :math:`a - \bar x`; SGD with learning rate 1 and no momentum is plain averaging. SGD with
    Nesterov momentum is DiLoCo (Douillard et al. 2023), SGD with momentum SlowMo (Wang et al. 2020) at a constant
    inner learning rate. The same deterministic step is taken on every rank, so nothing is sent.

    Args:
        optimizer: from parameters to an optimizer that works number by number; it is given one flat tensor.
        anchor: the trained weights as one flat tensor, shape ``(P,)``; moved in place.
    """

    def __init__(self, optimizer: OuterOptimizer, anchor: Tensor) -> None:
        self.anchor = anchor.requires_grad_()
        self.optimizer = optimizer([self.anchor])

    def step(self, average: Tensor) -> None:
        """Replace the new average, shape ``(P,)``, by where the outer optimizer goes."""
        self.anchor.grad = self.anchor.detach() - average
        self.optimizer.step()
        self.anchor.grad = None
        average.copy_(self.anchor.detach())

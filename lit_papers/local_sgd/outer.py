"""The step that follows an average: SlowMo's and DiLoCo's outer optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
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
        weights: all trained weights as one flat tensor, shape ``(P,)``; the first anchor.
    """

    def __init__(self, optimizer: OuterOptimizer, weights: Tensor) -> None:
        self.anchor = weights.clone().requires_grad_()
        self.optimizer = optimizer([self.anchor])

    def follow(self, weights: Tensor) -> None:
        """Start from these weights, shape ``(P,)``: they moved while no outer step was due."""
        self.anchor.detach().copy_(weights)

    def step(self, average: Tensor) -> None:
        """Replace the new average, shape ``(P,)``, by where the outer optimizer goes.

        Raises:
            RuntimeError: the number of trained weights has changed since the first round.
        """
        if average.shape != self.anchor.shape:
            raise RuntimeError(
                f"outer_optimizer follows {self.anchor.numel()} trained numbers, now there are {average.numel()}: "
                "parameters cannot join or leave the optimizers during the fit"
            )
        self.anchor.grad = self.anchor.detach() - average
        self.optimizer.step()
        self.anchor.grad = None
        average.copy_(self.anchor.detach())

    def state_dict(self) -> dict[str, Any]:
        """The anchor and the optimizer's state; the same on every rank."""
        return {"anchor": self.anchor.detach().cpu().clone(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved anchor and optimizer.

        Raises:
            RuntimeError: the checkpoint is of another number of trained weights.
        """
        if state["anchor"].shape != self.anchor.shape:
            raise RuntimeError(
                f"the checkpoint's outer_optimizer follows {state['anchor'].numel()} trained numbers, now there are "
                f"{self.anchor.numel()}"
            )
        with torch.no_grad():
            self.anchor.copy_(state["anchor"])
        self.optimizer.load_state_dict(state["optimizer"])

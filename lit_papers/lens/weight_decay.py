"""What weight decay adds to the loss that is minimised, for optimizers of which this is known."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, optim

from lit_papers.lens.refusal import NotApplicable

# of exactly these classes: a subclass may do anything
_COUPLED = frozenset(
    (optim.SGD, optim.Adam, optim.RMSprop, optim.Adagrad, optim.Adadelta, optim.Adamax, optim.NAdam, optim.RAdam,
     optim.ASGD)
)  # fmt: skip
_DECOUPLED = frozenset((optim.AdamW, optim.Adafactor, *([optim.Muon] if hasattr(optim, "Muon") else [])))
_WITHOUT = frozenset((optim.LBFGS, optim.Rprop, optim.SparseAdam))  # know no weight decay


@dataclass(frozen=True)
class Decay:
    """How a parameter decays.

    Attributes:
        strength: ``weight_decay`` of its group.
        decoupled: it is taken from the weights apart from the gradient, and so minimises no L2 term.
    """

    strength: float
    decoupled: bool


def decay_of(parameter: Tensor, optimizers: Sequence[optim.Optimizer], *, strict: bool = True) -> Decay | None:
    """Weight decay of the group that a parameter is in; None if it is in none, or frozen: optimizers pass that by.

    Args:
        parameter: of the network itself.
        optimizers: of the trainer.
        strict: refuse where an optimizer is not known; else its decay is taken as coupled.

    Raises:
        NotApplicable: the optimizer is of a class of which it is not known whether its decay is an L2 term.

    >>> weight = Tensor([1.0]).requires_grad_()
    >>> decay_of(weight, [optim.SGD([weight], lr=0.1, weight_decay=0.01)])
    Decay(strength=0.01, decoupled=False)
    """
    if not parameter.requires_grad:
        return None
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if not any(member is parameter for member in group["params"]):
                continue
            strength = group.get("weight_decay")
            if type(optimizer) in _WITHOUT or (strength is not None and float(strength) == 0.0):
                return Decay(0.0, False)
            if type(optimizer) in _DECOUPLED or group.get("decoupled_weight_decay"):
                return Decay(float(strength or 0.0), True)
            if type(optimizer) in _COUPLED or not strict:
                return Decay(float(strength or 0.0), False)
            raise NotApplicable(
                f"whether the weight decay of {type(optimizer).__name__} is an L2 term of the loss is not known: pass "
                "`lam` (0 for decoupled decay)"
            )
    return None

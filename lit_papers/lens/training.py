"""What a training minimises, as its own step shows it."""

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from lit_papers.lens.batches import belongs_to, class_indices, tensors_in
from lit_papers.lens.linears import linear_calls, maker_of
from lit_papers.lens.losses import LossCall, LossWatch
from lit_papers.lens.refusal import NotApplicable
from lit_papers.lens.routes import step_arguments

_ROUNDING = 32  # units in the last place of the outputs, by which a gradient may be off


@dataclass(frozen=True)
class TrainingLoss:
    """A loss on the output of the head, as ``training_step`` computes it.

    Attributes:
        name: as in `LossCall`.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        factor: d (returned loss) / d (this loss), so 1 where it is returned as it is; None where that is unknown
            (manual optimisation, ``reduction="none"``).
        one_hot: whether its targets are class indices or one-hot rows; scaled, centred, smoothed or mixed ones are not.
        alone: whether no other term of the returned loss depends on the head itself, as a penalty written into the step
            does; True where ``factor`` is unknown.
    """

    name: str
    reduction: str
    factor: float | None
    one_hot: bool = True
    alone: bool = True


def training_loss(network: nn.Module, batch: Any, head: str, *, in_training: bool) -> TrainingLoss | None:
    """Run ``training_step`` of a copy once and see which loss it computes on the output of the head.

    Args:
        network: a copy that is thrown away afterwards.
        batch: as the module gets it.
        head: dotted path of the last layer.
        in_training: put the copy into training mode first, for outputs that exist in training only.

    Returns:
        The loss; None where there is no such step, it raises before any loss, the loss is none that we know, or
        several different ones act on the head. Unknown means unknown.
    """
    if not (isinstance(network, LightningModule) and is_overridden("training_step", network)):
        return None
    if in_training:
        network.train()
    returned: Any = None
    with torch.enable_grad(), linear_calls(network, only=head) as linears, LossWatch() as watch:
        try:
            returned = network.training_step(*step_arguments(network.training_step, batch))
        except Exception:  # what it did before is known all the same
            returned = None
    on_head = [call for call in watch.calls if isinstance(call.outputs, Tensor) and maker_of(call.outputs, linears)]
    in_batch = tensors_in(batch)
    own = [call for call in on_head if belongs_to(call.targets, in_batch)] or on_head
    if not own or len({(call.name, call.reduction) for call in own}) > 1:
        return None
    loss = returned.get("loss") if isinstance(returned, dict) else returned
    factor = _factor(loss, own)
    alone = (
        factor is None or not isinstance(loss, Tensor) or _is_alone(loss, own[0], factor, network.get_submodule(head))
    )
    one_hot = all(_are_classes(call.targets, call.outputs.shape[-1]) for call in own)
    return TrainingLoss(own[0].name, own[0].reduction, factor, one_hot, alone)


def _factor(loss: Any, calls: list[LossCall]) -> float | None:
    if not isinstance(loss, Tensor) or loss.grad_fn is None or any(call.value.ndim for call in calls):
        return None
    grads = torch.autograd.grad(loss, [call.value for call in calls], retain_graph=True, allow_unused=True)
    factors = [0.0 if grad is None else float(grad) for grad in grads]
    return factors[0] if len(factors) == 1 else None


def _is_alone(loss: Tensor, call: LossCall, factor: float, head: nn.Module) -> bool:
    """Whether the head's gradient is that of one loss, up to rounding."""
    parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
    if not parameters or call.value.grad_fn is None:
        return True
    whole, part = (
        torch.autograd.grad(each, parameters, retain_graph=True, allow_unused=True) for each in (loss, call.value)
    )
    tolerance = _ROUNDING * torch.finfo(call.outputs.dtype).eps
    for one, other in zip(whole, part, strict=True):
        one, other = (torch.zeros(()) if grad is None else grad.double().cpu() for grad in (one, other))
        if (one - factor * other).norm() > tolerance * torch.maximum(one.norm(), abs(factor) * other.norm()):
            return False
    return True


def _are_classes(targets: Tensor, classes: int) -> bool:
    try:
        class_indices(targets, classes)
    except NotApplicable:
        return False
    return True

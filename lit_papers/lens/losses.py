"""Which outputs a step compares with which targets, and by which loss: seen while the step runs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# by function, so that nn.CrossEntropyLoss and F.cross_entropy are the same; other losses go unseen, which is no harm
_NAMES: dict[Callable[..., Any], str] = {
    functional.cross_entropy: "cross_entropy",
    functional.nll_loss: "nll",
    functional.mse_loss: "mse",
    functional.binary_cross_entropy_with_logits: "binary_cross_entropy",
    functional.multi_margin_loss: "multi_margin",
}
# operations that keep the logits the logits: casts, views, and the normalisation before `nll_loss`
_KEEPING: frozenset[Any] = frozenset(
    (
        Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.to, Tensor.type_as, Tensor.contiguous,
        Tensor.view, Tensor.reshape, Tensor.squeeze, Tensor.unsqueeze, Tensor.flatten, Tensor.detach, Tensor.clone,
        Tensor.log_softmax, torch.squeeze, torch.unsqueeze, torch.flatten, torch.reshape, torch.log_softmax,
        functional.log_softmax,
    )
)  # fmt: skip


@dataclass(frozen=True)
class LossCall:
    """One call of a known loss function.

    Attributes:
        name: ``"cross_entropy"``, ``"nll"``, ``"mse"``, ``"weighted_mse"``, ``"binary_cross_entropy"`` or
            ``"multi_margin"``.
        outputs: what was compared, traced back through casts, views and ``log_softmax``.
        targets: with what.
        value: the loss.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: class index of samples that the loss leaves out, where it has one.
    """

    name: str
    outputs: Tensor
    targets: Tensor
    value: Tensor
    reduction: str
    ignore_index: int | None


class EnoughSeen(BaseException):  # no error, and not for a stranger's ``except Exception``
    """Ends a step whose loss has been seen: its metrics and logs are not wanted."""


class LossWatch(TorchFunctionMode):
    """Collects the calls of a handful of loss functions while it is entered.

    Losses written by hand, scripted, or compiled are not seen. Nothing is changed about what runs.

    Args:
        enough: raise `EnoughSeen` behind the call of this number, counted from 0; None lets everything run.

    Attributes:
        calls: in the order in which they were made.

    >>> with LossWatch() as watch:
    ...     _ = torch.nn.functional.nll_loss(torch.zeros(2, 3).log_softmax(1), torch.tensor([0, 1]))
    >>> watch.calls[0].name, watch.calls[0].outputs.tolist()[0]
    ('nll', [0.0, 0.0, 0.0])
    """

    def __init__(self, enough: int | None = None) -> None:
        super().__init__()
        self.enough = enough
        self.calls: list[LossCall] = []
        self._origins: dict[int, Tensor] = {}
        self._alive: list[Tensor] = []  # an id must not be given to another tensor meanwhile

    def origin(self, tensor: Tensor) -> Tensor:
        """What a tensor was before casts, views and ``log_softmax``."""
        return self._origins.get(id(tensor), tensor)

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, and note it if it is a loss or keeps the logits the logits."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _KEEPING:
            source = args[0] if args else kwargs.get("input")
            if isinstance(source, Tensor) and isinstance(result, Tensor):
                self._origins[id(result)] = self.origin(source)
                self._alive += [result, source]
        elif func in _NAMES:
            outputs = args[0] if args else kwargs["input"]
            targets = args[1] if len(args) > 1 else kwargs["target"]
            # -100 is torch's own default
            ignore = kwargs.get("ignore_index", -100) if _NAMES[func] in ("cross_entropy", "nll") else None
            reduction = kwargs.get("reduction", "mean")
            name = _NAMES[func]
            if name == "mse" and kwargs.get("weight") is not None:
                name = "weighted_mse"
            self.calls.append(LossCall(name, self.origin(outputs), targets, result, reduction, ignore))
            if self.enough is not None and len(self.calls) > self.enough:
                raise EnoughSeen
        return result

"""What rounding inside a network does to the difference of four of its outputs."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_FOUR = 2.0  # an error of four independent values, by that of one
_LARGEST = 200_000_000  # parameters of which a copy in double precision is made


class Rounding:
    """Measures rounding by running a few inputs through a copy of the network in double precision.

    Where no such copy can be made (the network is in double precision itself, is no module, is too large, or computes in
    a type of its own), rounding is taken to be that of the outputs.

    Args:
        model: the network, in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._precise: Any = None
        self._tried = False

    def measure(self, least: float, values: Tensor, respond: Callable[[Any], Tensor]) -> float:
        """Standard deviation of the error of one difference of four values.

        Averaging over contexts is not counted on: inputs that are alike have rounding errors that are alike.

        Args:
            least: by which the network's outputs are rounded, if nothing inside it is.
            values: of R inputs, float64, ``(R,)``.
            respond: from a network to its values of these inputs.

        Returns:
            In the units of the values; at least ``least``.
        """
        precise = self._copy()
        if precise is not None:
            try:
                error = (respond(precise) - values).square().mean().sqrt().item()
            except (RuntimeError, TypeError, NotImplementedError):  # an operation without double precision
                self._precise = None
            else:
                return max(least, _FOUR * error) if error == error else _FOUR * least
        return _FOUR * least

    def _copy(self) -> Any:
        if not self._tried:
            self._tried = True
            self._precise = _in_double(self._model)
        return self._precise


def _in_double(model: Any) -> Any:
    if not isinstance(model, nn.Module):
        return None
    kinds = {parameter.dtype for parameter in model.parameters()}
    size = sum(parameter.numel() for parameter in model.parameters())
    if not kinds or torch.float64 in kinds or size > _LARGEST or any(p.device.type == "mps" for p in model.parameters()):
        return None
    try:
        return copy.deepcopy(model).double()
    except Exception:  # what a stranger's module holds may refuse to be copied, in any way
        return None

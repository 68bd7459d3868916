"""What rounding inside a network does to the difference of four of its outputs."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_FOUR = 2.0  # an error of four independent values, by that of one
_LARGEST = 200_000_000  # parameters of which a copy in double precision is made


class Rounding:
    """Measures rounding by running a few inputs through a copy of the network in another precision.

    The copy is in double precision; of a network that is in double precision itself, it is in single precision, and
    its error is scaled by the ratio of both, as rounding errors are proportional to the unit of rounding. Where no such
    copy can be made (the network is no module, is too large, or computes in a type of its own), rounding is taken to be
    that of the outputs.

    Args:
        model: the network, in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._tried = False
        self._copy: Any = None
        self._dtype = torch.float64
        self._scale = 1.0

    def measure(self, least: float, values: Tensor, respond: Callable[[Any, torch.dtype], Tensor]) -> float:
        """Standard deviation of the error of one difference of four values.

        Averaging over contexts is not counted on: inputs that are alike have rounding errors that are alike.

        Args:
            least: by which the network's outputs are rounded, if nothing inside it is.
            values: of R inputs, float64, ``(R,)``.
            respond: from a network and a type of floats to its values of these inputs in that type.

        Returns:
            In the units of the values; at least ``least``.
        """
        if not self._tried:
            self._tried = True
            self._prepare()
        if self._copy is not None:
            try:
                error = self._scale * (respond(self._copy, self._dtype) - values).square().mean().sqrt().item()
            except (RuntimeError, TypeError, NotImplementedError):  # an operation without this precision
                self._copy = None
            else:
                return max(least, _FOUR * error) if math.isfinite(error) else _FOUR * least
        return _FOUR * least

    def _prepare(self) -> None:
        parameters = list(self._model.parameters()) if isinstance(self._model, nn.Module) else []
        size = sum(parameter.numel() for parameter in parameters)
        if not parameters or size > _LARGEST or any(parameter.device.type == "mps" for parameter in parameters):
            return
        if any(parameter.dtype == torch.float64 for parameter in parameters):
            self._dtype = torch.float32
            self._scale = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        try:
            self._copy = copy.deepcopy(self._model).to(self._dtype)
        except Exception:  # what a stranger's module holds may refuse to be copied, in any way
            self._copy = None

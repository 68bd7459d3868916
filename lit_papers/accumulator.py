"""What every metric of ours needs from torchmetrics and does not get: a float64 state that stays float64."""

from abc import ABC
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric


def float64_device(device: torch.device) -> torch.device:
    """Where float64 can be computed: the device itself, or the CPU beside one that has no float64 (Apple's GPUs).

    >>> float64_device(torch.device("mps"))
    device(type='cpu')
    """
    return torch.device("cpu") if device.type == "mps" else device


class Float64Metric(Metric, ABC):
    """A ``torchmetrics.Metric`` whose float64 states survive casts, inference mode and merging.

    A subclass adds its float64 states with ``add_state``, and calls `writable` at the head of ``update``. What it gets:

    - ``.half()``, ``.to(torch.bfloat16)``, also through a parent module as Lightning's ``bf16-true`` does it, move the
      states but leave their precision: digits that a cast has taken do not come back;
    - states first touched in inference mode can be updated outside it;
    - ``merge_state`` drops the result that torchmetrics keeps from before.

    ``tests/metric.py`` checks all of it, and merging over processes, for any metric.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    def writable(self) -> None:
        """Replace states that inference mode made, which PyTorch forbids to change in place outside of it."""
        if torch.is_inference_mode_enabled():
            return
        for name in self._defaults:
            state = getattr(self, name)
            if isinstance(state, Tensor) and state.is_inference():
                setattr(self, name, state.clone())

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the state of another metric of the same sizes, or its ``metric_state``."""
        super().merge_state(incoming_state)
        self._computed = None

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        def move(tensor: Tensor) -> Tensor:
            device = fn(torch.empty(0, device=tensor.device)).device
            return tensor.to(float64_device(device) if tensor.dtype == torch.float64 else device)

        module: nn.Module = super()._apply(move, exclude_state)
        return module

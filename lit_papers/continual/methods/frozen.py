"""A network as it was, which methods compare with."""

import copy
from typing import Any

from torch import Tensor, nn


class FrozenCopy(nn.Module):
    """A copy of a network, out of the reach of optimizers and of DDP; its weights travel in ``state_dict``.

    >>> frozen = FrozenCopy()
    >>> net = nn.Linear(2, 2)
    >>> frozen.take(net)
    >>> len(list(frozen.parameters())), frozen.empty, bool((frozen.of(net).weight == net.weight).all())
    (0, False, True)
    """

    def __init__(self) -> None:
        super().__init__()
        self._held: tuple[nn.Module, ...] = ()  # a tuple, so that it is no submodule
        self._weights: dict[str, Tensor] | None = None  # restored, but not yet in a network

    @property
    def empty(self) -> bool:
        """Whether nothing was taken yet."""
        return not self._held and self._weights is None

    def take(self, network: nn.Module) -> None:
        """Copy a network as it is now, in evaluation mode."""
        copied = copy.deepcopy(network).eval().requires_grad_(False)
        copied.zero_grad(set_to_none=True)
        self._held, self._weights = (copied,), None

    def of(self, network: nn.Module) -> nn.Module:
        """The copy; after a resume it is built like ``network``.

        Raises:
            RuntimeError: nothing was taken yet.
        """
        if self.empty:
            raise RuntimeError("no network was kept yet")
        if self._weights is not None:
            weights = self._weights
            self.take(network)
            self._held[0].load_state_dict(weights)
        device = next(network.parameters()).device
        return self._held[0].to(device)

    def get_extra_state(self) -> dict[str, Any]:
        """The weights, or None."""
        if self._held:
            return {"weights": dict(self._held[0].state_dict())}
        return {"weights": self._weights}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up the weights of a ``state_dict``."""
        self._held, self._weights = (), state["weights"]


def batch_statistics(network: nn.Module) -> nn.Module:
    """Let batch norm use the statistics of each batch, and keep those it has."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
            module.momentum = 0.0
    return network

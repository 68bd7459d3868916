"""The network that was never trained, as a control."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lit_papers.lens.streams import streams_kept

_TOLERATED = 0.1  # of the parameters, such as position embeddings, which may stay as they are


@contextmanager
def fresh_weights(network: nn.Module, seed: int) -> Iterator[str | None]:
    """The network with weights as its layers begin with, in place; afterwards bit by bit what it was.

    Every layer that can reset itself (``reset_parameters``, as all of torch's) does, under a fixed seed; random streams
    go on as if nothing had been drawn.

    Args:
        network: a stranger's.
        seed: of the weights.

    Yields:
        None, or why there are no such weights; the network is then as it was.
    """
    resets = [
        (layer, getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None))
        for layer in network.modules()
    ]
    whole = sum(parameter.numel() for parameter in network.parameters())
    kept = sum(
        parameter.numel() for layer, reset in resets if reset is None for parameter in layer.parameters(recurse=False)
    )
    if not whole or kept > _TOLERATED * whole:
        share = 100 * kept / whole if whole else 100
        yield f"{share:.0f} % of the parameters are of layers without `reset_parameters`"
        return
    before = [(tensor, tensor.detach().clone()) for tensor in (*network.parameters(), *network.buffers())]
    failure: str | None = None
    try:
        with streams_kept(seed=seed), torch.no_grad():
            try:
                for _, reset in resets:
                    if reset is not None:
                        reset()
            except Exception as error:  # a stranger's
                failure = f"`reset_parameters` raised {type(error).__name__}: {error}"
        yield failure
    finally:
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)

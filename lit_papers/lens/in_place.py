"""Looking at a network that is too large to be copied."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def left_as_it_was(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards modes, through a module's own ``train``, and buffers are what they were.

    Buffers are restored by name, so that one that ``forward`` replaced is the old tensor again. Parameters are not
    watched: call nothing that trains.
    """
    modes = [(submodule, submodule.training) for submodule in network.modules()]
    buffers = [
        (submodule, name, buffer, buffer.clone())
        for submodule in network.modules()
        for name, buffer in submodule._buffers.items()
        if buffer is not None
    ]
    try:
        network.eval()
        yield
    finally:
        network.train(modes[0][1])  # its own: an adapter takes its weights apart here
        for submodule, mode in modes:
            submodule.training = mode  # and this for submodules that are frozen on their own
        with torch.no_grad():
            for submodule, name, buffer, before in buffers:
                buffer.copy_(before)
                submodule._buffers[name] = buffer

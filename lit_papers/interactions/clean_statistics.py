"""Batch norm on masked inputs, with the statistics of the clean ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm


def clean_buffers(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Copies of a model's buffers in which batch norm's statistics are those of one batch.

    A masked batch can be one image many times, of variance 0, by which batch norm would divide: gradients grow by
    1 / sqrt(eps) = 316 a layer. So masked inputs are normalised as the clean ones are. Layers in evaluation mode keep
    their running statistics. One more pass, without gradient.

    Args:
        model: any network; it is left as it is.
        x: the clean batch.

    Returns:
        By name, for `torch.func.functional_call`.

    Raises:
        ValueError: a batch norm in training mode keeps no statistics, so it knows the masked batch alone.
    """
    copies = {name: buffer.clone() for name, buffer in model.named_buffers()}
    layers = _training_norms(model)
    if not layers:
        return copies
    for name, layer in layers.items():
        if layer.running_mean is None:
            raise ValueError(
                f"the batch norm `{name}` has track_running_stats=False and normalises masked images by themselves, which "
                "are all the same where all players are absent: let it track statistics, or take GroupNorm"
            )
    recorded = {name: buffer.clone() for name, buffer in copies.items()}
    momenta = {name: layer.momentum for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.momentum = None  # the mean over all uses of the layer in this pass, and nothing from before
            recorded[f"{name}.num_batches_tracked"].zero_()
        with torch.no_grad():
            functional_call(model, dict(recorded), (x,))
    finally:
        for name, layer in layers.items():
            layer.momentum = momenta[name]
    for name in layers:
        for statistic in ("running_mean", "running_var"):
            copies[f"{name}.{statistic}"] = recorded[f"{name}.{statistic}"]
    return copies


@contextmanager
def fixed_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norm takes the statistics it keeps, while everything else stays in training mode."""
    layers = list(_training_norms(model).values())
    try:
        for layer in layers:
            layer.training = False
        yield
    finally:
        for layer in layers:
            layer.training = True


def _training_norms(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm) and module.training}

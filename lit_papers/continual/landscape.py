"""A slice of the loss around a trained network, along filter-normalised directions (Li et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from lit_papers.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Landscape(NamedTuple):
    """Loss over a square of weights.

    Attributes:
        alpha: steps along the first direction, ``(S,)``.
        beta: steps along the second, ``(S,)``.
        loss: ``loss[i, j]`` at ``alpha[i]`` and ``beta[j]``, ``(S, S)``.
    """

    alpha: Tensor
    beta: Tensor
    loss: Tensor

    def plot(self) -> Figure:
        """Contours of the loss, with the trained weights in the middle.

        Raises:
            ImportError: matplotlib is missing.
        """
        figure, (axis,) = new_figure(1, 1)
        contours = axis.contour(
            self.beta.numpy(), self.alpha.numpy(), self.loss.numpy(), levels=12, colors="black",
            linestyles="solid", linewidths=0.8,
        )  # fmt: skip
        axis.clabel(contours, fontsize=7)  # the numbers tell, where colours do not
        axis.plot(0, 0, "k+")
        axis.set_xlabel("step along direction 2 (filter norms)")
        axis.set_ylabel("step along direction 1 (filter norms)")
        axis.set_title("loss")
        return figure


def filter_normalized_direction(model: nn.Module, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """A Gaussian direction in which each filter is as long as the network's own.

    A filter is one index of the first dimension of a tensor with at least two; tensors with fewer (biases, batch
    norm) get zeros.

    Args:
        model: the network.
        generator: of the draw, on the CPU; None is torch's own.

    Returns:
        One tensor for each parameter, by name, with its shape and device.

    >>> direction = filter_normalized_direction(nn.Linear(3, 2))
    >>> direction["weight"].shape, direction["bias"].abs().sum().item()
    (torch.Size([2, 3]), 0.0)
    """
    direction = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        if value.dim() < 2:
            direction[name] = torch.zeros_like(value)
            continue
        drawn = torch.randn(value.shape, generator=generator).to(value)
        lengths = drawn.flatten(1).norm(dim=1).clamp_min(torch.finfo(value.dtype).tiny)
        scale = value.flatten(1).norm(dim=1) / lengths
        direction[name] = drawn * scale.view(-1, *[1] * (value.dim() - 1))
    return direction


def loss_landscape(
    model: nn.Module, loss_fn: Callable[[nn.Module], Tensor], steps: int = 21, span: float = 1.0, seed: int = 0
) -> Landscape:
    """Evaluate the loss on a square around the weights.

    Args:
        model: the network; weights and buffers are bit by bit what they were afterwards, also if ``loss_fn`` raises.
        loss_fn: from the network to a scalar loss; it should see one fixed batch.
        steps: points on each axis, at least 2.
        span: half the length of an axis, in filter norms, > 0.
        seed: of the two directions.

    Returns:
        The slice, on the CPU.

    Raises:
        ValueError: ``steps`` or ``span`` is out of range.

    >>> model = nn.Linear(2, 2)
    >>> loss_landscape(model, lambda m: m.weight.square().sum(), steps=3).loss.shape
    torch.Size([3, 3])
    """
    if steps < 2:
        raise ValueError(f"`steps` must be at least 2, got {steps}")
    if span <= 0:
        raise ValueError(f"`span` must be positive, got {span}")
    generator = torch.Generator().manual_seed(seed)
    first, second = (filter_normalized_direction(model, generator) for _ in range(2))
    parameters = {name: (parameter, parameter.detach().clone()) for name, parameter in model.named_parameters()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    axis = torch.linspace(-span, span, steps)
    loss = torch.empty(steps, steps)
    try:
        with torch.no_grad():
            for i, alpha in enumerate(axis.tolist()):
                for j, beta in enumerate(axis.tolist()):
                    for name, (parameter, center) in parameters.items():
                        parameter.copy_(center + alpha * first[name] + beta * second[name])
                    for buffer, before in buffers:
                        buffer.copy_(before)  # batch statistics of one point must not reach the next
                    loss[i, j] = loss_fn(model)
    finally:
        with torch.no_grad():
            for parameter, center in parameters.values():
                parameter.copy_(center)
            for buffer, before in buffers:
                buffer.copy_(before)
    return Landscape(axis, axis.clone(), loss)

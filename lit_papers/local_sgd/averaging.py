"""What the ranks average, and the one buffer they average it in."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_papers.local_sgd.functional import consensus_distance


def group_size(group: dist.ProcessGroup | None = None) -> int:
    """Number of processes in a group; 1 where no processes are joined (one device, or after the fit)."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def trained_parameters(optimizers: Iterable[Optimizer]) -> list[Tensor]:
    """Parameters of all optimizers, each once, in the order of their groups.

    ``requires_grad`` would not do (toggling an optimizer flips it), nor would ``grad is not None`` (ranks differ).
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return _once(parameter for group in groups for parameter in group["params"])


def float_buffers(module: nn.Module) -> list[Tensor]:
    """Buffers that can be averaged, each once: floating or complex."""
    return _once(buffer for buffer in module.buffers() if buffer.is_floating_point() or buffer.is_complex())


def matching_state(optimizers: Iterable[Optimizer]) -> list[Tensor]:
    """Optimizer state that is one number per parameter, such as momentum; counters (``step``) are left out."""
    found: list[Tensor] = []
    for optimizer in optimizers:
        for parameter in trained_parameters([optimizer]):
            state = optimizer.state.get(parameter, {})
            for key in sorted(state, key=str):
                value = state[key]
                is_like = isinstance(value, Tensor) and value.is_floating_point() and value.shape == parameter.shape
                if is_like and key != "step":
                    found.append(value)
    return found


def _once(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


def numbers_in(tensors: Iterable[Tensor]) -> int:
    """How many real numbers the tensors hold."""
    return sum(tensor.numel() * (2 if tensor.is_complex() else 1) for tensor in tensors)


class Bucket:
    """Averages tensors in place, through one flat buffer that outlives the rounds: allocating is what costs.

    Half and bfloat16 numbers are averaged in float32; everything is in float64 where one tensor is.

    Attributes:
        bytes_sent: payload that this process gave to all-reduces so far; nothing for a group of one.
    """

    def __init__(self) -> None:
        self.bytes_sent = 0
        self._flat: Tensor | None = None

    def average(self, tensors: Sequence[Tensor], group: dist.ProcessGroup | None = None) -> Tensor:
        """The mean over the group, bitwise the same on all of its ranks; the tensors stay as they are.

        Args:
            tensors: of any shapes and floating or complex types, the same on each rank.
            group: processes to average over; None for all.

        Returns:
            A view of the buffer, one number an entry, in the order of ``tensors``; valid until the next call.
        """
        flat = self.fill(tensors)
        size = group_size(group)
        if size > 1:
            dist.all_reduce(flat, group=group)
            flat.div_(size)
            self.bytes_sent += flat.numel() * flat.element_size()
        return flat

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace gradients by their mean over all processes, as DDP does.

        A gradient that is None on some ranks counts as zeros there; one that is None on all stays None, so that no
        optimizer decays a parameter which nobody used.
        """
        has_gradient = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self.average([*gradients, has_gradient.to(parameters[0].device)])
        self.spread(gradients, flat)
        used_somewhere: list[bool] = (flat[-len(parameters) :] > 0).tolist()
        for parameter, gradient, used in zip(parameters, gradients, used_somewhere, strict=True):
            if used:
                parameter.grad = gradient

    def spread(self, tensors: Sequence[Tensor], flat: Tensor) -> None:
        """Copy a flat result of `average` back into the tensors it is of, keeping their types."""
        real = [as_real(tensor) for tensor in tensors]
        torch._foreach_copy_(real, pieces(flat, real))

    def fill(self, tensors: Sequence[Tensor]) -> Tensor:
        """Copy the tensors into the buffer and return the view that `average` would reduce."""
        real = [as_real(tensor) for tensor in tensors]
        dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in real) else torch.float32
        numel, device = numbers_in(real), real[0].device
        flat = self._flat
        if flat is None or flat.numel() < numel or flat.dtype != dtype or flat.device != device:
            flat = self._flat = torch.empty(numel, dtype=dtype, device=device)
        flat = flat[:numel]
        torch._foreach_copy_(pieces(flat, real), real)
        return flat


def as_real(tensor: Tensor) -> Tensor:
    """The same numbers without gradient; a complex tensor as pairs."""
    tensor = tensor.detach()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def pieces(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Views of the front of ``flat`` in the shapes of (real) ``tensors``."""
    numels = [tensor.numel() for tensor in tensors]
    parts = torch.split(flat[: sum(numels)], numels)
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def measure_drift(parameters: Sequence[Tensor], average: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Mean squared distance of a group's parameters to their average, and the average's squared norm.

    Args:
        parameters: this rank's, not yet averaged.
        average: that `Bucket.average` returned for them; more may follow in it.
        group: over which they are averaged.

    Returns:
        float64, shape ``(2,)``; the same on all ranks of the group.
    """
    real = [as_real(parameter) for parameter in parameters]
    averages = pieces(average, real)
    distance = torch.stack([consensus_distance(own, mean) for own, mean in zip(real, averages, strict=True)]).sum()
    if group_size(group) > 1:
        dist.all_reduce(distance, group=group)
        distance /= group_size(group)
    norm = average[: numbers_in(parameters)].to(torch.float64).square().sum()
    return torch.stack([distance, norm])

"""The one flat buffer that tensors are averaged in, and the groups of processes that average together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lit_papers.local_sgd.functional import consensus_distance, squared_norm


def group_size(group: dist.ProcessGroup | None = None) -> int:
    """Number of processes in a group; 1 where no processes are joined (one device, or after the fit)."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def numbers_in(tensors: Sequence[Tensor]) -> int:
    """How many real numbers the tensors hold."""
    return sum(tensor.numel() * (2 if tensor.is_complex() else 1) for tensor in tensors)


@dataclass(frozen=True)
class Groups:
    """Who averages with whom; None stands for all processes.

    Attributes:
        node: the processes of this node.
        across: one process of each node, with this one's place in its node.
    """

    node: dist.ProcessGroup | None = None
    across: dist.ProcessGroup | None = None

    @staticmethod
    def join(node_size: int, timeout: timedelta) -> "Groups":
        """Make the groups; every process must call it.

        Args:
            node_size: consecutive ranks a node.
            timeout: of a collective in either group.

        Raises:
            RuntimeError: ``node_size`` does not divide the processes.
        """
        size = group_size()
        if size % node_size:
            raise RuntimeError(f"node_size={node_size} does not divide the {size} processes")
        if size == 1:
            return Groups()
        nodes = [list(range(first, first + node_size)) for first in range(0, size, node_size)]
        node, _ = dist.new_subgroups_by_enumeration(nodes, timeout=timeout)
        across, _ = dist.new_subgroups_by_enumeration([list(place) for place in zip(*nodes)], timeout=timeout)  # noqa: B905
        return Groups(cast(dist.ProcessGroup, node), cast(dist.ProcessGroup, across))  # every process is in one of each

    def leave(self) -> None:
        """Give the groups back; every process must call it."""
        for group in (self.node, self.across):
            if group is not None and dist.is_initialized():
                dist.destroy_process_group(group)


def data_parallel_within(
    module: nn.Module, groups: Groups, device_ids: list[int] | None, *, find_unused_parameters: bool
) -> DistributedDataParallel:
    """The module with gradients that are averaged within the node; buffers are left to the end of a round."""
    renamed = "forward_sync_buffers" in signature(DistributedDataParallel).parameters  # in torch 2.14
    buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(
        module,
        device_ids=device_ids,
        process_group=groups.node,
        find_unused_parameters=find_unused_parameters,
        **buffers,
    )


class Bucket:
    """Averages tensors in place, through one flat buffer that outlives the rounds: allocating is what costs.

    Half and bfloat16 numbers are averaged in float32; everything is in float64 where one tensor is.

    Args:
        device: that the backend communicates from; None for that of the tensors.

    Attributes:
        bytes_sent: payload that this process gave to averaging so far; nothing for a group of one.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.bytes_sent = 0
        self._device = device
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
        self.mean(flat, group)
        return flat

    def mean(self, flat: Tensor, group: dist.ProcessGroup | None = None) -> None:
        """Replace a flat tensor by its mean over the group."""
        size = group_size(group)
        if size > 1 and flat.numel():
            dist.all_reduce(flat, group=group)
            flat.div_(size)
            self.bytes_sent += flat.numel() * flat.element_size()

    def mean_over_nodes(self, flat: Tensor, groups: Groups, mean: Callable[[Tensor], None] | None = None) -> None:
        """Replace a flat tensor that is the same within each node by its mean over the nodes.

        Each process averages its share of the numbers with its counterparts on the other nodes, so that the slow
        links carry every number once a node; the shares are then gathered within the node.

        Args:
            flat: shape ``(P,)``.
            groups: of `Groups.join`.
            mean: what averages a share across the nodes; None for an all-reduce.
        """
        size, place = group_size(groups.node), dist.get_rank(groups.node)
        share = -(-flat.numel() // size)
        own = flat.new_zeros(share)
        held = flat[place * share : (place + 1) * share]
        own[: held.numel()] = held
        if mean is None:
            self.mean(own, groups.across)
        else:
            mean(own)
        gathered = flat.new_empty(share * size)
        dist.all_gather_into_tensor(gathered, own, group=groups.node)
        flat.copy_(gathered[: flat.numel()])

    def average_gradients(self, parameters: Sequence[Tensor], mean: Callable[[Tensor], None]) -> None:
        """Replace gradients by their mean, as DDP does.

        A gradient that is None on some ranks counts as zeros there; one that is None on all stays None, so that no
        optimizer decays a parameter which nobody used. One that is sparse on some rank is sparse afterwards, with
        the rows that any rank has.

        Args:
            parameters: the same on each rank.
            mean: replaces a flat tensor by its mean over the ranks.
        """
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in parameters]
        flags = [[p.grad is not None, p.grad is not None and p.grad.is_sparse] for p in parameters]
        flat = self.fill([*gradients, torch.tensor(flags, dtype=torch.float32, device=parameters[0].device)])
        mean(flat)
        self.spread(gradients, flat)
        anywhere = (flat[-2 * len(parameters) :] > 0).view(-1, 2).tolist()
        for parameter, gradient, (used, sparse) in zip(parameters, gradients, anywhere, strict=True):
            if sparse:
                rows = torch.zeros(len(parameter), dtype=torch.float32, device=parameter.device)
                if parameter.grad is not None:
                    rows[parameter.grad.coalesce().indices()[0]] = 1
                mean(rows)
                found = rows.nonzero().T  # (1, rows that some rank has)
                gradient = torch.sparse_coo_tensor(
                    found, gradient[found[0]], gradient.shape, is_coalesced=True, check_invariants=False
                )
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
        numel, device = numbers_in(real), self._device or real[0].device
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
    own = [consensus_distance(local.to(mean), mean) for local, mean in zip(real, averages, strict=True)]
    distance = torch.stack(own).sum()
    if group_size(group) > 1:
        dist.all_reduce(distance, group=group)
        distance /= group_size(group)
    return torch.stack([distance, squared_norm(average[: numbers_in(parameters)])])

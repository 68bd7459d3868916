"""Joining the ranks of a job that torchrun has started again."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]


def join_restarted(backend: str, device: torch.device, rank: int, size: int, timeout: timedelta) -> None:
    """Make the process group of a later attempt, under keys of its own.

    torchrun's store outlives an attempt on the same node, and torch (2.14) gives every attempt the same keys there: a
    rank may read the address at which another one of the attempt before could be reached, and wait for it in vain until
    the timeout. The first attempt, and jobs of other launchers, are left to Lightning.

    Args:
        backend: of the process group.
        device: of this process.
        rank: of this process.
        size: number of ranks.
        timeout: of the collectives.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or dist.is_initialized():
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, size, is_master=False, timeout=timeout)
    own = PrefixStore(f"attempt_{attempt}", store)
    bound = None if device.type == "cpu" else device  # as Lightning does
    dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=timeout, device_id=bound)

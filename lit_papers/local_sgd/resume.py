"""What a checkpoint keeps of each rank, so that training goes on bit for bit where it stopped."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch.distributed as dist
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_papers.local_sgd.averaging import group_size

VERSION = 1


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Buffers that belong into a checkpoint, by name."""
    found = {}
    for prefix, child in module.named_modules():
        for name, buffer in child.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in child._non_persistent_buffers_set:
                found[name] = buffer
    return found


def gather_ranks(
    checkpoint: Mapping[str, Any],
    parameters: Sequence[Tensor] | None,
    module: LightningModule,
    local_value: Callable[[Tensor], Tensor],
) -> list[dict[str, Any]] | None:
    """Collect the state in which the ranks differ; every rank must call it.

    Args:
        checkpoint: what Lightning is about to save on this rank.
        parameters: those that differ between the ranks; None if all are equal.
        module: whose buffers are kept.
        local_value: from a parameter or buffer to this rank's value of it, while the average is in place.

    Returns:
        One entry a rank, on the first rank; None on the others.
    """
    trainer = module.trainer
    own = {
        "parameters": None if parameters is None else [local_value(parameter).detach() for parameter in parameters],
        "buffers": {name: local_value(buffer).detach() for name, buffer in persistent_buffers(module).items()},
        "optimizers": checkpoint["optimizer_states"],
        "lr_schedulers": checkpoint["lr_schedulers"],
        "precision": trainer.precision_plugin.state_dict(),
        "loaders": checkpoint["loops"]["fit_loop"].get("combined_loader", []),
    }
    own = move_data_to_device(own, "cpu")
    gathered: list[Any] | None = [None] * group_size() if trainer.is_global_zero else None
    dist.gather_object(own, gathered)
    return gathered


def own_state(saved: Mapping[str, Any], rank: int, world_size: int) -> dict[str, Any] | None:
    """This rank's entry of a checkpoint, or None, with a warning, where it has none for this run."""
    if not saved["consistent"]:
        rank_zero_warn(
            "this checkpoint was saved after an exception and holds the weights of the first rank only: training "
            "goes on from those on every rank"
        )
    elif saved["world_size"] != world_size:
        rank_zero_warn(
            f"this checkpoint is of {saved['world_size']} processes, now there are {world_size}: training goes on from "
            "the averaged weights, with the optimizer state of the first rank on every rank"
        )
    elif saved["ranks"] is not None:
        state: dict[str, Any] = saved["ranks"][rank]
        return state
    return None


def restore(
    state: Mapping[str, Any], parameters: Sequence[Tensor], checkpoint: Mapping[str, Any], trainer: Trainer
) -> None:
    """Put one rank's weights, buffers, schedulers, scaler and loader positions in place; optimizers are the caller's.

    Args:
        state: from `own_state`.
        parameters: trained parameters, in the order they were saved in.
        checkpoint: that Lightning is about to load schedulers from.
        trainer: of this rank.

    Raises:
        RuntimeError: the optimizers train another number of parameters than when the checkpoint was saved.
    """
    module = trainer.lightning_module
    if state["parameters"] is not None:
        if len(state["parameters"]) != len(parameters):
            raise RuntimeError(
                f"the checkpoint was saved in the middle of a round with {len(state['parameters'])} trained parameters "
                f"on each rank, now the optimizers have {len(parameters)}"
            )
        for parameter, value in zip(parameters, state["parameters"], strict=True):
            parameter.detach().copy_(value)
    for name, buffer in persistent_buffers(module).items():
        if name in state["buffers"]:
            buffer.copy_(state["buffers"][name])
    cast(dict[str, Any], checkpoint)["lr_schedulers"] = state["lr_schedulers"]  # Lightning loads them next
    if state["precision"]:
        trainer.precision_plugin.load_state_dict(state["precision"])
    if state["loaders"]:
        trainer.fit_loop._combined_loader_states_to_load = state["loaders"]

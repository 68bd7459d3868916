"""Every private name of Lightning that local SGD relies on: the one place to look at when Lightning changes."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch.distributed as dist
from lightning.fabric.utilities import data as fabric_data
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loops import _TrainingEpochLoop  # type: ignore[attr-defined]
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.overrides import distributed as overrides
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.connectors import signal_connector
from lightning.pytorch.utilities import data as pytorch_data
from torch import nn
from torch.utils.data import DataLoader, Sampler

_NAMES = (
    (fabric_data, "_set_sampler_epoch"),
    (overrides, "_sync_module_states"),
    (pytorch_data, "_update_dataloader"),
    (signal_connector, "_HandlersCompose"),
    (_TrainingEpochLoop, "_broadcast_sigterm_tensor"),
    (_TrainingEpochLoop, "_num_ready_batches_reached"),
    (_TrainingEpochLoop, "update_lr_schedulers"),
    (_FitLoop, "_can_stop_early"),
    (_FitLoop, "_load_combined_loader_states"),
    (_FitLoop, "restarted_mid_epoch"),
    (DDPStrategy, "_get_process_group_backend"),
    (DDPStrategy, "_setup_model"),
)


def check_lightning() -> None:
    """Refuse a Lightning that lacks what the strategy hooks into, before anything is trained.

    Raises:
        RuntimeError: a name is gone; the message has it and Lightning's version.
    """
    for owner, name in _NAMES:
        if not hasattr(owner, name):
            raise RuntimeError(
                f"LocalSGDStrategy needs `{getattr(owner, '__name__', owner)}.{name}`, which lightning "
                f"{version('lightning')} does not have: install an earlier lightning, and please tell us"
            )


def trainer_of(module: LightningModule | None) -> Trainer | None:
    """The trainer that a module is attached to, if any; `LightningModule.trainer` would raise."""
    return None if module is None else module._trainer


def set_sampler_epoch(trainer: Trainer, loader: object) -> None:
    """Tell a loader's sampler which epoch is next; `current_epoch` is not caught up after a resume."""
    epochs: int = trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
    fabric_data._set_sampler_epoch(loader, epochs)


def process_group_backend(strategy: DDPStrategy) -> str:
    """Name of the backend that the strategy will use: its own, or the usual one of its device."""
    return strategy._get_process_group_backend()


def sync_module_states(module: nn.Module) -> None:
    """Give all processes the first one's parameters and buffers."""
    overrides._sync_module_states(module)


def collectives_so_far() -> int:
    """How many collectives of all processes this one has begun; 0 where the backend does not count."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0
    try:
        group: Any = dist.distributed_c10d._get_default_group()
        return int(group._get_sequence_number_for_group())
    except (AttributeError, RuntimeError):
        return 0


def with_sampler(loader: DataLoader[Any], sampler: Sampler[int], stage: Any) -> DataLoader[Any]:
    """The same loader over another sampler, as the Trainer makes it; it knows the arguments of loaders' children."""
    made: DataLoader[Any] = pytorch_data._update_dataloader(loader, sampler, mode=stage)
    return made


def is_auto_requeue(handler: object) -> bool:
    """Whether a signal's handler is the one that Lightning composes to save and requeue a SLURM job."""
    return isinstance(handler, signal_connector._HandlersCompose)


def broadcast_sigterm_only(trainer: Trainer, allowed: Callable[[], bool]) -> None:
    """Keep the loop from its collective before each batch but where ``allowed`` says so."""
    loop = trainer.fit_loop.epoch_loop
    broadcast = loop._broadcast_sigterm_tensor

    def broadcast_where_allowed() -> None:
        if allowed():
            broadcast()

    loop._broadcast_sigterm_tensor = broadcast_where_allowed  # type: ignore[method-assign]


def broadcast_sigterm_always(trainer: Trainer) -> None:
    """Undo `broadcast_sigterm_only`."""
    trainer.fit_loop.epoch_loop.__dict__.pop("_broadcast_sigterm_tensor", None)


def out_of_batches(trainer: Trainer) -> bool:
    """Whether the present batch is the last of this rank's epoch."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def may_stop(trainer: Trainer) -> bool:
    """Whether ``trainer.should_stop`` takes effect: enough epochs and steps were made."""
    return trainer.fit_loop._can_stop_early


def end_epoch_here(trainer: Trainer) -> None:
    """Make the present batch the last of the epoch, on a rank that has more of them."""
    loop = trainer.fit_loop.epoch_loop
    if not out_of_batches(trainer):
        # Lightning steps epoch-wise schedulers before callbacks' hook, on the ranks that knew
        loop.batch_progress.is_last_batch = True
        loop.update_lr_schedulers("epoch", update_plateau_schedulers=False)
    loop.batch_progress.is_last_batch = True


def goes_on_in_mid_epoch(trainer: Trainer) -> bool:
    """Whether the fit that begins was saved between two batches of an epoch."""
    loop = trainer.fit_loop
    return loop.restarted_mid_epoch and not loop.epoch_loop.batch_progress.is_last_batch


def set_loader_positions(trainer: Trainer, states: Any) -> None:
    """What loaders that know their position are to begin from."""
    trainer.fit_loop._combined_loader_states_to_load = states

"""What `LocalSGDStrategy` refuses: options outside their range, and trainers that it cannot serve."""

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lit_papers.local_sgd.averaging import group_size
from lit_papers.local_sgd.handshake import compare_settings

if TYPE_CHECKING:
    from lit_papers.local_sgd.strategy import LocalSGDStrategy

_LEAST = {"sync_every": 1, "warmup_steps": 0, "across_nodes_every": 1, "node_size": 1, "fragments": 1}
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "eval_weights": ("average", "local"),
    "uneven_inputs": ("error", "stop"),
    "within_node": ("local", "ddp", "ddp_find_unused_parameters_true"),
    "compress": (None, "bf16"),
    "rank_state": ("files", "gather", "none"),
}
_SWITCHES = ("average_optimizer_state", "sync_on_epoch_end")
# what the state of an open round means depends on these
_OF_A_ROUND = ("across_nodes_every", "node_size", "fragments", "within_node", "compress", "outer_optimizer")


def check_options(strategy: "LocalSGDStrategy") -> None:
    """Check what the user chose, at construction.

    Raises:
        ValueError: an option outside its range, or two that exclude each other; the message names them.
    """
    for name, least in _LEAST.items():
        value = getattr(strategy, name)
        if name == "node_size" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
    for name, choices in _CHOICES.items():
        value = getattr(strategy, name)
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    for name in _SWITCHES:
        if not isinstance(getattr(strategy, name), bool):
            raise ValueError(f"{name} must be True or False, got {getattr(strategy, name)!r}")
    if not isinstance(strategy.average_buffers, bool) and not callable(strategy.average_buffers):
        raise ValueError(
            "average_buffers must be True, False or a function of a buffer's name and value, got "
            f"{strategy.average_buffers!r}"
        )
    _check_pairs(strategy)


def _check_pairs(strategy: "LocalSGDStrategy") -> None:
    if strategy.uneven_inputs == "stop":
        reason = "its node a rank cannot tell the other nodes that it ran out of data"
        if strategy.across_nodes_every > 1:
            raise ValueError(
                f"uneven_inputs='stop' needs across_nodes_every=1, got {strategy.across_nodes_every}: in a round "
                f"within {reason}"
            )
        if strategy.within_node != "local":
            raise ValueError(
                f"uneven_inputs='stop' needs within_node='local', got {strategy.within_node!r}: each step needs all "
                "processes of a node"
            )
        if strategy.fragments > 1:
            raise ValueError(
                f"uneven_inputs='stop' needs fragments=1, got {strategy.fragments}: a rank that runs out of data "
                "averages all, where the others would average one fragment"
            )
    if strategy.across_nodes_every > 1:
        for name, plain in (("within_node", "local"), ("compress", None), ("fragments", 1)):
            if getattr(strategy, name) != plain:
                raise ValueError(
                    f"across_nodes_every={strategy.across_nodes_every} and {name}={getattr(strategy, name)!r} exclude "
                    "each other: take within_node='ddp' for rounds across nodes alone"
                )
    if strategy.fragments > strategy.sync_every:
        raise ValueError(
            f"fragments must be at most sync_every={strategy.sync_every}, got {strategy.fragments}: one is averaged "
            "at a step"
        )
    if strategy.fragments > 1 and strategy.average_optimizer_state:
        raise ValueError(
            "fragments > 1 and average_optimizer_state=True exclude each other: its bytes would come at once"
        )


def describe(strategy: "LocalSGDStrategy") -> dict[str, Any]:
    """The options that training depends on, in plain types."""
    options = {name: getattr(strategy, name) for name in (*_LEAST, *_CHOICES, *_SWITCHES) if name != "rank_state"}
    chosen = strategy.average_buffers
    options["average_buffers"] = chosen if isinstance(chosen, bool) else getattr(chosen, "__qualname__", "a function")
    options["outer_optimizer"] = None
    if strategy.outer_optimizer is not None:
        made = strategy.outer_optimizer([torch.zeros(1, requires_grad=True)])
        plain = (bool, int, float, str, tuple, type(None))
        described = {key: value for key, value in made.defaults.items() if isinstance(value, plain)}
        options["outer_optimizer"] = {"class": type(made).__name__, **described}
    return options


def compare_with_saved(strategy: "LocalSGDStrategy", saved: dict[str, Any], *, in_mid_round: bool) -> None:
    """Say where a run is resumed under other options than it was saved with.

    Raises:
        RuntimeError: the checkpoint is of the middle of a round, and what that means depends on a changed option.
    """
    now = describe(strategy)
    changed = {name: (saved[name], now[name]) for name in now if name in saved and saved[name] != now[name]}
    if not changed:
        return
    listed = ", ".join(f"{name} was {before!r}, now {after!r}" for name, (before, after) in changed.items())
    if in_mid_round and any(name in _OF_A_ROUND for name in changed):
        raise RuntimeError(
            f"the checkpoint was saved in the middle of a round, and options of rounds have changed: {listed}. Resume "
            "with the options that it was saved with, or from a checkpoint of an epoch's end"
        )
    rank_zero_warn(f"training goes on under other options of local SGD than it was saved with: {listed}")


def check_trainer(strategy: "LocalSGDStrategy", trainer: Trainer) -> None:
    """Check before the first step that the trainer fits the options, and that all ranks are about to do the same.

    Raises:
        RuntimeError: they do not; the message names the option, with its value on every rank where it differs.
    """
    if strategy.uneven_inputs == "stop":
        if trainer.val_check_interval != 1.0:
            raise RuntimeError(
                "uneven_inputs='stop' needs val_check_interval=1.0 (validation at the end of an epoch), got "
                f"{trainer.val_check_interval}: ranks with fewer batches would miss a validation"
            )
        if strategy.warmup_steps > strategy.local_step and trainer.accumulate_grad_batches > 1:
            raise RuntimeError(
                "uneven_inputs='stop' with warmup_steps needs accumulate_grad_batches=1, got "
                f"{trainer.accumulate_grad_batches}: a rank that runs out would step before the others"
            )
    if group_size() > 1:
        settings = describe(strategy)
        settings["rank_state"], settings["track_drift"] = strategy.rank_state, strategy.track_drift
        settings["batches"] = trainer.num_training_batches
        compare_settings(settings, even=strategy.uneven_inputs == "error")

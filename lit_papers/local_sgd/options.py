"""What `LocalSGDStrategy` refuses: options outside their range, and trainers that it cannot serve."""

from typing import TYPE_CHECKING

from lightning.pytorch import Trainer

from lit_papers.local_sgd.averaging import group_size
from lit_papers.local_sgd.handshake import compare_settings

if TYPE_CHECKING:
    from lit_papers.local_sgd.strategy import LocalSGDStrategy

_LEAST = {"sync_every": 1, "warmup_steps": 0, "across_nodes_every": 1, "node_size": 1}
_CHOICES = {"eval_weights": ("average", "local"), "uneven_inputs": ("error", "stop")}
_SWITCHES = ("average_buffers", "average_optimizer_state", "sync_on_epoch_end")


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
    if strategy.uneven_inputs == "stop" and strategy.across_nodes_every > 1:
        raise ValueError(
            f"uneven_inputs='stop' needs across_nodes_every=1, got {strategy.across_nodes_every}: in a round within "
            "its node a rank cannot tell the other nodes that it ran out of data"
        )


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
        names = (*_LEAST, *_CHOICES, *_SWITCHES, "track_drift")
        settings = {name: getattr(strategy, name) for name in names}
        settings["outer_optimizer"] = strategy.outer_optimizer is not None
        settings["batches"] = trainer.num_training_batches
        compare_settings(settings, even=strategy.uneven_inputs == "error")

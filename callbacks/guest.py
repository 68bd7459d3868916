"""What a guest needs in a stranger's training: to look at the network and leave it exactly as it was."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

Unpack = Callable[[Any], tuple[Any, Tensor]]

_INPUT_KEYS = ("x", "image", "images", "input", "inputs", "pixel_values", "features")
_TARGET_KEYS = ("y", "label", "labels", "target", "targets")


def unpack_batch(batch: Any) -> tuple[Any, Tensor]:
    """Split a stranger's batch into the argument of ``forward`` and the class of each sample.

    Args:
        batch: a pair ``(x, y)``, or a mapping with one usual name for each (``image`` and ``label``, ``x`` and ``y``,
            ``pixel_values`` and ``labels``, ...).

    Returns:
        The input, untouched, and the targets.

    Raises:
        TypeError: neither; the message asks for ``unpack``.

    >>> unpack_batch({"image": "pixels", "label": torch.tensor([1]), "path": "a.png"})
    ('pixels', tensor([1]))
    """
    if isinstance(batch, Mapping):
        inputs = [key for key in _INPUT_KEYS if key in batch]
        targets = [key for key in _TARGET_KEYS if key in batch]
        if len(inputs) == len(targets) == 1:
            return batch[inputs[0]], batch[targets[0]]
        found = f"a mapping with the keys {list(batch)}"
    elif isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) == 2:
        return batch[0], batch[1]
    else:
        found = f"{type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, Sequence) else "")
    raise TypeError(
        f"cannot tell input and targets in a batch that is {found}; pass `unpack`, a function from such a batch to "
        "(argument of forward, class indices)"
    )


@contextmanager
def untouched(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Evaluate a module in the middle of its training, leaving no trace.

    Inside: evaluation mode, no gradients, nothing compiled (a hook added after compilation never fires), and the
    trainer says "validating", so that augmentation which asks ``trainer.training`` stays out. Afterwards, also after
    an exception: random streams (Python, NumPy, torch, CUDA), every submodule's ``training`` flag, every buffer and
    the trainer's stage are what they were.
    """
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    stage = trainer.state.stage
    failure: BaseException | None = None
    with isolate_rng(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        try:
            module.eval()
            trainer.validating = True
            yield
        except BaseException as error:
            failure = error  # raised below: isolate_rng restores nothing when an exception passes through it
        finally:
            trainer.state.stage = stage
            for submodule, mode in modes:
                submodule.training = mode  # .train() would overrule submodules that are frozen on their own
            for buffer, before in buffers:
                buffer.copy_(before)
    if failure is not None:
        raise failure

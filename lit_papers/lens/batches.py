"""What can be read off a batch of a stranger: input and targets, tensors, and which of them are classes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_papers.lens.refusal import NotApplicable

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
        "(argument of forward, class indices), or `call`, one from (module, batch) to (logits, class indices)"
    )


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of whatever a network returned or a loader yielded, in order.

    Looked into are mappings, sequences, dataclasses (frozen ones too) and objects that list their own ``keys`` (a batch
    of graphs).

    >>> [tuple(tensor.shape) for tensor in tensors_in({"logits": torch.zeros(2, 3), "rest": [torch.zeros(1), "a"]})]
    [(2, 3), (1,)]
    """
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        items: list[Any] = list(value.values())
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        items = list(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif callable(getattr(value, "keys", None)) and hasattr(value, "__getitem__"):
        items = [value[key] for key in value.keys()]  # noqa: SIM118  # no mapping, so iterating gives something else
    else:
        return []
    return [tensor for item in items for tensor in tensors_in(item)]


def belongs_to(targets: Tensor, batch_tensors: Sequence[Tensor]) -> bool:
    """Whether targets equal, or one-hot encode, a tensor of the batch; mixed and pretext labels do not.

    >>> belongs_to(torch.eye(3)[[2, 0]], [torch.tensor([2, 0])])
    True
    """
    for tensor in batch_tensors:
        if tensor.device != targets.device:
            continue
        same_size = tensor.numel() == targets.numel() and tensor.shape[:1] == targets.shape[:1]
        if same_size and torch.equal(tensor.reshape(-1).double(), targets.reshape(-1).double()):
            return True
        flat = tensor.reshape(-1) if tensor.ndim == 2 and tensor.shape[1] == 1 else tensor
        if targets.ndim == 2 and flat.ndim == 1 and len(flat) == len(targets) and not flat.is_floating_point():
            classes = flat.long()
            fits = bool(((classes >= 0) & (classes < targets.shape[1])).all())
            if fits and torch.equal(torch.nn.functional.one_hot(classes, targets.shape[1]).to(targets), targets):
                return True
    return False


def follows_from(targets: Tensor, batch_tensors: Sequence[Tensor], *, sure: bool = True) -> bool:
    """Whether classes are made of the labels of the batch one by one: renumbered, or several as one.

    Args:
        targets: of a loss.
        batch_tensors: of the batch.
        sure: only where labels are repeated, so that it cannot be chance alone, and the targets are not all the same.

    >>> follows_from(torch.tensor([0, 1, 0]), [torch.tensor([7, 4, 7])])
    True
    >>> follows_from(torch.tensor([0, 1, 1]), [torch.tensor([7, 4, 7])])
    False
    """
    try:
        targets = class_indices(targets, targets.shape[1] if targets.ndim == 2 else 0)
    except NotApplicable:
        return False
    for tensor in batch_tensors:
        labels = tensor.reshape(-1) if tensor.ndim == 2 and tensor.shape[1] == 1 else tensor
        if labels.shape != targets.shape or labels.is_floating_point() or labels.device != targets.device:
            continue
        pairs = set(zip(labels.tolist(), targets.tolist(), strict=True))
        kinds, made = (set(side) for side in zip(*pairs, strict=True)) if pairs else (set(), set())
        if len(pairs) == len(kinds) and (not sure or (len(kinds) < len(labels) and len(made) > 1)):
            return True
    return False


def class_indices(targets: Any, classes: int) -> Tensor:
    """Class indices int64 ``(N,)`` out of indices or exact one-hot rows.

    Args:
        targets: integer or boolean ``(N,)`` or ``(N, 1)``, or one-hot ``(N, C)``.
        classes: C.

    Raises:
        NotApplicable: targets are soft, real, or of another shape.

    >>> class_indices(torch.eye(3)[[2, 0]], 3)
    tensor([2, 0])
    """
    if isinstance(targets, Tensor):
        if targets.ndim == 2 and targets.shape[1] == classes > 1:
            indices = targets.argmax(dim=1)
            if torch.equal(torch.nn.functional.one_hot(indices, classes).to(targets), targets):
                return indices
        elif not targets.is_floating_point() and (targets.ndim == 1 or (targets.ndim == 2 and targets.shape[1] == 1)):
            return targets.reshape(-1).long()
        found = f"{targets.dtype} of shape {tuple(targets.shape)}"
    else:
        found = type(targets).__name__
    raise NotApplicable(
        f"needed is one class index for each sample (integers of shape (N,), or one-hot rows), got {found}; pass "
        "`unpack` or `call` to turn targets into classes"
    )

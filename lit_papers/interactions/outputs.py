"""Reading the outputs of any network: a tensor, or one among several, logits, one logit, or predictions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

ValueFunction = Callable[[Tensor, Tensor], Tensor]
Respond = Callable[[Any, Any], Any]


def prediction(outputs: Tensor, target: Tensor) -> Tensor:
    """The value of a coalition for regression: the prediction itself.

    Args:
        outputs: ``(B,)`` or ``(B, 1)``.
        target: not used.

    Returns:
        ``(B,)``.

    Raises:
        ValueError: there are several outputs.

    >>> prediction(torch.tensor([[2.0], [3.0]]), torch.zeros(2))
    tensor([2., 3.])
    """
    if outputs.ndim > 2 or (outputs.ndim == 2 and outputs.shape[1] != 1):
        raise ValueError(
            f"`prediction` is of one output, got {tuple(outputs.shape)}: write a `value_fn` that picks one"
        )
    return outputs.reshape(len(outputs))


def call_network(model: Any, inputs: Any, respond: Respond | None = None, place: Any = None) -> Tensor:
    """Call a network and find the tensor of outputs in what it returns.

    Args:
        model: any callable.
        inputs: a tensor; a mapping is passed as keywords, a tuple as positional arguments.
        respond: from model and inputs to what the model returns; None for the usual way.
        place: key or number of the outputs in what is returned, as `place_of` found it; None where they can be told.

    Returns:
        ``(B,)`` or ``(B, C)``.

    Raises:
        TypeError: no tensor is found.
    """
    if respond is not None:
        returned = respond(model, inputs)
    elif isinstance(inputs, Mapping):
        returned = model(**inputs)
    elif isinstance(inputs, tuple):
        returned = model(*inputs)
    else:
        returned = model(inputs)
    return find_outputs(returned) if place is None else returned[place]


def find_outputs(returned: Any) -> Tensor:
    """The outputs in what a model returned: a tensor, ``.logits`` or ``["logits"]``, else the only 1-D or 2-D tensor.

    Args:
        returned: a tensor, or an object, a mapping or a sequence that holds one.

    Returns:
        It.

    Raises:
        TypeError: there is none, or there are several: logits and features look alike.

    >>> find_outputs({"loss": None, "logits": torch.zeros(2, 3)}).shape
    torch.Size([2, 3])
    """
    if isinstance(returned, Tensor):
        if not returned.ndim:
            raise TypeError("the model's output is a single number, but must have a row for each input: pass `respond`")
        return returned
    named = returned.get("logits") if isinstance(returned, Mapping) else getattr(returned, "logits", None)
    if isinstance(named, Tensor):
        return named
    parts: Sequence[Any] = ()
    if isinstance(returned, Mapping):
        parts = list(returned.values())
    elif isinstance(returned, Sequence) and not isinstance(returned, str):
        parts = returned
    found = [part for part in parts if isinstance(part, Tensor) and part.is_floating_point() and part.ndim in (1, 2)]
    if len(found) == 1:
        return found[0]
    raise TypeError(
        f"the model's output is {type(returned).__name__} with {len(found) or 'no'} tensors that could be logits: pass "
        "`respond`, such as `respond=lambda model, x: model(x)[0]`"
    )


def place_of(returned: Any, logits: Tensor) -> Any:
    """Where logits that are known lie in what a model returned.

    Args:
        returned: a mapping or a sequence.
        logits: of the same inputs, ``(B, C)``.

    Returns:
        The key or the number of the only tensor that equals them, up to rounding; None if there is not exactly one.

    >>> place_of([torch.ones(2, 3), torch.zeros(2, 3)], torch.zeros(2, 3))
    1
    """
    if isinstance(returned, Mapping):
        parts = list(returned.items())
    elif isinstance(returned, Sequence) and not isinstance(returned, str):
        parts = list(enumerate(returned))
    else:
        return None
    found = [
        place
        for place, part in parts
        if isinstance(part, Tensor) and part.shape == logits.shape and torch.allclose(part.to(logits), logits)
    ]
    return found[0] if len(found) == 1 else None


def two_logits(outputs: Tensor) -> Tensor:
    """Logits of two classes from the one logit of a binary classifier; others as they are.

    Args:
        outputs: ``(B,)``, ``(B, 1)`` or ``(B, C)``.

    Returns:
        ``(B, 2)`` or ``(B, C)``.

    Raises:
        ValueError: they have another shape.

    >>> two_logits(torch.tensor([0.5, -1.0]))
    tensor([[ 0.0000,  0.5000],
            [ 0.0000, -1.0000]])
    """
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        return outputs
    if outputs.ndim not in (1, 2):
        raise ValueError(
            f"the model's output has shape {tuple(outputs.shape)}, but logits are (B, C) or (B,): pass `respond`, a "
            "function from model and inputs to logits"
        )
    one = outputs.reshape(len(outputs), 1)
    return torch.cat([torch.zeros_like(one), one], dim=1)


def look_like_probabilities(outputs: Tensor) -> bool:
    """Whether all rows are distributions, up to rounding.

    Args:
        outputs: ``(B, C)``.

    Returns:
        False for one column.

    >>> look_like_probabilities(torch.tensor([[0.25, 0.75]]))
    True
    """
    if outputs.ndim != 2 or outputs.shape[1] < 2 or not outputs.is_floating_point():
        return False
    tolerance = 4 * torch.finfo(outputs.dtype).eps * outputs.shape[1] ** 0.5
    return bool((outputs >= 0).all() and ((outputs.double().sum(1) - 1).abs() <= tolerance).all())

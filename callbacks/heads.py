"""Find the last linear layer of a network nobody has described to us, and watch what goes into it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn


@dataclass(frozen=True)
class Head:
    """The classifier of a network: ``logits = features @ weight.T + bias``.

    Attributes:
        name: dotted path in the module.
        linear: the layer.
        position: which of the tensors that ``forward`` returns are the logits.
    """

    name: str
    linear: nn.Linear
    position: int


def tensors_in(output: Any) -> list[Tensor]:
    """The tensors of whatever ``forward`` returned, in order."""
    found: list[Tensor] = []
    apply_to_collection(output, Tensor, found.append)
    return found


def linear_layers(module: nn.Module) -> dict[str, nn.Linear]:
    """All ``nn.Linear`` by dotted path, without the ``_orig_mod`` that ``torch.compile`` inserts."""
    return {
        name.replace("._orig_mod", "").removeprefix("_orig_mod."): layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    }


def resolve_classifier(module: nn.Module, classifier: str | nn.Module) -> tuple[str, nn.Linear]:
    """The linear layer that the argument ``classifier`` names.

    Raises:
        ValueError: there is no such layer in the module; the message lists those that there are.
    """
    layers = linear_layers(module)
    if isinstance(classifier, str):
        if classifier in layers:
            return classifier, layers[classifier]
        raise ValueError(f"classifier={classifier!r} is no nn.Linear of {_candidates(module)}")
    wanted = getattr(classifier, "_orig_mod", classifier)  # a compiled layer stands for the layer in it
    for name, layer in layers.items():
        if layer is wanted:
            return name, layer
    raise ValueError(
        f"the module given as classifier ({type(wanted).__name__}) is no nn.Linear of {_candidates(module)}"
    )


def find_head(module: nn.Module, inputs: Any, classifier: str | nn.Module | None) -> tuple[Head, bool]:
    """Run one forward and find the layer that makes the logits.

    Args:
        module: the network; put it into evaluation mode first.
        inputs: argument of its ``forward``.
        classifier: the layer or its dotted path; None takes the last executed ``nn.Linear`` whose output is, or
            equals, a tensor that ``forward`` returns (the first such tensor, where it returns several).

    Returns:
        The head, and whether its output agrees with the logits.

    Raises:
        ValueError: no linear layer makes a returned tensor, or none of shape (N, C) is returned.
    """
    executed: list[tuple[str, nn.Linear, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda layer, _, output, name=name: executed.append((name, layer, output)))
        for name, layer in linear_layers(module).items()
    ]
    try:
        returned = tensors_in(module(inputs))
    finally:
        for hook in hooks:
            hook.remove()
    if classifier is None:
        for position, logits in enumerate(returned):
            for name, layer, output in reversed(executed):
                if output is logits or (output.shape == logits.shape and torch.equal(output, logits)):
                    return _checked(Head(name, layer, position), logits, output)
        raise ValueError(
            f"no nn.Linear yields the logits that forward returns; name the last layer with `classifier`, out of "
            f"{_candidates(module)}"
        )

    name, layer = resolve_classifier(module, classifier)
    outputs = [output for _, executed_layer, output in executed if executed_layer is layer]
    if not outputs:
        raise ValueError(f"classifier={name!r} is not used by forward; choose out of {_candidates(module)}")
    alike = [(position, logits) for position, logits in enumerate(returned) if logits.shape == outputs[-1].shape]
    if not alike:
        shapes = [tuple(logits.shape) for logits in returned]
        raise ValueError(
            f"classifier={name!r} yields {tuple(outputs[-1].shape)}, but forward returns {shapes}: "
            f"name the layer that makes the logits, out of {_candidates(module)}"
        )
    # of several, the one that this layer makes
    position, logits = min(alike, key=lambda item: float((item[1].double() - outputs[-1].double()).norm()))
    return _checked(Head(name, layer, position), logits, outputs[-1])


def _checked(head: Head, logits: Tensor, output: Tensor) -> tuple[Head, bool]:
    if logits.ndim != 2:
        raise ValueError(f"the logits must be (N, C), but {head.name!r} yields {tuple(logits.shape)}")
    difference = (logits.double() - output.double()).norm()
    # half precision rounds at 4e-3 (bfloat16) itself
    tolerance = 1e-4 if logits.dtype in (torch.float32, torch.float64) else 2e-2
    return head, bool(difference <= tolerance * logits.double().norm())


def _candidates(module: nn.Module) -> str:
    names = ", ".join(linear_layers(module)) or "none"
    return f"{type(module).__name__} (its linear layers: {names})"


@contextmanager
def captured_input(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what goes into a layer; the hook is gone afterwards, whatever happened.

    Yields:
        A list that every call of the layer appends its first argument to.
    """
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        yield seen
    finally:
        hook.remove()

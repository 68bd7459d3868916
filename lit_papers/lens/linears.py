"""The linear layers of a network: which there are, and what goes in and comes out while it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_papers.lens.refusal import NotApplicable


@dataclass(frozen=True)
class LinearCall:
    """One call of a linear layer.

    Attributes:
        name: dotted path of the layer.
        turn: which of the layer's calls it is, from 0.
        layer: itself.
        features: a copy of its input.
        output: the very tensor that it returned, to be recognised.
        values: a copy of it, as a stranger may go on to change it in place.
    """

    name: str
    turn: int
    layer: nn.Linear
    features: Tensor
    output: Tensor
    values: Tensor


def linear_layers(network: nn.Module) -> dict[str, nn.Linear]:
    """All ``nn.Linear`` by dotted path, without the ``_orig_mod`` that ``torch.compile`` inserts."""
    return {
        name.replace("._orig_mod", "").removeprefix("_orig_mod."): layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear)
    }


def resolve_classifier(network: nn.Module, classifier: str | nn.Module) -> str:
    """The dotted path of the linear layer that the argument ``classifier`` names.

    Raises:
        NotApplicable: there is no such layer; the message lists those that there are.
    """
    layers = linear_layers(network)
    if isinstance(classifier, str):
        if classifier in layers:
            return classifier
        raise NotApplicable(f"classifier={classifier!r} is no nn.Linear of {candidates(network)}")
    wanted = getattr(classifier, "_orig_mod", classifier)  # a compiled layer stands for the layer in it
    for name, layer in layers.items():
        if layer is wanted:
            return name
    raise NotApplicable(
        f"the module given as classifier ({type(wanted).__name__}) is no nn.Linear of {candidates(network)}"
    )


@contextmanager
def linear_calls(network: nn.Module, only: str | None = None) -> Iterator[list[LinearCall]]:
    """Collect each call of the linear layers, or of one; the hooks are gone afterwards."""
    calls: list[LinearCall] = []
    turns: dict[str, int] = {}
    layers = linear_layers(network) if only is None else {only: network.get_submodule(only)}

    def note(name: str, layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        features = arguments[0] if arguments else keywords["input"]
        turn = turns[name] = turns.get(name, -1) + 1
        calls.append(LinearCall(name, turn, layer, features.detach().clone(), output, output.detach().clone()))

    hooks = [
        layer.register_forward_hook(
            lambda layer, args, kwargs, output, name=name: note(name, layer, args, kwargs, output), with_kwargs=True
        )
        for name, layer in layers.items()
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def maker_of(outputs: Tensor, linears: list[LinearCall]) -> LinearCall | None:
    """The last call of a linear layer that made these outputs, or made the same values."""
    for linear in reversed(linears):
        if linear.output is outputs:
            return linear
    for linear in reversed(linears):
        if linear.values.shape == outputs.shape and torch.equal(linear.values, outputs):
            return linear
    return None


def is_affine(linear: LinearCall, outputs: Tensor) -> bool:
    """Whether outputs are W h + b, up to the rounding of their precision."""
    layer = linear.layer
    device = torch.device("cpu") if outputs.device.type == "mps" else outputs.device
    features, weight, got = (t.detach().to(device, torch.float64) for t in (linear.features, layer.weight, outputs))
    expected = features @ weight.T
    if layer.bias is not None:
        expected = expected + layer.bias.detach().to(device, torch.float64)
    if expected.shape != got.shape:
        return False
    full = outputs.dtype in (torch.float32, torch.float64)
    tolerance = 2e-2 if not full else 2e-3 if outputs.is_cuda else 1e-4  # bfloat16 and TF32 round themselves
    return bool((expected - got).norm() <= tolerance * expected.norm())


def candidates(network: nn.Module) -> str:
    """A network and its linear layers, for messages."""
    names = ", ".join(linear_layers(network)) or "none"
    return f"{type(network).__name__} (its linear layers: {names})"

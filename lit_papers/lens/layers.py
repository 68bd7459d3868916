"""Which layers of a network are measured, and the one vector that each gives of a sample."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from lit_papers.lens.refusal import NotApplicable
from lit_papers.lens.routes import Seen
from lit_papers.lens.subject import Subject

# What passes its input on in evaluation mode, or only changes its shape.
_UNCHANGING = (nn.Identity, nn.Flatten, nn.Unflatten, _DropoutNd)


@dataclass(frozen=True)
class Layer:
    """A layer whose output is measured.

    Attributes:
        name: its dotted path.
        dim: length of the vector of a sample.
        channels_first: whether positions follow the channels in its output, else they come before.
    """

    name: str
    dim: int
    channels_first: bool

    def pooled(self, seen: Seen) -> Tensor:
        """One vector for each sample, ``(N, dim)``: the output, averaged over positions."""
        return pooled(seen.layers[self.name], self.channels_first)


def pooled(output: Tensor, channels_first: bool) -> Tensor:
    """Average an output over its positions.

    Args:
        output: vectors ``(N, d)`` or numbers ``(N,)``, which stay; maps ``(N, d, ...)`` if ``channels_first``, else
            tokens ``(N, ..., d)``.
        channels_first: see there.

    Returns:
        Shape ``(N, d)``, at least float32.

    >>> pooled(torch.ones(2, 3, 4, 4), channels_first=True).shape
    torch.Size([2, 3])
    """
    if output.ndim == 1:
        output = output[:, None]
    if output.ndim == 2:
        return output
    wide = output.to(torch.promote_types(output.dtype, torch.float32))
    return wide.flatten(2).mean(dim=2) if channels_first else wide.flatten(1, -2).mean(dim=1)


def chosen_layers(subject: Subject, layers: Sequence[str] | Literal["all"]) -> list[Layer]:
    """The layers to measure, in the order of the network, tried on one batch.

    Args:
        subject: whose network it is.
        layers: dotted paths; or ``"all"``: the blocks beside the classifier, with containers (``nn.Sequential``,
            ``nn.ModuleList``) taken apart, without those that change nothing (dropout, flattening) or do not give one
            row of numbers for each sample. A ResNet has its stem, each residual block and the pooling.

    Raises:
        NotApplicable: a path is no layer, is not used, or does not give one row for each sample; or none is left.
    """
    with subject.quiet(), subject.twin() as network:
        modules = dict(network.named_modules())
        if layers == "all":
            names = list(_blocks(network, subject.route.head))
        else:
            names = list(dict.fromkeys(layers))
            for name in names:
                if name not in modules or not name:
                    near = difflib.get_close_matches(name, modules, n=3, cutoff=0.4) or list(modules)[1:4]
                    raise NotApplicable(f"layers: {type(network).__name__} has no layer {name!r}; near are {near}")
        first_by_name = {name: any(isinstance(part, _ConvNd) for part in modules[name].modules()) for name in names}
    seen = subject.first_seen(tuple(names))
    found = []
    for name in names:
        output = seen.layers.get(name)
        reason = _unfit(output, len(seen.targets))
        if output is not None and reason is None:
            channels_first = first_by_name[name] or output.ndim > 3 or isinstance(modules[name], _BatchNorm)
            found.append(Layer(name, pooled(output, channels_first).shape[1], channels_first))
        elif layers != "all":
            raise NotApplicable(f"layers: {name!r} {reason}")
    if not found:
        raise NotApplicable('layers: there is none to measure beside the classifier; name them instead of "all"')
    return found


def _unfit(output: Tensor | None, samples: int) -> str | None:
    if output is None:
        return "is not used when the network is called"
    if not output.is_floating_point() or output.ndim == 0 or len(output) != samples or output[0].numel() == 0:
        return (
            f"gives {output.dtype} of shape {tuple(output.shape)}, not one row of numbers for each of {samples} samples"
        )
    return None


def _blocks(network: nn.Module, head: str) -> Iterator[str]:
    """Dotted paths beside the head, in the order in which they were registered."""
    root = head.rpartition(".")[0]
    while root and isinstance(network.get_submodule(root), (nn.Sequential, nn.ModuleList)):
        root = root.rpartition(".")[0]
    yield from (name for name in _parts(network.get_submodule(root), root) if name != head)


def _parts(module: nn.Module, path: str) -> Iterator[str]:
    for name, child in module.named_children():
        inside = f"{path}.{name}" if path else name
        if isinstance(child, (nn.Sequential, nn.ModuleList)):
            yield from _parts(child, inside)
        elif not isinstance(child, _UNCHANGING):
            yield inside

"""Checkpoints of a network: what they are, whether they fit, and looking at each without keeping its weights."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_NAMED = 3  # keys that a message names


@dataclass(frozen=True)
class Checkpoint:
    """A file with weights.

    Attributes:
        path: of it; None for the weights that the network has.
        step: optimizer steps before it; its place, where the file does not tell.
        epoch: finished epochs, at least 1 unless nothing was trained.
        digest: first digits of the file's SHA-256.
    """

    path: Path | None
    step: int
    epoch: int
    digest: str | None = None

    @property
    def name(self) -> str:
        """Of the file, for people."""
        return "as given" if self.path is None else self.path.name

    @property
    def untrained(self) -> bool:
        """Whether it says of itself that no step was made."""
        return self.path is not None and self.step == 0


def read_checkpoints(paths: Sequence[str | Path], network: nn.Module) -> list[Checkpoint]:
    """See that each file holds weights of this network, before anything is measured.

    Args:
        paths: of checkpoints of a Trainer, or of ``state_dict`` files.
        network: whose names and shapes they must have.

    Returns:
        The checkpoints, by step.

    Raises:
        ValueError: a file is none, or of another network; the message says what differs.
        OSError: it cannot be read.
    """
    found = []
    for place, path in enumerate(map(Path, paths)):
        content = _read(path)
        _check_same(path, _weights(path, content), network)
        step, epoch = content.get("global_step"), content.get("epoch")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        found.append(
            Checkpoint(
                path,
                step if isinstance(step, int) else place + 1,
                epoch + 1 if isinstance(epoch, int) else place + 1,  # it counts from 0 while it goes on
                digest,
            )
        )
    return sorted(found, key=lambda checkpoint: checkpoint.step)


@contextmanager
def weights_of(checkpoint: Checkpoint, network: nn.Module) -> Iterator[None]:
    """The network with the weights of a checkpoint, in place; afterwards bit by bit what it was."""
    if checkpoint.path is None:
        yield
        return
    before = [(tensor, tensor.detach().clone()) for tensor in (*network.parameters(), *network.buffers())]
    try:
        weights = _weights(checkpoint.path, _read(checkpoint.path))
        _plain(network).load_state_dict(weights)
        yield
    finally:
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: {'this is a folder; name the file in it' if path.is_dir() else 'no such file'}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        if "Unsupported global" in str(error):
            raise ValueError(
                f"{path} holds objects that are no weights, which loading would run as code: save its `state_dict` "
                "alone and pass that file"
            ) from error
        raise ValueError(f"{path} is no checkpoint, or a damaged one") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds {type(content).__name__} and no weights")
    return content


def _weights(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    weights = content.get("state_dict", content)
    tensors = isinstance(weights, Mapping) and any(isinstance(value, Tensor) for value in weights.values())
    if not tensors:
        raise ValueError(f"{path} is no checkpoint of a Trainer (it has no `state_dict`), and no `state_dict` itself")
    return dict(weights)


def _plain(network: nn.Module) -> nn.Module:
    plain: nn.Module = getattr(network, "_orig_mod", network)
    return plain


def _check_same(path: Path, weights: Mapping[str, Any], network: nn.Module) -> None:
    mine = _plain(network).state_dict()
    missing = [name for name in mine if name not in weights]
    foreign = [name for name in weights if name not in mine]
    other = [
        f"{name} {tuple(weights[name].shape)} for {tuple(value.shape)}"
        for name, value in mine.items()
        if isinstance(value, Tensor) and isinstance(weights.get(name), Tensor) and weights[name].shape != value.shape
    ]
    told = [
        f"{what} {', '.join(names[:_NAMED])}{' ...' if len(names) > _NAMED else ''}"
        for what, names in (("it lacks", missing), ("it has besides", foreign), ("of other shape are", other))
        if names
    ]
    if told:
        raise ValueError(f"{path} is of another model than {type(network).__name__}: {'; '.join(told)}")

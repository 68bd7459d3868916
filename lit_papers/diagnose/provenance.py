"""Where the numbers of a report come from."""

import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lit_papers
from lit_papers.diagnose.checkpoints import Checkpoint
from lit_papers.lens import data as readings


def network_facts(network: nn.Module, moments: Sequence[Checkpoint]) -> dict[str, Any]:
    """What a reader wants to know of the network first."""
    parameters = list(network.parameters())
    whole = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    files = [moment.path.name for moment in moments if moment.path is not None]
    return {
        "network": f"{type(network).__module__}.{type(network).__qualname__}",
        "parameters": f"{whole:,}" + ("" if trained == whole else f" ({trained:,} of them trained)"),
        "weights": "as given" if not files else files[0] if len(files) == 1 else f"{len(files)} checkpoints",
    }


def provenance(
    loaders: Mapping[str, Any],
    moments: Sequence[Checkpoint],
    seed: int,
    minutes: float,
    seconds: float,
    device: torch.device,
) -> dict[str, Any]:
    """Versions, data, seed, command and cost."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "torchmetrics", "numpy"))
    facts: dict[str, Any] = {
        "lit-papers": lit_papers.__version__,
        "versions": f"Python {platform.python_version()}, {versions}",
        "machine": f"{platform.system()} {platform.machine()}, {device}, {torch.get_num_threads()} threads",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "seed": seed,
        "cost": f"{seconds:.1f} s of {60 * minutes:g} s",
    }
    for data, loader in loaders.items():
        facts[f"{data} data"] = _said_of_data(loader)
    for moment in moments:
        if moment.path is not None:
            facts[moment.path.name] = f"step {moment.step}, sha256 {moment.digest}..., {moment.path}"
    ours = Path(sys.argv[0]).name in ("__main__.py", "lit-papers")
    if ours and sys.argv[1:2] in (["diagnose"], ["fit"]):
        facts["command"] = shlex.join(["python", "-m", "lit_papers", *sys.argv[1:]])
    return facts


def not_finite(network: nn.Module) -> str | None:
    """Which weights are NaN or infinite; None where none are."""
    names = [
        name
        for name, tensor in (*network.named_parameters(), *network.named_buffers())
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if not names:
        return None
    listed = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
    return f"{len(names)} tensors of the network are not finite (NaN or infinite): {listed}"


def _said_of_data(loader: Any) -> str:
    dataset = getattr(loader, "dataset", loader)
    number = readings.length(dataset)
    said = f"{type(dataset).__name__}, {'of unknown length' if number is None else f'{number} samples'}"
    size = getattr(loader, "batch_size", None)
    return said + (f", in batches of {size}" if size else "")

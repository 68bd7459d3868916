"""``predict`` keeps what it computes: one file a process, which `torch.load` reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from lit_papers.run_folder import run_folder


class WritePredictions(BasePredictionWriter):
    """Writes ``predictions.pt`` into the run's folder, and prints its path.

    The file holds a list with one entry per data loader, each a dict:

    - ``predictions``: what ``predict_step`` returned. Tensors of equal rows are joined to one, ``(N, ...)``, in the
      order of ``indices``; anything else stays a list of batches.
    - ``indices``: the number of each sample in its data set, a list of N; None where the loader does not tell.

    Read it by ``torch.load("predictions.pt")``. Each of several processes writes the samples it was given, into
    ``predictions_rank<k>.pt``.
    """

    def __init__(self) -> None:
        super().__init__("epoch")

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        """Called by Lightning with everything predicted; with several loaders a list for each."""
        folder = trainer.strategy.broadcast(run_folder(trainer))
        if folder is None:  # fast_dev_run leaves nothing behind
            return
        is_nested = len(batch_indices) > 1
        loaders = predictions if is_nested else [predictions]
        content = [
            {"predictions": _joined(list(batches)), "indices": _flat(indices)}
            for batches, indices in zip(loaders, batch_indices, strict=True)
        ]
        name = "predictions.pt" if trainer.world_size == 1 else f"predictions_rank{trainer.global_rank}.pt"
        Path(folder).mkdir(parents=True, exist_ok=True)
        torch.save(content, Path(folder) / name)


def _joined(batches: list[Any]) -> Any:
    are_rows = batches and all(isinstance(batch, Tensor) and batch.ndim > 0 for batch in batches)
    if are_rows and len({(batch.shape[1:], batch.dtype) for batch in batches}) == 1:
        return torch.cat([batch.cpu() for batch in batches])  # (N, ...)
    return batches


def _flat(indices: Sequence[Any]) -> list[int] | None:
    if not indices or any(batch is None for batch in indices):
        return None
    return [int(index) for batch in indices for index in batch]

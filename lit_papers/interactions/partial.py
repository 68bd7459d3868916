"""Finished samples on disk, kept for the same call alone."""

import hashlib
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_papers.files import write_whole
from lit_papers.interactions.result import InteractionResult


class PartialFile:
    """Finished samples of one call.

    A call is known by its samples and counts, and by what it *does*: the values that model, players, baseline and value
    function give a few coalitions of each sample. Arguments can look alike and behave differently.

    Args:
        path: of the file.
        settings: whatever is compared as it is: counts, orders, pairs, names.
        samples: tensors that are compared bit by bit.
        values: of a few coalitions, float64; compared up to ``tolerance``.
        tolerance: of rounding, in the units of the values.
    """

    def __init__(
        self, path: str | Path, settings: Any, samples: list[Tensor], values: Tensor, tolerance: float
    ) -> None:
        self.path = Path(path)
        digest = hashlib.sha256(repr(settings).encode())
        for tensor in samples:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        self._fingerprint = digest.hexdigest()
        self._values = values
        self._tolerance = tolerance

    def read(self) -> dict[int, InteractionResult]:
        """Finished samples by their place; none if there is no file.

        Raises:
            ValueError: the file is of another call.
        """
        if not self.path.exists():
            return {}
        content = torch.load(self.path, weights_only=True)
        before = content.get("values")
        same = content.get("fingerprint") == self._fingerprint and before.shape == self._values.shape
        if not (same and torch.allclose(before, self._values, rtol=0.0, atol=self._tolerance)):
            raise ValueError(
                f"{self.path} is of another call: the model, samples or settings differ. Delete it, or pass another "
                "`partial`"
            )
        return {place: InteractionResult(**fields) for place, fields in content["samples"].items()}

    def write(self, found: dict[int, InteractionResult]) -> None:
        """Replace the file as a whole: a run that is killed meanwhile leaves the old one."""
        samples = {place: vars(result) for place, result in found.items()}
        content = BytesIO()
        torch.save({"fingerprint": self._fingerprint, "values": self._values, "samples": samples}, content)
        write_whole(self.path, content.getvalue())

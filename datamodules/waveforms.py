"""Sounds from WAV files: read with the standard library, cut or padded to one length."""

import io
import wave
from copy import copy

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lit_papers.datamodules.file_tree import FileTree
from lit_papers.datamodules.images import CorruptDataError, LabelledImages

Sound = npt.NDArray[np.int16]


class Waveforms(LabelledImages):
    """Recordings as float32 in [-1, 1], ``(num_samples,)``, cut or padded with silence at the end.

    Loaders fetch whole batches, as they do of images.

    Args:
        tree: where the files are.
        names: of the files in the tree, ``N`` of them.
        targets: the class of each, int64, ``(N,)``.
        num_samples: length of a recording as delivered.
        sample_rate: that every file must have, in Hz.
        in_memory: read all files now; otherwise each when it is fetched.

    Raises:
        CorruptDataError: a file is damaged (now, or when it is fetched).
        ValueError: a file has another rate, or is not 16-bit mono.
    """

    def __init__(
        self,
        tree: FileTree,
        names: list[str],
        targets: Tensor,
        *,
        num_samples: int,
        sample_rate: int,
        in_memory: bool,
    ) -> None:
        super().__init__(targets, mean=(0.0,), std=(1.0,), white=1)
        self.tree = tree
        self.names = names
        self.num_samples = num_samples
        self.sample_rate = sample_rate
        self._sounds = [self._read(name) for name in names] if in_memory else None

    def subset(self, indices: Tensor) -> "Waveforms":
        """These recordings alone."""
        part, chosen = copy(self), indices.tolist()
        part.names, part.targets = [self.names[i] for i in chosen], self.targets[indices]
        part._sounds = None if self._sounds is None else [self._sounds[i] for i in chosen]
        return part

    def fetch(self, indices: list[int]) -> Tensor:
        """The recordings as they are stored: int16, ``(len(indices), num_samples)``."""
        batch = np.zeros((len(indices), self.num_samples), dtype=np.int16)
        for row, index in zip(batch, indices, strict=True):
            sound = self._read(self.names[index]) if self._sounds is None else self._sounds[index]
            row[: len(sound)] = sound[: self.num_samples]
        return torch.from_numpy(batch)

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        sounds = self.fetch(indices).float() / 32768
        return list(zip(sounds.unbind(), self.targets[indices].tolist(), strict=True))

    def _read(self, name: str) -> Sound:
        return read_wav(self.tree.read(name), self.tree.describe(name), self.sample_rate)


def read_wav(content: bytes, path: str, sample_rate: int) -> Sound:
    """The samples of a WAV file, 16-bit mono.

    Args:
        content: of the file.
        path: what errors call it.
        sample_rate: that it must have, in Hz.

    Returns:
        int16, ``(T,)``.

    Raises:
        CorruptDataError: it is no WAV file, or cut short.
        ValueError: it has another rate, or is not 16-bit mono.
    """
    try:
        with wave.open(io.BytesIO(content)) as file:
            found = (file.getnchannels(), 8 * file.getsampwidth(), file.getframerate())
            frames, declared = file.readframes(file.getnframes()), file.getnframes()
    except (wave.Error, EOFError) as error:
        raise CorruptDataError(f"{path} is not an intact WAV file: {error}") from error
    if found != (1, 16, sample_rate):
        raise ValueError(
            f"{path} has {found[0]} channel{'s' * (found[0] > 1)} of {found[1]} bits at {found[2]} Hz; "
            f"wanted is 1 of 16 bits at {sample_rate} Hz: convert it first"
        )
    sound: Sound = np.frombuffer(frames, dtype="<i2").astype(np.int16)
    if len(sound) < declared:
        raise CorruptDataError(f"{path} is cut short: {len(sound)} of {declared} samples are there; get it again")
    return sound

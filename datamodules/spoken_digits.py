"""The Free Spoken Digit Dataset: ten words, six speakers, in files of a second or less."""

import re
from pathlib import Path

import torch

from lit_papers.datamodules.file_tree import FileTree
from lit_papers.datamodules.images import ImageDataModule, Splits, check_integer
from lit_papers.datamodules.waveforms import Waveforms
from lit_papers.locations import MissingDataError, find_tree

_NAME = re.compile(r"(?:.*/)?(\d)_([^_/]+)_(\d+)\.wav")


class SpokenDigits(ImageDataModule[Waveforms]):
    """Spoken digits (Jackson et al., Free Spoken Digit Dataset): 3000 recordings of 8 kHz, 16 bit, mono.

    Files are called ``{digit}_{speaker}_{index}.wav``. As the data set has it, indices 0 to 4 of each speaker and
    digit are the test split; we take 5 to 9 for validation and the rest for training. All speakers occur in all
    splits, so this tests *new recordings of known voices*; ``held_out_speaker`` tests a new voice.

    Batches are waveforms, float32 ``(B, num_samples)`` in [-1, 1], and digits, int64 ``(B,)``.

    Args:
        root: the folder or .zip of the files, or a folder that contains it as ``fsdd.zip`` or ``fsdd``; None looks
            into ``$LIT_PAPERS_DATA``.
        batch_size: recordings in a batch, on each process; at least 1.
        num_samples: length of a recording as delivered, at least 1: longer ones are cut, shorter ones padded with
            silence at the end.
        num_workers: processes that load, at least 0; 0 is fastest, as all recordings are kept in memory (20 MB).
        held_out_speaker: all recordings of this speaker are the test split, and none is in the others.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range, the speaker is unknown, or a file is not 8 kHz 16-bit mono.
        MissingDataError: no recording was found (at ``setup``).
        CorruptDataError: a file is damaged (at ``setup``).
    """

    num_classes = 10
    sample_rate = 8000
    samples = "recordings"

    def __init__(
        self,
        root: str | Path | None = None,
        batch_size: int = 64,
        num_samples: int = 8000,
        num_workers: int = 0,
        held_out_speaker: str | None = None,
    ) -> None:
        super().__init__(batch_size, seed=0, num_workers=num_workers)
        check_integer("num_samples", num_samples, least=1)
        self.root = root
        self.num_samples = num_samples
        self.held_out_speaker = held_out_speaker

    def prepare_data(self) -> None:
        """Make sure that there is something to read."""
        find_tree("SpokenDigits", self.root)

    def load(self) -> Splits[Waveforms]:
        """Read all recordings and divide them by index, or by speaker."""
        tree = FileTree(find_tree("SpokenDigits", self.root), layout="{digit}_{speaker}_{index}.wav")
        found = [match for match in map(_NAME.fullmatch, tree.names()) if match]
        if not found:
            raise MissingDataError(
                f"there is no recording called like 7_jackson_32.wav in {tree.root}: point `root` (--data.root=PATH) "
                "at the Free Spoken Digit Dataset, a folder or .zip"
            )
        speakers = sorted({match[2] for match in found})
        if self.held_out_speaker is not None and self.held_out_speaker not in speakers:
            raise ValueError(f"`held_out_speaker`={self.held_out_speaker!r} is none of {', '.join(speakers)}")
        everything = Waveforms(
            tree,
            [match[0] for match in found],
            torch.tensor([int(match[1]) for match in found]),
            num_samples=self.num_samples,
            sample_rate=self.sample_rate,
            in_memory=True,
        )
        index = torch.tensor([int(match[3]) for match in found])
        held_out = torch.tensor([match[2] == self.held_out_speaker for match in found])
        test = index < 5 if self.held_out_speaker is None else held_out
        val = (index >= 5) & (index < 10) & ~held_out
        train = (index >= 10) & ~held_out
        return Splits(*(everything.subset(torch.nonzero(part).flatten()) for part in (train, val, test)))

"""Speech Commands: 35 words in recordings of one second."""

from pathlib import Path

import torch

from lit_papers.datamodules.file_tree import FileTree
from lit_papers.datamodules.images import ImageDataModule, Splits, check_integer, import_extra
from lit_papers.datamodules.named_sets import find_or_fetch
from lit_papers.datamodules.waveforms import Waveforms
from lit_papers.locations import MissingDataError, find_tree

WORDS = (
    "backward", "bed", "bird", "cat", "dog", "down", "eight", "five", "follow", "forward", "four", "go", "happy",
    "house", "learn", "left", "marvin", "nine", "no", "off", "on", "one", "right", "seven", "sheila", "six", "stop",
    "three", "tree", "two", "up", "visual", "wow", "yes", "zero",
)  # fmt: skip
_LISTS = {"val": "validation_list.txt", "test": "testing_list.txt"}


class SpeechCommands(ImageDataModule[Waveforms]):
    """Speech Commands, version 2 (Warden 2018): 105,829 recordings of 35 words, 16 kHz, 16 bit, mono.

    Files are ``<word>/<recording>.wav``; ``validation_list.txt`` and ``testing_list.txt`` name the splits, the rest is
    for training. Each recording is read when it is needed.

    Batches are waveforms, float32 ``(B, num_samples)`` in [-1, 1], and words, int64 ``(B,)`` by alphabet.

    Args:
        root: the folder or .zip of the words, or a folder that contains it as ``speech_commands_v0.02`` (torchaudio's
            layout included); None looks into ``$LIT_PAPERS_DATA``.
        batch_size: recordings in a batch, on each process; at least 1.
        num_samples: length of a recording as delivered, at least 1: longer ones are cut, shorter ones padded with
            silence at the end.
        num_workers: processes that read, at least 0.
        download: let torchaudio fetch the files into ``root`` (else ``$LIT_PAPERS_DATA``) if they are missing, 2.3 GB.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range, a list names a missing file, or a file is not 16 kHz 16-bit mono.
        MissingDataError: the files were not found (at ``prepare_data`` and ``setup``).
        CorruptDataError: a file is damaged (when it is fetched).
    """

    num_classes = len(WORDS)
    sample_rate = 16000
    samples = "recordings"

    def __init__(
        self,
        root: str | Path | None = None,
        batch_size: int = 128,
        num_samples: int = 16000,
        num_workers: int = 0,
        download: bool = False,
    ) -> None:
        super().__init__(batch_size, seed=0, num_workers=num_workers)
        check_integer("num_samples", num_samples, least=1)
        self.root = root
        self.num_samples = num_samples
        self.download = download

    def prepare_data(self) -> None:
        """Make sure that the data are there, or fetch them if asked to; Lightning calls this once a node."""
        find_or_fetch("SpeechCommands", self.root, find_tree, _fetch if self.download else None)

    def load(self) -> Splits[Waveforms]:
        """List the files and divide them as the lists say."""
        tree = FileTree(find_tree("SpeechCommands", self.root), layout="<word>/<recording>.wav")
        names = tree.names()
        lists = {split: next((name for name in names if name.endswith(file)), None) for split, file in _LISTS.items()}
        if None in lists.values():
            wanted = " and ".join(_LISTS.values())
            raise MissingDataError(f"{tree.root} lacks {wanted}: point `root` at Speech Commands, version 2")
        top = str(lists["val"]).removesuffix(_LISTS["val"])  # the archive may have a folder around all
        sounds = [name for name in names if name.endswith(".wav") and not name.startswith(f"{top}_background_noise_/")]
        words = [name.removeprefix(top).split("/")[0] for name in sounds]
        unknown = sorted(set(words) - set(WORDS))
        if unknown:
            raise ValueError(f"{tree.root} has the folder {unknown[0]!r}, which is no word of Speech Commands")
        position = {name.removeprefix(top): place for place, name in enumerate(sounds)}
        split = torch.zeros(len(sounds), dtype=torch.int64)
        for number, name in enumerate(lists.values(), start=1):
            for line in tree.read(str(name)).decode().split():
                if line not in position:
                    raise ValueError(f"{tree.describe(str(name))} names {line}, which is not there: get the data again")
                split[position[line]] = number
        everything = Waveforms(
            tree,
            sounds,
            torch.tensor([WORDS.index(word) for word in words]),
            num_samples=self.num_samples,
            sample_rate=self.sample_rate,
            in_memory=False,
        )
        return Splits(*(everything.subset(torch.nonzero(split == number).flatten()) for number in range(3)))


def _fetch(target: Path) -> None:
    import_extra("torchaudio.datasets", "audio").SPEECHCOMMANDS(target, download=True)

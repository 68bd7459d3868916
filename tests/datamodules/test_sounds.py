"""Spoken digits and speech commands, from generated recordings."""

import pickle
import wave
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_papers.datamodules import CorruptDataError, MissingDataError, SpeechCommands, SpokenDigits
from lit_papers.locations import is_present


def write(path: Path, samples: Sequence[int], rate: int = 8000, channels: int = 1, width: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(np.array(samples, dtype={1: "<u1", 2: "<i2", 4: "<i4"}[width]).tobytes())


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Three digits of two speakers, twelve recordings each; the first sample tells which it is."""
    for digit in range(3):
        for number, speaker in enumerate(("anna", "bert")):
            for index in range(12):
                write(
                    tmp_path / f"fsdd/{digit}_{speaker}_{index}.wav", [1000 * digit + 100 * number + index, -32768, 5]
                )
    return tmp_path / "fsdd"


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    folder = tmp_path / "speech_commands_v0.02"
    for word in ("yes", "no"):
        for index in range(4):
            write(folder / f"{word}/{index}.wav", [index] * 20, rate=16000)
    write(folder / "_background_noise_/hum.wav", [1] * 99, rate=16000)
    (folder / "validation_list.txt").write_text("yes/1.wav\nno/1.wav\n")
    (folder / "testing_list.txt").write_text("yes/2.wav\n")
    return folder


def first_samples(data: Any) -> list[int]:
    return sorted(round(float(sound[0]) * 32768) for sound, _ in (data[i] for i in range(len(data))))


def test_digits_are_split_by_index(digits: Path) -> None:
    data = SpokenDigits(digits, batch_size=4, num_samples=5)
    data.setup()
    assert {value % 100 for value in first_samples(data.test_set)} == set(range(5))
    assert {value % 100 for value in first_samples(data.val_set)} == set(range(5, 10))
    assert {value % 100 for value in first_samples(data.train_set)} == {10, 11}
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [12, 30, 30]
    sounds, targets = next(iter(data.train_dataloader()))
    assert sounds.shape == (4, 5)
    assert sounds.dtype == torch.float32
    assert targets.dtype == torch.int64
    assert (sounds[:, 0] * 32768 // 1000).long().tolist() == targets.tolist()
    assert sounds[0, 1:].tolist() == pytest.approx([-1, 5 / 32768, 0, 0])  # padded


def test_longer_recordings_are_cut(digits: Path) -> None:
    data = SpokenDigits(digits, num_samples=2, batch_size=2)
    data.setup()
    assert data.train_set[0][0].shape == (2,)


def test_a_held_out_speaker_is_in_no_other_split(digits: Path) -> None:
    data = SpokenDigits(digits, num_samples=3, held_out_speaker="bert")
    data.setup()
    assert {value % 1000 // 100 for value in first_samples(data.test_set)} == {1}
    assert len(data.test_set) == 36
    for part in (data.train_set, data.val_set):
        assert {value % 1000 // 100 for value in first_samples(part)} == {0}
    with pytest.raises(ValueError, match="`held_out_speaker`='carl' is none of anna, bert"):
        SpokenDigits(digits, held_out_speaker="carl").setup()


def test_an_archive_is_the_same(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "data"
    place.mkdir()
    with zipfile.ZipFile(place / "fsdd.zip", "w") as archive:
        for path in digits.iterdir():
            archive.write(path, f"around/{path.name}")
    monkeypatch.setenv("LIT_PAPERS_DATA", str(place))
    ours, theirs = SpokenDigits(num_samples=3), SpokenDigits(digits, num_samples=3)
    ours.prepare_data()
    ours.setup()
    theirs.setup()
    for index in range(12):
        assert torch.equal(ours.train_set[index][0], theirs.train_set[index][0])
    assert is_present("SpokenDigits")
    assert is_present("SpokenDigits", tmp_path)


def test_commands_are_split_by_the_lists(commands: Path) -> None:
    for root in (commands, commands.parent):
        data = SpeechCommands(root, num_samples=20, batch_size=2, num_workers=0)
        data.setup()
        assert first_samples(data.val_set) == [1, 1]
        assert first_samples(data.test_set) == [2]
        assert first_samples(data.train_set) == [0, 0, 2, 3, 3]
        assert data.num_classes == 35
        assert {target for _, target in (data.train_set[i] for i in range(5))} == {18, 33}  # "no" and "yes" of 35


def test_commands_are_read_in_workers(commands: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "words.zip", "w") as archive:
        for path in commands.rglob("*.*"):
            archive.write(path, path.relative_to(commands))
    data = SpeechCommands(tmp_path / "words.zip", num_samples=20, batch_size=2, num_workers=1)
    data.setup()
    assert sum(len(targets) for _, targets in data.train_eval_dataloader()) == 5
    assert len(pickle.dumps(data.train_set)) < 10_000  # names, no sounds


@pytest.mark.parametrize("module", [SpokenDigits, SpeechCommands])
def test_missing_data_say_what_helps(module: Any, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"was not found(.|\n)*nowhere to look(.|\n)*--data.root"):
        module().prepare_data()
    with pytest.raises(MissingDataError, match=r"nothing|Looked in"):
        module(tmp_path / "none").prepare_data()
    with pytest.raises(MissingDataError, match="point `root`"):
        module(tmp_path).setup()
    assert not is_present(module.__name__, tmp_path / "none")


def test_downloading_needs_a_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folder to put SpeechCommands in"):
        SpeechCommands(download=True).prepare_data()
    torchaudio = pytest.importorskip("torchaudio")

    def refuse(root: Path, download: bool) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torchaudio.datasets, "SPEECHCOMMANDS", refuse)
    with pytest.raises(RuntimeError, match=r"could not be downloaded into .*no network"):
        SpeechCommands(tmp_path / "new", download=True).prepare_data()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 16000}, r"0_anna_0.wav has 1 channel of 16 bits at 16000 Hz; wanted is 1 of 16 bits at 8000 Hz"),
        ({"channels": 3}, "has 3 channels of 16 bits"),
        ({"width": 4}, "has 1 channel of 32 bits"),
    ],
)
def test_other_formats_are_refused(options: dict[str, Any], message: str, digits: Path) -> None:
    write(digits / "0_anna_0.wav", [1, 2, 3], **options)
    with pytest.raises(ValueError, match=message):
        SpokenDigits(digits).setup()


def test_damaged_files_are_named(digits: Path) -> None:
    path = digits / "1_bert_4.wav"
    content = path.read_bytes()
    path.write_bytes(content[:-2])
    with pytest.raises(CorruptDataError, match=r"1_bert_4.wav is cut short: 2 of 3 samples"):
        SpokenDigits(digits).setup()
    path.write_bytes(b"no sound at all")
    with pytest.raises(CorruptDataError, match=r"1_bert_4.wav is not an intact WAV file"):
        SpokenDigits(digits).setup()


def test_commands_that_do_not_fit_are_named(commands: Path) -> None:
    (commands / "testing_list.txt").write_text("yes/7.wav\n")
    with pytest.raises(ValueError, match=r"testing_list.txt names yes/7.wav, which is not there"):
        SpeechCommands(commands).setup()
    (commands / "testing_list.txt").unlink()
    with pytest.raises(MissingDataError, match=r"lacks validation_list.txt and testing_list.txt"):
        SpeechCommands(commands).setup()
    (commands / "testing_list.txt").write_text("")
    write(commands / "maybe/0.wav", [1], rate=16000)
    with pytest.raises(ValueError, match="'maybe', which is no word"):
        SpeechCommands(commands).setup()


@pytest.mark.parametrize("module", [SpokenDigits, SpeechCommands])
def test_mistakes(module: Any) -> None:
    for name in ("batch_size", "num_samples"):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1"):
            module(**{name: 0})

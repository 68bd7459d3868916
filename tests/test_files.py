"""Files that are read again are whole, however many processes write them and whenever one is killed."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lit_papers.files import write_whole


def test_text_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "grün\n")
    assert path.read_bytes() == "grün\n".encode()
    write_whole(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(tmp_path.iterdir()) == [path]


def test_several_write_one_file_at_once(tmp_path: Path) -> None:
    """Two searches of one study both write its best configuration: neither may take the other's half away."""
    path = tmp_path / "best.yaml"

    def write(letter: str) -> None:
        for _ in range(300):
            write_whole(path, 1000 * letter)
            assert path.read_text() in (1000 * "a", 1000 * "b")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, "ab"))
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_whole(path, "before")

    def full(self: Path, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]

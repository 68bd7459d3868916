"""Files that are read again: whole, or not there."""

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file in one step, so that being killed leaves the one before, and not half of this one.

    Args:
        path: of the file, in a folder that is there.
        text: its content, written as UTF-8.
    """
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)

"""Files that are read again: whole, or not there."""

from pathlib import Path
from uuid import uuid4


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file in one step, so that being killed leaves the one before, and not half of this one.

    Several processes may write the same file: it is that of the last one.

    Args:
        path: of the file, in a folder that is there.
        content: text, written as UTF-8, or bytes.
    """
    # of a name of its own: under one name, whoever is second finds that the first has moved it away
    part = path.with_name(f"{path.name}.{uuid4().hex}.part")
    try:
        part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise

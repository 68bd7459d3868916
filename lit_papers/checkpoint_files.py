"""Is this a checkpoint? Asked before a run begins, as what Lightning says of other files does not help."""

from pathlib import Path

import torch

_WORDS = ("best", "last", "hpc")  # Lightning finds these itself


def check_checkpoint(path: str) -> None:
    """Refuse a ``ckpt_path`` that no run can be continued from.

    Args:
        path: a file, the folder of a sharded checkpoint, an address, or one of Lightning's words.

    Raises:
        ValueError: there is nothing, or something else; the message says what.
        OSError: it cannot be read.
    """
    if path in _WORDS or "://" in path:
        return
    place = Path(path).expanduser()
    if not place.exists():
        raise ValueError(f"--ckpt_path {path}: no such file")
    if place.is_dir():
        if not any((place / name).exists() for name in (".metadata", "meta.pt", "checkpoint")):
            raise ValueError(f"--ckpt_path {path}: this is a folder; name the .ckpt file in it")
        return
    try:
        with place.open("rb") as file:
            # weights stay on the disk; other objects than plain ones are no reason to doubt it
            content = torch.load(file, map_location="meta", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        if "Weights only load failed" in str(error) and "Unsupported global" in str(error):
            return
        raise ValueError(f"--ckpt_path {path}: this is no checkpoint, or a damaged one") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise ValueError(f"--ckpt_path {path}: this is no checkpoint of a Trainer, as it has no `state_dict`")

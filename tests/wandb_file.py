"""Reads a run that W&B keeps offline: protobuf records in the framing of LevelDB's log."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_BLOCK = 32768
_HEADER = struct.Struct("<IHB")  # checksum, length, kind
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """What ``run-<id>.wandb`` holds: hyperparameters, rows of the history, and the exit code."""

    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None


def _records(content: bytes) -> Iterator[bytes]:
    """Payloads of the log; its first 7 bytes are W&B's own, and a record may span blocks."""
    position, parts = 7, b""
    while position + _HEADER.size <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER.size:  # padding: no header fits
            position += left
            continue
        _, length, kind = _HEADER.unpack_from(content, position)
        start = position + _HEADER.size
        position = start + length
        parts = content[start:position] if kind in (_FULL, _FIRST) else parts + content[start:position]
        if kind in (_FULL, _LAST):
            yield parts


def read_run(path: Path) -> OfflineRun:
    """Read one file."""
    from wandb.proto.wandb_internal_pb2 import Record

    run = OfflineRun()
    for payload in _records(path.read_bytes()):
        record = Record.FromString(payload)
        for update in (record.run.config.update, record.config.update):
            run.config |= {item.key: json.loads(item.value_json) for item in update if item.key}
        if record.HasField("history"):
            row: dict[str, Any] = {}
            for item in record.history.item:
                *parents, key = item.nested_key or [item.key]
                inner = row
                for parent in parents:  # media: one item for each entry of their description
                    inner = inner.setdefault(parent, {})
                inner[key] = json.loads(item.value_json)
            run.history.append(row)
        if record.HasField("exit"):
            run.exit_code = record.exit.exit_code
    return run

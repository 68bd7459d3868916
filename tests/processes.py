"""Processes that a test starts: with default signals, found by their group, and gone when the test is, however it went.

A test runner that was started in the background has SIGINT ignored, and hands that on to whatever it starts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


def default_signals() -> None:
    """For ``preexec_fn``."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def started(words: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A command that leads a group of its own, none of which outlives the block; its output is one pipe."""
    process = subprocess.Popen(
        list(words), cwd=cwd, env=None if env is None else dict(env), text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=default_signals,
    )  # fmt: skip
    try:
        yield process
    finally:
        end_group(process.pid)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def end_group(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def members(group: int) -> list[int]:
    """The processes of a group that still run; a zombie has ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # gone while we looked
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(int(path.parent.name))
    return found


def wait_until_gone(groups: Sequence[int], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while left := [process for group in groups for process in members(group)]:
        assert time.monotonic() < end, left
        time.sleep(0.05)

"""Processes that a test starts: with default signals, found by their group, and gone when the test is, however it went.

A test runner that was started in the background has SIGINT ignored, and hands that on to whatever it starts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
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


@contextmanager
def forked(function: Callable[[], int], output: Path) -> Iterator[int]:
    """A copy of this process, which has imported everything, that runs a function; yields its number, a group's too.

    Its exit status is what the function returns, or 1 with the traceback in ``output``.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setsid()
            default_signals()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            target = os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(target, 1), os.dup2(target, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
            status = function()
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    try:
        yield child
    finally:
        end_group(child)
        with suppress(ChildProcessError):  # a test that waited for it has its status
            os.waitpid(child, 0)


def status_of(child: int, seconds: float) -> int:
    """Exit status of a forked process, which must end within so many seconds."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        assert time.monotonic() < end, f"process {child} still runs"
        time.sleep(0.05)


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

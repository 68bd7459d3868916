"""Runs that are known beforehand: each a process and a folder, found again when it is finished."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_papers.files import write_whole
from lit_papers.trials.fingerprint import fingerprint
from lit_papers.trials.processes import Call, ending, undisturbed

REQUEST, ANSWER, LOG = "request.json", "answer.json", "log.txt"


class FolderInUseError(RuntimeError):
    """Another command works in the same folder."""


@dataclass(frozen=True)
class Run:
    """One run, and where it is kept.

    Attributes:
        folder: of this run alone; its name need not tell runs apart, as the fingerprint does.
        request: what the process reads, plain types.
        identity: what makes it another run when it changes: the values that it computes from.
        weight: expected seconds.
    """

    folder: Path
    request: dict[str, Any]
    identity: dict[str, Any]
    weight: float = 1.0

    @property
    def fingerprint(self) -> str:
        """Of the identity."""
        return fingerprint(self.identity)

    def answer(self) -> dict[str, Any] | None:
        """The values that the finished run has left; None if it, as it is now, has not finished."""
        try:
            answer: dict[str, Any] = json.loads((self.folder / ANSWER).read_text())
        except (OSError, ValueError):
            return None
        if answer.get("fingerprint") != self.fingerprint:
            return None
        values: dict[str, Any] = answer["values"]
        return values

    def seal(self, values: dict[str, Any]) -> None:
        """Keep the values, as those of the run that it is now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_answer(self.folder, {"fingerprint": self.fingerprint, "values": values})


def write_answer(folder: Path, values: dict[str, Any]) -> None:
    """In the process of a run: leave what it has found, in one step, so that half an answer is none."""
    write_whole(folder / ANSWER, json.dumps(values))


def run_all(
    module: str,
    runs: Sequence[Run],
    jobs: int,
    on_finish: Callable[[Run, str | None], None],
    preload: Sequence[str] = (),
) -> None:
    """Run what has not finished yet, some side by side, in order.

    Each calls ``main(folder)`` of the module, in a process of its own; it reads ``request.json`` there and leaves its
    values with `write_answer`. It has one thread unless ``$OMP_NUM_THREADS`` says otherwise, so that numbers and
    seconds do not depend on ``jobs``.

    Args:
        module: what a process runs; its ``main`` returns the exit status.
        runs: all of them; those of one folder are the same run.
        jobs: how many run side by side.
        on_finish: called with each run that has ended now, and the reason if it failed.
        preload: modules that are imported once for all runs.

    Raises:
        KeyboardInterrupt: passed on when all processes are gone.
    """
    waiting = list({run.folder: run for run in runs if run.answer() is None}.values())
    running: list[tuple[Run, Call]] = []
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        while waiting or running:
            for pair in [pair for pair in running if pair[1].status is not None]:
                with undisturbed():
                    running.remove(pair)
                    reason = _finish(*pair)
                on_finish(pair[0], reason)
            while waiting and len(running) < jobs:
                with undisturbed():
                    run = waiting.pop(0)
                    run.folder.mkdir(parents=True, exist_ok=True)
                    (run.folder / ANSWER).unlink(missing_ok=True)
                    (run.folder / REQUEST).write_text(json.dumps(run.request))
                    running.append((run, Call(module, run.folder, run.folder / LOG, preload)))
            if running:
                time.sleep(0.1)
    finally:
        if running:
            with ending([process for _, process in running]):
                running.clear()


def _finish(run: Run, process: Call) -> str | None:
    """Seal the answer of a run with its fingerprint; the reason if there is none."""
    process.close()
    if process.killed_by is not None:
        return f"ended by {process.killed_by.name} (what it printed: {process.log})"
    if process.status != 0:
        return f"exit status {process.status}: {process.last_line()} (all of it: {process.log})"
    try:
        values = json.loads((run.folder / ANSWER).read_text())
    except (OSError, ValueError):
        return f"it left no answer (what it printed: {process.log})"
    run.seal(values)
    return None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep a folder to this command while the block lasts; the system frees it however the command ends.

    Raises:
        FolderInUseError: another command has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUseError(f"another command runs in {folder}: wait for it, or give another --out") from None
        yield

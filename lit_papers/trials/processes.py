"""A process for each run: with a log, ended with all it has started, and never an orphan of an interrupted command."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lit_papers.mistakes import INTERRUPTED, TERMINATED

_PATIENCE = 5.0  # seconds that a run has to end by itself when it is interrupted


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a scheduler sends: as tidy an end as Ctrl-C."""


@dataclass
class Process:
    """A run under way, which leads a process group of its own.

    Attributes:
        popen: the process.
        log: what it prints.
        started: when, by the monotonic clock, in seconds.
    """

    popen: subprocess.Popen[bytes]
    log: Path
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def start(
        cls, words: Sequence[str], log: Path, *, flags: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> "Process":
        """Start ``python <flags> -m <words>``, whose main module calls `end_with_parent`.

        Args:
            words: the module, and its arguments.
            log: file of its output.
            flags: of the interpreter.
            environment: the variables of the process; None for our own.
        """
        with log.open("wb") as output:
            popen = subprocess.Popen(  # noqa: S603  # the words are the user's own file
                [sys.executable, *flags, "-m", *words],
                stdin=subprocess.PIPE,  # its end tells the run that we are gone
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is ours; and all that a run starts is ended with it
            )
        return cls(popen, log)

    def close(self) -> None:
        """End what a run that is over may have left behind."""
        self._signal(signal.SIGKILL)
        if self.popen.stdin is not None:
            self.popen.stdin.close()

    def _signal(self, how: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, how)

    @property
    def killed_by(self) -> signal.Signals | None:
        """The signal that ended it, by its exit status; None where it ended by itself."""
        status = self.popen.returncode
        if status < 0:
            return signal.Signals(-status)
        return {INTERRUPTED: signal.SIGINT, TERMINATED: signal.SIGTERM}.get(status)

    def last_line(self) -> str:
        """The last thing that it printed, which of an error is the message."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else "no output"


@contextmanager
def ending(processes: Sequence[Process]) -> Iterator[None]:
    """End processes, first with SIGTERM; the block that follows is spared a second, impatient Ctrl-C."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # it must not leave orphans
    try:
        for process in processes:
            process._signal(signal.SIGTERM)
        deadline = time.monotonic() + _PATIENCE
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.popen.wait(max(0.0, deadline - time.monotonic()))
            process._signal(signal.SIGKILL)
            process.popen.wait()
            process.close()
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let signals wait until the block is over: a run that is begun but not yet noted would be lost."""
    received: list[tuple[int, FrameType | None]] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if threading.current_thread() is not threading.main_thread():  # where no handler runs
        handlers = {}
    for number in handlers:
        signal.signal(number, lambda number, frame: received.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for came, frame in received:
            handler = handlers[signal.Signals(came)]
            if callable(handler):
                handler(came, frame)
            else:
                os.kill(os.getpid(), came)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Raise `Terminated` in this block where a SIGTERM arrives."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not leave orphans
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # where Python takes no handlers
        yield
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def end_with_parent() -> None:
    """In the process of a run: end it and all it has started as soon as the command is gone, however it went.

    The command holds the other end of standard input and never writes to it.
    """

    def wait() -> None:
        os.read(0, 1)  # not sys.stdin, whose lock would be held when the interpreter shuts down
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()

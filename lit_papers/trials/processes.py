"""A process for each run: with a log, ended with all it has started, and never an orphan of an interrupted command."""

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lit_papers.mistakes import INTERRUPTED, TERMINATED

_PATIENCE = 5.0  # seconds that a run has to end by itself when it is interrupted


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a scheduler sends: as tidy an end as Ctrl-C."""


class Process(ABC):
    """A run under way, which leads a process group of its own.

    Args:
        log: file of what it prints.
    """

    pid: int

    def __init__(self, log: Path) -> None:
        self.log = log

    @property
    @abstractmethod
    def status(self) -> int | None:
        """Exit status, negative after a signal; None while it runs."""

    @abstractmethod
    def wait(self, seconds: float | None = None) -> None:
        """Wait until it has ended, or for so long."""

    def close(self) -> None:
        """End what a run that is over may have left behind."""
        self.send(signal.SIGKILL)

    def send(self, how: signal.Signals) -> None:
        """Send a signal to all processes of the run."""
        try:
            os.killpg(self.pid, how)
        except ProcessLookupError:
            if self.status is None:  # it has not come so far as to lead a group
                with suppress(ProcessLookupError):
                    os.kill(self.pid, how)

    @property
    def killed_by(self) -> signal.Signals | None:
        """The signal that ended it, by its exit status; None where it ended by itself."""
        status = self.status or 0
        if status < 0:
            return signal.Signals(-status)
        return {INTERRUPTED: signal.SIGINT, TERMINATED: signal.SIGTERM}.get(status)

    def last_line(self) -> str:
        """The last thing that it printed, which of an error is the message."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else "no output"


class Command(Process):
    """``python <flags> -m <words>``, whose main module calls `end_with_parent`.

    Args:
        words: the module, and its arguments.
        log: file of its output.
        flags: of the interpreter.
        environment: the variables of the process.
    """

    def __init__(self, words: Sequence[str], log: Path, flags: Sequence[str], environment: Mapping[str, str]) -> None:
        super().__init__(log)
        with log.open("wb") as output:
            self._popen = subprocess.Popen(  # noqa: S603  # the words are the user's own file
                [sys.executable, *flags, "-m", *words],
                stdin=subprocess.PIPE,  # its end tells the run that we are gone
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is ours; and all that a run starts is ended with it
            )
        self.pid = self._popen.pid

    @property
    def status(self) -> int | None:
        """Exit status, negative after a signal; None while it runs."""
        return self._popen.poll()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until it has ended, or for so long."""
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(seconds)

    def close(self) -> None:
        """End what a run that is over may have left behind, and let go of its standard input."""
        super().close()
        if self._popen.stdin is not None:
            self._popen.stdin.close()


class Call(Process):
    """``<module>.main(folder)``, in a copy of a process that has imported what all runs need: that takes seconds.

    Args:
        module: has a function ``main`` from a folder to an exit status.
        folder: handed to it.
        log: file of what it prints.
        preload: modules that are imported once; the first call of this command decides.
    """

    def __init__(self, module: str, folder: Path, log: Path, preload: Sequence[str]) -> None:
        super().__init__(log)
        context = get_context("forkserver")
        context.set_forkserver_preload(list(preload))
        self._process = context.Process(target=_call, args=(module, folder, log, dict(os.environ)), daemon=False)
        self._process.start()
        self.pid = self._process.pid or 0

    @property
    def status(self) -> int | None:
        """Exit status, negative after a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, seconds: float | None = None) -> None:
        """Wait until it has ended, or for so long."""
        self._process.join(seconds)


def _call(module: str, folder: Path, log: Path, environment: dict[str, str]) -> None:
    """In the process of a `Call`."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(environment)
    parent = parent_process()

    def end_with_it() -> None:
        if parent is not None:
            parent.join()
            os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=end_with_it, daemon=True).start()
    imported = importlib.import_module(module)
    # what a strategy that starts processes runs in each of them
    sys.argv = [str(imported.__file__), str(folder)]
    status = imported.main(folder)
    sys.exit(status)  # looked up now, as in `lit_papers.__main__`


@contextmanager
def ending(processes: Sequence[Process]) -> Iterator[None]:
    """End processes, first with SIGTERM; the block that follows is spared a second, impatient Ctrl-C."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # it must not leave orphans
    try:
        for process in processes:
            process.send(signal.SIGTERM)
        deadline = time.monotonic() + _PATIENCE
        for process in processes:
            process.wait(max(0.0, deadline - time.monotonic()))
            process.send(signal.SIGKILL)
            process.wait()
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

"""Commands without the seconds that importing Lightning takes: copies of one process that has done so.

A copy has the words, folder, variables and standard streams of ``python <words>``, default signals and a session of
its own, and ends as an interpreter does. What is imported beforehand is what the commands import anyway, and nothing
more of ours, as the parser of ``fit`` knows classes by the modules that are imported. There is one thread, whatever
``$OMP_NUM_THREADS`` says. What a test says about starting up, or about a missing package, needs `subprocess`.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT, PYTHON = Path(__file__).parents[1], sys.executable  # which a test may replace
PRELOAD = ("lit_papers.lightning_cli", "omegaconf", "matplotlib.figure", "sklearn.ensemble", "optuna.importance")
_LONGEST = 2**17  # bytes of a request; Linux sends up to about 2**18 as one


class Warm:
    """A command under way, by the names that `subprocess.Popen` has.

    Attributes:
        pid: of the process, which leads a process group.
        returncode: exit status, negative after a signal; None while it runs.
    """

    def __init__(self, words: Sequence[str], cwd: Path, env: Mapping[str, str] | None) -> None:
        self.args = list(words)
        self.returncode: int | None = None
        # files, which a long output cannot fill and nobody has to read meanwhile
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115  # `close` does
        self._reports, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = json.dumps({"words": self.args, "cwd": str(cwd), "env": dict(os.environ if env is None else env)})
        assert len(request) < _LONGEST
        with theirs:
            streams = [theirs.fileno(), self._out.fileno(), self._err.fileno()]
            socket.send_fds(_template(), [request.encode()], streams)
        self.pid = self._report(60)

    def _report(self, seconds: float | None) -> int:
        self._reports.settimeout(seconds)
        try:
            return int(self._reports.recv(64))
        except TimeoutError:
            raise subprocess.TimeoutExpired(self.args, seconds or 0, *self.output()) from None

    def output(self) -> tuple[str, str]:
        """What it has printed so far to standard output and standard error."""
        return tuple(os.pread(f.fileno(), os.fstat(f.fileno()).st_size, 0).decode() for f in (self._out, self._err))  # type: ignore[return-value]

    def poll(self) -> int | None:
        """Exit status; None while it runs."""
        if self.returncode is None:
            with suppress(subprocess.TimeoutExpired):
                self.returncode = self._report(0.001)
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait until it has ended; what it has printed."""
        if self.returncode is None:
            self.returncode = self._report(timeout)
        return self.output()

    def close(self) -> None:
        """End it and all it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.communicate(timeout=60)
        for stream in (self._out, self._err, self._reports):
            stream.close()


@contextmanager
def warm(words: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None) -> Iterator[Warm]:
    """``python <words>``, which does not outlive the block, nor does what it has started."""
    process = Warm(words, cwd, env)
    try:
        yield process
    finally:
        process.close()


def run_warm(
    words: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 200
) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run([sys.executable, *words], capture_output=True, text=True)``, without standard input."""
    with warm(words, cwd, env) as process:
        out, err = process.communicate(timeout)
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@cache
def _template() -> socket.socket:
    """Where this process asks for copies; the process behind it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    others = ("PYTHONPATH", "LIT_PAPERS", "WANDB")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(others)}
    process = subprocess.Popen(
        [PYTHON, __file__, str(theirs.fileno())], cwd="/", env={**kept, "OMP_NUM_THREADS": "1"},
        pass_fds=[theirs.fileno()], start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    theirs.close()
    atexit.register(process.wait)
    atexit.register(ours.close)  # the other way round: first this, at which the process ends
    return ours


def serve(requests: socket.socket) -> dict[str, Any]:
    """In the template: make copies until nobody asks any more. Returns in each copy, with its request."""
    while True:
        message, streams, *_ = socket.recv_fds(requests, _LONGEST, 3)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # those that waited for earlier copies
                pass
        if not message:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            return _copy(json.loads(message), *streams)
        for stream in streams:
            os.close(stream)


def _copy(request: dict[str, Any], report: int, out: int, err: int) -> dict[str, Any]:
    """In a process of its own, which waits for the copy and reports its end; returns in the copy."""
    child = os.fork()
    if child:
        os.close(out)
        os.close(err)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with suppress(OSError):  # the test has gone
            os.write(report, str(status).encode())
        os._exit(0)
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for ours, standard in ((out, 1), (err, 2)):
        os.dup2(ours, standard)
        os.close(ours)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    os.write(report, str(os.getpid()).encode())
    os.close(report)
    return request


def run(words: list[str], site: list[str]) -> None:
    """What ``python <words>`` does once it has started: a module, a program, or the file of one."""
    import numpy as np

    np.random.seed()  # noqa: NPY002  # each interpreter has its own state
    kind, *rest = words
    first = os.getcwd() if kind == "-m" else "" if kind == "-c" else str(Path(kind).resolve().parent)
    sys.path[:] = [first, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *site]
    if kind == "-m":
        sys.argv[:] = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv[:] = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), vars(sys.modules["__main__"]))  # noqa: S102
    else:
        sys.argv[:] = words
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    site = sys.path[1:]  # without the folder of this file
    sys.path[:] = [str(ROOT), *site]
    for name in PRELOAD:
        import_module(name)
    import torch

    torch.set_num_threads(1)
    run(serve(socket.socket(fileno=int(sys.argv[1])))["words"], site)

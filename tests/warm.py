"""Commands without the seconds that importing Lightning takes: copies of one process that has done so.

A copy has the words, folder, variables and standard streams of ``python <words>``, default signals and a session of
its own, and ends as an interpreter does; what it starts by ``sys.executable`` is a copy too. What is imported
beforehand is what the commands import anyway, and nothing more of ours, as the parser of ``fit`` knows classes by the
modules that are imported. There is one thread, whatever ``$OMP_NUM_THREADS`` says. What a test says about starting up,
or about a missing package, needs `subprocess`.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import shutil
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
# stands for an interpreter, as long as it waits; what it asks for ends with it
_CLIENT = """\
#!{python} -IS
import json, os, signal, socket, sys
request = json.dumps({{"words": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}})
reports = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
reports.connect({address!r})
socket.send_fds(reports, [request.encode()], [0, 1, 2])
reports.recv(64)
status = int(reports.recv(64) or 1)
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


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
        self._reports = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._reports.connect(str(_folder() / "socket"))
        request = json.dumps({"words": self.args, "cwd": str(cwd), "env": dict(os.environ if env is None else env)})
        assert len(request) < _LONGEST
        with open(os.devnull) as nothing:
            socket.send_fds(self._reports, [request.encode()], [f.fileno() for f in (nothing, self._out, self._err)])
        self.pid = self._report(120)  # the first one waits for the imports

    def _report(self, seconds: float | None) -> int:
        self._reports.settimeout(seconds)
        try:
            return int(self._reports.recv(64))
        except TimeoutError:
            raise subprocess.TimeoutExpired(self.args, seconds or 0, *self.output()) from None

    def output(self) -> tuple[str, str]:
        """What it has printed so far to standard output and standard error."""
        out, err = (os.pread(f.fileno(), os.fstat(f.fileno()).st_size, 0).decode() for f in (self._out, self._err))
        return out, err

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


def warm_python() -> Path:
    """A program by the name of ``python`` that runs its words in a copy: for what starts interpreters of its own."""
    return _folder() / "python"


@cache
def _folder() -> Path:
    """Where copies are asked for; the process behind it is started now, and ends with this one."""
    folder = Path(tempfile.mkdtemp())
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(folder / "socket"))
    listener.listen(100)
    client = folder / "python"
    client.write_text(_CLIENT.format(python=PYTHON, address=str(folder / "socket")))
    client.chmod(0o755)
    lifeline, ours = os.pipe()
    others = ("PYTHONPATH", "LIT_PAPERS", "WANDB")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(others)}
    process = subprocess.Popen(
        [PYTHON, __file__, str(listener.fileno()), str(lifeline)], cwd="/", env={**kept, "OMP_NUM_THREADS": "1"},
        pass_fds=[listener.fileno(), lifeline], start_new_session=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    listener.close()
    os.close(lifeline)

    def end() -> None:
        os.close(ours)
        process.wait()
        shutil.rmtree(folder)

    atexit.register(end)
    return folder


def serve(listener: socket.socket, lifeline: int) -> list[str]:
    """In the template: make copies as long as somebody holds the other end of a pipe. Returns its words in each."""
    sys.executable = str(Path(listener.getsockname()).with_name("python"))  # what a copy starts is a copy
    while lifeline not in select.select([listener.fileno(), lifeline], [], [])[0]:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # those that watched over earlier copies
                pass
        reports, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            os.close(lifeline)
            return _watch_over_a_copy(reports)
        reports.close()
    os._exit(0)


def _watch_over_a_copy(reports: socket.socket) -> list[str]:
    """In a process of its own: make a copy, report its number and its end, and end it with who asked for it."""
    message, streams, *_ = socket.recv_fds(reports, _LONGEST, 3)
    request = json.loads(message)
    child = os.fork()
    if child == 0:
        return _begin(request, streams, reports)
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(child)
    if ended not in select.select([reports.fileno(), ended], [], [])[0]:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(OSError):
        reports.send(str(status).encode())
    os._exit(0)


def _begin(request: dict[str, Any], streams: list[int], reports: socket.socket) -> list[str]:
    """In the copy."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for standard, stream in enumerate(streams):
        os.dup2(stream, standard)
        os.close(stream)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    reports.send(str(os.getpid()).encode())
    reports.close()
    words: list[str] = request["words"]
    return words


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
        with suppress(ImportError):  # of an extra; what needs it will say so
            import_module(name)
    import torch

    torch.set_num_threads(1)
    gc.freeze()  # or each copy would look through all that is imported, and so copy it, when it ends
    run(serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])), site)

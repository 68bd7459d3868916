"""A copy of the warm process is to its test what an interpreter would be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import default_signals, wait_until_gone
from tests.warm import run_warm, warm, warm_python

PROGRAM = """\
import atexit, os, signal, sys
atexit.register(print, "at exit")
handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)]
print(__name__, sys.argv, sys.path[:2], os.getcwd(), sorted(os.environ), handlers)
print(sys.stdin.read(), sys.stdout.isatty())
print("wrong", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("kind", ["-m", "-c", "file"])
@pytest.mark.parametrize("status", ["0", "3"])
def test_what_an_interpreter_shows(kind: str, status: str, tmp_path: Path) -> None:
    (tmp_path / "shows.py").write_text(PROGRAM)
    program = {"-m": ["-m", "shows"], "-c": ["-c", PROGRAM], "file": [str(tmp_path / "shows.py")]}[kind]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(tmp_path / "elsewhere"),
        "X": "1",
        "LC_CTYPE": "C.UTF-8",
    }
    cold = subprocess.run(
        [sys.executable, *program, status], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, start_new_session=True, preexec_fn=default_signals,
    )  # fmt: skip
    copy = run_warm([*program, status], tmp_path, environment)
    assert (copy.stdout, copy.stderr, copy.returncode) == (cold.stdout, cold.stderr, cold.returncode)
    assert (copy.stderr, copy.returncode) == ("wrong\n", int(status))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_it(number: signal.Signals, tmp_path: Path) -> None:
    with warm(["-c", "import time; print('up', flush=True); time.sleep(600)"], tmp_path) as process:
        end = time.monotonic() + 60
        while process.output()[0] != "up\n":
            assert time.monotonic() < end
            time.sleep(0.01)
        assert process.poll() is None
        process.send_signal(number)
        assert ("KeyboardInterrupt" in process.communicate(timeout=60)[1]) == (number == signal.SIGINT)
    assert process.returncode == -number
    wait_until_gone([process.pid])


def test_what_runs_too_long_is_ended(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        run_warm(["-c", "import time; time.sleep(600)"], tmp_path, timeout=0.5)
    assert time.monotonic() - started < 60


def test_it_ends_with_the_program_that_stands_for_it(tmp_path: Path) -> None:
    words = [str(warm_python()), "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        copy = int(process.stdout.readline())
        process.kill()
    wait_until_gone([copy])
    ended = [
        subprocess.run([warm_python(), "-c", f"import os; {code}"]).returncode for code in ("os._exit(4)", "os.abort()")
    ]
    assert ended == [4, -signal.SIGABRT]

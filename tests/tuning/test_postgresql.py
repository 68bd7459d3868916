"""One study in PostgreSQL, two searches at once: exactly the trials asked for. Needs Debian's `postgresql`."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from lit_papers.tuning.search import counts
from lit_papers.tuning.storage import open_storage
from tests.processes import default_signals, end_group, started
from tests.tuning.test_search import ROOT, play, write

__all__ = ["play"]  # a fixture
SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SERVERS, reason="there is no PostgreSQL: apt install postgresql"),
]


@pytest.fixture
def database() -> Iterator[str]:
    """URL of a server of this test alone; it does not run as root, so it gets another user there."""
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="pg") as name, socket.socket() as free:
        folder = Path(name)
        if user:
            shutil.chown(folder, user)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()

        def run(*words: str) -> None:
            subprocess.run(words, cwd=folder, user=user, check=True, capture_output=True, timeout=120)

        run(str(SERVERS[-1] / "initdb"), "-D", f"{folder}/data", "-U", "me", "--auth=trust")
        words = [str(SERVERS[-1] / "postgres"), "-D", f"{folder}/data", "-p", str(port), "-k", str(folder)]
        server = subprocess.Popen(
            [*words, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"], cwd=folder, user=user,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, preexec_fn=default_signals,
        )  # fmt: skip
        try:
            ready = [str(SERVERS[-1] / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-t", "1"]
            for _ in range(60):
                if subprocess.run(ready, capture_output=True).returncode == 0:
                    break
            else:
                pytest.fail("the server does not answer")
            yield f"postgresql://me@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # "fast": SIGTERM would wait for our own connection to close
            try:
                server.wait(60)
            finally:
                end_group(server.pid)


@pytest.mark.parametrize("method", ["random", "grid"])
def test_two_searches_share_exactly_the_trials(method: str, database: str, play: Path, tmp_path: Path) -> None:
    values = [i / 10 for i in range(7)] if method == "grid" else None
    code = f"import sys; sys.executable = {str(play)!r}; from lit_papers.cli import main; sys.exit(main(sys.argv[1:]))"
    path = write(tmp_path, values)
    words = [sys.executable, "-c", code, "sweep", path, "--trials", "7", "--jobs", "2", "--storage", database]
    words[0] = play.read_text().splitlines()[0].removeprefix("#!")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with started(words, cwd=tmp_path, env=environment) as one, started(words, cwd=tmp_path, env=environment) as two:
        outs = [process.communicate(timeout=280)[0] for process in (one, two)]
    assert [one.returncode, two.returncode] == [0, 0], outs
    study = optuna.load_study(study_name="played", storage=open_storage(database))
    trials = [trial for trial in study.trials if counts(trial) and trial.state != TrialState.WAITING]
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 7
    assert len({trial.params["x"] for trial in trials}) == 7
    assert any("7 trials complete" in out for out in outs)

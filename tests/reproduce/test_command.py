"""The command survives failures, Ctrl-C and being killed; runs once what is asked for, and anew what has changed.

Runs are played by a small module; real ones are in test_real_runs.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_papers import catalog
from lit_papers.cli import main
from lit_papers.reproduce import command, tables
from lit_papers.reproduce import plan as plan_module
from lit_papers.reproduce import results as results_module
from lit_papers.trials.runs import alone_in
from tests.processes import end_group, started, wait_until_gone

ROOT = Path(__file__).parents[2]
ACTOR = """\
# Plays `lit_papers.reproduce.one_run`: x is what the run does.
import json, os, subprocess, sys, time
from lit_papers.trials.runs import REQUEST, write_answer
def main(folder):
    request = json.loads((folder / REQUEST).read_text())
    if "resolve" in request:
        write_answer(folder, {"resolved": [
            {"error": "no such key"} if "wrong" in each["set"].values() else {"arguments": each["set"]}
            for each in request["resolve"]]})
        return 0
    x = request["set"]["x"]
    with open("started", "a") as begun:
        begun.write(f"{os.getpid()} {x} {request['seed']}\\n")
    if x == "fails":
        raise ValueError("no such luck")
    if x == "sleeps" and not os.path.exists("awake"):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        time.sleep(600)
    if x != "silent":
        number = float(x) if isinstance(x, (int, float)) else 1.0
        write_answer(folder, {"score": number + request["seed"] / 100, "seconds": 1.0})
    return 0
"""


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "actor_of_runs.py").write_text(ACTOR)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plan_module, "MODULE", "actor_of_runs")
    monkeypatch.setattr(plan_module, "PRELOAD", ())
    monkeypatch.setattr(catalog, "CONFIG_FOLDER", tmp_path / "configs")
    for module in (results_module, command, tables, plan_module):
        monkeypatch.setattr(module, "ROOMS", tmp_path / "rooms")
    yield
    for group in groups(tmp_path):
        end_group(group)


def groups(folder: Path) -> list[int]:
    return [int(line.split()[0]) for line in begun(folder)]


def begun(folder: Path) -> list[str]:
    path = folder / "started"
    return path.read_text().splitlines() if path.exists() else []


def write(folder: Path, *values: Any, **changes: Any) -> None:
    runs: dict[str, Any] = {"call": "lit_papers.played.claims.score", "grid": {"x": list(values)}, "seeds": 2}
    runs |= changes.pop("runs", {})
    claim = {
        "statement": "Scores are positive.", "source": "section 1", "minutes": 1, "runs": runs,
        "test": {"rule": "bound", "value": "score", "above": 0}, **changes,
    }  # fmt: skip
    (folder / "configs/played").mkdir(parents=True, exist_ok=True)
    (folder / "configs/played/claims.yaml").write_text(yaml.safe_dump({"score": claim}))


@pytest.mark.usefixtures("play")
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_runs_once_and_a_second_call_does_nothing(jobs: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, 3, 5)
    assert main(["reproduce", "--jobs", jobs]) == 0
    out = capfd.readouterr().out
    assert "played/score: holds" in out
    assert "x 3 3.005 ± .007, x 5 5.005 ± .007" in out
    assert len(begun(tmp_path)) == 4
    assert main(["reproduce", "--jobs", jobs]) == 0
    out = capfd.readouterr().out
    assert "all of 4 runs are there" in out
    assert "played/score: holds" in out
    assert len(begun(tmp_path)) == 4
    kept = json.loads((tmp_path / "runs/reproduce/played/score/results.json").read_text())
    assert [(run["arm"], run["seed"]) for run in kept["runs"]] == [("x 3", 0), ("x 3", 1), ("x 5", 0), ("x 5", 1)]


@pytest.mark.usefixtures("play")
def test_what_is_changed_runs_anew_and_what_is_not_does_not(tmp_path: Path) -> None:
    write(tmp_path, 3, 5)
    assert main(["reproduce"]) == 0
    write(tmp_path, 3, 6)
    assert main(["reproduce"]) == 0
    assert [line.split()[1:] for line in begun(tmp_path)[4:]] == [["6", "0"], ["6", "1"]]
    write(tmp_path, 3, 5, statement="In other words.")
    assert main(["reproduce"]) == 0
    assert len(begun(tmp_path)) == 6, "the first runs of 5 are found again"
    write(tmp_path, 3, 5, version=2)
    assert main(["reproduce"]) == 0
    assert len(begun(tmp_path)) == 10
    write(tmp_path, 3, 5, version=2, runs={"set": {"y": 1}})
    assert main(["reproduce", "--seeds", "7"]) == 0
    assert [line.split()[1:] for line in begun(tmp_path)[10:]] == [["3", "7"], ["5", "7"]]


@pytest.mark.usefixtures("play")
def test_what_a_changed_room_computes_runs_anew(tmp_path: Path) -> None:
    write(tmp_path, 3)
    module = tmp_path / "rooms/played/of_the_function.py"
    module.parent.mkdir(parents=True)
    for number, text in enumerate(("def score(): ...", "def score(): return 1"), start=1):
        module.write_text(text)
        assert main(["reproduce"]) == 0
        assert len(begun(tmp_path)) == 2 * number
    assert main(["reproduce"]) == 0
    assert len(begun(tmp_path)) == 4


@pytest.mark.usefixtures("play")
def test_one_seed_decides_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, 3)
    for seeds in (["0"], ["0", "0"]):  # named twice it is one still
        assert main(["reproduce", "--seeds", *seeds]) == 0
        assert "played/score: within the spread" in capfd.readouterr().out


@pytest.mark.usefixtures("play")
@pytest.mark.parametrize(
    ("what", "reason"),
    [("fails", "exit status 1: ValueError: no such luck"), ("silent", "it left no answer")],
)
def test_a_run_that_fails_is_told_and_tried_again(
    what: str, reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, what, 3)
    assert main(["reproduce"]) == 1
    out = capfd.readouterr().out
    assert f"played/score: failed ({reason}" in out
    assert "log.txt" in out
    assert len(begun(tmp_path)) == 4, "the others have run"
    assert main(["reproduce"]) == 1
    assert len(begun(tmp_path)) == 6, "those that failed are tried again"


@pytest.mark.usefixtures("play")
def test_a_wrong_key_is_found_before_any_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, 3, "wrong")
    assert main(["reproduce"]) == 2
    assert "played/score, x wrong: no such key" in capfd.readouterr().err
    assert begun(tmp_path) == []


@pytest.mark.usefixtures("play")
def test_what_needs_more_than_is_here(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, 3, needs={"file": "nowhere.zip"})
    assert main(["reproduce"]) == 0
    assert "played/score: not run here (needs nowhere.zip in $LIT_PAPERS_DATA)" in capfd.readouterr().out
    write(tmp_path, 3, minutes=11)
    assert main(["reproduce"]) == 0
    assert "takes 11 minutes: name it to run it" in capfd.readouterr().out
    assert begun(tmp_path) == []
    assert main(["reproduce", "played/score"]) == 0
    assert len(begun(tmp_path)) == 2


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.usefixtures("play")
def test_killed_in_the_middle_and_started_again(how: signal.Signals, tmp_path: Path) -> None:
    write(tmp_path, 3, "sleeps", 5)
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(tmp_path)!r})
from lit_papers.reproduce import plan; plan.MODULE = "actor_of_runs"; plan.PRELOAD = ()
from lit_papers import catalog; catalog.CONFIG_FOLDER = Path({str(tmp_path / "configs")!r})
from lit_papers.reproduce import results; results.ROOMS = Path({str(tmp_path / "rooms")!r})
from lit_papers.cli import main; sys.exit(main(sys.argv[1:]))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with started([sys.executable, "-c", code, "reproduce", "--jobs", "2"], cwd=tmp_path, env=environment) as process:
        end = time.monotonic() + 120
        while sum("sleeps" in line for line in begun(tmp_path)) < 2:
            assert process.poll() is None, process.stdout.read()  # type: ignore[union-attr]
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(how)
        out = process.communicate(timeout=60)[0]
    wait_until_gone(groups(tmp_path))
    if how is not signal.SIGKILL:
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[how], out
        assert "finished runs are kept, and the same command goes on" in out
    before = begun(tmp_path)
    assert len(before) == 4
    (tmp_path / "awake").touch()
    assert main(["reproduce", "--jobs", "2"]) == 0
    again = sorted(line.split(maxsplit=1)[1] for line in begun(tmp_path)[4:])
    assert again == ["5 0", "5 1", "sleeps 0", "sleeps 1"]


@pytest.mark.usefixtures("play")
def test_a_folder_is_for_one_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, 3)
    with alone_in(tmp_path / "runs/reproduce"):
        assert main(["reproduce"]) == 2
    assert "another command runs in" in capfd.readouterr().err


@pytest.mark.usefixtures("play")
def test_unequal_cost_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    test = {"rule": "difference", "value": "score", "more": "x 5", "than": "x 3"}
    write(tmp_path, 3, 5, test=test, cost=["score"], show={"score": "score [points]"})
    assert main(["reproduce"]) == 0
    out = capfd.readouterr().out
    assert "| arm | score [points] | CPU time [s] | seeds |" in out
    assert "At unequal cost: x 5 costs 1.7 times the score [points] of x 3." in out


@pytest.mark.usefixtures("play")
def test_what_is_written_into_a_checkout(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 3, 5)
    assert main(["reproduce", "--write"]) == 2
    assert "this is an installed package" in capfd.readouterr().err
    rooms = tmp_path / "checkout/lit_papers"
    for module in (results_module, command, tables):
        monkeypatch.setattr(module, "ROOMS", rooms)
    (rooms / "played").mkdir(parents=True)
    (rooms.parent / "pyproject.toml").touch()
    top, room = rooms.parent / "README.md", rooms / "played/README.md"
    top.write_text("# All\n<!-- reproduce: all -->\nstale\n<!-- /reproduce -->\nend\n")
    room.write_text("<!-- reproduce: played/score -->\n<!-- /reproduce -->\n")
    assert main(["reproduce", "--write"]) == 0
    out = capfd.readouterr().out
    assert "written" in out
    assert "| Scores are positive. | **holds** | 2 | `played/score` |" in top.read_text()
    assert "stale" not in top.read_text()
    assert top.read_text().endswith("<!-- /reproduce -->\nend\n")
    assert "| x 5 | 5.005 ± .007 | 1 | 2 |" in room.read_text()
    kept = rooms / "played/results/score.json"
    before = kept.read_text()
    assert json.loads(before)["runs"][0]["values"] == {"score": 3.0}
    # a second call changes nothing; a number that somebody has changed is put right
    assert main(["reproduce", "--write"]) == 0
    assert "written" not in capfd.readouterr().out
    assert kept.read_text() == before
    room.write_text(room.read_text().replace("5.005", "5.500"))
    assert tables.rewritten(room.read_text()) != room.read_text()
    assert main(["reproduce", "--write"]) == 0
    assert "5.500" not in room.read_text()
    # the results of a claim that has changed are told apart
    assert main(["reproduce", "--list"]) == 0
    assert "changed since" not in capfd.readouterr().out
    write(tmp_path, 3, 5, version=2)
    assert main(["reproduce", "--list"]) == 0
    assert "holds (as it was; changed since)" in capfd.readouterr().out
    write(tmp_path, 3, 5, version=2, test={"rule": "bound", "value": "other", "above": 0})
    assert main(["reproduce", "--list"]) == 0
    assert "not run since it was changed" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stetement": "x"}, "stetement: unknown key; did you mean 'statement'?"),
        ({"minutes": 0}, "minutes: must be a positive number"),
        ({"runs": {"call": "os.system"}}, "must be a function of the paper's room"),
        ({"runs": {"config": "neural_collapse/digits"}}, "give one of `config`"),
        ({"runs": {"seeds": 1}}, "bound is statistics, and needs 2 seeds or more"),
        ({"runs": {"arms": {"a": {}}}}, "give `arms`, each by name, or a `grid`"),
        ({"test": {"rule": "bnd", "value": "score"}}, "'bnd' is none of bound, every"),
        ({"test": {"rule": "bound", "value": "score"}}, "needs `above`, `below` or both"),
        ({"test": {"rule": "bound", "value": "score", "below": "1e-3"}}, "must be a number, got '1e-3'"),
        ({"test": {"rule": "difference", "value": "score", "more": "x 4", "than": "x 3"}}, "no arm 'x 4'"),
        ({"needs": {"gpus": "x"}}, "needs.gpus: unknown key; did you mean 'gpu'?"),
    ],
)
@pytest.mark.usefixtures("play")
def test_a_wrong_file_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, 3, **changes)
    assert main(["reproduce", "--list"]) == 2
    assert message in capfd.readouterr().err


@pytest.mark.usefixtures("play")
def test_wrong_command_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, 3)
    for words, message in [
        (["playd"], "playd: no paper of that name has claims; did you mean 'played'?"),
        (["played/scores"], "played/scores: there is no such claim; did you mean 'played/score'?"),
        (["--write", "--seeds", "1"], "run it without --seeds"),
        (["--seeds", "0", "-1"], "--seeds must be at least 0, got -1"),
    ]:
        assert main(["reproduce", *words]) == 2
        assert message in capfd.readouterr().err
    text = (tmp_path / "configs/played/claims.yaml").read_text()
    (tmp_path / "configs/played/claims.yaml").write_text(text + text)
    assert main(["reproduce", "--list"]) == 2
    assert "the key 'score' stands there twice" in capfd.readouterr().err


def test_listing_needs_no_torch() -> None:
    code = (
        "import sys; from lit_papers.cli import main; main(['reproduce', '--list']); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "neural_collapse/emergence" in done.stdout
    assert "expressiveness/bounds" in done.stdout

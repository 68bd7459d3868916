"""The search survives trials that fail, Ctrl-C and being killed, and leaves no process behind.

Trials are played by a small script in place of the interpreter, which writes its answer by SQL as importing Optuna
takes half a second; real ones, which do so by Optuna, are in test_sweep_command.py.
"""

import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from filelock import FileLock, Timeout
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from lit_papers.cli import main
from lit_papers.extras import install_command
from lit_papers.tuning import search as search_module
from lit_papers.tuning import storage as storage_module
from lit_papers.tuning.search import ATTEMPT, LOCK, REASON, counts, distributions, values_of
from lit_papers.tuning.sweep_file import Choice, Range, Sweep, read_sweep
from tests.processes import end_group, members, started, wait_until_gone
from tests.warm import Warm, warm

ROOT = Path(__file__).parents[2]
ACTOR = """\
#!{python}
# Plays `python -m lit_papers ...`: x is the setting, and what the trial does.
import json, os, signal, sqlite3, subprocess, sys, time
sys.path.insert(0, {root!r})
if "--print_config" in sys.argv:
    print("played: true")
    sys.exit()
x = json.load(open([word for word in sys.argv if word.endswith(".json")][0]))["x"]
from lit_papers.tuning.assignment import Assignment
from lit_papers.trials.processes import end_with_parent
end_with_parent()
with open("started", "a") as begun:
    begun.write(f"{{os.getpid()}} {{x}}\\n")
with open("words", "w") as words:
    words.write(" ".join([f"X={{os.environ.get('X')}}", *sys.argv[1:]]))
if x == "dies" or (x == "dies once" and not os.path.exists("died")):
    open("died", "w").close()
    os.kill(os.getpid(), signal.SIGTERM if x == "dies once" else signal.SIGKILL)
if x == "fails":
    sys.exit("ValueError: no such luck")
if x == "lingers":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "lingering"])
if x == "sleeps" and not os.path.exists("awake"):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "lingering"])
    time.sleep(600)
a = Assignment.from_environment()
key, value = "value", float("nan") if x == "nan" else float(x) if isinstance(x, (int, float)) else 0.5
if x == "other":
    key, value = "logged", ["val/loss"]
if a.storage.startswith("sqlite"):
    with sqlite3.connect(a.storage.removeprefix("sqlite:///"), timeout=20) as study:  # as Trial.set_user_attr does
        insert = "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, ?, ?)"
        study.execute(insert, (a.trial_id, key, json.dumps(value)))
else:
    from optuna.trial import Trial
    from lit_papers.tuning.assignment import open_study
    Trial(open_study(a), a.trial_id).set_user_attr(key, value)
"""


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    actor = tmp_path / "actor.py"
    actor.write_text(ACTOR.format(python=sys.executable, root=str(ROOT)))
    actor.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(actor))
    yield actor
    for group in groups(tmp_path):  # whatever a failed test has left
        end_group(group)


def groups(folder: Path) -> list[int]:
    """Of the trials that were begun in a folder: each leads one, in which all are that it has started."""
    path = folder / "started"
    return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []


def write(folder: Path, values: list[Any] | None = None, **changes: Any) -> str:
    axis = {"min": 0.0, "max": 1.0} if values is None else {"values": values}
    content = {
        "name": "played", "method": "random" if values is None else "grid", "metric": {"name": "score"},
        "parameters": {"x": axis},
        "command": ["python", "-m", "lit_papers", "fit", "--config", "${args_json_file}"], **changes,
    }  # fmt: skip
    (folder / "played.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "played.yaml")


def study_of(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="played", storage=f"sqlite:///{folder}/runs/sweeps/played/study.db")


def counted(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return [trial for trial in study.trials if counts(trial)]


def test_parameters_go_to_the_database_and_back() -> None:
    space = {
        "lr": Range(0.1, 1.0, log=True),
        "n": Range(1, 9, step=2),
        "s": Choice(([1, 2], None, True, "a", {"b": 1})),
    }
    assert distributions(space) == {
        "lr": FloatDistribution(0.1, 1.0, log=True),
        "n": IntDistribution(1, 9, step=2),
        "s": CategoricalDistribution(["[1, 2]", None, True, "a", '{"b": 1}']),
    }
    sweep = Sweep("s", "random", "m", False, space, {"fixed": None}, ())
    for label, value in [("[1, 2]", [1, 2]), (None, None), (True, True), ('{"b": 1}', {"b": 1})]:
        assert values_of(sweep, {"lr": 0.3, "s": label}) == {"fixed": None, "lr": 0.3, "s": value}


@pytest.mark.usefixtures("play")
@pytest.mark.parametrize("jobs", [1, 2])
def test_the_number_of_trials_and_what_is_left(jobs: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", write(tmp_path), "--trials", "5", "--jobs", str(jobs)]) == 0
    study = study_of(tmp_path)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 5
    assert all(trial.value == trial.params["x"] for trial in study.trials)
    folder = tmp_path / "runs/sweeps/played"
    assert "played: true" in (folder / "best.yaml").read_text()
    assert f"trial {study.best_trial.number} with score" in (folder / "best.yaml").read_text()
    assert {path.stem for path in folder.glob("*.png")} == {"history", "parallel_coordinates", "importance"}
    assert not list(folder.glob("*.lock"))
    out = capfd.readouterr().out
    assert "5 trials complete, 0 stopped early, 0 failed" in out
    assert f"best {study.best_value:.4g}" in out
    # more trials of the same study, and none where there are enough
    assert main(["sweep", write(tmp_path), "--trials", "6", "--jobs", str(jobs)]) == 0
    assert main(["sweep", write(tmp_path), "--trials", "2", "--jobs", str(jobs)]) == 0
    assert len(study_of(tmp_path).trials) == 6


@pytest.mark.usefixtures("play")
def test_a_grid_is_run_once_each_in_order(tmp_path: Path) -> None:
    values = [3, None, [1, 2], True, "word"]
    assert main(["sweep", write(tmp_path, values), "--trials", "2"]) == 0
    assert main(["sweep", write(tmp_path, values)]) == 0
    assert [trial.params["x"] for trial in counted(study_of(tmp_path))] == [3, None, "[1, 2]", True, "word"]
    given = [
        json.loads(path.read_text())["x"] for path in sorted((tmp_path / "runs/sweeps/played").glob("trial*.json"))
    ]
    assert given == values


@pytest.mark.usefixtures("play")
def test_a_trial_that_fails_is_noted_and_the_next_one_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", write(tmp_path, [1.0, "fails", "nan", 0.25])]) == 0
    states = [trial.state for trial in study_of(tmp_path).trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL, TrialState.COMPLETE]
    reasons = [trial.user_attrs.get(REASON) for trial in study_of(tmp_path).trials]
    assert "ValueError: no such luck" in reasons[1]
    assert "trial_001.log" in reasons[1]
    assert reasons[2] == "score ended as nan"
    assert "2 failed" in capfd.readouterr().out


@pytest.mark.usefixtures("play")
def test_gives_up_where_nothing_succeeds(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, ["fails"], parameters={"x": {"values": ["fails"]}, "y": {"values": [1, 2, 3, 4, 5]}})
    assert main(["sweep", path]) == 2
    assert len(counted(study_of(tmp_path))) - sum(t.state == TrialState.WAITING for t in study_of(tmp_path).trials) == 3
    assert "the first 3 trials all failed; the last: exit status 1: ValueError: no such luck" in capfd.readouterr().err


@pytest.mark.usefixtures("play")
def test_an_unknown_metric_ends_the_search_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", write(tmp_path, ["other", 1, 2])]) == 2
    assert "metric.name: 'score' was never logged; logged were val/loss" in capfd.readouterr().err
    assert len((tmp_path / "started").read_text().splitlines()) == 1


@pytest.mark.usefixtures("play")
def test_another_sweep_file_of_the_same_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", write(tmp_path), "--trials", "1"]) == 0
    assert main(["sweep", write(tmp_path, metric={"name": "other"}), "--trials", "1"]) == 2
    assert "was begun with another sweep file (different: metric)" in capfd.readouterr().err


@pytest.mark.usefixtures("play")
def test_what_a_trial_leaves_running_is_ended(tmp_path: Path) -> None:
    assert main(["sweep", write(tmp_path, ["lingers"])]) == 0
    wait_until_gone(groups(tmp_path))


@contextmanager
def search(play: Path, path: str, *options: str, sleepers: int = 1) -> Iterator[Warm]:
    """A search in a process of its own, once so many of its trials sleep."""
    with warm(words_of_a_search(play, path, *options), play.parent, {**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        end = time.monotonic() + 120
        begun = play.parent / "started"
        while not (begun.exists() and begun.read_text().count("sleeps") >= sleepers):
            assert process.poll() is None, process.output()
            assert time.monotonic() < end
            time.sleep(0.05)
        yield process


def words_of_a_search(play: Path, *words: str) -> list[str]:
    code = f"import sys; sys.executable = {str(play)!r}; from lit_papers.cli import main; sys.exit(main(sys.argv[1:]))"
    return ["-c", code, "sweep", *words]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_interrupted_in_the_middle_and_started_again(
    how: signal.Signals, jobs: str, play: Path, tmp_path: Path
) -> None:
    values = [0.75, 0.5, "sleeps", 0.25]  # two jobs begin to sleep when one of the first is finished
    with search(play, write(tmp_path, values), "--jobs", jobs) as process:
        process.send_signal(how)
        out = process.communicate(timeout=60)[0]
    wait_until_gone(groups(tmp_path))
    if how is not signal.SIGKILL:
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[how], out
        assert "finished trials are kept, and the same command goes on" in out
    finished = [trial for trial in study_of(tmp_path).trials if trial.state == TrialState.COMPLETE]
    assert finished
    (tmp_path / "awake").touch()
    assert main(["sweep", write(tmp_path, values), "--jobs", jobs]) == 0
    ended = counted(study_of(tmp_path))
    assert [trial.state for trial in ended] == [TrialState.COMPLETE] * 4
    assert {trial.params["x"] for trial in ended} == set(values)
    by_number = {trial.number: trial for trial in ended}  # the first of two jobs may be the one that was interrupted
    assert finished == [by_number[trial.number] for trial in finished]


@pytest.mark.usefixtures("play")
@pytest.mark.parametrize("method", ["grid", "random"])
def test_a_search_killed_before_it_could_sign_its_trial(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between taking a trial and writing its lock to it: nobody owns such a trial, so it would run for ever."""

    class KilledError(BaseException):
        pass

    def die(*_: object) -> None:
        raise KilledError

    monkeypatch.setattr(search_module, "LOCK_TIMEOUT", 0.3)
    path = write(tmp_path, [0.25, 0.75] if method == "grid" else None)
    with monkeypatch.context() as context:
        context.setattr(optuna.trial.Trial, "set_user_attr", die)
        with pytest.raises(KilledError):
            main(["sweep", path, "--trials", "2"])
    assert [trial.state for trial in study_of(tmp_path).trials].count(TrialState.RUNNING) == 1
    assert main(["sweep", path, "--trials", "2"]) == 0
    ended = counted(study_of(tmp_path))
    assert [trial.state for trial in ended] == [TrialState.COMPLETE] * 2
    if method == "grid":
        assert {trial.params["x"] for trial in ended} == {0.25, 0.75}


def test_an_unsigned_trial_is_given_time_to_be_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its search may do on another machine while this one begins."""
    monkeypatch.setattr(search_module, "LOCK_TIMEOUT", 60)
    search = search_module.Search(read_sweep(Path(write(tmp_path))), tmp_path, f"sqlite:///{tmp_path}/shared.db")
    trial = search.study.ask()
    monkeypatch.setattr(time, "sleep", lambda _: trial.set_user_attr(LOCK, "/of/another/machine.lock"))
    assert search._unsigned() == []
    assert [trial.state for trial in search.study.trials] == [TrialState.RUNNING]
    search.close()


def search_in(folder: Path, path: str) -> search_module.Search:
    """As the command makes it, for what happens between two of its lines."""
    place = folder / "runs/sweeps/played"
    place.mkdir(parents=True, exist_ok=True)
    return search_module.Search(read_sweep(Path(path)), place, f"sqlite:///{place}/study.db")


@pytest.mark.usefixtures("play")
@pytest.mark.parametrize("method", ["grid", "random"])
def test_a_search_killed_while_it_gave_a_trial_back(method: str, tmp_path: Path) -> None:
    """Between queueing it again and marking it as failed: it is run once, and the others too."""
    path = write(tmp_path, [0.5, 0.25] if method == "grid" else None)
    killed = search_in(tmp_path, path)
    if method == "grid":
        killed._enqueue_grid()
    trial = killed._claim(2)
    assert trial is not None
    search_module._enqueue_again(killed.study, killed._frozen(trial))
    killed._lock.release()
    assert main(["sweep", path, "--trials", "2"]) == 0
    ended = counted(study_of(tmp_path))
    assert [each.state for each in ended] == [TrialState.COMPLETE] * 2
    assert len({each.params["x"] for each in ended}) == 2


@pytest.mark.usefixtures("play")
def test_a_trial_that_is_queued_again_is_taken_before_it_is_marked_as_failed(tmp_path: Path) -> None:
    """By another search, at that moment: it is not its own double."""
    path = write(tmp_path, [0.5])
    one, two = search_in(tmp_path, path), search_in(tmp_path, path)
    one._enqueue_grid()
    trial = one._claim(1)
    assert trial is not None
    search_module._enqueue_again(one.study, one._frozen(trial))
    again = two._claim(1)
    assert again is not None
    assert again.params == {"x": 0.5}
    one.close(), two.close()


def test_a_trial_is_taken_by_one_search_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite locks no rows: of 180 trials that three processes took, 11 were taken twice."""
    one, two = (search_in(tmp_path, write(tmp_path)) for _ in range(2))
    ask = optuna.Study.ask

    def ask_alone(study: optuna.Study) -> optuna.Trial:
        assert isinstance(two._alone, FileLock)
        with pytest.raises(Timeout):
            two._alone.acquire(timeout=0)
        return ask(study)

    with monkeypatch.context() as context:
        context.setattr(optuna.Study, "ask", ask_alone)
        assert one._claim(2) is not None
    assert two._claim(2) is not None
    one.close(), two.close()


@pytest.mark.usefixtures("play")
def test_a_point_of_a_grid_that_was_given_back_is_run_when_more_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, [0.1, 0.2, 0.3])
    one, two = search_in(tmp_path, path), search_in(tmp_path, path)
    one._enqueue_grid()
    claimed = [one._claim(2), one._claim(2)]
    assert two._claim(2) is None, "it had seen that two are wanted, and came too late"
    for trial in claimed:
        assert trial is not None
        one.study.tell(trial.number, 1.0)
    one.close(), two.close()
    assert main(["sweep", path]) == 0
    assert sorted(trial.params["x"] for trial in counted(study_of(tmp_path))) == [0.1, 0.2, 0.3]


@pytest.mark.usefixtures("play")
def test_a_trial_that_another_search_has_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As after a sleep of this machine: the search here goes on without it."""
    start = search_module.Search._start

    def start_and_lose(search: search_module.Search, trial: optuna.Trial, jobs: int) -> search_module.Running:
        running = start(search, trial, jobs)
        if trial.number == 0:
            search._requeue(search._frozen(trial))
        return running

    monkeypatch.setattr(search_module.Search, "_start", start_and_lose)
    assert main(["sweep", write(tmp_path, [0.5, 0.25])]) == 0
    ended = counted(study_of(tmp_path))
    assert [(each.state, each.params["x"]) for each in ended] == [(TrialState.COMPLETE, x) for x in (0.25, 0.5)]
    assert "trial 0: not heard of for long, so that another search has taken it over" in capfd.readouterr().out


def test_only_kills_count_as_attempts(tmp_path: Path) -> None:
    search = search_in(tmp_path, write(tmp_path))
    for was_killed, attempt in [(False, 1), (True, 2), (False, 2)]:
        trial = search._claim(9)
        assert trial is not None
        search._requeue(search._frozen(trial), was_killed=was_killed)
        assert search.study.trials[-1].user_attrs[ATTEMPT] == attempt
    search.close()


def test_a_running_search_keeps_its_trials_when_another_joins(play: Path, tmp_path: Path) -> None:
    """As on a second machine, or in a second terminal: each setting of the grid is run by one of them."""
    path = write(tmp_path, ["sleeps", 0.5, 0.25])
    with search(play, path):
        assert main(["sweep", path]) == 0
        states = [trial.state for trial in study_of(tmp_path).trials]
        assert states == [TrialState.RUNNING, TrialState.COMPLETE, TrialState.COMPLETE]
    wait_until_gone(groups(tmp_path))


def test_all_trials_of_a_killed_search_are_run_again(play: Path, tmp_path: Path) -> None:
    path = write(tmp_path, parameters={"x": {"values": ["sleeps"]}, "y": {"values": [1, 2, 3]}}, method="grid")
    with search(play, path, "--jobs", "2", sleepers=2) as process:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    wait_until_gone(groups(tmp_path))
    assert [trial.state for trial in study_of(tmp_path).trials].count(TrialState.RUNNING) == 2
    (tmp_path / "awake").touch()
    assert main(["sweep", path]) == 0
    ended = counted(study_of(tmp_path))
    assert [trial.state for trial in ended] == [TrialState.COMPLETE] * 3
    assert {trial.params["y"] for trial in ended} == {1, 2, 3}
    assert not list((tmp_path / "runs/sweeps/played").glob("*.lock"))


@pytest.mark.usefixtures("play")
def test_a_locked_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(storage_module, "LOCK_TIMEOUT", 0.2)
    connection = sqlite3.connect(tmp_path / "busy.db")
    connection.execute("BEGIN EXCLUSIVE")
    try:
        assert main(["sweep", write(tmp_path), "--trials", "1", "--storage", f"sqlite:///{tmp_path}/busy.db"]) == 2
    finally:
        connection.close()
    error = capfd.readouterr().err
    assert "busy.db cannot be used: " in error
    assert "database is locked" in error


@pytest.mark.usefixtures("play")
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "storage that --storage names cannot be used"),
        ("postgresql+nodriver://me:secret@host/db", "postgresql"),
        ("sqlite:////no/such/folder/study.db", "unable to open database file"),
    ],
)
def test_a_storage_that_is_none(url: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", write(tmp_path), "--trials", "1", "--storage", url]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert "secret" not in error


def test_wrong_command_lines(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["sweep", write(tmp_path)]) == 2
    assert "--trials is missing, and the file has no run_cap" in capfd.readouterr().err
    assert main(["sweep", write(tmp_path, method=None), "--trials", "1"]) == 2
    assert "method: missing" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main(["sweep", write(tmp_path), "--trials", "0"])
    assert "must be an integer of at least 1" in capfd.readouterr().err
    monkeypatch.setattr("lit_papers.tuning.command.find_spec", lambda name: None)
    assert main(["sweep", write(tmp_path), "--trials", "1"]) == 2
    assert install_command("sweep") in capfd.readouterr().err


def test_without_a_seed_a_restart_draws_new_values() -> None:
    for sampler in search_module.SAMPLERS.values():
        drawn = {optuna.create_study(sampler=sampler()).ask().suggest_float("x", 0, 1) for _ in range(3)}
        assert len(drawn) == 3


@pytest.mark.usefixtures("play")
def test_a_trial_that_somebody_kills_is_run_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Not for ever: what runs out of memory each time is killed each time."""
    assert main(["sweep", write(tmp_path, ["dies once", "dies", 0.5])]) == 0
    trials = study_of(tmp_path).trials
    assert [trial.state for trial in counted(study_of(tmp_path))] == [TrialState.COMPLETE] * 2 + [TrialState.FAIL]
    assert [trial.user_attrs.get(ATTEMPT, 1) for trial in trials if trial.params["x"] == "dies"] == [1, 2, 3]
    assert trials[-1].user_attrs[REASON].startswith("interrupted by SIGKILL, 3 times")
    out = capfd.readouterr().out
    assert "interrupted by SIGTERM, to be run again (x=dies once)" in out
    assert "never logged" not in out


@pytest.mark.usefixtures("play")
@pytest.mark.parametrize(("when", "values"), [("while others run", [0.25, 0.5]), ("at once", [0.5])])
def test_trials_of_a_machine_that_is_gone_are_taken_back(
    when: str, values: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, values[::-1])
    folder = tmp_path / "runs/sweeps/played"
    folder.mkdir(parents=True)
    monkeypatch.setattr(storage_module, "HEARTBEAT", 1)
    monkeypatch.setattr(storage_module, "PATIENCE", 1)
    monkeypatch.setattr(search_module, "HEARTBEAT", 0)  # looks in every round, as the trials here last for one
    lost = search_module.Search(read_sweep(Path(path)), folder, f"sqlite:///{folder}/study.db")
    lost._enqueue_grid()
    assert lost._claim(2) is not None, "and no more is heard of it, as of a machine that lost its power"
    Path(lost._lock.lock_file).unlink()  # on that machine
    time.sleep(2.5)
    if when == "at once":  # where nothing else is left to run
        monkeypatch.setattr(search_module, "HEARTBEAT", 60)
    assert main(["sweep", path]) == 0
    ended = counted(study_of(tmp_path))
    assert sorted((trial.state, trial.params["x"]) for trial in ended) == [(TrialState.COMPLETE, x) for x in values]
    assert ended[-1].user_attrs[ATTEMPT] == 2


def test_two_searches_that_begin_together_share_exactly_the_trials(play: Path, tmp_path: Path) -> None:
    words = words_of_a_search(play, write(tmp_path), "--trials", "5", "--jobs", "2")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with warm(words, tmp_path, environment) as one, warm(words, tmp_path, environment) as two:
        outs = [process.communicate(timeout=200)[0] for process in (one, two)]
    assert [one.returncode, two.returncode] == [0, 0], outs
    assert [trial.state for trial in counted(study_of(tmp_path))] == [TrialState.COMPLETE] * 5


@pytest.mark.usefixtures("play")
def test_variables_and_flags_of_the_command_arrive(tmp_path: Path) -> None:
    command = ["${env}", "X=1", "${interpreter}", "-u", "-m", "lit_papers", "fit", "--config", "${args_json_file}"]
    assert main(["sweep", write(tmp_path, [1.0], command=command)]) == 0
    words = (tmp_path / "words").read_text().split()
    assert words[0] == "X=1"
    assert words[1:5] == ["-u", "-m", "lit_papers.tuning.trial", "fit"]


def test_the_helpers_of_this_file() -> None:
    """`members` sees processes of a group that run, and none that has ended: the checks for orphans rest on it."""
    with started([sys.executable, "-c", "import time; time.sleep(60)"], cwd=Path.cwd()) as process:
        assert members(process.pid) == [process.pid]
    wait_until_gone([process.pid])

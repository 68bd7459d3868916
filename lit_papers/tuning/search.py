"""The search: asks the study for values, runs each trial in a process of its own, and survives being killed."""

import json
import math
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState

from lit_papers.trials.processes import Command, ending, undisturbed
from lit_papers.tuning.assignment import LOGGED, PRUNED, VALUE, Assignment
from lit_papers.tuning.storage import HEARTBEAT, LOCK_TIMEOUT, one_at_a_time, open_storage
from lit_papers.tuning.sweep_file import ARGUMENTS_FILE, Choice, Range, Sweep

# user attributes, beside those of lit_papers.tuning.assignment
SWEEP, LOCK, REASON, ATTEMPT, KILLED, REPEATS = "sweep", "lock", "reason", "attempt", "killed", "repeats"
SAMPLERS: Mapping[str, Callable[[], optuna.samplers.BaseSampler]] = {
    # unseeded: a seed would draw the same values again after a restart, and on every machine of a shared study
    "bayes": lambda: optuna.samplers.TPESampler(constant_liar=True),
    "random": lambda: optuna.samplers.RandomSampler(),
    "grid": lambda: optuna.samplers.RandomSampler(),  # never asked: the points of a grid wait in the study
}
_INITIAL_FAILURES = 3  # W&B's agent gives up after as many
_ATTEMPTS = 3  # of a trial that somebody kills: what runs out of memory each time must not be tried for ever


class SearchError(RuntimeError):
    """A search that cannot go on; the message says what to change."""


@dataclass
class Running:
    """A trial under way."""

    trial: Trial
    process: Command


def distributions(space: Mapping[str, Choice | Range]) -> dict[str, BaseDistribution]:
    """Optuna's counterpart of each parameter; what a database column cannot hold is written as JSON.

    >>> distributions({"lr": Range(0.1, 1.0, log=True), "strides": Choice(([1, 2], None))})["strides"]
    CategoricalDistribution(choices=('[1, 2]', None))
    """
    return {key: _distribution(axis) for key, axis in space.items()}


def _distribution(axis: Choice | Range) -> BaseDistribution:
    if isinstance(axis, Choice):
        return CategoricalDistribution([_label(value) for value in axis.values])
    if isinstance(axis.low, int):
        return IntDistribution(axis.low, int(axis.high), log=axis.log, step=int(axis.step or 1))
    return FloatDistribution(axis.low, axis.high, log=axis.log, step=axis.step)


def _label(value: Any) -> Any:
    return value if value is None or isinstance(value, str | bool | int | float) else json.dumps(value)


def values_of(sweep: Sweep, params: Mapping[str, Any]) -> dict[str, Any]:
    """What the command line of a trial gets, by dotted key: Optuna's parameters in their own types, and the fixed."""
    values = dict(sweep.fixed)
    for key, param in params.items():
        axis = sweep.space[key]
        values[key] = axis.values[[_label(v) for v in axis.values].index(param)] if isinstance(axis, Choice) else param
    return values


def resolve(sweep: Sweep, values: Mapping[str, Any], folder: Path) -> str:
    """The whole configuration that ``fit`` makes of some values, as YAML.

    Raises:
        SearchError: ``fit`` refuses them, as it does a misspelt key.
    """
    with NamedTemporaryFile("w", dir=folder, prefix="resolve_", suffix=".json", delete=False) as file:
        json.dump(values, file)  # of a name of its own: other searches may share the folder
    path = Path(file.name)
    words = [str(path) if word == ARGUMENTS_FILE else word for word in sweep.arguments]
    try:
        done = subprocess.run(  # noqa: S603  # the words are the user's own sweep file
            [sys.executable, *sweep.flags, "-m", "lit_papers", *words, "--trainer.logger=null", "--print_config"],
            capture_output=True,
            text=True,
            env={**os.environ, **sweep.environment},
        )
    finally:
        path.unlink()
    if done.returncode:
        raise SearchError(f"the sweep's command line is refused:\n{done.stderr.strip()}")
    return done.stdout


class Search:
    """A study and the processes that work for it on this machine.

    Args:
        sweep: what to search.
        folder: of the sweep's files; each trial has a folder below it.
        storage: database URL of the study.

    Raises:
        SearchError: the database holds a study of the same name from another sweep file.
    """

    def __init__(self, sweep: Sweep, folder: Path, storage: str) -> None:
        self.sweep = sweep
        self.folder = folder
        self.storage = storage
        self._storage = open_storage(storage, on_stale=_enqueue_again)
        self._alone = one_at_a_time(storage)
        self.study = optuna.create_study(
            study_name=sweep.name,
            storage=self._storage,
            direction="maximize" if sweep.maximize else "minimize",
            sampler=SAMPLERS[sweep.method](),
            load_if_exists=True,
        )
        self.distributions = distributions(sweep.space)
        self.running: list[Running] = []
        self._heard_of = time.monotonic()
        self._check_same_sweep()
        # Held as long as this process lives, so that another can tell whether a trial of ours is still being run.
        self._lock = FileLock(folder / f"worker_{os.getpid()}_{time.time_ns()}.lock")
        self._lock.acquire(timeout=0)

    def _check_same_sweep(self) -> None:
        sweep = self.sweep
        ours = {
            "method": sweep.method,
            "metric": [sweep.metric, sweep.maximize],
            "parameters": {key: str(axis) for key, axis in sorted(sweep.space.items())} | {"fixed": dict(sweep.fixed)},
            "command": [
                *(f"{key}={value}" for key, value in sweep.environment.items()),
                *sweep.flags,
                *sweep.arguments,
            ],
        }
        ours = json.loads(json.dumps(ours))
        theirs = self.study.user_attrs.get(SWEEP)
        if theirs is None:
            self.study.set_user_attr(SWEEP, ours)
        elif theirs != ours:
            different = ", ".join(key for key in ours if ours[key] != theirs.get(key))
            raise SearchError(
                f"the study {sweep.name!r} in {self.storage} was begun with another sweep file "
                f"(different: {different}); give this one another `name`, or another --storage"
            )

    def run(self, trials: int, jobs: int, on_finish: Callable[[FrozenTrial], None]) -> None:
        """Run trials until the study has so many, then return; interrupted ones are run again and count once.

        Args:
            trials: number of trials of the whole study, with those of earlier runs and other machines.
            jobs: how many run side by side.
            on_finish: called with each trial of this run when it has ended.

        Raises:
            SearchError: the metric is never logged, or the first trials all failed.
            KeyboardInterrupt: passed on when the processes are gone and what they did is noted.
        """
        self._recover()
        if self.sweep.method == "grid":
            self._enqueue_grid()
        try:
            while True:
                for running in [job for job in self.running if job.process.status is not None]:
                    with undisturbed():
                        self.running.remove(running)
                        ended = self._finish(running)
                    on_finish(ended)
                while len(self.running) < jobs and self._wants_more(trials):
                    with undisturbed():
                        trial = self._claim(trials)
                        if trial is not None:
                            self.running.append(self._start(trial, jobs))
                if not self.running:
                    return
                self._give_a_sign_of_life()
                time.sleep(0.1)
        finally:
            self._interrupt()

    def close(self) -> None:
        """Give up the lock of this process."""
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def _recover(self) -> None:
        """Put the trials of killed searches back into the queue.

        A lock file that can be locked belonged to a process that is gone; one that is not here, to another machine,
        whose trials are taken back when it has been silent for long.
        """
        self._take_back_silent()
        for trial in self._unsigned():
            self._requeue(trial)
        running = self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
        for path in {Path(trial.user_attrs.get(LOCK, "")) for trial in running}:
            if not path.is_file():
                continue
            lock = FileLock(path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            for trial in running:
                if trial.user_attrs.get(LOCK) == str(path):
                    self._requeue(trial)
            lock.release()
            path.unlink(missing_ok=True)

    def _unsigned(self) -> list[FrozenTrial]:
        """Trials whose search was killed before it could write its lock to them, which one that lives soon does."""
        end = time.monotonic() + LOCK_TIMEOUT
        while True:
            running = self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
            unsigned = [trial for trial in running if LOCK not in trial.user_attrs]
            if not unsigned or time.monotonic() > end:
                return unsigned
            time.sleep(0.1)

    def _requeue(self, trial: FrozenTrial, *, was_killed: bool = True) -> None:
        with self._alone:
            _enqueue_again(self.study, trial, was_killed=was_killed)  # first, so that being killed here loses nothing
            self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def _give_a_sign_of_life(self) -> None:
        """Tell the storage that our trials are being run, and take back those of machines that no longer do so."""
        if time.monotonic() - self._heard_of < HEARTBEAT / 2:
            return
        self._heard_of = time.monotonic()
        for running in self.running:
            self._storage.record_heartbeat(running.trial._trial_id)
        self._take_back_silent()

    def _take_back_silent(self) -> None:
        with self._alone, warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            fail_stale_trials(self.study)

    def _enqueue_grid(self) -> None:
        """Queue the points that no trial has; one that was given back, or lost by a kill, has none."""
        axes = {key: axis.values for key, axis in self.sweep.space.items() if isinstance(axis, Choice)}
        with self._alone:
            taken = [_params(trial) for trial in self.study.get_trials(deepcopy=False) if counts(trial)]
            for point in product(*axes.values()):
                params = dict(zip(axes, map(_label, point), strict=True))
                if params not in taken:
                    self.study.enqueue_trial(params)

    def _wants_more(self, trials: int) -> bool:
        known = [trial for trial in self.study.get_trials(deepcopy=False) if counts(trial)]
        waiting = sum(trial.state == TrialState.WAITING for trial in known)
        return len(known) - waiting < trials and (waiting > 0 or self.sweep.method != "grid")

    def _claim(self, trials: int) -> Trial | None:
        """Take the next trial; None if another search took the last one at the same moment.

        Their numbers decide, which the storage gives out one by one: who finds enough before its own gives it back.
        """
        with self._alone, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")  # we record it ourselves
            trial = self.study.ask()
            self._storage.record_heartbeat(trial._trial_id)  # first: a signed trial that never had one is never silent
            # before drawing values, which may be slow
            trial.set_user_attr(LOCK, str(Path(self._lock.lock_file).resolve()))
        for name, distribution in self.distributions.items():
            trial._suggest(name, distribution)  # as `ask` itself would have done
        counted = [t for t in self.study.get_trials(deepcopy=False) if t.number < trial.number and counts(t)]
        # the one that it repeats may be about to be marked as failed
        before = [t for t in counted if t.number != trial.user_attrs.get(REPEATS)]
        begun = [t for t in before if t.state != TrialState.WAITING]
        is_twice = self.sweep.method == "grid" and any(t.params == trial.params for t in before)
        if len(begun) >= trials or is_twice:  # two searches that begin together both enqueue the grid
            self.study.tell(trial.number, state=TrialState.FAIL)
            return None
        return trial

    def _start(self, trial: Trial, jobs: int) -> Running:
        name = f"trial_{trial.number:03d}"
        values = self.folder / f"{name}.json"
        values.write_text(json.dumps(values_of(self.sweep, trial.params)))
        logger = {
            "class_path": "lightning.pytorch.loggers.CSVLogger",
            "init_args": {"save_dir": str(self.folder), "name": "", "version": name},
        }
        words = [str(values) if word == ARGUMENTS_FILE else word for word in self.sweep.arguments]
        words += [f"--trainer.logger={json.dumps(logger)}", "--trainer.enable_progress_bar=false"]
        assignment = Assignment(
            self.storage, self.sweep.name, trial._trial_id, self.sweep.metric, self.sweep.min_iter, self.sweep.eta
        )
        environment = {**os.environ, **self.sweep.environment, **assignment.to_environment()}
        if jobs > 1:  # each with all cores would be slower than one after the other
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
        log = self.folder / f"{name}.log"
        return Running(trial, Command(["lit_papers.tuning.trial", *words], log, self.sweep.flags, environment))

    def _finish(self, running: Running) -> FrozenTrial:
        """Tell the study how a trial ended; one that somebody killed is queued again."""
        process = running.process
        process.close()
        frozen = self._frozen(running.trial)
        if frozen.state.is_finished():  # another search took it back while this machine was asleep
            return frozen
        attributes, status = frozen.user_attrs, process.status
        value = attributes.get(VALUE)
        killed_by = process.killed_by
        attempt = attributes.get(ATTEMPT, 1)
        if killed_by is not None and attempt < _ATTEMPTS:
            running.trial.set_user_attr(KILLED, killed_by.name)
            self._requeue(frozen)
            return self._frozen(running.trial)
        if killed_by is not None:
            reason = f"interrupted by {killed_by.name}, {attempt} times (what it printed: {process.log})"
        elif status != 0:
            reason = f"exit status {status}: {process.last_line()} (all of it: {process.log})"
        elif value is None:
            logged = ", ".join(attributes.get(LOGGED, [])) or "nothing"
            reason = f"metric.name: {self.sweep.metric!r} was never logged; logged were {logged}"
        elif not math.isfinite(value):
            reason = f"{self.sweep.metric} ended as {value}"
        elif attributes.get(PRUNED):
            return self.study.tell(frozen.number, state=TrialState.PRUNED)
        else:
            return self.study.tell(frozen.number, value)
        running.trial.set_user_attr(REASON, reason)
        failed = self.study.tell(frozen.number, state=TrialState.FAIL)
        self._check_hope(reason if value is None and LOGGED in attributes and status == 0 else None)
        return failed

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return next(t for t in self.study.get_trials(deepcopy=False) if t.number == trial.number)

    def _check_hope(self, unknown_metric: str | None) -> None:
        if unknown_metric:
            raise SearchError(unknown_metric)
        ended = [t for t in self.study.get_trials(deepcopy=False) if t.state.is_finished() and counts(t)]
        failed = [t for t in ended if t.state == TrialState.FAIL]
        if len(failed) == len(ended) >= _INITIAL_FAILURES:
            raise SearchError(f"the first {len(failed)} trials all failed; the last: {failed[-1].user_attrs[REASON]}")

    def _interrupt(self) -> None:
        """End what is still running, and queue it again."""
        if not self.running:
            return
        with ending([running.process for running in self.running]):
            numbers = {running.trial.number for running in self.running}
            self.running.clear()
            for frozen in self.study.get_trials(deepcopy=False):
                if frozen.number in numbers and not frozen.state.is_finished():
                    self._requeue(frozen, was_killed=False)


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of those asked for.

    It is not if it failed without a reason: it was interrupted, and is queued again as another trial, or given back.
    """
    return trial.state != TrialState.FAIL or REASON in trial.user_attrs


def _params(trial: FrozenTrial) -> dict[str, Any]:
    """Killed before it drew all its values, a trial has them only as those that were queued with it."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def _enqueue_again(study: optuna.Study, trial: FrozenTrial, *, was_killed: bool = True) -> None:
    """Once: a search that was killed right after this still has the trial, which the next one takes back too."""
    if all(each.user_attrs.get(REPEATS) != trial.number for each in study.get_trials(deepcopy=False)):
        attempt = trial.user_attrs.get(ATTEMPT, 1) + was_killed  # a search that is stopped for the night is no fault
        study.enqueue_trial(_params(trial), {ATTEMPT: attempt, REPEATS: trial.number})

"""The diagnosis itself: which lenses fit, how thoroughly they look, and looking."""

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from lit_papers.diagnose.accuracies import accuracy_matrix
from lit_papers.diagnose.budget import share_out, slower, too_dear
from lit_papers.diagnose.checkpoints import Checkpoint, read_checkpoints, weights_of
from lit_papers.diagnose.concluding import account, conclude, empty, reason_into
from lit_papers.diagnose.control import fresh_weights
from lit_papers.diagnose.datasets import Datasets
from lit_papers.diagnose.deadline import OutOfTimeError, deadline
from lit_papers.diagnose.entries import ENTRIES, Data, Entry
from lit_papers.diagnose.names import FORGETTING, check_names
from lit_papers.diagnose.plans import Plan
from lit_papers.diagnose.probing import Probe, said_of
from lit_papers.diagnose.provenance import network_facts, not_finite, provenance
from lit_papers.diagnose.report import Finding, Report
from lit_papers.interactions.players import Players
from lit_papers.lens import Call, NotApplicable, Unpack
from lit_papers.lens.streams import streams_kept

_SECONDS_FIGURE = 0.7  # of computing
_OVERRUN = 0.15  # of the time, after which every measurement is stopped
_PASS = {"train": "reading the training data", "validation": "reading the validation data"}


def diagnose(
    model: nn.Module,
    train: Any = None,
    val: Any = None,
    *,
    checkpoints: Sequence[str | Path] = (),
    lenses: Sequence[str] | None = None,
    minutes: float = 5.0,
    trainer: Trainer | None = None,
    call: Call | None = None,
    unpack: Unpack | None = None,
    classifier: str | nn.Module | None = None,
    players: Players | None = None,
    pairs: Sequence[Any] | None = None,
    lam: float | None = None,
    evaluations: Mapping[str, Any] | None = None,
    seed: int = 0,
    title: str | None = None,
    progress: bool = False,
) -> Report:
    """Look at a trained network through every lens that fits it.

    The network, its buffers and modes, and all random streams are afterwards bit by bit what they were. What does not
    fit, or fails, is a section with the reason and never an exception.

    Args:
        model: any ``nn.Module`` that classifies; of a LightningModule its steps are tried before ``forward``.
        train: loader of the training data; None takes that of the ``trainer``.
        val: loader of the validation data; None takes that of the ``trainer``, or measures ``train`` alone.
        checkpoints: files with weights of this network, of a Trainer or plain ``state_dict``: each is looked at, and
            the numbers are drawn over their steps. None looks at the weights that the network has.
        lenses: names of some; None for all.
        minutes: that it may take, > 0; ``math.inf`` for as long as it takes in full. On one process what takes longer
            than was planned is stopped, and tried again with less.
        trainer: that trains the network, where there is one: tells data, precision and weight decay.
        call: from (module, batch) to (logits, class indices), where it cannot be found.
        unpack: from a batch to (argument of ``forward``, class indices).
        classifier: last ``nn.Linear`` or its dotted path, where it cannot be found.
        players: what is masked for interactions; None goes by the shape of the input.
        pairs: of graphs, for graph networks; None takes those of networkx' atlas.
        lam: strength of the L2 term in the loss, for the central path of networks without a ``trainer``.
        evaluations: loaders by name, for the matrix of accuracies over several checkpoints.
        seed: of all samples, contexts and directions.
        title: of the page; None names the network.
        progress: show a bar, on the first process.

    Returns:
        The report: ``table()``, ``save(folder)``, ``numbers()``; in a notebook it shows itself.

    Raises:
        ValueError: a name or number is wrong, or a checkpoint is of another network.
        TypeError: ``model`` is no ``nn.Module``.
        OSError: a checkpoint cannot be read.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError("`model` has weights on the meta device, which have no values: load them first")
    if not minutes > 0:
        raise ValueError(f"minutes must be positive, got {minutes}")
    chosen = check_names(lenses)
    moments = read_checkpoints(checkpoints, model) if checkpoints else [_as_it_is(trainer)]
    begun = time.perf_counter()
    options = {"call": call, "unpack": unpack, "classifier": classifier}
    datasets = Datasets(model, {"train": train, "validation": val}, trainer, options, seed)
    diagnosis = _Diagnosis(model, datasets, moments, trainer, seed, 60 * minutes)
    with streams_kept(), _bar(progress and datasets.processes.rank == 0) as step:
        # first, as it is measured in full: the others share out what is left
        matrix = [diagnosis.accuracies(evaluations)] if FORGETTING in chosen else []
        findings = diagnosis.run(chosen, players, pairs, lam, step) + matrix
    return Report(
        title or f"Diagnosis of {type(model).__name__}",
        network_facts(model, moments),
        findings,
        provenance(datasets.loaders(), moments, seed, minutes, time.perf_counter() - begun, datasets.device),
        diagnosis.doubts,
    )


class _Diagnosis:
    """One network, its data and the moments that are looked at."""

    def __init__(
        self,
        model: nn.Module,
        datasets: Datasets,
        moments: list[Checkpoint],
        trainer: Trainer | None,
        seed: int,
        seconds: float,
    ) -> None:
        self.model = model
        self.datasets = datasets
        self.moments = moments
        self.trainer = trainer
        self.seed = seed
        self.doubts: list[str] = []
        self._broken: str | None = None
        self._seconds = seconds
        self._end = time.perf_counter() + seconds
        self._stopped: dict[str, float] = {}  # seconds after which measurements were stopped

    def accuracies(self, evaluations: Mapping[str, Any] | None) -> Finding:
        """Of each moment on each of these data sets."""
        return accuracy_matrix(self.datasets.evaluated(evaluations), self.model, self.moments, self._latest())

    def run(
        self,
        chosen: Sequence[str],
        players: Players | None,
        pairs: Sequence[Any] | None,
        lam: float | None,
        step: Callable[[str, int, int], None],
    ) -> list[Finding]:
        """Findings in the order of `ENTRIES`, made from cheap to dear."""
        entries = {entry.name: entry for entry in ENTRIES if entry.name in chosen}
        findings = {name: empty(entry) for name, entry in entries.items()}
        with weights_of(self.moments[-1], self.model), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again when it counts
            self._broken = not_finite(self.model)
            self.doubts += [self._broken] if self._broken else []
            probe = Probe(self.datasets.subject, self.datasets.present(), list(entries.values()))
            self.datasets.most = probe.time(self._seconds)
            setting = probe.setting(self.model, self.seed)
        own = getattr(getattr(self.trainer, "datamodule", None), "pairs", None)
        setting.players, setting.pairs, setting.lam = players, pairs or own, lam
        setting.checkpoints = [moment.path for moment in self.moments if moment.path is not None]
        plans: dict[str, list[Plan]] = {}
        for name, entry in entries.items():
            with reason_into(findings[name]):
                if entry.gathers and probe.failure is not None:
                    raise self._explained(probe.failure)
                plans[name] = entry.plans(setting)
        costs = self._costs(entries, plans, probe, setting.slowness * _SECONDS_FIGURE * min(len(self.moments), 2))
        whole = len(costs)
        step("", 0, whole)
        self._read_and_measure(entries, plans, findings, probe, costs)
        costs = {name: each for name, each in costs.items() if name not in _PASS.values()}
        while costs:
            remaining = self._remaining()
            levels = share_out(costs, remaining)
            # what does not fit comes last: where the others take less than was thought, it does
            name = min(costs, key=lambda each: (levels[each] is None, costs[each][0]))
            step(name, whole - len(costs), whole)
            thought, level = costs.pop(name), levels[name]
            if level is None:
                reason = too_dear(min(thought), remaining, self._stopped.get(name))
                findings[name].status, findings[name].reason, findings[name].reduced = "left out", reason, None
                continue
            findings[name].estimated_seconds, findings[name].reduced = thought[level], None
            tasks = [
                _Task(entries[name], plans[name][level:], each, None) for each in self.datasets.read_by(entries[name])
            ]
            humbler = level + 1 < len(thought) and name not in self._stopped  # once
            stopped = self._measure(tasks, findings, thought[level], _cost_of(costs, levels), humbler)
            if stopped is not None:
                self._stopped[name] = self._stopped.get(name, 0.0) + stopped
                costs[name] = slower(thought, level if humbler else len(thought), stopped)
        step("", whole, whole)
        return [findings[name] for name in entries]

    def _costs(
        self, entries: dict[str, Entry], plans: dict[str, list[Plan]], probe: Probe, drawing: float
    ) -> dict[str, list[float]]:
        """Seconds of each measurement at its levels; those that read through a pass are in its cost."""
        looks = len(self.moments)
        passes = {_PASS[data]: [looks * each for each in probe.seconds_of_levels(data)] for data in probe.batches}
        others = {
            name: [
                drawing
                + plan.once
                + plan.seconds * (looks + entries[name].control) * len(self.datasets.read_by(entries[name]))
                for plan in found
            ]
            for name, found in plans.items()
            if not entries[name].gathers
        }
        first = {_PASS["train"]: passes.pop(_PASS["train"])} if _PASS["train"] in passes else {}
        return {**first, **others, **passes}  # what is most wanted first: three lenses read the training data

    def _remaining(self) -> float:
        """Seconds left, the same on every process; never none, as what costs nothing is still made."""
        if math.isinf(self._end):
            return math.inf
        mine = torch.tensor([self._end - time.perf_counter()], dtype=torch.float64)
        return max(float(self.datasets.processes.sum(mine)) / self.datasets.processes.size, 0.5)

    def _latest(self) -> float:
        """When everything is stopped. On several processes nothing is: they would not be at the same place."""
        return self._end + _OVERRUN * self._seconds if self.datasets.processes.size == 1 else math.inf

    def _read_and_measure(
        self,
        entries: dict[str, Entry],
        plans: dict[str, list[Plan]],
        findings: dict[str, Finding],
        probe: Probe,
        costs: Mapping[str, Sequence[float]],
    ) -> None:
        """All that reads through the passes over the data, each of which is made once a moment.

        Where a pass is stopped, as it takes longer than was thought, fewer batches are read.
        """
        costs = dict(costs)
        for attempt in itertools.count(1):
            levels = share_out(costs, self._remaining())
            tasks = []
            for name in [name for name in plans if entries[name].gathers]:
                finding = findings[name]
                finding.estimated_seconds, finding.reduced = 0.0, None
                for data in self.datasets.read_by(entries[name]):
                    level = levels.get(_PASS[data])
                    if level is None:
                        finding.status, finding.reason = "left out", f"no time is left for {_PASS[data]}"
                        finding.reduce(finding.reason)
                        continue
                    limit = probe.limit(data, level)
                    finding.estimated_seconds += costs[_PASS[data]][level]
                    if limit is not None:
                        finding.reduce(probe.said(data, limit))
                    tasks.append(_Task(entries[name], plans[name], data, limit))
            read = {_PASS[task.data]: costs[_PASS[task.data]] for task in tasks}
            others = {name: each for name, each in costs.items() if name not in read}
            humbler = attempt == 1
            stopped = self._measure(tasks, findings, _cost_of(read, levels), _cost_of(others, levels), humbler)
            if stopped is None:
                return
            for name, each in read.items():
                costs[name] = slower(each, (levels[name] or 0) if humbler else len(each), stopped)

    def _measure(
        self, tasks: "list[_Task]", findings: dict[str, Finding], thought: float, others: float, humbler: bool
    ) -> float | None:
        """Check all tasks, then look at each moment with all of them, so that they share its pass.

        Args:
            tasks: to be carried out.
            findings: by name of the entry, which get what comes out.
            thought: seconds that this takes, as is thought.
            others: seconds that are needed afterwards.
            humbler: whether it could be done with less, so that time for this should be left.

        Returns:
            None, or the seconds after which it was stopped, because the others need their time.
        """
        begun, end = time.perf_counter(), self._latest()
        if math.isfinite(end):
            spare = max(end - begun - others - thought, 0.0)
            end = min(end, begun + thought + (spare / 2 if humbler else spare))
        try:
            with deadline(end):
                self._look_at_all(tasks, findings)
        except OutOfTimeError:
            return time.perf_counter() - begun
        for name in dict.fromkeys(task.entry.name for task in tasks):
            mine = [task for task in tasks if task.entry.name == name]
            with account(findings[name]):
                conclude(mine, findings[name], over_time=len(self.moments) > 1)
        return None

    def _look_at_all(self, tasks: "list[_Task]", findings: dict[str, Finding]) -> None:
        for number, checkpoint in enumerate(self.moments):
            with weights_of(checkpoint, self.model):
                if number == 0:
                    tasks[:] = [task for task in tasks if self._is_checked(task, findings[task.entry.name])]
                for task in tasks:
                    with account(findings[task.entry.name]):
                        if number == 0 and task.entry.control:
                            task.history += self._control(task)
                        task.history.append(self._look(task, number, checkpoint))

    def _is_checked(self, task: "_Task", finding: Finding) -> bool:
        """Whether a plan fits: the first, or a humbler one."""
        fits = False
        with account(finding):
            task.subject = self.datasets.subject(task.data, task.limit)
            refusal: NotApplicable | None = None
            for plan in task.plans:
                task.lens = plan.make()
                try:
                    with task.subject.processes.same_fate(f"checking {task.entry.name}"):
                        task.prepared = task.lens.check(task.subject)
                except NotApplicable as error:
                    refusal = refusal or error
                    continue
                if plan.note:
                    finding.reduce(plan.note)
                fits = True
                break
            if refusal is not None and not fits:
                raise self._explained(refusal)
        return fits

    def _explained(self, error: Exception) -> Exception:
        """Of weights that are not finite all sorts of things do not fit, and this alone is why."""
        return ValueError(self._broken) if self._broken and isinstance(error, NotApplicable) else error

    def _look(self, task: "_Task", number: int, checkpoint: Checkpoint) -> dict[str, Any]:
        """An entry of the history; a moment without numbers has a reason."""
        moment = task.subject.moment((number, checkpoint.step), list(dict.fromkeys(task.subject.asked)))
        moment.untrained = checkpoint.untrained
        when = {"checkpoint": checkpoint.name, "step": checkpoint.step, "epoch": checkpoint.epoch}
        try:
            with task.subject.processes.same_fate(f"measuring {task.entry.name}"):
                before = [entry for entry in task.history if "reason" not in entry]
                return {**when, **task.lens.look(moment, task.prepared, before)}
        except NotApplicable:
            raise
        except Exception as error:  # a stranger's network or data
            return {**when, "reason": str(error) if type(error) is ValueError else said_of(error)}

    def _control(self, task: "_Task") -> list[dict[str, Any]]:
        """The same network with fresh weights, as epoch 0; nothing, with a warning, where there are none."""
        if any(checkpoint.untrained for checkpoint in self.moments):
            return []
        with fresh_weights(self.model, self.seed) as missing:
            if missing is None:
                moment = task.subject.moment()
                moment.untrained = True
                try:
                    with task.subject.processes.same_fate("measuring the untrained network"):
                        numbers = task.lens.look(moment, task.prepared, [])
                    return [{"checkpoint": "untrained", "step": 0, "epoch": 0, **numbers}]
                except Exception as error:  # as for the network itself
                    missing = said_of(error)
        warnings.warn(f"no untrained network beside it: {missing}", stacklevel=1)
        return []


@dataclass
class _Task:
    """One lens on one data set."""

    entry: Entry
    plans: list[Plan]
    data: Data
    limit: int | None
    history: list[dict[str, Any]] = field(default_factory=list)
    prepared: Any = None
    lens: Any = None
    subject: Any = None


def _as_it_is(trainer: Trainer | None) -> Checkpoint:
    if trainer is None:
        return Checkpoint(None, 0, 1)
    return Checkpoint(None, trainer.global_step, max(1, trainer.current_epoch))


def _cost_of(costs: Mapping[str, Sequence[float]], levels: Mapping[str, int | None]) -> float:
    """Seconds of what is chosen."""
    return sum(each[level] for name, each in costs.items() if (level := levels[name]) is not None)


@contextmanager
def _bar(shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    columns = (TextColumn("{task.description:<32}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, disable=not shown, transient=True) as bar:
        task = bar.add_task("trying the network", total=None)

        def step(name: str, done: int, total: int) -> None:
            bar.update(task, description=name or "done", completed=done, total=total)

        yield step

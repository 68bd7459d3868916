"""Trying a network on a batch or two: what it takes, and how long it takes."""

import copy
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lit_papers.diagnose.entries import Data, Entry, Setting
from lit_papers.lens import NotApplicable, Subject
from lit_papers.lens import data as readings

if TYPE_CHECKING:
    from collections.abc import Callable

_PARTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 16384)
_FEWEST = 2  # batches of a pass
_UNKNOWN = (4096, 1024, 256, 64, 16, 4)  # batches of a stream without length
_LONG = 2.0  # seconds of one batch, after which a second one is not tried
_ROWS_BYTES = 2**24  # of one forward pass while its speed is measured


class Probe:
    """What a few batches show of each data set.

    Args:
        subjects: the network bound to each.
        entries: whose passes over the data are timed.

    Attributes:
        failure: why there can be no pass over the data; None where there can.
        batches: of each data set, None where it does not say how many.
    """

    def __init__(self, subjects: Mapping[Data, Subject], entries: Sequence[Entry]) -> None:
        self.failure: Exception | None = None
        self.batches: dict[Data, int | None] = {}
        self._subjects = subjects
        self._seconds: dict[Data, tuple[float, float]] = {}  # to begin, and for each batch
        gathering = [entry for entry in entries if entry.gathers]
        for data, subject in subjects.items():
            wanted = [entry for entry in gathering if data in entry.data]
            if not wanted:
                continue
            try:
                self._seconds[data] = self._timed(subject, wanted)
                self.batches[data] = _number_of(subject)
            except Exception as error:  # a stranger's loader or network
                self.failure = error
        if gathering and not subjects:
            self.failure = NotApplicable("there are no data to measure on: pass a loader, `train`")

    def _timed(self, subject: Subject, entries: Sequence[Entry]) -> tuple[float, float]:
        _ = subject.route
        trial = copy.copy(subject)
        trial._gatherings, trial.asked = {}, []
        for entry in entries:
            with suppress(NotApplicable):  # its own section says why
                entry.plans(Setting(subject.network, None, "", 0.0))[0].make().check(trial)
        first = self._pass(trial, 1)
        if first > _LONG:
            return self._agreed(subject, 0.0, first)
        three = self._pass(trial, 3)
        each = max((three - first) / 2, 0.3 * three / 3)
        return self._agreed(subject, max(first - each, 0.0), each)

    @staticmethod
    def _pass(subject: Subject, batches: int) -> float:
        subject.max_batches = batches * subject.processes.size
        begun = time.perf_counter()
        subject.moment().head()
        return time.perf_counter() - begun

    @staticmethod
    def _agreed(subject: Subject, *numbers: float) -> tuple[float, float]:
        total = subject.processes.sum(torch.tensor(numbers, dtype=torch.float64)) / subject.processes.size
        begin, each = total.tolist()
        return begin, each

    def seconds_of_levels(self, data: Data) -> list[float]:
        """Of a pass over all batches, and over fewer and fewer."""
        begin, each = self._seconds[data]
        size = self._subjects[data].processes.size
        return [begin + each * -(-count // size) for count in self._levels(data)]

    def limit(self, data: Data, level: int) -> int | None:
        """Batches that are read at a level; None for all."""
        return None if level == 0 and self.batches[data] is not None else self._levels(data)[level]

    def said(self, data: Data, limit: int) -> str:
        """What a limited pass reads, for people."""
        whole = self.batches[data]
        if whole is None:
            return f"at most {limit} batches of the {data} data, a stream"
        way = "drawn at random" if readings.is_indexed(self._subjects[data].loader) else "the first"
        return f"{limit} of {whole} batches of the {data} data, {way}"

    def _levels(self, data: Data) -> list[int]:
        whole = self.batches[data]
        if whole is None:
            return list(_UNKNOWN)
        return list(dict.fromkeys(max(whole // part, min(_FEWEST, whole)) for part in _PARTS))

    def setting(self, network: nn.Module, seed: int) -> Setting:
        """What the lenses' plans go by."""
        sample, reason, graphs, seconds = None, "there are no data to measure on: pass a loader, `train`", False, 0.0
        for subject in self._subjects.values():
            try:
                with subject.quiet():
                    graphs = graphs or _is_of_graphs(readings.first_batch(subject.loader))
                sample, _ = subject.rows(1)
                break
            except Exception as error:  # a stranger's loader
                reason = str(error) if isinstance(error, (NotApplicable, TypeError)) else said_of(error)
        if sample is not None:
            subject = next(iter(self._subjects.values()))
            (seconds, _) = self._agreed(subject, _forward_seconds(subject, sample), 0.0)
        return Setting(network, sample, reason, seconds, graphs, seed=seed)


def said_of(error: Exception) -> str:
    """An error in a line, with its kind."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _number_of(subject: Subject) -> int | None:
    try:
        return len(subject.loader)
    except (TypeError, NotImplementedError, AttributeError, ValueError):
        return None


def _is_of_graphs(batch: object) -> bool:
    listed = batch if isinstance(batch, (list, tuple)) else [batch]
    return any(getattr(each, "edge_index", None) is not None for each in listed)


def _forward_seconds(subject: Subject, sample: Tensor) -> float:
    """Seconds of a sample in ever larger batches, until they take long enough to be told; NaN where it fails."""
    most = max(1, _ROWS_BYTES // max(1, sample.numel() * sample.element_size()))
    try:
        with subject.moment().network() as network:
            run: Callable[[int], float] = lambda rows: _took(network, sample, rows)  # noqa: E731
            rows, taken = 1, run(1)
            taken = run(1) if taken < _LONG else taken  # the first sets things up
            while taken < 0.05 and 2 * rows <= min(most, 1024):
                rows *= 2
                taken = run(rows)
            return taken / rows
    except Exception:  # a stranger's forward
        return float("nan")


def _took(network: nn.Module, sample: Tensor, rows: int) -> float:
    begun = time.perf_counter()
    returned = network(sample.expand(rows, *sample.shape[1:]).clone())
    if isinstance(returned, Tensor):
        returned.sum().item()  # waits for a GPU
    return time.perf_counter() - begun

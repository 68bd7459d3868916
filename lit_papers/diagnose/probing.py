"""Trying a network on a batch or two: what it takes, and how long it takes."""

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from lit_papers.diagnose.entries import Data, Entry
from lit_papers.diagnose.plans import Setting
from lit_papers.lens import Lens, Moment, NotApplicable, Subject
from lit_papers.lens import data as readings

_FIRST, _GROWTH = 4, 4  # samples that are tried first, and how their number grows
_BATCH_SHARE = 1 / 60  # of the time, that a batch may take
_PARTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 16384)
_FEWEST, _FEWEST_SAMPLES = 2, 32  # of a pass: batches, and samples in them
_UNKNOWN = (4096, 1024, 256, 64, 16, 4)  # batches of a stream without length
_ROWS_BYTES = 2**24  # of one forward pass while its speed is measured
_SLOWEST = 12.0
_NO_DATA = "there are no data to measure on: pass a loader, `train`"


class Probe:
    """What a few samples show of the network on its data.

    Args:
        subject_of: binds the network to a data set: from its name, a limit of batches, and most samples of a batch.
        datasets: that there are, the first of which is tried.
        entries: whose passes over the data are timed.

    Attributes:
        failure: why there can be no pass over the data; None where there can.
        batches: of each data set that is passed over, None where it does not say how many.
    """

    def __init__(self, subject_of: Callable[..., Subject], datasets: Sequence[Data], entries: Sequence[Entry]) -> None:
        self.failure: Exception | None = None if datasets else NotApplicable(_NO_DATA)
        self.batches: dict[Data, int | None] = {}
        self._subject_of = subject_of
        self._datasets = datasets
        self._gathering = [entry for entry in entries if entry.gathers]
        self._begin, self._each = 0.0, 0.0  # seconds of a pass: to begin with, and for each batch
        self._slowness = 1.0
        self._most: int | None = None

    def time(self, seconds: float) -> int | None:
        """Time a pass over a few samples, where one is wanted.

        Args:
            seconds: of the whole diagnosis.

        Returns:
            Most samples that a batch should have to take no large part of that; None for the loader's own.
        """
        if not self._datasets:
            return None
        begun, computed = time.perf_counter(), time.process_time()
        try:
            self._time(seconds)
        except Exception as error:  # a stranger's loader or network
            self.failure = error
        passed, computed = time.perf_counter() - begun, time.process_time() - computed
        self._slowness = min(max(passed / max(computed, 1e-3), 1.0), _SLOWEST)
        return self._most

    def _time(self, seconds: float) -> None:
        """Try ever larger batches, up to the loader's own or to one that takes a large part of the time."""
        data = self._datasets[0]
        own = self._subject_of(data)
        indexed = readings.is_indexed(own.loader)
        whole = (getattr(own.loader, "batch_size", None) or 1) if indexed else 1
        size, allowed = _FIRST, _BATCH_SHARE * seconds
        while size < whole:
            lenses, trial = self._checked(self._subject_of(data, most=size), data)
            moment, taken = _passed(trial, 1)
            taken = self._agreed(own, taken)
            if taken * min(_GROWTH, whole / size) > _GROWTH * allowed:
                self._most = max(_FIRST, int(size * allowed / taken))
                begin, each = 0.0, taken * self._most / size
                break
            size *= _GROWTH
        else:
            lenses, trial = self._checked(own, data)
            _, first = _passed(trial, 1)
            moment, three = _passed(trial, 3)
            each = max((three - first) / 2, 0.1 * three)
            begin = max(first - each, 0.0)
        begun = time.perf_counter()
        for lens, prepared in lenses:
            with suppress(Exception):  # of a few samples there may be no numbers
                lens.look(moment, prepared, [])
        begin += time.perf_counter() - begun
        self._begin, self._each = self._agreed(own, begin), self._agreed(own, each)
        for name in self._datasets:
            if any(name in entry.data for entry in self._gathering):
                self.batches[name] = readings.length(self._subject_of(name, most=self._most).loader)

    def _checked(self, subject: Subject, data: Data) -> tuple[list[tuple[Lens, Any]], Subject]:
        _ = subject.route
        trial = copy.copy(subject)
        trial._gatherings, trial.asked = {}, []
        lenses: list[tuple[Lens, Any]] = []
        for entry in self._gathering:
            if data in entry.data:
                with suppress(NotApplicable):  # its own section says why
                    lens = entry.plans(Setting(subject.network, None, "", 0.0))[0].make()
                    lenses.append((lens, lens.check(trial)))
        return lenses, trial

    @staticmethod
    def _agreed(subject: Subject, seconds: float) -> float:
        """The mean over the processes, which must decide alike."""
        return float(subject.processes.sum(torch.tensor(seconds, dtype=torch.float64)) / subject.processes.size)

    def seconds_of_levels(self, data: Data) -> list[float]:
        """Of a pass over all batches, and over fewer and fewer."""
        size = self._subject_of(data).processes.size
        return [self._begin + self._each * -(-count // size) for count in self._levels(data)]

    def limit(self, data: Data, level: int) -> int | None:
        """Batches that are read at a level; None for all."""
        return None if level == 0 and self.batches[data] is not None else self._levels(data)[level]

    def said(self, data: Data, limit: int) -> str:
        """What a limited pass reads, for people."""
        loader = self._subject_of(data).loader
        if self.batches[data] is None:
            return f"at most {limit} batches of the {data} data, a stream"
        if not readings.is_indexed(loader):
            return f"the first {limit} of {self.batches[data]} batches of the {data} data"
        size = self._most or getattr(loader, "batch_size", None)
        what = f"{limit} batches" if size is None else f"{limit * size} samples"
        return f"{what} of the {data} data, drawn at random"

    def _levels(self, data: Data) -> list[int]:
        whole = self.batches[data]
        if whole is None:
            return list(_UNKNOWN)
        fewest = _FEWEST if self._most is None else max(_FEWEST, -(-_FEWEST_SAMPLES // self._most))
        return list(dict.fromkeys(max(whole // part, min(fewest, whole)) for part in _PARTS))

    def setting(self, network: nn.Module, seed: int) -> Setting:
        """What the lenses' plans go by."""
        sample, reason, graphs, seconds = None, _NO_DATA, False, 0.0
        for data in self._datasets:
            subject = self._subject_of(data)
            try:
                with subject.quiet():
                    graphs = graphs or _is_of_graphs(readings.first_batch(self._subject_of(data, most=_FIRST).loader))
                sample, _ = self._subject_of(data, most=_FIRST).rows(1)
                break
            except Exception as error:  # a stranger's loader
                reason = str(error) if isinstance(error, (NotApplicable, TypeError)) else said_of(error)
        if sample is not None:
            try:
                seconds = self._agreed(self._subject_of(self._datasets[0]), self._forward_seconds(sample))
            except Exception as error:  # a stranger's forward
                sample, reason = None, f"`forward` does not answer a single input ({said_of(error)}): pass `unpack`"
        slowness = self._slowness if not self._datasets else self._agreed(
            self._subject_of(self._datasets[0]), self._slowness
        )  # fmt: skip
        return Setting(network, sample, reason, seconds, slowness, graphs, seed=seed)

    def _forward_seconds(self, sample: Tensor) -> float:
        """Seconds of a sample, in ever larger batches until they take long enough to be told."""
        most = max(1, _ROWS_BYTES // max(1, sample.numel() * sample.element_size()))
        with self._subject_of(self._datasets[0]).moment().network() as network:
            rows, taken = 1, _took(network, sample, 1)
            taken = min(taken, _took(network, sample, 1)) if taken < 1 else taken  # the first sets things up
            while taken < 0.05 and 2 * rows <= min(most, 1024):
                rows *= 2
                taken = _took(network, sample, rows)
            return taken / rows


def said_of(error: Exception) -> str:
    """An error in a line, with its kind."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _passed(subject: Subject, batches: int) -> tuple[Moment, float]:
    subject.max_batches = batches * subject.processes.size
    begun = time.perf_counter()
    moment = subject.moment(None, list(dict.fromkeys(subject.asked)))
    moment.head()
    return moment, time.perf_counter() - begun


def _is_of_graphs(batch: object) -> bool:
    listed = batch if isinstance(batch, (list, tuple)) else [batch]
    return any(getattr(each, "edge_index", None) is not None for each in listed)


def _took(network: nn.Module, sample: Tensor, rows: int) -> float:
    begun = time.perf_counter()
    returned = network(sample.expand(rows, *sample.shape[1:]).clone())
    if isinstance(returned, Tensor):
        returned.sum().item()  # waits for a GPU
    return time.perf_counter() - begun

"""Who is gone: what a rank can say of the others when they do not answer at the end of a round."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed import Work
from torch.distributed.distributed_c10d import PrefixStore

_Answer = TypeVar("_Answer")
_BEAT = 1.0  # seconds between two signs of life
_PATIENCE = 8  # looks, a beat apart, at which a silent rank counts as gone
_SLACK = 3.0  # seconds that a rank may be late without anybody asking
_FAREWELL = 6.0  # seconds that the host of the store waits for the others to hear who is gone, before it leaves too
_GONE, _HEARD = "gone", "heard"  # keys of the store


class Peers:
    """Every rank leaves a sign of life in the store each second; a rank that waits in vain looks who has stopped.

    Only a rank that waits for others looks. A rank that is slow, or whose interpreter is busy elsewhere for a while,
    is left alone as long as nobody needs it, and is not given up before it was silent at eight looks of the waiting
    rank; on the same machine not at all while its process runs. Looks are counted instead of seconds: after a
    laptop's sleep nobody is found missing. Who finds somebody missing leaves word in the store, so that all others say
    the same, and nobody takes the next who leaves for the cause.

    Args:
        node: number of this rank's node.
        advice: what the user may do, asked for when somebody is gone.
    """

    def __init__(self, node: int, advice: Callable[[], str]) -> None:
        self._advice = advice
        self._rank, self._size = dist.get_rank(), dist.get_world_size()
        self._store: Any = PrefixStore("local_sgd_peers", dist.distributed_c10d._get_default_store())
        self._store_is_gone = False
        self._stop = threading.Event()
        gathered: list[Any] = [None] * self._size
        dist.all_gather_object(gathered, (socket.gethostname(), node, os.getpid()))
        self._places: list[tuple[str, int, int]] = gathered
        self._beating = threading.Thread(target=self._beat, name="local-sgd-beat", daemon=True)
        self._beating.start()

    def close(self) -> None:
        """Stop giving signs of life."""
        self._stop.set()
        self._beating.join(2 * _BEAT)

    def wait(self, work: Work) -> None:
        """Wait for a collective; the others may be a round's length late.

        Raises:
            RuntimeError: a rank is gone; the message names it, its machine, and what to do.
        """
        begin = time.monotonic()
        looks: list[int] | None = None
        silent = [0] * self._size
        pause = 1e-5
        next_look = begin + _SLACK
        while not work.is_completed():
            time.sleep(pause)
            pause = min(2 * pause, 0.02)
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + _BEAT
                now = self._signs()
                if now is None:
                    raise RuntimeError(self.explain([0]))
                if looks is not None:
                    silent = [
                        0 if before != after or self._runs_here(rank) else count + 1
                        for rank, (count, before, after) in enumerate(zip(silent, looks, now, strict=True))
                    ]
                looks = now
                gone = self._word() or [rank for rank, count in enumerate(silent) if count >= _PATIENCE]
                if gone:
                    raise RuntimeError(self.explain(gone))
        work.wait()

    def lost(self) -> list[int]:
        """Who gives no sign during three beats; the rank that hosts the store where nobody can be asked."""
        before = self._signs()
        end = time.monotonic() + 3 * _BEAT
        while before is not None and time.monotonic() < end:
            word = self._word()
            if word:
                return word
            time.sleep(_BEAT / 4)
        after = self._signs()
        if before is None or after is None:
            return [0]
        return [rank for rank in range(self._size) if after[rank] == before[rank]]

    def explain(self, gone: list[int]) -> str:
        """For people: who is gone, and what to do. A stopped process of this machine is ended."""
        gone = [rank for rank in gone if rank != self._rank]
        if not gone:
            return f"the ranks lost each other in local SGD. {self._advice()}"
        self._pass_on(gone)
        self._end_of_this_machine(gone)
        lost = [self._places[rank] for rank in gone]
        names = (
            f"rank {rank} (process {process} on {host}, node {node})"
            for rank, (host, node, process) in zip(gone, lost, strict=True)
        )
        left = {node for rank, (_, node, _) in enumerate(self._places) if rank not in gone}
        whole = sorted({node for _, node, _ in lost} - left)
        nodes = f": nothing is left of node {', '.join(map(str, whole))}" if whole else ""
        are = "is" if len(gone) == 1 else "are"
        return f"{', '.join(names)} {are} gone, without an answer in local SGD{nodes}. {self._advice()}"

    def _beat(self) -> None:
        count = 0
        while not self._stop.wait(_BEAT):
            count += 1
            try:
                self._store.set(str(self._rank), str(count))
            except Exception:  # the store's host is gone: who waits will find out
                return

    def _signs(self) -> list[int] | None:
        """The last sign of each rank; None where the store does not answer."""
        keys = [str(rank) for rank in range(self._size)]
        return self._ask(lambda: [int(self._store.get(key)) if self._store.check([key]) else 0 for key in keys])

    def _word(self) -> list[int] | None:
        """Who is gone by the word of a rank that knows; None where there is no such word."""

        def read() -> list[int]:
            there = self._store.check([_GONE])
            return [int(rank) for rank in self._store.get(_GONE).decode().split(",")] if there else []

        return self._ask(read) or None

    def _pass_on(self, gone: list[int]) -> None:
        """Leave word of who is gone; the host of the store stays until the others have heard it."""

        def write() -> bool:
            if not self._store.check([_GONE]):
                self._store.set(_GONE, ",".join(map(str, gone)))
            self._store.set(f"{_HEARD} {self._rank}", "")
            return True

        self._ask(write)
        if self._rank == 0:
            keys = [f"{_HEARD} {rank}" for rank in range(self._size) if rank not in gone]
            end = time.monotonic() + _FAREWELL
            while time.monotonic() < end and not self._ask(lambda: self._store.check(keys)):
                time.sleep(_BEAT / 10)

    def _ask(self, question: Callable[[], _Answer]) -> _Answer | None:
        """Ask the store; None where it does not answer, as its host is gone or stopped."""
        found: list[_Answer] = []
        if self._store_is_gone:
            return None

        def ask() -> None:
            with contextlib.suppress(Exception):  # the store's host is gone
                found.append(question())

        asking = threading.Thread(target=ask, daemon=True)  # a stopped host would not even refuse
        asking.start()
        asking.join(_PATIENCE * _BEAT)
        self._store_is_gone = not found
        return found[0] if found else None

    def _runs_here(self, rank: int) -> bool:
        """Whether a silent rank of this machine is only busy: its process is neither stopped nor gone."""
        host, _, process = self._places[rank]
        if host != socket.gethostname():
            return False
        with contextlib.suppress(OSError, IndexError):
            return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "RSD"
        return False

    def _end_of_this_machine(self, gone: list[int]) -> None:
        """A stopped process of this job would outlive it: end it, so that it holds no device."""
        for rank in gone:
            host, _, process = self._places[rank]
            if host == socket.gethostname() and process != os.getpid():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process, signal.SIGKILL)

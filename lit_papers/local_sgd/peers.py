"""Who is gone: what a rank can say of the others when they do not answer at the end of a round."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import Work

_BEAT = 1.0  # seconds between two signs of life
_PATIENCE = 8  # looks, a beat apart, at which a silent rank counts as gone
_SLACK = 3.0  # seconds that a rank may be late without anybody asking


class Peers:
    """Every rank leaves a sign of life in the store each second; a rank that waits in vain looks who has stopped.

    Only a rank that waits for others looks. A rank that is slow, or whose interpreter is busy elsewhere for a while,
    is left alone as long as nobody needs it, and is not given up before it was silent at eight looks of the waiting
    rank; on the same machine not at all while its process runs. Looks are counted instead of seconds: after a
    laptop's sleep nobody is found missing.

    Args:
        node: number of this rank's node.
        advice: what the user may do, asked for when somebody is gone.
    """

    def __init__(self, node: int, advice: Callable[[], str]) -> None:
        self._advice = advice
        self._rank, self._size = dist.get_rank(), dist.get_world_size()
        self._store: Any = dist.PrefixStore("local_sgd_peers", dist.distributed_c10d._get_default_store())  # type: ignore[attr-defined]
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
                gone = [rank for rank, count in enumerate(silent) if count >= _PATIENCE]
                if gone:
                    raise RuntimeError(self.explain(gone))
        work.wait()

    def lost(self) -> list[int]:
        """Who gives no sign during three beats; the rank that hosts the store where nobody can be asked."""
        before = self._signs()
        time.sleep(3 * _BEAT)
        after = self._signs()
        if before is None or after is None:
            return [0]
        return [rank for rank in range(self._size) if after[rank] == before[rank]]

    def explain(self, gone: list[int]) -> str:
        """For people: who is gone, and what to do. A stopped process of this machine is ended."""
        gone = [rank for rank in gone if rank != self._rank]
        if not gone:
            return f"the ranks lost each other in local SGD. {self._advice()}"
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
        found: list[int] = []

        def ask() -> None:
            keys = [str(rank) for rank in range(self._size)]
            with contextlib.suppress(Exception):  # the store's host is gone
                found.extend(int(self._store.get(key)) if self._store.check([key]) else 0 for key in keys)

        asking = threading.Thread(target=ask, daemon=True)  # a stopped host would not even refuse
        asking.start()
        asking.join(_PATIENCE * _BEAT)
        return found if len(found) == self._size else None

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

"""What every test gets: one thread, a seed, and no run folder, environment variable or process group left behind."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch  # noqa: F401  # its log handler keeps the stderr of its import, which must not be a test's
import pytest
import torch

from tests.measuring import keep  # noqa: F401  # a fixture


@pytest.fixture(autouse=True)
def _clean_slate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIT_PAPERS_DATA", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two gloo processes share two cores; forking after threads have started can hang
    torch.manual_seed(0)
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)
    if torch.distributed.is_initialized():  # of a fit in this very process; forked ones would take it for theirs
        torch.distributed.destroy_process_group()


_TRAINS_IN_PROCESSES = re.compile(r"devices\W{1,3}[2-9]|\bmp\.|multiprocessing|local_sgd\.small")
_SHARES = re.compile(r"scope=\"module\"")


def _group(path: Path) -> str | None:
    """Which tests share a worker of pytest-xdist.

    Those that train in several processes, each of which takes a core, run one after the other: some of them measure
    how soon all ranks end. A file that makes something once for all its tests does so in one worker.
    """
    text = path.read_text(encoding="utf-8")
    if _TRAINS_IN_PROCESSES.search(text):
        return "processes"
    return str(path) if _SHARES.search(text) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say to pytest-xdist which tests belong together; the others go to whichever worker is free."""
    groups = {path: _group(path) for path in {item.path for item in items}}
    for item in items:
        group = groups[item.path]
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(group))

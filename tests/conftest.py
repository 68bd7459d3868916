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


_STARTS_PROCESSES = re.compile(
    r"devices\W{1,3}[2-9]|\bsubprocess\b|\bmp\.|multiprocessing|tests\.processes|local_sgd\.small"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under pytest-xdist, tests that start processes of their own run one after the other: each takes the cores."""
    starts: dict[Path, bool] = {}
    for item in items:
        if item.path not in starts:
            starts[item.path] = bool(_STARTS_PROCESSES.search(item.path.read_text(encoding="utf-8")))
        if starts[item.path]:
            item.add_marker(pytest.mark.xdist_group("processes"))

"""What every test gets: one thread, a seed, and no run folder, environment variable or process group left behind."""

import os
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch  # noqa: F401  # its log handler keeps the stderr of its import, which must not be a test's
import pytest
import torch


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

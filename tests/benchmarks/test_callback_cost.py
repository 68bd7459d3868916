"""What the guests cost: an epoch of the digits run with both callbacks on every epoch, beside the bare epoch.

Run with ``OMP_NUM_THREADS=1 pytest tests/benchmarks -m benchmark -s``.
"""

import statistics
import time
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from lit_papers.callbacks import CentralPath, NeuralCollapse
from lit_papers.datamodules import Digits
from lit_papers.neural_collapse import ImageClassifier

pytestmark = pytest.mark.benchmark
EPOCHS, REPETITIONS = 10, 5


class _EpochTimes(Callback):
    """CPU time from the end of one epoch to the end of the next, so that what others do in between counts."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self.ends.append(time.process_time())

    def on_train_end(self, *_: Any) -> None:
        self.ends.append(time.process_time())

    def epochs(self) -> list[float]:
        return [end - start for start, end in zip(self.ends, self.ends[1:], strict=False)]


def epoch_times(callbacks: list[Callback]) -> list[float]:
    clock = _EpochTimes()
    trainer = Trainer(
        accelerator="cpu", max_epochs=EPOCHS + 1, callbacks=[*callbacks, clock], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(ImageClassifier(lr=0.3), datamodule=Digits())
    return clock.epochs()[1:]  # the first warms up


def test_both_callbacks_on_every_epoch_cost_less_than_half_an_epoch() -> None:
    bare: list[float] = []
    measured: list[float] = []
    for _ in range(REPETITIONS):
        bare += epoch_times([])
        measured += epoch_times([NeuralCollapse(), CentralPath()])
    ratio = statistics.median(measured) / statistics.median(bare)
    print(
        f"\nepoch of digits: bare {1e3 * statistics.median(bare):.0f} ms, with both callbacks "
        f"{1e3 * statistics.median(measured):.0f} ms of CPU, ratio {ratio:.2f}"
    )
    assert ratio <= 1.5

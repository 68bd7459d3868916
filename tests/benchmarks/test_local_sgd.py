"""Samples a second and bytes of local SGD beside Lightning's ``ddp`` and PyTorch's own model averager.

Run with ``pytest tests/benchmarks/test_local_sgd.py -m benchmark -s``. All of them run in the same two gloo processes,
on the same network and the same batches in memory, one short stretch of each after the other, again and again, so that
whatever else the machine does hits all alike. What is compared is what users run: `Trainer.fit`.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lit_papers.callbacks.consensus_distance import ConsensusDistance
from lit_papers.local_sgd import LocalSGDStrategy
from lit_papers.reproduce.measured import Cell
from tests.local_sgd.test_strategy_failures import end_group, environment
from tests.measuring import Keep

pytestmark = pytest.mark.benchmark

STEPS, BATCH, WIDTH, REPETITIONS = 32, 16, 1792, 4
INTERVALS = (1, 8, 32)
WATCHED = "with ConsensusDistance"


class Wide(LightningModule):
    """More than ten million parameters, of which every sample uses each once: communication weighs much."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            *[layer for _ in range(3) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())], nn.Linear(WIDTH, 512)
        )

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        return self.network(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)

    def train_dataloader(self) -> Any:
        data = TensorDataset(torch.randn(2 * STEPS * BATCH, WIDTH))
        return DataLoader(data, BATCH, sampler=DistributedSampler(data, 2, self.trainer.global_rank, shuffle=False))


class PyTorchAveraging(LocalSGDStrategy):
    """PyTorch's `PeriodicModelAverager`, called after each step as its documentation says, with local gradients."""

    def __init__(self, period: int, **options: Any) -> None:
        super().__init__(sync_every=10**9, sync_on_epoch_end=False, **options)
        self.period = period

    def start_training(self, trainer: Trainer) -> None:
        self.averager = PeriodicModelAverager(period=self.period)

    def optimizer_step(self, *arguments: Any, **options: Any) -> Any:
        output = super().optimizer_step(*arguments, **options)
        self.averager.average_parameters(iter(self.lightning_module.parameters()))
        return output


class Clock(Callback):
    """Seconds from the first batch to the last, the last averaging included: on the wall, and of this processor.

    Others load the machine too: the processor's seconds are what a ratio is judged by.
    """

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.distributed.barrier()
        self.begin = time.perf_counter(), time.process_time()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.distributed.barrier()
        self.wall = time.perf_counter() - self.begin[0]
        self.processor = time.process_time() - self.begin[1]


def strategies() -> dict[str, Strategy]:
    options: dict[str, Any] = {"process_group_backend": "gloo"}
    found: dict[str, Strategy] = {"ddp": DDPStrategy(**options)}
    for interval in INTERVALS:
        found[f"local_sgd B={interval}"] = LocalSGDStrategy(sync_every=interval, **options)
        if interval > 1:
            found[f"local_sgd B={interval} {WATCHED}"] = LocalSGDStrategy(sync_every=interval, **options)
            found[f"PeriodicModelAverager B={interval}"] = PyTorchAveraging(interval, **options)
    found["local_sgd B=32 bf16"] = LocalSGDStrategy(sync_every=32, compress="bf16", **options)
    found["local_sgd B=32 4 fragments"] = LocalSGDStrategy(
        sync_every=32, fragments=4, sync_on_epoch_end=False, **options
    )
    return found


def measure() -> None:
    """What each of the two processes runs; the first prints one line a measurement."""
    torch.set_num_threads(1)
    for repetition in range(REPETITIONS + 1):
        for name, strategy in strategies().items():
            clock = Clock()
            guests = [ConsensusDistance()] if WATCHED in name else []
            trainer = Trainer(
                accelerator="cpu", devices=2, strategy=strategy, max_epochs=1, logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False, callbacks=[clock, *guests],
            )  # fmt: skip
            module = Wide()
            trainer.fit(module)
            if trainer.global_rank == 0 and repetition > 0:  # the first round warms up
                parameters = sum(parameter.numel() for parameter in module.parameters())
                sent = getattr(strategy, "bytes_communicated", None)
                print(f"MEASURED;{name};{clock.wall};{clock.processor};{parameters};{sent}", flush=True)


@pytest.mark.timeout(1800)
def test_throughput_and_bytes_beside_ddp(tmp_path: Path, keep: Keep) -> None:
    agent = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__],
        env=environment(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, errors = agent.communicate(timeout=1700)
    finally:
        end_group(agent.pid)
    assert agent.returncode == 0, errors[-3000:]
    walls: dict[str, list[float]] = {}
    processors: dict[str, list[float]] = {}
    sent: dict[str, int] = {}
    parameters = 0
    for line in output.splitlines():
        if line.startswith("MEASURED"):
            _, name, wall, processor, count, sent_bytes = line.split(";")
            walls.setdefault(name, []).append(float(wall))
            processors.setdefault(name, []).append(float(processor))
            parameters = int(count)
            if sent_bytes != "None":
                sent[name] = int(sent_bytes)

    def faster(seconds: dict[str, list[float]], name: str, peer: str) -> float:
        """Each repetition is a ratio of neighbours in time."""
        return statistics.median(b / a for a, b in zip(seconds[name], seconds[peer], strict=True))

    print(f"\n{parameters / 1e6:.1f} M parameters, {BATCH} samples a rank and step; speed beside ddp")
    for name in walls:
        ours = faster(walls, name, "ddp"), faster(processors, name, "ddp")
        print(f"{name:<44} {ours[0]:5.2f} x on the wall {ours[1]:5.2f} x of the processor")
        cells: dict[str, Cell] = {"steps a second [ddp]": ours[0], "steps a CPU second [ddp]": ours[1]}
        if name.startswith("local_sgd"):  # PyTorch's averager is not counted by the strategy that it stands in for
            cells["bytes sent [ddp]"] = sent[name] / (4 * parameters * STEPS)
        keep("local_sgd/speed", name, cells)
    for interval in INTERVALS[1:]:
        name, peer = f"local_sgd B={interval}", f"PeriodicModelAverager B={interval}"
        against, watched = faster(processors, name, peer), faster(processors, f"{name} {WATCHED}", name)
        print(f"B={interval}: {against:.3f} of PyTorch's averager, {watched:.3f} with ConsensusDistance of without")
        assert against >= 0.98
        assert watched >= 0.95
    assert parameters >= 10_000_000
    # ddp all-reduces every gradient in every step
    for interval in INTERVALS:
        assert sent[f"local_sgd B={interval}"] * interval == 4 * parameters * STEPS
    assert sent["local_sgd B=32 bf16"] * 64 == 4 * parameters * STEPS
    assert faster(walls, "local_sgd B=32", "ddp") >= 1.2
    assert faster(walls, "local_sgd B=1", "ddp") >= 0.85


if __name__ == "__main__":
    measure()

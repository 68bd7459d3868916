"""Two real processes under the real strategies take the steps of the simulator, number for number."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

import lit_papers
from lit_papers import local_sgd
from lit_papers.datamodules import Components
from lit_papers.local_sgd import LocalSGDStrategy
from lit_papers.local_sgd.module import ShufflingQuadratic
from lit_papers.local_sgd.theory import (
    HeterogeneousQuadratic,
    LowerBoundFunction,
    SkewedQuadratic,
    exact_suboptimality,
    run_epoch,
)
from tests.warm import run_warm

ROOT = Path(lit_papers.__file__).parent.parent
MACHINES, COMPONENTS, EPOCHS, INTERVAL, STEP, START = 2, 16, 4, 4, 0.02, 0.4
SAMPLERS = {
    "reshuffle": local_sgd.RandomReshufflingSampler,
    "synchronized": local_sgd.SynchronizedShufflingSampler,
    "with_replacement": local_sgd.WithReplacementSampler,
}


class WritesItsParameter(ShufflingQuadratic):
    """Leaves the last iterate of every process in a file."""

    def on_train_end(self) -> None:
        Path(f"x{self.global_rank}.json").write_text(json.dumps(self.x.item()))


def trained(function: LowerBoundFunction, algorithm: str, sampling: Any) -> list[float]:
    """The last iterate of both processes."""
    batch_size = INTERVAL if algorithm == "minibatch" else 1
    strategy: Any = (
        "ddp_fork" if algorithm == "minibatch" else LocalSGDStrategy(sync_every=INTERVAL, start_method="fork")
    )
    trainer = Trainer(
        accelerator="cpu", devices=MACHINES, strategy=strategy, max_epochs=EPOCHS, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = WritesItsParameter(function, lr=STEP * batch_size, start=START)
    trainer.fit(module, datamodule=Components(COMPONENTS, batch_size, sampling, seed=7))
    return [json.loads(Path(f"x{rank}.json").read_text()) for rank in range(MACHINES)]


def simulated(function: LowerBoundFunction, algorithm: Any, sampling: str) -> float:
    """The last iterate of the simulator, fed with the samplers' own orders."""
    samplers = [
        SAMPLERS[sampling](range(COMPONENTS), MACHINES, rank, seed=7, partition=False) for rank in range(MACHINES)
    ]
    x = torch.tensor([START], dtype=torch.float64)
    for epoch in range(EPOCHS):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        order = torch.tensor([list(sampler) for sampler in samplers])  # (M, N)
        z = function.components(COMPONENTS, MACHINES).gather(1, order)
        x = run_epoch(function, algorithm, x, z[None], sync_every=INTERVAL, step_size=STEP)
    return x.item()


@pytest.mark.parametrize("sampling", SAMPLERS)
@pytest.mark.parametrize("algorithm", ["local", "minibatch"])
def test_training_is_the_simulated_recursion(algorithm: str, sampling: str) -> None:
    expected = simulated(SkewedQuadratic(), algorithm, sampling)
    for x in trained(SkewedQuadratic(), algorithm, sampling):
        assert abs(x - expected) <= 1e-12


def test_machines_that_differ_reach_the_exact_value() -> None:
    function = HeterogeneousQuadratic()
    exact = exact_suboptimality(
        function, "local", "reshuffle", machines=MACHINES, components=COMPONENTS, epochs=EPOCHS, sync_every=INTERVAL,
        step_size=STEP, start=START,
    )  # fmt: skip
    first, second = trained(function, "local", "reshuffle")
    assert first == second
    assert abs(function.suboptimality(torch.tensor(first, dtype=torch.float64)).item() - exact) <= 1e-12


@pytest.mark.parametrize("strategy", [None, pytest.param("ddp", marks=pytest.mark.slow)])
@pytest.mark.parametrize("config", ["skewed_quadratic", "digits"])
def test_the_configurations_run_for_an_epoch(config: str, strategy: str | None, tmp_path: Path) -> None:
    """As users start them: the second process reads the same words. The models are as good under ``ddp``."""
    options = [f"--config=local_sgd/{config}", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    if strategy is not None:  # the callback measures drift, of which ddp has none
        options += [f"--trainer.strategy={strategy}", "--trainer.callbacks=null"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = run_warm(["-m", "lit_papers", "fit", *options], tmp_path, environment, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert ("local_sgd/suboptimality" if config == "skewed_quadratic" else "val/accuracy") in done.stdout

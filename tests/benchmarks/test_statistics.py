"""CPU time and memory of the measures and the decomposition, beside a plain two-pass implementation.

Run with ``pytest tests/benchmarks -m benchmark -s``. The peer does what a straightforward notebook does: one
pass over minibatches for the class means and the loss, one for the covariance by outer products, then dense
inverses. Both get the same float32 features in memory, so no network, loader or disk blurs the comparison.
"""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lit_papers.neural_collapse.functional import (
    class_statistics,
    mse_decomposition,
    neural_collapse_measures,
)

pytestmark = pytest.mark.benchmark

SAMPLES, DIM, BATCH, LAM = 20_000, 512, 128, 2.5e-3
REPETITIONS = 5


def problem(num_classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Balanced Gaussian classes and a classifier near their means; all float32."""
    source = torch.Generator().manual_seed(0)
    means = torch.randn(num_classes, DIM, generator=source) / DIM**0.5
    targets = torch.arange(num_classes).repeat(SAMPLES // num_classes)
    features = means[targets] + 0.02 * torch.randn(SAMPLES, DIM, generator=source) + 0.05
    weight = 0.8 * (means - means.mean(dim=0)) + 0.005 * torch.randn(num_classes, DIM, generator=source)
    return features, targets, weight, torch.full((num_classes,), 1 / num_classes)


def ours(features: Tensor, targets: Tensor, weight: Tensor, bias: Tensor) -> dict[str, float]:
    stats = class_statistics(features, targets, len(weight))
    measures = neural_collapse_measures(stats, weight)
    parts = mse_decomposition(stats, weight, bias, LAM)
    return {"nc1": measures["nc1"].item(), **{f"loss {name}": value.item() for name, value in parts.items()}}


def peer(features: Tensor, targets: Tensor, weight: Tensor, bias: Tensor) -> dict[str, float]:
    """Two passes in float32; the small dense algebra in float64."""
    num_classes, dim = weight.shape
    batches = list(zip(features.split(BATCH), targets.split(BATCH), strict=True))
    means, counts, loss = torch.zeros(num_classes, dim), torch.zeros(num_classes), 0.0
    for rows, labels in batches:
        one_hot = torch.nn.functional.one_hot(labels, num_classes).float()
        loss += (rows @ weight.T + bias - one_hot).square().sum().item() / 2
        for c in range(num_classes):
            members = rows[labels == c]
            if len(members) > 0:
                means[c] += members.sum(dim=0)
                counts[c] += len(members)
    means /= counts[:, None]
    within = torch.zeros(dim, dim)
    for rows, labels in batches:
        for c in range(num_classes):
            members = rows[labels == c]
            if len(members) > 0:
                centred = members - means[c]
                within += torch.matmul(centred.unsqueeze(-1), centred.unsqueeze(1)).sum(dim=0)  # of (b, d, d)
    within /= len(features)

    means, within, weight, bias = means.double(), within.double(), weight.double(), bias.double()
    centred = means - means.mean(dim=0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / num_classes)
    values, vectors = values[1 - num_classes :], vectors[:, 1 - num_classes :]
    nc1 = torch.trace(within @ vectors @ torch.diag(1 / values) @ vectors.T)
    for vectors in (centred, weight):  # computed like everything else, but not compared
        norms = vectors.norm(dim=1)
        norms.std() / norms.mean()
        cosines = (vectors / norms[:, None]) @ (vectors / norms[:, None]).T + 1 / (num_classes - 1)
        cosines.fill_diagonal_(0).abs().sum() / (num_classes * (num_classes - 1))
    (weight / weight.norm() - centred / centred.norm()).square().sum()

    head = torch.cat([weight, bias[:, None]], dim=1)
    extended = torch.cat([means, torch.ones(num_classes, 1)], dim=1)
    noise = torch.zeros(dim + 1, dim + 1, dtype=torch.float64)
    noise[:dim, :dim] = within
    second = noise + extended.T @ extended / num_classes + LAM * torch.eye(dim + 1)
    least_squares = extended @ torch.linalg.inv(second) / num_classes
    penalty = LAM * least_squares.square().sum() / 2
    part1 = torch.trace(least_squares @ noise @ least_squares.T) / 2 + penalty
    errors = least_squares @ extended.T - torch.eye(num_classes)
    part23 = errors.square().sum() / (2 * num_classes)
    perp = torch.trace((head - least_squares) @ second @ (head - least_squares).T) / 2
    return {
        "nc1": nc1.item(),
        "loss loss": loss / len(features) + (LAM * head.square().sum() / 2).item(),
        "loss ls": (part1 + part23).item(),
        "loss nc1": part1.item(),
        "loss nc23": part23.item(),
        "loss perp": perp.item(),
    }


def cpu_seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


@pytest.fixture
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("num_classes", [10, 100])
def test_five_times_less_cpu_than_two_passes(num_classes: int) -> None:
    arguments = problem(num_classes)
    first, second = ours(*arguments), peer(*arguments)  # also the warm-up
    assert first == pytest.approx(second, rel=1e-3)
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(REPETITIONS):
        times["ours"].append(cpu_seconds(lambda: ours(*arguments)))
        times["peer"].append(cpu_seconds(lambda: peer(*arguments)))
    mine, theirs = statistics.median(times["ours"]), statistics.median(times["peer"])
    print(f"\nC={num_classes}: ours {mine:.2f} s, two passes {theirs:.2f} s of CPU, ratio {theirs / mine:.1f}")
    assert theirs / mine >= 5


def resident(field: str) -> int:
    """Bytes of this process in memory: now (VmRSS) or at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def extra_memory(call: Callable[[], object]) -> float:
    """Megabytes by which the peak of a call exceeds what is in memory before."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    call()
    return (resident("VmHWM") - before) / 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="reads Linux's /proc and sets an option of glibc")
@pytest.mark.parametrize("num_classes", [10, 100])
def test_extra_memory_does_not_grow_with_the_samples(num_classes: int) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        # Large blocks go back to the system when freed: what counts is memory in use, not the heap's history.
        "MALLOC_MMAP_THRESHOLD_": "131072",
    }
    printed = subprocess.run(
        [sys.executable, __file__, str(num_classes)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    extra, control = map(float, printed.split())
    print(f"\nC={num_classes}: {extra:.1f} MB more at the peak; float64 features take {control:.1f} MB")
    assert control == pytest.approx(SAMPLES * DIM * 8 / 2**20, rel=0.1)  # the meter works
    assert extra < 20


if __name__ == "__main__":
    arguments = problem(int(sys.argv[1]))
    ours(*arguments)  # loads kernels and LAPACK
    print(extra_memory(lambda: ours(*arguments)), extra_memory(lambda: arguments[0].double()))

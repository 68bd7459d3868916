"""CPU time and memory of all measures with NC4 and the decomposition, beside peers.

Run with ``OMP_NUM_THREADS=1 pytest tests/benchmarks/test_neural_collapse.py -m benchmark -s``. All get the same float32
features in memory, so no network, loader or disk blurs the comparison, and take turns in one process. The peers:

- *plain two passes*: what a straightforward notebook does, one pass over minibatches for the class means and the loss,
  one for the covariance by outer products, then dense inverses; no NC4.
- *accumulators*: the recipe of rhubarbwu/neural-collapse (MIT; on GitHub, not on the package index), written out from
  its formulas: passes in float32 for means, for covariance and variances, and for decisions; pseudo-inverse, ratio of
  traces, CDNV, structure errors; no decomposition. Its accumulators also hash means and weights in every call, which
  the row "with its hashes" includes.
"""

import hashlib
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
    nearest_class_mean,
    neural_collapse_measures,
)
from lit_papers.neural_collapse.metrics import ClassStatisticsMetric
from lit_papers.neural_collapse.reservoir import Reservoir
from tests.measuring import Keep

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


def ours(
    features: Tensor, targets: Tensor, weight: Tensor, bias: Tensor, residual_dtype: torch.dtype = torch.float64
) -> dict[str, float]:
    stats = class_statistics(features, targets, len(weight), residual_dtype=residual_dtype)
    measures = neural_collapse_measures(stats, weight)
    parts = mse_decomposition(stats, weight, bias, LAM)
    decisions = torch.cat([(rows @ weight.T + bias).argmax(dim=1) for rows in features.split(BATCH)])
    agreement = (nearest_class_mean(features, stats) == decisions).double().mean()
    return {
        "nc1": measures["nc1"].item(),
        "cdnv": measures["cdnv"].item(),
        "agreement": agreement.item(),
        **{f"loss {name}": value.item() for name, value in parts.items()},
    }


def accumulators(
    features: Tensor, targets: Tensor, weight: Tensor, bias: Tensor, *, hashes: bool = False
) -> dict[str, float]:
    """Three passes in float32, as the accumulators of the other package make them."""
    num_classes, dim = weight.shape
    batches = list(zip(features.split(BATCH), targets.split(BATCH), strict=True))
    classes = torch.arange(num_classes)

    def hashed(*tensors: Tensor) -> None:
        for tensor in tensors if hashes else ():
            hashlib.sha256(tensor.numpy().tobytes()).hexdigest()

    counts, totals = torch.zeros(num_classes, dtype=torch.int32), torch.zeros(num_classes, dim)
    for rows, labels in batches:
        members = labels[:, None] == classes  # (B, C)
        counts += members.sum(dim=0, dtype=torch.int32)
        totals += members.T.float() @ rows
    means = totals / counts[:, None]
    center = means.mean(dim=0)

    variances, covariance = torch.zeros(num_classes), torch.zeros(dim, dim)
    for rows, labels in batches:
        hashed(means, means)
        members = labels[:, None] == classes
        variances += (members.T.float() @ (rows - means[labels]) ** 2).sum(dim=-1)
        residuals = rows - means[labels]
        covariance += residuals.T @ residuals
    covariance, variances = covariance / len(features), variances / counts

    hits = torch.zeros(num_classes, dtype=torch.int32)
    for rows, labels in batches:
        hashed(means, weight)
        distances = (rows.norm(dim=1) ** 2)[:, None] + means.norm(dim=1) ** 2 - 2 * rows @ means.T
        agree = (rows @ weight.T + bias).argmax(dim=1) == distances.argmin(dim=1)
        hits.scatter_add_(0, labels, agree.int())

    centred = means - center
    between = centred.T @ centred / num_classes
    nc1 = torch.trace(torch.linalg.pinv(between) @ covariance)
    torch.trace(covariance) / torch.trace(between)
    gaps = (means[:, None] - means).square().sum(dim=-1)
    cdnv = ((variances[:, None] + variances) / 2 / gaps).fill_diagonal_(0).sum() / (num_classes * (num_classes - 1))
    for structure in (centred @ centred.T, weight @ centred.T):  # computed like everything else, but not compared
        structure /= structure.norm()
        structure += 1 / num_classes / (num_classes - 1) ** 0.5
        structure.diagonal().sub_(1 / (num_classes - 1) ** 0.5)
        structure.norm()
    return {"nc1": nc1.item(), "cdnv": cdnv.item(), "agreement": (hits.sum() / len(features)).item()}


def plain(features: Tensor, targets: Tensor, weight: Tensor, bias: Tensor) -> dict[str, float]:
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


WORDS = {
    "one float64 product": "one float64 product of the features, no more",
    "statistics": "the statistics alone",
    "statistics, float32 products": 'the statistics alone, `residual_dtype="float32"`',
    "ours": "**ours, everything**",
    "ours, float32 products": 'ours, everything, `residual_dtype="float32"`',
    "accumulators": "accumulators, three passes in float32, no decomposition",
    "accumulators with hashes": "accumulators with their hashes",
    "plain two passes": "a plain loop of two passes in float64",
}


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("num_classes", [10, 100])
def test_all_measures_beside_peers(num_classes: int, keep: Keep) -> None:
    arguments = problem(num_classes)
    features, targets = arguments[:2]
    wide = features.double()
    rows: dict[str, Callable[[], object]] = {
        "one float64 product": lambda: wide.T @ wide,
        "statistics": lambda: class_statistics(features, targets, num_classes),
        "statistics, float32 products": lambda: class_statistics(
            features, targets, num_classes, residual_dtype=torch.float32
        ),
        "ours": lambda: ours(*arguments),
        "ours, float32 products": lambda: ours(*arguments, torch.float32),
        "accumulators": lambda: accumulators(*arguments),
        "accumulators with hashes": lambda: accumulators(*arguments, hashes=True),
        "plain two passes": lambda: plain(*arguments),
    }
    mine = ours(*arguments)  # also the warm-up
    for peer in (ours(*arguments, torch.float32), plain(*arguments), accumulators(*arguments)):
        assert {key: mine[key] for key in peer} == pytest.approx(peer, rel=1e-3)
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(REPETITIONS):
        for name, call in rows.items():
            times[name].append(cpu_seconds(call))
    seconds = {name: statistics.median(taken) for name, taken in times.items()}
    print(f"\nC={num_classes}: CPU seconds, and how many times ours")
    for name, taken in seconds.items():
        print(f"  {name:30} {taken:6.3f} {taken / seconds['ours']:6.2f}")
        cells = {f"C={num_classes} [s]": taken, f"C={num_classes} [ours]": taken / seconds["ours"]}
        keep("neural_collapse/speed", WORDS[name], cells)
    assert seconds["plain two passes"] / seconds["ours"] >= 8
    assert seconds["statistics"] / seconds["one float64 product"] <= 1.6
    assert seconds["accumulators with hashes"] / seconds["ours, float32 products"] >= 1


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


def child_environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        # Large blocks go back to the system when freed: what counts is memory in use, not the heap's history.
        "MALLOC_MMAP_THRESHOLD_": "131072",
    }


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="reads Linux's /proc and sets an option of glibc")
@pytest.mark.parametrize("num_classes", [10, 100])
def test_extra_memory_does_not_grow_with_the_samples(num_classes: int) -> None:
    printed = subprocess.run(
        [sys.executable, __file__, str(num_classes)],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    extra, control = map(float, printed.split())
    print(f"\nC={num_classes}: {extra:.1f} MB more at the peak; float64 features take {control:.1f} MB")
    assert control == pytest.approx(SAMPLES * DIM * 8 / 2**20, rel=0.1)  # the meter works
    assert extra < 20


@pytest.mark.timeout(900)
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="reads Linux's /proc")
def test_a_pass_of_the_size_of_imagenet(keep: Keep) -> None:
    """C=1000, d=2048, batches of 256: seconds for 50 000 rows, and memory beyond the covariance."""
    command = [sys.executable, __file__, "imagenet"]
    printed = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=True).stdout
    rows, gather, rest, extra = map(float, printed.split())
    print(
        f"\nC=1000, d=2048: {rows:.0f} rows gathered in {gather:.1f} s of CPU, measures and NC4 in {rest:.1f} s; "
        f"{extra:.0f} MB beyond covariance; 1 281 167 rows: {(gather / rows * 1_281_167 + rest) / 60:.1f} min"
    )
    cells = {
        "gathering [s]": gather, "measures and NC4 [s]": rest, "memory beyond the covariance [MB]": extra,
        "1 281 167 rows [min]": (gather / rows * 1_281_167 + rest) / 60,
    }  # fmt: skip
    keep("neural_collapse/imagenet", f"{rows:.0f} rows", cells)
    assert extra < 300


def imagenet(number: int) -> tuple[int, float, float, float]:
    """Rows, CPU seconds of gathering, of what follows, and megabytes beyond the float64 covariance."""
    classes, dim = 1000, 2048
    source = torch.Generator().manual_seed(0)
    means, weight = torch.randn(classes, dim, generator=source), torch.randn(classes, dim, generator=source)
    ours(*problem(10))  # loads kernels and LAPACK
    Path("/proc/self/clear_refs").write_text("5")
    before, gather = resident("VmRSS"), 0.0
    metric, reservoir = ClassStatisticsMetric(classes, dim), Reservoir()
    for _ in range(0, number, 256):
        targets = torch.randint(classes, (256,), generator=source)
        features = means[targets] + torch.randn(256, dim, generator=source)
        decisions = (features @ weight.T).argmax(dim=1)
        start = time.process_time()
        metric.update(features, targets)
        reservoir.add(decisions, features)
        gather += time.process_time() - start
    start = time.process_time()
    stats = metric.compute()
    metric.moments = torch.empty(0)  # as a lens does it
    neural_collapse_measures(stats, weight)
    decisions, features = reservoir.columns()
    nearest_class_mean(features, stats)
    rest = time.process_time() - start
    extra = (resident("VmHWM") - before) / 2**20 - dim * dim * 8 / 2**20
    return number, gather, rest, extra


if __name__ == "__main__" and sys.argv[1] == "imagenet":
    torch.set_num_threads(1)
    print(*imagenet(50_000))
elif __name__ == "__main__":
    arguments = problem(int(sys.argv[1]))
    ours(*arguments)  # loads kernels and LAPACK
    print(extra_memory(lambda: ours(*arguments)), extra_memory(lambda: arguments[0].double()))

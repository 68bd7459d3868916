"""Time and memory of the solvers and the enumeration, beside conic solvers, scnn and linear programs.

Run with ``OMP_NUM_THREADS=1 pytest tests/benchmarks/test_convex_relu.py -m benchmark -s``: one thread, CPU seconds, all
ratios within one run. `pyscnn` is optional (``pip install --no-deps pyscnn linalg_backends opt_einsum``).
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import datasets
from sklearn.neural_network import MLPClassifier, MLPRegressor
from torch import Tensor

from lit_papers.convex_relu import programs
from lit_papers.convex_relu.arrangements import Arrangements, enumerate_arrangements, sample_arrangements
from lit_papers.convex_relu.certificates import gated_norms
from lit_papers.convex_relu.descent import descend
from lit_papers.convex_relu.networks import balance, objective
from lit_papers.convex_relu.problem import Problem
from lit_papers.convex_relu.programs import solve_gated_program, solve_relu_program
from lit_papers.convex_relu.solution import Blocks, certify
from lit_papers.convex_relu.solvers import solve_gated, solve_gated_fista, solve_relu
from lit_papers.reproduce.measured import Cell
from tests.convex_relu.small import load, normal, sampled
from tests.convex_relu.test_arrangements import by_linear_programs
from tests.measuring import Keep

pytestmark = pytest.mark.benchmark


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def by_scnn(x: Tensor, y: Tensor, beta: float, arrangements: Arrangements) -> tuple[float, Any]:
    """R-FISTA of scnn, at the loosest of its tolerances that reaches a relative 1e-6 of ours."""
    pytest.importorskip("scnn.optimize")
    from scnn.metrics import Metrics
    from scnn.models import ConvexGatedReLU
    from scnn.optimize import optimize_model
    from scnn.regularizers import NeuronGL1
    from scnn.solvers import RFISTA

    optimum = solve_gated(x, y, beta, arrangements, tol=1e-9).objective
    for tol in (1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-12):
        model = ConvexGatedReLU(arrangements.gates.numpy())
        solver, penalty = RFISTA(model, max_iters=20_000, tol=tol), NeuronGL1(beta / len(x))
        start = time.process_time()
        trained, _ = optimize_model(
            model, solver, Metrics(metric_freq=1000), x.numpy(), y.numpy()[:, None], regularizer=penalty,
            unitize_data=False, dtype="float64", return_convex=True,
        )  # fmt: skip
        seconds = time.process_time() - start
        vectors = torch.as_tensor(np.asarray(trained.parameters[0])).double().reshape(len(arrangements), -1)
        blocks = Blocks(torch.arange(len(vectors)), torch.ones(len(vectors)).double(), vectors)
        gates = torch.as_tensor(np.asarray(trained.G)).double()  # in an order of its own
        reordered = Arrangements(x @ gates > 0, gates, exact=False)
        problem = Problem.of(x, y, beta)
        blocks = blocks._replace(vectors=blocks.vectors * problem.x_unit / problem.y_unit)
        solution = certify(problem, reordered, blocks, status=f"tol {tol:.0e}", gated=True)
        if solution.objective <= optimum * (1 + 1e-6):
            return seconds, solution
    return seconds, solution


@pytest.mark.parametrize(("n", "d", "p"), [(200, 20, 100), (500, 50, 300)])
def test_gated(n: int, d: int, p: int, keep: Keep) -> None:
    """To a relative 1e-6: conic solver, scnn, FISTA and the second-order method."""
    torch.set_num_threads(1)
    if n == 200:
        problem = load("gated_n200_d20_p100")
        x, y, beta, patterns = problem["x"], problem["y"], problem["beta"], sampled(problem)
    else:
        x, y = normal(n, d), normal(n, seed=1)
        patterns = sample_arrangements(x, p, generator=torch.Generator().manual_seed(2))
        beta = 0.1 * float(gated_norms(x, y, patterns.patterns).max())
    solve_gated(x, y, beta, patterns)  # warm up
    ours, found = min((timed(lambda: solve_gated(x, y, beta, patterns)) for _ in range(5)), key=lambda pair: pair[0])
    fista, by_fista = timed(lambda: solve_gated_fista(x, y, beta, patterns))
    conic, by_conic = timed(lambda: solve_gated_program(x, y, beta, patterns))
    print(f"\ngated n={n} d={d} p={p}: ours {ours:.3f} s, gap {found.relative_gap:.1e}")
    rows = [("FISTA", fista, by_fista), ("CLARABEL", conic, by_conic)]
    try:
        rows.append(("scnn R-FISTA", *by_scnn(x, y, beta, patterns)))
    except pytest.skip.Exception:
        print("  scnn is not installed")
    size = f"n={n}, d={d}, p={p}"
    keep("convex_relu/gated", size, {"ours [s]": ours})
    for name, seconds, solution in rows:
        keep("convex_relu/gated", size, {f"{name} [s]": seconds, f"{name} [ours]": seconds / ours})
        above = solution.objective / found.lower_bound - 1
        print(f"  {name}: {seconds:.3f} s, {seconds / ours:.1f} times ours, at most {above:.1e} above the optimum")
    assert found.relative_gap <= 1e-6
    assert conic >= 5 * ours


_MEMORY = """
import torch
torch.set_num_threads(1)
from lit_papers.convex_relu.arrangements import sample_arrangements
from lit_papers.convex_relu.solvers import solve_gated

def problem(n, d, p):
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)
    x = draw(n, d)
    return x, draw(n), 2.0, sample_arrangements(x, p, generator=generator)

def resident(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) / 1024

generator = torch.Generator().manual_seed(0)
solve_gated(*problem(50, 5, 20))
arguments = problem(500, 50, 300)
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
before = resident("VmRSS")
solve_gated(*arguments)
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read as Linux counts it")
def test_memory() -> None:
    """The peak of a fresh process over what it had before; one (n, d, p) tensor would have 57 MiB."""
    answer = subprocess.run([sys.executable, "-c", _MEMORY], capture_output=True, text=True, check=True)
    extra = float(answer.stdout)
    print(f"\nsolve_gated n=500 d=50 p=300: {extra:.1f} MiB more")
    assert 0 < extra < 30


@pytest.mark.parametrize(("n", "d"), [(12, 3), (20, 3)])
def test_enumeration(n: int, d: int, keep: Keep) -> None:
    x = normal(n, d)
    enumerate_arrangements(x)
    ours, found = timed(lambda: enumerate_arrangements(x))
    tree, patterns = timed(lambda: by_linear_programs(x))
    assert len(found) == len(patterns)
    times = tree / ours
    print(f"\nenumeration n={n} d={d}: {len(found)} patterns, {ours * 1e3:.1f} ms; linear programs {times:.0f} times")
    cells: dict[str, Cell] = {"patterns": len(found), "seconds": ours, "a tree of linear programs [ours]": times}
    keep("convex_relu/patterns", f"{n} samples in {d} dimensions", cells)
    assert tree >= 5 * ours


def test_largest_enumeration(keep: Keep) -> None:
    seconds, found = timed(lambda: enumerate_arrangements(normal(30, 5), max_patterns=60_000))
    print(f"\nenumeration n=30 d=5: {len(found)} patterns, {seconds:.2f} s")
    keep("convex_relu/patterns", "30 samples in 5 dimensions", {"patterns": len(found), "seconds": seconds})
    assert seconds < 10


@pytest.mark.parametrize(("n", "d", "beta", "least"), [(14, 4, 0.3, 3), (20, 3, 0.05, 3), (30, 3, 0.05, 5)])
def test_relu(n: int, d: int, beta: float, least: float, monkeypatch: pytest.MonkeyPatch, keep: Keep) -> None:
    """The active set against the conic solver on all patterns at once, in cvxpy's matrix form and unpolished."""
    torch.set_num_threads(1)
    monkeypatch.setattr(programs, "_SOLVERS", {"CLARABEL": programs._SOLVERS["CLARABEL"]})  # alone, as a user has it
    monkeypatch.setattr(programs, "_ACCEPTED_GAP", 1e-4)
    x, y = normal(n, d), normal(n, seed=1)
    patterns = enumerate_arrangements(x)
    rounds = []
    for _ in range(3):
        active, found = timed(lambda: solve_relu(x, y, beta, patterns))
        whole, same = timed(lambda: solve_relu_program(x, y, beta, patterns, polish=False))
        rounds.append((active, whole))
    ours, theirs = (sorted(times)[1] for times in zip(*rounds, strict=True))
    print(
        f"\nReLU n={n} d={d} p={len(patterns)}: active set {ours:.3f} s, relative gap {found.relative_gap:.0e}; "
        f"CLARABEL {theirs:.3f} s, {theirs / ours:.1f} times, gap {same.relative_gap:.0e}"
    )
    cells: dict[str, Cell] = {
        "patterns": len(patterns), "ours [s]": ours, "proven to": f"{found.relative_gap:.0e}", "CLARABEL [s]": theirs,
        "it is proven to": f"{same.relative_gap:.0e}", "CLARABEL [ours]": theirs / ours,
    }  # fmt: skip
    keep("convex_relu/relu", f"n={n}, d={d}, beta {beta:g}", cells)
    assert found.relative_gap <= 1e-6
    assert found.objective <= same.objective * (1 + 1e-9)
    assert theirs >= least * ours


def standardised(values: Any) -> Tensor:
    x = torch.as_tensor(np.asarray(values, dtype=np.float64))
    spread = x.std(0)
    return (x - x.mean(0)) / torch.where(spread > 0, spread, 1.0)


def data_set(name: str) -> tuple[Tensor, Tensor, float, Any]:
    """Features, targets, beta and loss."""
    if name == "diabetes":
        found = datasets.load_diabetes()
        return standardised(found.data), standardised(found.target), 10.0, "squared"
    if name == "breast cancer":
        found = datasets.load_breast_cancer()
        return standardised(found.data), 2.0 * torch.from_numpy(found.target) - 1, 1.0, "logistic"
    if name == "digits 0/1":
        found = datasets.load_digits(n_class=2)
        return torch.from_numpy(found.data) / 16, 2.0 * torch.from_numpy(found.target) - 1, 1.0, "logistic"
    draw = np.random.default_rng(0)
    x = draw.standard_normal((20_000, 8))
    y = np.sin(x[:, 0]) + np.abs(x[:, 1]) * x[:, 2] + 0.3 * draw.standard_normal(len(x))
    return standardised(x), standardised(y), 10.0, "squared"


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["diabetes", "breast cancer", "digits 0/1", "20 000 x 8"])
def test_beyond_enumeration(name: str, keep: Keep) -> None:
    """[bound, value] beside scikit-learn's multi-layer perceptron with L-BFGS.

    The perceptron does not decay its hidden biases. Both networks are judged in our objective, the perceptron's neurons
    balanced first, which can only help it; and in the perceptron's own, for which only it was trained.
    """
    torch.set_num_threads(1)
    x, y, beta, loss = data_set(name)
    with_ones = torch.cat([x, x.new_ones(len(x), 1)], 1)
    seconds, found = timed(lambda: descend(with_ones, y, beta, loss=loss, output_bias=True, seconds=60))
    kind = MLPRegressor if loss == "squared" else MLPClassifier
    options = {"solver": "lbfgs", "alpha": beta, "max_iter": 1000, "max_fun": 4000, "tol": 1e-8, "random_state": 0}
    theirs, model = timed(lambda: kind(hidden_layer_sizes=(100,), **options).fit(x.numpy(), y.numpy()))
    weight = torch.from_numpy(np.vstack([model.coefs_[0], model.intercepts_[0]]).T)
    alpha, bias = torch.from_numpy(model.coefs_[1][:, 0]), torch.tensor(model.intercepts_[1][0])
    value = float(objective(with_ones, y, *balance(weight, alpha), beta, loss=loss, bias=bias))
    own = float(objective(with_ones, y, weight, alpha, beta, loss=loss, bias=bias))
    own, ours = (
        total - 0.5 * beta * float(layer[:, -1].square().sum())
        for total, layer in ((own, weight), (found.objective, found.weight))
    )
    print(
        f"\n{name}: [{found.lower_bound:.5g}, {found.objective:.5g}], {len(found.alpha)} neurons, {seconds:.2f} s; "
        f"perceptron {value:.5g}, {theirs:.2f} s; without the hidden biases' decay {ours:.5g} and {own:.5g}"
    )
    cells: dict[str, Cell] = {
        "n x d": f"{len(x)} x {x.shape[1]}", "loss, beta": f"{loss}, {beta:g}", "proven bound": found.lower_bound,
        "`descend`": found.objective, "neurons": len(found.alpha), "seconds": seconds, "perceptron": value,
        "its seconds": theirs, "hidden biases free: `descend`": ours, "perceptron, these free": own,
    }  # fmt: skip
    keep("convex_relu/beyond", name, cells)
    assert 0 < found.lower_bound < found.objective <= value

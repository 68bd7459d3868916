"""Error and CPU time of the sampler, beside independent contexts and a plain loop in the authors' style.

Run with ``OMP_NUM_THREADS=1 pytest tests/benchmarks/test_interactions.py -m benchmark -s``. Errors are measured against
exact interactions of a trained network, times against the loop in the same run.
"""

import random
import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lit_papers.interactions.estimator import MultiOrderInteraction
from lit_papers.interactions.functional import log_odds
from lit_papers.interactions.players import FeaturePlayers, PatchGrid
from lit_papers.reproduce.measured import Cell
from tests.measuring import Keep

pytestmark = pytest.mark.benchmark


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network on scikit-learn's digits, and samples of it."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    torch.manual_seed(0)
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(digits.target)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(300):
        chosen = torch.randint(1400, (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    return model, images[1400:], labels[1400:]


def test_error_at_equal_forwards(trained: tuple[nn.Module, Tensor, Tensor], keep: Keep) -> None:
    """16 players, all 120 pairs, 25 contexts: error times forwards for each order, and how often intervals hold."""
    model, images, labels = trained
    count, players = 24, PatchGrid(4)
    x, y = images[:count], labels[:count]
    exact = MultiOrderInteraction(model, players, pairs="all", method="exact")(x, y)
    inside: list[Tensor] = []
    print("\norder   forwards ours/independent   variance at equal forwards   95 % intervals")
    for order in (1, 2, 4, 6, 7, 8, 10, 12, 13):
        costs = {}
        for method in ("sampled", "paper"):
            found = MultiOrderInteraction(
                model, players, pairs=exact.pairs[0], n_contexts=25, method=method, orders=[order], seed=3
            )(x, y)
            error = (found.interactions[..., 0] - exact.interactions[..., order]).square().mean().item()
            costs[method] = (error, found.n_forwards / count)
            if method == "sampled" and (found.se > 0).any():
                holds = (found.interactions[..., 0] - exact.interactions[..., order]).abs() <= 1.96 * found.se[..., 0]
                inside.append(holds.double().mean())
        (ours, forwards), (theirs, more) = costs["sampled"], costs["paper"]
        gain = theirs * more / (ours * forwards) if ours > 1e-12 else float("inf")
        covered = f"{100 * inside[-1]:.1f} %" if ours > 1e-12 else "all contexts"
        print(f"{order:5}   {forwards:8.0f} / {more:.0f}   {gain:20.1f}x less   {covered:>20}")
        cells: dict[str, Cell] = {
            "passes": int(forwards),
            "independent contexts' passes": int(more),
            "variance at equal passes": f"{gain:.1f}x less" if ours > 1e-12 else "none: all contexts",
            "95 % intervals hold [%]": 100 * float(inside[-1]) if ours > 1e-12 else "",
        }
        keep("interactions/variance", f"order {order}", cells)
        assert gain >= 2.5
    assert all(0.92 <= share <= 0.98 for share in inside)


def authors_loop(
    model: nn.Module, image: Tensor, label: Tensor, pairs: Tensor, orders: list[int], contexts: int, grid: int
) -> Tensor:
    """Contexts by Python's sets, masks by interpolation, batches of 400, the value of all masks kept."""
    found = torch.zeros(len(pairs), len(orders), dtype=torch.float64)
    n, size = grid * grid, image.shape[-1]
    for column, order in enumerate(orders):
        masks = []
        for i, j in pairs.tolist():
            others = [k for k in range(n) if k not in (i, j)]
            for _ in range(contexts):
                context = random.sample(others, order)
                for added in ([], [i], [j], [i, j]):
                    mask = torch.zeros(n)
                    mask[context + added] = 1
                    masks.append(mask)
        values = []
        with torch.no_grad():
            for start in range(0, len(masks), 400):
                cells = torch.stack(masks[start : start + 400]).view(-1, 1, grid, grid)
                batch = image.expand(len(cells), -1, -1, -1).clone() * nn.functional.interpolate(cells, size)
                values.append(log_odds(model(batch).double(), label.expand(len(cells))))
        v = torch.cat(values).view(len(pairs), contexts, 4)
        found[:, column] = (v[..., 3] - v[..., 1] - v[..., 2] + v[..., 0]).mean(1)
    return found


def test_time_against_a_loop(keep: Keep) -> None:
    """196 players, 40 neighbouring pairs, 100 contexts, at the ends, near them and in the middle."""
    torch.manual_seed(0)
    random.seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    ).eval()  # fmt: skip
    image, label = torch.randn(1, 3, 28, 28), torch.tensor([3])
    players, all_orders = PatchGrid(14), [0, 9, 97, 184, 194]
    candidates = players.candidate_pairs()
    pairs = candidates[torch.randperm(len(candidates))[:40]]

    def ours(method: str, orders: list[int]) -> Callable[[], int]:
        def call() -> int:
            found = MultiOrderInteraction(model, players, pairs=pairs, n_contexts=100, orders=orders, method=method)
            return found(image, label).n_forwards

        return call

    def theirs(orders: list[int]) -> Callable[[], int]:
        def call() -> int:
            authors_loop(model, image, label, pairs, orders, 100, 14)
            return 4 * 40 * 100 * len(orders)

        return call

    for name, limit, mine, peer in (
        ("equal forwards", 1.2, ours("paper", [9, 97, 184]), theirs([9, 97, 184])),
        ("default, end orders included", 1.7, ours("sampled", all_orders), theirs(all_orders)),
    ):
        seconds: dict[str, list[float]] = {"ours": [], "loop": []}
        forwards = {}
        for _ in range(3):
            for which, call in (("ours", mine), ("loop", peer)):
                begin = time.process_time()
                forwards[which] = call()
                seconds[which].append(time.process_time() - begin)
        ratio = statistics.median(seconds["loop"]) / statistics.median(seconds["ours"])
        print(f"\n{name}: {ratio:.2f}x less CPU time, {forwards['ours']} forwards beside {forwards['loop']}")
        cells: dict[str, Cell] = {
            "less CPU time": f"{ratio:.2f}x", "passes": forwards["ours"], "the loop's passes": forwards["loop"],
        }  # fmt: skip
        keep("interactions/speed", name, cells)
        assert ratio >= limit


def test_exact_enumeration_of_fourteen_players() -> None:
    model = nn.Sequential(nn.Linear(14, 64), nn.ReLU(), nn.Linear(64, 2))
    exact = MultiOrderInteraction(model, FeaturePlayers(14), pairs="all")
    independent = MultiOrderInteraction(model, FeaturePlayers(14), pairs="all", method="paper", orders=list(range(13)))
    gain = independent.estimate_forwards() / exact.estimate_forwards()
    print(
        f"\n14 players: {exact.estimate_forwards()} forwards instead of {independent.estimate_forwards()}, {gain:.1f}x"
    )
    assert gain > 28


def cubic(masks: Tensor) -> Tensor:
    """All products of at most three players, float64 ``(N, 1 + n + n(n-1)/2 + n(n-1)(n-2)/6)``."""
    wide = masks.double()
    products = [wide[:, torch.combinations(torch.arange(wide.shape[1]), size)].prod(-1) for size in (2, 3)]
    return torch.cat([torch.ones(len(wide), 1, dtype=torch.float64), wide, *products], dim=1)


def test_a_cubic_surrogate_as_control_variate(trained: tuple[nn.Module, Tensor, Tensor], keep: Keep) -> None:
    """What a polynomial of third order, whose interactions are known, would take off the variance over contexts.

    It is fitted to 6000 masked images with a uniform number of patches. Below 2 at middle orders it is not worth its
    place in the estimator.
    """
    model, images, labels = trained
    n, source = 16, torch.Generator().manual_seed(1)
    gains: dict[int, list[float]] = {}
    for image, label in zip(images[:6], labels[:6], strict=True):

        def values(masks: Tensor, image: Tensor = image, label: Tensor = label) -> Tensor:
            shown = torch.where(masks.view(-1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3), image, 0.0)
            with torch.inference_mode():
                return log_odds(model(shown).double(), label.expand(len(masks)))

        places = torch.rand(6000, n, generator=source).argsort(1).argsort(1)
        masks = places < torch.randint(n + 1, (6000, 1), generator=source)
        fitted = torch.linalg.lstsq(cubic(masks), values(masks)[:, None], driver="gelsd").solution
        for order in (2, 4, 7, 10, 12):
            plain = rest = 0.0
            for _ in range(40):
                first, second = torch.randperm(n, generator=source)[:2].tolist()
                places = torch.rand(60, n, generator=source)
                places[:, [first, second]] = 2  # never in the context
                context = places.argsort(1).argsort(1) < order
                four = context.repeat(4, 1)
                four[:120, first], four[60:180, second] = True, True  # (i), (i, j), (j), ()
                real, guess = (v.view(4, 60) for v in (values(four), (cubic(four) @ fitted)[:, 0]))
                difference = [v[1] - v[0] - v[2] + v[3] for v in (real, guess)]
                plain += difference[0].var().item()
                rest += (difference[0] - difference[1]).var().item()
            gains.setdefault(order, []).append(plain / rest)
    print("\norder   variance of contexts beside what a cubic surrogate leaves, six images")
    for order, ratios in gains.items():
        print(f"{order:5}   {statistics.median(ratios):.2f}x, {min(ratios):.2f}x to {max(ratios):.2f}x")
        shown = {"variance less": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        cells: dict[str, Cell] = {name: f"{ratio:.2f}x" for name, ratio in shown.items()}
        keep("interactions/surrogate", f"order {order}", cells)


@pytest.mark.parametrize("n", [16, 64, 256, 1024])
def test_overhead_of_a_masked_row(n: int, keep: Keep) -> None:
    """Planning, masking and averaging, beside a network that does next to nothing: features as they are."""

    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :2] * self.scale

    x, y = torch.randn(4, n), torch.zeros(4, dtype=torch.int64)
    pairs = torch.combinations(torch.arange(n))[:: max(1, n * (n - 1) // 2 // 120)]
    estimate = MultiOrderInteraction(Nothing(), FeaturePlayers(n), pairs=pairs, n_contexts=25, method="sampled")
    estimate(x, y)
    begin = time.process_time()
    found = estimate(x, y)
    whole = time.process_time() - begin
    masked = torch.randn(1024, n)
    begin = time.process_time()
    for _ in range(max(1, found.n_forwards // 1024)):
        with torch.inference_mode():
            log_odds(estimate.model(masked).double(), torch.zeros(1024, dtype=torch.int64))
    model = time.process_time() - begin
    overhead = 1e6 * (whole - model) / found.n_forwards
    print(
        f"\n{n} players: {found.n_forwards / 4:.0f} masked rows a sample, "
        f"{overhead:.2f} microseconds each besides the model"
    )
    cells: dict[str, Cell] = {
        "masked rows a sample": round(found.n_forwards / 4),
        "each, besides the model [us]": overhead,
    }
    keep("interactions/overhead", f"{n} players", cells)
    if n == 16:
        assert overhead <= 3

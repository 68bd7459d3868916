"""The bracket of a mean magnitude: on games whose interactions are known, however their differences are distributed."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from lit_papers.interactions.estimator import MultiOrderInteraction
from lit_papers.interactions.outputs import prediction
from lit_papers.interactions.players import FeaturePlayers, Players
from lit_papers.interactions.result import InteractionResult
from lit_papers.interactions.strength import Magnitudes, strength_curve

N = 10
BITS = ((torch.arange(2**N)[:, None] >> torch.arange(N)) & 1).double()  # (2**N, N)


class Coalitions(Players):
    """Samples are games; an input is the number of a coalition of one."""

    def __init__(self) -> None:
        super().__init__(N)

    def __call__(self, x: Tensor, keep: Tensor, baseline: float | Tensor = 0.0) -> Tensor:
        return x * 2**N + (keep.long() * 2 ** torch.arange(N)).sum(1)


def smooth(g: torch.Generator) -> Tensor:
    weights = torch.randn(N, generator=g).double()
    return torch.sigmoid(3 * (BITS @ weights) - weights.sum())


def heavy_tailed(g: torch.Generator) -> Tensor:
    normal, squares = torch.randn(2**N, generator=g), torch.randn(2**N, 2, generator=g).square().mean(1)
    return (normal / squares.sqrt()).double()  # Student's t, two degrees of freedom


def spiky(g: torch.Generator) -> Tensor:
    """A few coalitions that are worth a lot, exactly they, beside a few unanimity games."""
    values = torch.zeros(2**N, dtype=torch.float64)
    for _ in range(6):
        values[torch.randint(2**N, (1,), generator=g)] += 5 * torch.randn(1, generator=g).item()
        members = torch.rand(N, generator=g) < 0.3
        values += torch.randn(1, generator=g).item() * (BITS[:, members] == 1).all(1)
    return values


def sign_cancelling(g: torch.Generator) -> Tensor:
    """A parity, whose differences are plus or minus four, and hardly anything besides."""
    members = torch.rand(N, generator=g) < 0.7
    return (-1.0) ** BITS[:, members].sum(1) + 0.05 * BITS[:, :3].prod(1)


def measure(games: Tensor, **options: object) -> InteractionResult:
    estimate = MultiOrderInteraction(
        lambda number: games.flatten()[number], Coalitions(), pairs="all", orders=[2, 3, 4, 5, 6],
        value_fn=prediction, **options,
    )  # fmt: skip
    return estimate(torch.arange(len(games)), torch.zeros(len(games)))


@pytest.mark.parametrize("contexts", [5, 25, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", [smooth, heavy_tailed, spiky, sign_cancelling])
def test_the_bands_hold_the_truth(family: object, contexts: int) -> None:
    """At 95 %, of four games together; C(8, 4) = 70 contexts at most."""
    generator = torch.Generator().manual_seed(3)
    games = torch.stack([family(generator) for _ in range(4)])
    exact = measure(games, method="exact").curve
    strength, relative, resolved = [], [], []
    for seed in range(8):
        found = measure(games, method="sampled", n_contexts=contexts, seed=seed).curve
        for held, band, truth in (
            (strength, found.strength_band, exact.strength),
            (relative, found.relative_band, exact.relative_strength),
        ):
            held.append((band[0] <= truth + 1e-9) & (truth <= band[1] + 1e-9))
        resolved.append(found.resolved)
        assert torch.equal(found.strength.isnan(), ~found.resolved)
    assert torch.stack(strength).double().mean() >= 0.92
    assert torch.stack(relative).double().mean() >= 0.95
    if contexts == 100:
        assert torch.stack(resolved).all()


def test_strength_is_corrected_for_noise() -> None:
    games = torch.stack([smooth(torch.Generator().manual_seed(seed)) for seed in range(16)])
    exact = measure(games, method="exact").curve.strength
    found = measure(games, method="sampled", n_contexts=6)
    plain = found.interactions.abs().mean((0, 1))
    assert plain[2] > 1.4 * exact[2], "what noise adds to a mean of magnitudes"
    assert abs(found.strength[2] / exact[2] - 1) < 0.25
    floor = found.noise_floor
    assert (floor > 0.3 * plain).all()


def test_the_two_ends_enclose_the_magnitude_on_average() -> None:
    """E L <= |I| <= E U for each pair, over many streams, with noise that is anything but normal."""
    game = sign_cancelling(torch.Generator().manual_seed(0)) + spiky(torch.Generator().manual_seed(1))
    pairs = torch.combinations(torch.arange(N))[::4]
    truth = measure(game[None], method="exact").interactions[0, ::4].abs()
    estimate = MultiOrderInteraction(
        lambda number: game[number], Coalitions(), pairs=pairs, orders=[3, 5], value_fn=prediction, method="sampled",
        n_contexts=7,
    )  # fmt: skip
    found = estimate(torch.zeros(150, dtype=torch.int64), torch.zeros(150))
    for values, sign in ((found.interactions.abs(), 1), (found.cross_fitted, -1)):
        error = values.std(0) / 150**0.5
        excess = sign * (values.mean(0) - truth[:, [1, 3]])
        assert (excess >= -4.5 * error - 1e-9).all()


def test_contexts_that_agree_are_not_all_contexts() -> None:
    """Unanimity of eight of ten: at order 3 every difference is 0, at order 6 one in twenty-eight is 1."""
    game = (BITS[:, :8] == 1).all(1).double()
    found = measure(game[None], method="sampled", n_contexts=5, seed=1)
    agreeing = (found.interactions == 0) & (found.n_contexts < math.comb(8, 3))
    assert agreeing.any()
    assert not (found.se[agreeing] == 0).any()
    assert found.strength[1].isnan(), "nothing was seen, which is not a strength of 0"
    exact = measure(game[None], method="exact")
    assert (exact.strength[:4] == 0).all()
    for seed in range(5):
        assert not (
            measure(game[None], method="sampled", n_contexts=5, seed=seed).curve.strength_band[1] < exact.strength
        ).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_linear_model_has_no_curve(dtype: torch.dtype) -> None:
    """What is left are rounding errors, with a U shape of their own; also deep inside, where the outputs hide them."""
    torch.manual_seed(0)
    x, y = torch.randn(6, 8).to(dtype), torch.arange(6) % 2
    plain = nn.Linear(8, 2)
    shifted = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    nn.init.constant_(shifted[0].bias, 300.0)  # large inside; the next layer takes it back
    with torch.no_grad():
        shifted[1].bias -= 300.0 * shifted[1].weight.sum(1)
    for model in (plain, shifted):
        for method in ("exact", "sampled"):
            found = MultiOrderInteraction(
                model.to(dtype), FeaturePlayers(8), pairs="all", method=method, n_contexts=5
            )(x, y)  # fmt: skip
            assert found.relative_strength.isnan().all(), (method, found.strength, found.rounding)
            assert (found.noise_floor > 0).all()


def test_small_interactions_stand_above_rounding() -> None:
    torch.manual_seed(0)
    line, rest = nn.Linear(8, 2), nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))

    class Nearly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line, self.rest = line, rest

        def forward(self, x: Tensor) -> Tensor:
            return self.line(x) + 1e-3 * self.rest(x)

    found = MultiOrderInteraction(Nearly(), FeaturePlayers(8), pairs="all")(torch.randn(6, 8), torch.arange(6) % 2)
    assert (found.strength > 10 * found.noise_floor).all()
    assert found.relative_strength.mean().item() == pytest.approx(1)


def rows(*strengths: list[float]) -> Magnitudes:
    upper = torch.tensor(strengths, dtype=torch.float64)
    zero = torch.zeros_like(upper)
    return Magnitudes(upper, upper, zero + 1, zero, zero, zero, zero)


def test_errors_over_samples_are_those_of_a_mean() -> None:
    values = [[1.0, 4.0], [2.0, 2.0], [3.0, 3.5], [7.0, 1.0]]
    curve = strength_curve(rows(*values))
    expected = torch.tensor(values, dtype=torch.float64).std(0) / 2
    torch.testing.assert_close(curve.strength_error, expected)
    assert torch.equal(curve.strength_band[0], curve.strength)
    assert strength_curve(rows([1.0, 2.0])).strength_error.isnan().all()


def test_the_band_of_j_is_what_the_bands_of_s_allow() -> None:
    """All corners of the box, by enumeration."""
    one = rows([2.0, 1.0, 3.0])
    curve = strength_curve(one._replace(error=torch.tensor([[0.1, 0.05, 0.2]], dtype=torch.float64)))
    low, high = curve.strength_band
    corners = torch.stack([torch.stack(corner) for corner in itertools.product(*zip(low, high, strict=True))])
    relative = corners / corners.mean(1, keepdim=True)
    torch.testing.assert_close(curve.relative_band, torch.stack([relative.amin(0), relative.amax(0)]))

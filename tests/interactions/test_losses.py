"""The losses against closed forms, enumeration and a plain implementation, and what they leave behind in a network."""

import itertools
import math
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from lit_papers.interactions import losses
from lit_papers.interactions.functional import delta_u_weights, exact_interactions, nested_masks
from lit_papers.interactions.losses import ORDER_BIAS, InteractionOrderLoss
from lit_papers.interactions.module import OrderBiasedClassifier
from lit_papers.interactions.players import FeaturePlayers, PatchGrid

N = 8


class Game(nn.Module):
    """Logits (v(S), 0) of the set of features that are 1."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, x: Tensor) -> Tensor:
        index = (x.long() * 2 ** torch.arange(x.shape[1])).sum(1)
        v = self.values[index]
        return torch.stack((v, torch.zeros_like(v)), dim=1)


def every_chain(s1: int, s2: int) -> tuple[Tensor, Tensor]:
    """All pairs of sets S1 within S2; each is as likely as any other."""
    smaller, larger = [], []
    for outer in itertools.combinations(range(N), s2):
        for inner in itertools.combinations(outer, s1):
            for chosen, masks in ((inner, smaller), (outer, larger)):
                masks.append([player in chosen for player in range(N)])
    return torch.tensor(smaller), torch.tensor(larger)


def mean_over_pairs(values: Tensor) -> Tensor:
    """The interactions of a game, averaged over pairs: (n - 1,)."""
    return exact_interactions(values).nanmean(dim=(0, 1))


@pytest.fixture
def values() -> Tensor:
    return torch.randn(2**N, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(("s1", "s2"), [(0, 1), (0, 5), (1, 2), (2, 6), (3, 4), (4, 8), (7, 8), (0, 8)])
def test_delta_u_is_in_the_mean_what_the_weights_say(
    s1: int, s2: int, values: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly, by enumeration of all nested pairs of sets."""
    chains = every_chain(s1, s2)
    monkeypatch.setattr(losses, "nested_masks", lambda *_: chains)
    loss = InteractionOrderLoss(FeaturePlayers(N), s1 / N, s2 / N, "encourage")
    assert (loss.s1, loss.s2) == (s1, s2)
    x = torch.ones(len(chains[0]), N, dtype=torch.float64)
    measured = loss.delta_u(Game(values), x).mean(dim=0)
    expected = (delta_u_weights(N, s1, s2) * mean_over_pairs(values)).sum()
    if s1 == 0:
        linear = values[2 ** torch.arange(N)] - values[0]
        expected = expected + s2 * linear.mean()
    else:
        expected = expected + (1 - s2 / s1) * values[0]
    torch.testing.assert_close(measured, torch.stack((expected, torch.zeros_like(expected))), rtol=0, atol=1e-10)


def test_many_draws_approach_the_expectation(values: Tensor) -> None:
    loss = InteractionOrderLoss(FeaturePlayers(N), 0.25, 0.75, "encourage")
    generator = torch.Generator().manual_seed(0)
    drawn = loss.delta_u(Game(values), torch.ones(40_000, N, dtype=torch.float64), generator)[:, 0]
    expected = (delta_u_weights(N, 2, 6) * mean_over_pairs(values)).sum() - 2 * values[0]
    assert abs(drawn.mean() - expected) < 4 * drawn.std() / 200


def test_linear_effects_cancel_with_the_actual_ratio_alone() -> None:
    """floor(0.3 * 8) and floor(0.7 * 8) are 2 and 5: their ratio is not 0.7 / 0.3."""
    weights = torch.arange(1.0, 9.0, dtype=torch.float64)
    bits = (torch.arange(2**N)[:, None] >> torch.arange(N)) & 1
    additive = Game((bits * weights).sum(dim=1))
    x = torch.ones(30_000, N, dtype=torch.float64)
    means = {}
    for ratio in ("actual", "nominal"):
        loss = InteractionOrderLoss(FeaturePlayers(N), 0.3, 0.7, "encourage", ratio=ratio)
        assert (loss.s1, loss.s2) == (2, 5)
        means[ratio] = loss.delta_u(additive, x, torch.Generator().manual_seed(1))[:, 0].mean().item()
    assert abs(means["actual"]) < 0.1
    assert means["nominal"] == pytest.approx((5 - 2 * 0.7 / 0.3) * 4.5, abs=0.1)


@pytest.mark.parametrize(
    ("r", "n", "size"), [(0.29, 100, 29), (0.3, 10, 3), (0.7, 10, 7), (0.3, 14, 4), (0.7, 196, 137)]
)
def test_shares_are_rounded_down_but_not_by_a_rounding_error(r: float, n: int, size: int) -> None:
    assert InteractionOrderLoss(FeaturePlayers(n), 0.0, r, "penalize").s2 == size


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(16, 5),
    ).to(dtype)  # fmt: skip


def images(count: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, 8, 8, generator=generator, dtype=dtype), torch.arange(count) % 5


def plain(loss: InteractionOrderLoss, model: nn.Module, x: Tensor, y: Tensor, seed: int) -> Tensor:
    """The definition, sample by sample, with the same draws; batch norm sees clean and masked samples together."""
    n, cell = loss.players.n_players, 8 // 4
    sets = nested_masks(len(x), n, loss.s1, loss.s2, torch.Generator().manual_seed(seed))
    batches = [x]
    for keep in sets:
        masked = x.clone()
        for b, p in itertools.product(range(len(x)), range(n)):
            if not keep[b, p]:
                row, column = divmod(p, 4)
                masked[b, :, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = 0
        batches.append(masked)
    logits = model(torch.cat(batches)).split(len(x))[1:]
    factor = loss.s2 / loss.s1 if loss.s1 else 1
    probabilities = (logits[1] - factor * logits[0]).softmax(dim=1)
    if loss.mode == "encourage":
        each = [-torch.log(probabilities[b, y[b]]) for b in range(len(x))]
    else:
        each = [(p * torch.log(p)).sum() for p in probabilities]
    return loss.weight * torch.stack(each).mean()


@pytest.mark.parametrize("mode", ["encourage", "penalize"])
@pytest.mark.parametrize("r1", [0.0, 0.3])
def test_value_and_gradients_are_those_of_the_definition(mode: str, r1: float) -> None:
    """Summed with the ordinary loss, through batch norm in training mode."""
    loss = InteractionOrderLoss(PatchGrid(4), r1, 0.7, mode, weight=0.5)
    x, y = images()
    ours, theirs = network(), network()
    first = nn.functional.cross_entropy(ours(x), y) + loss(ours, x, y, torch.Generator().manual_seed(9))
    second = nn.functional.cross_entropy(theirs(x), y) + plain(loss, theirs, x, y, 9)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=0)
    first.backward()
    second.backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.grad.abs().max() > 0
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-9, atol=1e-12)


def test_masked_passes_leave_no_mark_on_batch_norm() -> None:
    """Running statistics and counter are those of a training that never masked anything; one pass each."""
    x, y = images()
    loss = InteractionOrderLoss(PatchGrid(4), 0.3, 0.7, "encourage")
    biased, unbiased = network(), network()
    for _ in range(3):
        biased.zero_grad()
        total = nn.functional.cross_entropy(biased(x), y) + loss(biased, x, y)
        nn.functional.cross_entropy(unbiased(x), y)
        unbiased(x)
        biased(x)
        total.backward()
    torch.testing.assert_close(dict(biased.named_buffers()), dict(unbiased.named_buffers()), rtol=0, atol=0)
    assert biased[1].num_batches_tracked == 6


def gradient_norms(network: nn.Module, bias: str, steps: int) -> list[float]:
    """Of a few steps of SGD on random images."""
    torch.manual_seed(0)
    module = OrderBiasedClassifier(network.train(), PatchGrid(4), **ORDER_BIAS[bias])
    optimizer = torch.optim.SGD(module.parameters(), 0.01, momentum=0.9)
    pictures, labels, norms = torch.randn(16, 3, 32, 32), torch.arange(16) % 10, []
    for _ in range(steps):
        optimizer.zero_grad()
        total = nn.functional.cross_entropy(module(pictures), labels)
        for order_loss in module.order_losses.values():
            total = total + order_loss(network, pictures, labels)
        total.backward()
        norms.append(torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None]).norm().item())
        optimizer.step()
    return norms


def deep_with_batch_norm() -> nn.Module:
    layers: list[nn.Module] = []
    for channels in (3, 8, 8, 8):
        layers += [nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def resnet18() -> nn.Module:
    return pytest.importorskip("torchvision").models.resnet18(num_classes=10)


def mobilenet() -> nn.Module:
    return pytest.importorskip("torchvision").models.mobilenet_v2(num_classes=10)


@pytest.mark.parametrize(
    ("build", "steps"),
    [
        (deep_with_batch_norm, 5),
        pytest.param(resnet18, 20, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
        pytest.param(mobilenet, 20, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_no_bias_blows_up_a_network_with_batch_norm(build: Callable[[], nn.Module], steps: int) -> None:
    """Where nobody is present, a batch is one image many times, of variance 0."""
    found = {}
    for bias in ORDER_BIAS:
        torch.manual_seed(0)
        found[bias] = gradient_norms(build(), bias, steps)
    limit = 100 * max(found["normal"])
    print({bias: f"{max(norms) / max(found['normal']):.2f}x" for bias, norms in found.items()})
    for bias, norms in found.items():
        assert all(norm <= limit for norm in norms), (bias, norms)  # NaN is not


class Strange(nn.Module):
    """Buffers of every kind that a forward pass may write to, and layers that share a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.BatchNorm1d(6)
        self.frozen = nn.BatchNorm1d(6).eval()
        self.cumulative = nn.BatchNorm1d(6, momentum=None)
        self.instance = nn.InstanceNorm1d(6, track_running_stats=True)
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))
        self.head = nn.Linear(6, 3)
        self.register_buffer("forwards", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        x = self.shared(self.frozen(self.shared(x)))
        x = self.instance(self.cumulative(x).view(len(x), 6, 1).expand(-1, -1, 2)).mean(dim=2)
        return self.head(self.spectral(x))


def test_no_buffer_of_any_kind_is_changed_and_modes_stay() -> None:
    torch.manual_seed(0)
    model = Strange()
    model.frozen.eval()
    before = deepcopy(dict(model.named_buffers()))
    identities = {name: id(buffer) for name, buffer in model.named_buffers()}
    modes = [module.training for module in model.modules()]
    loss = InteractionOrderLoss(FeaturePlayers(6), 0.5, 1.0, "penalize")
    loss(model, torch.randn(16, 6), torch.arange(16) % 3).backward()
    torch.testing.assert_close(dict(model.named_buffers()), before, rtol=0, atol=0)
    assert identities == {name: id(buffer) for name, buffer in model.named_buffers()}
    assert modes == [module.training for module in model.modules()]
    assert all(parameter.grad is not None for parameter in model.head.parameters())


def test_buffers_survive_an_exception() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            self.norm(x)
            raise RuntimeError("out of memory")

    model = Failing()
    with pytest.raises(RuntimeError, match="out of memory"):
        InteractionOrderLoss(FeaturePlayers(4), 0.0, 1.0, "penalize")(model, torch.randn(3, 4), torch.zeros(3).long())
    assert model.norm.num_batches_tracked == 0
    assert torch.equal(model.norm.running_mean, torch.zeros(4))


def test_an_indifferent_network_has_the_least_penalty() -> None:
    loss = InteractionOrderLoss(FeaturePlayers(4), 0.0, 0.5, "penalize", weight=3.0)
    constant = nn.Linear(4, 7)
    nn.init.zeros_(constant.weight)
    nn.init.zeros_(constant.bias)
    x, y = torch.randn(5, 4), torch.zeros(5, dtype=torch.int64)
    assert loss(constant, x, y).item() == pytest.approx(-3 * math.log(7), rel=1e-6)


def test_draws_come_from_the_generator_alone_where_there_is_one() -> None:
    loss = InteractionOrderLoss(PatchGrid(4), 0.3, 0.7, "encourage")
    model = network().eval()
    x, y = images()
    state = torch.get_rng_state()
    one, two = (loss(model, x, y, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, two)
    assert not torch.equal(loss(model, x, y), one)
    assert not torch.equal(torch.get_rng_state(), state)


def test_the_baseline_replaces_what_is_absent_and_moves_with_the_loss() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack((x.sum(dim=1), torch.zeros(len(x)).to(x)), dim=1)

    loss = InteractionOrderLoss(FeaturePlayers(4), 0.0, 1.0, "encourage", baseline=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert "baseline" not in loss.state_dict()
    x = torch.full((2, 4), 10.0, dtype=torch.float64)
    assert loss.delta_u(Sum(), x)[:, 0].tolist() == [30.0, 30.0]
    halved = loss.half().delta_u(Sum(), x.half())
    assert halved[:, 0].tolist() == [30.0, 30.0]
    assert halved.dtype == torch.float32, "half precision would round the difference too"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"r1": 0.7, "r2": 0.3}, "r1=0.7 and r2=0.3"),
        ({"r1": 0.5, "r2": 0.5}, "r1=0.5 and r2=0.5"),
        ({"r1": -0.1, "r2": 0.5}, "r1=-0.1"),
        ({"r1": 0.1, "r2": 1.5}, "r2=1.5"),
        ({"r1": float("nan"), "r2": 0.5}, "r1=nan"),
        ({"r1": 0.3, "r2": 0.4}, "r1=0.3 and r2=0.4 both mean 1 of 4 players"),
        ({"mode": "reward"}, "mode='reward'"),
        ({"ratio": "exact"}, "ratio='exact'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint.replace(".", r"\.")):
        InteractionOrderLoss(**{"players": FeaturePlayers(4), "r1": 0.0, "r2": 0.5, "mode": "penalize", **arguments})


@pytest.mark.parametrize("n_players", [14, 16, 256])
def test_the_presets_fit_the_players_of_the_experiments(n_players: int) -> None:
    assert ORDER_BIAS["normal"] == {}
    for bias in ("low", "mid", "high"):
        ((mode, (r1, r2)),) = ORDER_BIAS[bias].items()
        InteractionOrderLoss(FeaturePlayers(n_players), r1, r2, mode)


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(8, affine=True), nn.GroupNorm(8, 8)], ids=["instance", "group"])
def test_nothing_left_of_an_image_and_maps_normalised_alone_is_refused(norm: nn.Module) -> None:
    """Gradients were 9000 times those of the ordinary network."""
    network = nn.Sequential(nn.Conv2d(1, 8, 3), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    images, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 0, 1])
    with pytest.raises(ValueError, match="r1"):
        InteractionOrderLoss(PatchGrid(2), 0.0, 0.5, "penalize")(network, images, labels)
    assert InteractionOrderLoss(PatchGrid(2), 0.25, 0.5, "penalize")(network, images, labels).isfinite()

"""The estimator against enumeration: values, errors, counts, streams, and what it leaves untouched."""

import math
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lit_papers.interactions import sampling
from lit_papers.interactions.estimator import MultiOrderInteraction
from lit_papers.interactions.functional import log_odds
from lit_papers.interactions.players import FeaturePlayers, PatchGrid
from lit_papers.interactions.result import InteractionResult


def mlp(features: int = 8, classes: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, classes))


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(6 * 54, 4)
    )


def table(samples: int = 3, features: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(samples, features, generator=generator), torch.arange(samples) % 3


def estimate(method: Any = "sampled", **options: Any) -> MultiOrderInteraction:
    defaults: dict[str, Any] = {"pairs": "all", "n_contexts": 6, "method": method}
    return MultiOrderInteraction(mlp(), FeaturePlayers(8), **{**defaults, **options})


def test_batches_agree_with_a_naive_loop() -> None:
    """Images that the grid does not divide, labels that differ, a model in training mode."""
    model, players = cnn(), PatchGrid((2, 3))
    images, labels = torch.randn(3, 1, 9, 6), torch.tensor([3, 0, 2])
    found = MultiOrderInteraction(model, players, pairs="all", method="exact", batch_size=7)(images, labels)
    model.eval()

    def value(sample: int, members: set[int]) -> float:
        keep = torch.tensor([[k in members for k in range(6)]])
        with torch.no_grad():
            return log_odds(
                model(players(images[sample : sample + 1], keep)).double(), labels[sample : sample + 1]
            ).item()

    for sample in range(3):
        for number, (i, j) in enumerate(found.pairs[sample].tolist()):
            others = [k for k in range(6) if k not in (i, j)]
            sums, counts = [0.0] * 5, [0] * 5
            for code in range(16):
                context = {k for bit, k in enumerate(others) if code >> bit & 1}
                with_both, with_i, with_j = context | {i, j}, context | {i}, context | {j}
                sums[len(context)] += (
                    value(sample, with_both) - value(sample, with_i) - value(sample, with_j) + value(sample, context)
                )
                counts[len(context)] += 1
            expected = torch.tensor(sums, dtype=torch.float64) / torch.tensor(counts)
            assert (found.interactions[sample, number] - expected).abs().max() < 2e-5
    assert found.n_forwards == 3 * 64
    assert torch.equal(found.n_contexts[0, 0], torch.tensor([1, 4, 6, 4, 1]))


def test_samplers_agree_with_enumeration() -> None:
    x, y = table(8)
    truth = estimate("exact")(x, y)
    for method, limit in (("sampled", 0.98), ("paper", 0.98)):
        options = {"orders": truth.orders} if method == "paper" else {}
        pairs = truth.pairs[0]
        found = estimate(method, pairs=pairs, n_contexts=12, **options)(x, y)
        inside = (found.interactions - truth.interactions).abs() <= 4 * found.se + 1e-7
        assert inside.double().mean() >= limit, method
        assert (found.n_contexts <= torch.tensor([math.comb(6, m) for m in found.orders])).all() or method == "paper"


def test_the_sampler_is_unbiased_with_honest_errors() -> None:
    """Over many streams: the mean is the truth, and the spread is what the errors say."""
    x, y = table(1)
    truth = estimate("exact")(x, y)
    ids = range(300)
    found = estimate("sampled", n_contexts=6)(x.expand(300, -1), y.expand(300), ids)
    deviation = found.interactions - truth.interactions
    spread = deviation.square().mean(0).sqrt()
    assert (deviation.mean(0).abs() <= 5 * spread / 300**0.5 + 1e-7).all()
    sampled = found.se[0, 0] > 0
    assert sampled.tolist() == [False, False, True, True, True, False, False]  # C(6, m) <= 6 is enumerated
    ratio = found.se.square().mean((0, 1))[sampled] / deviation.square().mean((0, 1))[sampled]
    assert ((ratio > 0.8) & (ratio < 1.25)).all()
    assert (deviation[..., ~sampled].abs() < 1e-6).all()


def test_enumerated_orders_are_exact() -> None:
    x, y = table(2)
    truth, found = estimate("exact")(x, y), estimate("sampled", n_contexts=20)(x, y)
    assert (found.interactions - truth.interactions).abs().max() < 1e-6
    assert torch.equal(found.se, torch.zeros_like(found.se))
    assert found.n_forwards <= 2 * 256


def test_counts_of_forwards() -> None:
    x, y = table(2)
    paper = estimate("paper", pairs=5, n_contexts=3, orders=[0, 3, 3, 6])
    assert paper.estimate_forwards(2) == paper(x, y).n_forwards == 2 * 4 * 5 * 3 * 4
    ends = estimate("sampled", orders=[0, 6], n_contexts=100)
    assert ends(x, y).n_forwards <= 2 * 2 * (1 + 8 + 28)
    exact = estimate("exact")
    assert exact.estimate_forwards(2) == exact(x, y).n_forwards == 512
    sampled = MultiOrderInteraction(
        mlp(14), FeaturePlayers(14), pairs=10, n_contexts=9, orders=[2, 6], method="sampled"
    )
    wide = torch.randn(2, 14)
    assert sampled(wide, y).n_forwards == sampled.estimate_forwards(2) < 2 * 4 * 10 * 18
    assert sampled(wide, y, [7, 3]).n_forwards == sampled.estimate_forwards(2, [7, 3])


def test_fourteen_players_are_exact_by_default() -> None:
    chosen = MultiOrderInteraction(mlp(14), FeaturePlayers(14), pairs="all")
    assert chosen.method == "exact"
    assert 4 * 91 * 100 * 13 == 473_200  # what independent contexts would take
    assert chosen.estimate_forwards() == 16_384
    assert MultiOrderInteraction(mlp(40), FeaturePlayers(40)).method == "sampled"


def test_a_sample_depends_on_its_id_alone() -> None:
    x, y = table(3)
    whole = estimate(pairs=9)(x, y, [7, 3, 5])
    alone = estimate(pairs=9)(x[2:], y[2:], torch.tensor([5]))
    assert torch.equal(whole.interactions[2:], alone.interactions)
    assert torch.equal(whole.pairs[2:], alone.pairs)
    assert not torch.equal(whole.pairs[0], whole.pairs[1])
    assert not torch.equal(estimate(pairs=9, seed=1)(x, y, [7, 3, 5]).pairs, whole.pairs)


def test_nothing_is_left_changed() -> None:
    model = cnn()
    model[1].eval()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    images = torch.randn(2, 1, 9, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, original = [module.training for module in model.modules()], images.clone()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    with torch.autocast("cpu", torch.bfloat16):
        found = MultiOrderInteraction(model, PatchGrid(3), pairs=4, n_contexts=2)(images, torch.tensor([0, 1]))
        assert torch.is_autocast_enabled("cpu")
    plain = MultiOrderInteraction(model, PatchGrid(3), pairs=4, n_contexts=2)(images, torch.tensor([0, 1]))
    assert torch.equal(found.interactions, plain.interactions)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(images, original)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002
    assert found.interactions.dtype == torch.float64


def test_modes_return_after_an_error() -> None:
    model = cnn()
    modes = [module.training for module in model.modules()]
    with pytest.raises(ValueError, match="output for sample 4 is NaN"):
        MultiOrderInteraction(model, PatchGrid(2), pairs=2)(
            torch.full((1, 1, 9, 6), torch.nan), torch.tensor([0]), ids=[4]
        )
    assert [module.training for module in model.modules()] == modes


def test_a_run_that_was_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = table(4)
    whole = estimate()(x, y)
    explain, calls = MultiOrderInteraction._explain, []

    def fail_at_the_third(self: Any, *arguments: Any) -> Any:
        calls.append(arguments[2])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return explain(self, *arguments)

    monkeypatch.setattr(MultiOrderInteraction, "_explain", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        estimate()(x, y, partial=tmp_path / "partial.pt")
    found = estimate()(x, y, partial=tmp_path / "partial.pt")
    assert calls == [0, 1, 2, 2, 3]
    for name in ("interactions", "cross_fitted", "se", "order_error", "rounding", "n_contexts", "pairs"):
        assert torch.equal(getattr(found, name), getattr(whole, name))
    assert found.n_forwards == whole.n_forwards
    for other, samples in ((estimate(seed=3), x), (estimate(n_contexts=7), x), (estimate(), x + 1)):
        with pytest.raises(ValueError, match=r"partial.pt is of another call"):
            other(samples, y, partial=tmp_path / "partial.pt")


def test_a_budget_refuses_before_any_work() -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("the model ran")

    refusing = estimate("exact", max_forwards=700)
    refusing.model.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match=r"this needs 768 masked inputs, more than `max_forwards`=700: lower `pairs`"):
        refusing(*table(3))


def test_results_are_saved_and_drawn(tmp_path: Path) -> None:
    found = estimate()(*table(3))
    found.save(tmp_path / "result.pt")
    again = InteractionResult.load(tmp_path / "result.pt")
    assert torch.equal(again.interactions, found.interactions)
    assert again.orders == found.orders
    figure, axis = found.plot(theory_players=8)
    assert len(axis.lines) >= 3
    assert axis.get_xlabel() == "order m / (n - 2)"
    assert found.plot(axis)[0] is figure
    assert found.relative_strength.mean().item() == pytest.approx(1)
    expected = (2 / torch.pi) ** 0.5 * (found.se.mean((0, 1)).square() + found.rounding.mean().square()).sqrt()
    assert torch.allclose(found.noise_floor, expected, rtol=1e-12)
    assert found.relative_error.isfinite().all()
    assert estimate()(*table(1)).relative_error.isnan().all()


def test_the_authors_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = sampling.clamped_neighbours(4, 5, 1000, generator)
    assert len(pairs) == len(PatchGrid((4, 5), radius=2).candidate_pairs())
    assert {tuple(pair) for pair in pairs.tolist()} == {
        tuple(pair) for pair in PatchGrid((4, 5), radius=2).candidate_pairs().tolist()
    }
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    paper = MultiOrderInteraction(model, PatchGrid(4), pairs=7, n_contexts=2, method="paper")
    assert paper.orders == [0, 0, 1, 2, 4, 5, 7, 8, 9, 11, 12, 13, 14]
    assert paper(torch.randn(1, 1, 8, 8), torch.tensor([1])).n_forwards == 4 * 7 * 2 * 13


def test_one_context_has_no_error() -> None:
    found = estimate("paper", n_contexts=1, orders=[2])(*table(1))
    assert found.se.isnan().all()


def test_no_interaction_is_no_error() -> None:
    model = nn.Linear(4, 2)
    found = MultiOrderInteraction(model, FeaturePlayers(4), pairs="all", value_fn=lambda z, y: z[:, 0])
    result = found(torch.zeros(1, 4), torch.tensor([0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(result.strength, torch.zeros(3, dtype=torch.float64))
        assert result.relative_strength.isnan().all()


def test_more_pairs_than_there_are() -> None:
    assert estimate(pairs=10_000)(*table(1)).pairs.shape == (1, 28, 2)


def test_bfloat16_is_warned_of() -> None:
    x, y = table(1)
    model = MultiOrderInteraction(mlp().bfloat16(), FeaturePlayers(8), pairs=2, n_contexts=1)
    with pytest.warns(UserWarning, match="bfloat16"):
        model(x.bfloat16(), y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"orders": [0, 7]}, "order 7 is outside 0 to 6"),
        ({"orders": []}, "`orders` is empty"),
        ({"pairs": torch.tensor([[1, 1]])}, r"pair \(1, 1\)"),
        ({"pairs": torch.tensor([[1, 8]])}, r"pair \(1, 8\)"),
        ({"pairs": torch.tensor([1, 2])}, r"shape \(P, 2\)"),
        ({"pairs": 0}, "`pairs`"),
        ({"pairs": "some"}, "'some'"),
        ({"method": "fast"}, "`method` .*'fast'"),
        ({"n_contexts": 0}, "`n_contexts`"),
        ({"batch_size": 0}, "`batch_size`"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate(**options)


def test_mistakes_in_calls() -> None:
    x, y = table(3)
    with pytest.raises(ValueError, match="n=25"):
        MultiOrderInteraction(mlp(25), FeaturePlayers(25), method="exact")
    with pytest.raises(ValueError, match="3 samples, but `y` has 2 labels"):
        estimate()(x, y[:2])
    with pytest.raises(ValueError, match="`ids` has 1 entries for 3"):
        estimate()(x, y, [1])
    with pytest.raises(ValueError, match="`x` is empty"):
        estimate()(x[:0], y[:0])
    with pytest.raises(ValueError, match="label 3 is outside 0 to 2"):
        estimate()(x, y + 1)


@pytest.mark.gpu
def test_gpu_equals_cpu() -> None:
    x, y = table(3)
    model = mlp()
    expected = MultiOrderInteraction(model, FeaturePlayers(8), pairs="all")(x, y)
    found = MultiOrderInteraction(model.cuda(), FeaturePlayers(8), pairs="all")(x.cuda(), y.cuda())
    assert torch.allclose(found.interactions, expected.interactions, atol=1e-5)


class _Masked(nn.Module):
    """Classes that do not exist yet have logits of minus very much, as in class-incremental learning."""

    def __init__(self, network: nn.Module, masked: float) -> None:
        super().__init__()
        self.network, self.masked = network, masked

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.network(x)
        return torch.cat([logits, torch.full((len(logits), 2), self.masked)], dim=1)


@pytest.mark.parametrize("masked", [-1e9, -math.inf])
def test_classes_that_are_masked_out_hide_nothing(masked: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, other = (nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)) for _ in range(2))
    x, y = torch.randn(2, 6), torch.tensor([0, 2])

    def measure(model: nn.Module, **options: Any) -> Any:
        return MultiOrderInteraction(model, FeaturePlayers(6), pairs="all")(x, y, **options)

    plain, found = measure(network), measure(_Masked(network, masked), partial=tmp_path / "partial.pt")
    torch.testing.assert_close(found.relative_strength, plain.relative_strength)
    with pytest.raises(ValueError, match="is of another call"):
        measure(_Masked(other, masked), partial=tmp_path / "partial.pt")


def test_a_partial_file_knows_the_weights_bit_by_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(2, 6), torch.tensor([0, 2])
    estimate = MultiOrderInteraction(network, FeaturePlayers(6), pairs="all")
    estimate(x, y, partial=tmp_path / "partial.pt")
    with torch.no_grad():
        network[2].weight += 1e-6
    with pytest.raises(ValueError, match="is of another call"):
        estimate(x, y, partial=tmp_path / "partial.pt")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": lambda x: torch.ones(len(x), 3, 1)}, "the model's output has shape"),
        ({"x": [torch.ones(6), torch.ones(6)]}, "`x` is a list of tensors"),
        ({"y": torch.tensor(0)}, "`y` is a single number"),
    ],
    ids=["three axes", "list", "one label"],
)
def test_other_forms_are_refused_in_a_line_that_names_them(change: dict[str, Any], said: str) -> None:
    given = {"model": nn.Linear(6, 3), "x": torch.ones(2, 6), "y": torch.tensor([0, 1]), **change}
    with pytest.raises((ValueError, TypeError), match=said) as refused:
        MultiOrderInteraction(given["model"], FeaturePlayers(6), pairs="all")(given["x"], given["y"])
    assert "\n" not in str(refused.value)


def test_pairs_may_be_a_numpy_array() -> None:
    pairs = np.array([[0, 1], [2, 5]])
    found = MultiOrderInteraction(nn.Linear(6, 3), FeaturePlayers(6), pairs=pairs)(torch.ones(1, 6), torch.tensor([0]))
    assert found.pairs.tolist() == [pairs.tolist()]

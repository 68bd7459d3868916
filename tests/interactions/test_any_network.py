"""Networks as people have them, each in one call without a wrapper: outputs, inputs, labels, players, budgets."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_papers.interactions.estimator import MultiOrderInteraction
from lit_papers.interactions.outputs import find_outputs, prediction
from lit_papers.interactions.players import (
    FeaturePlayers,
    InputPlayers,
    NodePlayers,
    PatchGrid,
    Players,
    SegmentPlayers,
    TokenPlayers,
)


def mlp(outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, outputs))


X, Y = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 2, 1, 0])


class Wrapped(nn.Module):
    def __init__(self, wrap: Any, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net, self.wrap = net or mlp(), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.net(x))


def interactions(model: Any, y: Tensor = Y, players: Players | None = None, x: Any = X, **options: Any) -> Tensor:
    return MultiOrderInteraction(model, players or FeaturePlayers(6), pairs=[(0, 1), (2, 4)], **options)(
        x, y
    ).interactions


@pytest.mark.parametrize(
    "wrap",
    [
        lambda u: {"loss": u.sum(), "logits": u},
        lambda u: SimpleNamespace(logits=u, loss=None),
        lambda u: (u, [u, u]),
        lambda u: [u, u[:, :, None, None]],
        lambda u: {"prediction": u, "mask": u > 0},
    ],
)
def test_forms_of_output(wrap: Any) -> None:
    assert torch.equal(interactions(Wrapped(wrap)), interactions(mlp()))


@pytest.mark.parametrize(
    "wrap", [lambda u: (u, u.exp()), lambda u: {"a": u, "b": u}, lambda u: "logits", lambda u: None]
)
def test_several_candidates_or_none_are_refused_and_cured(wrap: Any) -> None:
    with pytest.raises(TypeError, match=r"the model's output is .*: pass `respond`"):
        interactions(Wrapped(wrap))
    found = interactions(Wrapped(lambda u: (u.exp(), u)), respond=lambda model, x: model(x)[1])
    assert torch.equal(found, interactions(mlp()))


def test_one_logit_is_the_second_of_two_classes() -> None:
    labels = torch.tensor([0, 1, 1, 0])
    with_zero = Wrapped(lambda u: torch.cat([torch.zeros_like(u), u], 1), mlp(1))
    for model in (mlp(1), Wrapped(lambda u: u[:, 0], mlp(1))):
        assert torch.equal(interactions(model, labels), interactions(with_zero, labels))
    with pytest.raises(ValueError, match="label 2 is outside 0 to 1"):
        interactions(mlp(1))


def test_regression_has_its_predictions_for_values() -> None:
    found = interactions(mlp(1), torch.randn(4), value_fn=prediction)
    assert torch.equal(found, interactions(mlp(1), torch.tensor([1, 1, 1, 1])))
    with pytest.raises(TypeError, match=r"`y` must be class indices, got torch.float32: for regression"):
        interactions(mlp(1), torch.randn(4))
    with pytest.raises(ValueError, match=r"`prediction` is of one output, got \(\d+, 3\)"):
        interactions(mlp(3), value_fn=prediction)


@pytest.mark.parametrize(
    ("labels", "error", "complaint"),
    [
        (Y[:, None], ValueError, r"`y` must be one class index .* got \(4, 1\): pass `y\[:, 0\]`"),
        (nn.functional.one_hot(Y, 3), ValueError, r"`y.argmax\(1\)` of one-hot"),
        (Y > 0, TypeError, "torch.bool"),
        ([0, 2, 1, 0], TypeError, "`y` must be a tensor"),
    ],
)
def test_forms_of_labels(labels: Any, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        interactions(mlp(), labels)
    assert torch.equal(interactions(mlp(), Y.to(torch.int8)), interactions(mlp()))


def test_outputs_with_other_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\), but must have a row for 64 inputs"):
        interactions(Wrapped(lambda u: u.sum(0)))
    with pytest.raises(ValueError, match="`value_fn` must give one value"):
        interactions(mlp(), value_fn=lambda u, y: u)


def test_probabilities_and_uint8_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="look like probabilities"):
        interactions(Wrapped(lambda u: u.softmax(1)))
    pictures = torch.randint(256, (1, 1, 4, 4), dtype=torch.uint8)
    model = nn.Sequential(nn.Flatten(), Wrapped(lambda x: x, nn.Identity()), ToFloat(), nn.Linear(16, 2))
    with pytest.warns(UserWarning, match=r"`baseline` 0\.5 becomes 0 in inputs of torch\.uint8"):
        MultiOrderInteraction(model, PatchGrid(2), baseline=0.5)(pictures, torch.tensor([0]))


class ToFloat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.get_default_dtype()) if not x.is_floating_point() else x


def test_tokens_of_a_transformer() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    model = transformers.BertForSequenceClassification(config)
    ids = torch.randint(5, 50, (2, 8))
    tokens = TokenPlayers(8, mask_token=4, always_present=[0, -1])
    assert tokens.n_players == 6
    found = MultiOrderInteraction(model, tokens, pairs="all")(ids, torch.tensor([0, 2]))
    assert found.curve.resolved.all()
    everything = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    named = MultiOrderInteraction(model, InputPlayers(tokens, "input_ids"), pairs="all")(
        everything, torch.tensor([0, 2])
    )
    torch.testing.assert_close(named.interactions, found.interactions, rtol=0, atol=1e-6)


def test_nodes_of_a_graph() -> None:
    pytest.importorskip("torch_geometric")
    from torch_geometric.data import Data
    from torch_geometric.nn import GINConv, global_add_pool

    class Gin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = GINConv(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8)))
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
            return self.head(global_add_pool(self.conv(x, edge_index).tanh(), batch))

    torch.manual_seed(0)
    ring = torch.stack([torch.arange(6), (torch.arange(6) + 1) % 6])
    graphs = [Data(x=torch.randn(6, 3), edge_index=torch.cat([ring, ring.flip(0)], 1)) for _ in range(2)]
    found = MultiOrderInteraction(Gin(), NodePlayers(6), pairs=[(0, 1), (0, 3)])(graphs, torch.tensor([0, 1]))
    adjacent, opposite = found.interactions[:, 0].abs().max(), found.interactions[:, 1].abs().max()
    assert adjacent > 1e-3
    assert opposite < 1e-6, "one layer, and a sum: nodes that no neighbour sees both do not interact"
    assert found.n_forwards == 2 * 64
    with pytest.raises(ValueError, match="a graph has 6 nodes, but `n_nodes` is 5"):
        MultiOrderInteraction(Gin(), NodePlayers(5))(graphs, torch.tensor([0, 1]))


def test_one_of_several_inputs_by_place() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a.prod(1) * b[:, 0])[:, None]

    found = MultiOrderInteraction(Two(), InputPlayers(FeaturePlayers(3), 0), pairs="all")(
        (torch.ones(2, 3), torch.tensor([[2.0], [5.0]])), torch.tensor([1, 1])
    )
    assert found.interactions[:, 0].tolist() == [[0.0, 2.0], [0.0, 5.0]]
    with pytest.raises(ValueError, match="there is no input 'c', but 0, 1"):
        MultiOrderInteraction(Two(), InputPlayers(FeaturePlayers(3), "c"))((X, X), Y)


def test_segments() -> None:
    labels = torch.tensor([[0, 0, 1], [2, 1, 1]])
    x = torch.randn(1, 2, 2, 3)
    keep = torch.rand(5, 3) > 0.5
    expected = torch.where(keep[:, labels][:, None], x, torch.tensor(0.5))
    assert torch.equal(SegmentPlayers(labels)(x, keep, 0.5), expected)
    for wrong, error in ((labels + 1, ValueError), (labels.float(), TypeError), (labels * 0, ValueError)):
        with pytest.raises(error):
            SegmentPlayers(wrong)
    with pytest.raises(ValueError, match="images must have the 2 x 3 pixels"):
        SegmentPlayers(labels)(torch.zeros(1, 1, 4, 4), keep)


def test_superpixels() -> None:
    pytest.importorskip("skimage")
    image = torch.zeros(3, 20, 20)
    image[:, :, 10:] = 1
    players = SegmentPlayers.superpixels(image, n_segments=4)
    assert players.n_players >= 2
    for label in range(players.n_players):
        assert image[0][players.labels == label].unique().numel() == 1, "segments keep to the edge"


@pytest.mark.parametrize(
    "build",
    [
        lambda: PatchGrid(2.5),
        lambda: PatchGrid((2, True)),
        lambda: FeaturePlayers("6"),
        lambda: FeaturePlayers(2, [[0.0], [1]]),
        lambda: TokenPlayers(4.0, 1),
        lambda: NodePlayers(3.5),
        lambda: MultiOrderInteraction(mlp(), FeaturePlayers(6), n_contexts=2.5),
        lambda: MultiOrderInteraction(mlp(), FeaturePlayers(6), pairs=True),
        lambda: MultiOrderInteraction(mlp(), FeaturePlayers(6), pairs=[(0.0, 1.0)]),
        lambda: MultiOrderInteraction(mlp(), FeaturePlayers(6), orders=[1.0]),
        lambda: MultiOrderInteraction(mlp(), FeaturePlayers(6), batch_size=None),
    ],
)
def test_counts_are_integers_from_the_start(build: Any) -> None:
    with pytest.raises(TypeError, match=r"must be (an integer|integers)"):
        build()


def test_a_budget_of_seconds_is_kept() -> None:
    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line, self.rows = nn.Linear(400, 2), 0

        def forward(self, x: Tensor) -> Tensor:
            self.rows += len(x)
            time.sleep(5e-4 * len(x))
            return self.line(x.flatten(1))

    model, image = Slow(), torch.randn(1, 1, 20, 20)
    begin = time.perf_counter()
    with pytest.warns(UserWarning, match=r"`seconds`=1.5 is enough for \d+ pairs with \d+ contexts"):
        found = MultiOrderInteraction(model, PatchGrid(10), seconds=1.5, orders=[0, 49, 98])(image, torch.tensor([0]))
    assert time.perf_counter() - begin < 3.5
    assert 20 < found.n_forwards < 3000
    with pytest.raises(ValueError, match=r"`seconds`=0.01 is enough for .* are the least"):
        MultiOrderInteraction(model, PatchGrid(10), seconds=0.01)(image, torch.tensor([0]))
    with pytest.raises(ValueError, match="pass `n_contexts` instead of `seconds`"):
        MultiOrderInteraction(model, PatchGrid(10), seconds=1)(image, torch.tensor([0]), partial="x.pt")


@pytest.mark.slow
def test_a_large_image_network_in_a_minute() -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    image, label = torch.randn(1, 3, 224, 224), torch.tensor([7])
    estimate = MultiOrderInteraction(models.resnet18(), PatchGrid(14), seconds=60)
    begin = time.perf_counter()
    with pytest.warns(UserWarning, match=r"`seconds`=60 is enough for \d+ pairs with \d+ contexts") as told:
        found = estimate(image, label)
    seconds = time.perf_counter() - begin
    print(f"\n{seconds:.0f} s, {found.n_forwards} masked inputs; {told[0].message}")
    print(f"orders {found.orders}, resolved {found.curve.resolved.tolist()}")
    assert seconds < 90, "on a machine with other work too"


@pytest.mark.parametrize("change", ["value_fn", "groups", "activation", "baseline", "respond", "weights"])
def test_a_partial_file_knows_what_a_call_does(change: str, tmp_path: Any) -> None:
    """By values of a few coalitions: settings that look alike may behave differently."""
    groups = [[0, 1], [2, 3], [4, 5]]
    before: dict[str, Any] = {"model": mlp(), "players": FeaturePlayers(6, groups), "options": {}}
    now = dict(before)
    if change == "value_fn":
        now["options"] = {"value_fn": lambda u, y: u[:, 1]}
    elif change == "groups":
        now["players"] = FeaturePlayers(6, [[0, 5], [1, 4], [2, 3]])
    elif change == "activation":
        now["model"] = nn.Sequential(mlp()[0], nn.ReLU(), mlp()[2])
    elif change == "baseline":
        now["options"] = {"baseline": 0.25}
    elif change == "respond":
        now["options"] = {"respond": lambda model, x: model(2 * x)}
    else:
        now["model"] = mlp()
        nn.init.zeros_(now["model"][2].weight[0])

    def explain(model: Any, players: Any, options: Any, **more: Any) -> Tensor:
        return MultiOrderInteraction(model, players, pairs="all", **options)(X, Y, **more).interactions

    file = tmp_path / "partial.pt"
    first = explain(**before, partial=file)
    assert torch.equal(explain(**before, partial=file), first)
    with pytest.raises(ValueError, match=r"partial.pt is of another call"):
        explain(**now, partial=file)


def test_logits_are_found_by_name_before_place() -> None:
    logits, others = torch.zeros(2, 3), torch.ones(2, 3)
    assert find_outputs({"features": others, "logits": logits}) is logits


def test_players_of_your_own_stand_in_yaml() -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--players", type=Players)
    for name, arguments, n in (
        ("PatchGrid", {"grid": [2, 3]}, 6),
        ("TokenPlayers", {"length": 5, "mask_token": 1, "always_present": [0]}, 4),
        ("SegmentPlayers", {"labels": [[0, 1], [2, 2]]}, 3),
        ("NodePlayers", {"n_nodes": 4}, 4),
    ):
        given = {"class_path": f"lit_papers.interactions.players.{name}", "init_args": arguments}
        assert parser.instantiate_classes(parser.parse_object({"players": given})).players.n_players == n

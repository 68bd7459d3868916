"""What networks tell apart: k-MPNNs, the measurement, its statistics, training, and the shipped runs."""

import csv
from pathlib import Path

import pytest
import torch
from torch import nn
from torch_geometric.nn import GIN

from lit_papers.cli import main
from lit_papers.datamodules import GraphPairs, MissingDataError
from lit_papers.expressiveness.graphs import make_graph, named_pair
from lit_papers.expressiveness.kmpnn import KMPNN, KFGNNConv, KMPNNConv, Sine, atomic_features
from lit_papers.expressiveness.module import SeparationModule
from lit_papers.expressiveness.separation import embed, paired_t2, relabelled, separation_power
from tests.expressiveness.small import REFERENCE, batch, featured


def brec(**options):
    return GraphPairs("brec", REFERENCE, **options).pairs


def random_network(k: int = 2, **options) -> KMPNN:
    torch.manual_seed(0)
    return KMPNN(k, 1, 16, 16, options.pop("num_layers", 5), **options)


@pytest.mark.parametrize("conv", ["fgnn", "mpnn"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_tuple_networks_are_invariant_and_ignore_company(k: int, conv: str) -> None:
    graphs = featured(5, channels=1)
    network = random_network(k, conv=conv, num_layers=2).double()
    together = network(graphs)
    assert together.shape == (graphs.num_graphs, 16)
    draw = torch.Generator().manual_seed(1)
    for index in range(graphs.num_graphs):
        alone = network(relabelled(graphs[index], draw))
        torch.testing.assert_close(alone, together[index : index + 1], rtol=1e-9, atol=1e-9)


def test_one_folklore_layer_against_loops() -> None:
    graph = featured(1, channels=1)[0]
    h, adjacency, mask = atomic_features(graph, 2)
    n = graph.num_nodes
    assert h.shape == (1, n, n, 2 * 2 + 2)
    conv = KFGNNConv(2, h.shape[-1], 3).double()
    first, second = (conv.activation(layer(h))[0] for layer in conv.inputs)
    expected = torch.zeros(n, n, 3, dtype=torch.float64)
    for v1 in range(n):
        for v2 in range(n):
            for u in range(n):
                expected[v1, v2] += first[u, v2] * second[v1, u] / n**0.5
    found = conv(h, adjacency, mask)[0]
    torch.testing.assert_close(found, conv.activation(conv.own(h)[0] + conv.gathered(expected)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("aggr", ["sum", "mean", "max"])
def test_one_message_layer_against_loops(aggr: str) -> None:
    graph = featured(1, channels=1)[0]
    h, adjacency, mask = atomic_features(graph, 2)
    n = graph.num_nodes
    conv = KMPNNConv(2, h.shape[-1], 3, aggr=aggr).double()
    first, second = (layer(h)[0] for layer in conv.inputs)
    messages = torch.stack([conv.activation(first[u][None] + second[:, u][:, None]) for u in range(n)])
    gathered = {"sum": messages.sum(0) / n**0.5, "mean": messages.mean(0), "max": messages.amax(0)}[aggr]
    found = conv(h, adjacency, mask)[0]
    torch.testing.assert_close(found, conv.activation(conv.own(h)[0] + conv.gathered(gathered)), rtol=1e-10, atol=1e-10)
    one = KMPNNConv(1, 2, 3, aggr=aggr).double()
    nodes, _, present = atomic_features(graph, 1)
    assert one(nodes, adjacency, present).shape == (1, n, 3)


def test_tuple_networks_refuse() -> None:
    for build, message in (
        (lambda: atomic_features(featured(1), 0), "k must be"),
        (lambda: KFGNNConv(0, 1, 1), "k must be"),
        (lambda: KMPNNConv(1, 1, 1, aggr="median"), "aggr"),
        (lambda: KMPNN(1, 1, 1, 1, 0), "num_layers"),
        (lambda: KMPNN(1, 1, 1, 1, 1, conv="gin"), "conv"),
    ):
        with pytest.raises(ValueError, match=message):
            build()
    assert float(Sine(2.0)(torch.tensor(0.25))) == pytest.approx(0.479425539)


def test_gin_separates_nothing_of_brec() -> None:
    torch.manual_seed(0)
    report = separation_power(GIN(1, 16, 4, 16), brec(), readout="sum", tests=())
    assert (report.num_separated, report.num_unreliable, report.num_grey) == (0, 0, 0)


def test_two_fgnn_separates_the_basic_part() -> None:
    report = separation_power(random_network(), brec(parts=["Basic"]), relabelings=2, tests=("cr", "2-fwl"))
    assert report.num_separated == 60 == report.per_part["Basic"]
    assert (report.num_unreliable, report.num_grey) == (0, 0)
    assert report.ceiling == {"cr": 0, "2-fwl": 60}
    assert report.exceeds == {"cr": tuple(range(60)), "2-fwl": ()}
    assert report.as_metrics()["ceiling/2-fwl"] == 60


@pytest.mark.slow
def test_two_fgnn_separates_what_two_folklore_does() -> None:
    pairs = brec()
    report = separation_power(random_network(), pairs, relabelings=2, tests=("2-fwl",))
    assert report.num_separated >= 265
    assert report.exceeds["2-fwl"] == ()
    twins = [(pair[0], relabelled(pair[0], torch.Generator().manual_seed(3))) for pair in pairs[::2]]
    assert separation_power(random_network(), twins, relabelings=2, tests=()).status == ("equal",) * 200


class _Odd(nn.Module):
    """Networks that must never pass for separating ones."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.drop = nn.Dropout(0.5)

    def forward(self, data):
        ones = torch.ones(data.num_graphs, 4, dtype=data.x.dtype)
        starts = data.ptr[:-1]
        return {
            "constant": ones,
            "dropout": self.drop(ones),
            "nan": ones * torch.nan,
            "random": torch.randn_like(ones),
            "first node's degree": ones * torch.bincount(data.edge_index[0], minlength=data.num_nodes)[starts, None],
        }[self.kind]


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("constant", "equal"),
        ("dropout", "equal"),
        ("nan", "unreliable"),
        ("random", "unreliable"),
        ("first node's degree", "unreliable"),
    ],
)
def test_odd_networks(kind: str, status: str) -> None:
    model = _Odd(kind).train()
    before = torch.get_rng_state()
    report = separation_power(model, [named_pair("decalin-bicyclopentyl")])
    assert report.status == (status,)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert report.parts == ("all",)


def test_measuring_leaves_the_model_alone() -> None:
    model = GIN(1, 8, 2, 4)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = (separation_power(model, [named_pair("shrikhande-rook")], readout="mean", seed=3) for _ in range(2))
    assert torch.equal(first.ratios, second.ratios)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert next(model.parameters()).dtype == torch.float32


def test_sizes_and_bad_input() -> None:
    model, pair = GIN(1, 8, 2, 4), named_pair("hexagon-triangles")
    triangle = make_graph(3, [(0, 1), (1, 2), (0, 2)])
    with pytest.warns(UserWarning, match="trivially separated by size"):
        assert separation_power(model, [(pair[0], triangle)], readout="sum").num_separated == 1
    for arguments, options, message in (
        ((model, []), {}, "pairs is empty"),
        ((model, [pair]), {"relabelings": 1}, "relabelings"),
        ((model, [pair]), {"tests": ("wl",)}, "test must be"),
        ((model, [pair]), {}, r"output is \(\d+, 4\); with readout=None .*it must be \(\d+, d\).*readout='sum'"),
        ((model, [pair]), {"readout": "max"}, "readout must be"),
        ((random_network(), [pair]), {"readout": "sum"}, r"must be \(\d+, d\)"),
    ):
        with pytest.raises(ValueError, match=message):
            separation_power(*arguments, **options)
    assert embed(model, batch(*pair), "mean").shape == (2, 4)


def test_paired_t2() -> None:
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randn(32, 16, dtype=torch.float64, generator=draw) for _ in range(2))
    difference = left - right
    mean = difference.mean(0)
    statistic = float(mean @ torch.linalg.inv(torch.cov(difference.T)) @ mean)
    released = paired_t2(left, right, rule="released")
    assert released == (pytest.approx(statistic), 72.34, None, False, False)
    tested = paired_t2(left, right)
    assert tested.statistic == pytest.approx(32 * statistic)
    assert tested.threshold == pytest.approx(72.338, abs=1e-3)
    assert tested.p_value is not None
    assert 0 < tested.p_value < 1
    shifted = paired_t2(left + 3, right)
    assert shifted.distinguished
    assert shifted.p_value is not None
    assert shifted.p_value < 1e-3
    same = paired_t2(left, left)
    assert same.degenerate
    assert not same.distinguished
    assert paired_t2(left + 1, left).distinguished  # without any noise
    for arguments, options, message in (
        ((left[:16], right[:16]), {}, "q=16, d=16"),
        ((left, right[:5]), {}, "left and right"),
        ((left, right), {"rule": "t"}, "rule"),
    ):
        with pytest.raises(ValueError, match=message):
            paired_t2(*arguments, **options)


def test_the_level_of_the_f_test() -> None:
    """Where nothing differs, one in twenty comes out; by the released rule none."""
    draw = torch.Generator().manual_seed(0)
    samples = [
        (torch.randn(32, 4, generator=draw).double(), torch.randn(32, 4, generator=draw).double()) for _ in range(600)
    ]
    share = sum(paired_t2(*pair).distinguished for pair in samples) / len(samples)
    assert 0.03 < share < 0.075
    assert not any(paired_t2(*pair, rule="released").distinguished for pair in samples)


def test_graph_pairs() -> None:
    data = GraphPairs("csl", batch_size=10)
    assert len(data.pairs) == 45
    loaded = list(data.val_dataloader())
    assert [b.num_graphs for b in loaded] == [10] * 9
    labels = torch.cat([b.y for b in loaded])
    assert labels.reshape(-1, 2).tolist() == [[int(p.first.y), int(p.second.y)] for p in data.pairs]
    again = next(iter(data.val_dataloader()))
    assert not torch.equal(again.edge_index, loaded[0].edge_index)  # freshly relabelled
    assert len(list(GraphPairs("atlas", relabelings=2, batch_size=4).train_dataloader())) == 26
    chosen = GraphPairs("constructed", parts=["cfi"], indices=[9, 10])
    assert [(pair.part, pair.index) for pair in chosen.pairs] == [("cfi", 9), ("cfi", 10)]
    counts: dict[str, int] = {}
    for pair in brec():
        counts[pair.part] = counts.get(pair.part, 0) + 1
    assert counts == {
        "Basic": 60, "Regular": 50, "Strongly_Regular": 50, "Extension": 100, "CFI": 100,
        "4-Vertex_Condition": 20, "Distance_Regular": 20,
    }  # fmt: skip


def test_graph_pairs_of_files(tmp_path: Path) -> None:
    import numpy as np

    graphs = [graph for pair in brec(indices=[0, 60]) for graph in (pair.first, pair.second)]
    np.savez(
        tmp_path / "exp.npz",
        x=np.concatenate([np.full(g.num_nodes, i) for i, g in enumerate(graphs)]),
        edge_index=np.concatenate([g.edge_index.numpy() for g in graphs], 1),
        node_ptr=np.cumsum([0, *(g.num_nodes for g in graphs)]),
        edge_ptr=np.cumsum([0, *(g.edge_index.shape[1] for g in graphs)]),
        y=np.array([0, 1, 1, 0]),
    )
    pairs = GraphPairs("exp", tmp_path).pairs
    assert [int(g.y) for pair in pairs for g in pair[:2]] == [0, 1, 1, 0]
    assert pairs[1].first.x.unique().tolist() == [2.0]
    assert pairs[1].first.edge_index.shape == graphs[2].edge_index.shape
    texts = ["A_"] * (64 * 400 - 2)
    np.save(tmp_path / "brec_v3.npy", np.array(["Bw", "BW", *texts]))
    released = GraphPairs("brec", tmp_path / "brec_v3.npy").pairs
    assert len(released) == 400
    assert [released[0].first.edge_index.shape[1], released[0].second.edge_index.shape[1]] == [6, 4]
    assert released[-1].part == "Distance_Regular"
    (tmp_path / "pairs.tsv").write_text("mine\tBw\tBW\n\n")
    assert GraphPairs("file", tmp_path).pairs[0].part == "mine"
    (tmp_path / "pairs.tsv").write_text("mine Bw\n")
    with pytest.raises(ValueError, match="line 1"):
        GraphPairs("file", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "zinc"}, ValueError, "unknown collection 'zinc'; choose from atlas"),
        ({"name": "brec"}, ValueError, "give `root`"),
        ({"name": "brec", "root": "/no/such/folder"}, MissingDataError, "published at github.com/GraphPKU/BREC"),
        ({"name": "constructed", "parts": ["trees"]}, ValueError, "unknown parts"),
        ({"indices": [45]}, ValueError, "indices"),
        ({"batch_size": 3}, ValueError, "even"),
        ({"relabelings": 0}, ValueError, "relabelings"),
    ],
)
def test_bad_collections(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GraphPairs(**arguments)


def test_losses() -> None:
    pair = batch(*named_pair("shrikhande-rook"))
    pair.y = torch.tensor([1, 0])
    module = SeparationModule(random_network())
    output = module(pair)
    expected = torch.nn.functional.cosine_similarity(output[:1], output[1:]).clamp_min(0)
    assert float(module._loss(output, pair)) == pytest.approx(float(expected), abs=1e-6)
    fitted = SeparationModule(KMPNN(1, 1, 4, 1, 1), objective="regression")
    assert float(fitted._loss(torch.tensor([[2.0], [0.0]]), pair)) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="pairs of graphs"):
        module._loss(output[:1], pair)
    for arguments in ({"objective": "ranking"}, {"margin": 2.0}, {"lr": 0.0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            SeparationModule(random_network(), **arguments)


def run(*arguments: str) -> int:
    return main(["fit", "--config", *arguments, "--trainer.enable_progress_bar=false"])


def metrics(folder: Path, key: str) -> list[float]:
    with next(folder.rglob("metrics.csv")).open() as file:
        return [float(row[key]) for row in csv.DictReader(file) if row.get(key)]


@pytest.mark.filterwarnings("ignore")
def test_csl_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("expressiveness/csl", "--trainer.max_epochs=8") == 0
    assert metrics(tmp_path, "val/accuracy")[-1] >= 0.9 - 1e-6  # logged in float32
    assert metrics(tmp_path, "separation/separated") == [45.0]
    assert next(tmp_path.rglob("separation.png")).stat().st_size > 5_000


@pytest.mark.filterwarnings("ignore")
def test_csl_at_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("expressiveness/csl", "--trainer.max_epochs=8", "--model.model.k=1") == 0
    assert metrics(tmp_path, "val/accuracy")[-1] == pytest.approx(0.1)
    assert metrics(tmp_path, "separation/separated") == [0.0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["brec", "exp"])
def test_published_collections_from_the_command_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = REFERENCE
    if name == "exp":
        import numpy as np

        root = tmp_path
        graphs = [graph for pair in brec(indices=[0, 1]) for graph in (pair.first, pair.second)]
        np.savez(
            tmp_path / "exp.npz",
            x=np.ones(sum(g.num_nodes for g in graphs)),
            edge_index=np.concatenate([g.edge_index.numpy() for g in graphs], 1),
            node_ptr=np.cumsum([0, *(g.num_nodes for g in graphs)]),
            edge_ptr=np.cumsum([0, *(g.edge_index.shape[1] for g in graphs)]),
            y=np.array([0, 1, 1, 0]),
        )
    options = [f"--data.root={root}", "--data.indices=[0,1]", "--trainer.max_epochs=1"]
    assert run(f"expressiveness/{name}", *options) == 0
    assert metrics(tmp_path, "separation/separated") == [2.0]

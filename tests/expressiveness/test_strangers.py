"""Graphs and networks as strangers bring them: what is measured is what they mean, or one line says why not."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch_geometric import EdgeIndex
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import GIN, GraphSAGE, global_add_pool
from torch_geometric.transforms import ToSparseTensor

from lit_papers.expressiveness.architectures import architecture
from lit_papers.expressiveness.features import feature_keys, relabel
from lit_papers.expressiveness.graphs import make_graph, named_pair
from lit_papers.expressiveness.kmpnn import KMPNN
from lit_papers.expressiveness.separation import paired_t2, relabelled, separation_power
from lit_papers.expressiveness.tensor_language import ExpressionError, ExpressionModule, evaluate, parse
from lit_papers.expressiveness.weisfeiler_leman import colour_refinement, graph_hash

ALIKE = named_pair("hexagon-triangles")
APART = (make_graph(4, [(0, 1), (1, 2)]), make_graph(4, [(0, 1), (2, 3)]))
BRANCHED = make_graph(5, [(0, 1), (0, 2), (0, 3), (3, 4)])


class Network(nn.Module):
    """A linear layer on what `read` makes of the batch, then two of GIN."""

    def __init__(self, read) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.conv, self.read = nn.Linear(1, 8), GIN(8, 8, 2, 8), read

    def forward(self, data):
        return global_add_pool(self.conv(self.first(self.read(data)), data.edge_index), data.batch)


@pytest.mark.parametrize(
    "read",
    [
        lambda data: data.x.float(),
        lambda data: data.x.to(torch.float32),
        lambda data: data.x.type("torch.FloatTensor"),
        lambda data: nn.functional.one_hot(data.x[:, 0].long(), 2).float()[:, 1:],
        lambda data: torch.ones(len(data.x), 1, dtype=torch.float32),
    ],
)
def test_a_forward_that_asks_for_float32_is_measured_in_float64(read) -> None:
    report = separation_power(Network(read), [ALIKE, APART])
    assert report.status == ("equal", "separated")
    assert separation_power(Network(read), [APART], dtype=torch.float32).status == ("separated",)


def test_a_compiled_network_is_measured() -> None:
    compiled = torch.compile(GIN(1, 8, 2, 8), backend="eager")
    assert separation_power(compiled, [ALIKE, APART], readout="sum").status == ("equal", "separated")


def test_pairs_that_are_made_anew_each_time() -> None:
    class Pairs(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int):
            first, second = ALIKE if index % 2 else (ALIKE[0], ALIKE[0])
            return first.clone(), second.clone()

    torch.manual_seed(0)
    network = KMPNN(2, 1, 16, 16, 4)
    assert separation_power(network, Pairs()).status == ("equal", "separated") * 4  # type: ignore[arg-type]
    assert separation_power(network, (Pairs()[i] for i in range(2))).status == ("equal", "separated")  # type: ignore[arg-type]


def test_the_tests_see_what_is_read_of_a_batch_and_nothing_else() -> None:
    def with_(graph, **more):
        found = graph.clone()
        for key, value in more.items():
            found[key] = value
        return found

    whole = Network(lambda data: data.x + data.u.reshape(-1)[data.batch, None])
    for one, two in (
        (1.0, 2.0),
        (1, 2),
        (torch.tensor(1.0), torch.tensor(2.0)),
        (torch.tensor([1.0]), torch.ones(1) * 2),
    ):
        report = separation_power(whole, [(with_(ALIKE[0], u=one), with_(ALIKE[0], u=two))])
        assert (report.status, report.ceiling) == (("separated",), {"cr": 1})
    plain = Network(lambda data: data.x)
    numbered = with_(ALIKE[0], idx=torch.tensor([3]), name="a"), with_(ALIKE[1], idx=torch.tensor([7]), name="b")
    report = separation_power(plain, [numbered])
    assert (report.status, report.ceiling) == (("equal",), {"cr": 0})  # as of QM9, whose graphs have numbers
    parts = separation_power(
        plain, [numbered], call=lambda model, data: torch.stack([data[i].x.sum(0) for i in range(len(data))])
    )
    assert parts.ceiling == {"cr": 1}
    taken = separation_power(
        plain, [numbered], call=lambda model, data: model(data.__class__.from_dict(data.to_dict()))
    )
    assert taken.ceiling == {"cr": 1}  # who takes everything may read everything
    flags = [torch.arange(6)[:, None] < count for count in (1, 2)]
    report = separation_power(Network(lambda data: data.x.double()), [tuple(with_(ALIKE[0], x=flag) for flag in flags)])
    assert (report.status, report.ceiling) == (("separated",), {"cr": 1})
    ids = [torch.tensor([[2**53 + i] for i in (0, 0, 0, 0, 0, end)]) for end in (0, 1)]
    report = separation_power(
        Network(lambda data: (data.x - 2**53).double()), [tuple(with_(ALIKE[0], x=rows) for rows in ids)]
    )
    assert (report.status, report.ceiling) == (("separated",), {"cr": 1})


def test_a_network_that_looks_at_the_order_of_edges_is_unreliable() -> None:
    class Last(nn.Module):
        def forward(self, data):
            degree = torch.bincount(data.edge_index[0], minlength=len(data.x)).to(data.x)
            found = torch.zeros_like(data.x)
            for source, target in data.edge_index.T.tolist():  # the last one counts, where all should
                found[target] = degree[source]
            return global_add_pool(found, data.batch)

    other = BRANCHED.clone()
    other.edge_index = BRANCHED.edge_index.flip(1)
    assert separation_power(Last(), [(BRANCHED, other)]).status == ("unreliable",)


def test_relabelling_keeps_what_networks_rely_on() -> None:
    draw = torch.Generator().manual_seed(0)
    graph = BRANCHED.clone()
    both = torch.tensor([[0, 1, 0, 2, 3, 0, 4, 3], [1, 0, 2, 0, 0, 3, 3, 4]])
    by_target = BRANCHED.edge_index.flip(0)
    for index in (both, by_target, BRANCHED.edge_index, both[:, torch.randperm(8, generator=draw)]):
        graph.edge_index, graph.edge_attr = index, (index[0] * 10 + index[1]).float()[:, None]
        graph.tree_edge_index, graph.face = torch.tensor([[0, 3], [4, 1]]), torch.tensor([[0], [3], [4]])
        graph.edge_index = EdgeIndex(index, sparse_size=(5, 5)) if index is both else index
        for _ in range(5):
            twin, place = relabel(graph, draw)
            old = torch.argsort(place)
            before = old[twin.edge_index]
            assert torch.equal(twin.edge_attr[:, 0], (before[0] * 10 + before[1]).float())
            assert sorted(before.T.tolist()) == sorted(index.T.tolist())
            if index is both:
                assert torch.equal(twin.edge_index[:, ::2], twin.edge_index[:, 1::2].flip(0))
            if index is by_target or index is BRANCHED.edge_index:
                keys = twin.edge_index[int(index is by_target)]
                assert bool((keys[1:] >= keys[:-1]).all())
            assert torch.equal(old[twin.tree_edge_index], graph.tree_edge_index)
            assert torch.equal(old[twin.face], graph.face)
    assert feature_keys(graph) == ["x", "edge_attr"]
    sorted_by_target = BRANCHED.clone()
    sorted_by_target.edge_index = by_target
    lstm = GraphSAGE(1, 4, 1, 4, aggr="lstm")  # refuses edges that are not sorted
    assert (
        separation_power(lstm, [(sorted_by_target, relabelled(sorted_by_target, draw))], readout="sum").num_separated
        == 0
    )


def test_other_forms_of_edges() -> None:
    class Sparse(nn.Module):
        def forward(self, data):
            return global_add_pool(torch.tanh(data.adj_t.to_dense() @ data.x), data.batch)

    sparse = ToSparseTensor(remove_edge_index=False, layout=torch.sparse_csr)
    assert separation_power(Sparse(), [APART, ALIKE], transform=sparse).status == ("separated", "equal")
    with pytest.raises(ValueError, match=r"adj_t is a sparse matrix.*transform="):
        separation_power(Sparse(), [tuple(sparse(graph.clone()) for graph in APART)])
    with pytest.raises(ValueError, match="to_homogeneous"):
        separation_power(Sparse(), [(HeteroData(), HeteroData())])
    with pytest.raises(ValueError, match="edges are held in adj_t"):
        separation_power(Sparse(), [tuple(ToSparseTensor(layout=torch.sparse_csr)(graph.clone()) for graph in APART)])


@pytest.mark.parametrize("weight", ["", "*P0(a)"])
def test_counts_are_differences_of_large_numbers(weight: str) -> None:
    star = make_graph(301, [(0, i) for i in range(1, 301)])  # no path of 4, and 300^3 walks of 4
    names = "abcde"
    edges = "*".join(f"E({x},{y})" for x, y in itertools.pairwise(names))
    apart = "*".join(f"1[{x}!={y}]" for x, y in itertools.combinations(names, 2))
    found = evaluate(parse(f"sum[{','.join(names)}]({edges}*{apart}{weight})"), star)
    assert (found.dtype, found.item()) == (torch.float32, 0.0)


@pytest.mark.parametrize("name", ["update", "values", "type", "train"])
def test_functions_of_any_name(name: str) -> None:
    layer = nn.Linear(1, 2)
    module = ExpressionModule(f"{name}(P(x))", {name: layer})
    assert torch.equal(module(BRANCHED), layer(BRANCHED.x))
    assert len(list(module.parameters())) == 2


def test_deep_expressions_are_copied() -> None:
    module = ExpressionModule(architecture("gcn", layers=150).expression, {})
    assert copy.deepcopy(module).expression == module.expression


def test_matrices_of_directed_graphs() -> None:
    ring = Data(edge_index=torch.tensor([[0, 1, 2], [1, 2, 0]]), num_nodes=3)
    assert evaluate(parse("M[walk3](x,x)"), ring).flatten().tolist() == [1.0, 1.0, 1.0]
    for name in ("resistance", "spectral1"):
        with pytest.raises(ValueError, match=f"M.{name}. is of undirected graphs"):
            evaluate(parse(f"M[{name}](x,x)"), ring)


def test_features_that_float64_would_round_are_different_colours() -> None:
    def one(rows):
        return Data(edge_index=torch.zeros(2, 0, dtype=torch.int64), x=torch.tensor(rows), num_nodes=2)

    for rows in ([[2**53], [2**53 + 1]], [[1 + 1j], [1 + 0j]]):
        assert colour_refinement(one(rows)).num_classes == 2
    assert graph_hash(one([[7], [2]]), "cr") == graph_hash(one([[7.0], [2.0]]), "cr")
    mixed = one([[1.0], [2.0]])
    mixed.batch = torch.tensor([1, 0])
    with pytest.raises(ValueError, match="batch is not sorted"):
        graph_hash(mixed, "cr")


@pytest.mark.parametrize("text", ["P(x)^²", "E[²](x,y)", "P²(x)", "1/1e-320"])
def test_numbers_that_are_none(text: str) -> None:
    with pytest.raises(ExpressionError, match="at position"):
        parse(text)


def test_embeddings_that_say_nothing_are_refused() -> None:
    rows = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
    for left, options, message in (
        (rows * torch.nan, {}, "must be finite"),
        (rows * torch.inf, {"rule": "released"}, "must be finite"),
        (rows, {"alpha": 5}, "alpha must lie between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            paired_t2(left, rows, **options)
    with pytest.raises(ValueError, match="at least two relabelings"):
        paired_t2(rows[:1], rows[:1], rule="released")
    whole = torch.arange(32)[:, None] % 3
    assert paired_t2(whole, whole.roll(1)).statistic == paired_t2(whole.double(), whole.roll(1).double()).statistic

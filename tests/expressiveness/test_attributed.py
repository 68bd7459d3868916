"""Graphs with edge features, relations, directions and parallel edges; and values on what is there alone."""

import pytest
import torch
from torch import nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import GINEConv, RGCNConv

from lit_papers.expressiveness.architectures import architecture
from lit_papers.expressiveness.graphs import make_graph
from lit_papers.expressiveness.separation import relabelled
from lit_papers.expressiveness.tensor_language import ExpressionModule, evaluate, parse
from lit_papers.expressiveness.weisfeiler_leman import colour_refinement, graph_hash, is_equitable
from tests.expressiveness.small import batch
from tests.expressiveness.test_soundness import ATTRIBUTED, multigraph

TESTS = ("cr", "1-fwl", "2-fwl", "2-owl", "3-owl")
EDGES = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])


def two_edges(**attributes: torch.Tensor) -> Data:
    return Data(edge_index=EDGES, num_nodes=4, x=torch.ones(4, 1), **attributes)


@pytest.mark.parametrize("test", TESTS)
def test_what_edges_carry_is_seen(test: str) -> None:
    one = torch.ones(4, 1)
    other = torch.tensor([[1.0], [1], [2], [2]])
    graphs = {
        "plain": two_edges(),
        "alike": two_edges(edge_attr=one),
        "features": two_edges(edge_attr=other),
        "weights": two_edges(edge_weight=other[:, 0]),
        "relations": two_edges(edge_type=other[:, 0].long()),
        "parallel": Data(edge_index=torch.cat([EDGES, EDGES[:, :2]], 1), num_nodes=4, x=torch.ones(4, 1)),
        "directed": Data(edge_index=EDGES[:, ::2], num_nodes=4, x=torch.ones(4, 1)),
        "loop": Data(edge_index=torch.cat([EDGES, torch.tensor([[0], [0]])], 1), num_nodes=4, x=torch.ones(4, 1)),
    }
    hashes = {name: int(graph_hash(graph, test)) for name, graph in graphs.items()}
    assert len(set(hashes.values())) == len(graphs)
    twice = two_edges(edge_attr=torch.tensor([[2.0], [2], [1], [1]]))
    assert int(graph_hash(twice, test)) == hashes["features"]


@pytest.mark.parametrize("test", TESTS)
def test_attributed_hashes_are_of_the_graph_alone(test: str) -> None:
    together = graph_hash(ATTRIBUTED, test)
    draw = torch.Generator().manual_seed(0)
    for index in range(0, ATTRIBUTED.num_graphs, 6):
        graph = ATTRIBUTED[index]
        assert graph_hash(graph, test)[0] == together[index]
        assert graph_hash(relabelled(graph, draw), test)[0] == together[index]
        order = torch.randperm(graph.num_edges, generator=draw)
        shuffled = graph.clone()
        for key in ("edge_type", "edge_attr"):
            shuffled[key] = shuffled[key][order]
        shuffled.edge_index = shuffled.edge_index[:, order]
        assert graph_hash(shuffled, test)[0] == together[index]


def test_attributed_colours_are_equitable() -> None:
    found = colour_refinement(ATTRIBUTED)
    assert is_equitable(ATTRIBUTED, found.colours)
    plain = ATTRIBUTED.clone()
    plain.edge_attr = plain.edge_type = None
    assert colour_refinement(plain).num_classes <= found.num_classes


def test_heterogeneous_graphs_and_other_forms() -> None:
    hetero = HeteroData()
    hetero["a"].x, hetero["b"].x = torch.ones(2, 1), torch.ones(2, 1)
    hetero["a", "to", "b"].edge_index = torch.tensor([[0, 1], [0, 1]])
    with pytest.raises(ValueError, match=r"to_homogeneous\(\)"):
        graph_hash(hetero, "cr")
    assert colour_refinement(hetero.to_homogeneous()).num_classes == 2  # by type, though features are the same
    with pytest.raises(ValueError, match="adj_t"):
        graph_hash(Data(adj_t=torch.eye(2).to_sparse(), num_nodes=2), "cr")
    with pytest.raises(ValueError, match="edge_attr has 3 rows, but there are 4 edges"):
        graph_hash(two_edges(edge_attr=torch.ones(3, 1)), "cr")
    with pytest.raises(ValueError, match="edge_attr has NaN"):
        graph_hash(two_edges(edge_attr=torch.full((4, 1), torch.nan)), "cr")


def attributed(count: int = 6) -> Data:
    graphs = [multigraph(seed) for seed in range(count)]
    for graph in graphs:  # PyG's layers take each parallel edge for itself, the language one pair of nodes
        pair, first = torch.unique(graph.edge_index, dim=1, return_inverse=True)
        kept = torch.stack([(first == i).nonzero()[0, 0] for i in range(pair.shape[1])])
        graph.edge_index, graph.edge_type = graph.edge_index[:, kept], graph.edge_type[kept]
        graph.edge_attr = graph.edge_attr[kept] + 0.5
    return batch(*graphs)


def test_gine_and_rgcn_are_pygs() -> None:
    torch.manual_seed(0)
    graphs, mlp = attributed(), nn.Linear(1, 3).double()
    gine = GINEConv(mlp, edge_dim=1).double()
    found = evaluate(architecture("gine").expression, graphs, {"mlp1": mlp, "edge1": gine.lin})
    torch.testing.assert_close(found, gine(graphs.x, graphs.edge_index, graphs.edge_attr), rtol=1e-12, atol=1e-12)
    conv = RGCNConv(1, 3, num_relations=2).double()
    functions = {f"relation1_{r}": lambda values, r=r: values @ conv.weight[r] for r in range(2)}
    functions["self1"] = lambda values: values @ conv.root + conv.bias
    found = evaluate(architecture("rgcn").expression, graphs, functions)
    expected = conv(graphs.x, graphs.edge_index, graphs.edge_type).relu()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_edge_atoms() -> None:
    pair = Data(edge_index=torch.tensor([[0, 0, 1], [1, 1, 0]]), num_nodes=2, x=torch.ones(2, 1))
    pair.edge_attr, pair.edge_type = torch.tensor([[2.0], [3.0], [7.0]]), torch.tensor([0, 1, 0])
    matrices = {
        "E(x,y)": [[0, 2], [1, 0]], "E[1](x,y)": [[0, 1], [0, 0]], "Q0(x,y)": [[0, 5], [7, 0]],
        "Q(y,x)": [[0, 7], [5, 0]],
    }  # fmt: skip
    for text, expected in matrices.items():
        assert evaluate(parse(text), pair)[0, :, :, 0].tolist() == expected
    sums = {
        "sum[y|E(x,y)](Q(x,y))": [10, 7], "sum[y](Q(x,y))": [5, 7], "mean[y|E(x,y)](Q(x,y))": [5, 7],
        "sum[y|E[0](y,x)](P(y))": [1, 1], "max[y|E[1](x,y)](Q(x,y)*P(y))": [5, 0], "sum[y|E(y,x)](E(x,y))": [2, 2],
    }  # fmt: skip
    for text, expected in sums.items():
        assert evaluate(parse(text), pair).flatten().tolist() == expected, text


SMALL, LARGE = make_graph(2, [(0, 1)]), make_graph(3, [(0, 1), (1, 2)])


@pytest.mark.parametrize(
    "text",
    [
        "sum[v](sqrt(lin(P(v))))",
        "mean[v](sqrt(lin(P(v))))",
        "max[v](sqrt(lin(P(v))))",
        "sum[v](sum[w|E(v,w)](sqrt(lin(P(w)))))",
        "sum[v](sum[w](1[v!=w]*sqrt(lin(P(w)))))",
        "sum[v,w](sqrt(lin(P(v)) + E(v,w)))",
        "sum[v](inv(lin(P(v)) - 2)*P(v)/lin(P(v)))",
    ],
)
def test_functions_see_no_padding(text: str) -> None:
    lin = nn.Linear(1, 1)
    nn.init.constant_(lin.bias, -1.0)
    nn.init.constant_(lin.weight, 4.0)  # -1 wherever x is 0
    module = ExpressionModule(text, {"lin": lin})
    out = module(batch(SMALL, LARGE))
    torch.testing.assert_close(out, torch.cat([module(SMALL), module(LARGE)]))
    out.sum().backward()
    assert lin.weight.grad is not None
    assert lin.weight.grad.isfinite().all()


@pytest.mark.parametrize("text", ["f(P(x))", "sum[y|E(x,y)](f(P(y)))", "f(sum[y](E(x,y)*P(y)))"])
@pytest.mark.parametrize("channels", [3, 4])
def test_batch_norm_is_over_nodes(text: str, channels: int) -> None:
    both = batch(SMALL, LARGE)
    both.x = torch.arange(5.0)[:, None]
    norm = nn.Sequential(nn.Linear(1, channels), nn.BatchNorm1d(channels))
    adjacency = torch.zeros(5, 5)
    adjacency[both.edge_index[0], both.edge_index[1]] = 1
    expected = {
        "f(P(x))": lambda: norm(both.x),
        "sum[y|E(x,y)](f(P(y)))": lambda: adjacency @ norm(both.x),
        "f(sum[y](E(x,y)*P(y)))": lambda: norm(adjacency @ both.x),
    }[text]()
    torch.testing.assert_close(ExpressionModule(text, {"f": norm})(both), expected)


def test_a_large_graph_does_not_pad_the_small_ones() -> None:
    large = make_graph(300, [(i, i + 1) for i in range(299)])
    many = batch(large, *[SMALL] * 500)
    text = "sum[v,w](E(v,w)*f(P(v), P(w)))"
    found = evaluate(parse(text), many, {"f": torch.add}, max_elements=300**2 + 500 * 4)
    assert found.flatten().tolist() == [2 * 2 * 299] + [4.0] * 500

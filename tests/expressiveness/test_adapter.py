"""Real models, measured: encodings, edge features, nodes and edges, and how a stranger's model is called."""

import pytest
import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import GIN, GINEConv, SchNet, global_add_pool
from torch_geometric.transforms import AddLaplacianEigenvectorPE, AddRandomWalkPE

from lit_papers.expressiveness.adapter import GraphCall
from lit_papers.expressiveness.features import snap
from lit_papers.expressiveness.graphs import atlas, csl, make_graph, named_pair
from lit_papers.expressiveness.kmpnn import KMPNN, recalibrate
from lit_papers.expressiveness.ppgn import PPGN
from lit_papers.expressiveness.separation import (
    PlacedPair,
    edge_pairs,
    pair_ceilings,
    relabelled,
    separation_power,
    vertex_pairs,
)
from tests.expressiveness.small import batch, featured

WALKS = AddRandomWalkPE(8, attr_name=None)
LAPLACIAN = AddLaplacianEigenvectorPE(3, attr_name=None, is_undirected=True)


def isomorphic(count: int = 12) -> list[tuple[Data, Data]]:
    draw = torch.Generator().manual_seed(5)
    return [(g, relabelled(g, draw)) for g in [g for g in atlas() if g.num_nodes == 7][300 : 300 + count]]


def gin(channels: int) -> GIN:
    torch.manual_seed(0)
    return GIN(channels, 16, 3, 16)


@pytest.mark.parametrize("given", [True, False])
def test_encodings_do_not_separate_isomorphic_graphs(given: bool) -> None:
    pairs = [(WALKS(a), WALKS(b)) for a, b in isomorphic()] if given else isomorphic()
    options = {} if given else {"transform": WALKS}
    report = separation_power(gin(9), pairs, readout="sum", tests=("cr", "2-fwl"), **options)
    assert report.num_separated == 0
    assert report.ceiling == {"cr": 0, "2-fwl": 0}
    assert report.controls.shape == (12,)
    assert float(report.controls.max()) < 100


def test_signs_of_eigenvectors_make_a_model_unreliable() -> None:
    report = separation_power(
        gin(4),
        [*isomorphic(), named_pair("decalin-bicyclopentyl")],
        readout="sum",
        tests=("2-fwl",),
        transform=LAPLACIAN,
    )
    assert report.num_separated == 0
    assert report.num_unreliable > 6
    assert report.status[-1] == "unreliable"


def test_encodings_separate_what_two_folklore_does() -> None:
    pairs = [named_pair("decalin-bicyclopentyl"), named_pair("shrikhande-rook"), (csl(11, 2), csl(11, 3))]
    report = separation_power(gin(9), pairs, readout="sum", tests=("cr", "2-fwl"), transform=WALKS)
    assert report.status == ("separated", "equal", "separated")
    assert report.exceeds == {"cr": (), "2-fwl": ()}  # the tests see the encodings
    assert pair_ceilings(pairs, ["cr"])["cr"] == [False, False, False]


def test_features_are_joined_up_to_rounding() -> None:
    graphs = [make_graph(3, []) for _ in range(2)]
    graphs[0].x = torch.tensor([[0.1], [0.2], [0.7]])
    graphs[1].x = torch.tensor([[0.2 + 2e-8], [0.1], [0.7 + 1e-7]])
    snap(graphs)
    assert sorted(graphs[0].x.flatten().tolist()) == sorted(graphs[1].x.flatten().tolist())
    apart = [make_graph(1, []), make_graph(1, [])]
    apart[1].x = torch.full((1, 1), 1.001)
    snap(apart)
    assert float(apart[1].x - apart[0].x) > 5e-4


EDGES = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])


def graph(attributes=None, index=EDGES) -> Data:
    edge_attr = None if attributes is None else torch.tensor(attributes)[:, None]
    return Data(edge_index=index, num_nodes=4, x=torch.ones(4, 1), edge_attr=edge_attr)


class Gine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = GINEConv(nn.Linear(1, 8), edge_dim=1)

    def forward(self, data):
        return global_add_pool(self.conv(data.x, data.edge_index, data.edge_attr), data.batch)


def test_the_tests_see_what_the_model_sees() -> None:
    torch.manual_seed(2)
    features = (graph([1.0, 1, 1, 1]), graph([1.0, 1, 2, 2]))
    report = separation_power(Gine(), [features], tests=("cr", "2-fwl"))
    assert report.status == ("separated",)
    assert report.ceiling == {"cr": 1, "2-fwl": 1}
    doubled = (graph(), graph(index=torch.cat([EDGES, EDGES[:, :2]], 1)))
    report = separation_power(GIN(1, 8, 2, 8), [doubled], tests=("cr", "2-fwl"), readout="sum")
    assert not any(report.exceeds.values())
    only_x = separation_power(PerNode(), [(graph([1.0, 1, 1, 1]), graph([1.0, 1, 2, 2]))], tests=("cr",), readout="sum")
    assert only_x.ceiling == {"cr": 0}  # it takes no edge_attr


class PerNode(nn.Module):
    """A layer by hand, with tensors that it makes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 4)

    def forward(self, x, edge_index):
        out = self.linear(x) + torch.ones(len(x), 4)
        return out.index_add(0, edge_index[0], self.linear(x)[edge_index[1]]).tanh()


class OfNodes(nn.Module):
    def __init__(self, model: nn.Module, level: str) -> None:
        super().__init__()
        self.model, self.level = model, level

    def forward(self, x, edge_index):
        h = self.model(x, edge_index)
        return h if self.level == "vertex" else torch.cat([h[edge_index[0]], h[edge_index[1]]], 1)


@pytest.mark.parametrize("level", ["vertex", "edge"])
def test_nodes_and_edges(level: str) -> None:
    path = make_graph(5, [(i, i + 1) for i in range(4)])
    pairs = (vertex_pairs if level == "vertex" else edge_pairs)([path])
    report = separation_power(OfNodes(gin(1), level), pairs, level=level, tests=("cr", "2-fwl"))
    assert report.num_unreliable == 0
    assert report.num_separated == report.ceiling["cr"] == report.ceiling["2-fwl"]
    alike = {pair.at for pair, status in zip(pairs, report.status, strict=True) if status == "equal"}
    if level == "vertex":
        assert alike == {(0, 4), (1, 3)}  # the two ends, and what is next to them
    else:
        assert len(alike) == 4
    hexagon, triangles = named_pair("hexagon-triangles")
    at = (0, 0) if level == "vertex" else ((0, 1), (0, 1))
    report = separation_power(
        OfNodes(gin(1), level), [PlacedPair(hexagon, triangles, at)], level=level, tests=("cr", "2-fwl")
    )
    assert report.status == ("equal",)
    assert report.ceiling == {"cr": 0, "2-fwl": 1}


def test_how_models_are_called() -> None:
    pair = named_pair("hexagon-triangles")

    class Rows(nn.Module):  # output (B,)
        def forward(self, data):
            return data.x.new_zeros(data.num_graphs)

    assert separation_power(Rows(), [pair]).status == ("equal",)
    wide = GIN(7, 8, 2, 4)
    with pytest.raises(ValueError, match=r"cannot be called on these graphs \(RuntimeError: .*call="):
        separation_power(wide, [pair], readout="sum")

    def call(model, batch):
        return global_add_pool(model(batch.x.expand(-1, 7), batch.edge_index), batch.batch)

    assert separation_power(wide, [pair], call=call).status == ("equal",)
    with pytest.raises(ValueError, match="needs 'z', which the graphs do not have"):
        separation_power(SchNet(8, 8, 1, 4), [pair])
    for options, message in (
        ({"level": "tuple"}, "level must be"),
        ({"level": "vertex", "readout": "sum"}, "readout is for level='graph'"),
        ({"level": "vertex"}, "needs pairs with `at`"),
    ):
        with pytest.raises(ValueError, match=message):
            separation_power(gin(1), [pair], **options)
    reads = GraphCall(readout="sum").reads(gin(1), batch(*pair))
    assert reads == {"x", "edge_index"}


def test_ppgn_is_invariant_and_learns_to_separate() -> None:
    torch.manual_seed(0)
    graphs = featured(5, channels=1)
    network = PPGN(1, 8, 4, 2).double().eval()
    together = network(graphs)
    draw = torch.Generator().manual_seed(1)
    for index in range(graphs.num_graphs):
        torch.testing.assert_close(network(relabelled(graphs[index], draw)), together[index : index + 1])
    network = PPGN(1, 8, 2, 2)
    pair = batch(*named_pair("decalin-bicyclopentyl"))
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(25):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(pair), torch.tensor([0, 1])).backward()
        optimizer.step()
    recalibrate(network, [pair])
    assert network.training
    assert network.eval()(pair).argmax(1).tolist() == [0, 1]
    with pytest.raises(ValueError, match="num_layers"):
        PPGN(1, 8, 2, 0)


def test_recalibrated_statistics_are_those_of_the_batches() -> None:
    torch.manual_seed(0)
    network = KMPNN(2, 1, 8, 3, 2, batch_norm=True)
    network.layers[1].eval()
    pair = batch(*named_pair("decalin-bicyclopentyl"), *named_pair("hexagon-triangles"))
    weights = {name: value.clone() for name, value in network.named_parameters()}
    recalibrate(network, [pair])
    assert network.training
    assert not network.layers[1].training
    torch.testing.assert_close(dict(network.named_parameters()), weights)
    network.train()
    in_training = network(pair)
    torch.testing.assert_close(network.eval()(pair), in_training, rtol=1e-2, atol=1e-2)
    assert [norm.momentum for norm in network.modules() if isinstance(norm, nn.BatchNorm1d)] == [0.1] * 3

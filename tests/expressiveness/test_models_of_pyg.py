"""Every model of ``torch_geometric.nn.models``: what it separates, and what its expression says that it can.

``pytest tests/expressiveness/test_models_of_pyg.py -m slow -s`` prints the table of the README. All have three layers
of width 16, untrained, in float64, nodes without features, and a sum over the nodes for readout unless they have their
own.
"""

import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GINConv, models
from torch_geometric.nn.models import dimenet, gnnff, gpse, schnet, visnet

from lit_papers.expressiveness.adapter import Readout
from lit_papers.expressiveness.architectures import architecture
from lit_papers.expressiveness.bounds import Bound
from lit_papers.expressiveness.graphs import atlas, make_graph
from lit_papers.expressiveness.separation import SeparationReport, pair_ceilings, separation_power
from lit_papers.expressiveness.tensor_language import Aggregate, Edge, Expression, Function, Matrix, bound, parse
from lit_papers.expressiveness.weisfeiler_leman import graph_hash
from lit_papers.reproduce.measured import Cell
from tests.expressiveness.small import batch
from tests.measuring import Keep

WIDTH, LAYERS, CLASSES = 16, 3, 2


@dataclass(frozen=True)
class Row:
    """A model and how it is called.

    Attributes:
        build: makes it.
        expression: the architecture of ours that it is, with options, or an expression; None where it has none.
        readout: as for `separation_power`.
        call: likewise.
        transform: likewise.
        layers: of the architecture.
    """

    build: Callable[[], nn.Module]
    expression: str | tuple[str, dict[str, Any]] | Expression | None = None
    readout: Readout | None = "sum"
    call: Callable[[Any, Any], Tensor] | None = None
    transform: Callable[[Data], Data] | None = None
    layers: int = LAYERS

    def bound(self) -> Bound | None:
        if self.expression is None or isinstance(self.expression, Expression):
            return self.expression and bound(self.expression)
        name, options = (self.expression, {}) if isinstance(self.expression, str) else self.expression
        return architecture(name, layers=self.layers, readout=True, **options).bound


def gin() -> nn.Module:
    return models.GIN(1, WIDTH, LAYERS, WIDTH)


def perceptron(inputs: int, outputs: int = WIDTH) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, outputs))


class Gaussian(nn.Module):
    """An encoder for variational autoencoders."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.scale = gin(), gin()

    def forward(self, x, edge_index):
        return self.mean(x, edge_index), self.scale(x, edge_index)


class Meta(nn.Module):
    """Two layers with a model of edges, of nodes and of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            models.MetaLayer(OfEdges(inputs), OfNodes(inputs), OfGraph(inputs)) for inputs in (1, WIDTH)
        )

    def forward(self, data):
        u = torch.ones(data.num_graphs, 1, dtype=data.x.dtype)
        x, edges = data.x, torch.ones(data.num_edges, 1, dtype=data.x.dtype)
        for layer in self.layers:
            x, edges, u = layer(x, data.edge_index, edges, u, data.batch)
        return u


class OfEdges(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.network = perceptron(4 * inputs)

    def forward(self, source, target, edges, u, of):
        return self.network(torch.cat([source, target, edges, u[of]], 1))


class OfNodes(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.network = perceptron(2 * inputs + WIDTH)

    def forward(self, x, edge_index, edges, u, of):
        around = x.new_zeros(len(x), WIDTH).index_add(0, edge_index[1], edges)
        return self.network(torch.cat([x, around, u[of]], 1))


class OfGraph(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.network = perceptron(inputs + WIDTH)

    def forward(self, x, edge_index, edges, u, of):
        return self.network(torch.cat([u, x.new_zeros(len(u), WIDTH).index_add(0, of, x)], 1))


class Stack(nn.Module):
    """Layers that keep the width."""

    def __init__(self, layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first = nn.Linear(1, WIDTH)
        self.layers = nn.ModuleList(layer() for _ in range(LAYERS))

    def forward(self, x, edge_index):
        x = self.first(x)
        for layer in self.layers:
            x = layer(x, edge_index)
        return x


def reversible() -> nn.Module:
    return models.GroupAddRev(GINConv(perceptron(WIDTH // 2, WIDTH // 2)), num_groups=2, disable=True)


def random_encoder() -> nn.Module:
    """As `GPSE.from_pretrained` returns it, but for the weights."""
    model = models.GPSE(dim_inner=WIDTH, layers_mp=LAYERS, virtual_node=False)
    model.post_mp = gpse.IdentityHead()
    return model


def infomax() -> nn.Module:
    return models.DeepGraphInfomax(WIDTH, gin(), lambda z, *_: z.mean(0), lambda x, edge_index: (x, edge_index))


def of_each(call: Callable[[Any, Data], Tensor]) -> Callable[[Any, Any], Tensor]:
    """Calls a model that has a row for each node of one graph, graph by graph."""
    return lambda model, graphs: torch.cat([call(model, graph) for graph in graphs.to_data_list()])


def encode(model: Any, graphs: Any) -> Tensor:
    return model.encode(graphs.x, graphs.edge_index)  # type: ignore[no-any-return]


def pagerank(graph: Data, stay: float = 0.15) -> Tensor:
    n = graph.num_nodes
    adjacency = torch.zeros(n, n).index_put((graph.edge_index[0], graph.edge_index[1]), torch.tensor(1.0))
    steps = adjacency / adjacency.sum(1, keepdim=True).clamp_min(1)
    return stay * torch.linalg.inv(torch.eye(n) - (1 - stay) * steps)


def of_links() -> Expression:
    """A score of each edge from the personal page rank that its two ends give to each node."""
    ends = [part for end in "xy" for part in (Matrix("pagerank", end, "z", order=2), Edge(end, "z"))]
    score = Function("score", (Aggregate("sum", "z", Function("attention", tuple(ends))),))
    return Aggregate("sum", "x", Aggregate("sum", "y", score, Edge("x", "y")))


def links(model: Any, graph: Data) -> Tensor:
    scores = model(graph.edge_index, graph.x, graph.edge_index, pagerank(graph).to_sparse())
    return scores.sum(0, keepdim=True)  # type: ignore[no-any-return]


def scores_of_edges(model: Any, graphs: Any) -> Tensor:
    scores = model(graphs.x, graphs.edge_index)
    return scores.new_zeros(graphs.num_graphs).index_add(0, graphs.batch[graphs.edge_index[0]], scores)  # type: ignore[no-any-return]


def corrected(model: Any, graphs: Any) -> Tensor:
    soft = torch.full((graphs.num_nodes, CLASSES), 1 / CLASSES, dtype=graphs.x.dtype)
    truth = torch.zeros(graphs.num_nodes, dtype=torch.int64)
    return model(soft, truth, torch.ones(graphs.num_nodes, dtype=torch.bool), graphs.edge_index)  # type: ignore[no-any-return]


def encoded(model: Any, graphs: Any) -> Tensor:
    graphs.y = graphs.x
    return model(graphs)[0]  # type: ignore[no-any-return]


def random_features(graph: Data) -> Data:
    graph.x = torch.randn(graph.num_nodes, 20)
    return graph


def signed(model: Any, graphs: Any) -> Tensor:
    return model(graphs.x.expand(-1, WIDTH), graphs.edge_index, graphs.edge_index[:, :0])  # type: ignore[no-any-return]


def geometric(model: Any, graphs: Any) -> Tensor:
    found = model(graphs.z, graphs.pos, graphs.batch)
    return found[0] if isinstance(found, tuple) else found


def lengths_of_forces(model: Any, graphs: Any) -> Tensor:
    return geometric(model, graphs).norm(dim=1)


GRAPHS: dict[str, Row] = {
    "MLP": Row(
        lambda: models.MLP([1, WIDTH, WIDTH], norm=None), parse("sum[x](mlp(P(x)))"), call=lambda model, g: model(g.x)
    ),
    "GCN": Row(lambda: models.GCN(1, WIDTH, LAYERS), "gcn"),
    "GraphSAGE": Row(lambda: models.GraphSAGE(1, WIDTH, LAYERS), "sage"),
    "GIN": Row(gin, "gin"),
    "GIN with JumpingKnowledge": Row(lambda: models.GIN(1, WIDTH, LAYERS, jk="cat"), "gin"),
    "GAT": Row(lambda: models.GAT(1, WIDTH, LAYERS), "gat"),
    "PNA": Row(
        lambda: models.PNA(
            1, WIDTH, LAYERS, aggregators=["mean", "std", "max", "min"], scalers=["identity", "amplification"],
            deg=torch.tensor([0, 5, 9, 8, 3, 1, 1]),
        ),
        "pna",
    ),
    "EdgeCNN": Row(lambda: models.EdgeCNN(1, WIDTH, LAYERS), ("sage", {"aggr": "max"})),
    "MetaLayer": Row(Meta, "egin", readout=None, layers=2),
    "DeepGraphInfomax of GIN": Row(infomax, "gin", call=lambda model, g: model(g.x, g.edge_index)[0]),
    "GAE of GIN": Row(lambda: models.GAE(gin()), "gin", call=encode),
    "VGAE of GIN": Row(lambda: models.VGAE(Gaussian()), "gin", call=encode),
    "ARGA of GIN": Row(lambda: models.ARGA(gin(), perceptron(WIDTH, 1)), "gin", call=encode),
    "ARGVA of GIN": Row(lambda: models.ARGVA(Gaussian(), perceptron(WIDTH, 1)), "gin", call=encode),
    "SignedGCN": Row(lambda: models.SignedGCN(WIDTH, WIDTH, LAYERS), ("rgcn", {"relations": 2}), call=signed),
    "GraphUNet": Row(lambda: models.GraphUNet(1, WIDTH, WIDTH, depth=2)),
    "GPSE": Row(random_encoder, call=encoded, transform=random_features),
    "DeepGCNLayer of GINConv": Row(
        lambda: Stack(lambda: models.DeepGCNLayer(GINConv(perceptron(WIDTH)), nn.LayerNorm(WIDTH), nn.ReLU())), "gin"
    ),
    "GroupAddRev of GINConv": Row(lambda: Stack(reversible), "gin", layers=2 * LAYERS),
    "LabelPropagation": Row(
        lambda: models.LabelPropagation(LAYERS, 0.5), "gcn",
        call=lambda model, g: model(g.x.expand(-1, CLASSES) / CLASSES, g.edge_index),
    ),
    "CorrectAndSmooth": Row(
        lambda: models.CorrectAndSmooth(2, 0.5, 2, 0.5, autoscale=False), "gcn", call=corrected, layers=4
    ),
    "AttentiveFP": Row(
        lambda: models.AttentiveFP(1, WIDTH, WIDTH, 1, LAYERS, 2), "gat", readout=None,
        call=lambda model, g: model(g.x, g.edge_index, torch.ones(g.num_edges, 1, dtype=g.x.dtype), g.batch),
    ),
    "RECT_L": Row(lambda: models.RECT_L(1, WIDTH), "gcn", layers=1),
    "LINKX": Row(
        lambda: models.LINKX(7, 1, WIDTH, WIDTH, LAYERS), call=of_each(lambda model, g: model(g.x, g.edge_index))
    ),
    "LightGCN": Row(
        lambda: models.LightGCN(7, WIDTH, LAYERS), call=of_each(lambda model, g: model.get_embedding(g.edge_index))
    ),
    "PMLP": Row(lambda: models.PMLP(1, WIDTH, WIDTH, LAYERS, norm=False), "gcn"),
    "NeuralFingerprint": Row(lambda: models.NeuralFingerprint(1, WIDTH, WIDTH, LAYERS), "basic", readout=None),
    "LPFormer": Row(lambda: models.LPFormer(1, WIDTH), of_links(), readout=None, call=of_each(links)),
    "SGFormer": Row(lambda: models.SGFormer(1, WIDTH, WIDTH, gnn_num_layers=LAYERS), "gcn"),
    "Polynormer": Row(lambda: models.Polynormer(1, WIDTH, WIDTH, local_layers=LAYERS, global_layers=1), "gcn"),
    "ARLinkPredictor": Row(
        lambda: models.ARLinkPredictor(1, WIDTH), parse("sum[x](sum[y|E(x,y)](score(P(x), P(y))))"), readout=None,
        call=scores_of_edges,
    ),
}  # fmt: skip

POINTS: dict[str, Row] = {
    "SchNet": Row(lambda: models.SchNet(WIDTH, WIDTH, LAYERS, 8, cutoff=1.2), "sage", readout=None, call=geometric),
    "DimeNet": Row(
        lambda: models.DimeNet(WIDTH, WIDTH, 2, 4, 4, 4, cutoff=1.2, output_initializer="glorot_orthogonal"),
        readout=None, call=geometric,
    ),
    "DimeNetPlusPlus": Row(
        lambda: models.DimeNetPlusPlus(
            WIDTH, WIDTH, 2, 8, 8, WIDTH, 4, 4, cutoff=1.2, output_initializer="glorot_orthogonal"
        ),
        readout=None, call=geometric,
    ),
    "GNNFF": Row(lambda: models.GNNFF(WIDTH, WIDTH, LAYERS, cutoff=1.2), call=lengths_of_forces),
    "ViSNet": Row(
        lambda: models.ViSNet(num_layers=LAYERS, hidden_channels=WIDTH, num_rbf=8, num_heads=2, cutoff=1.2),
        readout=None, call=geometric,
    ),
}  # fmt: skip

REFUSED = {
    "JumpingKnowledge": "joins the layers of another model",
    "HeteroJumpingKnowledge": "joins the layers of another model",
    "InnerProductDecoder": "scores pairs of embeddings",
    "GPSENodeEncoder": "reads the encodings that GPSE made, node by node",
    "MaskLabel": "reads features and labels node by node, no edges",
    "Node2Vec": "a table of embeddings, trained anew on each graph",
    "MetaPath2Vec": "a table of embeddings, trained anew on each graph",
    "RENet": "reads sequences of events between fixed nodes",
    "TGNMemory": "reads sequences of events between fixed nodes",
    "to_captum_model": "explains other models",
    "to_captum_input": "explains other models",
    "captum_output_to_dicts": "explains other models",
}


def pairs_of_graphs() -> tuple[list[tuple[Data, Data]], list[tuple[Data, Data]]]:
    """Pairs of 7 nodes with equal degrees: those that colour refinement tells apart, and those that it does not."""
    graphs = [graph for graph in atlas() if graph.num_nodes == 7]
    colours = graph_hash(batch(*graphs), "cr").tolist()
    degrees = [tuple(sorted(torch.bincount(graph.edge_index[0], minlength=7).tolist())) for graph in graphs]
    alike, apart = [], []
    for i, j in itertools.combinations(range(len(graphs)), 2):
        if degrees[i] == degrees[j]:
            (alike if colours[i] == colours[j] else apart).append((graphs[i], graphs[j]))
    return apart[:: len(apart) // 20][:20], alike


def ring(sides: int, at: float) -> Tensor:
    """Corners of a regular polygon with sides of length 1."""
    angles = torch.arange(sides, dtype=torch.float64) * 2 * torch.pi / sides
    radius = 0.5 / torch.sin(torch.tensor(torch.pi / sides, dtype=torch.float64))
    return torch.stack([radius * angles.cos() + at, radius * angles.sin(), torch.zeros_like(angles)], 1)


def pairs_of_rings() -> list[tuple[Data, Data]]:
    """A ring of 2k atoms beside two of k, all at distance 1 from their neighbours."""
    pairs = []
    for k in (3, 4, 5, 6):
        one = make_graph(2 * k, [(i, (i + 1) % (2 * k)) for i in range(2 * k)])
        two = make_graph(2 * k, [(s + i, s + (i + 1) % k) for s in (0, k) for i in range(k)])
        one.pos, two.pos = ring(2 * k, 0.0), torch.cat([ring(k, 0.0), ring(k, 100.0)])
        for graph in (one, two):
            graph.z = torch.full((2 * k,), 6)
        pairs.append((one, two))
    return pairs


def neighbours(x: Tensor, r: float, batch: Tensor, loop: bool = False, **_: Any) -> Tensor:
    """`radius_graph`, of which PyG's own needs pyg-lib."""
    near = (torch.cdist(x, x) <= r) & (batch[:, None] == batch)
    if not loop:
        near.fill_diagonal_(False)
    return near.nonzero().T.flip(0)


def triples(edge_index: Tensor, num_nodes: int) -> tuple[Tensor, ...]:
    """`triplets` of DimeNet, of which PyG's own needs torch_sparse: edges k -> j -> i, with k other than i."""
    source, target = edge_index
    first, second = ((target[:, None] == source) & (source[:, None] != target)).nonzero().T
    return target, source, target[second], source[second], source[first], first, second


def measured(row: Row, pairs: list[tuple[Data, Data]], ceilings: dict[str, list[bool]]) -> SeparationReport:
    torch.manual_seed(0)
    return separation_power(
        row.build(), pairs, relabelings=2, readout=row.readout, call=row.call, transform=row.transform,
        ceilings=ceilings,
    )  # fmt: skip


def said(report: SeparationReport) -> str:
    unreliable = f" ({report.num_unreliable} unreliable)" if report.num_unreliable else ""
    return f"{report.num_separated}{unreliable}"


def test_none_is_left_out() -> None:
    known = {name.split()[0] for name in (*GRAPHS, *POINTS)} | set(REFUSED)
    assert set(models.classes) == known
    assert all(callable(getattr(models, name)) for name in known)


# torch says it of PyG's own sparse adjacency, once in a process, and blames whoever stands between them
@pytest.mark.filterwarnings("ignore:Sparse invariant checks", "ignore:Sparse CSR tensor support is in beta")
@pytest.mark.slow
def test_models_of_graphs(keep: Keep) -> None:
    apart, alike = pairs_of_graphs()
    tests = {"cr": [True] * len(apart)}, pair_ceilings(alike, ["cr", "2-fwl"])
    assert tests[1] == {"cr": [False] * len(alike), "2-fwl": [True] * len(alike)}
    print(f"\n| model | of {len(apart)} that colour refinement separates | of {len(alike)} that it does not | bound |")
    print("|---|---|---|---|")
    hashes: dict[str, Tensor] = {}
    for name, row in GRAPHS.items():
        found = [measured(row, pairs, known) for pairs, known in zip((apart, alike), tests, strict=True)]
        columns = f"of {len(apart)} that colour refinement separates", f"of {len(alike)} that it does not"
        cells: dict[str, Cell] = dict(zip(columns, map(said, found), strict=True))
        cells["bound"] = str(row.bound() or "none")
        print(f"| `{name}` | {' | '.join(map(str, cells.values()))} |")
        keep("expressiveness/models", f"`{name}`", cells)
        if (derived := row.bound()) is not None:
            if str(derived) not in hashes:
                test = "cr" if derived.test == "cr" else f"{derived.k}-fwl"
                hashes[str(derived)] = graph_hash(batch(*itertools.chain(*apart, *alike)), test, derived.rounds)
            one, two = hashes[str(derived)].reshape(-1, 2).T
            status = [outcome for report in found for outcome in report.status]
            allowed = (one != two).tolist()
            assert "unreliable" not in status, name
            assert not [i for i, s in enumerate(status) if s == "separated" and not allowed[i]], name
        elif name != "GraphUNet":  # they know nodes by number, or draw features at random
            assert {outcome for report in found for outcome in report.status} <= {"unreliable", "equal"}, name


@pytest.mark.slow
def test_models_of_points(monkeypatch: pytest.MonkeyPatch, keep: Keep) -> None:
    for module in (dimenet, gnnff, schnet, visnet):
        for name, ours in (("radius_graph", neighbours), ("triplets", triples)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, ours)
    pairs = pairs_of_rings()
    plain = [tuple(make_graph(g.num_nodes, g.edge_index.T.tolist()) for g in pair) for pair in pairs]
    known = pair_ceilings(plain, ["cr", "2-fwl"])
    assert known == {"cr": [False] * 4, "2-fwl": [True] * 4}
    for name, row in POINTS.items():
        report = measured(row, pairs, known)
        print(f"| `{name}` | {said(report)} | {row.bound() or 'none'} |")
        keep(
            "expressiveness/models_of_points", f"`{name}`", {"of 4": said(report), "bound": str(row.bound() or "none")}
        )
        # whoever sees angles tells these apart; distances to neighbours are all the same
        assert report.num_separated == (0 if name == "SchNet" else 4)


def test_what_is_refused_takes_no_graphs() -> None:
    for name in REFUSED:
        kind = getattr(models, name)
        if inspect.isclass(kind):
            takes = inspect.signature(kind.forward).parameters
            assert not {"x", "edge_index"} <= set(takes), f"{name} can be measured"

"""No expression, and no architecture, tells apart what its bound calls equal: on simple and on attributed graphs."""

import itertools
import random
from typing import Any

import pytest
import torch
from torch_geometric.data import Data

from lit_papers.datamodules import GraphPairs
from lit_papers.expressiveness.architectures import architecture, available
from lit_papers.expressiveness.expressions import postorder
from lit_papers.expressiveness.graphs import atlas, csl, make_graph, named_pair
from lit_papers.expressiveness.hashing import spread
from lit_papers.expressiveness.tensor_language import (
    FUNCTIONS,
    Aggregate,
    Constant,
    Edge,
    EdgeLabel,
    Equal,
    Expression,
    Function,
    Label,
    Matrix,
    bound,
    evaluate,
    minimise,
    parse,
)
from lit_papers.expressiveness.weisfeiler_leman import folklore_wl, graph_hash, vertex_hash
from tests.expressiveness.small import REFERENCE, batch


def multigraph(seed: int, nodes: int = 5) -> Data:
    """Two kinds of nodes, directions, loops, parallel edges, relations and features of edges."""
    draw = torch.Generator().manual_seed(seed)

    def whole(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=draw)

    edges = whole(nodes, 2, 2 * nodes)
    if seed % 2:  # every other one is undirected
        edges = torch.cat([edges, edges.flip(0)], 1)
    count = edges.shape[1] // (1 + seed % 2)
    kinds, features = whole(2, count), whole(2, count, 1).double()
    if seed % 2:
        kinds, features = kinds.repeat(2), features.repeat(2, 1)
    x = whole(2, nodes, 1).double()
    return Data(edge_index=edges, edge_type=kinds, edge_attr=features, x=x, num_nodes=nodes)


def simple_graphs() -> Any:
    pairs = [graph for name in ("hexagon-triangles", "decalin-bicyclopentyl") for graph in named_pair(name)]
    graphs = [
        *atlas(5)[3:],
        *pairs,
        csl(11, 2),
        csl(11, 3),
        make_graph(3, [(0, 0), (0, 1), (1, 2)]),
        make_graph(3, [(1, 1), (0, 1), (1, 2)]),
    ]
    for graph in graphs:
        graph.x = graph.x.double()
    return batch(*graphs)


SIMPLE = simple_graphs()
ATTRIBUTED = batch(*(multigraph(seed, 3 + seed % 3) for seed in range(48)))


def with_edges_alike(graphs: Any) -> Any:
    """Simple graphs with the same attributes on all edges, for expressions that read them."""
    graphs = graphs.clone()
    count = graphs.edge_index.shape[1]
    graphs.edge_attr, graphs.edge_type = (
        torch.ones(count, 1, dtype=torch.float64),
        torch.zeros(count, dtype=torch.int64),
    )
    return graphs


def any_functions(e: Expression) -> dict[str, Any]:
    """For each function that is not built in, one that mixes all channels of all arguments, differently by name."""

    def made(seed: int) -> Any:
        def function(*arguments: torch.Tensor) -> torch.Tensor:
            channels = torch.cat(arguments, 1)
            weights = torch.linspace(0.3 + 0.1 * seed, 1.1, channels.shape[1], dtype=channels.dtype)
            mixed = channels @ torch.stack([weights, weights.flip(0) ** 2], 1)
            return torch.tanh(0.3 * mixed) + 0.05 * mixed

        return function

    names = sorted({part.name for part in postorder(e) if isinstance(part, Function)} - set(FUNCTIONS))
    return {name: made(i % 7) for i, name in enumerate(names)}


def spread_of(values: torch.Tensor, colours: torch.Tensor) -> float:
    """The largest difference between values of one colour, beside the largest value."""
    _, group = colours.unique(return_inverse=True)
    index = group[:, None].expand_as(values)
    low, high = (
        torch.zeros(int(group.max()) + 1, values.shape[1], dtype=values.dtype).scatter_reduce(
            0, index, values, kind, include_self=False
        )
        for kind in ("amin", "amax")
    )
    return float(((high - low) / values.abs().amax().clamp_min(1)).max())


def check_sound(e: Expression, graphs: Any) -> None:
    claimed = bound(e)
    test = "cr" if claimed.test == "cr" else f"{claimed.k}-fwl"
    hashes = graph_hash if claimed.level == "graph" else vertex_hash
    colours = hashes(graphs, test, claimed.rounds)
    if claimed.level == "graph":  # all statements are of graphs of one size
        colours = spread(colours) + graphs.ptr.diff()
    values = evaluate(e, graphs, any_functions(e))
    assert spread_of(values, colours) < 1e-9, f"{e} is claimed to be bounded by {claimed}"


@pytest.mark.parametrize("name", available())
def test_architectures(name: str) -> None:
    for layers, readout in ((1, False), (2, False), (1, True)):
        found = architecture(name, layers=layers, readout=readout).expression
        for graphs in (with_edges_alike(SIMPLE), ATTRIBUTED):
            check_sound(found, graphs)


@pytest.mark.slow
@pytest.mark.parametrize("name", available())
def test_architectures_on_brec(name: str) -> None:
    """Pairs that colour refinement cannot tell apart, with up to 25 nodes."""
    pairs = GraphPairs("brec", REFERENCE, parts=["Basic", "Regular"]).pairs[::20]
    graphs = batch(*itertools.chain(*((pair.first, pair.second) for pair in pairs)))
    graphs.x = graphs.x.double()
    for readout in (False, True):
        found = architecture(name, layers=1, readout=readout)
        if found.bound.k <= 2:
            check_sound(found.expression, with_edges_alike(graphs))


@pytest.mark.parametrize("encoding", ["walk4", "resistance", "spectral1"])
def test_transformers_with_encodings(encoding: str) -> None:
    check_sound(architecture("gps", layers=1, encoding=encoding).expression, SIMPLE)


def random_expression(draw: random.Random, names: list[str], depth: int) -> Expression:
    x, y = draw.choice(names), draw.choice(names)
    if depth == 0 or draw.random() < 0.15:
        atoms = [
            Label(0, x), Edge(x, y), Edge(x, y), Edge(x, x), Edge(x, y, draw.randrange(2)), EdgeLabel(0, x, y),
            Equal(x, y), Equal(x, y, negated=True), Constant(0.5),
        ]  # fmt: skip
        return draw.choice(atoms)
    kind = draw.random()
    if kind < 0.35:
        return random_expression(draw, names, depth - 1) * random_expression(draw, names, depth - 1)
    if kind < 0.5:
        return random_expression(draw, names, depth - 1) - random_expression(draw, names, depth - 1)
    if kind < 0.6:
        return Function("tanh", (random_expression(draw, names, depth - 1),))
    index = draw.choice("xyz")
    body = random_expression(draw, sorted({*names, index}), depth - 1)
    others = [name for name in names if name != index]
    guard = None
    if others and draw.random() < 0.6:
        ends = [index, draw.choice(others)]
        draw.shuffle(ends)
        guard = Edge(*ends, draw.choice([None, None, 0, 1]))
    return Aggregate(draw.choice(["sum"] * 4 + ["mean", "max"]), index, body, guard)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(4))
def test_random_expressions(seed: int) -> None:
    draw = random.Random(seed)
    simple = with_edges_alike(SIMPLE)
    for index in range(40):
        e = random_expression(draw, ["x"], 5)
        if index % 2:
            for name in sorted(e.free):
                e = Aggregate("sum", name, e)
        if len(e.free) <= 1 and bound(e).k <= 3:
            for graphs in (simple, ATTRIBUTED):
                if e.free or bound(e).level == "graph":
                    check_sound(e, graphs)


def test_loops_are_seen_from_the_start() -> None:
    assert str(bound(parse("sum[x](E(x,x))"))) == "gcr^(0)"
    check_sound(parse("sum[x](E(x,x))"), SIMPLE)
    check_sound(parse("E(x,x)"), SIMPLE)


NAMES = [list("apqrst"), list("zpqrst"), list("mzayxb"), ["x1", "x10", "x2", "x9", "x3", "x11"]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sum[{1}](1[{0}!={1}]*sum[{2}](1[{1}!={2}]*P({2})))", "vwl_1^(2)"),
        ("sum[{1},{2}](E({0},{1})*E({1},{2}))", "cr^(2)"),
        ("sum[{1},{2},{3},{4},{5}](E({0},{1})*E({1},{2})*E({2},{3})*E({3},{4})*E({4},{5})*E({5},{0}))", "vwl_2^(3)"),
        ("mean[{1}|E({0},{1})](f(P({1}), sum[{2}|E({1},{2})](P({2}))))", "cr^(2)"),
    ],
)
def test_bounds_do_not_depend_on_names(text: str, expected: str) -> None:
    assert {str(bound(parse(text.format(*names)))) for names in NAMES} == {expected}


@pytest.mark.parametrize("length", [4, 5, 6])
def test_counting_cycles_is_for_two_folklore(length: int) -> None:
    """Fürer (2017), Arvind et al. (2020): inequalities of all nodes cost no more names, up to length 7."""
    names = [f"v{i}" for i in range(length)]
    apart = "*".join(f"1[{a}!={b}]" for a, b in itertools.combinations(names, 2))
    around = "*".join(f"E({a},{b})" for a, b in zip(names, [*names[1:], names[0]], strict=True))
    count = parse(f"sum[{','.join(names)}]({around}*{apart})")
    assert str(bound(count)) == "gwl_2^(inf)"
    cycle = make_graph(length, [(i, (i + 1) % length) for i in range(length)])
    cycle.x = cycle.x.double()
    pair = batch(cycle, *named_pair("decalin-bicyclopentyl"))
    pair.x = pair.x.double()
    found = evaluate(count, pair).flatten().tolist()
    # each is met from every node and in both directions
    assert found == [2 * length, *{4: (0, 0), 5: (0, 20), 6: (24, 0)}[length]]
    assert len(minimise(count).indices) == 3


def test_a_matrix_of_ones_own() -> None:
    distance = Matrix("distance", "x", "y", order=2, rounds=3)
    e = Aggregate("sum", "y", distance * Label(0, "y"))
    assert str(bound(e)) == "vwl_2^(4)"
    assert str(bound(Matrix("distance", "x", "x", order=3))) == "vwl_3^(inf)"
    value = evaluate(e, SIMPLE, {"distance": lambda counts: counts @ counts})
    walks = evaluate(parse("sum[y,z](E(x,z)*E(z,y)*P0(y))"), SIMPLE)
    torch.testing.assert_close(value, walks)
    assert parse(str(parse("M[walk4](x,y)*M[resistance](x,y)"))).matrix_order == 2
    walk = evaluate(parse("sum[y](M[walk3](x,y))"), batch(make_graph(3, [(0, 1), (1, 2)])))
    torch.testing.assert_close(walk.flatten(), torch.ones(3))
    path = evaluate(parse("M[resistance](x,y)"), make_graph(3, [(0, 1), (1, 2)]))[0, :, :, 0]
    torch.testing.assert_close(path, torch.tensor([[0.0, 1, 2], [1, 0, 1], [2, 1, 0]]), atol=1e-6, rtol=0)
    sizes = [
        evaluate(parse(f"sum[x](M[spectral{i}](x,x))"), make_graph(4, [(0, 1), (1, 2), (2, 3), (3, 0)]))
        for i in range(3)
    ]
    assert [round(float(size)) for size in sizes] == [1, 2, 1]  # multiplicities of 0, 1 and 2


@pytest.mark.timeout(60)
def test_deep_networks() -> None:
    found = architecture("gin", layers=150)
    assert str(found.bound) == "cr^(150)"
    values = evaluate(found.expression, SIMPLE, dict.fromkeys((f"mlp{t}" for t in range(1, 151)), torch.tanh))
    assert values.isfinite().all()


def test_sums_of_hashes_collide_by_chance_alone() -> None:
    """Degrees put colours in arithmetic progression: the case that a weak hash does not survive."""
    start, step = spread(torch.tensor([1])), spread(torch.tensor([2]))
    values = spread(start + step * torch.arange(1500))
    pairs = (values[:, None] + values)[torch.triu_indices(1500, 1500).unbind()]
    assert len(pairs.unique()) == len(pairs)  # a million sums of two
    picked = torch.randint(0, 60, (200_000, 6), generator=torch.Generator().manual_seed(0)).sort(1).values
    kinds = picked.unique(dim=0)
    assert len(values[kinds].sum(1).unique()) == len(kinds)
    assert torch.equal(torch.from_numpy(spread(values.numpy())), spread(values))


def test_nested_and_cayley_against_plain_networks() -> None:
    """The two bounds that were once stronger than what the networks do."""
    graphs = batch(*(graph for graph in atlas() if graph.num_nodes == 6))
    graphs.x = graphs.x.double()
    for layers in (1, 2):
        found = architecture("nested", layers=layers)
        fewer = folklore_wl(graphs, 2, rounds=layers).colours.diagonal(dim1=1, dim2=2).flatten()
        values = evaluate(found.expression, graphs, any_functions(found.expression))
        assert spread_of(values, fewer) > 1e-6  # a round for each layer is not enough: the sum is one more
        check_sound(found.expression, graphs)
    for order, iterations in ((1, 1), (2, 1), (1, 2)):
        found = architecture("cayley", order=order, iterations=iterations)
        assert str(found.bound) == f"cr^({order * (iterations + 1) + 1})"
        check_sound(found.expression, graphs)

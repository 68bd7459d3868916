"""The tests themselves, against published counts and a plain implementation."""

import itertools

import networkx
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.utils import to_networkx

from lit_papers.datamodules import GraphPairs
from lit_papers.expressiveness.graphs import (
    CSL_SKIPS,
    atlas,
    cfi,
    csl,
    from_graph6,
    make_graph,
    named_pair,
    strongly_regular,
)
from lit_papers.expressiveness.separation import pair_ceilings, relabelled
from lit_papers.expressiveness.weisfeiler_leman import (
    colour_refinement,
    folklore_wl,
    graph_hash,
    is_equitable,
    oblivious_wl,
)
from tests.expressiveness.small import REFERENCE, batch, featured


def brec(**options):
    return GraphPairs("brec", REFERENCE, **options).pairs


def plain_refinement(graph: Data) -> tuple[tuple[int, ...], ...]:
    """Colours as nested tuples, until their number is stable: what hashes stand for."""
    neighbours = [graph.edge_index[1][graph.edge_index[0] == node].tolist() for node in range(graph.num_nodes)]
    colours = [()] * graph.num_nodes
    while True:
        refined = [(colours[v], tuple(sorted(colours[u] for u in neighbours[v]))) for v in range(graph.num_nodes)]
        done = len(set(refined)) == len(set(colours))
        colours = refined
        if done:
            return tuple(sorted(map(repr, colours)))


def test_brec_as_published() -> None:
    pairs = brec()
    assert len(pairs) == 400
    found = pair_ceilings(pairs, ["cr", "2-fwl"])
    assert sum(found["cr"]) == 0
    left = [index for index, apart in enumerate(found["2-fwl"]) if not apart]
    assert sum(found["2-fwl"]) == 270
    assert left == [*range(110, 160), *range(320, 400)]


def test_strongly_regular_graphs() -> None:
    pairs = GraphPairs("sr25", REFERENCE).pairs
    assert len(pairs) == 105
    found = pair_ceilings(pairs, ["cr", "2-fwl"])
    assert sum(found["cr"]) == sum(found["2-fwl"]) == 0
    assert sum(pair_ceilings(pairs[:6], ["3-fwl"])["3-fwl"]) == 6


def test_circulant_skip_links() -> None:
    graphs = batch(*(csl(41, skip) for skip in CSL_SKIPS))
    assert len(set(graph_hash(graphs, "cr").tolist())) == 1
    assert len(set(graph_hash(graphs, "2-fwl").tolist())) == 10


def test_constructed_pairs() -> None:
    pairs = GraphPairs("constructed").pairs
    assert len(pairs) == 19
    assert [sum(flags) for flags in pair_ceilings(pairs, ["cr", "2-fwl"]).values()] == [0, 4]


@pytest.mark.slow
def test_graph8c() -> None:
    """All connected graphs of 8 nodes: 11 117, of which colour refinement confuses 312 pairs and 2-WL (folklore) none.

    Balcilar et al. (2021). Each is one of 7 nodes and a neighbourhood for the eighth, found many times over.
    """
    first: dict[int, Data] = {}
    joined = [[(v, 7) for v in range(7) if subset >> v & 1] for subset in range(1, 128)]
    for graph in (graph for graph in atlas() if graph.num_nodes == 7):
        edges = list(map(tuple, graph.edge_index.T.tolist()))
        larger = [make_graph(8, edges + more) for more in joined]
        for key, found in zip(graph_hash(batch(*larger), "2-fwl").tolist(), larger, strict=True):
            first.setdefault(key, found)
    graphs = [graph for graph in first.values() if networkx.is_connected(to_networkx(graph, to_undirected=True))]
    assert len(graphs) == 11_117  # so 2-WL tells all of them apart
    sizes = graph_hash(batch(*graphs), "cr").unique(return_counts=True)[1]
    assert int((sizes * (sizes - 1) // 2).sum()) == 312


@pytest.mark.slow
def test_constructed_pairs_under_three_dimensions() -> None:
    assert sum(pair_ceilings(GraphPairs("constructed").pairs, ["3-fwl"])["3-fwl"]) == 17


@pytest.mark.parametrize(
    ("base", "needed"),
    [(networkx.cycle_graph(5), 2), (networkx.complete_graph(4), 3), (networkx.circular_ladder_graph(3), 3)],
)
@pytest.mark.parametrize("variant", ["compact", "full"])
def test_cfi_graphs_need_the_treewidth(base: networkx.Graph, needed: int, variant: str) -> None:
    pair = batch(cfi(base, variant=variant), cfi(base, twisted=True, variant=variant))
    for k in (1, 2):
        plain, twisted = graph_hash(pair, f"{k}-fwl")
        assert (plain != twisted) == (k >= needed)
    if variant == "compact":
        plain, twisted = graph_hash(pair, "3-fwl")
        assert plain != twisted


def test_the_atlas() -> None:
    graphs = atlas()
    together = batch(*graphs)
    found = colour_refinement(together)
    assert len(set(found.graph_hash.tolist())) == 1226
    assert is_equitable(together, found.colours)
    assert len(set(graph_hash(together, "2-fwl").tolist())) == len(set(graph_hash(together, "3-owl").tolist())) == 1252
    # folklore k and oblivious k + 1 agree, as do colour refinement and the two weakest
    for test in ("1-fwl", "2-owl"):
        hashes = graph_hash(together, test)
        assert (
            len(set(zip(hashes.tolist(), found.graph_hash.tolist(), strict=True))) == 1226 == len(set(hashes.tolist()))
        )
    assert len(GraphPairs("atlas").pairs) == 26


def test_hashes_partition_as_plain_tuples_do() -> None:
    graphs = [graph for graph in atlas(6)[::3] if graph.num_nodes]
    plain = [plain_refinement(graph) for graph in graphs]
    hashes = graph_hash(batch(*graphs), "cr").tolist()
    for i, j in itertools.combinations(range(len(graphs)), 2):
        assert (plain[i] == plain[j]) == (hashes[i] == hashes[j])


@pytest.mark.parametrize("test", ["cr", "1-fwl", "2-fwl", "3-fwl", "2-owl", "3-owl"])
def test_hashes_are_of_the_graph_alone(test: str) -> None:
    """Alone, in company, relabelled, beside larger graphs."""
    graphs = featured(6)
    together = graph_hash(graphs, test)
    draw = torch.Generator().manual_seed(0)
    large = make_graph(9, [(i, i + 1) for i in range(8)])
    large.x = torch.zeros(9, 2, dtype=torch.float64)
    for index in range(graphs.num_graphs):
        graph = graphs[index]
        alone = graph_hash(graph, test)
        assert alone.shape == (1,)
        assert alone[0] == together[index]
        assert graph_hash(relabelled(graph, draw), test)[0] == together[index]
        assert graph_hash(batch(large, graph), test)[1] == together[index]


def test_rounds() -> None:
    path = make_graph(5, [(i, i + 1) for i in range(4)])
    assert [colour_refinement(path, rounds=t).num_classes for t in range(4)] == [1, 2, 3, 3]
    stable = colour_refinement(path)
    assert stable.rounds.tolist() == [3]
    assert stable.mask is None
    both = colour_refinement(batch(path, make_graph(3, [(0, 1), (1, 2), (0, 2)])))
    assert both.rounds.tolist() == [3, 1]
    tuples = folklore_wl(path, 2)
    assert tuples.colours.shape == (1, 5, 5)
    assert tuples.mask is not None
    assert tuples.mask.all()
    assert torch.equal(tuples.colours[0], tuples.colours[0].flip(0, 1))  # the path's one symmetry
    with pytest.raises(ValueError, match="rounds"):
        colour_refinement(path, rounds=-1)


def test_vertices_see_non_neighbours_under_one_wl_only() -> None:
    """An isolated node beside a triangle, and beside a path of three: equal to its neighbours, not to everyone."""
    pair = batch(make_graph(4, [(1, 2), (2, 3), (1, 3)]), make_graph(4, [(1, 2), (2, 3)]))
    refined = colour_refinement(pair, rounds=4).colours
    assert refined[0] == refined[4]
    for rounds, same in ((1, True), (2, False)):
        colours = folklore_wl(pair, 1, rounds=rounds).colours
        assert (colours[0, 0] == colours[1, 0]) == same


def test_unions_of_paths() -> None:
    def paths(*sizes: int) -> Data:
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return make_graph(
            sum(sizes), [(s + i, s + i + 1) for s, n in zip(starts, sizes, strict=True) for i in range(n - 1)]
        )

    first, second = graph_hash(batch(paths(10, 30), paths(20, 20)), "cr")
    assert first != second


def test_features_and_colours() -> None:
    pair = batch(*named_pair("hexagon-triangles"))
    assert len(set(graph_hash(pair, "cr").tolist())) == 1
    pair.x[0] = -0.0
    pair.x[6] = 0.0
    first, second = graph_hash(pair, "cr")
    assert first != second  # a marked node sees its own cycle
    pair.x[:] = 1.0
    marked = torch.zeros(12, dtype=torch.int64)
    marked[[0, 6]] = 7
    assert len(set(colour_refinement(pair, node_colours=marked).graph_hash.tolist())) == 2
    assert folklore_wl(pair, 1, node_colours=marked).num_classes > 2
    zeros = make_graph(2, [(0, 1)])
    zeros.x = torch.tensor([[0.0], [-0.0]])
    assert colour_refinement(zeros).num_classes == 1


def test_equitable() -> None:
    path = make_graph(3, [(0, 1), (1, 2)])
    assert is_equitable(path, torch.tensor([5, 7, 5]))
    assert is_equitable(path, torch.tensor([1, 2, 3]))
    assert not is_equitable(path, torch.tensor([1, 1, 1]))
    assert not is_equitable(path, torch.tensor([5, 7, 5]), node_colours=torch.tensor([0, 0, 1]))
    assert is_equitable(make_graph(0, []), torch.zeros(0, dtype=torch.int64))


def test_odd_graphs() -> None:
    empty, single, loop = make_graph(0, []), make_graph(1, []), make_graph(1, [(0, 0)])
    hashes = graph_hash(batch(single, empty, loop, empty), "cr")
    assert hashes[1] == hashes[3]
    assert len(set(hashes.tolist())) == 3
    for run in (folklore_wl, oblivious_wl):
        found = run(batch(single, empty, loop), 2)
        assert found.colours.shape == (3, 1, 1)
        assert len(set(found.graph_hash.tolist())) == 3
    twice = Data(edge_index=torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0]]), num_nodes=2)
    once = Data(edge_index=torch.tensor([[0, 1], [1, 0]]), num_nodes=2)
    assert not torch.equal(graph_hash(twice, "cr"), graph_hash(once, "cr"))
    unsorted = Data(edge_index=torch.tensor([[1, 0], [0, 1]]), num_nodes=2)
    assert torch.equal(graph_hash(unsorted, "cr"), graph_hash(once, "cr"))


def test_graph6() -> None:
    for graph in (networkx.petersen_graph(), networkx.path_graph(1), networkx.gnp_random_graph(70, 0.2, seed=1)):
        text = networkx.to_graph6_bytes(graph).decode()
        read = from_graph6(text)
        assert read.num_nodes == graph.number_of_nodes()
        assert {tuple(sorted(edge)) for edge in read.edge_index.T.tolist()} == {tuple(sorted(e)) for e in graph.edges}
    with pytest.raises(ValueError, match="graph6"):
        from_graph6("")
    with pytest.raises(ValueError, match="characters of edges"):
        from_graph6("Dhc?")


def test_strongly_regular_parameters() -> None:
    for n, k, lam, mu in ((16, 6, 2, 2), (28, 12, 6, 4)):
        graphs = strongly_regular(n, k, lam, mu)
        for graph in graphs:
            dense = torch.zeros(n, n)
            dense[graph.edge_index[0], graph.edge_index[1]] = 1
            expected = k * torch.eye(n) + lam * dense + mu * (1 - dense - torch.eye(n))
            assert torch.equal(dense @ dense, expected)
        assert len(set(graph_hash(batch(*graphs), "3-fwl").tolist())) == len(graphs)


def test_bad_input() -> None:
    nan = make_graph(2, [(0, 1)])
    nan.x = torch.tensor([[torch.nan], [0.0]])
    with pytest.raises(ValueError, match="NaN"):
        colour_refinement(nan)
    with pytest.raises(ValueError, match="k must be at least 1"):
        folklore_wl(nan, 0)
    with pytest.raises(ValueError, match="k must be at least 2"):
        oblivious_wl(nan, 1)
    with pytest.raises(ValueError, match="test must be 'cr'"):
        graph_hash(nan, "wl")
    with pytest.raises(ValueError, match="node_colours"):
        colour_refinement(make_graph(2, []), node_colours=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(MemoryError, match="3-WL on 1 graphs of up to 600 nodes"):
        folklore_wl(make_graph(600, [(0, 1)]), 3)
    with pytest.raises(ValueError, match="outside of 0 to 1"):
        colour_refinement(Data(edge_index=torch.tensor([[0, 5], [5, 0]]), num_nodes=2))
    with pytest.raises(ValueError, match="skip"):
        csl(41, 1)
    with pytest.raises(ValueError, match="connected"):
        cfi(networkx.empty_graph(3))
    with pytest.raises(ValueError, match="variant"):
        cfi(networkx.cycle_graph(3), variant="tiny")
    with pytest.raises(ValueError, match="name must be one of"):
        named_pair("twins")
    with pytest.raises(ValueError, match="strongly regular"):
        strongly_regular(25, 12, 5, 6)
    with pytest.raises(ValueError, match="max_nodes"):
        atlas(8)

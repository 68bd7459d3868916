"""Graphs that are hard to tell apart: circulant skip links, CFI gadgets, strongly regular families, named pairs."""

import importlib
import itertools
from collections.abc import Iterable
from typing import Any

import torch

CSL_SKIPS = (2, 3, 4, 5, 6, 9, 11, 12, 13, 16)
"""Skips of the ten classes of circulant skip link graphs on 41 nodes."""

PAIR_NAMES = ("hexagon-triangles", "decalin-bicyclopentyl", "shrikhande-rook")


def make_graph(num_nodes: int, edges: Iterable[tuple[int, int]]) -> Any:
    """A PyG ``Data`` with both directions of each edge and ``x = ones(n, 1)``.

    Raises:
        ImportError: PyG is not installed.
    """
    pairs = sorted({pair for u, v in edges for pair in ((u, v), (v, u))})
    index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T.contiguous()
    return import_graph_extra("torch_geometric.data").Data(
        edge_index=index, num_nodes=num_nodes, x=torch.ones(num_nodes, 1)
    )


def csl(num_nodes: int, skip: int) -> Any:
    """Circulant skip link graph: i is joined to i ± 1 and i ± skip (Murphy et al., 2019).

    Raises:
        ValueError: the skip makes no 4-regular graph.
    """
    if not 2 <= skip < num_nodes - 1 or 2 * skip == num_nodes:
        raise ValueError(
            f"skip must lie in 2 to {num_nodes - 2}, and not be half of num_nodes={num_nodes}; got {skip}."
        )
    return make_graph(num_nodes, ((i, (i + step) % num_nodes) for i in range(num_nodes) for step in (1, skip)))


def cfi(base: Any, *, twisted: bool = False, variant: str = "compact") -> Any:
    """Cai-Fürer-Immerman graph over a connected base; the twisted one is not isomorphic to the plain one.

    Folklore k-WL tells the two apart exactly from the treewidth of the base on.

    Args:
        base: a networkx graph.
        twisted: cross one edge.
        variant: ``compact`` has a node for each even subset of the edges at a base node; ``full``, as in BREC, adds two
            for each end of each edge.

    Raises:
        ValueError: the base is not connected or has a self-loop, or the variant is unknown.
    """
    networkx = import_graph_extra("networkx")
    if base.number_of_edges() == 0 or not networkx.is_connected(base) or networkx.number_of_selfloops(base):
        raise ValueError("base must be connected, with edges and without self-loops; a twist moves along its paths.")
    if variant not in ("compact", "full"):
        raise ValueError(f"variant must be 'compact' or 'full'; got {variant!r}.")
    links = [frozenset(edge) for edge in base.edges]
    crossed = links[0] if twisted else None
    gadgets: dict[Any, list[Any]] = {}
    for node in base.nodes:
        around = [link for link in links if node in link]
        gadgets[node] = [
            (node, frozenset(subset))
            for size in range(0, len(around) + 1, 2)
            for subset in itertools.combinations(around, size)
        ]
    names: list[Any] = [name for gadget in gadgets.values() for name in gadget]
    edges: list[tuple[Any, Any]] = []
    if variant == "full":
        names += [(node, link, bit) for link in links for node in link for bit in (False, True)]
    for link in links:
        u, v = link
        if variant == "compact":
            edges += [
                (s, t)
                for s in gadgets[u]
                for t in gadgets[v]
                if ((link in s[1]) == (link in t[1])) != (link == crossed)
            ]
        else:
            edges += [(s, (node, link, link in s[1])) for node in link for s in gadgets[node]]
            edges += [((u, link, bit), (v, link, bit != (link == crossed))) for bit in (False, True)]
    place = {name: index for index, name in enumerate(names)}
    return make_graph(len(names), ((place[s], place[t]) for s, t in edges))


def strongly_regular(n: int, k: int, lam: int, mu: int) -> list[Any]:
    """All graphs with these parameters: (16, 6, 2, 2) Shrikhande and the 4x4 rook; (28, 12, 6, 4) T(8) and the Changs.

    Raises:
        ValueError: for other parameters.
    """
    if (n, k, lam, mu) == (16, 6, 2, 2):
        cells = list(itertools.product(range(4), range(4)))
        steps = {(1, 0), (3, 0), (0, 1), (0, 3), (1, 1), (3, 3)}
        shrikhande = [
            (i, j)
            for i, a in enumerate(cells)
            for j, b in enumerate(cells)
            if ((a[0] - b[0]) % 4, (a[1] - b[1]) % 4) in steps
        ]
        rook = [
            (i, j)
            for i, a in enumerate(cells)
            for j, b in enumerate(cells)
            if i != j and (a[0] == b[0] or a[1] == b[1])
        ]
        return [make_graph(16, shrikhande), make_graph(16, rook)]
    if (n, k, lam, mu) == (28, 12, 6, 4):
        cells = list(itertools.combinations(range(8), 2))
        cycle = [tuple(sorted((i, (i + 1) % 8))) for i in range(8)]
        switches: list[list[Any]] = [
            [],
            [(0, 1), (2, 3), (4, 5), (6, 7)],
            cycle,
            [(0, 1), (1, 2), (0, 2), (3, 4), (4, 5), (5, 6), (6, 7), (3, 7)],
        ]
        graphs = []
        for switch in switches:  # Seidel switching: swap edges and non-edges between a set and the rest
            inside = [cell in switch for cell in cells]
            graphs.append(
                make_graph(
                    28,
                    (
                        (i, j)
                        for i, j in itertools.combinations(range(28), 2)
                        if bool(set(cells[i]) & set(cells[j])) != (inside[i] != inside[j])
                    ),
                )
            )
        return graphs
    raise ValueError(f"strongly regular graphs here are (16, 6, 2, 2) and (28, 12, 6, 4); got {(n, k, lam, mu)}.")


def named_pair(name: str) -> tuple[Any, Any]:
    """A pair of graphs that colour refinement cannot tell apart.

    Raises:
        ValueError: there is no pair of that name.
    """
    if name == "hexagon-triangles":
        hexagon = [(i, (i + 1) % 6) for i in range(6)]
        return make_graph(6, hexagon), make_graph(6, [(0, 1), (1, 2), (0, 2), (3, 4), (4, 5), (3, 5)])
    if name == "decalin-bicyclopentyl":
        decalin = [(i, (i + 1) % 10) for i in range(10)] + [(0, 5)]
        pentagons = [(i, (i + 1) % 5) for i in range(5)] + [(5 + i, 5 + (i + 1) % 5) for i in range(5)]
        return make_graph(10, decalin), make_graph(10, [*pentagons, (0, 5)])
    if name == "shrikhande-rook":
        first, second = strongly_regular(16, 6, 2, 2)
        return first, second
    raise ValueError(f"name must be one of {', '.join(PAIR_NAMES)}; got {name!r}.")


def atlas(max_nodes: int = 7, *, include_empty: bool = False) -> list[Any]:
    """All graphs of up to 7 nodes, from networkx: 1252, and one without nodes.

    Raises:
        ValueError: more than 7 nodes are asked for.
        ImportError: networkx is not installed.
    """
    if not 0 <= max_nodes <= 7:
        raise ValueError(f"max_nodes must lie in 0 to 7, which the atlas has; got {max_nodes}.")
    return [
        make_graph(graph.number_of_nodes(), graph.edges)
        for graph in import_graph_extra("networkx").graph_atlas_g()
        if graph.number_of_nodes() <= max_nodes and (include_empty or graph.number_of_nodes())
    ]


def from_graph6(text: str) -> Any:
    """Read one graph in McKay's graph6 format, up to 258,047 nodes.

    Raises:
        ValueError: the text is not graph6.
    """
    text = text.strip().removeprefix(">>graph6<<")
    values = [ord(letter) - 63 for letter in text]
    if not values or min(values) < 0 or max(values) > 63:
        raise ValueError(f"not graph6: {text[:40]!r}.")
    if values[0] < 63:
        n, body = values[0], values[1:]
    elif len(values) >= 4 and values[1] < 63:
        n, body = (values[1] << 12) + (values[2] << 6) + values[3], values[4:]
    else:
        raise ValueError(f"graph6 of more than 258,047 nodes is not read: {text[:40]!r}.")
    if len(body) != -(-n * (n - 1) // 2 // 6):
        raise ValueError(f"graph6 of {n} nodes needs {-(-n * (n - 1) // 2 // 6)} characters of edges; got {len(body)}.")
    letters = torch.tensor(body, dtype=torch.int64)
    bits = ((letters[:, None] >> torch.arange(5, -1, -1)) & 1).flatten()[: n * (n - 1) // 2]
    column, row = torch.tril_indices(n, n, -1)  # the upper triangle, column by column
    present = bits.bool()
    index = torch.stack([torch.cat([row[present], column[present]]), torch.cat([column[present], row[present]])])
    return import_graph_extra("torch_geometric.data").Data(edge_index=index, num_nodes=n, x=torch.ones(n, 1))


def import_graph_extra(module: str) -> Any:
    """Import PyG or networkx.

    Raises:
        ImportError: it is not installed; names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{error}: install `lit-papers[graph]`") from error

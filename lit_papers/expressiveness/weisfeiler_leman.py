"""Weisfeiler-Leman tests on whole batches: colour refinement, folklore and oblivious k-WL.

Colours are 64-bit hashes of what the tests define, so they are the same for a graph alone and in company, relabelled,
padded, on another device and in another call. Equal true colours always have equal hashes; that unequal ones differ is
overwhelmingly likely, and `is_equitable` proves it for colour refinement.

Graphs may have directions, loops, parallel edges, relations and features. All tests see a relational structure: of two
nodes, the multiset of what the edges from one to the other carry, and of those back; of one node, its features and its
loops. Colour refinement looks along edges in both directions. That bounds what any network can see in them.

"k-WL" is the folklore version here, as in Geerts & Reutter (ICLR 2022); on graphs, oblivious (k+1)-WL is as strong.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lit_papers.expressiveness.graph_batch import GraphBatch, hashable, read_graphs
from lit_papers.expressiveness.hashing import mix, spread

_LARGEST_GEMM = 2048  # nodes up to which sums of products of 21-bit numbers are exact in float64
_ODD = -7046029254386353131  # splitmix64's increment: a bijection of 64-bit integers by multiplication
_MAX_ELEMENTS = 2**27


@dataclass(frozen=True)
class Colouring:
    """The colours that a test ends with.

    Attributes:
        colours: int64; (N,) for colour refinement, (B, n, ..., n) with k axes for k-WL.
        mask: True on real tuples; None for colour refinement.
        graph_hash: (B,) int64, equal for graphs that the test cannot tell apart.
        rounds: (B,) rounds run for each graph.
    """

    colours: Tensor
    mask: Tensor | None
    graph_hash: Tensor
    rounds: Tensor

    @cached_property
    def num_classes(self) -> int:
        """Distinct colours in the batch."""
        return len(torch.unique(self.colours if self.mask is None else self.colours[self.mask]))


def colour_refinement(data: Any, *, rounds: int | None = None, node_colours: Tensor | None = None) -> Colouring:
    """Refine node colours by the multiset of the neighbours' colours, ``cr^(t)``.

    Args:
        data: PyG ``Data`` or ``Batch``; nodes start with their row of ``x``, by exact value, and their loops.
        rounds: how many; None runs each graph until its number of colours stays the same.
        node_colours: (N,) int64 initial colours instead of ``x``.

    Raises:
        ValueError: features are NaN, or the edges are not held in ``edge_index``.
    """
    graphs = read_graphs(data)

    def refine(colours: Tensor) -> Tensor:
        return graphs.sum_over_neighbours(colours).add_(colours, alpha=_ODD)

    colours, done = _refine_nodes(graphs, _initial(graphs, node_colours), refine, rounds)
    return Colouring(colours, None, _hash_nodes(graphs, colours), done)


def folklore_wl(data: Any, k: int = 2, *, rounds: int | None = None, node_colours: Tensor | None = None) -> Colouring:
    """Folklore k-WL on tuples of k nodes.

    ``wl_k^(t+1)(v) = (wl_k^(t)(v), {{(atp(v, u), wl_k^(t)(v[u/1]), ..., wl_k^(t)(v[u/k])) : u}})``. For k = 1 this is
    the paper's 1-WL, which also sees non-neighbours. For k = 2 a round is three matrix products, of random numbers for
    the colours: a fingerprint of the multiset of pairs, exact in float64.

    Args:
        data: as for `colour_refinement`.
        k: at least 1.
        rounds: how many; None runs each graph until its number of colours stays the same.
        node_colours: (N,) int64 initial colours instead of ``x``.

    Raises:
        ValueError: k is below 1, features are NaN, or the edges are not held in ``edge_index``.
        MemoryError: the tuples would not fit, told before allocating.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1 for folklore k-WL; got {k}.")
    graphs = read_graphs(data)
    if k == 1:
        present, owner, position = graphs.mask, graphs.owner, graphs.position

        def refine(colours: Tensor) -> Tensor:
            everyone = mix(colours, 5) * present
            of_nodes = colours[owner, position]
            around = graphs.pad(graphs.sum_over_neighbours(of_nodes))
            return mix(mix(colours, 2) + mix(around, 3) + mix(everyone.sum(1, keepdim=True), 7), 4)

    elif k == 2 and graphs.width <= _LARGEST_GEMM:

        def refine(colours: Tensor) -> Tensor:
            real = _tuples(graphs.mask, 2).to(torch.float64)
            mixed, left, right = colours * _ODD, mix(colours, 10), mix(colours, 20)
            for shift in (0, 21, 42):  # three independent random numbers of 21 bits for each colour
                rows, columns = (((side >> shift) & 0x1FFFFF) * real for side in (left, right))
                mixed = mix(mixed + torch.bmm(rows, columns).to(torch.int64), 30 + shift)
            return mixed

    else:

        def refine(colours: Tensor) -> Tensor:
            total = torch.zeros_like(colours)
            present = graphs.mask
            for u in range(graphs.width):
                replaced = sum(mix(colours.select(i + 1, u).unsqueeze(i + 1), 10 + i) for i in range(k))
                total += mix(replaced, 5) * present[:, u].view(-1, *[1] * k)  # type: ignore[arg-type]
            return mix(mix(colours, 2) + mix(total, 3), 4)

    return _tuple_wl(graphs, k, refine, rounds, node_colours)


def oblivious_wl(data: Any, k: int = 2, *, rounds: int | None = None, node_colours: Tensor | None = None) -> Colouring:
    """Oblivious k-WL: ``wl(v), ({{wl(v[u/i]) : u}})_{i=1..k}``, one multiset for each place; the literature's k-WL.

    Arguments and errors are those of `folklore_wl`, and k is at least 2.
    """
    if k < 2:
        raise ValueError(f"k must be at least 2 for oblivious k-WL; got {k}.")
    graphs = read_graphs(data)

    def refine(colours: Tensor) -> Tensor:
        real = _tuples(graphs.mask, k)
        mixed = mix(colours, 2)
        for i in range(k):
            mixed = mixed + mix((mix(colours, 10 + i) * real).sum(i + 1, keepdim=True), 20 + i)
        return mix(mixed, 4)

    return _tuple_wl(graphs, k, refine, rounds, node_colours)


def is_equitable(data: Any, colours: Tensor, node_colours: Tensor | None = None) -> bool:
    """Whether, in each graph, nodes of one colour began alike and have equally many neighbours of every colour.

    True proves that the hashes of `colour_refinement` lost nothing: they can only be too coarse, and these are not.

    Args:
        data: as for `colour_refinement`.
        colours: (N,) int64.
        node_colours: the initial colours, if not ``x``.
    """
    graphs = read_graphs(data)
    if graphs.num_nodes == 0:
        return True
    own = mix(colours, 46) + mix(graphs.owner, 45)
    classes, colour = torch.unique(own, return_inverse=True)
    representative = torch.zeros_like(classes)
    representative[colour] = torch.arange(len(colour), device=colour.device)
    model = representative[colour]  # (N,) the node that each one must look like
    initial = _initial(graphs, node_colours)
    if not torch.equal(initial, initial[model]):
        return False
    source, target, labels = graphs.arcs
    kind = colour[target]
    if labels is not None:
        _, kind = torch.unique(torch.stack([colour[target], labels]), dim=1, return_inverse=True)
    width = int(kind.max()) + 1 if len(kind) else 1
    keys, counts = torch.unique(source * width + kind, return_counts=True)
    node, neighbour = keys // width, keys % width
    kinds = torch.bincount(node, minlength=graphs.num_nodes)
    if not torch.equal(kinds, kinds[model]):
        return False
    first = kinds.cumsum(0) - kinds
    twin = first[model[node]] + torch.arange(len(node), device=node.device) - first[node]
    return torch.equal(neighbour, neighbour[twin]) and torch.equal(counts, counts[twin])


def graph_hash(data: Any, test: str, rounds: int | None = None) -> Tensor:
    """Hashes of graphs, (B,) int64: equal where the test cannot tell two graphs apart.

    Args:
        data: as for `colour_refinement`.
        test: ``cr``, ``k-fwl`` (folklore) or ``k-owl`` (oblivious), such as ``2-fwl``.
        rounds: how many; None for stability.

    Raises:
        ValueError: there is no such test.
    """
    return _run(data, test, rounds).graph_hash


def vertex_hash(data: Any, test: str, rounds: int | None = None) -> Tensor:
    """Hashes of nodes, (N,) int64: for k-WL those of the tuple (v, ..., v). Arguments as for `graph_hash`."""
    found = _run(data, test, rounds)
    if found.mask is None:
        return found.colours
    graphs = read_graphs(data)
    place = graphs.position
    return found.colours[(graphs.owner, *[place] * (found.colours.ndim - 1))]


def pair_hash(data: Any, test: str, rounds: int | None = None) -> Tensor:
    """Hashes of the columns of ``edge_index``, (E,) int64: for k-WL those of the tuple (u, v, ..., v).

    For colour refinement and 1-WL they are made of both ends and of what joins them. Arguments as for `graph_hash`.
    """
    found = _run(data, test, rounds)
    graphs = read_graphs(data)
    source, target = data.edge_index
    place, owner = graphs.position, graphs.owner
    joined = graphs.pair_labels()[owner[source], place[source], place[target]]
    if found.mask is None or found.colours.ndim == 2:
        ends = found.colours if found.mask is None else found.colours[owner, place]
        return mix(mix(ends[source], 60) + mix(ends[target], 61) + mix(joined + (source == target), 62), 63)
    return found.colours[(owner[source], place[source], *[place[target]] * (found.colours.ndim - 2))]


def parse_test(test: str) -> tuple[str, int]:
    """A test's kind, ``cr``, ``fwl`` or ``owl``, and its k.

    Raises:
        ValueError: there is no such test.
    """
    if test == "cr":
        return "cr", 1
    found = re.fullmatch(r"([1-9]\d*)-(fwl|owl)", test)
    if found is None:
        raise ValueError(f"test must be 'cr', '<k>-fwl' or '<k>-owl'; got {test!r}.")
    return found[2], int(found[1])


def _run(data: Any, test: str, rounds: int | None) -> Colouring:
    kind, k = parse_test(test)
    if kind == "cr":
        return colour_refinement(data, rounds=rounds)
    return (folklore_wl if kind == "fwl" else oblivious_wl)(data, k, rounds=rounds)


def _initial(graphs: GraphBatch, node_colours: Tensor | None) -> Tensor:
    """(N,) hashes of what distinguishes nodes before the first round."""
    colours = graphs.loops.clone()
    if node_colours is not None:
        if node_colours.shape != colours.shape or node_colours.is_floating_point():
            raise ValueError(
                f"node_colours must be ({graphs.num_nodes},) integers; got {node_colours.dtype} of shape "
                f"{tuple(node_colours.shape)}."
            )
        colours = spread(colours * _ODD + node_colours.to(colours) + 1)
    elif graphs.x is not None:
        for channel in hashable(graphs.x, "x").T.to(colours.device):
            colours = spread(colours * _ODD + channel + 1)
    if graphs.node_type is not None:
        colours = spread(colours * _ODD + graphs.node_type.to(colours) + 1)
    return spread(colours + 1)


def _refine_nodes(
    graphs: GraphBatch, colours: Tensor, refine: Callable[[Tensor], Tensor], rounds: int | None
) -> tuple[Tensor, Tensor]:
    done = torch.zeros(graphs.num_graphs, dtype=torch.int64, device=colours.device)
    if rounds is not None:
        for _ in range(_checked(rounds)):
            colours = refine(colours)
        return colours, done + rounds
    salted = mix(graphs.owner, 45)

    def count(values: Tensor) -> Tensor:
        keys, order = (values ^ salted).sort()
        new = torch.ones_like(keys)
        new[1:] = (keys[1:] != keys[:-1]).long()
        return torch.zeros_like(done).index_add_(0, graphs.owner[order], new)

    # each graph stops at its own first round without a new colour: its hash must not depend on its company
    running = graphs.sizes > 0
    counts = count(colours)
    while running.any():
        refined = refine(colours)
        colours = torch.where(running[graphs.owner], refined, colours)
        done += running
        previous, counts = counts, count(colours)
        running = running & (counts != previous)
    return colours, done


def _checked(rounds: int) -> int:
    if rounds < 0:
        raise ValueError(f"rounds must not be negative; got {rounds}.")
    return rounds


def _hash_nodes(graphs: GraphBatch, colours: Tensor) -> Tensor:
    hashes = spread(colours + _ODD)
    if graphs.num_graphs == 1:
        total = hashes.sum(0, keepdim=True)
    else:
        total = torch.zeros(graphs.num_graphs, dtype=torch.int64, device=colours.device)
        total.scatter_add_(0, graphs.owner, hashes)
    return spread(total * _ODD + graphs.sizes)


def _tuples(mask: Tensor, k: int) -> Tensor:
    """(B, n, ..., n) which tuples are of real nodes, from (B, n)."""
    real = mask.view(*mask.shape, *[1] * (k - 1))
    for axis in range(1, k):
        real = real & mask.view(len(mask), *[1] * axis, -1, *[1] * (k - 1 - axis))
    return real


def _tuple_wl(
    graphs: GraphBatch,
    k: int,
    refine: Callable[[Tensor], Tensor],
    rounds: int | None,
    node_colours: Tensor | None,
) -> Colouring:
    if graphs.num_graphs * graphs.width**k > _MAX_ELEMENTS:
        raise MemoryError(
            f"{k}-WL on {graphs.num_graphs} graphs of up to {graphs.width} nodes has {graphs.width**k:,} tuples each, "
            f"more than {_MAX_ELEMENTS:,} in all; take fewer graphs at a time, or a smaller k."
        )
    real = _tuples(graphs.mask, k)
    colours = _atomic_types(graphs, k, node_colours)
    done = torch.zeros(graphs.num_graphs, dtype=torch.int64, device=colours.device)
    if rounds is not None:
        for _ in range(_checked(rounds)):
            colours = refine(colours)
        done += rounds
    else:

        def count(values: Tensor) -> Tensor:
            keys = torch.where(real, values, 0).flatten(1).sort(dim=1).values
            return (keys[:, 1:] != keys[:, :-1]).sum(1)

        running, counts = graphs.sizes > 0, count(colours)
        while running.any():
            colours = torch.where(running.view(-1, *[1] * k), refine(colours), colours)
            done += running
            previous, counts = counts, count(colours)
            running = running & (counts != previous)
    total = (mix(colours, 8) * real).flatten(1).sum(1)
    hashes = mix(total + mix(graphs.sizes, 9), 4)
    return Colouring(torch.where(real, colours, 0), real, hashes, done)


def _atomic_types(graphs: GraphBatch, k: int, node_colours: Tensor | None) -> Tensor:
    """(B, n, ..., n) equalities, what joins the nodes of each tuple in both directions, and their colours."""
    n, b = graphs.width, graphs.num_graphs
    joined = graphs.pair_labels()
    same = torch.eye(n, dtype=torch.int64, device=joined.device).expand(b, n, n)
    nodes = graphs.pad(_initial(graphs, node_colours))
    types = torch.zeros(b, *[n] * k, dtype=torch.int64, device=joined.device)
    for i in range(k):
        shape = [b, *[1] * k]
        shape[i + 1] = n
        types = mix(types + mix(nodes, 50).view(shape), 51)
        for j in range(i + 1, k):
            shape = [b, *[1] * k]
            shape[i + 1] = shape[j + 1] = n
            types = mix(types + mix(mix(joined, 52) + same, 54).reshape(shape), 55)
    return types

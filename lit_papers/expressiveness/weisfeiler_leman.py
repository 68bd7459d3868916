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
        num_classes: distinct colours in the batch.
    """

    colours: Tensor
    mask: Tensor | None
    graph_hash: Tensor
    rounds: Tensor
    num_classes: int


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
    source, target, labels = graphs.arcs
    if labels is None and source.device.type == "cpu":
        matrix = graphs.matrix

        def refine(colours: Tensor) -> Tensor:
            values = colours.numpy()
            return torch.from_numpy(values * _ODD + matrix @ spread(values))

    else:

        def refine(colours: Tensor) -> Tensor:
            seen = colours.index_select(0, target)
            return (colours * _ODD).scatter_add_(0, source, spread(seen if labels is None else seen + labels))

    colours, done = _refine_nodes(graphs, _initial(graphs, node_colours), refine, rounds)
    return Colouring(colours, None, _hash_nodes(graphs, colours), done, len(_unique(colours)))


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
        source, target, labels = graphs.arcs
        present, owner, position = graphs.mask, graphs.owner, graphs.position

        def refine(colours: Tensor) -> Tensor:
            everyone = mix(colours, 5) * present
            of_nodes = colours[owner, position]
            seen = of_nodes[target] if labels is None else of_nodes[target] + labels
            around = graphs.pad(torch.zeros_like(of_nodes).index_add_(0, source, mix(seen, 6)))
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
    if test == "cr":
        return colour_refinement(data, rounds=rounds).graph_hash
    found = re.fullmatch(r"(\d+)-(fwl|owl)", test)
    if found is None:
        raise ValueError(f"test must be 'cr', '<k>-fwl' or '<k>-owl'; got {test!r}.")
    run = folklore_wl if found[2] == "fwl" else oblivious_wl
    return run(data, int(found[1]), rounds=rounds).graph_hash


def _unique(values: Tensor) -> Tensor:
    found: Tensor = torch.unique(values)
    return found


def _initial(graphs: GraphBatch, node_colours: Tensor | None) -> Tensor:
    """(N,) hashes of what distinguishes nodes before the first round."""
    colours = torch.zeros(graphs.num_nodes, dtype=torch.int64, device=graphs.owner.device)
    if node_colours is not None:
        if node_colours.shape != colours.shape or node_colours.is_floating_point():
            raise ValueError(
                f"node_colours must be ({graphs.num_nodes},) integers; got {node_colours.dtype} of shape "
                f"{tuple(node_colours.shape)}."
            )
        colours = mix(node_colours.to(colours), 40)
    elif graphs.x is not None:
        for channel in hashable(graphs.x, "x").T.to(colours.device):
            colours = mix(mix(colours, 42) + mix(channel, 43), 44)
    if graphs.node_type is not None:
        colours = mix(mix(colours, 47) + mix(graphs.node_type.to(colours), 48), 49)
    return mix(colours + graphs.loops, 41)


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
    total = torch.zeros(graphs.num_graphs, dtype=torch.int64, device=colours.device)
    return mix(total.index_add_(0, graphs.owner, mix(colours, 8)) + mix(graphs.sizes, 9), 4)


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
    return Colouring(torch.where(real, colours, 0), real, hashes, done, len(_unique(colours[real])))


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

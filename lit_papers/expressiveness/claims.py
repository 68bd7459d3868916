"""What `reproduce` computes for this paper: bounds on graphs, what more power takes, and who can fit which invariant.

For the last, every network is used as it is drawn, with a trained head: on ten classes of circulant skip link graphs,
and, by least squares, on homomorphism counts of pairs of graphs that colour refinement cannot tell apart.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_papers.expressiveness.architectures import ARCHITECTURES, architecture
from lit_papers.expressiveness.bounds import Bound, bound
from lit_papers.expressiveness.evaluation import evaluate
from lit_papers.expressiveness.expressions import Expression, Function, postorder
from lit_papers.expressiveness.graphs import CSL_SKIPS, PAIR_NAMES, atlas, csl, import_graph_extra, named_pair
from lit_papers.expressiveness.hashing import spread
from lit_papers.expressiveness.kmpnn import KMPNN
from lit_papers.expressiveness.minimisation import minimise
from lit_papers.expressiveness.parsing import parse
from lit_papers.expressiveness.separation import embed, relabelled
from lit_papers.expressiveness.tensor_language import FUNCTIONS
from lit_papers.expressiveness.weisfeiler_leman import graph_hash, vertex_hash
from lit_papers.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INVARIANTS = {
    "stars K1,3": "sum[a](sum[b](sum[c](sum[d](E(a,b)*E(a,c)*E(a,d)))))",
    "walks of 4": "sum[a](sum[b](sum[c](sum[d](sum[e](E(a,b)*E(b,c)*E(c,d)*E(d,e))))))",
    "triangles": "sum[a](sum[b](sum[c](E(a,b)*E(b,c)*E(c,a))))",
    "4-cycles": "sum[a](sum[b](sum[c](sum[d](E(a,b)*E(b,c)*E(c,d)*E(d,a)))))",
}
"""Homomorphism counts: of trees, which colour refinement determines, and of cycles, which it does not."""

PATTERNS = {
    "sum[a,b,c,d](E(a,b)*E(a,c)*E(a,d))": 1,
    "sum[a,b,c,d,e](E(a,b)*E(b,c)*E(c,d)*E(d,e))": 1,
    "sum[a,b,c,d](E(a,b)*E(b,c)*E(c,d)*E(d,a))": 2,
    "sum[a,b,c,d,e,f](E(a,b)*E(b,c)*E(c,d)*E(d,e)*E(e,f)*E(f,a))": 2,
    "sum[a,b,c,d](E(a,b)*E(b,c)*E(c,d)*E(d,a)*E(a,c))": 2,
    "sum[a,b,c,d](E(a,b)*E(b,c)*E(c,d)*E(d,a)*E(a,c)*E(b,d))": 3,
}
"""Homomorphism counts of a star, a path, two cycles, a cycle with a chord and K4, and the treewidth of each."""

_WIDTH, _FEATURES = 96, 96
# relative to the largest value, in float64 with sums over at most 16^4 tuples: what is equal differs by less than the
# first, as measured by a factor of 10^6; what differs, by more than the second on the graphs below
_ROUNDING, _RESOLUTION = 1e-9, 1e-11


def architecture_bounds(seed: int, *, layers: int = 1) -> dict[str, float]:
    """Whether all architectures keep to the bound that is derived from their expression, and which ones reach it.

    Each is evaluated with random functions, with and without readout, on small graphs and on pairs that colour
    refinement cannot tell apart.

    Args:
        seed: of the functions.
        layers: of each network, at least 1.

    Returns:
        ``architectures``, how many; ``broken``, how many of their expressions tell apart what their bound calls equal;
        ``largest``, the largest relative difference between values that must be equal; ``tight``, how many expressions
        are said to reach a bound of so many rounds; ``missed``, how many of these do not on these graphs.
    """
    graphs = _batch(
        [*atlas(5)[3:], *(graph for name in PAIR_NAMES[:2] for graph in named_pair(name)), csl(11, 2), csl(11, 3)]
    )
    differences, tight, missed = [], 0, 0
    for name, plan in ARCHITECTURES.items():
        for readout in (False, True):
            found = architecture(name, layers=layers, readout=readout)
            colours = _colours(graphs, found.bound)
            values = evaluate(found.expression, graphs, random_functions(found.expression, seed))
            values = values / values.abs().amax()
            differences.append(_within(values, colours))
            if plan.tight and found.bound.rounds is not None:  # so many layers have no endless rounds
                tight += 1
                missed += len(torch.unique((values / _RESOLUTION).round(), dim=0)) < len(torch.unique(colours))
    return {
        "architectures": len(ARCHITECTURES),
        "broken": sum(difference > _ROUNDING for difference in differences),
        "largest": max(differences),
        "tight": tight,
        "missed": missed,
    }


def random_functions(e: Expression, seed: int) -> dict[str, Callable[..., Tensor]]:
    """For each function of an expression that is not built in, a random one that mixes all arguments; two channels."""
    names = sorted({part.name for part in postorder(e) if isinstance(part, Function)} - set(FUNCTIONS))
    draw = torch.Generator().manual_seed(seed)

    def made() -> Callable[..., Tensor]:
        slopes = 0.3 + torch.rand(64, 2, generator=draw, dtype=torch.float64)

        def function(*arguments: Tensor) -> Tensor:
            channels = torch.cat(arguments, 1)
            mixed = channels @ slopes[: channels.shape[1]]
            return torch.tanh(0.3 * mixed) + 0.05 * mixed  # neither saturated nor linear

        return function

    return {name: made() for name in names}


def _batch(graphs: Sequence[Any]) -> Any:
    """Graphs as one batch in float64, with the same attributes on all edges for expressions that read them."""
    batch = import_graph_extra("torch_geometric.data").Batch.from_data_list(list(graphs))
    batch.x = batch.x.double()
    batch.edge_attr = torch.ones(batch.num_edges, 1, dtype=torch.float64)
    batch.edge_type = torch.zeros(batch.num_edges, dtype=torch.int64)
    return batch


def _colours(graphs: Any, claimed: Bound) -> Tensor:
    """Colours of nodes, or of graphs, by the test that bounds an expression; all its statements are of equal sizes."""
    test = "cr" if claimed.test == "cr" else f"{claimed.k}-fwl"
    if claimed.level == "graph":
        sizes: Tensor = graphs.ptr.diff()
        return spread(graph_hash(graphs, test, claimed.rounds)) + sizes
    return vertex_hash(graphs, test, claimed.rounds)


def _within(values: Tensor, colours: Tensor) -> float:
    """The largest difference between values of one colour."""
    _, group = torch.unique(colours, return_inverse=True)
    index = group[:, None].expand_as(values)
    shape = (int(group.max()) + 1, values.shape[1])
    low, high = (
        values.new_zeros(shape).scatter_reduce(0, index, values, kind, include_self=False) for kind in ("amin", "amax")
    )
    return float((high - low).max())


def separated_pairs(seed: int, *, name: str = "gin", layers: int = 3, **options: Any) -> dict[str, float]:
    """How many pairs of graphs, all equal to colour refinement, an architecture with random functions tells apart.

    Args:
        seed: of the functions.
        name: of the architecture; its further options follow.
        layers: of it.
        options: see `architecture`.

    Returns:
        ``pairs``, how many there are; ``separated``; ``ceiling``, how many its bound allows; ``names``, index names
        that it takes; ``above``, how many it tells apart against its bound.
    """
    found = architecture(name, layers=layers, readout=True, **options)
    functions = random_functions(found.expression, seed)
    pairs = hard_pairs()
    separated = allowed = above = 0
    for pair in pairs:
        graphs = _batch(pair)
        first, second = evaluate(found.expression, graphs, functions)
        apart = bool(((first - second).abs() > _ROUNDING * torch.maximum(first.abs(), second.abs())).any())
        colours = _colours(graphs, found.bound)
        possible = bool(colours[0] != colours[1])
        separated += apart
        allowed += possible
        above += apart and not possible
    return {
        "pairs": len(pairs),
        "separated": separated,
        "ceiling": allowed,
        "names": found.bound.num_indices,
        "above": above,
    }


def hard_pairs() -> list[tuple[Any, Any]]:
    """The atlas' pairs that share their stable colouring, two circulant skip link graphs, and the named ones."""
    graphs = hard_graphs()
    hashes = graph_hash(_batch(graphs), "cr").tolist()
    known: dict[int, Any] = {}
    pairs = []
    for graph, colour in zip(graphs, hashes, strict=True):
        if colour in known:
            pairs.append((known.pop(colour), graph))
        else:
            known[colour] = graph
    return [*pairs, (csl(11, 2), csl(11, 3)), *(named_pair(name) for name in PAIR_NAMES[1:])]  # the atlas has the first


def names_needed(seed: int) -> dict[str, list[float]]:
    """Homomorphism counts as they are written and with as few index names as possible, on random graphs.

    Returns:
        ``written`` and ``rewritten``, the counts of each pattern on each graph, all in a row; ``names``, index names of
        the rewritten ones; ``treewidth_plus_one``, of the patterns.
    """
    draw = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(atlas(6)), generator=draw)[:12].tolist()
    graphs = _batch([atlas(6)[index] for index in drawn])
    written, rewritten, names = [], [], []
    for text in PATTERNS:
        expression = parse(text)
        written += evaluate(expression, graphs).flatten().tolist()
        rewritten += evaluate(minimise(expression), graphs).flatten().tolist()
        names.append(float(bound(expression).num_indices))
    return {
        "written": written,
        "rewritten": rewritten,
        "names": names,
        "treewidth_plus_one": [width + 1.0 for width in PATTERNS.values()],
    }


def approximation(seed: int, *, network: str = "GIN") -> dict[str, float]:
    """What a network as it is drawn, with a trained head, can learn.

    Args:
        seed: of the network.
        network: a key of `models`.

    Returns:
        ``csl``, the accuracy on ten classes of which chance is .1, and the relative error of each of `INVARIANTS`.
    """
    return {"csl": csl_accuracy(network, seed), **invariant_errors(network, seed)}


def models() -> dict[str, Callable[[], tuple[nn.Module, Any]]]:
    """Factories of the networks that are compared, each with its readout."""
    pyg = import_graph_extra("torch_geometric.nn")
    return {
        "GCN": lambda: (pyg.GCN(1, _WIDTH, 4, _FEATURES), "mean"),
        "GIN": lambda: (pyg.GIN(1, _WIDTH, 4, _FEATURES), "mean"),
        "1-MPNN": lambda: (KMPNN(1, 1, _WIDTH, _FEATURES, 4, conv="mpnn"), None),
        "2-MPNN": lambda: (KMPNN(2, 1, _WIDTH, _FEATURES, 4, conv="mpnn"), None),
        "2-FGNN": lambda: (KMPNN(2, 1, _WIDTH, _FEATURES, 4), None),
    }


def embeddings(name: str, graphs: Sequence[Any], seed: int) -> Tensor:
    """Float64 embeddings (B, d) of graphs by a network as it is drawn, each relabelled at random."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model, readout = models()[name]()
        batch = import_graph_extra("torch_geometric.data").Batch.from_data_list(
            [relabelled(graph, None) for graph in graphs]
        )
        batch.x = batch.x.double()
        return embed(model.double().eval(), batch, readout)


def csl_accuracy(name: str, seed: int, *, steps: int = 200) -> float:
    """Accuracy of a trained linear head on fresh relabelings of the ten circulant skip link graphs; chance is 0.1."""
    graphs = [csl(41, skip) for skip in CSL_SKIPS]
    train, test = embeddings(name, graphs, seed), embeddings(name, graphs, seed)
    mean, spread = train.mean(0), train.std(0)
    # a feature that only rounding moves carries nothing: do not blow it up
    there = spread > 1e-9 * train.abs().max()
    train, test = ((values - mean)[:, there] / spread[there] for values in (train, test))
    labels = torch.arange(len(graphs))
    if not there.any():
        return 1 / len(graphs)  # all graphs look the same: whatever the head says, it says of all
    weight = torch.zeros(train.shape[1], len(graphs), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(train @ weight, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return float((test @ weight).argmax(1).eq(labels).double().mean())


def invariant_errors(name: str, seed: int) -> dict[str, float]:
    """Relative error of the best linear fit of each invariant on the 52 graphs of the atlas' 26 hard pairs.

    There are more features than graphs, so what cannot be fitted is what the network does not see.
    """
    graphs = hard_graphs()
    features = embeddings(name, graphs, seed)
    features = torch.cat([features - features.mean(0), torch.ones(len(graphs), 1, dtype=torch.float64)], 1)
    left, singular, _ = torch.linalg.svd(features, full_matrices=False)
    left = left[:, singular > 1e-9 * singular[0]]
    batch = import_graph_extra("torch_geometric.data").Batch.from_data_list(graphs)
    batch.x = batch.x.double()
    errors = {}
    for invariant, text in INVARIANTS.items():
        counts = evaluate(parse(text), batch)[:, 0]
        around = counts - counts.mean()
        errors[invariant] = float((around - left @ (left.T @ around)).norm() / around.norm())
    return errors


def hard_graphs() -> list[Any]:
    """The graphs of the atlas that share their stable colouring with another one."""
    graphs = atlas()
    hashes = graph_hash(import_graph_extra("torch_geometric.data").Batch.from_data_list(graphs), "cr")
    _, group, counts = torch.unique(hashes, return_inverse=True, return_counts=True)
    return [graph for graph, shared in zip(graphs, (counts[group] > 1).tolist(), strict=True) if shared]


def approximation_figure(outcomes: Sequence[Any]) -> "Figure":
    """Accuracy on circulant skip link graphs, and what share of each invariant cannot be fitted, for each network.

    Args:
        outcomes: of `approximation`; each has ``arm``, the network, and ``values``.
    """
    names = list(dict.fromkeys(outcome.arm for outcome in outcomes))

    def mean(name: str, key: str) -> float:
        return statistics.fmean(100 * outcome.values[key] for outcome in outcomes if outcome.arm == name)

    figure, (left, right) = new_figure(1, 2)
    places = range(len(names))
    left.bar(places, [mean(name, "csl") for name in names], color="0.55")
    left.axhline(10, color="black", linestyle="--", linewidth=1, label="chance")
    left.set_xticks(places, names, fontsize=8)
    left.set(ylabel="accuracy on CSL graphs (%)", ylim=(0, 105))
    left.legend(fontsize=8)
    hatches = ("", "//", "xx", "..")
    for index, (invariant, hatch) in enumerate(zip(INVARIANTS, hatches, strict=True)):
        shifted = [place + 0.2 * (index - 1.5) for place in places]
        heights = [mean(name, invariant) for name in names]
        right.bar(
            shifted, heights, 0.18, color=f"{0.3 + 0.18 * index}", hatch=hatch, edgecolor="black", label=invariant
        )
    right.set_xticks(places, names, fontsize=8)
    right.set(ylabel="error of the best fit (% of the spread)")
    right.legend(fontsize=8)
    return figure

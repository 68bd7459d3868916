"""``python -m lit_papers.expressiveness.experiment``: who tells graphs apart, and who can fit which invariant.

Every network is used as it is drawn, with a trained head: on ten classes of circulant skip link graphs, and, by least
squares, on homomorphism counts of pairs of graphs that colour refinement cannot tell apart.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import track
from torch import Tensor, nn

from lit_papers.expressiveness.evaluation import evaluate
from lit_papers.expressiveness.graphs import CSL_SKIPS, atlas, csl, import_graph_extra
from lit_papers.expressiveness.kmpnn import KMPNN
from lit_papers.expressiveness.parsing import parse
from lit_papers.expressiveness.separation import embed, relabelled
from lit_papers.expressiveness.weisfeiler_leman import graph_hash
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

_WIDTH, _FEATURES = 96, 96


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


def plot(accuracies: dict[str, list[float]], errors: dict[str, dict[str, float]]) -> "Figure":
    """Accuracy on circulant skip link graphs, and what share of each invariant cannot be fitted, for each network."""
    figure, (left, right) = new_figure(1, 2)
    names = list(accuracies)
    places = range(len(names))
    left.bar(places, [100 * sum(values) / len(values) for values in accuracies.values()], color="0.55")
    left.axhline(10, color="black", linestyle="--", linewidth=1, label="chance")
    left.set_xticks(places, names, fontsize=8)
    left.set(ylabel="accuracy on CSL graphs (%)", ylim=(0, 105))
    left.legend(fontsize=8)
    hatches = ("", "//", "xx", "..")
    for index, (invariant, hatch) in enumerate(zip(INVARIANTS, hatches, strict=True)):
        shifted = [place + 0.2 * (index - 1.5) for place in places]
        heights = [100 * errors[name][invariant] for name in names]
        right.bar(
            shifted, heights, 0.18, color=f"{0.3 + 0.18 * index}", hatch=hatch, edgecolor="black", label=invariant
        )
    right.set_xticks(places, names, fontsize=8)
    right.set(ylabel="error of the best fit (% of the spread)")
    right.legend(fontsize=8)
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Print the table and draw the figure."""
    parser = argparse.ArgumentParser(prog="python -m lit_papers.expressiveness.experiment", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/expressiveness/experiment"), help="folder of the figure")
    parser.add_argument("--seeds", type=int, default=3, help="networks of each kind (default 3)")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    options.out.mkdir(parents=True, exist_ok=True)
    names = list(models())
    accuracies = {
        name: [csl_accuracy(name, seed) for seed in range(options.seeds)] for name in track(names, "CSL classes")
    }
    errors = {name: invariant_errors(name, 0) for name in track(names, "invariants")}
    print("| network | accuracy on CSL | " + " | ".join(f"error of {name}" for name in INVARIANTS) + " |")
    print("|---|---|" + "---|" * len(INVARIANTS))
    for name in names:
        values = accuracies[name]
        shown = f"{100 * sum(values) / len(values):.0f} % ({100 * min(values):.0f} - {100 * max(values):.0f})"
        print(f"| {name} | {shown} | " + " | ".join(f"{100 * e:.1g} %" for e in errors[name].values()) + " |")
    plot(accuracies, errors).savefig(options.out / "experiment.png")
    print(f"\nfigure in {options.out}")


if __name__ == "__main__":
    main()

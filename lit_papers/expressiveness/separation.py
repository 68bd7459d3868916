"""What a model tells apart in fact: differences between graphs against the noise of relabelling them."""

import copy
import inspect
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lit_papers.expressiveness.graphs import import_graph_extra
from lit_papers.expressiveness.weisfeiler_leman import graph_hash

Readout = Literal["sum", "mean"]
_GREY = (10.0, 1000.0)
_NOISY = 1e-3


@dataclass(frozen=True)
class SeparationReport:
    """Which pairs of graphs a model tells apart, beside what tests could.

    Attributes:
        status: of each pair: ``separated``, ``equal``, or ``unreliable`` (not finite, or relabelling moves the
            embeddings about as much as the other graph does).
        ratios: (P,) difference of each pair over the noise.
        parts: what part of the collection each pair is of.
        per_part: separated pairs of each part.
        ceiling: for each test, the pairs that it tells apart.
        exceeds: for each test, positions of pairs that the model separated though the test cannot.
        num_separated, num_unreliable: counts.
        num_grey: pairs with a ratio from 10 to 1000, where another threshold would decide otherwise.
    """

    status: tuple[str, ...]
    ratios: Tensor
    parts: tuple[str, ...]
    ceiling: Mapping[str, int]
    exceeds: Mapping[str, tuple[int, ...]]
    ceiling_per_part: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def num_separated(self) -> int:
        """Pairs told apart."""
        return self.status.count("separated")

    @property
    def num_unreliable(self) -> int:
        """Pairs of which nothing can be said."""
        return self.status.count("unreliable")

    @property
    def num_grey(self) -> int:
        """Pairs near the threshold."""
        return int(((self.ratios > _GREY[0]) & (self.ratios < _GREY[1])).sum())

    @property
    def per_part(self) -> dict[str, int]:
        """Separated pairs of each part, parts in their order."""
        counts = dict.fromkeys(self.parts, 0)
        for part, status in zip(self.parts, self.status, strict=True):
            counts[part] += status == "separated"
        return counts

    def as_metrics(self) -> dict[str, float]:
        """Numbers for a logger, keys as the callback `SeparationPower` has them behind its name."""
        numbers = {
            "separated": self.num_separated,
            "total": len(self.status),
            "unreliable": self.num_unreliable,
            "grey": self.num_grey,
            **{f"ceiling/{test}": count for test, count in self.ceiling.items()},
            **{f"part/{part}": count for part, count in self.per_part.items()},
        }
        return {key: float(value) for key, value in numbers.items()}


def separation_power(
    model: nn.Module,
    pairs: Sequence[Any],
    *,
    relabelings: int = 4,
    dtype: torch.dtype = torch.float64,
    ratio: float = 100.0,
    tests: Sequence[str] = ("cr",),
    readout: Readout | None = None,
    seed: int = 0,
    ceilings: Mapping[str, Sequence[bool]] | None = None,
) -> SeparationReport:
    """Measure which pairs of graphs a model embeds differently, by more than numerical noise.

    Each graph is embedded under several relabelings, twice. The spread of these embeddings is the noise; a pair is
    separated if the difference of its means is `ratio` times as large. A fixed tolerance would measure the tolerance.

    Args:
        model: called as ``model(x, edge_index, batch=...)`` if its forward has ``edge_index`` (``batch`` only if it has
            that too), as ``model(batch)`` otherwise. A copy runs, on the CPU in evaluation mode.
        pairs: items that unpack as (first, second), PyG graphs; a ``part`` attribute names their part.
        relabelings: of each graph in each of the two groups, at least 2.
        dtype: of the copy; float64 unless you want to see what float32 does.
        ratio: threshold.
        tests: for the ceilings, such as ``cr`` and ``2-fwl``.
        readout: for models with an output for each node.
        seed: of the relabelings.
        ceilings: for each test which pairs it tells apart, if that is known already.

    Raises:
        ValueError: there are no pairs, `relabelings` is below 2, a test is unknown, or the output is not (B, d).
    """
    if not pairs:
        raise ValueError("pairs is empty: there is nothing to tell apart.")
    if relabelings < 2:
        raise ValueError(f"relabelings must be at least 2, to see what relabelling changes; got {relabelings}.")
    known = pair_ceilings(pairs, tests) if ceilings is None else ceilings
    uneven = sum(int(first.num_nodes) != int(second.num_nodes) for first, second in map(_graphs, pairs))
    if uneven:
        warnings.warn(
            f"{uneven} of {len(pairs)} pairs have graphs of different sizes, trivially separated by size.", UserWarning,
            stacklevel=2,
        )  # fmt: skip
    clone = copy.deepcopy(model).to("cpu", dtype).eval()
    clone.__dict__.pop("forward", None)  # where Lightning keeps a compiled one, which is bound to the original
    generator = torch.Generator().manual_seed(seed)
    status, ratios = [], []
    with isolate_rng(), torch.no_grad():
        for pair in pairs:
            found, size = _measure(clone, _graphs(pair), relabelings, dtype, ratio, readout, generator)
            status.append(found)
            ratios.append(size)
    parts = tuple(str(getattr(pair, "part", "all")) for pair in pairs)
    return SeparationReport(
        status=tuple(status),
        ratios=torch.tensor(ratios, dtype=torch.float64),
        parts=parts,
        ceiling={test: sum(flags) for test, flags in known.items()},
        exceeds={
            test: tuple(i for i, flag in enumerate(flags) if status[i] == "separated" and not flag)
            for test, flags in known.items()
        },
        ceiling_per_part={
            test: dict(Counter(part for part, flag in zip(parts, flags, strict=True) if flag))
            for test, flags in known.items()
        },
    )


def pair_ceilings(pairs: Sequence[Any], tests: Sequence[str]) -> dict[str, list[bool]]:
    """For each test, whether it tells each pair apart."""
    batches = [import_graph_extra("torch_geometric.data").Batch.from_data_list(list(_graphs(pair))) for pair in pairs]
    found = {}
    for test in tests:
        hashes = [graph_hash(batch, test) for batch in batches]
        found[test] = [bool(pair[0] != pair[1]) for pair in hashes]
    return found


def embed(model: nn.Module, batch: Any, readout: Readout | None = None) -> Tensor:
    """Graph embeddings (B, d) of a PyG ``Batch``, whatever the model's call looks like.

    Raises:
        ValueError: the output is not (B, d), nor (N, d) with a `readout`; or the readout is unknown.
    """
    if readout not in (None, "sum", "mean"):
        raise ValueError(f"readout must be 'sum', 'mean' or None; got {readout!r}.")
    parameters = inspect.signature(model.forward).parameters
    if "edge_index" in parameters:
        extra = {"batch": batch.batch} if "batch" in parameters else {}
        output = model(batch.x, batch.edge_index, **extra)
    else:
        output = model(batch)
    wanted = batch.num_nodes if readout else batch.num_graphs
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != wanted:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"the model's output is {shape}; with readout={readout!r} it must be ({wanted}, d). A model with an output "
            "for each node needs readout='sum' or 'mean'."
        )
    if readout is None:
        return output
    total = output.new_zeros(batch.num_graphs, output.shape[1]).index_add_(0, batch.batch, output)
    if readout == "mean":
        total = total / torch.bincount(batch.batch, minlength=batch.num_graphs).clamp_min(1)[:, None]
    return total


def relabelled(graph: Any, generator: torch.Generator | None) -> Any:
    """A copy of a PyG graph with its nodes in random order; None draws from the global random stream."""
    order = torch.randperm(graph.num_nodes, generator=generator)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    twin = graph.clone()
    twin.edge_index = place[graph.edge_index]
    for key, value in graph:
        if key != "edge_index" and isinstance(value, Tensor) and graph.is_node_attr(key):
            twin[key] = value[order]
    return twin


class PairedT2(NamedTuple):
    """Outcome of a paired test on embeddings.

    Attributes:
        statistic: NaN where it is degenerate.
        threshold: above which the graphs count as different.
        p_value: None for the released rule.
        distinguished: they do.
        degenerate: the differences span fewer dimensions than they have, and the size of their mean decides.
    """

    statistic: float
    threshold: float
    p_value: float | None
    distinguished: bool
    degenerate: bool


def paired_t2(
    left: Tensor, right: Tensor, *, rule: Literal["f-test", "released"] = "f-test", alpha: float = 0.05
) -> PairedT2:
    """Hotelling's paired T2 test on embeddings of q relabelings of two graphs, (q, d) each; the statistic of BREC.

    BREC's code compares ``mean' pinv(cov) mean`` with 72.34, which is ``(q - 1) d / (q - d)`` times an F quantile for
    q = 32 and d = 16. That belongs to q times the statistic, so its true level is far below the 0.05 that is meant. The
    rule ``released`` reproduces the published numbers, ``f-test`` has the factor q.

    Raises:
        ValueError: shapes differ, or q is not above d.
    """
    if left.shape != right.shape or left.ndim != 2:
        raise ValueError(f"left and right must be (q, d) both; got {tuple(left.shape)} and {tuple(right.shape)}.")
    if rule not in ("f-test", "released"):
        raise ValueError(f"rule must be 'f-test' or 'released'; got {rule!r}.")
    q, d = left.shape
    if rule == "f-test" and q <= d:
        raise ValueError(f"the F test needs more relabelings than dimensions; got q={q}, d={d}.")
    difference = (left - right).double()
    mean = difference.mean(0)
    spread = torch.cov(difference.T).reshape(d, d)
    statistic = float(mean @ torch.linalg.pinv(spread) @ mean)
    if rule == "released":
        return PairedT2(statistic, 72.34, None, statistic > 72.34, False)
    from scipy.stats import f as f_distribution

    factor = (q - 1) * d / (q - d)
    threshold = float(factor * f_distribution.ppf(1 - alpha, d, q - d))
    scale = float(torch.cat([left, right]).abs().max())
    eps = torch.finfo(left.dtype).eps
    noise = float((difference - mean).abs().max())
    if noise <= 1000 * eps * scale or int(torch.linalg.matrix_rank(spread)) < d:
        apart = float(mean.abs().max()) > 100 * max(noise, eps * scale)
        return PairedT2(float("nan"), threshold, float("nan"), apart, True)
    value = q * statistic
    p_value = float(f_distribution.sf(value / factor, d, q - d))
    return PairedT2(value, threshold, p_value, value > threshold, False)


def _graphs(pair: Any) -> tuple[Any, Any]:
    return pair[0], pair[1]


def _measure(
    model: nn.Module,
    graphs: tuple[Any, Any],
    relabelings: int,
    dtype: torch.dtype,
    ratio: float,
    readout: Readout | None,
    generator: torch.Generator,
) -> tuple[str, float]:
    batch_of = import_graph_extra("torch_geometric.data").Batch.from_data_list
    groups = []
    for graph in graphs:
        twins = [relabelled(graph, generator) for _ in range(2 * relabelings)]
        batch = batch_of(twins)
        for key, value in list(batch):
            if isinstance(value, Tensor) and value.is_floating_point():
                batch[key] = value.to(dtype)
        groups += embed(model, batch, readout).to(torch.float64).split(relabelings)  # type: ignore[no-untyped-call]
    # measurement and control of the first graph, then of the second
    stacked = torch.stack(groups)
    if not stacked.isfinite().all():
        return "unreliable", float("nan")
    means = stacked.mean(1)
    noise = float((stacked - means[:, None]).abs().max())
    scale = float(stacked.abs().max())
    floor = max(noise, torch.finfo(dtype).eps * scale)

    def ratio_of(i: int, j: int) -> float:
        difference = float((means[i] - means[j]).abs().max())
        return difference / floor if difference else 0.0

    between = ratio_of(0, 2)
    if noise > _NOISY * scale or max(ratio_of(0, 1), ratio_of(2, 3)) > ratio:
        return "unreliable", between
    return ("separated" if between > ratio else "equal"), between

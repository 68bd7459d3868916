"""The lenses of a diagnosis: what their numbers mean, and where that is from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lit_papers.diagnose import figures, plans
from lit_papers.diagnose.plans import Plan, Setting
from lit_papers.lens import Lens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Data = Literal["train", "validation"]
History = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """A number that the page shows.

    Attributes:
        key: as the lens calls it.
        label: for people.
        meaning: what range means what.
        error: key of its standard error.
        scale: that it is multiplied by, to be in the unit of the label.
        when: it is shown; ``"now"`` says nothing over several checkpoints, ``"over time"`` nothing of one.
    """

    key: str
    label: str
    meaning: str
    error: str | None = None
    scale: float = 1.0
    when: Literal["always", "now", "over time"] = "always"


@dataclass(frozen=True)
class Entry:
    """A lens of the diagnosis.

    Attributes:
        name: for ``--lenses`` and in report.json.
        title: of its section.
        what: a paragraph: what is measured.
        error: how the numbers are uncertain.
        source: paper and section.
        rows: what is shown.
        plans: the ways to measure, the most thorough first; raises NotApplicable.
        data: what it is measured on.
        caption: of the figure.
        draw: a figure of the last moment, from the lens and the history of each data set; None for none.
        gathers: whether it reads through the pass over the data that such lenses share.
        control: measure an untrained copy too, as epoch 0.
    """

    name: str
    title: str
    what: str
    error: str
    source: str
    rows: tuple[Row, ...]
    plans: Callable[[Setting], list[Plan]]
    data: tuple[Data, ...] = ("train",)
    caption: str = ""
    draw: "Callable[[Lens, Mapping[str, History]], Figure | None]" = field(default=lambda lens, histories: None)
    gathers: bool = False
    control: bool = False


def _last(lens: Lens, histories: Mapping[str, History]) -> "Figure":
    """The figure that the lens draws of the first data set."""
    return lens.figure(next(iter(histories.values())))


def _only_over_time(lens: Lens, histories: Mapping[str, History]) -> "Figure | None":
    history = next(iter(histories.values()))
    return lens.figure(history) if len(history) > 1 else None


_HAN = "Han, Papyan & Donoho, ICLR 2022"
_PAPYAN = "Papyan, Han & Donoho, PNAS 2020"
_EXACT = "Exact for the samples that were measured; other samples would give somewhat other numbers."

ENTRIES: tuple[Entry, ...] = (
    Entry(
        "collapse",
        "Neural collapse",
        "At the end of a long training the features of one class shrink to one point (NC1), these points spread out "
        "as equally as possible (NC2), the classifier's rows point at them (NC3), and a decision is simply for the "
        "nearest one (NC4). Measured on the features before the last layer, block by block before them, and on "
        "validation data beside the training data.",
        _EXACT,
        f"{_PAPYAN}; {_HAN}, definitions of NC1 to NC4",
        (
            Row("train_error", "share of wrong decisions", "0: all samples are classified right"),
            Row(
                "nc1",
                "NC1, scatter within classes",
                "below 0.1 nearly collapsed; about the number of classes or more: scatter hides the classes",
            ),
            Row("nc2_equinorm_means", "NC2, unequal lengths of class means", "0: equal; above 0.3 far from it"),
            Row("nc2_max_angle_means", "NC2, unequal angles of class means", "0: a simplex; above 0.3 far from it"),
            Row("nc3_self_duality", "NC3, classifier against class means", "0: parallel; 2: unrelated; 4: opposite"),
            Row(
                "nc4_ncc_mismatch",
                "NC4, decisions that are not the nearest mean's",
                "0: nearest class mean decides",
                error="nc4_standard_error",
            ),
            Row("cdnv", "CDNV, scatter beside distance of class pairs", "below 0.1: few-shot transfer is easy"),
            Row(
                "class_mean_noise",
                "share of the class means' spread that is chance",
                "near 0: samples enough; at 1/2 NC1 and CDNV come out at half of what they are, at 1 they say nothing",
            ),
            Row(
                "effective_rank",
                "effective rank of the features",
                "classes - 1 at collapse; more: scatter is left; fewer: classes share directions",
            ),
        ),
        plans.collapse,
        data=("train", "validation"),
        caption="From block to block, input to classifier",
        draw=figures.collapse_over_depth,
        gathers=True,
    ),
    Entry(
        "central_path",
        "Central path",
        "Trained by the MSE loss with weight decay, the loss splits exactly into what the best head for the present "
        "features would leave (least squares) and what the head is away from it; on the central path the second is "
        "nothing. The signal-to-noise ratios of the features, one for each direction between classes, then say "
        "all. Where another loss is minimised, or its weight decay is not known, only these ratios are given.",
        f"{_EXACT} Ratios are not known where features do not scatter at all in some direction (dead units). "
        "Of N samples of C classes with d features they come out too large, by about sqrt(N / (N - C - d)).",
        f"{_HAN}, section 3",
        (
            Row("loss", "MSE loss with its L2 term, per sample", "0 at a perfect fit"),
            Row("ls", "of it least squares", "what the features allow"),
            Row("perp", "of it the head's deviation", "0: on the central path"),
            Row("ratio", "deviation / least squares", "well below 1: beside the central path"),
            Row("snr_max", "largest signal-to-noise ratio", "grows without end while features collapse"),
            Row("snr_min", "smallest signal-to-noise ratio", "near 0: two classes hardly differ"),
        ),
        plans.central_path,
        caption="Signal-to-noise ratios, largest first",
        draw=lambda lens, histories: figures.signal_to_noise(histories["train"]),
        gathers=True,
    ),
    Entry(
        "head",
        "Head against least squares",
        "Is the last layer what linear regression on the present features would give, but for scale and bias? A head "
        "that is not has something left to learn, or features that go on moving.",
        _EXACT,
        f"{_HAN}, the least-squares classifier; scale and bias are left out here",
        (
            Row("distance", "distance of directions", "0: parallel; 2: unrelated; 4: opposite"),
            Row("excess", "excess loss at the best scale / least-squares loss", "0: as good as least squares"),
            Row("ls", "MSE loss of the least-squares head, per sample", "0: classes are linearly separable points"),
        ),
        plans.head,
        gathers=True,
    ),
    Entry(
        "interactions",
        "Orders of interaction",
        "How strongly two parts of an input act together when m others are present, for small m (local texture), "
        "middle m, and large m (nearly the whole input). J is the strength of each order by the mean of all. "
        "Trained networks are typically weak in the middle: the representation bottleneck. Averaging gives even noise "
        "such a shape, so the same network with fresh random weights is measured beside it. Absent parts are "
        "replaced by 0, which is the mean of normalised data.",
        "Bands and errors are drawn: noise of sampled contexts and rounding (95 %), and other samples (one standard "
        "error). Orders whose strength is below the noise floor are left empty.",
        "Deng et al., ICLR 2022, section 3",
        (
            Row(
                "J_centroid",
                "centroid of J over the orders",
                "0: only pairs alone; 1/2: balanced or two-sided; 1: only the whole",
                error="J_centroid_error",
            ),
            Row("n_samples", "samples measured", "more make the bands of the figure narrower", when="now"),
        ),
        plans.interactions,
        data=("validation",),
        caption="Strength of each order: relative, raw beside the noise floor, and as a map",
        draw=_last,
        control=True,
    ),
    Entry(
        "cost",
        "Where multiply-adds go",
        "One sample is sent through the network, and each product is counted in the layer that makes it. Beside it "
        "stands what is left of a map behind each stride or pooling: what lies behind is cheaper by that share, and "
        "sees no more than that.",
        "Counts are exact; elementwise work, norms and FFTs are not counted.",
        "Riad et al., ICLR 2022, on what strides cost",
        (
            Row(
                "gmacs",
                "multiply-adds of a sample, in millions",
                "the figure shows where they are spent",
                scale=1e3,
                when="now",
            ),
        ),
        plans.cost,
        caption="Multiply-adds by layer, and what is left of a map",
        draw=_last,
    ),
    Entry(
        "strides",
        "Strides, learned or to be learned",
        "Every stride is a choice that was made by hand. Here the network is converted so that its strides are "
        "learned (the copy is thrown away): which layers that would be, and what the network would cost before it "
        "learns, as learned strides begin at the old ones with a margin around each map. Where strides are learned "
        "already, what they are now.",
        "The conversion was carried out and run at several strides.",
        "Riad et al., ICLR 2022",
        (
            Row("gmacs", "multiply-adds of a sample at the learned strides, in millions", "less is cheaper", scale=1e3),
            Row("penalty", "J of the learned strides", "the paper's measure of their cost"),
            Row("layers", "layers with a stride that could be learned", "0: there is none", when="now"),
            Row(
                "strides",
                "strides of their own",
                "fewer than layers where maps meet, as in residual blocks",
                when="now",
            ),
            Row("cost_ratio", "multiply-adds, converted / now", "1: no dearer; training moves it", when="now"),
        ),
        plans.strides,
        caption="Layers and their strides",
        draw=figures.strides,
    ),
    Entry(
        "convex_gap",
        "Distance from the global optimum",
        "For two layers with ReLU between them and weight decay, training is a convex problem in disguise, whose dual "
        "bounds from below what a network of any width could reach.",
        "The optimum lies between bound and objective with certainty, up to rounding.",
        "Wang, Lacotte & Pilanci, ICLR 2022, the convex program and its dual",
        (
            Row("objective", "training objective, summed over samples", "what the network reaches"),
            Row("lower_bound", "certified lower bound", "what no network of this kind can go below"),
            Row("certified_gap", "gap", "0: globally optimal; large: not optimal, or the bound is loose"),
            Row("active_neurons", "neurons that do something", "compare with the width"),
        ),
        plans.convex_gap,
        caption="Distance from the bound over the checkpoints",
        draw=_only_over_time,
    ),
    Entry(
        "separation",
        "Separation of graphs",
        "Pairs of graphs that are different, but hard to tell apart: how many of them get different outputs, beside "
        "what the colour-refinement test and its stronger relative could separate. Message passing cannot go beyond "
        "the first; what a network does beyond its ceiling is noise or a bug.",
        "Each graph is relabelled several times; a difference counts where it is well above that between a graph and "
        "itself, and is called unreliable between.",
        "Geerts & Reutter, ICLR 2022, theorems 4.1 to 4.3",
        (
            Row("separated", "pairs separated", "as many as the ceiling: the architecture is used to the full"),
            Row("total", "pairs in all", "", when="now"),
            Row("ceiling/cr", "ceiling of message passing (colour refinement)", "most that message passing can reach"),
            Row("ceiling/2-fwl", "ceiling of 2-FWL", "most that third-order networks can reach"),
            Row("unreliable", "pairs that cannot be decided", "0 is good"),
        ),
        plans.separation,
        caption="Pairs separated, by part of the collection, and the ceilings",
        draw=_last,
    ),
    Entry(
        "similarity",
        "Similarity of layers",
        "How alike what two layers make of the same samples is, up to rotation and scale; over several checkpoints, "
        "how much each layer has changed since the first. Maps and tokens are averaged over their positions. Blocks "
        "of equal darkness are layers that do nearly the same.",
        "Standard errors are over the samples (jackknife). The estimator is unbiased, so it may be slightly negative.",
        "Kornblith et al., ICML 2019; Madaan et al., ICLR 2022, section 5.3",
        (
            Row(
                "neighbours",
                "mean CKA of layers that follow each other",
                "near 1: layers change little, some may be superfluous",
                error="neighbours_error",
            ),
            Row(
                "to_first",
                "mean CKA with the first checkpoint",
                "1: features are the same; below 0.5: other features",
                when="over time",
            ),
        ),
        plans.similarity,
        data=("validation",),
        caption="Similarity of every layer with every other",
        draw=_last,
    ),
    Entry(
        "loss_slice",
        "Slice of the loss around the weights",
        "The weights are moved along two random directions, each filter by a share of its own length, and the loss is "
        "evaluated on training samples. Lengths by filter make networks comparable whose weights are scaled "
        "differently. In a flat region the loss stays low for long.",
        "The loss has a standard error over samples; the spread is along the ring, so of directions.",
        "Li et al., NeurIPS 2018; Madaan et al., ICLR 2022, section 5.3",
        (
            Row("loss", "loss at the weights, per sample", "", error="loss_error"),
            Row(
                "rise_half",
                "rise at half a filter's length",
                "small beside the loss of chance: flat",
                "rise_half_spread",
            ),
            Row(
                "rise_whole",
                "rise at a whole filter's length",
                "near the loss of chance: all is lost",
                "rise_whole_spread",
            ),
            Row(
                "lowest", "lowest point of the slice, less the loss", "0: nothing near is better along these directions"
            ),
        ),
        plans.loss_slice,
        caption="Contours of the loss; the cross is the network",
        draw=_last,
    ),
    Entry(
        "consensus",
        "Consensus of ranks",
        "Checkpoints of local SGD keep the weights of each rank between two averagings: how far they are from their "
        "average.",
        "Exact, up to rounding.",
        "Yun, Rajput & Sra, ICLR 2022",
        (
            Row("consensus_distance", "mean squared distance from the average", "0 just after averaging"),
            Row("relative_consensus_distance", "the same by the squared norm of the average", "below 1e-3 is usual"),
            Row("ranks", "ranks", ""),
        ),
        plans.consensus,
        caption="Drift over the checkpoints",
        draw=_only_over_time,
    ),
)

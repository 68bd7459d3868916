"""Neural collapse and the central path of any classifier, at one moment."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from lit_papers.lens import Lens, Moment, NotApplicable, Numbers, Seen, Subject
from lit_papers.lens.layers import Layer, chosen_layers
from lit_papers.lens.weight_decay import decay_of
from lit_papers.neural_collapse import figures
from lit_papers.neural_collapse.functional import (
    ClassStatistics,
    centered_class_means,
    effective_rank,
    equinorm,
    max_equiangularity,
    mse_decomposition,
    nearest_class_mean,
    neural_collapse_measures,
    regularization_strength,
    snr_singular_values,
    variability_collapse,
)
from lit_papers.neural_collapse.metrics import ClassStatisticsMetric
from lit_papers.neural_collapse.reservoir import LIMIT_BYTES, Reservoir, stratified_share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MEASURES = (
    "nc1",
    "nc1_over_c",
    "nc2_equinorm_means",
    "nc2_equinorm_weights",
    "nc2_max_angle_means",
    "nc2_max_angle_weights",
    "nc2_seli_means",
    "nc2_seli_weights",
    "nc3_self_duality",
    "cdnv",
    "effective_rank",
    "class_mean_noise",
    "rank",
    "num_classes_seen",
)
_NOISY = 0.5  # share of noise, at which NC1 is off by a factor of two
_REDUCTIONS = ("mean", "batchmean", None, "auto")
_STATISTICS, _ERROR, _DECISIONS = "class statistics", "train error", "decisions"
_DTYPES = {"float64": torch.float64, "float32": torch.float32}
LAYER_MEASURES = ("nc1", "nc2_equinorm_means", "nc2_max_angle_means", "effective_rank")


class _Kept(Metric):
    """Rows of this process for after the pass, when the class means are known."""

    full_state_update = False

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(sync_on_compute=False)
        self.reservoir = Reservoir(limit_bytes)

    def update(self, *columns: Tensor) -> None:
        """Offer a batch."""
        self.reservoir.add(*columns)

    def compute(self) -> Reservoir:
        """All that was kept."""
        return self.reservoir


class CollapseLens(Lens):
    """NC1 to NC4 of the last layer (Papyan et al. 2020), and the error; the same of chosen layers before it.

    NC4 compares each decision with the nearest class mean, and the means are known when the features have gone by. The
    pass keeps features on the host in ``ncc_bytes``: all of them where they fit (NC4 is then exact), else a uniform
    sample of them; ``nc4_standard_error`` is what the sampling may have changed, 0 for all. There is no second pass and
    nothing is compared with means of an earlier measurement.

    Args:
        ncc: also compare with the nearest class mean (NC4).
        center_classifier: subtract the mean row from the weight first; right for classifiers without bias.
        layers: dotted paths of layers before the last to measure in the same pass, or ``"all"`` blocks: NC1, lengths
            and angles of the class means, effective rank and (with ``ncc``) the share of samples whose nearest class
            mean there is not what the network decides in the end. Maps and tokens are averaged over their positions.
        ncc_bytes: memory for what NC4 keeps, for all layers together, on each process.
        residual_dtype: ``"float32"`` for devices with slow float64, within the error bound that
            `lit_papers.neural_collapse.functional.class_statistics` gives.

    Raises:
        ValueError: ``ncc_bytes`` is not positive, ``layers`` is empty or one string other than ``"all"``, or an unknown
            ``residual_dtype``.

    >>> _ = torch.manual_seed(0)
    >>> network = torch.nn.Linear(2, 3)
    >>> batches = [(torch.randn(8, 2), torch.arange(8) % 3)]
    >>> CollapseLens()(network, batches)["num_classes_seen"]
    3.0
    """

    name = "neural_collapse"

    def __init__(
        self,
        ncc: bool = True,
        center_classifier: bool = False,
        layers: Sequence[str] | Literal["all"] | None = None,
        ncc_bytes: int = LIMIT_BYTES,
        residual_dtype: Literal["float64", "float32"] = "float64",
    ) -> None:
        if layers is not None and layers != "all" and (isinstance(layers, str) or not layers):
            raise ValueError(f'layers must be a list of dotted paths, "all" or None, got {layers!r}')
        if ncc_bytes < 1:
            raise ValueError(f"ncc_bytes must be at least 1, got {ncc_bytes}")
        if residual_dtype not in _DTYPES:
            raise ValueError(f"residual_dtype must be one of {', '.join(_DTYPES)}, got {residual_dtype!r}")
        self.ncc = ncc
        self.center_classifier = center_classifier
        self.layers = layers
        self.ncc_bytes = int(ncc_bytes)  # 2e9 is a way to write it
        self.residual_dtype = _DTYPES[residual_dtype]
        self._warned: set[str] = set()

    def check(self, subject: Subject) -> list[Layer]:
        """Find classifier and layers, and have class statistics gathered."""
        classes, _ = gather_statistics(subject, self.residual_dtype)
        subject.gather(_ERROR, _mean, _add_error)
        layers = [] if self.layers is None else chosen_layers(subject, self.layers)
        for layer in layers:
            subject.gather(*_layer_statistics(layer, classes, self.residual_dtype), layers=(layer.name,))
        if self.ncc:
            names = tuple(layer.name for layer in layers)
            subject.gather(self._kept(layers), lambda: _Kept(self.ncc_bytes), _keeping(layers), layers=names)
        return layers

    def look(self, moment: Moment, prepared: list[Layer], history: Sequence[Mapping[str, Any]]) -> Numbers:
        """NC1 to NC4 and the error; of each layer, what there is of them, as ``<layer>/<measure>``.

        Raises:
            ValueError: the features are not finite, or of fewer than two classes.
        """
        stats: ClassStatistics = moment.gathered((_STATISTICS, self.residual_dtype))
        self._warn_of_unseen(stats)
        measures = neural_collapse_measures(stats, moment.head()[0], center_classifier=self.center_classifier)
        numbers: Numbers = {key: float(measures[key]) for key in _MEASURES}
        if float(measures["class_mean_noise"]) > _NOISY and not moment.subject.trial:  # of one batch it is no wonder
            self._warn_once(
                "half or more of the spread of the class means is the chance of their samples (class_mean_noise), so "
                "NC1 and CDNV come out at half or less of what they are: measure more samples of each class"
            )
        inside = {layer.name: self._layer_statistics(moment, layer) for layer in prepared}
        shares = self._mismatches(moment, prepared, [stats, *inside.values()])
        if self.ncc:
            numbers |= {"nc4_ncc_mismatch": shares[0][0], "nc4_standard_error": shares[0][1]}
        numbers["train_error"] = float(moment.gathered(_ERROR))
        for (name, found), share in zip(inside.items(), shares[1:], strict=True):
            values = dict.fromkeys(LAYER_MEASURES, math.nan) if found is None else _layer_measures(found)
            if self.ncc:
                values["nc4_ncc_mismatch"] = share[0]
            numbers |= {f"{name}/{key}": value for key, value in values.items()}
        return numbers

    def unknown(self, prepared: list[Layer]) -> Numbers:
        """NaN for every key."""
        nearest = ["nc4_ncc_mismatch", "nc4_standard_error"] if self.ncc else []
        keys = [*_MEASURES, *nearest, "train_error"]
        for layer in prepared:
            keys += [f"{layer.name}/{key}" for key in (*LAYER_MEASURES, *nearest[:1])]
        return dict.fromkeys(keys, math.nan)

    def figure(self, history: Sequence[Mapping[str, Any]]) -> "Figure":
        """Six panels against epoch: error, NC1 (log), norms, angles, self-duality and NC4."""
        return figures.collapse({None: history})

    def _kept(self, layers: list[Layer]) -> tuple[Any, ...]:
        return _DECISIONS, self.ncc_bytes, *layers

    def _mismatches(
        self, moment: Moment, layers: list[Layer], found: list[ClassStatistics | None]
    ) -> list[tuple[float, float]]:
        """For the last layer and each other, the share that the nearest mean decides otherwise, and its error."""
        if not self.ncc:
            return [(math.nan, math.nan)] * len(found)
        reservoir: Reservoir = moment.gathered(self._kept(layers))
        counts = torch.zeros(moment.processes.size, 2 + len(found), dtype=torch.float64)  # kept, seen, hits of each
        mine = counts[moment.processes.rank]
        mine[0], mine[1] = reservoir.kept, reservoir.seen
        if reservoir.kept:
            decisions, *features = reservoir.columns()
            for place, (stats, rows) in enumerate(zip(found, features, strict=True)):
                if stats is not None:
                    mine[2 + place] = (nearest_class_mean(rows, stats).cpu() != decisions).sum()
        kept, seen, *hits = moment.processes.sum(counts).T
        return [
            (math.nan, math.nan) if stats is None else stratified_share(found_hits, kept, seen)
            for stats, found_hits in zip(found, hits, strict=True)
        ]

    def _layer_statistics(self, moment: Moment, layer: Layer) -> ClassStatistics | None:
        try:
            found: ClassStatistics = moment.gathered((_STATISTICS, self.residual_dtype, layer))
            return found
        except ValueError as error:  # of this layer alone
            self._warn_once(f"nothing measured of layer {layer.name!r}: {error}; NaN is recorded")
            return None

    def _warn_of_unseen(self, stats: ClassStatistics) -> None:
        unseen = (stats.counts == 0).nonzero().flatten().tolist()
        if unseen:
            self._warn_once(f"no sample has class {', '.join(map(str, unseen))}: left out of every measure")

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            rank_zero_warn(f"neural collapse: {message}")


@dataclass(frozen=True)
class _Split:
    """What of the MSE loss is known; `reduction` None where training does not minimise it."""

    reduction: str | None
    factor: float
    rank: int


class CentralPathLens(Lens):
    """How far a classifier trained by MSE is from the central path (Han, Papyan & Donoho, ICLR 2022, section 3).

    Args:
        lam: strength of the L2 term in the loss that is minimised, >= 0; ``"auto"`` derives it from the weight decay of
            the head in the trainer's optimizer.
        reduction: of the MSE loss: ``"mean"``, ``"batchmean"``, None (not trained by MSE), or ``"auto"``: read from
            ``training_step``.

    Raises:
        ValueError: bad ``lam`` or ``reduction``.
    """

    name = "central_path"

    def __init__(
        self,
        lam: float | Literal["auto"] = "auto",
        reduction: Literal["mean", "batchmean", "auto"] | None = "auto",
    ) -> None:
        if lam != "auto" and not (isinstance(lam, (int, float, np.number)) and 0 <= lam < math.inf):
            raise ValueError(f"lam must be a number >= 0 or 'auto', got {lam!r}")
        if reduction not in _REDUCTIONS:
            raise ValueError(f"reduction must be one of {_REDUCTIONS}, got {reduction!r}")
        self.lam = lam
        self.reduction = reduction
        self._warned: set[str] = set()

    def check(self, subject: Subject) -> _Split:
        """Find the classifier, the loss that is minimised and how the classifier decays."""
        classes, features = gather_statistics(subject)
        reduction, factor = self._loss(subject)
        split = _Split(reduction, factor, min(features, classes - 1))
        self._regularization(subject, split)
        return split

    def look(self, moment: Moment, prepared: _Split, history: Sequence[Mapping[str, Any]]) -> Numbers:
        """The parts of the loss, and the singular values of the signal-to-noise matrix.

        Raises:
            ValueError: the features are not finite, or of fewer than two classes.
        """
        stats: ClassStatistics = moment.gathered((_STATISTICS, torch.float64))
        snr: list[float] = snr_singular_values(stats).tolist()
        numbers: Numbers = {}
        split = self._now(moment.subject, prepared)
        if split.reduction is not None:
            lam, decay_bias = self._regularization(moment.subject, split)
            weight, bias = moment.head()
            parts = mse_decomposition(stats, weight, bias, lam, decay_bias=decay_bias)
            numbers = {key: float(parts[key]) for key in figures.PARTS}
            # at lam = 0 the least-squares loss can be exactly zero
            ratio = float(parts["perp"]) / float(parts["ls"]) if parts["ls"] > 0 else math.nan
            numbers |= {"ratio": ratio, "lam": lam}
        elif prepared.reduction is not None:
            numbers = dict.fromkeys((*figures.PARTS, "ratio", "lam"), math.nan)
        return {**numbers, "snr_max": snr[0], "snr_min": snr[-1], "snr": snr}

    def unknown(self, prepared: _Split) -> Numbers:
        """NaN for every key."""
        keys = [*([*figures.PARTS, "ratio", "lam"] if prepared.reduction is not None else []), "snr_max", "snr_min"]
        return {**dict.fromkeys(keys, math.nan), "snr": [math.nan] * prepared.rank}

    def figure(self, history: Sequence[Mapping[str, Any]]) -> "Figure":
        """Loss and its parts (log), their ratio, and the signal-to-noise ratios with a slope-1/4 guide (log-log)."""
        return figures.central_path(history)

    def _now(self, subject: Subject, split: _Split) -> _Split:
        """What a training minimises at this moment: its step may ramp a weight, or go over to another loss."""
        if self.reduction != "auto" or subject.trainer is None or subject.trainer.state.fn != "fit":
            return split
        reduction, factor = self._loss(subject)
        return _Split(reduction, factor, split.rank)

    def _loss(self, subject: Subject) -> tuple[str | None, float]:
        """How the MSE loss is reduced, and by what it is multiplied; None where something else is minimised."""
        if self.reduction != "auto":
            return self.reduction, 1.0
        loss = subject.training_loss()
        if loss is None:
            self._warn_once(
                "cannot tell which loss is minimised, so only `snr` is recorded; pass `reduction` ('mean' for "
                "nn.MSELoss()) if it is the MSE loss"
            )
            return None, 1.0
        if loss.name not in ("mse", "weighted_mse") or loss.factor == 0:
            return None, 1.0
        other = None
        if loss.name == "weighted_mse":
            other = "the MSE loss has weights"
        elif not loss.one_hot:
            other = "the targets of the MSE loss are not one-hot (but scaled, centred, smoothed or mixed)"
        elif self.lam == "auto" and not loss.alone:
            other = "beside the MSE loss, training_step minimises a term of the classifier's weights"
        if other is not None:
            self._warn_once(
                f"{other}, so the split would be of another loss and only `snr` is recorded; pass `lam` and "
                "`reduction` to have it all the same"
            )
            return None, 1.0
        if self.lam == "auto" and not _is_trained(subject):
            rank_zero_info(
                "CentralPath: outside of a fit no optimizer tells the weight decay, so only `snr` is recorded; pass "
                "`lam` for the split of the loss"
            )
            return None, 1.0
        if self.lam == "auto" and (loss.reduction != "mean" or loss.factor is None):
            what = f"an MSE loss of reduction {loss.reduction!r}" if loss.factor is not None else "an MSE loss"
            raise NotApplicable(
                f"training_step minimises {what} that scales in a way that cannot be read from it, so lam does not "
                "follow from weight_decay: pass `lam` and `reduction`"
            )
        return "mean", loss.factor or 1.0

    def _regularization(self, subject: Subject, split: _Split) -> tuple[float, bool]:
        """``lam`` and whether it applies to the bias, as the optimizer has them now."""
        head = subject.head
        optimizers = [] if subject.trainer is None else subject.trainer.optimizers
        asked = self.lam == "auto" and split.reduction is not None
        own = dict(head.named_parameters(recurse=False))
        weight_decay, bias_decay = (
            decay_of(own[name], optimizers, strict=asked) if name in own else None for name in ("weight", "bias")
        )
        if "bias" not in own and getattr(head, "bias", None) is None:
            bias_decay = weight_decay
        if weight_decay is None:
            if asked:
                others = [name for name, each in head.named_parameters() if each.requires_grad and name != "bias"]
                made = f" itself (its weight is made of {', '.join(others)})" if others else ""
                self._warn_once(f"no optimizer trains the classifier{made}: lam is taken as 0; pass `lam` to set it")
            return 0.0 if self.lam == "auto" else float(self.lam), True
        bias_strength = 0.0 if bias_decay is None else bias_decay.strength
        if weight_decay.strength != bias_strength and bias_strength:
            raise NotApplicable(
                f"the weight of {subject.route.head!r} decays by {weight_decay.strength}, its bias by {bias_strength}: "
                "the decomposition knows one lam for both, or none for the bias"
            )
        decay_bias = bool(bias_strength) or not weight_decay.strength
        if self.lam != "auto":
            return float(self.lam), decay_bias
        if split.reduction is None:
            return 0.0, decay_bias
        if weight_decay.decoupled and weight_decay.strength:
            self._warn_once(
                "decoupled weight decay (AdamW) minimises no L2 term: lam is taken as 0; pass `lam` to set it"
            )
            return 0.0, True
        lam = regularization_strength(weight_decay.strength, subject.route.classes, split.reduction)
        return lam / split.factor, decay_bias

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            rank_zero_warn(f"CentralPath: {message}")


def _is_trained(subject: Subject) -> bool:
    """Whether an optimizer of the trainer has the network; after a fit it keeps those of another one."""
    own = {id(parameter) for parameter in subject.network.parameters()}
    optimizers = [] if subject.trainer is None else subject.trainer.optimizers
    return any(
        id(each) in own for optimizer in optimizers for group in optimizer.param_groups for each in group["params"]
    )


def gather_statistics(subject: Subject, residual_dtype: torch.dtype = torch.float64) -> tuple[int, int]:
    """Have a subject gather class statistics of the features; lenses that ask share them.

    Returns:
        Number of classes C and of features d.

    Raises:
        NotApplicable: no linear layer makes the logits that belong to the classes of a batch.
    """
    route = subject.route  # of the copy: spectral norm counts a look at the weight as a training step
    classes, features = route.classes, route.features
    subject.gather(
        (_STATISTICS, residual_dtype),
        lambda: ClassStatisticsMetric(classes, features, residual_dtype),
        lambda metric, seen: _add_statistics(metric, seen, seen.features),
    )
    return classes, features


def _layer_statistics(
    layer: Layer, classes: int, residual_dtype: torch.dtype
) -> tuple[Any, Callable[[], Metric], Callable[[Any, Seen], None]]:
    return (
        (_STATISTICS, residual_dtype, layer),
        lambda: ClassStatisticsMetric(classes, layer.dim, residual_dtype),
        lambda metric, seen: _add_statistics(metric, seen, layer.pooled(seen)),
    )


def _layer_measures(stats: ClassStatistics) -> dict[str, float]:
    means = centered_class_means(stats)
    values = (
        variability_collapse(stats),
        equinorm(means),
        max_equiangularity(means),
        effective_rank(stats),
    )
    return dict(zip(LAYER_MEASURES, map(float, values), strict=True))


def _keeping(layers: list[Layer]) -> Callable[[Any, Seen], None]:
    def keep(metric: _Kept, seen: Seen) -> None:
        metric.update(seen.outputs.argmax(dim=1), seen.features, *(layer.pooled(seen) for layer in layers))

    return keep


def _mean() -> Metric:
    return MeanMetric().set_dtype(torch.float64)


def _add_statistics(metric: ClassStatisticsMetric, seen: Seen, features: Tensor) -> None:
    metric.update(features.to(metric.moments.device), seen.targets.to(metric.moments.device))


def _add_error(metric: MeanMetric, seen: Seen) -> None:
    metric.update((seen.outputs.argmax(dim=1) != seen.targets).to(metric.device, torch.float64))

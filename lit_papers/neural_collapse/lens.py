"""Neural collapse and the central path of any classifier, at one moment."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from lit_papers.lens import Lens, Moment, NotApplicable, Numbers, Seen, Subject
from lit_papers.lens.weight_decay import decay_of
from lit_papers.neural_collapse import figures
from lit_papers.neural_collapse.functional import (
    ClassStatistics,
    mse_decomposition,
    nearest_class_mean,
    neural_collapse_measures,
    regularization_strength,
    snr_singular_values,
)
from lit_papers.neural_collapse.metrics import ClassStatisticsMetric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MEASURES = (
    "nc1",
    "nc1_over_c",
    "nc2_equinorm_means",
    "nc2_equinorm_weights",
    "nc2_max_angle_means",
    "nc2_max_angle_weights",
    "nc3_self_duality",
    "rank",
    "num_classes_seen",
)
_REDUCTIONS = ("mean", "batchmean", None, "auto")
_STATISTICS, _ERROR, _DECISIONS = "class statistics", "train error", "decisions"


class _Decisions(Metric):
    """Features (float32, on the host) and predicted classes of this process, until the class means are known."""

    full_state_update = False
    features: list[Tensor]
    predictions: list[Tensor]

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)
        self.add_state("features", [])
        self.add_state("predictions", [])

    def update(self, features: Tensor, predictions: Tensor) -> None:
        """Keep a batch."""
        self.features.append(features.detach().float().cpu())
        self.predictions.append(predictions.cpu())

    def compute(self) -> list[tuple[Tensor, Tensor]]:
        """What was kept, batch by batch."""
        return list(zip(self.features, self.predictions, strict=True))


class CollapseLens(Lens):
    """NC1 to NC4 of the last layer (Papyan et al. 2020), and the training error.

    Args:
        ncc: also compare with the nearest class mean (NC4), which keeps the features of a pass on the host
            (4 N d bytes).
        center_classifier: subtract the mean row from the weight first; right for classifiers without bias.

    >>> _ = torch.manual_seed(0)
    >>> network = torch.nn.Linear(2, 3)
    >>> batches = [(torch.randn(8, 2), torch.arange(8) % 3)]
    >>> CollapseLens()(network, batches)["num_classes_seen"]
    3.0
    """

    name = "neural_collapse"

    def __init__(self, ncc: bool = True, center_classifier: bool = False) -> None:
        self.ncc = ncc
        self.center_classifier = center_classifier
        self._warned = False

    def check(self, subject: Subject) -> None:
        """Find the classifier, and have class statistics gathered."""
        gather_statistics(subject)
        subject.gather(_ERROR, _mean, _add_error)
        if self.ncc:
            subject.gather(_DECISIONS, _Decisions, _add_decisions)

    def look(self, moment: Moment, prepared: None, history: Sequence[Mapping[str, Any]]) -> Numbers:
        """NC1 to NC4 and the training error.

        Raises:
            ValueError: the features are not finite, or of fewer than two classes.
        """
        stats: ClassStatistics = moment.gathered(_STATISTICS)
        self._warn_of_unseen(stats)
        measures = neural_collapse_measures(stats, moment.head()[0], center_classifier=self.center_classifier)
        numbers: Numbers = {key: float(measures[key]) for key in _MEASURES}
        if self.ncc:
            differ = torch.zeros((), dtype=torch.float64)
            for features, predictions in moment.gathered(_DECISIONS):
                nearest = nearest_class_mean(features.to(stats.means.device), stats)
                differ += (nearest.cpu() != predictions).sum()
            numbers["nc4_ncc_mismatch"] = float(moment.processes.sum(differ)) / float(stats.counts.sum())
        return {**numbers, "train_error": float(moment.gathered(_ERROR))}

    def unknown(self, prepared: None) -> Numbers:
        """NaN for every key."""
        return dict.fromkeys([*_MEASURES, *(["nc4_ncc_mismatch"] if self.ncc else []), "train_error"], math.nan)

    def figure(self, history: Sequence[Mapping[str, Any]]) -> "Figure":
        """Six panels against epoch: error, NC1 (log), norms, angles, self-duality and NC4."""
        return figures.collapse(history)

    def _warn_of_unseen(self, stats: ClassStatistics) -> None:
        unseen = (stats.counts == 0).nonzero().flatten().tolist()
        if unseen and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"neural collapse: no sample has class {', '.join(map(str, unseen))}: left out of every measure"
            )


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
        if lam != "auto" and not (isinstance(lam, (int, float)) and lam >= 0):
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
        stats: ClassStatistics = moment.gathered(_STATISTICS)
        snr: list[float] = snr_singular_values(stats).tolist()
        numbers: Numbers = {}
        if prepared.reduction is not None:
            lam, decay_bias = self._regularization(moment.subject, prepared)
            weight, bias = moment.head()
            parts = mse_decomposition(stats, weight, bias, lam, decay_bias=decay_bias)
            numbers = {key: float(parts[key]) for key in figures.PARTS}
            # at lam = 0 the least-squares loss can be exactly zero
            ratio = float(parts["perp"]) / float(parts["ls"]) if parts["ls"] > 0 else math.nan
            numbers |= {"ratio": ratio, "lam": lam}
        return {**numbers, "snr_max": snr[0], "snr_min": snr[-1], "snr": snr}

    def unknown(self, prepared: _Split) -> Numbers:
        """NaN for every key."""
        keys = [*([*figures.PARTS, "ratio", "lam"] if prepared.reduction is not None else []), "snr_max", "snr_min"]
        return {**dict.fromkeys(keys, math.nan), "snr": [math.nan] * prepared.rank}

    def figure(self, history: Sequence[Mapping[str, Any]]) -> "Figure":
        """Loss and its parts (log), their ratio, and the signal-to-noise ratios with a slope-1/4 guide (log-log)."""
        return figures.central_path(history)

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
        if loss.name != "mse" or loss.factor == 0:
            return None, 1.0
        if self.lam == "auto" and (subject.trainer is None or not subject.trainer.optimizers):
            self._warn_once(
                "outside of a fit no optimizer tells the weight decay, so only `snr` is recorded; pass `lam` for the "
                "split of the loss"
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
        weight_decay = decay_of(head.weight, optimizers, strict=asked)
        bias_decay = weight_decay if head.bias is None else decay_of(head.bias, optimizers, strict=asked)
        if weight_decay is None:
            if asked:
                self._warn_once("no optimizer trains the classifier: lam is taken as 0; pass `lam` to set it")
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
        lam = regularization_strength(weight_decay.strength, head.out_features, split.reduction)
        return lam / split.factor, decay_bias

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            rank_zero_warn(f"CentralPath: {message}")


def gather_statistics(subject: Subject) -> tuple[int, int]:
    """Have a subject gather class statistics of the features; lenses that ask share them.

    Returns:
        Number of classes C and of features d.

    Raises:
        NotApplicable: no linear layer makes the logits that belong to the classes of a batch.
    """
    classes, features = subject.head.weight.shape
    subject.gather(_STATISTICS, lambda: ClassStatisticsMetric(classes, features), _add_statistics)
    return classes, features


def _mean() -> Metric:
    return MeanMetric().set_dtype(torch.float64)


def _add_statistics(metric: ClassStatisticsMetric, seen: Seen) -> None:
    metric.update(seen.features.to(metric.moments.device), seen.targets.to(metric.moments.device))


def _add_error(metric: MeanMetric, seen: Seen) -> None:
    metric.update((seen.outputs.argmax(dim=1) != seen.targets).to(metric.device, torch.float64))


def _add_decisions(metric: _Decisions, seen: Seen) -> None:
    metric.update(seen.features, seen.outputs.argmax(dim=1))

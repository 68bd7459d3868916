"""Neural collapse of any classifier, measured while it trains."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from torch import nn

from lit_papers.callbacks.epoch_measurement import EpochMeasurement
from lit_papers.callbacks.feature_pass import Measurement
from lit_papers.callbacks.guest import Unpack
from lit_papers.neural_collapse.functional import neural_collapse_measures
from lit_papers.plotting import STYLES, log_scale, new_figure

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


class NeuralCollapse(EpochMeasurement):
    """Logs how far the last-layer features and the classifier have collapsed: NC1 to NC4 (Papyan et al. 2020).

    Attach it to any LightningModule whose ``forward`` returns logits (N, C), alone or among other tensors::

        trainer = Trainer(callbacks=[NeuralCollapse()])

    After the chosen epochs it runs the training data through the network in evaluation mode, float64 statistics in
    one pass, and logs ``neural_collapse/<key>`` for the keys of
    `lit_papers.neural_collapse.functional.neural_collapse_measures`, plus ``nc4_ncc_mismatch`` and ``train_error``.
    Training is bit-identical with and without it. Where features are NaN it warns and records NaN.

    Args:
        dataloader: complete training data, un-augmented and unshuffled. None: ``train_eval_dataloader()`` of the data
            module if there is one, else the training loader's dataset in order, with a warning that train-time
            transforms apply.
        classifier: the last ``nn.Linear`` or its dotted path. None: the last executed one that makes the logits.
        epochs: k to measure after every k-th epoch and after the last, or the list of epochs (counted from 1).
        ncc: also compare with the nearest class mean (NC4), which keeps the features of a pass on the host
            (4 N d bytes).
        center_classifier: subtract the mean row from the weight first; right for classifiers without bias.
        unpack: from a batch to ``(argument of forward, class indices)``. None understands pairs and mappings with
            the usual names.

    Raises:
        ValueError: at the start of fit, naming the argument: no such classifier, an iterable dataset without
            ``dataloader``.
        TypeError: the targets are not class indices, or the batch is of an unknown kind.
    """

    name = "neural_collapse"

    def __init__(
        self,
        dataloader: Any = None,
        classifier: str | nn.Module | None = None,
        epochs: int | Sequence[int] = 1,
        ncc: bool = True,
        center_classifier: bool = False,
        unpack: Unpack | None = None,
    ) -> None:
        super().__init__(dataloader, classifier, epochs, unpack)
        self.ncc = ncc
        self.center_classifier = center_classifier

    @property
    def wants_ncc(self) -> bool:
        """True if NC4 was asked for."""
        return self.ncc

    def record(self, measurement: Measurement, trainer: Trainer) -> dict[str, Any]:
        """NC1 to NC4 and the training error."""
        assert measurement.stats is not None  # noqa: S101
        measures = neural_collapse_measures(
            measurement.stats, measurement.weight, center_classifier=self.center_classifier
        )
        numbers = {key: float(measures[key]) for key in _MEASURES}
        if self.ncc and measurement.ncc_mismatch is not None:
            numbers["nc4_ncc_mismatch"] = measurement.ncc_mismatch
        return {**numbers, "train_error": measurement.train_error}

    def unknown(self) -> dict[str, Any]:
        """NaN for every key."""
        keys = [*_MEASURES, *(["nc4_ncc_mismatch"] if self.ncc else []), "train_error"]
        return dict.fromkeys(keys, float("nan"))

    def plot(self) -> "Figure":
        """Six panels against epoch: error, NC1 (log), norms, angles, self-duality and NC4.

        Raises:
            RuntimeError: nothing was measured yet.
        """
        if not self.history:
            raise RuntimeError("nothing to plot: `history` is empty until the first measured epoch")
        panels: list[tuple[str, dict[str, str]]] = [
            ("train error [share of samples]", {"train_error": ""}),
            ("NC1: tr($\\Sigma_W \\Sigma_B^+$)", {"nc1": ""}),
            (
                "NC2: std/mean of norms",
                {"nc2_equinorm_means": "class means", "nc2_equinorm_weights": "classifier rows"},
            ),
            (
                "NC2: mean |cos + 1/(C-1)|",
                {"nc2_max_angle_means": "class means", "nc2_max_angle_weights": "classifier rows"},
            ),
            ("NC3: $\\|W^T/|W| - M/|M|\\|^2$", {"nc3_self_duality": ""}),
            ("NC4: share not nearest mean", {"nc4_ncc_mismatch": ""}),
        ]
        figure, axes = new_figure(2, 3)
        epochs = [entry["epoch"] for entry in self.history]
        for axis, (title, lines) in zip(axes, panels, strict=True):
            for style, (key, label) in zip(STYLES, lines.items(), strict=False):
                values = [entry.get(key, float("nan")) for entry in self.history]
                axis.plot(epochs, values, markersize=4, label=label or None, **style)
                if all(value != value for value in values):
                    axis.text(0.5, 0.5, "not measured", ha="center", transform=axis.transAxes)
            axis.set(xlabel="epoch", ylabel=title)
            log_scale(axis) if "nc1" in lines else axis.set_ylim(bottom=0)
            if len(lines) > 1:
                axis.legend()
            axis.grid(alpha=0.3)
        return figure

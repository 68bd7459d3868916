"""The exact split of the MSE loss and the signal-to-noise ratio, measured while a classifier trains."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lit_papers.callbacks.epoch_measurement import EpochMeasurement
from lit_papers.callbacks.feature_pass import Measurement
from lit_papers.callbacks.guest import Unpack
from lit_papers.neural_collapse.functional import (
    mse_decomposition,
    regularization_strength,
    snr_singular_values,
)
from lit_papers.plotting import STYLES, log_scale, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PARTS = ("loss", "ls", "nc1", "nc23", "perp")
_REDUCTIONS = ("mean", "batchmean", None, "auto")


class CentralPath(EpochMeasurement):
    """Logs how far a classifier trained by MSE is from the central path (Han, Papyan & Donoho, ICLR 2022).

    The loss splits exactly into the part of the least-squares classifier for the present features, itself NC1 and
    NC2/3, and the deviation ``perp`` of the classifier from it. Attach it to any LightningModule whose ``forward``
    returns logits (N, C)::

        trainer = Trainer(callbacks=[NeuralCollapse(), CentralPath()])  # one pass serves both

    Logs ``central_path/`` + ``loss``, ``ls``, ``nc1``, ``nc23``, ``perp``, ``ratio`` (perp/ls), ``lam``, ``snr_max``
    and ``snr_min``; ``history`` also has ``snr``, all singular values, descending. A network that is not trained by
    MSE gets the ``snr`` entries alone: there the ratio would mean nothing.

    Args:
        dataloader: as for `NeuralCollapse`.
        classifier: as for `NeuralCollapse`.
        epochs: as for `NeuralCollapse`.
        lam: strength of the L2 term in the loss that is minimised, >= 0; ``"auto"`` derives it from the
            ``weight_decay`` of the classifier's own parameter group.
        reduction: of the MSE loss: ``"mean"`` (over samples and classes, as ``nn.MSELoss()``), ``"batchmean"`` (sum
            over classes), None (not trained by MSE), or ``"auto"``: that of the module's ``nn.MSELoss``, else None if
            it has an ``nn.CrossEntropyLoss``, else ``"mean"``.
        unpack: as for `NeuralCollapse`.

    Raises:
        ValueError: bad ``lam`` or ``reduction``; at the start of fit what `NeuralCollapse` raises, and a weight
            and bias of the classifier that decay differently.
    """

    name = "central_path"

    def __init__(
        self,
        dataloader: Any = None,
        classifier: str | nn.Module | None = None,
        epochs: int | Sequence[int] = 1,
        lam: float | Literal["auto"] = "auto",
        reduction: Literal["mean", "batchmean", "auto"] | None = "auto",
        unpack: Unpack | None = None,
    ) -> None:
        super().__init__(dataloader, classifier, epochs, unpack)
        if lam != "auto" and not (isinstance(lam, (int, float)) and lam >= 0):
            raise ValueError(f"lam must be a number >= 0 or 'auto', got {lam!r}")
        if reduction not in _REDUCTIONS:
            raise ValueError(f"reduction must be one of {_REDUCTIONS}, got {reduction!r}")
        self.lam = lam
        self.reduction = reduction
        self._reduction: str | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out how the loss is reduced and how the classifier decays, before the first epoch."""
        self._shared_pass.prepare(trainer, pl_module)
        self._reduction = self._find_reduction(pl_module)
        self._regularization(trainer)
        super().on_train_start(trainer, pl_module)

    def record(self, measurement: Measurement, trainer: Trainer) -> dict[str, Any]:
        """The parts of the loss, and the singular values of the signal-to-noise matrix."""
        assert measurement.stats is not None  # noqa: S101
        snr: list[float] = snr_singular_values(measurement.stats).tolist()
        numbers: dict[str, Any] = {}
        if self._reduction is not None:
            lam, decay_bias = self._regularization(trainer)
            parts = mse_decomposition(
                measurement.stats, measurement.weight, measurement.bias, lam, decay_bias=decay_bias
            )
            numbers = {key: float(parts[key]) for key in _PARTS}
            # at lam = 0 the least-squares loss can be exactly zero
            numbers["ratio"] = numbers["perp"] / numbers["ls"] if numbers["ls"] > 0 else float("nan")
            numbers["lam"] = lam
        return {**numbers, "snr_max": snr[0], "snr_min": snr[-1], "snr": snr}

    def unknown(self) -> dict[str, Any]:
        """NaN for every key."""
        keys = [*([*_PARTS, "ratio", "lam"] if self._reduction is not None else []), "snr_max", "snr_min"]
        rank = min(self._shared_pass.head.linear.in_features, self._shared_pass.head.linear.out_features - 1)
        return {**dict.fromkeys(keys, float("nan")), "snr": [float("nan")] * rank}

    def _find_reduction(self, module: LightningModule) -> str | None:
        if self.reduction != "auto":
            return self.reduction
        for child in module.modules():
            if isinstance(child, nn.MSELoss):
                if child.reduction != "mean" and self.lam == "auto":
                    raise ValueError(
                        f"nn.MSELoss(reduction={child.reduction!r}) scales with the batch, so that lam does not follow "
                        "from weight_decay: pass `lam` and `reduction`"
                    )
                return "mean"
        return None if any(isinstance(child, nn.CrossEntropyLoss) for child in module.modules()) else "mean"

    def _regularization(self, trainer: Trainer) -> tuple[float, bool]:
        """``lam`` and whether it applies to the bias, as the optimizer has them now."""
        head = self._shared_pass.head
        weight_decay, decoupled = _decay_of(head.linear.weight, trainer.optimizers)
        bias_decay = weight_decay if head.linear.bias is None else _decay_of(head.linear.bias, trainer.optimizers)[0]
        if weight_decay != bias_decay and bias_decay:
            raise ValueError(
                f"the weight of {head.name!r} decays by {weight_decay}, its bias by {bias_decay}: the decomposition "
                "knows one lam for both, or none for the bias"
            )
        decay_bias = bool(bias_decay) or not weight_decay
        if self.lam != "auto":
            return float(self.lam), decay_bias
        if self._reduction is None:
            return 0.0, decay_bias
        if weight_decay is None:
            self._warn_once(f"no optimizer trains {head.name!r}: lam is taken as 0")
            return 0.0, True
        if decoupled and weight_decay:
            self._warn_once(
                "decoupled weight decay (AdamW) minimises no L2 term: lam is taken as 0; pass `lam` to set it"
            )
            return 0.0, True
        return regularization_strength(weight_decay, head.linear.out_features, self._reduction), decay_bias

    def plot(self) -> "Figure":
        """Loss and its parts (log), their ratio, and the signal-to-noise ratios with a slope-1/4 guide (log-log).

        Raises:
            RuntimeError: nothing was measured yet.
        """
        if not self.history:
            raise RuntimeError("nothing to plot: `history` is empty until the first measured epoch")
        by_mse = "loss" in self.history[-1]
        figure, axes = new_figure(1, 3 if by_mse else 1)
        epochs = [entry["epoch"] for entry in self.history]
        if by_mse:
            labels = ("loss", "least squares", "of which NC1", "of which NC2/3", "deviation $L_\\perp$")
            for key, label, style in zip(_PARTS, labels, STYLES, strict=True):
                axes[0].plot(
                    epochs,
                    [e.get(key, float("nan")) for e in self.history],
                    markersize=4,
                    label=label,
                    **style,
                )
            axes[0].set(xlabel="epoch", ylabel="MSE loss [per sample]")
            log_scale(axes[0])
            axes[0].legend(fontsize="small")
            axes[1].plot(epochs, [e.get("ratio", float("nan")) for e in self.history], markersize=4, **STYLES[0])
            axes[1].set(xlabel="epoch", ylabel="$L_\\perp$ / least squares")
            log_scale(axes[1])
        axis = axes[-1]
        snr = torch.tensor([entry["snr"] for entry in self.history])  # (T, r)
        for values in snr.T:
            axis.plot(epochs, values, color="0.4", linewidth=0.9, marker=".", markersize=4)
        axis.set(xlabel="epoch", ylabel="SNR singular values $\\omega_j$", xscale="log")
        log_scale(axis)
        if torch.isfinite(snr[-1]).all():
            guide = [float(snr[-1].median()) * (epoch / epochs[-1]) ** 0.25 for epoch in epochs]
            axis.plot(epochs, guide, color="tab:red", linestyle="--", label="slope 1/4")
            axis.legend()
        elif not torch.isfinite(snr).any():
            axis.text(0.5, 0.5, "$\\Sigma_W$ is singular", ha="center", transform=axis.transAxes)
        for axis in axes:
            axis.grid(alpha=0.3, which="both")
        return figure


def _decay_of(parameter: Tensor, optimizers: Sequence[torch.optim.Optimizer]) -> tuple[float | None, bool]:
    """Weight decay of the group a parameter is in, and whether it is decoupled; None if it is in none."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if any(member is parameter for member in group["params"]):
                decoupled = isinstance(optimizer, torch.optim.AdamW) or bool(group.get("decoupled_weight_decay"))
                return float(group.get("weight_decay", 0.0)), decoupled
    return None, False

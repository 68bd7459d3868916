"""The exact split of the MSE loss and the signal-to-noise ratio, measured while a classifier trains."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from lit_papers.callbacks.watching import Watch
from lit_papers.lens import Call, Unpack
from lit_papers.neural_collapse.lens import CentralPathLens


class CentralPath(Watch):
    """Logs how far a classifier trained by MSE is from the central path (Han, Papyan & Donoho, ICLR 2022).

    The loss splits exactly into the part of the least-squares classifier for the present features, itself NC1 and
    NC2/3, and the deviation ``perp`` of the classifier from it. Attach it to any LightningModule that classifies::

        trainer = Trainer(callbacks=[NeuralCollapse(), CentralPath()])  # one pass serves both

    Logs ``central_path/`` + ``loss``, ``ls``, ``nc1``, ``nc23``, ``perp``, ``ratio`` (perp/ls), ``lam``, ``snr_max``
    and ``snr_min``; ``history`` also has ``snr``, all singular values, descending. A network that is not trained by
    MSE, or by a loss that ``training_step`` does not show, gets the ``snr`` entries alone: there the ratio would mean
    nothing.

    Args:
        dataloader: as for `NeuralCollapse`.
        classifier: as for `NeuralCollapse`.
        epochs: as for `NeuralCollapse`.
        lam: strength of the L2 term in the loss that is minimised, >= 0; ``"auto"`` derives it from the
            ``weight_decay`` of the classifier's own parameter group, for optimizers of torch that couple it.
        reduction: of the MSE loss: ``"mean"`` (over samples and classes, as ``nn.MSELoss()``), ``"batchmean"`` (sum
            over classes), None (not trained by MSE), or ``"auto"``: read from ``training_step``.
        unpack: as for `NeuralCollapse`.
        call: as for `NeuralCollapse`.
        max_batches: as for `NeuralCollapse`.
        name: as for `NeuralCollapse`.

    Raises:
        ValueError: bad ``lam`` or ``reduction``; before the first step what `NeuralCollapse` raises, and an optimizer
            of which it is not known what its weight decay minimises, or a weight and bias that decay differently.
    """

    def __init__(
        self,
        dataloader: Any = None,
        classifier: str | nn.Module | None = None,
        epochs: int | Sequence[int] = 1,
        lam: float | Literal["auto"] = "auto",
        reduction: Literal["mean", "batchmean", "auto"] | None = "auto",
        unpack: Unpack | None = None,
        call: Call | None = None,
        max_batches: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            CentralPathLens(lam, reduction),
            dataloader=dataloader,
            epochs=epochs,
            classifier=classifier,
            unpack=unpack,
            call=call,
            max_batches=max_batches,
            name=name,
        )

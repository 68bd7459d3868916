"""What learnable strides are, and what the network costs at them, over training."""

import math
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lit_papers.callbacks.record import Record, nothing_yet
from lit_papers.diffstride.figures import AXES, complexity_figure
from lit_papers.diffstride.layers import CostCounter
from lit_papers.diffstride.lens import is_stuck, no_layers, stride_layers, stride_numbers
from lit_papers.lens import NotApplicable
from lit_papers.plotting import log_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class StrideComplexity(Record):
    """Logs strides, map sizes and cost of any network that contains `DiffStride` layers (Riad et al., ICLR 2022).

    Every ``every_n_steps`` optimizer steps the batch's own forward pass is watched, without another one, and all
    loggers get, whatever ``log_every_n_steps`` is, under ``diffstride/``: ``<layer>/stride_h`` and ``/stride_w``,
    ``<layer>/map_h`` and ``/map_w`` (of sequences only ``_w``, of volumes ``_d`` too), ``gmacs`` (1e9 multiply-adds of
    a sample, without the resampling itself) and ``penalty`` (the paper's J). At the end of fit the figure is written
    beside the logs.

    A stride that no longer can learn is warned of once. While it is measured a compiled network runs in Python.

    Args:
        every_n_steps: measure where ``trainer.global_step`` is a multiple of it, >= 1.
        name: prefix of keys and name of the figure; give each of several instances its own.

    Attributes:
        history: one dict a measurement, of these keys without prefix and ``step``, the optimizer steps before it; kept
            in checkpoints.

    Raises:
        ValueError: ``every_n_steps`` is out of range.
        NotApplicable: at the start of fit, if the module has no such layer.
    """

    def __init__(self, every_n_steps: int = 50, name: str = "diffstride") -> None:
        super().__init__(name)
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._counter: CostCounter | None = None
        self._step = 0
        self._strides: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the layers; not in ``setup``, as modules may make theirs there, or in ``configure_model``."""
        if not stride_layers(pl_module):
            raise NotApplicable(f"StrideComplexity does not apply: {no_layers(pl_module)}")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin to watch where a measurement is due."""
        step = trainer.global_step
        if step % self.every_n_steps or (self.this_fit and self.this_fit[-1]["step"] >= step):
            return
        self._step = step
        self._strides = {name: layer.strides.detach().clone() for name, layer in stride_layers(pl_module).items()}
        self._counter = CostCounter(pl_module).__enter__()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """The forward pass is over; activation checkpointing would repeat it."""
        self._stop_watching()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record and log what was seen."""
        self._stop_watching()
        if self._counter is None:
            return
        counter, self._counter = self._counter, None
        if not counter.layers:
            return  # the training step skipped this batch
        for name, layer in stride_layers(pl_module).items():
            size = counter.input_sizes.get(name)
            if size is not None and is_stuck(layer, self._strides[name], size):
                self.warn_once(
                    f"{name} no longer learns, on a map of size {size}: its strides are stuck: along some axis no "
                    "frequency lies on the mask's ramp, so there is no gradient. Start from smaller strides, or give "
                    "the layer a larger `smoothness`"
                )
        self.keep(trainer, stride_numbers(pl_module, self._strides, counter), step=self._step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no hook behind."""
        self._stop_watching()
        self._counter = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the figure, and give the strides to loggers that take tables."""
        super().on_fit_end(trainer, pl_module)
        if trainer.is_global_zero and self.history:
            first, last = self.history[0], self.history[-1]
            rows = [
                [
                    key.rpartition("/")[0],
                    AXES[key[-1]],
                    first.get(key, math.nan),
                    stride,
                    int(last[key.replace("/stride_", "/map_")]),
                ]
                for key, stride in last.items()
                if "/stride_" in key
            ]
            log_table(trainer, "strides", ["layer", "axis", "first stride", "last stride", "last map size"], rows)

    def plot(self) -> "Figure":
        """Strides, map sizes and cost against optimizer steps.

        Raises:
            RuntimeError: nothing was measured yet.
        """
        if not self.history:
            raise nothing_yet(type(self).__name__)
        return complexity_figure(self.history)

    def _stop_watching(self) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)

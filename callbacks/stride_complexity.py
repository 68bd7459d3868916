"""What learnable strides are, and what the network costs at them, over training."""

import math
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lit_papers.callbacks.record import Record, nothing_yet
from lit_papers.diffstride.functional import complexity_penalty, minimum_stride
from lit_papers.diffstride.layers import CostCounter, DiffStride
from lit_papers.plotting import log_table, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GMACS, _PENALTY = "gmacs", "penalty"


class StrideComplexity(Record):
    """Logs strides, map sizes and cost of any network that contains `DiffStride` layers (Riad et al., ICLR 2022).

    Every ``every_n_steps`` optimizer steps the batch's own forward pass is watched, without another one, and all
    loggers get, whatever ``log_every_n_steps`` is: ``diffstride/<layer>/stride_h`` and ``/stride_w``, ``/map_h`` and
    ``/map_w`` (of sequences only ``_w``), ``diffstride/gmacs`` (1e9 multiply-adds for each sample of convolutions and
    linear layers) and ``diffstride/penalty`` (the paper's J). At the end of fit the figure is written beside the logs.

    A stride that no longer can learn is warned of once. The network must run in Python while it is measured: inside
    ``torch.compile`` a measured batch costs a recompilation.

    Args:
        every_n_steps: measure where ``trainer.global_step`` is a multiple of it, >= 1.
        name: prefix of keys and name of the figure; give each of several instances its own.

    Attributes:
        history: one dict a measurement, of these keys without prefix and ``step``, the optimizer steps before it; kept
            in checkpoints.

    Raises:
        ValueError: ``every_n_steps`` is out of range.
        MisconfigurationException: at the start of fit, if the module has no such layer.
    """

    def __init__(self, every_n_steps: int = 50, name: str = "diffstride") -> None:
        super().__init__(name)
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._counter: CostCounter | None = None
        self._step = 0
        self._strides: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look for the layers."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not _layers(pl_module):
            raise MisconfigurationException(
                f"StrideComplexity found no DiffStride layer in {type(pl_module).__name__}: put "
                "lit_papers.diffstride.layers.DiffStride2d (or 1d) into the network, or remove the callback"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin to watch where a measurement is due."""
        step = trainer.global_step
        if step % self.every_n_steps or (self.this_fit and self.this_fit[-1]["step"] >= step):
            return
        self._step = step
        self._strides = {name: layer.strides.detach().clone() for name, layer in _layers(pl_module).items()}
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
        measured: dict[str, float] = {}
        areas = []
        for name, layer in _layers(pl_module).items():
            if name not in counter.map_sizes:  # not used in this pass
                continue
            strides = self._strides[name].expand(layer.axes)
            areas.append(strides if layer.axes == 2 else torch.cat([strides, strides.new_ones(1)]))
            values = strides.tolist()
            for letter, stride, size in zip("hw"[-layer.axes :], values, counter.map_sizes[name], strict=True):
                measured[f"{name}/stride_{letter}"] = stride
                measured[f"{name}/map_{letter}"] = float(size)
            self._warn_if_stuck(name, layer, values, counter.input_sizes[name])
        measured[_GMACS] = counter.macs / 1e9
        measured[_PENALTY] = complexity_penalty(areas).item() if areas else math.nan
        self.keep(trainer, measured, step=self._step)

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
                    key.split("/")[0],
                    {"h": "height", "w": "width"}[key[-1]],
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

        Returns:
            A figure of three panels; height is drawn solid, width dashed, each layer in a shade of its own.

        Raises:
            RuntimeError: nothing was measured yet.
        """
        if not self.history:
            raise nothing_yet(type(self).__name__)
        figure, (left, middle, right) = new_figure(1, 3)
        from matplotlib.ticker import MaxNLocator  # after `new_figure`, which says what to install

        steps = [entry["step"] for entry in self.history]
        keys = [key for entry in self.history[:1] for key in entry if "/stride_" in key]
        names = list(dict.fromkeys(key.split("/")[0] for key in keys))
        for key in keys:
            name, axis = key.split("/")
            style = _style(names.index(name), len(names), axis[-1])
            strides = [entry.get(key, math.nan) for entry in self.history]
            sizes = [entry.get(key.replace("/stride_", "/map_"), math.nan) for entry in self.history]
            left.plot(steps, strides, label=f"{name}, {'height' if axis[-1] == 'h' else 'width'}", **style)
            middle.step(steps, sizes, where="post", **style)
        left.set(xlabel="optimizer step", ylabel="stride")
        left.legend(fontsize="x-small")
        middle.set(xlabel="optimizer step", ylabel="map size behind the layer (points)")
        middle.yaxis.set_major_locator(MaxNLocator(integer=True))
        right.plot(steps, [entry[_GMACS] for entry in self.history], color="black")
        right.set(xlabel="optimizer step", ylabel=r"cost of a sample ($10^9$ multiply-adds)")
        right.set_ylim(bottom=0)
        for panel in (left, middle, right):
            panel.grid(alpha=0.3)
        return figure

    def _stop_watching(self) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)

    def _warn_if_stuck(self, name: str, layer: DiffStride, strides: list[float], sizes: tuple[int, ...]) -> None:
        stuck = [_is_stuck(n, stride, layer.smoothness) for n, stride in zip(sizes, strides, strict=True)]
        if not layer.strides.requires_grad:
            return
        if all(stuck) if layer.shared_stride else any(stuck):
            self.warn_once(
                f"{name} no longer learns, on a map of size {sizes}: its strides are "
                "stuck: along some axis no frequency lies on the mask's ramp, so there is no gradient. Start from "
                "smaller strides, or give the layer a larger `smoothness`"
            )


def _layers(module: LightningModule) -> dict[str, DiffStride]:
    return {
        name.replace("_orig_mod.", ""): layer for name, layer in module.named_modules() if isinstance(layer, DiffStride)
    }


def _is_stuck(size: int, stride: float, smoothness: float) -> bool:
    """Whether no bin of an axis lies on the closed ramp, or the kept length does not depend on the stride.

    A stride of 1 is not called stuck: with a narrow ramp it is the identity, which somebody chose.
    """
    bound = minimum_stride(size, smoothness)
    length = size / max(stride, bound)
    first = math.ceil(length / 2 + 1 - 1e-6)
    return stride > bound + 1e-6 and (length < 2 or first > min(length / 2 + 1 + smoothness, size // 2))


def _style(index: int, layers: int, axis: str) -> dict[str, Any]:
    shade = 0.7 * index / max(layers - 1, 1)  # from black to light grey
    return {"color": (shade, shade, shade), "linestyle": "-" if axis == "h" else "--"}

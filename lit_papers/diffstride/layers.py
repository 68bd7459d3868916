"""Pooling layers in the Fourier domain: learnable strides (DiffStride), and fixed ones (spectral pooling)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_papers.diffstride.cost import CostCounter
from lit_papers.diffstride.fixed import FixedStride, SpectralPool, SpectralPool1d, SpectralPool2d
from lit_papers.diffstride.functional import (
    Variant,
    check_smoothness,
    check_variant,
    minimum_stride,
    output_size,
    resample,
    uncropped_size,
)
from lit_papers.diffstride.one_graph import at_sizes, in_one_graph
from lit_papers.diffstride.resampling import Resampling, check_stride, per_axis

__all__ = [
    "CostCounter",
    "DiffStride",
    "DiffStride1d",
    "DiffStride2d",
    "DiffStride3d",
    "FixedStride",
    "SpectralPool",
    "SpectralPool1d",
    "SpectralPool2d",
    "freeze_strides",
]


class DiffStride(Resampling):
    """What `DiffStride1d`, `DiffStride2d` and `DiffStride3d` share; ``isinstance`` tells learnable strides by it.

    Args:
        stride: initial stride of each axis.
        smoothness: R, >= 1e-3, width of the mask's ramp in bins; gradients need R >= 1.
        crop: False masks only, and keeps the size.
        shared_stride: whether one parameter serves all axes.
        variant: ``"symmetric"`` or ``"official"``, see `lit_papers.diffstride.functional.diffstride`.

    Attributes:
        strides: the parameter, one number an axis, or a single one if shared.
        known_strides: their values when they were last read; on the meta device, where there is nothing to read, the
            size of a map follows these.
    """

    strides: nn.Parameter

    def __init__(
        self, stride: Sequence[float], smoothness: float, *, crop: bool, shared_stride: bool, variant: Variant
    ) -> None:
        super().__init__(len(stride))
        check_stride(stride)
        check_smoothness(smoothness)
        check_variant(variant, len(stride))
        if shared_stride and len(set(stride)) > 1:
            raise ValueError(f"shared_stride=True needs equal strides, got `stride`={tuple(stride)}")
        self.smoothness = smoothness
        self.crop = crop
        self.shared_stride = shared_stride
        self.variant: Variant = variant
        self.strides = nn.Parameter(torch.tensor(stride[:1] if shared_stride else stride, dtype=torch.float32))
        self.known_strides = (
            self.strides.detach().tolist() if not self.strides.is_meta else list(stride[: len(self.strides)])
        )
        # output size by input size, of the latest eager look at `strides`: a single graph cannot look itself
        self._sizes: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._last_size: tuple[int, ...] | None = None  # of the input, in training
        self._warned = False

    def forward(self, input: Tensor) -> Tensor:
        """Resample the last axes; changes no parameter and no buffer.

        The output size follows the strides whatever changed them: an optimizer, a checkpoint, an average. It is read
        from them in each forward, outside of any graph, so ``torch.compile`` breaks the graph at each layer, and
        compiles once more for each new size. Under ``fullgraph=True`` (and in `torch.export`) the size is built into
        the graph: that of the latest eager forward at this input size, `project_` or ``load_state_dict``; the graph
        raises if the strides were moved without one of them. `freeze` needs neither breaks nor recompilation.

        On the meta device there are no strides to read: sizes are those of ``known_strides``.

        Args:
            input: floating, ``(N, C, *size)`` or ``(C, *size)`` with as many axes as there are strides.

        Returns:
            The same leading axes, then `output_size` of the last ones; the dtype of ``input``, also under autocast,
            and its memory format.

        Raises:
            TypeError: ``input`` is not real and floating.
            ValueError: its rank is another.
            RuntimeError: ``strides`` is NaN or infinite; or a graph is older than the strides.
        """
        size = self.map_size(input)
        strides = self._each_stride(size)
        if torch.compiler.is_exporting() and size in self._sizes:
            sizes = self._sizes[size]
        elif torch.compiler.is_compiling() and size in self._sizes and in_one_graph():
            sizes = self._sizes[size]
            if self.crop:
                strides = at_sizes(strides, list(size), list(sizes), self.smoothness, self.variant)
        else:
            self._look(size)
            sizes = self._sizes[size]
        if self.training:
            self._last_size = size
        return resample(input, strides, sizes, self.smoothness, self.variant)

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The size that `forward` gives to a map, at the present strides.

        Args:
            size: of the input's last axes.

        Returns:
            As many numbers.

        Raises:
            RuntimeError: ``strides`` is NaN or infinite.
        """
        values = self._values()
        if self.shared_stride:
            values = [max(values[0], self._bound(size))] * self.axes
        cropped = output_size(size, values, self.smoothness, self.variant)
        return cropped if self.crop else uncropped_size(size, self.variant)

    @torch.no_grad()
    def project_(self) -> None:
        """Raise ``strides`` to the bound of the last map seen in training, in place; call it after the optimizer.

        Below the bound a stride has no effect, but would have to come all the way back to have one. A graph compiled
        as a whole also learns here which sizes the new strides give. Before the first training-mode
        forward nothing happens.
        """
        if self._last_size is None:
            return
        if self.shared_stride:
            self.strides.clamp_(min=self._bound(self._last_size))
        else:
            for axis, n in enumerate(self._last_size):
                self.strides[axis].clamp_(min=minimum_stride(n, self.smoothness))
        for size in self._sizes:
            self._look(size)

    def freeze(self) -> "FixedStride":
        """The same map with the present strides as constants, without parameters, for `torch.export`.

        Returns:
            A layer with the same output.

        >>> layer = DiffStride2d(2.3).freeze()
        >>> graph = torch.export.export(layer, (torch.randn(1, 3, 32, 32),)).module()
        >>> graph(torch.randn(1, 3, 32, 32)).shape
        torch.Size([1, 3, 22, 22])
        """
        return FixedStride(
            self._values(),
            self.smoothness,
            crop=self.crop,
            shared_stride=self.shared_stride,
            variant=self.variant,
        )

    @torch.compiler.disable(  # type: ignore[no-untyped-call, untyped-decorator]
        reason="run a DiffStride layer eagerly once at this map size to compile it without a break"
    )
    def _look(self, size: tuple[int, ...]) -> None:
        self._sizes[size] = self.output_size(size)
        if self.training and not self._warned and self.strides.requires_grad:
            values = self._values()
            if all(n / stride < 2 for n, stride in zip(size, values, strict=True)) and max(values) > 1:
                self._warned = True
                rank_zero_warn(
                    f"stride saturated: {[round(value, 2) for value in values]} on a map of size {size} leaves fewer "
                    "than two points, and has no gradient: start from smaller strides"
                )

    def _values(self) -> list[float]:
        """The strides as numbers, one an axis."""
        if not self.strides.is_meta:
            self.known_strides = self.strides.detach().tolist()  # one synchronisation with the device
        return self.known_strides * (self.axes // len(self.known_strides))

    def _bound(self, size: Sequence[int]) -> float:
        return max(minimum_stride(n, self.smoothness) for n in size)

    def _each_stride(self, size: tuple[int, ...]) -> Tensor:
        if not self.shared_stride:
            return self.strides
        raised = self.strides.clamp(min=self._bound(size))  # the larger bound holds for both axes
        return (self.strides + (raised - self.strides).detach()).expand(self.axes)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Follow the module to a device, but stay in float32 where it is halved: bfloat16 strides are off by a bin."""
        before = self.strides.detach()
        if not before.is_meta:
            self.known_strides = before.tolist()  # a move to the meta device forgets them
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.strides.dtype in (torch.float16, torch.bfloat16):
            self.strides.data = before.to(self.strides.device, torch.float32)
            self.strides.grad = None if self.strides.grad is None else self.strides.grad.float()
        return self

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        """Sizes that graphs have built in are those of the strides before: look again."""
        super()._load_from_state_dict(*arguments, **options)
        known, self._sizes = list(self._sizes), {}
        if not self.strides.is_meta and self.strides.isfinite().all():
            for size in known:
                self._look(size)

    def extra_repr(self) -> str:
        """The strides as they are now."""
        strides = ", ".join(f"{stride:.3g}" for stride in self._values())
        return f"strides=({strides}), smoothness={self.smoothness}, crop={self.crop}, variant={self.variant!r}"


class DiffStride2d(DiffStride):
    r"""Downsampling of maps with learnable strides (Riad, Teboul, Grangier & Zeghidour, ICLR 2022, algorithm 1).

    Drop it in behind a convolution of stride 1, in the place of that convolution's stride or of a pooling layer. The
    map keeps about :math:`n/S + 2R` points along an axis of :math:`n`: more than :math:`n/S`, so compare costs too.

    Args:
        stride: initial stride, >= 1, one number or ``(height, width)``.
        smoothness: R, >= 1e-3, width of the mask's ramp in frequency bins. A stride only learns from bins inside the
            ramp, so R >= 1; and a map of at most 2(R + 1) points never shrinks: for 8 x 8 images take R = 1.
        crop: False masks only, and keeps the size.
        shared_stride: whether height and width share one stride.
        variant: ``"symmetric"`` (zero phase, keeps the mean) or ``"official"`` (the authors' TensorFlow layer).

    Raises:
        ValueError: an argument is out of range.

    >>> layer = DiffStride2d(2.0)
    >>> layer(torch.randn(8, 3, 32, 32)).shape
    torch.Size([8, 3, 24, 24])
    """

    def __init__(
        self,
        stride: float | tuple[float, float] = 2.0,
        smoothness: float = 4.0,
        *,
        crop: bool = True,
        shared_stride: bool = False,
        variant: Variant = "symmetric",
    ) -> None:
        super().__init__(per_axis(stride, 2), smoothness, crop=crop, shared_stride=shared_stride, variant=variant)


class DiffStride1d(DiffStride):
    """`DiffStride2d` for sequences ``(N, C, L)`` or ``(C, L)``.

    Args:
        stride: initial stride, >= 1.
        smoothness: R, >= 1e-3, width of the mask's ramp in frequency bins.
        crop: False masks only, and keeps the size.
        variant: ``"symmetric"`` or ``"official"``.

    Raises:
        ValueError: an argument is out of range.

    >>> DiffStride1d(4.0)(torch.randn(8, 3, 1000)).shape
    torch.Size([8, 3, 258])
    """

    def __init__(
        self, stride: float = 2.0, smoothness: float = 4.0, *, crop: bool = True, variant: Variant = "symmetric"
    ) -> None:
        super().__init__([stride], smoothness, crop=crop, shared_stride=False, variant=variant)


class DiffStride3d(DiffStride):
    """`DiffStride2d` for volumes and clips ``(N, C, D, H, W)`` or ``(C, D, H, W)``.

    Args:
        stride: initial stride, >= 1, one number or ``(depth, height, width)``.
        smoothness: R, >= 1e-3, width of the mask's ramp in frequency bins.
        crop: False masks only, and keeps the size.
        shared_stride: whether all axes share one stride.

    Raises:
        ValueError: an argument is out of range.

    >>> DiffStride3d((1.0, 2.0, 2.0))(torch.randn(2, 3, 4, 32, 32)).shape
    torch.Size([2, 3, 4, 24, 24])
    """

    def __init__(
        self,
        stride: float | tuple[float, float, float] = 2.0,
        smoothness: float = 4.0,
        *,
        crop: bool = True,
        shared_stride: bool = False,
    ) -> None:
        super().__init__(per_axis(stride, 3), smoothness, crop=crop, shared_stride=shared_stride, variant="symmetric")


def freeze_strides(model: nn.Module) -> nn.Module:
    """Replace every learnable stride of a trained model by its present value, in place.

    Args:
        model: with `DiffStride` layers; one that is used in several places stays one.

    Returns:
        The same model (or the frozen layer, if the model is one itself).
    """
    if isinstance(model, DiffStride):
        return model.freeze()
    frozen: dict[nn.Module, FixedStride] = {}
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, DiffStride):
                setattr(parent, name, frozen.setdefault(child, child.freeze()))
    return model

r"""Learnable strides as a crop in the Fourier domain (Riad, Teboul, Grangier & Zeghidour, ICLR 2022).

A stride :math:`S` keeps, of an axis of size :math:`n`, the frequencies below :math:`n/2S`. The number of kept
frequencies has no gradient; the mask in front of the crop, which falls from 1 to 0 within ``smoothness`` bins, has.
"""

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lit_papers.diffstride import operators

Variant = Literal["symmetric", "official"]


def _without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Full precision inside; on the meta device, which knows no autocast, nothing is computed anyway."""
    kind = tensor.device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


def span_mask(position: Tensor, half_width: Tensor, smoothness: float) -> Tensor:
    r"""Adaptive attention span: 1 up to ``half_width``, then a linear ramp down to 0.

    .. math:: \mathrm{clip}\big((R + w - k)/R,\; 0,\; 1\big)          (Sukhbaatar et al. 2019, eq. 4)

    The gradient is that of the ramp where it lies in the *closed* interval [0, 1]: at a stride of 2 and an even size
    one bin sits exactly on its upper end, and ``torch.clamp`` would lose it.

    Args:
        position: k, any shape.
        half_width: w, broadcasts against it.
        smoothness: R, > 0, in bins.

    Returns:
        Values in [0, 1], of the broadcast shape.

    >>> span_mask(torch.arange(5.0), torch.tensor(1.0), 2.0)
    tensor([1.0000, 1.0000, 0.5000, 0.0000, 0.0000])
    """
    ramp = (smoothness + half_width - position) / smoothness
    return torch.where((ramp >= 0) & (ramp <= 1), ramp, ramp.detach().clamp(0, 1))


def minimum_stride(size: int, smoothness: float) -> float:
    """The smallest stride that changes anything: below it the ramp would begin beyond the highest frequency.

    Args:
        size: n, >= 1.
        smoothness: R, > 0.

    Returns:
        n / (n - R) if n > R, else 1.

    >>> minimum_stride(32, 4.0)
    1.1428571428571428
    """
    return size / (size - smoothness) if size > smoothness else 1.0


def output_size(
    size: Sequence[int], strides: Sequence[float], smoothness: float = 4.0, variant: str = "symmetric"
) -> tuple[int, ...]:
    """Size of a cropped map: about n/S + 2R along each axis, and never more than n.

    Args:
        size: of the input, 1 to 3 axes, each >= 1.
        strides: one for each axis; those below `minimum_stride` act as it.
        smoothness: R, >= 1e-3.
        variant: ``"symmetric"`` or ``"official"``.

    Returns:
        As many numbers as ``size`` has.

    Raises:
        ValueError: an argument is out of range, or lengths differ.
        RuntimeError: a stride is NaN or infinite.

    >>> output_size((32, 56), (2.0, 2.0))
    (24, 36)
    """
    check_variant(variant, len(size))
    check_smoothness(smoothness)
    if len(size) not in (1, 2, 3) or len(strides) != len(size):
        raise ValueError(
            f"`size` and `strides` must have the same length, 1 to 3, got {len(size)} and {len(strides)} numbers"
        )
    if min(size) < 1:
        raise ValueError(f"`size` must be at least 1 along each axis, got {tuple(size)}")
    kept = [_kept_bins(n, stride, smoothness) for n, stride in zip(size, strides, strict=True)]
    if variant == "symmetric":
        return tuple(n if c >= n // 2 else 2 * c for n, c in zip(size, kept, strict=True))
    last = 2 * min(size[-1] // 2, kept[-1])
    if len(size) == 1:
        return (last,)
    height = size[0]
    return (min(height, 2 * kept[0] - 1) if height % 2 else 2 * min(height // 2, kept[0]), last)


def _kept_bins(size: int, stride: float, smoothness: float) -> int:
    """ceil(L/2 + R) in float32 and in this order, as the official layer has it: sizes near an integer depend on it."""
    if not math.isfinite(stride):
        raise RuntimeError(f"`strides` became {stride}: lower their learning rate, or look for a NaN in the loss")
    bounded = np.float32(max(stride, minimum_stride(size, smoothness)))
    length = max(np.float32(size) / bounded, np.float32(2))
    return math.ceil(length / np.float32(2) + np.float32(smoothness))


def diffstride(
    input: Tensor, strides: Tensor, smoothness: float = 4.0, *, crop: bool = True, variant: Variant = "symmetric"
) -> Tensor:
    r"""Downsample by real-valued strides, differentiably in both arguments (Riad et al., ICLR 2022, algorithm 1).

    Along each axis: to the frequency domain, times `span_mask` with :math:`w = n/2S + 1`, cut where it is zero, back.

    Args:
        input: floating, ``(..., L)``, ``(..., H, W)`` or ``(..., D, H, W)``; the last ``len(strides)`` axes are
            resampled.
        strides: ``(1,)``, ``(2,)`` or ``(3,)``. Below `minimum_stride` one acts as at it, with the gradient passed
            straight through.
        smoothness: R, >= 1e-3, in bins.
        crop: False masks only, and keeps the size.
        variant: ``"symmetric"`` keeps phase and mean; ``"official"`` reproduces the authors' TensorFlow layer, whose
            vertical mask is off by one bin and whose gain at frequency zero is (size in)/(size out); it has no third
            axis.

    Returns:
        ``(..., *output_size(...))``, in the dtype of ``input``.

    Raises:
        TypeError: ``input`` is not real and floating.
        ValueError: another argument is out of range, or shapes do not fit.
        RuntimeError: a stride is NaN or infinite.

    >>> wave = torch.cos(2 * torch.pi * 3 * torch.arange(64) / 64)
    >>> half = diffstride(wave, torch.tensor([2.0]))
    >>> half.shape, torch.allclose(half, torch.cos(2 * torch.pi * 3 * torch.arange(40) / 40), atol=1e-5)
    (torch.Size([40]), True)
    """
    check_input(input, len(strides) if strides.ndim == 1 else 0)
    size = input.shape[-len(strides) :]
    sizes = output_size(size, strides.tolist(), smoothness, variant)  # the one synchronisation with a device
    if not crop:
        sizes = uncropped_size(size, variant)
    return resample(input, strides, sizes, smoothness, variant)


def uncropped_size(size: Sequence[int], variant: str) -> tuple[int, ...]:
    """Size of a map that is masked only: the official layer then loses the last column of an odd width.

    >>> uncropped_size((9, 9), "official")
    (9, 8)
    """
    return tuple(size) if variant == "symmetric" else (*size[:-1], 2 * (size[-1] // 2))


def resample(input: Tensor, strides: Tensor, sizes: tuple[int, ...], smoothness: float, variant: str) -> Tensor:
    """`diffstride` to a size that is known already, without looking at the values of ``strides``.

    Args:
        input: as for `diffstride`.
        strides: likewise.
        sizes: of the output, from `output_size` or `uncropped_size`.
        smoothness: R.
        variant: ``"symmetric"`` or ``"official"``.

    Returns:
        ``(..., *sizes)``, in the dtype of ``input``.

    Raises:
        ValueError: the official variant would have no column left.
    """
    check_official_width(input, sizes)
    if input.numel() == 0:  # the FFT of the CPU refuses empty batches
        return input.new_zeros(*input.shape[: -len(sizes)], *sizes) + 0 * (input.sum() + strides.sum()).to(input.dtype)
    with _without_autocast(input):
        # half precision has no FFT everywhere, and would put strides off by a bin
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        masks = [
            axis_mask(n, n_out, strides[axis], smoothness, vertical=_is_vertical(axis, sizes, variant)).to(values.dtype)
            for axis, (n, n_out) in enumerate(zip(input.shape[-len(sizes) :], sizes, strict=True))
        ]
        if variant == "official":
            return operators.official(values, masks, sizes).to(input.dtype)
        responses = [
            operators.fold(mask, n, n_out) if n <= operators.LARGEST_PRODUCT else mask
            for mask, n, n_out in zip(masks, input.shape[-len(sizes) :], sizes, strict=True)
        ]
        return operators.symmetric(values, responses, sizes).to(input.dtype)


def resample_fixed(
    input: Tensor, strides: Sequence[float] | None, sizes: tuple[int, ...], smoothness: float, variant: str
) -> Tensor:
    """`resample` at constant strides: the operator of each axis is made once for all calls.

    Args:
        input: as for `diffstride`.
        strides: one number an axis; None for spectral pooling, which has no mask.
        sizes: of the output.
        smoothness: R; not used without strides.
        variant: ``"symmetric"`` or ``"official"``; the latter needs strides.

    Returns:
        ``(..., *sizes)``, in the dtype of ``input``.

    Raises:
        ValueError: the official variant would have no column left.
    """
    check_official_width(input, sizes)
    if input.numel() == 0:
        return input.new_zeros(*input.shape[: -len(sizes)], *sizes) + 0 * input.sum()
    with _without_autocast(input):
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        each: Sequence[float | None] = [None] * len(sizes) if strides is None else strides
        kind, symmetric = (values.dtype, values.device), variant == "symmetric"
        responses = [
            _constant_response(n, n_out, each[axis], smoothness, symmetric, _is_vertical(axis, sizes, variant), *kind)
            for axis, (n, n_out) in enumerate(zip(input.shape[-len(sizes) :], sizes, strict=True))
        ]
        operator = operators.symmetric if variant == "symmetric" else operators.official
        return operator(values, responses, sizes).to(input.dtype)


def _is_vertical(axis: int, sizes: tuple[int, ...], variant: str) -> bool:
    return variant == "official" and len(sizes) == 2 and axis == 0


def axis_mask(size: int, n_out: int, stride: Tensor, smoothness: float, *, vertical: bool = False) -> Tensor:
    """The mask of one axis at the frequencies that are kept, in the precision of ``stride``.

    Args:
        size: n.
        n_out: of the output.
        stride: S, a scalar; below `minimum_stride` it acts as at it.
        smoothness: R.
        vertical: whether it is the official layer's first of two axes, whose mask begins one bin earlier.

    Returns:
        ``(n_out // 2 + 1,)``; vertically ``((n_out + 1) // 2 + 1,)``.
    """
    position = torch.arange((n_out + 1) // 2 + 1 if vertical else n_out // 2 + 1, device=stride.device)
    half_width = _span(size, stride, smoothness) / 2 + (0 if vertical else 1)
    return span_mask(position.to(stride.dtype), half_width, smoothness)


_responses: dict[tuple[object, ...], Tensor] = {}


# a compiled graph holds it as a constant
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _constant_response(
    size: int,
    n_out: int,
    stride: float | None,
    smoothness: float,
    folded: bool,
    vertical: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """What `operators` needs of one axis: a folded matrix, or a mask for an FFT."""
    key = (size, n_out, stride, smoothness, folded, vertical, dtype, device)
    keep = operators.may_be_kept()
    if keep and key in _responses:
        return _responses[key]
    with torch.inference_mode(False), torch.no_grad():
        if stride is None:
            mask = torch.ones(n_out // 2 + 1, dtype=dtype, device=device)
        else:
            value = torch.tensor(stride, dtype=torch.float32, device=device)  # as a learned one is kept
            mask = axis_mask(size, n_out, value, smoothness, vertical=vertical).to(dtype)
        response = operators.fold(mask, size, n_out) if folded and size <= operators.LARGEST_PRODUCT else mask
    if keep:
        if len(_responses) >= 256:  # models that come and go
            _responses.clear()
        _responses[key] = response
    return response


def _span(size: int, stride: Tensor, smoothness: float) -> Tensor:
    """L = max(n/S, 2); the gradient passes where S is raised to its bound, and on the tie n/S = 2."""
    bounded = stride + (stride.clamp(min=minimum_stride(size, smoothness)) - stride).detach()
    length = size / bounded
    return torch.where(length >= 2, length, 2.0)


def spectral_pool(input: Tensor, output_size: Sequence[int], *, variant: Variant = "symmetric") -> Tensor:
    """Keep the lowest frequencies (Rippel, Snoek & Adams, NeurIPS 2015): DiffStride without mask, to a given size.

    Args:
        input: floating, ``(..., L)``, ``(..., H, W)`` or ``(..., D, H, W)``; the last ``len(output_size)`` axes are
            resampled.
        output_size: 1 to 3 numbers, each from 1 to the input's size.
        variant: ``"symmetric"`` keeps phase and mean; ``"official"`` multiplies a constant by (size in)/(size out).

    Returns:
        ``(..., *output_size)``, in the dtype of ``input``.

    Raises:
        TypeError: ``input`` is not real and floating.
        ValueError: another argument is out of range.

    >>> spectral_pool(torch.full((1, 4, 4), 3.0), (2, 2))
    tensor([[[3., 3.],
             [3., 3.]]])
    """
    check_variant(variant, len(output_size))
    check_input(input, len(output_size))
    sizes = tuple(output_size)
    size = tuple(input.shape[-len(sizes) :])
    if any(not 1 <= n_out <= n for n, n_out in zip(size, sizes, strict=True)):
        raise ValueError(f"`output_size` must lie between 1 and the input's {size} along each axis, got {sizes}")
    if variant == "symmetric":
        return input if sizes == size else resample_fixed(input, None, sizes, 1.0, variant)
    if input.numel() == 0:
        return input.new_zeros(*input.shape[: -len(sizes)], *sizes) + 0 * input.sum()
    with _without_autocast(input):
        return _official_spectral_pool(input.to(torch.promote_types(input.dtype, torch.float32)), sizes).to(input.dtype)


def _official_spectral_pool(values: Tensor, sizes: tuple[int, ...]) -> Tensor:
    spectrum = torch.fft.rfft(values)[..., : sizes[-1] // 2 + 1]
    if len(sizes) == 2:
        half, height = sizes[0] // 2, values.shape[-2]
        spectrum = torch.fft.fft(spectrum, dim=-2)
        spectrum = torch.cat([spectrum[..., :half, :], spectrum[..., height - (sizes[0] - half) :, :]], dim=-2)
        spectrum = torch.fft.ifft(spectrum, dim=-2)
    output: Tensor = torch.fft.irfft(spectrum, n=sizes[-1])
    return output


def complexity_penalty(strides: Iterable[Tensor]) -> Tensor:
    r"""The paper's regulariser: the share of the input's area that is left after each layer, summed.

    .. math:: J = \sum_{l=1}^{L} \prod_{i=1}^{l} \frac{1}{S_h^i S_w^i}

    Args:
        strides: of each layer in forward order, one number an axis; a single one, ``(1,)``, is shared by height and
            width, so a sequence's stride S is given as ``(S, 1)``.

    Returns:
        Scalar, > 0 for positive strides; it counts neither the margin 2R of each map nor channels.

    Raises:
        ValueError: there is no layer.

    >>> complexity_penalty([torch.tensor([2.0, 2.0])] * 3)
    tensor(0.3281)
    """
    areas = [each.prod() if each.numel() > 1 else each.prod() ** 2 for each in strides]
    if not areas:
        raise ValueError("`strides` is empty: the penalty needs at least one layer")
    return torch.stack(areas).reciprocal().cumprod(0).sum()


def check_variant(variant: str, axes: int) -> None:
    """Refuse an unknown variant, and the official one where its authors had none.

    Raises:
        ValueError: it is one.
    """
    if variant not in get_args(Variant):
        raise ValueError(f"`variant` must be 'symmetric' or 'official', got {variant!r}")
    if variant == "official" and axes == 3:
        raise ValueError("`variant`='official' has no third axis: use 'symmetric'")


def check_official_width(input: Tensor, sizes: tuple[int, ...]) -> None:
    """Refuse a map of one column where the official variant would leave none.

    Raises:
        ValueError: it is one.
    """
    if sizes[-1] == 0:
        raise ValueError(
            f"variant='official' needs at least 2 points along the last axis, got an input of size {input.shape[-1]}"
        )


def check_smoothness(smoothness: float) -> None:
    """Refuse a smoothness at which float32 masks are wrong.

    Raises:
        ValueError: it is below 1e-3, or no number.
    """
    if not 1e-3 <= smoothness < math.inf:
        hint = "; for a crop without a ramp use SpectralPool2d" if smoothness == 0 else ""
        raise ValueError(f"`smoothness` must be at least 1e-3, got {smoothness}{hint}")


def check_input(input: Tensor, axes: int) -> None:
    """Refuse what cannot be resampled along its last ``axes`` axes.

    Raises:
        TypeError: ``input`` is not real and floating.
        ValueError: ``axes`` is not 1, 2 or 3, or ``input`` has fewer, or an empty one of them.
    """
    if not input.is_floating_point():
        raise TypeError(f"the input must be floating, got {input.dtype}")
    if axes not in (1, 2, 3):
        raise ValueError(f"one to three axes can be resampled, but {axes} strides or sizes were given")
    if input.ndim < axes:
        raise ValueError(f"the input must have rank {axes} at least, got rank {input.ndim}")
    if 0 in input.shape[-axes:]:
        raise ValueError(f"the input has an empty axis: its shape is {tuple(input.shape)}")

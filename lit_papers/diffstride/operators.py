"""The linear maps behind the layers: to the frequency domain, crop, mask, and back.

Everything here is linear in the input and takes the mask of each axis and the output size as given. The symmetric
operator is (Riad et al., ICLR 2022, section 2, made zero-phase and mean-preserving), along one axis of size ``n``,

    y_i = 1/n sum_k c_k m_k sum_j x_j cos(2 pi k (i/n_out - j/n)),    k = 0 .. n_out // 2,

with c_0 = 1 and c_k = 2, but c_k = 1 and no sine part at k = n_out/2. That is one real matrix ``(n_out, n)`` for each
axis: cosines and sines of the output's grid, times the mask, times those of the input's grid.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# About where the FFT begins to beat a real matrix product on CPUs (tests/benchmarks/test_diffstride.py).
LARGEST_PRODUCT = 240

_KEPT = 256  # entries of a cache; strides that wander through many sizes empty it
_bases_of: dict[tuple[int, int, torch.dtype, torch.device], tuple[Tensor, Tensor, Tensor]] = {}


def may_be_kept() -> bool:
    """Whether tensors made now are ordinary ones, not of a graph that is traced nor of a trial without values."""
    return not torch.compiler.is_compiling() and type(torch.empty(0)) is Tensor


def _bases(size: int, n_out: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Analysis ``(n, n_out)``, synthesis ``(n_out, n_out)``, and each coefficient's frequency ``(n_out,)``."""
    if not may_be_kept():
        return _make_bases(size, n_out, dtype, device)
    key = (size, n_out, dtype, device)
    if key not in _bases_of:
        if len(_bases_of) >= _KEPT:
            _bases_of.clear()
        with torch.inference_mode(False):  # an inference tensor could not be used in training later
            _bases_of[key] = _make_bases(size, n_out, dtype, device)
    return _bases_of[key]


def _make_bases(size: int, n_out: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients are ordered constant, cosines, sines; made in float64, with arguments reduced modulo a period."""
    cosines = torch.arange(n_out // 2 + 1)
    sines = torch.arange(1, (n_out + 1) // 2)  # the sine at n_out/2 is zero on the output's grid
    weights = torch.full((len(cosines),), 2.0, dtype=torch.float64)
    weights[0] = 1
    if n_out % 2 == 0:
        weights[-1] = 1

    def waves(points: int) -> tuple[Tensor, Tensor]:
        grid = torch.arange(points)[:, None]
        step = 2 * math.pi / points
        turns = (grid * cosines % points).double(), (grid * sines % points).double()
        return torch.cos(step * turns[0]), torch.sin(step * turns[1])

    analysis = torch.cat(waves(size), dim=1) / size
    cosine, sine = waves(n_out)
    synthesis = torch.cat([cosine * weights, 2 * sine], dim=1)
    return analysis.to(device, dtype), synthesis.to(device, dtype), torch.cat([cosines, sines]).to(device)


# a compiled graph holds the bases as constants instead of making them anew
_constant_bases = torch.compiler.assume_constant_result(_bases)  # type: ignore[no-untyped-call]


def fold(mask: Tensor, size: int, n_out: int) -> Tensor:
    """The symmetric operator of one axis as a matrix, differentiable in the mask.

    Args:
        mask: at frequencies ``0 .. n_out // 2``, float32 or float64.
        size: n.
        n_out: at most n.

    Returns:
        ``(n_out, n)``.
    """
    analysis, synthesis, frequency = _constant_bases(size, n_out, mask.dtype, mask.device)
    matrix: Tensor = (synthesis * mask[frequency]) @ analysis.T
    return matrix


def symmetric(input: Tensor, responses: Sequence[Tensor], sizes: tuple[int, ...]) -> Tensor:
    """Resample the last axes with zero phase and unit gain at frequency zero, the axis that shrinks most first.

    Args:
        input: ``(..., n)``, ``(..., n_h, n_w)`` or ``(..., n_d, n_h, n_w)``, float32 or float64.
        responses: of each axis, the matrix ``(n_out, n)`` of `fold`; or the mask itself at frequencies
            ``0 .. n_out // 2``, for an FFT.
        sizes: ``n_out`` of each axis, at most ``n``.

    Returns:
        ``(..., *sizes)``, in the memory format of ``input``.
    """
    axes = len(sizes)
    first = input.ndim - axes
    last = _is_channels_last(input, axes)
    if last:  # in memory the channels come last: resample in that order, and nothing is ever copied
        input, first = input.movedim(1, -1), first - 1
    for axis in sorted(range(axes - 1, -1, -1), key=lambda axis: sizes[axis] / input.shape[first + axis]):
        along = _by_product if responses[axis].ndim == 2 else _by_fft
        input = along(input, responses[axis], sizes[axis], first + axis)
    return input.movedim(-1, 1) if last else input


def _is_channels_last(input: Tensor, axes: int) -> bool:
    if axes == 1 or input.ndim != axes + 2 or input.is_contiguous():
        return False
    expected = 1  # by hand, as `is_contiguous` of another format is refused inside of `torch.func.vmap`
    for axis in (1, *range(input.ndim - 1, 1, -1), 0):
        if input.shape[axis] != 1 and input.stride(axis) != expected:
            return False
        expected *= input.shape[axis]
    return True


def _by_product(input: Tensor, matrix: Tensor, n_out: int, axis: int) -> Tensor:
    before, after = input.shape[:axis], input.shape[axis + 1 :]
    if not after:
        return input @ matrix.T
    maps = input.reshape(math.prod(before), input.shape[axis], math.prod(after))
    # `bmm` with an expanded matrix: a broadcast `@` copies the maps, which takes twice as long
    return torch.bmm(matrix.expand(maps.shape[0], -1, -1), maps).reshape(*before, n_out, *after)


def _by_fft(input: Tensor, mask: Tensor, n_out: int, axis: int) -> Tensor:
    spectrum = torch.fft.rfft(input, dim=axis, norm="forward").narrow(axis, 0, n_out // 2 + 1)
    # a copy, or the backward pass would keep the whole spectrum alive
    spectrum = spectrum.clone() * mask.reshape(-1, *[1] * (input.ndim - axis - 1))
    output: Tensor = torch.fft.irfft(spectrum, n=n_out, dim=axis, norm="forward")
    return output


def official(input: Tensor, masks: Sequence[Tensor], sizes: tuple[int, ...]) -> Tensor:
    """The map of the authors' TensorFlow layer: with a vertical mask off by one bin on one side.

    Args:
        input: ``(..., n)`` or ``(..., n_h, n_w)``, float32 or float64.
        masks: vertical mask at positions ``0 .. ceil(n_h/2) - 1`` (only in 2-D), then the horizontal one at
            ``0 .. n_out // 2``. Negative vertical frequency ``-k`` has position ``k - 1``, positive ``k`` has ``k``,
            or ``k + 1`` if ``n_h`` is odd.
        sizes: of the output; an even last one.

    Returns:
        ``(..., *sizes)``; a constant input comes out multiplied by (size in)/(size out).
    """
    spectrum = torch.fft.rfft(input)[..., : sizes[-1] // 2 + 1].clone()
    if len(sizes) == 2:
        odd = input.shape[-2] % 2
        above, below = sizes[0] // 2, (sizes[0] + 1) // 2  # non-negative and negative frequencies
        spectrum = torch.fft.fft(spectrum, dim=-2)
        spectrum = torch.cat([spectrum[..., :above, :], spectrum[..., spectrum.shape[-2] - below :, :]], dim=-2)
        vertical = torch.cat([masks[0][odd : above + odd], masks[0][:below].flip(0)])
        spectrum = torch.fft.ifft(spectrum * (vertical[:, None] * masks[1]), dim=-2)
    else:
        spectrum = spectrum * masks[0]
    # the zero and Nyquist columns are not Hermitian now, so one `irfft2` would give something else
    output: Tensor = torch.fft.irfft(spectrum, n=sizes[-1])
    return output

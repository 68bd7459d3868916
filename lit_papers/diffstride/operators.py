"""The linear maps behind the layers: to the frequency domain, crop, mask, and back.

Every function takes the mask of each axis and the output size as given, and is linear in the input. The symmetric
operator is (Riad et al., ICLR 2022, section 2, made zero-phase and mean-preserving), along one axis of size ``n``,

    y_i = 1/n sum_k c_k m_k sum_j x_j cos(2 pi k (i/n_out - j/n)),    k = 0 .. n_out // 2,

with c_0 = 1 and c_k = 2, but c_k = 1 and no sine part at k = n_out/2.
"""

import math

import torch
from torch import Tensor

# Up to this size two real matrix products an axis beat the FFT (tests/benchmarks/test_diffstride.py).
_LARGEST_PRODUCT = 512


_cache: dict[tuple[int, int, torch.dtype, torch.device], tuple[Tensor, Tensor, Tensor]] = {}


def _bases(size: int, n_out: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Analysis ``(n, n_out)``, synthesis ``(n_out, n_out)``, and each coefficient's frequency ``(n_out,)``."""
    if torch.compiler.is_compiling():  # an exported graph is traced with fake tensors, which must not stay here
        return _make_bases(size, n_out, dtype, device)
    key = (size, n_out, dtype, device)
    if key not in _cache:
        if len(_cache) >= 256:  # strides that wander through many sizes
            _cache.clear()
        with torch.inference_mode(False):  # an inference tensor could not be used in training later
            _cache[key] = _make_bases(size, n_out, dtype, device)
    return _cache[key]


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


def symmetric(input: Tensor, masks: list[Tensor], sizes: tuple[int, ...]) -> Tensor:
    """Resample the last axes with zero phase and unit gain at frequency zero.

    Args:
        input: ``(..., n)`` or ``(..., n_h, n_w)``, float32 or float64.
        masks: of each axis, at frequencies ``0 .. n_out // 2``.
        sizes: ``n_out`` of each axis, at most ``n``.

    Returns:
        ``(..., *sizes)``.
    """
    if max(input.shape[-len(sizes) :]) <= _LARGEST_PRODUCT:
        return by_products(input, masks, sizes)
    return by_fft(input, masks, sizes)


def by_products(input: Tensor, masks: list[Tensor], sizes: tuple[int, ...]) -> Tensor:
    """`symmetric` by products with constant real bases; only cropped coefficients are kept for the backward pass."""
    bases: list[tuple[Tensor, Tensor, Tensor]] = [
        _constant_bases(n, n_out, input.dtype, input.device)
        for n, n_out in zip(input.shape[-len(sizes) :], sizes, strict=True)
    ]
    weights = [mask[frequency] for mask, (_, _, frequency) in zip(masks, bases, strict=True)]
    if len(sizes) == 1:
        return input @ bases[0][0] * weights[0] @ bases[0][1].T
    (down, up, _), (across, back, _) = bases
    maps = input.reshape(-1, *input.shape[-2:])
    # `bmm` with an expanded matrix: a broadcast `@` copies the maps, which takes twice as long
    coefficients = torch.bmm(down.T.expand(len(maps), -1, -1), maps @ across)  # (maps, h_out, w_out)
    coefficients = coefficients * (weights[0][:, None] * weights[1])
    output = torch.bmm(up.expand(len(maps), -1, -1), coefficients) @ back.T
    return output.reshape(*input.shape[:-2], *sizes)


def by_fft(input: Tensor, masks: list[Tensor], sizes: tuple[int, ...]) -> Tensor:
    """`symmetric` by real FFTs, an axis after the other, the one that shrinks most first."""
    axes = range(-len(sizes), 0)
    for axis in sorted(axes, key=lambda axis: sizes[axis] / input.shape[axis]):
        kept = sizes[axis] // 2 + 1
        spectrum = torch.fft.rfft(input, dim=axis, norm="forward").narrow(axis, 0, kept)
        # a copy, or the backward pass would keep the whole spectrum alive
        spectrum = spectrum.clone() * masks[axis].reshape(-1, *[1] * (-axis - 1))
        input = torch.fft.irfft(spectrum, n=sizes[axis], dim=axis, norm="forward")
    return input


def official(input: Tensor, masks: list[Tensor], sizes: tuple[int, ...]) -> Tensor:
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

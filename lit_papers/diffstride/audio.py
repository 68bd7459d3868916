"""Networks for sounds: on log-mel spectrograms with pooling in two dimensions, and on the waveform in one.

The paper has audio experiments, but no code for them was released; both networks are ours.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_papers.diffstride.functional import Variant
from lit_papers.diffstride.pooling import (
    Pooling,
    SameConv1d,
    SameConv2d,
    conv_stride,
    make_pool,
    stride_pairs,
)
from lit_papers.diffstride.resampling import check_stride

_FLOOR = 1e-6  # of mel energies, for waveforms in [-1, 1]: about the noise of 16 bits


class LogMel(nn.Module):
    """Log-mel spectrogram ``(N, 1, n_mels, frames)`` of waveforms ``(N, T)``: 25 ms windows, 10 ms apart.

    Always in float32, on the device of the waveform.

    Args:
        sample_rate: of the waveform, in Hz.
        n_mels: number of mel bands.

    Raises:
        ImportError: torchaudio is missing.
    """

    def __init__(self, sample_rate: int, n_mels: int) -> None:
        super().__init__()
        try:
            from torchaudio.transforms import MelSpectrogram
        except ImportError as error:
            raise ImportError(f"{error}: install `lit-papers[audio]`") from error
        window = sample_rate // 40
        padded = 2 ** (window.bit_length() + 1)  # fine enough that no low mel band falls between two bins
        self.mel = MelSpectrogram(
            sample_rate, n_fft=padded, win_length=window, hop_length=sample_rate // 100, n_mels=n_mels
        )

    def forward(self, waveform: Tensor) -> Tensor:
        """Logarithm of mel energies."""
        with torch.autocast(waveform.device.type, enabled=False):
            energies: Tensor = self.mel(waveform.float())  # (N, n_mels, frames)
            return energies.clamp(min=_FLOOR).log()[:, None]


class AudioCNN(nn.Module):
    """Small convolutional network on log-mel spectrograms, a stage: convolution 3x3, pooling, batch norm, ReLU.

    Args:
        num_classes: number of logits.
        sample_rate: of the waveforms, in Hz.
        n_mels: number of mel bands, the height of the first map.
        widths: channels of each stage.
        strides: of each stage; numbers, or pairs (mel, time).
        pooling: ``"strided"`` convolutions (integer strides), ``"spectral"`` pooling, or ``"diffstride"``.
        smoothness: R of DiffStride.
        variant: ``"symmetric"`` or ``"official"``, of DiffStride and spectral pooling.
        cells: of a grid (mel, time) over the last map, whose means the classifier sees apart. The larger the maps, the
            less of a word three convolutions see, and a mean over the whole map forgets what came first; with several
            cells in time the classifier sees the whole word in its order, whatever the size of the map.

    Raises:
        ImportError: torchaudio is missing.
        ValueError: an argument is out of range or lengths differ.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        sample_rate: int = 16000,
        n_mels: int = 64,
        widths: Sequence[int] = (32, 64, 128, 128),
        strides: Sequence[float | tuple[float, float]] = (2, 2, 2, 2),
        pooling: Pooling = "diffstride",
        smoothness: float = 4.0,
        variant: Variant = "symmetric",
        cells: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        if len(cells) != 2 or min(cells) < 1:
            raise ValueError(f"`cells` must be two numbers (mel, time), each at least 1, got {tuple(cells)}")
        pairs = stride_pairs(strides, widths, pooling)
        self.mel = LogMel(sample_rate, n_mels)
        stages = []
        for before, width, stride in zip((1, *widths), widths, pairs, strict=False):
            pool = make_pool(stride, pooling, smoothness, variant)
            conv = SameConv2d(before, width, 3, conv_stride(stride, pooling))
            stages.append(nn.Sequential(conv, *([] if pool is None else [pool]), nn.BatchNorm2d(width), nn.ReLU()))
        self.stages = nn.Sequential(*stages)
        self.cells = (int(cells[0]), int(cells[1]))
        self.fc = nn.Linear(widths[-1] * self.cells[0] * self.cells[1], num_classes)

    def forward(self, waveform: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of waveforms ``(N, T)`` or ``(N, 1, T)``, T at least one window of 25 ms."""
        maps = self.stages(self.mel(mono(waveform)))
        logits: Tensor = self.fc(nn.functional.adaptive_avg_pool2d(maps, self.cells).flatten(1))
        return logits


class WaveformCNN(nn.Module):
    """Small convolutional network on the waveform itself, a stage: convolution of 9, pooling, batch norm, ReLU.

    Args:
        num_classes: number of logits.
        widths: channels of each stage.
        strides: of each stage.
        pooling: ``"strided"`` convolutions (integer strides), ``"spectral"`` pooling, or ``"diffstride"``.
        smoothness: R of DiffStride.
        variant: ``"symmetric"`` or ``"official"``, of DiffStride and spectral pooling.

    Raises:
        ValueError: an argument is out of range or lengths differ.

    >>> WaveformCNN(10, widths=(4, 8), strides=(8, 8))(torch.zeros(2, 1000)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        widths: Sequence[int] = (16, 32, 64, 128, 128),
        strides: Sequence[float] = (4, 4, 4, 4, 2),
        pooling: Pooling = "diffstride",
        smoothness: float = 4.0,
        variant: Variant = "symmetric",
    ) -> None:
        super().__init__()
        stride_pairs(strides, widths, pooling)
        check_stride(strides)
        stages = []
        for before, width, stride in zip((1, *widths), widths, strides, strict=False):
            pool = make_pool([stride], pooling, smoothness, variant)
            conv = SameConv1d(before, width, 9, conv_stride([stride], pooling))
            stages.append(nn.Sequential(conv, *([] if pool is None else [pool]), nn.BatchNorm1d(width), nn.ReLU()))
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, waveform: Tensor) -> Tensor:
        """Logits ``(N, num_classes)`` of waveforms ``(N, T)`` or ``(N, 1, T)``."""
        logits: Tensor = self.fc(self.stages(mono(waveform)[:, None]).mean(-1))
        return logits


def mono(waveform: Tensor) -> Tensor:
    """``(N, T)`` of ``(N, T)`` or ``(N, 1, T)``.

    Raises:
        ValueError: it has another shape.
    """
    if waveform.ndim == 3 and waveform.shape[1] == 1:
        return waveform[:, 0]
    if waveform.ndim != 2:
        raise ValueError(f"waveforms must have shape (N, T) or (N, 1, T), got {tuple(waveform.shape)}")
    return waveform

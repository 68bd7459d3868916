"""Learning strides in convolutional networks (DiffStride; Riad, Teboul, Grangier & Zeghidour, ICLR 2022)."""

from lit_papers.diffstride.layers import DiffStride1d, DiffStride2d, SpectralPool1d, SpectralPool2d
from lit_papers.diffstride.module import StridedClassifier

__all__ = ["DiffStride1d", "DiffStride2d", "SpectralPool1d", "SpectralPool2d", "StridedClassifier"]

"""Unsupervised continual learning and LUMP (Madaan et al., ICLR 2022)."""

from lit_papers.continual.augmentations import SSLTransform
from lit_papers.continual.module import SupervisedContinual, UnsupervisedContinual
from lit_papers.continual.resnet import ResNet

__all__ = ["ResNet", "SSLTransform", "SupervisedContinual", "UnsupervisedContinual"]

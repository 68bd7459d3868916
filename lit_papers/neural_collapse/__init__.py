"""Neural collapse under MSE loss (Han, Papyan & Donoho, ICLR 2022)."""

from lit_papers.neural_collapse.module import PAPER_EPOCHS, ImageClassifier

__all__ = ["PAPER_EPOCHS", "ImageClassifier"]

"""Unsupervised continual learning and LUMP (Madaan et al., ICLR 2022)."""

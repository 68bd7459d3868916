"""Weights & Biases sweep files, one per paper."""

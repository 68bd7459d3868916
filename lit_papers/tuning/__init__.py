"""Weights & Biases sweep files without Weights & Biases: the search runs on this machine, with Optuna."""

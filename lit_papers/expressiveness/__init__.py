"""Expressiveness and approximation properties of graph neural networks (Geerts & Reutter, ICLR 2022)."""

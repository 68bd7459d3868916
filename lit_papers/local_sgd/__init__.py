"""Minibatch against local SGD with shuffling (Yun, Rajput & Sra, ICLR 2022).

Importing this package registers the strategies ``local_sgd``, ``local_sgd_spawn`` and ``local_sgd_fork``.
"""

from lit_papers.local_sgd.samplers import (
    RandomReshufflingSampler,
    SynchronizedShufflingSampler,
    WithReplacementSampler,
)
from lit_papers.local_sgd.strategy import LocalSGDStrategy

__all__ = [
    "LocalSGDStrategy",
    "RandomReshufflingSampler",
    "SynchronizedShufflingSampler",
    "WithReplacementSampler",
]

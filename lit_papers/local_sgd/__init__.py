"""Minibatch against local SGD with shuffling (Yun, Rajput & Sra, ICLR 2022).

Importing this package registers the strategies ``local_sgd``, ``local_sgd_spawn`` and ``local_sgd_fork``.
"""

from lightning.pytorch.strategies import StrategyRegistry

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

for _name, _start_method in (("local_sgd", "popen"), ("local_sgd_spawn", "spawn"), ("local_sgd_fork", "fork")):
    StrategyRegistry.register(
        _name,
        LocalSGDStrategy,
        description=f"Local SGD, processes started by {_start_method!r}",
        start_method=_start_method,
    )

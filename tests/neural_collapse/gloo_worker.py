"""One of several gloo processes that gather class statistics together; started by test_metrics.py.

Usage: python gloo_worker.py RANK WORLD_SIZE FOLDER, with FOLDER/shards.pt a list of (features, targets).
"""

import datetime
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from lit_papers.neural_collapse.metrics import ClassStatisticsMetric


def main(rank: int, world_size: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=60),
    )
    try:
        features, targets = torch.load(folder / "shards.pt")[rank]
        metric = ClassStatisticsMetric(num_classes=4, num_features=features.shape[1])
        for rows, labels in zip(features.split(50), targets.split(50), strict=True):
            metric.update(rows, labels)
        first = metric.compute()
        metric.update(features, targets)  # after a synchronised compute the process goes on with its own share
        doubled = metric.compute()

        idle = ClassStatisticsMetric(num_classes=4, num_features=features.shape[1])
        idle.update(*((features, targets) if rank == 0 else (features[:0], targets[:0])))
        torch.save((first, doubled, idle.compute()), folder / f"result{rank}.pt")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

"""Rules that any accumulator of ours must keep, as checks for any ``torchmetrics.Metric``.

A test module calls `check_metric` with a factory and batches; see ``tests/test_accumulator.py``.
"""

import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torchmetrics import Metric

from lit_papers.lens import tensors_in

MakeMetric = Callable[[], Metric]
Batches = Sequence[tuple[Any, ...]]


def check_metric(make: MakeMetric, batches: Batches, *, tolerance: float = 1e-12, processes: bool = True) -> None:
    """Batch by batch, merged, cast, in inference mode and on two processes it computes what it does at once.

    Args:
        make: a new metric.
        batches: arguments of ``update``, two or more.
        tolerance: relative.
        processes: also start two of them.
    """
    expected = computed(make(), batches)
    assert all(torch.isfinite(t).all() for t in expected)

    for what, metric in {
        "merged": merged(make, batches),
        "cast to bfloat16": fed(make().to(torch.bfloat16), batches),
        "cast with its module": fed(nn.ModuleList([make()]).to(torch.bfloat16)[0], batches),
        "begun in inference mode": begun_in_inference_mode(make, batches),
    }.items():
        assert_equal(tensors_in(metric.compute()), expected, tolerance, what)

    again = make()
    fed(again, batches[:1])
    again.compute()
    again.reset()
    assert_equal(computed(again, batches), expected, tolerance, "after a reset")
    if processes:
        for found in on_two_processes(make, batches):
            assert_equal(found, expected, tolerance, "on two processes")


def computed(metric: Metric, batches: Batches) -> list[torch.Tensor]:
    return tensors_in(fed(metric, batches).compute())


def fed(metric: Any, batches: Batches) -> Any:
    for batch in batches:
        metric.update(*batch)
    return metric


def merged(make: MakeMetric, batches: Batches) -> Metric:
    first, second = fed(make(), batches[:1]), fed(make(), batches[1:])
    first.compute()  # torchmetrics keeps the result
    first.merge_state(second)
    return first


def begun_in_inference_mode(make: MakeMetric, batches: Batches) -> Metric:
    metric = make()
    with torch.inference_mode():
        fed(metric, batches[:1])
    return fed(metric, batches[1:])


def assert_equal(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float, what: str) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}: {text}")


def on_two_processes(make: MakeMetric, batches: Batches) -> list[list[torch.Tensor]]:
    """What each of two gloo processes computes, of which the second has all batches but the first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_work, args=(rank, port, make, batches, queue), daemon=True) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    try:
        return [[torch.tensor(values) for values in queue.get(timeout=60)] for _ in workers]
    finally:
        for worker in workers:
            worker.join(5)
            worker.kill()


def _work(rank: int, port: int, make: MakeMetric, batches: Batches, queue: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        metric = fed(make(), batches[:1] if rank == 0 else batches[1:])
        queue.put([t.double().numpy() for t in tensors_in(metric.compute())])
    finally:
        torch.distributed.destroy_process_group()

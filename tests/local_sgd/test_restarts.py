"""A job that torchrun starts again meets its own ranks, not the addresses of the ones before."""

import os
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

from torch.distributed import TCPStore

from tests.warm import warm

RANK = """\
import torch, torch.distributed as dist
from datetime import timedelta
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lit_papers.local_sgd import LocalSGDStrategy

strategy = LocalSGDStrategy(process_group_backend="gloo", timeout=timedelta(seconds=60))
strategy.cluster_environment = TorchElasticEnvironment()
strategy.parallel_devices = [torch.device("cpu")] * 2
strategy.setup_distributed()
number = torch.tensor([1.0 + strategy.global_rank])
dist.all_reduce(number)
print("sum", number.item())
"""


def test_later_attempts_have_keys_of_their_own(tmp_path: Path) -> None:
    """torchrun's store outlives them: a rank that comes first would read where another one was before."""
    agent = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    job = {
        **os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": str(agent.port), "WORLD_SIZE": "2", "GROUP_RANK": "0",
        "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_USE_AGENT_STORE": "True",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    keys = []
    for attempt in ("0", "1", "2"):
        with ExitStack() as stack:
            ranks = [
                stack.enter_context(warm(["-c", RANK], tmp_path, {**job, **one, "TORCHELASTIC_RESTART_COUNT": attempt}))
                for one in ({"RANK": "0", "LOCAL_RANK": "0"}, {"RANK": "1", "LOCAL_RANK": "1"})
            ]
            for rank in ranks:
                out = rank.communicate(timeout=100)[0]
                assert rank.returncode == 0, (attempt, out[-2000:])
                assert "sum 3.0" in out
        keys.append(agent.num_keys())
    first, second, third = keys
    assert second - first == third - second > 0, "none was written over"

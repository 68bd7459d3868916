"""A process that is killed, stopped, or lost with its node: all others end soon, and say who it was and what to do."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_papers.local_sgd import LocalSGDStrategy
from tests.local_sgd.small import fit, same, trainer
from tests.local_sgd.test_strategy_evaluation import Steady
from tests.local_sgd.test_strategy_failures import end_group, environment, processes_of


class Struck(Steady):
    """Some ranks get a signal in the middle of the third round."""

    def __init__(self, ranks: tuple[int, ...], blow: signal.Signals) -> None:
        super().__init__()
        self.ranks, self.blow = ranks, blow

    def training_step(self, batch: Any, batch_index: int) -> Any:
        if self.trainer.global_step == 7 and self.trainer.global_rank in self.ranks:
            Path(f"struck_{self.trainer.global_rank}").write_text(str(time.time()))
            os.kill(os.getpid(), self.blow)
        return super().training_step(batch, batch_index)


def one_of(rank: int, nodes: int, per_node: int, port: int, options: dict[str, Any], module: Struck) -> None:
    """A process as torchrun starts it, with nobody who would end it."""
    os.environ.update({
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(nodes * per_node), "RANK": str(rank),
        "LOCAL_RANK": str(rank % per_node), "GROUP_RANK": str(rank // per_node), "TORCHELASTIC_RUN_ID": "test",
    })  # fmt: skip
    saver = ModelCheckpoint("saved", filename="{step}", every_n_train_steps=4, save_top_k=-1)
    strategy = LocalSGDStrategy(process_group_backend="gloo", **options)
    try:
        trainer(strategy, per_node, [saver], num_nodes=nodes, max_epochs=1000).fit(module)
    except RuntimeError as error:
        Path(f"said_{rank}").write_text(str(error))
        os._exit(1)


CASES: dict[str, tuple[Any, ...]] = {
    "a worker is killed": ((1, 2), {"sync_every": 3}, (1,), signal.SIGKILL),
    "a worker is stopped": ((1, 2), {"sync_every": 3}, (1,), signal.SIGSTOP),
    "the host of the store is killed": ((1, 2), {"sync_every": 3}, (0,), signal.SIGKILL),
    "a worker is killed in the warm-up": ((1, 2), {"sync_every": 3, "warmup_steps": 20}, (1,), signal.SIGKILL),
    "a node is killed": ((2, 2), {"sync_every": 3, "within_node": "ddp"}, (2, 3), signal.SIGKILL),
}


@pytest.mark.parametrize("case", CASES)
def test_all_others_end_and_say_who_is_gone(case: str) -> None:
    (nodes, per_node), options, struck, blow = CASES[case]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("fork")
    arguments = (nodes, per_node, port, options, Struck(struck, blow))
    processes = [context.Process(target=one_of, args=(rank, *arguments)) for rank in range(nodes * per_node)]
    for process in processes:
        process.start()
    try:
        end = time.monotonic() + 60
        while any(process.is_alive() for process in processes) and time.monotonic() < end:
            time.sleep(0.05)
        took = time.time() - max(float(path.read_text()) for path in Path().glob("struck_*"))
        assert not any(process.is_alive() for process in processes), "a stopped one is ended too"
    finally:
        for process in processes:
            process.kill()
            process.join()
    said = [path.read_text() for path in sorted(Path().glob("said_*"))]
    assert took < 15
    assert len(said) == nodes * per_node - len(struck)
    for message in said:
        for rank in struck:
            assert f"rank {rank} (process {processes[rank].pid} on {socket.gethostname()}" in message
        assert ("nothing is left of node 1" in message) == (nodes == 2)
        assert "ckpt_path=" in message
        assert "step=4.ckpt" in message


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_torchrun_restarts_a_killed_job_from_its_last_checkpoint(tmp_path: Path) -> None:
    """The recipe of the README: the second attempt ends as a run that was never interrupted."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent("""
            import os, signal
            from pathlib import Path
            from lightning.pytorch.callbacks import ModelCheckpoint
            from lit_papers.local_sgd import LocalSGDStrategy
            from tests.local_sgd.small import Dump, trainer
            from tests.local_sgd.test_strategy_evaluation import Steady

            class Struck(Steady):
                def training_step(self, batch, batch_index):
                    if self.global_step == 11 and self.trainer.global_rank == 1 and not Path("struck").exists():
                        Path("struck").touch()
                        os.kill(os.getpid(), signal.SIGKILL)
                    return super().training_step(batch, batch_index)

                def on_train_start(self):
                    with Path("began").open("a") as file:
                        print(self.trainer.global_rank, self.global_step, file=file)

            saver = ModelCheckpoint("saved", save_last=True, every_n_train_steps=5)
            strategy = LocalSGDStrategy(sync_every=3, process_group_backend="gloo")
            trainer(strategy, 2, [saver, Dump(Path("ranks"))]).fit(Struck(), ckpt_path="last")
        """)
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    agent = subprocess.Popen(
        [*torchrun, "--nproc-per-node=2", "--max-restarts=2", script],
        env=environment(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = agent.communicate(timeout=550)
    finally:
        end_group(agent.pid)
    assert agent.returncode == 0, output[-3000:]
    assert sorted((tmp_path / "began").read_text().split("\n")[:-1]) == ["0 0", "0 10", "1 0", "1 10"]
    whole = fit(Steady(), LocalSGDStrategy(sync_every=3, process_group_backend="gloo", start_method="fork"), folder="b")
    for rank, uninterrupted in enumerate(whole):
        assert same(
            torch.load(tmp_path / f"ranks/rank_{rank}.pt", weights_only=True)["weights"], uninterrupted["weights"]
        )
    assert processes_of(script) == []

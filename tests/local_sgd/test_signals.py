"""Signals that find the ranks at different batches: a stop ends all processes, SLURM's requeue saves after a round."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from tests.local_sgd.small import same
from tests.local_sgd.test_strategy_failures import end_group, environment, processes_of
from tests.processes import wait_until_gone
from tests.warm import warm


def test_sigterm_in_the_middle_of_a_round_ends_both_processes(tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(
        textwrap.dedent("""
            import time
            from pathlib import Path
            from lit_papers.local_sgd import LocalSGDStrategy
            from tests.local_sgd.small import Classifier, trainer

            class Slow(Classifier):
                def training_step(self, batch, batch_index):
                    time.sleep(0.05 * (1 + self.trainer.global_rank))
                    if self.trainer.global_step == 4:
                        Path(f"started_{self.trainer.global_rank}").touch()
                    return super().training_step(batch, batch_index)

            strategy = LocalSGDStrategy(sync_every=20, sync_on_epoch_end=False, process_group_backend="gloo")
            trainer(strategy, max_epochs=1000).fit(Slow())
        """)
    )
    process = subprocess.Popen(
        [sys.executable, script], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(tmp_path / "started_0", tmp_path / "started_1")
        process.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        output, _ = process.communicate(timeout=240)
    finally:
        end_group(process.pid)
    assert time.monotonic() - begin < 60
    assert output.count("Received SIGTERM") == 2
    assert processes_of(script) == []


@pytest.mark.parametrize("signalled", [0, 1])
def test_slurm_requeue_saves_after_the_round_and_goes_on_bit_for_bit(signalled: int, tmp_path: Path) -> None:
    """Two tasks as `srun` starts them, told to requeue in the middle of a round; `scontrol` is ours."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(f"""
            import os, signal
            from pathlib import Path
            from lit_papers.local_sgd import LocalSGDStrategy, RandomReshufflingSampler
            from lit_papers.local_sgd.loading import ResumableLoader
            from tests.local_sgd.small import BATCH, Classifier, Dump, pairs, trainer

            class Signalled(Classifier):
                def on_train_start(self):
                    self.notes = {{"began": self.trainer.global_step}}

                def train_dataloader(self):
                    data = pairs(2)
                    return ResumableLoader(data, BATCH, sampler=RandomReshufflingSampler(data))

                def training_step(self, batch, batch_index):
                    if (self.trainer.global_rank, self.trainer.global_step) == ({signalled}, 4):
                        os.kill(os.getpid(), signal.SIGUSR1)
                    return super().training_step(batch, batch_index)

            strategy = LocalSGDStrategy(sync_every=3, process_group_backend="gloo")
            trainer(strategy, callbacks=[Dump(Path(os.environ["RANKS"]))]).fit(Signalled())
        """)
    )
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text("#!/bin/sh\necho $@ >> requeued\n")
    scontrol.chmod(0o755)

    whole = run_under_slurm(script, "whole")
    assert (tmp_path / "requeued").read_text() == "requeue 4321\n"
    saved = torch.load(tmp_path / "hpc_ckpt_1.ckpt", weights_only=True)
    assert (saved["global_step"], saved["local_sgd"]["since_sync"]) == (6, 0)
    resumed = run_under_slurm(script, "resumed")
    for before, after in zip(whole, resumed, strict=True):
        assert (before["began"], after["began"]) == (0, 6)
        assert same(before["weights"], after["weights"])
        assert before["n_syncs"] == after["n_syncs"]
    assert (tmp_path / "requeued").read_text().count("\n") == 1


def run_under_slurm(script: Path, folder: str) -> list[dict]:
    """Two tasks on one node, as SLURM describes them to its tasks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {
        "PATH": f"{script.parent / 'bin'}{os.pathsep}{os.environ['PATH']}", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "SLURM_JOB_ID": "4321", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0", "RANKS": folder,
    }  # fmt: skip
    first, second = (
        warm([str(script)], Path.cwd(), {**environment(), **job, "SLURM_PROCID": rank, "SLURM_LOCALID": rank})
        for rank in "01"
    )
    with first as one, second as two:
        outputs = [task.communicate(timeout=240) for task in (one, two)]
        assert [task.returncode for task in (one, two)] == [0, 0], outputs
        wait_until_gone([one.pid, two.pid])
    return [torch.load(script.parent / folder / f"rank_{rank}.pt", weights_only=True) for rank in "01"]


def wait_for(*paths: Path, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not all(path.exists() for path in paths):
        assert time.monotonic() < end, "the processes did not start in time"
        time.sleep(0.05)

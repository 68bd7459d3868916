"""The strategy from the command line, by name and from YAML; and over two nodes that torchrun starts."""

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lit_papers.cli import main
from tests.local_sgd.test_strategy_failures import end_group, environment, processes_of

DIGITS = ["fit", "--config", "neural_collapse/digits", "--trainer.enable_progress_bar=false", "--trainer.max_epochs=1"]
YAML = """
trainer:
  devices: 2
  strategy:
    class_path: lit_papers.local_sgd.LocalSGDStrategy
    init_args:
      sync_every: 3
      start_method: fork
      outer_optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.7, momentum: 0.9, nesterov: true}}
  callbacks+:
    - class_path: lit_papers.callbacks.ConsensusDistance
"""


@pytest.fixture(autouse=True)
def _own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lit_papers"])  # LightningCLI warns of two command lines


def outcome(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as error:
        return int(error.code or 0)


def test_yaml(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text(YAML)
    assert outcome([*DIGITS, "--config", "more.yaml"]) == 0
    (figure,) = tmp_path.glob("runs/neural_collapse/digits/version_0/local_sgd.png")
    assert "local_sgd/consensus_distance" in (figure.parent / "metrics.csv").read_text()


def test_by_name(tmp_path: Path) -> None:
    """As users type it, in a new interpreter; the second process, another one, is started from the same words."""
    done = subprocess.run(
        [sys.executable, "-m", "lit_papers", *DIGITS, "--trainer.devices=2", "--trainer.strategy", "local_sgd"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("run folder") == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--trainer.strategy=LocalSGDStrategy", "--trainer.strategy.sync_evry=3"], "sync_evry"),
        (["--trainer.strategy=LocalSGDStrategy", "--trainer.strategy.sync_every=0"], "sync_every must be"),
        (["--trainer.strategy=local_sdg"], "local_sdg"),
    ],
)
def test_mistakes_are_refused(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome([*DIGITS, *arguments]) == 2
    assert named in capsys.readouterr().err


def test_two_nodes_that_torchrun_starts(tmp_path: Path) -> None:
    """Two agents on one host, each with one process; validation, a checkpoint and hierarchical rounds on the way."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent("""
            import json, sys
            from lit_papers.local_sgd import LocalSGDStrategy
            from tests.local_sgd.small import Validated, trainer
            strategy = LocalSGDStrategy(sync_every=3, across_nodes_every=2, process_group_backend="gloo")
            runner = trainer(strategy, 1, num_nodes=2, val_check_interval=4)
            module = Validated()
            runner.fit(module)
            runner.save_checkpoint("last.ckpt")
            weights = [parameter.tolist() for parameter in module.parameters()]
            with open(f"rank_{runner.global_rank}.json", "w") as file:
                json.dump({"world": runner.world_size, "syncs": strategy.n_syncs, "weights": weights}, file)
        """)
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", f"--node-rank={node}",
             "--master-addr=127.0.0.1", f"--master-port={port}", str(script)],
            env={**environment(), "GLOO_SOCKET_IFNAME": "lo"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )
        for node in range(2)
    ]  # fmt: skip
    try:
        outputs = [agent.communicate(timeout=120)[0] for agent in agents]
    finally:
        for agent in agents:
            end_group(agent.pid)
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    first, second = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert (first["world"], first["syncs"]) == (2, 6)
    assert os.path.getsize(tmp_path / "last.ckpt") > 0
    assert processes_of(script) == []

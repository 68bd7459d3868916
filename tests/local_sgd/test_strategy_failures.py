"""What the ranks send, and what happens when they differ or one of them fails."""

import contextlib
import os
import signal
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.multiprocessing import ProcessRaisedException
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lit_papers.local_sgd import RandomReshufflingSampler
from tests.local_sgd.small import BATCH, Classifier, Validated, fit, local_sgd, pairs, same
from tests.processes import wait_until_gone
from tests.warm import warm

ROOT = Path(__file__).parents[2]
COLLECTIVES = (
    "all_reduce", "all_gather", "broadcast", "barrier", "all_gather_into_tensor", "reduce", "gather",
    "all_gather_object", "gather_object", "broadcast_object_list", "reduce_scatter_tensor",
)  # fmt: skip


class CountCollectives(Callback):
    """Counts this process's collectives from the first batch to the last."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.notes = counts = dict.fromkeys(COLLECTIVES, 0)
        for name in COLLECTIVES:
            original = getattr(dist, name)

            def counted(*args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
                counts[_name] += 1
                return _original(*args, **kwargs)

            setattr(dist, name, counted)  # in a process that ends with the fit


def test_sixteen_batches_take_two_all_reduces_and_nothing_a_batch() -> None:
    class Longer(Classifier):
        def train_dataloader(self) -> Any:
            data = pairs(2, 16)
            return DataLoader(data, BATCH, sampler=RandomReshufflingSampler(data))

    for counts in fit(Longer(), local_sgd(sync_every=8), callbacks=[CountCollectives()], max_epochs=1):
        used = {name: counts[name] for name in COLLECTIVES if counts[name]}
        # one handshake a round; SIGTERM is passed on where the ranks just met: at the start and after a round
        assert used == {"all_reduce": 2, "all_gather": 2, "broadcast": 2}


class Uneven(Validated):
    """Eight batches on the first rank, five on the second."""

    batches = (8, 5)
    with_length = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.notes: dict[str, Any] = {"batches seen": [], "validated": 0}

    def train_dataloader(self) -> Any:
        data = pairs(1, self.batches[self.trainer.global_rank])
        if self.with_length:
            return DataLoader(data, BATCH, sampler=torch.utils.data.DistributedSampler(data, 1, 0))
        return DataLoader(Stream(data), BATCH)

    def on_train_epoch_end(self) -> None:
        self.notes["batches seen"].append(self.trainer.fit_loop.batch_idx + 1)

    def on_validation_epoch_end(self) -> None:
        self.notes["validated"] += 1

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


class Stream(IterableDataset[Any]):
    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __iter__(self) -> Any:
        return iter(zip(*self.data.tensors, strict=True))


class UnevenStream(Uneven):
    with_length = False


def test_uneven_batches_are_refused_before_the_first_step() -> None:
    begin = time.monotonic()
    with pytest.raises(ProcessRaisedException, match=r"different numbers of training batches: \[8, 5\]"):
        fit(Uneven(), local_sgd(sync_every=4))
    assert time.monotonic() - begin < 30


def test_streams_that_end_apart_are_an_error_and_no_hang() -> None:
    with pytest.raises(ProcessRaisedException, match=r"some ranks end an epoch before the others(.|\n)*out of data"):
        fit(UnevenStream(), local_sgd(sync_every=4))


def test_streams_that_end_apart_in_the_warm_up_are_an_error_and_no_hang() -> None:
    with pytest.raises(ProcessRaisedException, match=r"some ranks end an epoch before the others(.|\n)*warmup"):
        fit(UnevenStream(), local_sgd(sync_every=4, warmup_steps=100))


@pytest.mark.parametrize("module", [Uneven, UnevenStream])
@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"sync_every": 4}, (8, 5)),  # the second runs out in the round that the first ends with its last batch
        ({"sync_every": 3}, (6, 5)),
        ({"sync_every": 3, "sync_on_epoch_end": False}, (6, 5)),
        ({"sync_every": 2, "warmup_steps": 7}, (5, 5)),  # averages gradients in every step, so nobody is ahead
    ],
)
def test_uneven_epochs_end_together(module: Any, options: dict[str, Any], seen: tuple[int, int]) -> None:
    ranks = fit(module(), local_sgd(uneven_inputs="stop", **options), max_epochs=3, num_sanity_val_steps=2)
    assert same(ranks[0]["weights"], ranks[1]["weights"])
    for rank, batches in zip(ranks, seen, strict=True):
        assert rank["batches seen"][0] == batches
        assert len(rank["batches seen"]) == 3
        assert rank["validated"] == 3 + 1
        assert rank["learning_rates"] == ranks[0]["learning_rates"]
        assert rank["n_syncs"] == ranks[0]["n_syncs"]
    assert ranks[0]["learning_rates"] == [0.05 / 8]


def test_uneven_with_a_limit_of_steps() -> None:
    ranks = fit(Uneven(), local_sgd(uneven_inputs="stop", sync_every=3), max_epochs=-1, max_steps=16)
    assert same(ranks[0]["weights"], ranks[1]["weights"])


def test_uneven_needs_validation_at_the_epochs_end() -> None:
    with pytest.raises(ProcessRaisedException, match=r"uneven_inputs='stop' needs val_check_interval=1.0.*got 2"):
        fit(Uneven(), local_sgd(uneven_inputs="stop"), val_check_interval=2)


def test_different_settings_are_refused_before_the_first_step() -> None:
    class Differs(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.strategy.sync_every += trainer.global_rank

    with pytest.raises(ProcessRaisedException, match=r"sync_every must be the same on every rank, got \[3, 4\]"):
        fit(Classifier(), local_sgd(sync_every=3), callbacks=[Differs()])


def test_ranks_that_disagree_at_a_round_say_so() -> None:
    class Freezes(Classifier):
        def on_train_start(self) -> None:
            if self.trainer.global_rank == 1:
                del self.trainer.optimizers[0].param_groups[0]["params"][-1]

    rows = r"rank 0: round after 0 rounds and 3 steps, 163 numbers(.|\n)*rank 1: .* 160 "
    with pytest.raises(ProcessRaisedException, match=r"disagree(.|\n)*" + rows):
        fit(Freezes(), local_sgd(sync_every=3))


@pytest.mark.filterwarnings("ignore:this checkpoint was saved after an exception")
@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_raises_and_every_process_ends(rank: int, tmp_path: Path) -> None:
    """As users start it: the other process is a child that runs the same script."""
    script = tmp_path / "raises.py"
    script.write_text(
        textwrap.dedent(f"""
            import time
            from pathlib import Path
            from lightning.pytorch.callbacks import ModelCheckpoint
            from lit_papers.local_sgd import LocalSGDStrategy
            from tests.local_sgd.small import Classifier, trainer

            class Fails(Classifier):
                def training_step(self, batch, batch_index):
                    if self.trainer.global_rank == {rank} and self.trainer.global_step == 4:
                        Path("raised").write_text(str(time.time()))
                        raise ArithmeticError("the original trouble")
                    return super().training_step(batch, batch_index)

            saver = ModelCheckpoint("saved", save_on_exception=True, every_n_epochs=100)
            strategy = LocalSGDStrategy(sync_every=3, process_group_backend="gloo")
            trainer(strategy, callbacks=[saver], max_epochs=1000).fit(Fails())
        """)
    )
    with warm([str(script)], tmp_path, environment()) as process:
        process.communicate(timeout=240)
        wait_until_gone([process.pid], 15)  # the group, so the other process too
        assert time.time() - float((tmp_path / "raised").read_text()) < 15
        assert process.returncode != 0
        assert "ArithmeticError: the original trouble" in "".join(process.output())
    assert processes_of(script) == []
    if rank == 0:
        (path,) = (tmp_path / "saved").glob("*.ckpt")
        assert torch.load(path, weights_only=True)["local_sgd"]["consistent"] is False
        assert len(fit(Classifier(), local_sgd(sync_every=3), ckpt_path=path, max_epochs=1)) == 2


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def end_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def processes_of(script: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(script) in entry.read_text():
                found.append(entry.parent.name)
        except OSError:
            continue
    return found

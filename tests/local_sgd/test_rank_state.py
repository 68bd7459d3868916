"""What a checkpoint keeps of the ranks: how much, where, and what happens when a part is gone."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.multiprocessing import ProcessRaisedException

from lit_papers.local_sgd import rank_state
from tests.local_sgd.small import Classifier, fit, local_sgd, same, together
from tests.local_sgd.test_strategy_evaluation import Steady


class Wide(Steady):
    """Half a million parameters, and AdamW."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(1000, 500)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        ones = torch.ones(1, 1000) + self.trainer.global_rank
        return super().training_step(batch, batch_index) + self.wide(ones).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.001)


def sizes(path: Path) -> tuple[float, list[float]]:
    """Of a checkpoint and of the files beside it, in times of the parameters."""
    whole = 4 * sum(parameter.numel() for parameter in Wide().parameters())
    files = sorted(Path(f"{path}.ranks").glob("*"))
    return round(path.stat().st_size / whole, 1), [round(file.stat().st_size / whole, 1) for file in files]


@pytest.mark.parametrize(
    ("every", "options", "expected"),
    [
        (8, {"processes": 4}, (3.0, [2.0] * 3)),
        (8, {}, (3.0, [2.0])),  # weights and rank 0's moments; moments of the other rank
        (8, {"average_optimizer_state": True}, (3.0, [0.0])),  # its random stream and buffers
        (8, {"rank_state": "gather"}, (5.0, [])),
        (8, {"rank_state": "none"}, (3.0, [])),
        (7, {}, (4.0, [3.0])),  # in mid-round: each rank's own weights too
        (8, {"compress": "bf16"}, (4.5, [3.5])),  # what it still owes: 1 of its own, half of the share it sums
    ],
)
def test_nothing_is_stored_twice(every: int, options: dict[str, Any], expected: Any) -> None:
    save = ModelCheckpoint("saved", filename="{step}", every_n_train_steps=every, save_top_k=-1)
    strategy = local_sgd(sync_every=4, **{name: value for name, value in options.items() if name != "processes"})
    fit(Wide(), strategy, options.get("processes", 2), callbacks=[save], max_epochs=1)
    assert sizes(Path(f"saved/step={every}.ckpt")) == expected


def test_four_ranks_in_two_nodes_keep_each_state_once() -> None:
    save = ModelCheckpoint("saved", filename="{step}", every_n_train_steps=7, save_top_k=-1)
    options: dict[str, Any] = {"sync_every": 4, "within_node": "ddp", "node_size": 2}
    fit(Wide(), local_sgd(**options), processes=4, callbacks=[save], max_epochs=1)
    size, beside = sizes(Path("saved/step=7.ckpt"))
    assert size == 4.0
    assert sorted(beside) in ([0.0, 0.0, 3.0], [0.0, 3.0], [3.0]), "one rank of the second node"


@pytest.mark.parametrize("how", ["files", "gather"])
def test_either_way_goes_on_bit_for_bit(how: Any) -> None:
    save = ModelCheckpoint("saved", filename="{step}", every_n_train_steps=11, save_top_k=-1)
    whole = fit(Steady(optimizer="adam"), local_sgd(sync_every=3, rank_state=how), callbacks=[save])
    again = fit(Steady(optimizer="adam"), local_sgd(sync_every=3), ckpt_path=Path("saved/step=11.ckpt"), folder="b")
    for resumed, uninterrupted in zip(again, whole, strict=True):
        assert same(resumed["weights"], uninterrupted["weights"])


class Memory(nn.Module):
    """What a rank has seen, in no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Any] = {"sum": torch.zeros(()), "batches": 0}

    def get_extra_state(self) -> dict[str, Any]:
        return dict(self.seen)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.seen = dict(state)


class Remembers(Steady):
    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory()

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        seen = self.memory.seen
        self.memory.seen = {"sum": seen["sum"] + batch[0].sum(), "batches": seen["batches"] + 1}
        self.notes = {"seen": self.memory.seen}
        return super().training_step(batch, batch_index)


def test_what_modules_keep_in_extra_state_is_each_ranks_own() -> None:
    save = ModelCheckpoint("saved", filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    whole = fit(Remembers(), local_sgd(sync_every=3), callbacks=[save], max_epochs=2)
    again = fit(Remembers(), local_sgd(sync_every=3), ckpt_path=Path("saved/epoch=0.ckpt"), folder="b", max_epochs=2)
    assert whole[0]["seen"]["sum"] != whole[1]["seen"]["sum"]
    for resumed, uninterrupted in zip(again, whole, strict=True):
        assert resumed["seen"] == uninterrupted["seen"]


@pytest.mark.filterwarnings("ignore:this checkpoint was saved with")
def test_without_it_ranks_go_on_from_the_average_and_are_told() -> None:
    save = ModelCheckpoint("saved", filename="{step}", every_n_train_steps=11, save_top_k=-1)
    fit(Steady(optimizer="adam"), local_sgd(sync_every=3, rank_state="none"), callbacks=[save])
    assert not Path("saved/step=11.ckpt.ranks").exists()
    checkpoint = torch.load("saved/step=11.ckpt", weights_only=True)["local_sgd"]
    why = rank_state.why_not_exact(checkpoint, 2, "files")
    assert why is not None
    assert "saved with rank_state='none': training goes on from the averaged weights" in why
    ranks = fit(Steady(optimizer="adam"), local_sgd(sync_every=3), ckpt_path=Path("saved/step=11.ckpt"))
    assert same(ranks[0]["weights"], ranks[1]["weights"])
    assert ranks[0]["global_step"] == 16


@pytest.mark.filterwarnings("ignore:rank_state='none'")
def test_a_missing_side_file_is_one_clear_error_on_all_ranks() -> None:
    save = ModelCheckpoint("saved", filename="{step}", every_n_train_steps=11, save_top_k=-1)
    fit(Steady(), local_sgd(sync_every=3), callbacks=[save])
    path = Path("saved/step=11.ckpt")
    (beside,) = Path(f"{path}.ranks").glob("*")
    beside.unlink()
    with pytest.raises(ProcessRaisedException, match=rf"rank 1 needs .*{beside.name}(.|\n)*rank_state='none'"):
        fit(Steady(), local_sgd(sync_every=3), ckpt_path=path)
    ranks = fit(Steady(), local_sgd(sync_every=3, rank_state="none"), ckpt_path=path)
    assert same(ranks[0]["weights"], ranks[1]["weights"])


def test_side_files_go_with_their_checkpoint_and_links_find_them() -> None:
    save = ModelCheckpoint("saved", filename="{epoch}", save_top_k=1, save_last="link", save_on_train_epoch_end=True)
    fit(Classifier(), local_sgd(sync_every=3), callbacks=[save], max_epochs=2)
    assert sorted(os.listdir("saved")) == ["epoch=1.ckpt", "epoch=1.ckpt.ranks", "last.ckpt"]
    assert Path("saved/last.ckpt").is_symlink()
    longer = fit(Classifier(), local_sgd(sync_every=3), max_epochs=3, folder="b")
    again = fit(Classifier(), local_sgd(sync_every=3), ckpt_path=Path("saved/last.ckpt"), max_epochs=3, folder="c")
    assert same(again[1]["weights"], longer[1]["weights"])


def test_a_checkpoint_that_is_written_over_has_one_set_of_side_files() -> None:
    save = ModelCheckpoint("saved", filename="same", every_n_train_steps=5, save_top_k=1, enable_version_counter=False)
    fit(Classifier(), local_sgd(sync_every=3), callbacks=[save])
    assert len(list(Path("saved/same.ckpt.ranks").glob("*"))) == 1


def test_pieces_are_kept_by_the_first_rank_that_has_them() -> None:
    def share(rank: int) -> Any:
        moments = torch.full((3,), float(min(rank, 2)))
        pieces: rank_state.Pieces = {("optimizer", 0, "state", 0): {"exp_avg": moments}, ("random", "torch"): rank}
        pieces["parameter", "w"] = torch.ones(2)
        index, kept = rank_state.share_out(pieces, {"w": torch.ones(2)})
        return index, sorted(place[0] for place in kept)

    answers = together(share, 4)
    index = answers[0][0]
    assert all(each[0] == index for each in answers)
    assert [each["optimizer", 0, "state", 0] for each in index] == [-1, 1, 2, 2]
    assert [each["random", "torch"] for each in index] == [0, 1, 2, 3]
    assert [each["parameter", "w"] for each in index] == [-1] * 4
    assert [kept for _, kept in answers] == [["random"], ["optimizer", "random"], ["optimizer", "random"], ["random"]]


OTHERS: dict[str, Any] = {
    "sync_every": {"sync_every": 5},
    "outer_optimizer": {"sync_every": 3, "outer_optimizer": lambda weights: torch.optim.SGD(weights, lr=0.7)},
    "compress": {"sync_every": 3, "compress": "bf16"},
}


class Note(Steady):
    """Keeps what it was warned of."""

    def on_fit_start(self) -> None:
        import warnings

        seen: list[str] = []
        self.notes["warned"] = seen
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: seen.append(str(message))


@pytest.mark.parametrize("option", OTHERS)
def test_resume_under_other_options_is_told_at_the_end_of_a_round(option: str) -> None:
    save = ModelCheckpoint("saved", filename="{step}", every_n_train_steps=8, save_top_k=-1)
    fit(Steady(), local_sgd(sync_every=3), callbacks=[save])
    ranks = fit(Note(), local_sgd(**OTHERS[option]), ckpt_path=Path("saved/step=8.ckpt"), max_epochs=3)
    assert same(ranks[0]["weights"], ranks[1]["weights"])
    (message,) = [each for each in ranks[0]["warned"] if "other options" in each]
    assert f"{option} was" in message


@pytest.mark.parametrize("option", ["outer_optimizer", "compress"])
def test_resume_under_other_rounds_is_refused_in_the_middle_of_one(option: str) -> None:
    save = ModelCheckpoint("saved", filename="{step}", every_n_train_steps=7, save_top_k=-1)
    fit(Steady(), local_sgd(sync_every=3), callbacks=[save], max_epochs=1)
    with pytest.raises(ProcessRaisedException, match=rf"in the middle of a round(.|\n)*{option} was None"):
        fit(Steady(), local_sgd(**OTHERS[option]), ckpt_path=Path("saved/step=7.ckpt"))


def test_random_streams_go_on() -> None:
    import random

    import numpy as np

    def draw() -> list[float]:
        legacy = np.random.rand()  # noqa: NPY002
        return [random.random(), legacy, torch.rand(()).item(), random.gauss(0, 1)]

    states = torch.load(_kept(rank_state.random_states()), weights_only=True)
    drawn = draw()
    rank_state.set_random_states(states)
    assert draw() == drawn


def _kept(states: Any) -> Path:
    torch.save(states, "states.pt")
    return Path("states.pt")


def test_a_forked_rank_does_not_wait_for_threads_lost_in_the_fork(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (torch.ones(2000, 2000) * 2).sum()  # starts OpenMP's threads in this process

        class Large(Classifier):
            def training_step(self, batch: Any, batch_index: int) -> Tensor:
                (torch.ones(2000, 2000) * 2).sum()
                return super().training_step(batch, batch_index)

        (rank,) = fit(Large(), local_sgd(sync_every=3), processes=1)
    finally:
        torch.set_num_threads(before)
    assert rank["weights"]


def test_one_process_keeps_its_random_streams(tmp_path: Path) -> None:
    class Drops(Classifier):
        seeds = iter((1, 2))

        def setup(self, stage: str) -> None:
            torch.manual_seed(next(self.seeds))

        def training_step(self, batch: Any, batch_index: int) -> Tensor:
            return super().training_step([nn.functional.dropout(batch[0], 0.3), batch[1]], batch_index)

    save = ModelCheckpoint("saved", filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    (whole,) = fit(Drops(), local_sgd(sync_every=3), processes=1, callbacks=[save])
    (again,) = fit(Drops(), local_sgd(sync_every=3), processes=1, ckpt_path=Path("saved/epoch=0.ckpt"))
    assert same(whole["weights"], again["weights"])

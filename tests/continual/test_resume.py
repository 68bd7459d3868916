"""From wherever a stream was interrupted, it ends bit by bit where the uninterrupted one ends."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import Dataset, TensorDataset

from lit_papers.callbacks import Forgetting
from lit_papers.continual.methods import (
    AGEM,
    DER,
    ER,
    EWC,
    GSS,
    LUMP,
    PNN,
    SI,
    CaSSLe,
    DERpp,
    Finetune,
    ICaRL,
    LwF,
)
from tests.continual.small import pair, stream, supervised, trainer, unsupervised

pytestmark = pytest.mark.filterwarnings("ignore:a checkpoint of `every_n_train_steps`")


class Diary(Callback):
    """Which labels each step trained on, kept over resumes by nobody: each run writes its own."""

    def __init__(self) -> None:
        self.steps: dict[tuple[int, int], list[int]] = {}

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.steps[trainer.current_epoch, batch_idx] = batch[1].tolist()


LEARNERS = {
    "LUMP": lambda: unsupervised(LUMP(buffer_size=10)),
    "DER": lambda: unsupervised(DER(buffer_size=10), objective="barlow_twins"),
    "SI": lambda: unsupervised(SI(strength=0.5)),
    "PNN": lambda: unsupervised(PNN()),
    "AGEM": lambda: supervised(AGEM(buffer_size=9)),
    "GSS": lambda: supervised(GSS(buffer_size=9)),
    "supervised DER": lambda: supervised(DER(buffer_size=10)),
    "Finetune": lambda: supervised(Finetune()),
    "ER": lambda: supervised(ER(buffer_size=10)),
    "DERpp": lambda: supervised(DERpp(buffer_size=10)),
    "EWC": lambda: supervised(EWC(images=6)),
    "LwF": lambda: supervised(LwF()),
    "ICaRL": lambda: supervised(ICaRL(buffer_size=12)),
    "CaSSLe": lambda: unsupervised(CaSSLe(hidden_dim=8)),
    "lazy LUMP": lambda: unsupervised(LUMP(buffer_size=10)),
}


class Lazy(Dataset[Any]):
    """Samples that are made when they are asked for, with noise of their own."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        image, label = self.data[index]
        return {"image": image ^ torch.randint(4, image.shape, dtype=torch.uint8), "label": int(label)}


def data_of(name: str) -> Any:
    if not name.startswith("lazy"):
        return stream()
    train, test = pair()
    return stream(dataset=(Lazy(train), Lazy(test)))


def matrix_of(callback: Forgetting) -> torch.Tensor:
    return callback.matrix.nan_to_num(-1)


@pytest.mark.slow
def test_from_every_step_but_an_epochs_last(tmp_path: Path) -> None:
    """At all batches, in the middle and at the ends of epochs and tasks."""
    check_resumes("LUMP", tmp_path, range(26))


@pytest.mark.parametrize("name", LEARNERS)
def test_from_a_tasks_end_and_from_within_two_epochs(name: str, tmp_path: Path) -> None:
    check_resumes(name, tmp_path, (1, 8, 17))


def check_resumes(name: str, tmp_path: Path, places: Sequence[int]) -> None:
    whole, diary, matrix = LEARNERS[name](), Diary(), Forgetting()
    savers = [
        ModelCheckpoint(tmp_path / "steps", filename="{epoch}-{step}", save_top_k=-1, every_n_train_steps=1),
        ModelCheckpoint(tmp_path / "ends", filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True),
    ]
    trainer(tmp_path, [matrix, diary, *savers]).fit(whole, datamodule=data_of(name))
    lengths = [1 + max(batch for e, batch in diary.steps if e == epoch) for epoch in range(6)]
    assert lengths == [4, 4, 4, 4, 5, 5]
    ends = torch.tensor(lengths).cumsum(0).tolist()
    checkpoints = [*sorted((tmp_path / "ends").glob("*.ckpt")), *sorted((tmp_path / "steps").glob("*.ckpt"))]
    checkpoints = [
        path for path in checkpoints
        if path.parent.name == "ends" or int(path.stem.rpartition("=")[2]) not in ends
    ]  # fmt: skip
    assert len(checkpoints) == 26
    for path in (checkpoints[place] for place in places):
        again, resumed, resumed_matrix = LEARNERS[name](), Diary(), Forgetting()
        with torch.no_grad():
            for weight in again.parameters():
                weight.zero_()  # what is not restored shows
        trainer(tmp_path, [resumed_matrix, resumed]).fit(
            again, datamodule=data_of(name), ckpt_path=path, weights_only=True
        )
        for key, value in whole.state_dict().items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(again.state_dict()[key], value), (path.name, key)
        compare(again.method.state_dict(), whole.method.state_dict(), path.name)
        steps = torch.load(path, weights_only=True)["global_step"]
        assert resumed.steps == dict(list(diary.steps.items())[steps:]), path.name
        assert torch.equal(matrix_of(resumed_matrix), matrix_of(matrix)), path.name
    assert not matrix.matrix.isnan().any()


def compare(found: Any, expected: Any, where: str) -> None:
    """Nested states are equal, bit by bit."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            compare(found[key], value, f"{where}: {key}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where


@pytest.mark.filterwarnings("ignore:Forgetting. no validation")
def test_from_an_epochs_last_batch_of_tasks_of_one_length(tmp_path: Path) -> None:
    """Lightning skips the validation that was due: its row stays unknown, and no other is shifted."""
    whole, matrix, tasks = unsupervised(SI()), Forgetting(), 3
    saver = ModelCheckpoint(tmp_path / "steps", filename="{epoch}-{step}", save_top_k=-1, every_n_train_steps=1)
    options: dict[str, Any] = {"train_per_task": 18, "num_tasks": tasks}
    trainer(tmp_path, [matrix, saver]).fit(whole, datamodule=stream(**options))
    for step in (3, 6, 9, 12, 15, 18):
        (path,) = (tmp_path / "steps").glob(f"*-step={step}.ckpt")
        again, resumed = unsupervised(SI()), Forgetting()
        trainer(tmp_path, [resumed]).fit(again, datamodule=stream(**options), ckpt_path=path, weights_only=True)
        for key, value in whole.backbone.state_dict().items():
            assert torch.equal(again.backbone.state_dict()[key], value), (step, key)
        compare(again.method.state_dict(), whole.method.state_dict(), str(step))
        skipped = {6: 0, 12: 1, 18: 2}.get(step)
        for row in range(tasks):
            if row == skipped and len(resumed.matrix):
                continue
            if len(resumed.matrix):
                assert torch.equal(resumed.matrix[row], matrix.matrix[row]), (step, row)

"""Guests' rules, as checks for any callback: attached to a stranger's project, it leaves no trace.

A test module calls the checks with a factory of its callbacks; see ``tests/callbacks/test_guest_rules.py``.
The project is foreign on purpose: dict batches, several tensors returned, its own optimizer, dropout, batch norm, a
submodule frozen in evaluation mode, a buffer that counts forwards, and augmentation that asks ``trainer.training``.
"""

import json
import random
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

CLASSES, FEATURES, SAMPLES, BATCH = 4, 6, 48, 8
MakeCallbacks = Callable[[], list[Callback]]


class ForeignData(Dataset[dict[str, Any]]):
    """Samples are dicts, the class is in ``label``; ``dtype`` double makes sums exact enough to compare."""

    def __init__(self, dtype: torch.dtype = torch.float32, samples: int = SAMPLES) -> None:
        generator = torch.Generator().manual_seed(1)
        self.labels = torch.arange(samples) % CLASSES
        centers = torch.randn(CLASSES, 10, generator=generator)
        self.images = (centers[self.labels] + torch.randn(samples, 10, generator=generator)).to(dtype)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": self.labels[index], "path": f"{index}.png"}


class ForeignModule(LightningModule):
    """A classifier that has never heard of us.

    ``random=False`` takes out all that depends on chance or on how a batch is shared out: dropout, augmentation,
    shuffling, batch statistics.
    """

    def __init__(self, random: bool = True) -> None:
        super().__init__()
        self.random = random
        self.stem = nn.Linear(10, 10)
        self.frozen = nn.Sequential(nn.Linear(10, 10), nn.BatchNorm1d(10)).eval().requires_grad_(False)
        self.body = nn.Sequential(
            nn.BatchNorm1d(10), nn.ReLU(), nn.Dropout(0.2 if random else 0.0), nn.Linear(10, FEATURES)
        )
        self.aux = nn.Linear(FEATURES, CLASSES)
        self.head = nn.Linear(FEATURES, CLASSES)
        self.register_buffer("forwards", torch.zeros((), dtype=torch.int64))
        self.loss = nn.MSELoss()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.forwards += 1
        features = torch.tanh(self.body(self.frozen(self.stem(images))))
        logits = self.head(features)
        return logits, self.aux(features), features

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        if self.trainer.training and self.random:
            batch["image"] = batch["image"] + 0.1 * torch.randn_like(batch["image"])
        return batch

    def on_train_epoch_start(self) -> None:
        self.frozen.eval()
        if not self.random:
            self.body[0].eval()

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        logits, auxiliary, _ = self(batch["image"])
        targets = nn.functional.one_hot(batch["label"], CLASSES).to(logits.dtype)
        return self.loss(logits, targets) + 0.3 * self.loss(auxiliary, targets)

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        self.log("foreign/accuracy", (self(batch["image"])[0].argmax(1) == batch["label"]).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)]

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        data = ForeignData(self.head.weight.dtype)
        trainer = self.trainer
        # Lightning would shuffle for two processes; in order, two half batches are the batch of one process
        order = (
            None if self.random else DistributedSampler(data, trainer.world_size, trainer.global_rank, shuffle=False)
        )
        return DataLoader(data, BATCH // trainer.world_size, shuffle=self.random, sampler=order)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        return DataLoader(ForeignData(self.head.weight.dtype), batch_size=BATCH)


def foreign_trainer(folder: Path, callbacks: list[Callback], **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 3,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "default_root_dir": folder,
    }
    return Trainer(callbacks=callbacks, **{**defaults, **options})


def _state_after_training(folder: Path, callbacks: list[Callback], compiled: bool, **options: Any) -> dict[str, Any]:
    seed_everything(3)
    module = ForeignModule()
    trainer = foreign_trainer(folder, callbacks, **options)
    trainer.fit(torch.compile(module, backend="eager") if compiled else module)
    return {
        "weights and buffers": deepcopy(module.state_dict()),
        "gradients": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "optimizer": deepcopy(trainer.optimizers[0].state_dict()) if trainer.optimizers else {},
        "modes": [submodule.training for submodule in module.modules()],
        "hooks": count_hooks(module),
        "torch RNG": torch.get_rng_state(),
        "numpy RNG": np.random.get_state()[1],  # noqa: NPY002
        "python RNG": random.getstate(),
    }


def count_hooks(module: nn.Module) -> int:
    return sum(len(sub._forward_hooks) + len(sub._forward_pre_hooks) for sub in module.modules())


def check_leaves_no_trace(make: MakeCallbacks, folder: Path, *, compiled: bool = False, **options: Any) -> None:
    """Training with and without the callbacks is bit-identical: weights, buffers, optimizer, modes, hooks, RNG."""
    without = _state_after_training(folder, [], compiled, **options)
    torch.compiler.reset()
    with_guests = _state_after_training(folder, make(), compiled, **options)
    for what, value in without.items():
        torch.testing.assert_close(with_guests[what], value, rtol=0, atol=0, msg=f"{what} changed")


def check_two_processes(make: MakeCallbacks, folder: Path, tolerance: float = 1e-9, **options: Any) -> None:
    """Two gloo processes record what one process records, and both the same."""
    histories = []
    for processes in (1, 2):
        seed_everything(3)
        module = ForeignModule(random=False).double()
        strategy = DDPStrategy(process_group_backend="gloo", start_method="fork") if processes == 2 else "auto"
        callbacks = [*make(), WriteHistories(folder / f"of_{processes}")]
        trainer = foreign_trainer(
            folder, callbacks, devices=processes, strategy=strategy, precision="64-true", **options
        )
        trainer.fit(module)
        written = sorted((folder / f"of_{processes}").glob("*.json"))
        assert len(written) == processes
        histories += [json.loads(path.read_text()) for path in written]
    single, first, second = histories
    assert single
    assert all(history for history in single)
    assert first == second, "the two processes disagree"
    compare_histories(first, single, tolerance)


class WriteHistories(Callback):
    """Brings the histories out of processes that end with the fit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.folder.mkdir(exist_ok=True)
        histories = [callback.history for callback in trainer.callbacks if hasattr(callback, "history")]
        (self.folder / f"rank_{trainer.global_rank}.json").write_text(json.dumps(histories))


def compare_histories(ours: list[list[dict[str, Any]]], theirs: list[list[dict[str, Any]]], tolerance: float) -> None:
    for our_history, their_history in zip(ours, theirs, strict=True):
        assert [entry["epoch"] for entry in our_history] == [entry["epoch"] for entry in their_history]
        for our_entry, their_entry in zip(our_history, their_history, strict=True):
            assert our_entry.keys() == their_entry.keys()
            for key, value in our_entry.items():
                if key == "reason":
                    continue
                torch.testing.assert_close(
                    torch.tensor(value, dtype=torch.float64),
                    torch.tensor(their_entry[key], dtype=torch.float64),
                    rtol=tolerance,
                    atol=tolerance * 1e-3,
                    equal_nan=True,
                    msg=lambda text, key=key, entry=our_entry: f"{key} after epoch {entry['epoch']}: {text}",
                )


def check_resume(make: MakeCallbacks, folder: Path, checkpointing: dict[str, Any], *, mid_epoch: bool = False) -> None:
    """From each checkpoint of a run, the resumed history and weights are those of the uninterrupted run.

    From the middle of an epoch Lightning replays the wrong batches of an ordinary loader; there, what was measured
    before must be kept, and the same epochs be measured.
    """
    seed_everything(3)
    whole = make()
    module = ForeignModule(random=False)
    saver = ModelCheckpoint(folder / "saved", filename="{epoch}-{step}", save_top_k=-1, **checkpointing)
    options: dict[str, Any] = {"max_epochs": 4, "num_sanity_val_steps": 0}
    foreign_trainer(folder, [*whole, saver], **options).fit(module)
    checkpoints = sorted((folder / "saved").glob("*.ckpt"))
    assert len(checkpoints) >= 4
    for checkpoint in checkpoints:
        seed_everything(99)
        resumed, again = make(), ForeignModule(random=False)
        trainer = foreign_trainer(folder, resumed, **options)
        trainer.fit(again, ckpt_path=checkpoint, weights_only=True)
        steps_saved = torch.load(checkpoint, weights_only=True)["global_step"]
        if not mid_epoch:
            torch.testing.assert_close(again.state_dict(), module.state_dict(), rtol=0, atol=0, msg=checkpoint.name)
        for ours, theirs in zip(resumed, whole, strict=True):
            if mid_epoch:
                assert [entry["epoch"] for entry in ours.history] == [entry["epoch"] for entry in theirs.history]
                before = [entry for entry in theirs.history if entry["epoch"] * (SAMPLES // BATCH) <= steps_saved]
                compare_histories([ours.history[: len(before)]], [before], 0)
            else:
                compare_histories([ours.history], [theirs.history], 0)


class InterruptionError(Exception):
    """Raised in the middle of a measuring pass."""


def check_failure_is_recorded(make: MakeCallbacks, folder: Path) -> None:
    """The network raises while it is measured: NaN with the reason, hooks and modes as before, training goes on."""
    seed_everything(3)
    module = ForeignModule()
    calls = 0

    def fail_late(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 3 and torch.is_grad_enabled() is False:
            raise InterruptionError("in the middle")

    ours = module.stem.register_forward_hook(fail_late)
    callbacks = make()
    trainer = foreign_trainer(folder, callbacks, limit_val_batches=0)
    before = [submodule.training for submodule in module.modules()]
    trainer.fit(module)
    ours.remove()
    assert trainer.global_step == 3 * SAMPLES // BATCH
    assert any("in the middle" in entry.get("reason", "") for c in callbacks for entry in c.history)
    assert count_hooks(module) == 0
    assert [submodule.training for submodule in module.modules()] == before

"""What a rank holds beside its optimizers' parameters: equal ranks, validated = saved, resumed = uninterrupted."""

import copy
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import Tensor, nn

from tests.local_sgd.small import BATCH, Classifier, Validated, difference, fit, local_sgd, same
from tests.local_sgd.test_strategy_evaluation import Steady

PARAMETERS = 6 * 16 + 16 + 16 * 3 + 3


def saver(every: int | None = None) -> ModelCheckpoint:
    """At the end of each epoch, or after so many steps."""
    if every is None:
        return ModelCheckpoint("saved", filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    return ModelCheckpoint("saved", filename="{step}", save_top_k=-1, every_n_train_steps=every)


class MeanTeacher(Steady):
    """The teacher follows before each batch, in place."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.teacher = copy.deepcopy(self.network).requires_grad_(False)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        self.follow()
        distance = nn.functional.mse_loss(self.network(batch[0]), self.teacher(batch[0]))
        return super().training_step(batch, batch_index) + distance

    @torch.no_grad()
    def follow(self) -> None:
        for own, student in zip(self.teacher.parameters(), self.network.parameters(), strict=True):
            own.lerp_(student, 0.1)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.network.parameters(), lr=0.05, momentum=0.9)


class BYOL(Steady):
    """lightly's heads and its `update_momentum`, which gives the teacher new storage."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(self.network, BYOLProjectionHead(3, 8, 4))
        self.head = BYOLPredictionHead(4, 8, 4)
        self.teacher = copy.deepcopy(self.student)
        deactivate_requires_grad(self.teacher)
        self.criterion = NegativeCosineSimilarity()

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        update_momentum(self.student, self.teacher, m=0.9)
        views = batch[0] + 0.1 * torch.randn_like(batch[0]), batch[0]
        return self.criterion(self.head(self.student(views[0])), self.teacher(views[1]).detach())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam((p for p in self.parameters() if p.requires_grad), 0.01)


class MoCo(Steady):
    """Its queue holds keys of unit length, of each rank's own data."""

    def __init__(self) -> None:
        super().__init__(norm=True)
        self.register_buffer("queue", nn.functional.normalize(torch.randn(64, 3)))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        keys = nn.functional.normalize(self.network(batch[0] + 0.1).detach())
        query = nn.functional.normalize(self.network(batch[0]))
        logits = torch.cat([(query * keys).sum(1, keepdim=True), query @ self.queue.T.clone()], 1)
        start = int(self.position)
        self.queue[start : start + BATCH] = keys
        self.position.fill_((start + BATCH) % len(self.queue))
        return nn.functional.cross_entropy(logits / 0.2, torch.zeros(BATCH, dtype=torch.long))


class Dropout(Steady):
    """Draws from every random stream; a new process has other ones."""

    attempt = 0

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 3))

    def setup(self, stage: str) -> None:
        type(self).attempt += 1
        seed = 1000 * self.attempt + self.trainer.global_rank
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # the stream that transforms draw from

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        noise = 0.1 * (random.random() + np.random.rand())  # noqa: NPY002
        return super().training_step([batch[0] + noise, batch[1]], batch_index)


PROJECTS: dict[str, Any] = {"mean teacher": MeanTeacher, "byol": BYOL, "moco": MoCo, "dropout": Dropout}


@pytest.mark.filterwarnings("ignore:the buffers queue change")
@pytest.mark.parametrize("every", [None, 11])
@pytest.mark.parametrize("project", PROJECTS)
def test_ranks_end_equal_and_a_resumed_run_is_bitwise_uninterrupted(project: str, every: int | None) -> None:
    """At the end of an epoch, and in the middle of a round in the middle of an epoch."""
    make = PROJECTS[project]
    whole = fit(make(), local_sgd(sync_every=3), callbacks=[saver(every)])
    first, second = (dict(rank["weights"]) for rank in whole)
    if project == "moco":
        assert not torch.equal(first.pop("queue"), second.pop("queue")), "each has its own keys"
    assert same(first, second)
    path = Path("saved/epoch=0.ckpt" if every is None else "saved/step=11.ckpt")
    again = fit(make(), local_sgd(sync_every=3), ckpt_path=path, folder="again")
    for resumed, uninterrupted in zip(again, whole, strict=True):
        assert same(resumed["weights"], uninterrupted["weights"])
        torch.testing.assert_close(resumed["optimizers"], uninterrupted["optimizers"], rtol=0, atol=0)


def test_a_frozen_backbone_is_not_sent() -> None:
    class Frozen(MeanTeacher):
        def follow(self) -> None:
            pass

    for module, times in ((Frozen(), 1), (MeanTeacher(), 2)):
        for rank in fit(module, local_sgd(sync_every=4)):
            assert rank["bytes_communicated"] == 4 * rank["n_syncs"] * times * PARAMETERS


def test_a_queue_keeps_unit_keys_and_is_named_once() -> None:
    class Warned(Callback):
        def on_train_end(self, trainer: Any, pl_module: LightningModule) -> None:
            pl_module.notes["named"] = len(seen)

    seen: list[str] = []

    class Listens(MoCo):
        def on_train_start(self) -> None:
            import warnings

            warnings.showwarning = lambda message, *_: seen.append(str(message)) if "queue" in str(message) else None
            warnings.simplefilter("always")

    first, second = fit(Listens(), local_sgd(sync_every=3), callbacks=[Warned()])
    for rank in (first, second):
        torch.testing.assert_close(rank["weights"]["queue"].norm(dim=1), torch.ones(64), rtol=0, atol=1e-5)
    assert torch.equal(first["weights"]["network.1.running_mean"], second["weights"]["network.1.running_mean"])
    assert (first["named"], second["named"]) == (1, 0)


def test_a_predicate_says_which_more_buffers_are_averaged() -> None:
    def queues_too(name: str, buffer: Tensor) -> bool:
        return "queue" in name

    first, second = fit(MoCo(), local_sgd(sync_every=3, average_buffers=queues_too))
    assert same(first["weights"], second["weights"])
    neither = fit(MoCo(), local_sgd(sync_every=3, average_buffers=False))
    assert not torch.equal(*[rank["weights"]["network.1.running_mean"] for rank in neither])


class Watched(Validated):
    """Notes the weights of its last validation."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.notes: dict[str, Any] = {}

    def on_validation_epoch_end(self) -> None:
        self.notes["validated"] = {key: value.clone() for key, value in self.state_dict().items()}


class KeepAverage(Callback):
    """Notes the weights during the validation, after a weight averaging callback put its own in place."""

    def on_validation_batch_start(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
        pl_module.notes["seen"] = {key: value.clone() for key, value in pl_module.state_dict().items()}


AVERAGING: dict[str, Any] = {
    "ema": partial(EMAWeightAveraging, decay=0.9),
    "uniform": WeightAveraging,
    "swa": partial(StochasticWeightAveraging, swa_lrs=0.01, swa_epoch_start=1),
}


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("callback", AVERAGING)
def test_callbacks_that_average_weights_validate_save_and_end_equal(callback: str, norm: bool) -> None:
    """Validated in mid-round, too."""
    save = ModelCheckpoint("saved", filename="{step}", save_top_k=-1)
    options: dict[str, Any] = {"val_check_interval": 4, "max_epochs": 3}
    guests = [AVERAGING[callback](), save, KeepAverage()]
    ranks = fit(Watched(norm=norm), local_sgd(sync_every=3), callbacks=guests, **options)
    first, second = ranks
    assert same(first["weights"], second["weights"])
    assert same(first["seen"], second["seen"])
    if callback != "swa":
        path = max(Path("saved").glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
        assert same(torch.load(path, weights_only=True)["state_dict"], first["seen"])


@pytest.mark.parametrize("every", [8, 11])
def test_resumed_with_a_moving_average_is_bitwise_uninterrupted(every: int) -> None:
    callbacks = [EMAWeightAveraging(decay=0.9), saver(every)]
    whole = fit(Steady(), local_sgd(sync_every=3), callbacks=callbacks)
    path = Path(f"saved/step={every}.ckpt")
    again = fit(
        Steady(), local_sgd(sync_every=3), callbacks=[EMAWeightAveraging(decay=0.9)], ckpt_path=path, folder="again"
    )
    for resumed, uninterrupted in zip(again, whole, strict=True):
        assert same(resumed["weights"], uninterrupted["weights"])


def test_a_moving_average_saved_in_mid_round_is_the_mean_of_the_ranks() -> None:
    class KeepOwn(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
            if trainer.global_step == 11:
                average = next(c for c in trainer.callbacks if isinstance(c, EMAWeightAveraging))._average_model
                pl_module.notes["own"] = {k: v.clone() for k, v in average.module.state_dict().items()}

    ranks = fit(Steady(), local_sgd(sync_every=3), callbacks=[EMAWeightAveraging(decay=0.9), saver(11), KeepOwn()])
    saved = torch.load("saved/step=11.ckpt", weights_only=True)["state_dict"]
    mean = {key: (value + ranks[1]["own"][key]) / 2 for key, value in ranks[0]["own"].items()}
    assert not same(ranks[0]["own"], ranks[1]["own"])
    assert difference(saved, mean) <= 1e-7


def test_swa_without_an_average_at_the_epochs_end_ends_equal() -> None:
    first, second = fit(
        Classifier(norm=True), local_sgd(sync_every=3, sync_on_epoch_end=False), callbacks=[AVERAGING["swa"]()],
        max_epochs=3,
    )  # fmt: skip
    assert same(first["weights"], second["weights"])

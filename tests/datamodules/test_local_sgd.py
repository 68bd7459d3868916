"""The paper's components as data, and any data module with the paper's samplers."""

import pickle
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset

from lit_papers.datamodules import Components, Digits, Sharded
from lit_papers.local_sgd.module import ShufflingQuadratic
from lit_papers.local_sgd.samplers import (
    RandomReshufflingSampler,
    SynchronizedShufflingSampler,
    WithReplacementSampler,
)
from lit_papers.local_sgd.theory import SkewedQuadratic

SAMPLERS = {
    "reshuffle": RandomReshufflingSampler,
    "synchronized": SynchronizedShufflingSampler,
    "with_replacement": WithReplacementSampler,
}


class Recorder(LightningModule):
    """Keeps every batch and learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches: list[list[float]] = []
        self.validated = 0

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        self.batches.append((batch[0] if isinstance(batch, list) else batch).flatten().tolist())
        return self.weight.sum()

    def validation_step(self, batch: Any, _: int) -> None:
        self.validated += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Numbers(LightningDataModule):
    """The numbers 0 to 9 in batches of 2, with a method and hooks of its own."""

    num_classes = 7

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = {"batch_size": 2, **options}
        self.called: list[str] = []
        self.dataset: Any = TensorDataset(torch.arange(10.0)[:, None])

    def prepare_data(self) -> None:
        self.called.append("prepare_data")

    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        self.called.append("setup")

    def teardown(self, stage: str) -> None:
        self.called.append("teardown")

    def state_dict(self) -> dict[str, int]:
        return {"position": 3}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.called.append(f"load {state['position']}")

    def on_after_batch_transfer(self, batch: Any, index: int) -> Any:
        return [batch[0] + 100]

    def train_dataloader(self) -> Any:
        return DataLoader(self.dataset, **self.options)


class Validated(Numbers):
    def val_dataloader(self) -> Any:
        return DataLoader(self.dataset, batch_size=5)


def trainer(**options: Any) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", enable_model_summary=False, **{**quiet, **options})


@pytest.mark.parametrize("sampling", SAMPLERS)
def test_components_come_in_the_order_of_the_sampler(sampling: Any) -> None:
    module = Recorder()
    module.function = SkewedQuadratic()
    trainer(max_epochs=2).fit(module, datamodule=Components(8, batch_size=2, sampling=sampling, seed=5))
    z = SkewedQuadratic().components(8, 1)[0]
    sampler = SAMPLERS[sampling](range(8), 1, 0, seed=5, partition=False)
    expected = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        expected += z[list(sampler)].view(4, 2).tolist()
    assert module.batches == expected


def test_components_need_a_trainer_and_a_function() -> None:
    with pytest.raises(RuntimeError, match="hand it to a Trainer"):
        Components().train_dataloader()
    with pytest.raises(TypeError, match=r"takes its data from the model's `function`.*; BoringModel has none"):
        trainer(max_epochs=1).fit(BoringModel(), datamodule=Components())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"components": 1}, ValueError, "`components` must be at least 2, got 1"),
        ({"components": 8.0}, TypeError, "`components` must be an integer, got 8.0"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1, got 0"),
        ({"batch_size": 5}, ValueError, "batch_size=5 does not divide components=32"),
        ({"sampling": "shuffle"}, ValueError, "`sampling` must be one of reshuffle, .*, got 'shuffle'"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0, got -1"),
    ],
)
def test_components_refuse_bad_arguments(arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        Components(**arguments)


class Machine:
    """Stands for one of several processes: what a data module asks its trainer."""

    def __init__(self, rank: int, machines: int, model: Any = None) -> None:
        self.global_rank, self.world_size, self.lightning_module = rank, machines, model


def test_every_machine_has_its_own_shard_for_good() -> None:
    seen = []
    for rank in (0, 1):
        data = Sharded(Numbers(), seed=2)
        data.trainer = Machine(rank, 2)  # type: ignore[assignment]
        loader = data.train_dataloader()
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            seen.append(torch.cat([batch[0].flatten() for batch in loader]).tolist())
    assert [sorted(order) for order in seen] == [[0, 1, 2, 3, 4]] * 2 + [[5, 6, 7, 8, 9]] * 2
    assert seen[0] != seen[1]


def test_what_does_not_divide_is_refused() -> None:
    data = Sharded(Numbers(), "synchronized")
    data.trainer = Machine(0, 2)  # type: ignore[assignment]  # 5 samples each
    with pytest.raises(ValueError, match=r"num_replicas=2 .* 5 "):
        data.train_dataloader()
    components = Components(8, sampling="synchronized")
    components.trainer = Machine(0, 3, ShufflingQuadratic(SkewedQuadratic(), 0.1))  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"num_replicas=3 .* 8 "):
        components.train_dataloader()
    data.trainer = Machine(0, 11)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"10 samples.*11"):
        data.train_dataloader()


@pytest.mark.parametrize("sampling", SAMPLERS)
def test_the_trainer_leaves_the_sampler_in_place(sampling: Any) -> None:
    module, data, fit = Recorder(), Sharded(Numbers(), sampling, seed=4), trainer(max_epochs=2)
    fit.fit(module, datamodule=data)
    sampler = SAMPLERS[sampling](range(10), 1, 0, seed=4)
    expected: list[int] = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        expected += list(sampler)
    assert isinstance(fit.train_dataloader.sampler, SAMPLERS[sampling])
    assert torch.tensor(module.batches).flatten().tolist() == [100 + i for i in expected], "and the hook is kept"


def test_hooks_and_attributes_are_those_of_the_wrapped_module() -> None:
    inner = Numbers()
    data, fit = Sharded(inner), trainer(max_epochs=1)
    fit.fit(Recorder(), datamodule=data)
    assert inner.called == ["prepare_data", "setup", "teardown"]
    assert data.num_classes == 7
    assert data.trainer is inner.trainer is fit
    fit.save_checkpoint("numbers.ckpt")
    trainer(max_epochs=2).fit(Recorder(), datamodule=data, ckpt_path="numbers.ckpt", weights_only=True)
    assert "load 3" in inner.called
    with pytest.raises(AttributeError, match=r"Numbers.*no_such"):
        _ = data.no_such


@pytest.mark.parametrize(("wrapped", "batches"), [(Numbers, 0), (Validated, 2)])
def test_validation_exists_where_the_wrapped_module_has_it(wrapped: Any, batches: int) -> None:
    module = Recorder()
    trainer(max_epochs=1, num_sanity_val_steps=0).fit(module, datamodule=Sharded(wrapped()))
    assert module.validated == batches


def test_the_loader_keeps_its_options() -> None:
    def collate(samples: list[Any]) -> Any:
        return [torch.stack([sample[0] for sample in samples])]

    inner = Numbers(
        batch_size=3, drop_last=True, shuffle=True, collate_fn=collate, num_workers=1, persistent_workers=True,
        prefetch_factor=3, timeout=7,
    )  # fmt: skip
    data = Sharded(inner)
    module = Recorder()
    fit = trainer(max_epochs=1)
    fit.fit(module, datamodule=data)
    loader = fit.train_dataloader
    assert (loader.batch_size, loader.drop_last, loader.num_workers, loader.prefetch_factor) == (3, True, 1, 3)
    assert loader.collate_fn is collate
    assert loader.persistent_workers
    assert loader.timeout == 7
    assert len(module.batches) == 3


class Labelled(DataLoader):
    """A loader with an argument of its own."""

    def __init__(self, label: str, dataset: Any, **options: Any) -> None:
        self.label = label
        super().__init__(dataset, **options)


def test_a_loader_of_another_class_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Numbers, "train_dataloader", lambda self: Labelled("a", self.dataset, batch_size=2))
    fit = trainer(max_epochs=1)
    fit.fit(Recorder(), datamodule=Sharded(Numbers()))
    assert isinstance(fit.train_dataloader, Labelled)
    assert fit.train_dataloader.label == "a"
    assert isinstance(fit.train_dataloader.sampler, RandomReshufflingSampler)


def test_a_batch_sampler_gets_the_new_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    def loader(self: Numbers) -> Any:
        return DataLoader(self.dataset, batch_sampler=BatchSampler(RandomSampler(self.dataset), 5, drop_last=False))

    monkeypatch.setattr(Numbers, "train_dataloader", loader)
    module = Recorder()
    trainer(max_epochs=1).fit(module, datamodule=Sharded(Numbers()))
    sampler = RandomReshufflingSampler(range(10), 1, 0)
    assert torch.tensor(module.batches).flatten().tolist() == [100 + i for i in sampler]


def test_a_distributed_sampler_of_other_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a split, as over the first rows."""
    sampler = torch.utils.data.DistributedSampler(range(6), 1, 0)
    monkeypatch.setattr(Numbers, "train_dataloader", lambda self: DataLoader(self.dataset, 5, sampler=sampler))
    with pytest.raises(TypeError, match=r"DistributedSampler of Numbers.* is over 6 rows and not over the 10"):
        trainer(max_epochs=1).fit(Recorder(), datamodule=Sharded(Numbers()))


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(range(4))


@pytest.mark.parametrize(
    ("loaders", "message"),
    [
        (lambda self: DataLoader(Stream()), r"one DataLoader of a map-style dataset from Numbers.*a loader of Stream"),
        (lambda self: {"a": DataLoader(self.dataset)}, r"one DataLoader .* got \{'a'"),
    ],
)
def test_what_cannot_be_sharded_is_refused(loaders: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Numbers, "train_dataloader", loaders)
    with pytest.raises(TypeError, match=message):
        trainer(max_epochs=1).fit(Recorder(), datamodule=Sharded(Numbers()))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3,), TypeError, "`datamodule` must be a LightningDataModule, got int"),
        ((Digits(), "rr"), ValueError, "`sampling` must be one of .* got 'rr'"),
        ((Digits(), "reshuffle", 1.5), TypeError, "`seed` must be an integer, got 1.5"),
    ],
)
def test_sharded_refuses_bad_arguments(arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        Sharded(*arguments)


def test_sharded_goes_to_other_processes() -> None:
    """Strategies that spawn pickle the data module."""
    data = pickle.loads(pickle.dumps(Sharded(Digits(batch_size=50))))  # noqa: S301
    data.setup("fit")
    assert data.train_dataloader().batch_size == 50
    assert data.train_set is data.datamodule.train_set

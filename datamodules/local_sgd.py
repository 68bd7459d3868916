"""Data drawn as local SGD with shuffling draws it: the paper's components, and any data module sharded."""

from typing import Any, get_args

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from lit_papers.datamodules.images import check_integer
from lit_papers.local_sgd.internals import with_sampler
from lit_papers.local_sgd.samplers import (
    RandomReshufflingSampler,
    SynchronizedShufflingSampler,
    WithReplacementSampler,
)
from lit_papers.local_sgd.simulator import Sampling

_SAMPLERS: dict[str, Any] = {
    "reshuffle": RandomReshufflingSampler,
    "synchronized": SynchronizedShufflingSampler,
    "with_replacement": WithReplacementSampler,
}

# Samplers that draw every row once; others, and their children, may be somebody's split.
_PLAIN = (SequentialSampler, RandomSampler, DistributedSampler, *_SAMPLERS.values())

# Hooks that Lightning calls on a data module, but for `train_dataloader`. It asks first whether they are overridden.
_HOOKS = (
    "prepare_data", "setup", "teardown", "on_exception", "state_dict", "load_state_dict",
    "val_dataloader", "test_dataloader", "predict_dataloader",
    "transfer_batch_to_device", "on_before_batch_transfer", "on_after_batch_transfer",
)  # fmt: skip


class _Data(Dataset[Tensor]):
    """One machine's data ``z``, shape ``(N,)``."""

    def __init__(self, z: Tensor) -> None:
        self.z = z

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, index: int) -> Tensor:
        return self.z[index]


class Components(LightningDataModule):
    """The components of a lower-bound function, this process being one of the paper's machines.

    Every process reads its own row of ``model.function.components(components, world_size)``, in the order of the
    sampler. Batches are float64, shape ``(batch_size,)``.

    Args:
        components: ``N``, components of each process, at least 2.
        batch_size: 1 for local SGD, the sync interval ``B`` for minibatch SGD; a divisor of ``components``.
        sampling: ``"reshuffle"``, ``"synchronized"`` or ``"with_replacement"``.
        seed: of the order, at least 0.

    Raises:
        TypeError: an argument is of the wrong type, or (before training) the model has no lower-bound function.
        ValueError: an argument is out of range, or (before training) the number of processes does not suit the
            function or ``"synchronized"``.

    >>> from lightning.pytorch import Trainer
    >>> from lit_papers.local_sgd.module import ShufflingQuadratic
    >>> from lit_papers.local_sgd.theory import SkewedQuadratic
    >>> trainer = Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
    ...                   enable_progress_bar=False, enable_model_summary=False)
    >>> trainer.fit(ShufflingQuadratic(SkewedQuadratic(), lr=0.01), Components(components=8))
    >>> trainer.global_step
    16
    """

    def __init__(
        self, components: int = 32, batch_size: int = 1, sampling: Sampling = "reshuffle", seed: int = 0
    ) -> None:
        super().__init__()
        check_integer("components", components, least=2)
        check_integer("batch_size", batch_size, least=1)
        if components % batch_size:
            raise ValueError(f"batch_size={batch_size} does not divide components={components}")
        _check_sampling(sampling, seed)
        self.components = components
        self.batch_size = batch_size
        self.sampling = sampling
        self.seed = seed

    def train_dataloader(self) -> DataLoader[Tensor]:
        """This process' data, in the order of the sampler."""
        trainer = self.trainer
        if trainer is None:
            raise RuntimeError("Components has no data of its own: hand it to a Trainer, with the model")
        function: Any = getattr(trainer.lightning_module, "function", None)
        if not hasattr(function, "components"):
            raise TypeError(
                f"Components takes its data from the model's `function`, a LowerBoundFunction; "
                f"{type(trainer.lightning_module).__name__} has none"
            )
        z = function.components(self.components, trainer.world_size)[trainer.global_rank]  # (N,)
        dataset = _Data(z)
        sampler = _SAMPLERS[self.sampling](
            dataset, num_replicas=trainer.world_size, rank=trainer.global_rank, seed=self.seed, partition=False
        )
        return DataLoader(dataset, batch_size=self.batch_size, sampler=sampler)


class Sharded(LightningDataModule):
    """Any data module, its training data split among the processes for good and drawn as in the paper.

    Lightning's own sampler deals all data out anew in each epoch. Here process ``r`` keeps the samples
    ``[rN, (r+1)N)`` of the training set, as a machine in the paper does, and shuffles within them. The split is by
    position: a training set sorted by class gives every process other classes, which is the heterogeneity that the
    paper charges for. Batch size, workers, ``collate_fn``, ``drop_last`` and the like stay those of the wrapped
    loader, and everything that is not about training is the wrapped module's, also its other attributes, read or
    written (`BatchSizeFinder` writes ``batch_size``). A sampler that leaves rows out or weighs them is a choice that
    sharding would undo, and is refused.

    Args:
        datamodule: what to shard; its ``train_dataloader`` must return one loader of a map-style dataset that draws
            all rows, each once: without a sampler of its own.
        sampling: ``"reshuffle"``, ``"synchronized"`` or ``"with_replacement"``.
        seed: of the order, at least 0.

    Raises:
        TypeError: an argument is of the wrong type, or (before training) the loader cannot be sharded; its sampler is
            named.
        ValueError: an argument is out of range, or (before training) the samples are fewer than the processes, or
            their number on each process is no multiple of the processes (``"synchronized"``).

    >>> from lit_papers.datamodules import Digits
    >>> data = Sharded(Digits(batch_size=50))
    >>> data.setup("fit")
    >>> data.train_dataloader().batch_size, data.num_classes, type(data.train_dataloader().sampler).__name__
    (50, 10, 'RandomReshufflingSampler')
    """

    def __init__(self, datamodule: LightningDataModule, sampling: Sampling = "reshuffle", seed: int = 0) -> None:
        if not isinstance(datamodule, LightningDataModule):
            raise TypeError(f"`datamodule` must be a LightningDataModule, got {type(datamodule).__name__}")
        _check_sampling(sampling, seed)
        super().__init__()
        self.sampling = sampling
        self.seed = seed
        for name in ("prepare_data_per_node", "allow_zero_length_dataloader_with_multiple_devices"):
            self.__dict__.pop(name, None)  # the wrapped module's count
        self.__dict__["datamodule"] = datamodule  # from here on what is not ours is written to it
        # as attributes, so that a hook counts as overridden exactly where the wrapped module overrides it
        for hook in _HOOKS:
            self.__dict__[hook] = getattr(datamodule, hook)

    @property
    def hparams(self) -> Any:
        """The wrapped module's."""
        return self.datamodule.hparams

    @property
    def trainer(self) -> Trainer | None:
        """The wrapped module's trainer, which Lightning sets on us before the first hook."""
        trainer: Trainer | None = self.datamodule.trainer
        return trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        if "datamodule" in self.__dict__:  # not while we are made
            self.datamodule.trainer = trainer

    def __getattr__(self, name: str) -> Any:
        if name == "datamodule":  # asked for by pickle, before there is one
            raise AttributeError(name)
        return getattr(self.datamodule, name)

    def __setattr__(self, name: str, value: Any) -> None:
        ours = name in self.__dict__ or "datamodule" not in self.__dict__ or hasattr(type(self), name)
        if ours:
            super().__setattr__(name, value)
        else:
            setattr(self.datamodule, name, value)

    def train_dataloader(self) -> DataLoader[Any]:
        """The wrapped module's loader with the sampler replaced."""
        loader = self.datamodule.train_dataloader()
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            kind = f"a loader of {type(loader.dataset).__name__}" if isinstance(loader, DataLoader) else repr(loader)
            raise TypeError(
                f"Sharded needs one DataLoader of a map-style dataset from {type(self.datamodule).__name__}."
                f"train_dataloader(), got {kind}"
            )
        _check_draws_all_rows(loader, type(self.datamodule).__name__)
        trainer = self.trainer
        sampler = _SAMPLERS[self.sampling](
            loader.dataset,
            num_replicas=1 if trainer is None else trainer.world_size,
            rank=0 if trainer is None else trainer.global_rank,
            seed=self.seed,
        )
        return with_sampler(loader, sampler, RunningStage.TRAINING)


def _check_draws_all_rows(loader: DataLoader[Any], owner: str) -> None:
    """Refuse a sampler that does not draw every row once an epoch: what it leaves out may be the validation set."""
    sampler: Any = loader.sampler
    for name, kinds in (("batch_sampler", (BatchSampler, type(None))), ("sampler", _PLAIN)):
        found = type(getattr(loader, name))
        if found not in kinds:
            raise TypeError(
                f"Sharded replaces the {name} {found.__name__} of {owner}.train_dataloader(), which may leave rows out "
                "or weigh them. Return a loader without it: a split as torch.utils.data.Subset(dataset, rows)"
            )
    if isinstance(sampler, (RandomSampler, SequentialSampler)):
        drawn = sampler.num_samples if isinstance(sampler, RandomSampler) else len(sampler)
        once = not getattr(sampler, "replacement", False)
        rows = len(loader.dataset)  # type: ignore[arg-type]  # map-style
        if not once or drawn != rows or len(sampler.data_source) != rows:
            how = "with replacement" if not once else "an epoch"
            raise TypeError(
                f"Sharded replaces the sampler {type(sampler).__name__} of {owner}.train_dataloader(), which draws "
                f"{drawn} of {rows} rows {how}: return a loader that draws each row once, such as DataLoader(..., "
                "shuffle=True)"
            )
    elif len(sampler.dataset) != len(loader.dataset):  # type: ignore[arg-type]  # map-style
        raise TypeError(
            f"Sharded replaces the sampler {type(sampler).__name__} of {owner}.train_dataloader(), which is over "
            f"{len(sampler.dataset)} rows and not over the {len(loader.dataset)} of the data set: give it the data set"  # type: ignore[arg-type]
        )


def _check_sampling(sampling: str, seed: int) -> None:
    if sampling not in get_args(Sampling):
        raise ValueError(f"`sampling` must be one of {', '.join(get_args(Sampling))}, got {sampling!r}")
    check_integer("seed", seed, least=0)

"""Reading a stranger's data as they are trained on, without drawing from anything that training draws from."""

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.distributed import _DatasetSamplerWrapper
from lightning.pytorch import Trainer
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from lit_papers.lens.processes import Processes
from lit_papers.lens.refusal import NotApplicable

_SEED = 0


class Reading:
    """One pass over a loader's data, shared out over the processes.

    A ``DataLoader`` is made anew with its dataset, ``collate_fn`` and workers; its order is read from its sampler, so
    that a subset stays a subset: in order where it only shuffles, else under a fixed seed. Iterable data, loaders of
    other kinds and what a sampler of one's own shares out are read on every process as they come.

    Every process gets as many batches, since a network may communicate: what fills up is marked as not counted.

    Args:
        loader: a ``DataLoader`` or any iterable of batches; it is not iterated itself if it is a ``DataLoader``.
        processes: that read together.
        max_batches: over all processes; None reads all.
    """

    def __init__(self, loader: Any, processes: Processes, max_batches: int | None = None) -> None:
        self.loader = loader
        self.max_batches = max_batches
        self._processes = processes

    def __iter__(self) -> Iterator[tuple[Any, bool]]:
        """Batches, and whether each counts."""
        if is_indexed(self.loader):
            return self._indexed()
        return self._streamed()

    def _indexed(self) -> Iterator[tuple[Any, bool]]:
        loader: DataLoader[Any] = self.loader
        share = _Share(_plan(loader, self.max_batches), self._processes)
        automatic = loader.batch_sampler is not None
        fresh = _fresh(loader, batch_sampler=share) if automatic else _fresh(loader, batch_size=None, sampler=share)
        ahead: list[Any] = []
        for batch in fresh:
            if ahead:
                yield ahead.pop(), True
            ahead.append(batch)
        if ahead:
            yield ahead.pop(), not share.filled_up

    def _streamed(self) -> Iterator[tuple[Any, bool]]:
        loader = self.loader
        if _runs_out(loader.dataset if isinstance(loader, DataLoader) else loader):
            raise NotApplicable(
                "the data are a generator or an iterator, which gives its batches once: what is read to measure would "
                "be lost to training; pass `dataloader`, one that can be read again"
            )
        if isinstance(loader, DataLoader):
            if type(loader).__iter__ is DataLoader.__iter__:
                loader = _fresh(loader, **_own_order(loader))
            else:
                loader = _apart(loader)
        own: Iterator[Any] = itertools.islice(iter(loader), _each(self.max_batches, self._processes.size))
        last: Any = None
        failure: Exception | None = None
        while True:
            try:
                batch = next(own, None)
            except Exception as error:  # the others must not wait for this process
                failure, batch, own = error, None, iter(())
            if not self._processes.any_and_all([batch is not None])[0][0]:
                break
            if batch is None and last is None:
                failure = failure or ValueError("this process has no batch, but another has; pass `dataloader`")
                continue
            yield (last, False) if batch is None else (batch, True)
            last = last if batch is None else batch
        if failure is not None:
            raise failure


class _Share:
    """Of each group of ``size`` batches the one of this process; a group that lacks it gives its first again."""

    def __init__(self, batches: Iterable[Any], processes: Processes) -> None:
        self._batches = batches
        self._processes = processes
        self.filled_up = False

    def __iter__(self) -> Iterator[Any]:
        rank, size = self._processes.rank, self._processes.size
        batches = iter(self._batches)
        while group := list(itertools.islice(batches, size)):
            self.filled_up = rank >= len(group)
            yield group[0] if self.filled_up else group[rank]


def has_batches(loader: Any) -> bool:
    """Whether a loader can be iterated, and is no list of loaders."""
    if isinstance(loader, Sequence) and any(isinstance(each, DataLoader) for each in loader[:1]):
        return False
    return hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")


def first_batch(loader: Any) -> Any:
    """The first batch of this process alone; None if there is none."""
    return next((batch for batch, _ in Reading(loader, alone(), max_batches=1)), None)


def read_twice(loader: DataLoader[Any]) -> tuple[Any, Any]:
    """A batch of indexed data, and the same samples read again: other values, where something is drawn for each.

    In this process, as the draws of fresh workers would be the same.
    """
    batch = next(_plan(loader, 1))
    automatic = loader.batch_sampler is not None
    order: dict[str, Any] = {"batch_sampler": [batch]} if automatic else {"batch_size": None, "sampler": [batch]}
    first, again = (next(iter(_fresh(loader, workers=0, **order))) for _ in range(2))
    return first, again


def alone() -> Processes:
    """This process as if there were no other, to read everything."""
    single = Processes()
    single.rank, single.size = 0, 1
    return single


def training_data(trainer: Trainer) -> tuple[Any, bool]:
    """The loader of what is trained on, and whether train-time transforms may come with it.

    Returns:
        ``train_eval_dataloader()`` of the data module if there is one, else the training loader; the latter has no
        transforms where its dataset is known to be tensors or a list.

    Raises:
        NotApplicable: there are several training loaders.
    """
    own = getattr(getattr(trainer, "datamodule", None), "train_eval_dataloader", None)
    if own is not None:
        return own(), False
    loader: Any = trainer.train_dataloader
    if loader is None:
        raise NotApplicable("there is no training data to measure on: pass `dataloader`")
    if isinstance(loader, (Mapping, list, tuple)):
        raise NotApplicable(f"there are {len(loader)} training loaders: pass `dataloader`, the one to measure on")
    return loader, not _is_plain(getattr(loader, "dataset", None))


def _is_plain(dataset: Any) -> bool:
    while type(dataset) is Subset:
        dataset = dataset.dataset
    return type(dataset) in (TensorDataset, list)


def training_limit(trainer: Trainer) -> int | None:
    """How many batches over all processes an epoch is limited to; None without a limit.

    Data that do not say how many they are may never end: of those an epoch is what has been trained on in it, before
    that what it can be at most.
    """
    if trainer.num_training_batches == float("inf"):
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        batches: int = progress.ready or trainer.max_steps * trainer.accumulate_grad_batches
        return batches * trainer.world_size if batches > 0 else None
    limited = trainer.limit_train_batches != 1.0 or trainer.overfit_batches  # type: ignore[attr-defined]
    if not (limited or trainer.fast_dev_run):  # type: ignore[attr-defined]
        return None
    return int(trainer.num_training_batches) * trainer.world_size


def validation_limit(trainer: Trainer) -> int | None:
    """How many batches of a validation set that is a stream are read; None without a limit.

    What is in an order that we know is read in full, whatever part of it validates.
    """
    limit: int | float = trainer.limit_val_batches
    if isinstance(limit, float) or limit == 0 or is_indexed(validation_data(trainer)):
        return None
    return limit * trainer.world_size


def validation_data(trainer: Trainer) -> Any:
    """The loader of the validation set: the first, if there are several.

    Raises:
        NotApplicable: there is none.
    """
    loaders: Any = trainer.val_dataloaders
    if loaders is None:  # until validation first runs, and for ever if it is switched off
        source = trainer.fit_loop.epoch_loop.val_loop._data_source
        loaders = source.dataloader() if source.is_defined() else None
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, Sequence):
        loaders = loaders[0] if loaders else None
    if loaders is None:
        raise NotApplicable("there is no validation set to measure on: pass `dataloader`")
    return loaders


def sources_of_chance(loader: Any) -> list[Any]:
    """What may have random streams of its own: dataset, samplers and collate function of a loader, or itself."""
    if not isinstance(loader, DataLoader):
        return [loader]
    return [loader.dataset, loader.sampler, loader.batch_sampler, loader.collate_fn, loader.generator]


def is_indexed(loader: Any) -> bool:
    """Whether batches can be read by index, in an order that we know and every process shares."""
    return (
        isinstance(loader, DataLoader)
        and type(loader).__iter__ is DataLoader.__iter__
        and not isinstance(loader.dataset, IterableDataset)
        and not _shares_itself_out(loader)
    )


def scattered(loader: DataLoader[Any], max_batches: int | None, seed: int, most: int | None = None) -> DataLoader[Any]:
    """The samples of a loader in an order that a seed decides, the same on every process.

    Args:
        loader: that is indexed.
        max_batches: of its own order, whose samples take part; None for all.
        seed: of the order.
        most: samples of a batch, where the loader's own batches are too large.

    Returns:
        A loader of the same batch size, or of ``most``; where a sample is a batch, of the same batches.
    """
    generator = torch.Generator().manual_seed(seed)
    plan = list(_plan(loader, max_batches))
    if loader.batch_sampler is None:
        order = torch.randperm(len(plan), generator=generator).tolist()
        return _fresh(loader, batch_size=None, sampler=[plan[place] for place in order])
    samples = [index for batch in plan for index in batch]
    order = torch.randperm(len(samples), generator=generator).tolist()
    size = max(map(len, plan), default=1)
    size = size if most is None else min(size, most)
    batches = [[samples[place] for place in order[start : start + size]] for start in range(0, len(order), size)]
    return _fresh(loader, batch_sampler=batches)


def _shares_itself_out(loader: DataLoader[Any]) -> bool:
    """Whether a sampler gives each process a part that we cannot see through: then each reads what it is given."""
    batch_sampler: Any = loader.batch_sampler
    if batch_sampler is not None and type(batch_sampler) is not BatchSampler:
        inner = getattr(batch_sampler, "sampler", None)
        return isinstance(batch_sampler, DistributedSampler) or isinstance(inner, DistributedSampler)
    sampler = loader.sampler if batch_sampler is None else batch_sampler.sampler
    return isinstance(sampler, DistributedSampler) and not _is_plainly_distributed(sampler)


def _is_plainly_distributed(sampler: DistributedSampler[Any]) -> bool:
    plain = type(sampler) is DistributedSampler or type(sampler).__module__.startswith("lightning.")
    return plain


def _fresh(loader: DataLoader[Any], workers: int | None = None, **order: Any) -> DataLoader[Any]:
    workers = loader.num_workers if workers is None else workers
    with_workers: dict[str, Any] = (
        {"prefetch_factor": loader.prefetch_factor, "timeout": loader.timeout} if workers else {}
    )
    return DataLoader(
        loader.dataset,
        collate_fn=loader.collate_fn,
        num_workers=workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context if workers else None,
        generator=torch.Generator().manual_seed(_SEED),
        **with_workers,
        **order,
    )


def _apart(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A loader of a class of its own, without the iterator that persistent workers keep for training."""
    apart = copy.copy(loader)
    apart.__dict__.update(_iterator=None, _DataLoader__initialized=False)
    apart.persistent_workers = False
    apart.generator = torch.Generator().manual_seed(_SEED)
    return apart


def _runs_out(source: Any) -> bool:
    """Whether iterating again goes on where the last iteration stopped, and nothing can set it back."""
    if not isinstance(source, Iterable):
        return False
    first = iter(source)
    return first is iter(source) and type(first).__module__ in ("builtins", "itertools")


def _own_order(loader: DataLoader[Any]) -> dict[str, Any]:
    """The order of a loader as it is on this process."""
    if isinstance(loader.dataset, IterableDataset):
        incomplete = {} if loader.batch_size is None else {"drop_last": loader.drop_last}
        return {"batch_size": loader.batch_size, **incomplete}
    if loader.batch_sampler is None:
        return {"batch_size": None, "sampler": _twin(loader.sampler)}
    return {"batch_sampler": _twin(loader.batch_sampler)}


def _twin(sampler: Any) -> Any:
    """A sampler to iterate in place of one that may remember where it is; the data behind it are shared."""
    twin = copy.copy(sampler)
    if isinstance(getattr(sampler, "sampler", None), Sampler):
        twin.sampler = copy.copy(sampler.sampler)
    return twin


def _each(max_batches: int | None, size: int) -> int | None:
    return None if max_batches is None else -(-max_batches // size)


def _plan(loader: DataLoader[Any], max_batches: int | None) -> Iterator[Any]:
    """The index batches of one epoch (indices, where a sample is a batch), read as lazily as they are used."""
    batch_sampler: Any = loader.batch_sampler
    if batch_sampler is None:
        yield from _bounded(
            _order(loader.sampler, loader, max_batches is not None), loader.sampler, loader, max_batches
        )
    elif type(batch_sampler) is BatchSampler:
        sampler = batch_sampler.sampler
        shuffles = not isinstance(_unwrapped(sampler, loader), SequentialSampler)
        indices = _order(sampler, loader, max_batches is not None)
        size = batch_sampler.batch_size
        bound = None if max_batches is None else max_batches * size
        indices = _bounded(indices, sampler, loader, bound)
        while batch := list(itertools.islice(indices, size)):
            # a shuffling loader drops other samples every epoch, so all are trained on
            if len(batch) < size and batch_sampler.drop_last and not shuffles:
                return
            yield batch
    else:
        most = length(batch_sampler) if max_batches is None else max_batches
        left = length(loader.dataset)
        for count, batch in enumerate(_twin(batch_sampler)):
            if (most is not None and count >= most) or (most is None and left is not None and left <= 0):
                return
            left = None if left is None else left - len(batch)
            yield batch


def _unwrapped(sampler: Any, loader: DataLoader[Any]) -> Any:
    """What is behind a distributed sampler: the sampler that Lightning wrapped, or the order of the whole dataset."""
    if isinstance(sampler, DistributedSampler) and _is_plainly_distributed(sampler):
        inner = sampler.dataset
        if isinstance(inner, _DatasetSamplerWrapper):
            return inner._sampler
        return RandomSampler(loader.dataset) if sampler.shuffle else SequentialSampler(loader.dataset)  # type: ignore[arg-type]
    return sampler


def _order(sampler: Any, loader: DataLoader[Any], in_part: bool) -> Iterator[Any]:
    """Indices of one epoch, in order where all are read and only shuffled."""
    sampler = _unwrapped(sampler, loader)
    if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(sampler.data_source):
        total = len(sampler.data_source)
        if not in_part:
            return iter(range(total))
        return iter(torch.randperm(total, generator=torch.Generator().manual_seed(_SEED)).tolist())
    generator = getattr(sampler, "generator", None)
    if isinstance(generator, torch.Generator):
        generator.manual_seed(_SEED)  # its state comes back with the other streams
    return iter(_twin(sampler))


def _bounded(indices: Iterator[Any], sampler: Any, loader: DataLoader[Any], most: int | None) -> Iterator[Any]:
    """At most what was asked for; a sampler that never ends gives as many indices as there are samples."""
    sampler = _unwrapped(sampler, loader)
    if most is None:
        most = length(sampler)
    if most is None:
        most = length(loader.dataset)
    return itertools.islice(indices, most)


def length(sized: Any) -> int | None:
    """How many a stranger's loader, data set or sampler has; None where it does not say, or cannot."""
    try:
        return len(sized)
    except (TypeError, NotImplementedError, AttributeError, OverflowError, ValueError):
        return None

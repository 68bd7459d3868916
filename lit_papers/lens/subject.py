"""A stranger's network bound to its data, and one look at both."""

import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import move_data_to_device, rank_zero_warn
from torch import Tensor, nn
from torchmetrics import Metric

from lit_papers.accumulator import float64_device
from lit_papers.lens import data
from lit_papers.lens.batches import Unpack, unpack_batch
from lit_papers.lens.copying import copied
from lit_papers.lens.in_place import left_as_it_was
from lit_papers.lens.linears import resolve_classifier
from lit_papers.lens.processes import Processes
from lit_papers.lens.refusal import NotApplicable
from lit_papers.lens.routes import Call, Route, Seen, find_route, follow
from lit_papers.lens.sample import Sample
from lit_papers.lens.streams import streams_in, streams_kept
from lit_papers.lens.training import TrainingLoss, training_loss

Reads = Literal["train", "validation"] | None


@dataclass(frozen=True)
class Gathering:
    """What a pass over the data accumulates for a lens: a metric, and how a batch is added to it."""

    make: Callable[[], Metric]
    add: Callable[[Any, Seen], None]
    layers: tuple[str, ...]


class Subject:
    """A stranger's network and the data that it is looked at with, for one fit or one call.

    Nothing is run before it is needed. The network is looked at as an evaluation copy with its own parameters, which
    sees a read-only facade of the trainer; the stranger's module is never called, only its batch hooks, with the
    trainer in its validating stage. Random streams, modes and buffers are afterwards what they were. Beyond this
    promise are hooks whose closures point out of the module, and what a step does to the world outside (files, global
    variables).

    Args:
        network: any ``nn.Module``; of a LightningModule, its steps are tried before ``forward``.
        loader: the data; None takes from the trainer what ``reads`` says.
        trainer: that trains or evaluates the network; None where there is none.
        reads: ``"train"``, ``"validation"``, or None for lenses that need no data.
        call: from (module, batch) to (logits, class indices), where it cannot be found.
        unpack: from a batch to (argument of ``forward``, class indices); tells that ``forward`` is to be called.
        classifier: last ``nn.Linear`` or its dotted path, where it cannot be found.
        max_batches: most batches of a pass, over all processes; None takes the trainer's limits.
        copy: False for networks too large to be copied: they are looked at in place, by ``call`` or ``forward`` alone.

    Raises:
        NotApplicable: a strategy that shards the network (FSDP, DeepSpeed), ``max_batches`` below 1, a loader that
            gives no batches.
    """

    def __init__(
        self,
        network: nn.Module,
        loader: Any = None,
        *,
        trainer: Trainer | None = None,
        reads: Reads = "train",
        call: Call | None = None,
        unpack: Unpack | None = None,
        classifier: str | nn.Module | None = None,
        max_batches: int | None = None,
        copy: bool = True,
    ) -> None:
        if max_batches is not None and max_batches < 1:
            raise NotApplicable(f"max_batches must be at least 1, or None, got {max_batches}")
        if loader is not None and not data.has_batches(loader):
            raise NotApplicable(
                "`dataloader` must be a DataLoader or another iterable of batches (of several loaders a dict with a "
                f"name for each), got {type(loader).__name__}"
            )
        strategy = None if trainer is None else trainer.strategy
        if isinstance(strategy, (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)):
            raise NotApplicable(
                f"{type(strategy).__name__} shards the network, which cannot be measured yet: measure a checkpoint "
                "without it, by trainer.validate(..., ckpt_path=...) on one device"
            )
        self.network = network
        self.trainer = trainer
        self.reads: Reads = reads
        self.call = call
        self.unpack = unpack
        self.max_batches = max_batches
        self.copy = copy
        self.processes = Processes("cpu" if strategy is None else strategy.root_device)
        self.passes = 0
        self.seconds = 0.0
        self.asked: list[Hashable] = []
        self._classifier = None if classifier is None else resolve_classifier(network, classifier)
        self._given_loader = loader
        self._own_loader: Any = None
        self._gatherings: dict[Hashable, Gathering] = {}
        self._route: Route | None = None
        self._first: Any = None
        self._was_quiet = False
        self._moment: tuple[Hashable, Moment] | None = None

    # -- what a lens may ask in `check` --------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        parameter = next(self.network.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    @property
    def passed(self) -> bool:
        """Whether the data were passed, and are not those of the trainer."""
        return self._given_loader is not None

    @property
    def trial(self) -> bool:
        """Whether the trainer only tries whether everything runs (``fast_dev_run``)."""
        return self.trainer is not None and bool(self.trainer.fast_dev_run)  # type: ignore[attr-defined]

    @property
    def route(self) -> Route:
        """How logits are got from a batch; found on one batch, the first time it is asked for.

        Raises:
            NotApplicable: as `find_route`.
        """
        if self._route is None:
            with self.processes.same_fate("looking for the classifier"), self.quiet(), self.twin() as network:
                batch = self._first_batch()
                if self.copy:
                    _wake(network)
                with self.precision():
                    self._route = find_route(
                        network, batch, call=self.call, unpack=self.unpack, classifier=self._classifier
                    )
        return self._route

    @property
    def head(self) -> nn.Linear:
        """The last linear layer of the stranger's own network, to read its weights and find them in an optimizer."""
        layer = _submodule(self.network, self.route.head)
        assert isinstance(layer, nn.Linear)  # noqa: S101
        return layer

    def training_loss(self) -> TrainingLoss | None:
        """The loss that ``training_step`` computes on the head's output; None where that is not known."""
        for in_training in (False, True):
            route = self.route
            # whoever validates is in inference mode, of whose tensors there are no gradients
            with torch.inference_mode(False), self.quiet(), self.twin() as network, self.precision():
                found = training_loss(network, self._first_batch(), route.head, in_training=in_training)
            if found is not None:
                return found
        return None

    def first_seen(self, layers: tuple[str, ...] = ()) -> Seen:
        """What the first batch shows, with the outputs of these layers as far as they are called.

        Args:
            layers: dotted paths.
        """
        route = self.route
        with self.processes.same_fate("looking at the layers"), self.quiet(), self.twin() as network, self.precision():
            return follow(route, network, self._first_batch(), call=self.call, unpack=self.unpack, layers=layers)

    def gather(
        self, key: Hashable, make: Callable[[], Metric], add: Callable[[Any, Seen], None], layers: tuple[str, ...] = ()
    ) -> Hashable:
        """Have each pass add every batch to a metric; `Moment.gathered` gives what it computes.

        Args:
            key: names it; lenses that ask for the same key share it.
            make: a new metric, of any kind.
            add: a batch to the metric; called with the metric and a `Seen`.
            layers: dotted paths of layers whose outputs `Seen.layers` shall have.

        Returns:
            The key.
        """
        self._gatherings.setdefault(key, Gathering(make, add, layers))
        self.asked.append(key)
        return key

    def rows(
        self, most: int | None = None, *, wanted: str = "samples", scatter: int | None = None, distinct: int = 1
    ) -> tuple[Tensor, Tensor]:
        """The first samples, or samples from all over the data, whole and the same on every process.

        Args:
            most: how many; None reads all.
            scatter: seed of the order in which indexed data are read, or of the choice among all of a stream; None
                reads them in their own, in which one class may come after the other.
            distinct: different targets to look for where ``scatter`` is given, also beyond ``most`` samples: what comes
                late of a target that is not among these is returned besides.
            wanted: what they are called in a refusal.

        Returns:
            Inputs ``(N, ...)`` and targets ``(N, ...)``, as ``forward`` and the loss get them.

        Raises:
            NotApplicable: there are none, or not in an order that all processes share.
            TypeError: a batch has no single tensor as input; the message names ``unpack``.
        """
        with self.processes.same_fate("reading samples"), self.quiet():
            if self.processes.size > 1 and not data.is_indexed(self.loader):
                raise NotApplicable(
                    f"the {self.reads} data cannot be read in an order that is the same on every process (an iterable "
                    "dataset, or not a DataLoader): pass `dataloader`, one that can"
                )
            loader, limit = self.loader, self._limit()
            streamed = scatter is not None and not data.is_indexed(loader)
            if scatter is not None and not streamed:
                loader, limit = data.scattered(loader, limit, scatter), None
            sample = Sample(most, distinct, None if not streamed else scatter)
            for batch, _ in data.Reading(loader, data.alone(), limit):
                x, y = (self.unpack or unpack_batch)(self.to_device(batch))
                if not isinstance(x, Tensor) or not isinstance(y, Tensor):
                    found = f"({type(x).__name__}, {type(y).__name__})"
                    raise TypeError(f"{wanted} must be pairs of one tensor each, got {found}; pass `unpack`")
                sample.add(x.detach(), y.detach())
                if sample.enough:
                    break
            if not len(sample):
                raise NotApplicable(f"`dataloader` has no {wanted} to measure on")
        return sample.rows()

    # -- looking -------------------------------------------------------------------------------------------------

    def moment(self, stamp: Hashable = None, keys: list[Hashable] | None = None) -> "Moment":
        """Look now; lenses that come with the same ``stamp`` share the copy and the pass.

        Args:
            stamp: of the moment, such as (epoch, step); None is never shared.
            keys: what the pass gathers; None for all that was asked for.
        """
        wanted = self._gatherings if keys is None else {key: self._gatherings[key] for key in keys}
        if self._moment is not None and stamp is not None and self._moment[0] == stamp:
            shared = self._moment[1]
            if shared.gathers(wanted):
                return shared
        moment = Moment(self, wanted)
        self._moment = stamp, moment
        return moment

    def forget_moment(self) -> None:
        """Let go of the copy of the last look."""
        self._moment = None

    @property
    def loader(self) -> Any:
        """The data as they are now: of the trainer's own loaders the present one, since they may be reloaded."""
        if self._given_loader is not None:
            return self._given_loader
        if self.trainer is None:
            raise NotApplicable("there are no data to measure on: pass a loader")
        if self.reads == "validation":
            return data.validation_data(self.trainer)
        reloads = self.trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
        if self._own_loader is None or reloads:
            self._own_loader, transforms = data.training_data(self.trainer)
            if transforms and not self._was_quiet:
                rank_zero_warn(
                    "measuring on the dataset of the training loader, with its train-time transforms; for clean images "
                    "pass `dataloader`, or give the data module a `train_eval_dataloader()`"
                )
        return self._own_loader

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Inside, whatever draws, moves data or calls the network leaves no trace in the training."""
        trainer = self.trainer
        loader = None if self.reads is None and self._given_loader is None else self.loader
        self._was_quiet = True
        streams = streams_in(data.sources_of_chance(loader))  # each time: some are made when they are first drawn from
        stage = None if trainer is None else trainer.state.stage
        with streams_kept(streams), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            try:
                if trainer is not None:
                    trainer.validating = True
                yield
            finally:
                if trainer is not None:
                    trainer.state.stage = stage

    def precision(self) -> Any:
        """The trainer's context for calls of the network: autocast, or the default type of tensors made there."""
        return nullcontext() if self.trainer is None else self.trainer.precision_plugin.forward_context()

    @contextmanager
    def twin(self) -> Iterator[nn.Module]:
        """The network in evaluation mode: a copy, or itself, which is restored."""
        if not self.copy:
            if self.call is None and self.unpack is None and isinstance(self.network, LightningModule):
                raise NotApplicable("copy=False looks by `call` or `forward` alone: pass `call` or `unpack`")
            with left_as_it_was(self.network):
                yield self.network
            return
        try:
            twin, uncopied = copied(self.network, self.trainer)
        except torch.OutOfMemoryError as error:
            raise NotApplicable(
                f"there is no memory for a copy of the network ({error}): measure a checkpoint apart from training, or "
                "pass `copy=False` to a lens with `call`"
            ) from error
        if uncopied and self._moment is None:
            rank_zero_warn(
                f"a copy of {type(self.network).__name__} shares what cannot be copied: {', '.join(uncopied)}"
            )
        yield twin

    def to_device(self, batch: Any) -> Any:
        """A batch as the module gets it: converted, moved, and through the stranger's own batch hooks."""
        network, trainer = self.network, self.trainer
        if trainer is not None:
            batch = trainer.precision_plugin.convert_input(batch)
        if isinstance(network, LightningModule):
            batch = network._on_before_batch_transfer(batch, dataloader_idx=0)
            if trainer is not None:
                return trainer.strategy.batch_to_device(batch, dataloader_idx=0)
            return network._apply_batch_transfer_handler(batch, device=self.device, dataloader_idx=0)
        return move_data_to_device(batch, self.device)

    def batches(self) -> Iterator[tuple[Any, bool]]:
        """Batches of this process as the module gets them, and whether each counts; inside `quiet`."""
        for batch, counts in data.Reading(self.loader, self.processes, self._limit()):
            yield self.to_device(batch), counts

    def _limit(self) -> int | None:
        limits = [self.max_batches]
        if self.trainer is not None:
            if self.trial:
                limits.append(self.processes.size)
            if self._given_loader is None and self.reads == "train":
                limits.append(data.training_limit(self.trainer))
            elif self._given_loader is None and self.reads == "validation":
                limits.append(data.validation_limit(self.trainer))
        known = [limit for limit in limits if limit is not None]
        return min(known) if known else None

    def _first_batch(self) -> Any:
        if self._first is None:
            with torch.inference_mode(False), torch.no_grad():  # `training_loss` needs it with gradients
                batch = data.first_batch(self.loader)
                if batch is None:
                    raise NotApplicable("`dataloader` has no batch to measure on")
                self._first = self.to_device(batch)
        return self._first


class Moment:
    """One look at a subject: its network as it is now, and one pass over its data that all lenses share.

    Attributes:
        subject: what is looked at.
        untrained: whether a training has made no optimizer step yet; False where nothing is trained.
    """

    def __init__(self, subject: Subject, gatherings: dict[Hashable, Gathering]) -> None:
        self.subject = subject
        trainer = subject.trainer  # that evaluates a checkpoint has made no step either
        self.untrained = trainer is not None and trainer.state.fn == "fit" and trainer.global_step == 0
        self._gatherings = gatherings
        self._results: dict[Hashable, Any] | None = None
        self._head: tuple[Tensor, Tensor | None] | None = None
        self._failure: Exception | None = None

    @property
    def processes(self) -> Processes:
        """That look together."""
        return self.subject.processes

    @contextmanager
    def network(self) -> Iterator[nn.Module]:
        """The network in evaluation mode, in the trainer's precision, with every trace undone afterwards."""
        with self.subject.quiet(), self.subject.twin() as network, self.subject.precision():
            yield network

    def gathers(self, keys: Iterable[Hashable]) -> bool:
        """Whether its pass serves all these keys."""
        return set(keys) <= self._gatherings.keys()

    def gathered(self, key: Hashable) -> Any:
        """What the metric of a gathering computed, on all processes together.

        Raises:
            Exception: what the loader, the network or the metric raised, on the process where it happened; RuntimeError
                on the others. Asked again, the same again.
        """
        result = self._passed()[key]
        if isinstance(result, Exception):
            raise result
        return result

    def head(self) -> tuple[Tensor, Tensor | None]:
        """Weight ``(C, d)`` and bias ``(C,)`` of the last layer as it is evaluated: with its adapters merged.

        Raises:
            Exception: as `gathered`.
        """
        self._passed()
        assert self._head is not None  # noqa: S101
        return self._head

    def _passed(self) -> dict[Hashable, Any]:
        if self._failure is not None:
            raise self._failure
        if self._results is None:
            started = time.perf_counter()
            try:
                self._results = self._pass()
            except Exception as error:
                self._failure = error
                raise
            finally:
                self.subject.passes += 1
                self.subject.seconds += time.perf_counter() - started
        return self._results

    def _pass(self) -> dict[Hashable, Any]:
        subject = self.subject
        route = subject.route
        device = float64_device(subject.device)
        metrics = {key: gathering.make().to(device) for key, gathering in self._gatherings.items()}
        layers = tuple({name: None for gathering in self._gatherings.values() for name in gathering.layers})
        with subject.processes.same_fate(), subject.quiet(), subject.twin() as network:
            failure: Exception | None = None
            for batch, counts in subject.batches():
                if failure is not None:
                    continue  # the others may be asking whether there is a batch
                try:
                    with subject.precision():
                        seen = follow(route, network, batch, call=subject.call, unpack=subject.unpack, layers=layers)
                    if counts:
                        for key, metric in metrics.items():
                            self._gatherings[key].add(metric, seen)
                except Exception as error:
                    failure = error
            if failure is not None:
                raise failure
            head = network.get_submodule(route.head)
            assert isinstance(head, nn.Linear)  # noqa: S101
            self._head = head.weight.detach().clone(), None if head.bias is None else head.bias.detach().clone()
        return {key: _computed(metric) for key, metric in metrics.items()}


def _computed(metric: Metric) -> Any:
    """The result, or the error that says why there is none; the same on every process."""
    metric._update_count = max(metric._update_count, 1)  # a process without a sample; torchmetrics would warn
    try:
        return metric.compute()
    except ValueError as error:
        return error
    finally:  # a metric refers to itself: its states would stay beside what is computed of them until a collection
        for name in metric.metric_state:
            setattr(metric, name, torch.empty(0))


def _wake(network: nn.Module) -> None:
    """Fill trained parameters that are all zero in a copy, so that layers which do nothing at first are seen.

    The output of an adapter (LoRA) beside the last layer begins at 0: until it grows, that layer seems to make the
    logits.
    """
    with torch.no_grad():
        for parameter in network.parameters():
            lazy = isinstance(parameter, nn.parameter.UninitializedParameter)
            if not lazy and parameter.requires_grad and parameter.is_floating_point() and not parameter.any():
                parameter.normal_(std=0.1)


def _submodule(network: nn.Module, name: str) -> nn.Module:
    """A layer of the stranger's own network by its name in a copy, which has no wrappers of ``torch.compile``."""
    layer: nn.Module
    for path, layer in network.named_modules():
        wrapped = "_orig_mod" in layer._modules
        if not wrapped and path.replace("._orig_mod", "").removeprefix("_orig_mod.") == name:
            return layer
    raise NotApplicable(f"there is no layer {name!r} in {type(network).__name__}")

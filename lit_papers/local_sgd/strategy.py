"""Local SGD as a Lightning strategy: B optimizer steps on each rank, then the average of all ranks."""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.distributed.constants import default_pg_timeout
from torch.optim import Optimizer

from lit_papers.local_sgd import resume
from lit_papers.local_sgd.averaging import (
    Bucket,
    float_buffers,
    group_size,
    matching_state,
    measure_drift,
    numbers_in,
    trained_parameters,
)
from lit_papers.local_sgd.handshake import Greeting, Leaving, Occasion, exchange
from lit_papers.local_sgd.options import check_options, check_trainer
from lit_papers.local_sgd.outer import OuterStep
from lit_papers.local_sgd.rounds import RoundHooks


class LocalSGDStrategy(DDPStrategy):
    r"""Local SGD (FedAvg) for any project: each rank steps its own optimizer B times, then the weights are averaged.

    Instead of a gradient all-reduce in every step, there is one all-reduce of the weights every ``sync_every`` steps
    (Yun, Rajput & Sra, ICLR 2022, whose results on shuffling need the samplers of this package)::

        trainer = Trainer(devices=2, strategy=LocalSGDStrategy(sync_every=8))

    A round ends after ``sync_every`` local steps, at the end of an epoch, and at the end of training; then all ranks
    are bitwise equal in what is averaged. Validation and checkpoints see the average of the ranks, and resuming with
    as many processes continues each rank bit for bit.

    With ``sync_every=1`` and SGD (momentum and weight decay included) this is DDP up to rounding. With Adam, and with
    gradient clipping, it is not: both are nonlinear in the gradient, which here is each rank's own.

    What still communicates in every batch is what asks for it: ``self.log(..., on_step=True, sync_dist=True)``,
    ``Timer``, ``ModelCheckpoint(train_time_interval=...)``, ``sync_batchnorm``. ``ReduceLROnPlateau`` on a metric
    that is not reduced over the ranks lets their learning rates diverge.

    Args:
        sync_every: B, local optimizer steps a round, >= 1: after gradient accumulation; a step that a gradient scaler
            skips counts. With several optimizers (manual optimization) a batch in which any steps counts once.
        warmup_steps: so many first steps average gradients as DDP does (post-local SGD), >= 0.
        average_buffers: whether floating buffers (running statistics of batch norm) are averaged.
        average_optimizer_state: whether momentum and the like are averaged too, instead of staying local.
        sync_on_epoch_end: whether the end of an epoch ends the round.
        eval_weights: ``"average"``: validation during the fit runs on the mean of the ranks, and the local weights
            come back afterwards bit for bit; ``"local"``: each rank validates its own.
        uneven_inputs: what to do where ranks have different numbers of batches. ``"error"``: raise before the first
            step; ``"stop"``: end the epoch for all at the first averaging after some rank ran out.
        across_nodes_every: every how many rounds the average spans all nodes, >= 1; the rounds between average
            within each node (hierarchical local SGD). Ends of epochs and of training span all nodes.
        node_size: how many consecutive ranks count as a node; None for the processes of a machine.
        outer_optimizer: from parameters to an optimizer that steps on the averaged change of the weights, such as
            ``functools.partial(torch.optim.SGD, lr=0.7, momentum=0.9, nesterov=True)`` (DiLoCo; SlowMo without
            Nesterov); None for plain averaging. It sees all weights as one flat tensor.
        accelerator: this and the rest as for Lightning's ``DDPStrategy``.
        parallel_devices: devices of this machine.
        cluster_environment: who starts the processes.
        checkpoint_io: who writes checkpoints.
        precision_plugin: who casts.
        process_group_backend: ``"gloo"`` or ``"nccl"``; None for the usual one of the device.
        timeout: of a collective; None for PyTorch's default of 30 minutes.
        start_method: how the processes of a machine start.

    Attributes:
        local_step: steps since the fit began, those of the warm-up included; continued on resume, as the next three.
        since_sync: local steps in the open round.
        n_syncs: rounds that ended.
        bytes_communicated: payload this rank gave to averaging all-reduces: rounds, warm-up gradients, evaluation
            and checkpoint averages; without the handshakes of a few bytes. 0 for one process.
        track_drift: whether to measure ``drift``, at the cost of one scalar all-reduce a round.
        drift: float64, shape ``(2,)``: mean over the ranks of the squared distance to their average, before
            averaging, and the squared norm of the average; over trained parameters, of the last round (of this node
            where the round was one within nodes). None before the first.

    Raises:
        ValueError: an option outside its range; the message names it.

    >>> LocalSGDStrategy(sync_every=0)
    Traceback (most recent call last):
    ...
    ValueError: sync_every must be an integer >= 1, got 0
    """

    def __init__(
        self,
        sync_every: int = 8,
        warmup_steps: int = 0,
        average_buffers: bool = True,
        average_optimizer_state: bool = False,
        sync_on_epoch_end: bool = True,
        eval_weights: Literal["average", "local"] = "average",
        uneven_inputs: Literal["error", "stop"] = "error",
        across_nodes_every: int = 1,
        node_size: int | None = None,
        outer_optimizer: Callable[[Iterable[Tensor]], Optimizer] | None = None,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = None,
        start_method: Literal["popen", "spawn", "fork", "forkserver"] = "popen",
    ) -> None:
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
            process_group_backend=process_group_backend,
            timeout=default_pg_timeout if timeout is None else timeout,
            start_method=start_method,
        )
        self.sync_every = sync_every
        self.warmup_steps = warmup_steps
        self.average_buffers = average_buffers
        self.average_optimizer_state = average_optimizer_state
        self.sync_on_epoch_end = sync_on_epoch_end
        self.eval_weights = eval_weights
        self.uneven_inputs = uneven_inputs
        self.across_nodes_every = across_nodes_every
        self.node_size = node_size
        self.outer_optimizer = outer_optimizer
        check_options(self)
        self.track_drift = False
        self._reset()

    def _reset(self) -> None:
        """Forget an earlier fit."""
        self.local_step = 0
        self.since_sync = 0
        self.n_syncs = 0
        self.drift: Tensor | None = None
        self._bucket = Bucket()
        self._outer: OuterStep | None = None
        self._node: dist.ProcessGroup | None = None
        self._rounds_within_node = 0  # since the last average over all ranks
        self._stepped = False  # whether an optimizer stepped in this batch
        self._batches_since_met = False  # since all ranks were averaged: buffers move in batches without a step too
        self._just_met = True  # whether all ranks are at the same batch, and nothing was broadcast since
        self._blocked = False  # whether this backward pass accumulates
        self._own_weights: list[tuple[Tensor, Tensor]] | None = None  # while the average is in their place
        self.requeue_asked = False  # whether this rank got SLURM's signal
        self.requeue_agreed = False  # whether all ranks know that some rank did

    @property
    def bytes_communicated(self) -> int:
        """Payload that this rank gave to averaging all-reduces so far."""
        return self._bucket.bytes_sent

    # -- setting up ---------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer) -> None:
        """Set up as DDP does, with our hooks around the callbacks."""
        RoundHooks.remove_from(trainer)
        if trainer.state.fn == TrainerFn.FITTING:
            self._reset()
            RoundHooks.add_to(trainer, self)
        super().setup(trainer)

    def configure_ddp(self) -> None:
        """Start all ranks from the first rank's weights; nothing is wrapped, so that no gradient is reduced."""
        if group_size() > 1:
            _sync_module_states(self._module)

    def process_dataloader(self, dataloader: object) -> object:
        """Set the sampler's epoch before workers draw from it: Lightning builds their iterator first."""
        trainer = self._module.trainer
        if trainer.state.fn == TrainerFn.FITTING:
            # `current_epoch` is not caught up yet after a resume
            epochs_done: int = trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
            _set_sampler_epoch(dataloader, epochs_done)
        return dataloader

    def start_training(self, trainer: Trainer) -> None:
        """Check that all ranks are about to do the same; called before the first step.

        Raises:
            RuntimeError: they are not, or ``uneven_inputs="stop"`` is combined with what it cannot serve.
        """
        check_trainer(self, trainer)
        if self.across_nodes_every > 1:
            self._join_node()
        if self.outer_optimizer is not None and self._outer is None:
            self._outer = self._new_outer()

    def _join_node(self) -> None:
        size = self.num_processes if self.node_size is None else self.node_size
        if group_size() % size:
            raise RuntimeError(f"node_size={size} does not divide the {group_size()} processes")
        if group_size() > 1:
            self._node, _ = dist.new_subgroups(size)

    def _new_outer(self) -> OuterStep:
        assert self.outer_optimizer is not None  # noqa: S101
        return OuterStep(self.outer_optimizer, self._bucket.fill(self._parameters()))

    # -- training -----------------------------------------------------------------------------------------------------

    def optimizer_step(
        self,
        optimizer: Optimizer,
        closure: Callable[[], Any],
        model: LightningModule | torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> Any:
        """Step this rank's optimizer, and remember that this batch had a step."""
        self._stepped = True
        return Strategy.optimizer_step(self, optimizer, closure, model, **kwargs)

    @contextmanager
    def block_backward_sync(self) -> Generator[None, None, None]:
        """Keep the gradients of an accumulating backward pass local, in the warm-up."""
        self._blocked = True
        try:
            yield
        finally:
            self._blocked = False

    def post_backward(self, closure_loss: Tensor) -> None:
        """Average gradients in the warm-up: before unscaling and clipping, where DDP does."""
        if self.local_step < self.warmup_steps and not self._blocked and group_size() > 1:
            self._bucket.average_gradients(self._parameters())

    def end_batch(self, leaving: Leaving) -> Leaving:
        """Count the batch's step, and end the round if it is due.

        Args:
            leaving: whether this rank leaves the loop now.

        Returns:
            What the rank that leaves most does, as far as this rank was told.

        Raises:
            RuntimeError: the ranks disagree.
        """
        stepped, self._stepped = self._stepped, False
        self._batches_since_met = True
        if self.local_step < self.warmup_steps:
            return self._end_warmup_batch(stepped, leaving)
        if stepped:
            self.local_step += 1
            self.since_sync += 1
        stop = self.uneven_inputs == "stop"
        epoch_is_over = leaving and (stop or (self.sync_on_epoch_end and self._parameters_differ))
        if self.since_sync >= self.sync_every or epoch_is_over:
            return self._end_round(leaving, everywhere=bool(epoch_is_over))
        return leaving

    def _end_warmup_batch(self, stepped: bool, leaving: Leaving) -> Leaving:
        if stepped:
            self.local_step += 1
            self._just_met = True
            if self._outer is not None and self.local_step == self.warmup_steps:
                self._outer.follow(self._bucket.fill(self._parameters()))
        return self._greet(Occasion.WARMUP, [], leaving)[0]  # small beside the gradients; streams may end apart

    def end_epoch(self) -> None:
        """End the round with the epoch, where its last batch did not."""
        if self._parameters_differ and (self.sync_on_epoch_end or self.uneven_inputs == "stop"):
            self._end_round(Leaving.EPOCH, everywhere=True)

    def end_training(self) -> None:
        """Make all ranks equal."""
        if self._parameters_differ:
            self._end_round(Leaving.TRAINING, everywhere=True, occasion=Occasion.TRAINING_END)
        elif self._differing():
            self._average_in_place(Occasion.TRAINING_END)
        self._batches_since_met = False

    def ranks_just_met(self) -> bool:
        """Whether all ranks are at the same batch; True once after each average over all of them."""
        met, self._just_met = self._just_met, False
        return met

    def _end_round(self, leaving: Leaving, *, everywhere: bool, occasion: Occasion = Occasion.ROUND) -> Leaving:
        everywhere = everywhere or self._node is None or self._rounds_within_node + 1 >= self.across_nodes_every
        group = None if everywhere else self._node
        parameters = self._parameters()
        buffers = float_buffers(self._module) if self.average_buffers else []
        state = matching_state(self.optimizers) if self.average_optimizer_state else []
        told = leaving
        if group_size(group) > 1:
            told, state_is_alike = self._greet(occasion, [*parameters, *buffers], leaving, group, state)
            if not state_is_alike:  # a scaler skipped the first step on some rank
                state = []
        if group_size(group) > 1 or self._outer is not None or self.track_drift:
            tensors = [*parameters, *buffers, *state]
            flat = self._bucket.average(tensors, group)
            if self.track_drift:
                self.drift = measure_drift(parameters, flat, group)
            if self._outer is not None and everywhere:
                self._outer.step(flat[: numbers_in(parameters)])
            self._bucket.spread(tensors, flat)
        self.n_syncs += 1
        self.since_sync = 0
        self._rounds_within_node = 0 if everywhere else self._rounds_within_node + 1
        if everywhere:
            self._batches_since_met = False
            self._just_met = True
        return told

    def _greet(
        self,
        occasion: Occasion,
        tensors: list[Tensor],
        leaving: Leaving = Leaving.NO,
        group: dist.ProcessGroup | None = None,
        state: Iterable[Tensor] = (),
    ) -> tuple[Leaving, bool]:
        """The handshake: who leaves most, and whether all have the same optimizer state to average."""
        if group_size(group) == 1:
            return leaving, True
        own = Greeting(
            occasion,
            self.n_syncs,
            numbers_in(tensors),
            self.local_step,
            leaving,
            numbers_in(state),
            requeue=self.requeue_asked,
        )
        greetings = exchange(own, self.root_device, group, even=self.uneven_inputs == "error")
        if group is None:
            self.requeue_agreed = any(greeting.requeue for greeting in greetings)
        told = Leaving(max(greeting.leaving for greeting in greetings))
        return told, len({greeting.state_numbers for greeting in greetings}) == 1

    # -- evaluating and saving on the average -------------------------------------------------------------------------

    @property
    def _module(self) -> LightningModule:
        assert self.lightning_module is not None, "Lightning connects the module first"  # noqa: S101
        return self.lightning_module

    @property
    def _interrupted(self) -> bool:
        """Whether an exception ended training here: the other ranks are elsewhere, and would never answer."""
        trainer = None if self.lightning_module is None else self.lightning_module._trainer
        return trainer is not None and trainer.interrupted

    def _parameters(self) -> list[Tensor]:
        return trained_parameters(self.optimizers)  # anew each time: callbacks unfreeze layers during the fit

    @property
    def _parameters_differ(self) -> bool:
        return self.since_sync > 0 or self._rounds_within_node > 0

    def _differing(self) -> list[Tensor]:
        """What is averaged at a round, and has moved on some rank since all were equal."""
        if group_size() == 1:
            return []
        parameters = self._parameters() if self._parameters_differ else []
        with_buffers = self.average_buffers and (self._parameters_differ or self._batches_since_met)
        return [*parameters, *(float_buffers(self._module) if with_buffers else [])]

    def _average_in_place(self, occasion: Occasion) -> None:
        tensors = self._differing()
        self._greet(occasion, tensors)
        self._bucket.spread(tensors, self._bucket.average(tensors))

    def _put_average_in_place(self, occasion: Occasion) -> None:
        self._own_weights = [(tensor, tensor.detach().clone()) for tensor in self._differing()]
        if self._own_weights:
            self._average_in_place(occasion)

    def _put_own_weights_back(self) -> None:
        own_weights, self._own_weights = self._own_weights, None
        for tensor, value in own_weights or ():
            tensor.detach().copy_(value)

    def on_validation_start(self) -> None:
        """Put the average of the ranks in place; callbacks' and the module's hooks of this name ran before."""
        super().on_validation_start()
        if self._module.trainer.state.fn == TrainerFn.FITTING and self.eval_weights == "average":
            self._put_average_in_place(Occasion.EVALUATION)

    def on_validation_end(self) -> None:
        """Put this rank's own weights back; `ModelCheckpoint` saved before, while the average was in place."""
        super().on_validation_end()
        self._put_own_weights_back()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's state, of the average of all ranks; every rank must call it."""
        if self._interrupted or self._own_weights is not None:
            return super().lightning_module_state_dict()
        self._put_average_in_place(Occasion.CHECKPOINT)
        try:
            state = super().lightning_module_state_dict()
            copied: dict[str, Any] = apply_to_collection(state, Tensor, torch.clone) if self._own_weights else state
            return copied
        finally:
            self._put_own_weights_back()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: Any = None) -> None:
        """Add what each rank needs to go on, then let the first rank write; every rank must call it."""
        if "optimizer_states" in checkpoint:  # not where only weights are saved
            checkpoint["local_sgd"] = self._resume_state(checkpoint)
        super().save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def _resume_state(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        alone = group_size() == 1
        ranks = None
        if not alone and not self._interrupted:
            own = {id(tensor): value for tensor, value in self._own_weights or ()}
            parameters = self._parameters() if self._parameters_differ else None
            ranks = resume.gather_ranks(
                checkpoint, parameters, self._module, lambda tensor: own.get(id(tensor), tensor)
            )
        return {
            "version": resume.VERSION,
            "sync_every": self.sync_every,
            "world_size": group_size(),
            "local_step": self.local_step,
            "since_sync": self.since_sync,
            "n_syncs": self.n_syncs,
            "bytes_communicated": self.bytes_communicated,
            "rounds_within_node": self._rounds_within_node,
            "batches_since_met": self._batches_since_met,
            "consistent": alone or not self._interrupted,
            "outer": None if self._outer is None else self._outer.state_dict(),
            "ranks": ranks,
        }

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Resume: optimizers, and with as many processes as were saved all that is this rank's own."""
        saved = checkpoint.get("local_sgd")
        if saved is None:  # of another strategy
            super().load_optimizer_state_dict(checkpoint)
            return
        own = resume.own_state(saved, self.global_rank, group_size())
        if own is None:
            super().load_optimizer_state_dict(checkpoint)
        else:
            super().load_optimizer_state_dict({**checkpoint, "optimizer_states": own["optimizers"]})
            resume.restore(own, self._parameters(), checkpoint, self._module.trainer)
        self.local_step, self.n_syncs = saved["local_step"], saved["n_syncs"]
        self._bucket.bytes_sent = saved["bytes_communicated"]
        if saved["world_size"] == group_size():
            self.since_sync = saved["since_sync"]
            self._rounds_within_node = saved["rounds_within_node"]
            self._batches_since_met = saved["batches_since_met"]
        if self.outer_optimizer is not None and saved["outer"] is not None:
            self._outer = self._new_outer()
            self._outer.load_state_dict(saved["outer"])

    # -- leaving ------------------------------------------------------------------------------------------------------

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the other ranks, but not after an exception: they will not come."""
        if not self._interrupted:
            super().barrier(*args, **kwargs)

    def on_exception(self, exception: BaseException) -> None:
        """Leave the module with this rank's own weights."""
        super().on_exception(exception)
        self._put_own_weights_back()

    def teardown(self) -> None:
        """Take our hooks out of the trainer."""
        trainer = None if self.lightning_module is None else self.lightning_module._trainer
        if trainer is not None:
            RoundHooks.remove_from(trainer)
        super().teardown()

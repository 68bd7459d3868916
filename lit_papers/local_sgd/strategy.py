"""Local SGD as a Lightning strategy: B optimizer steps on each rank, then the average of all ranks."""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.fabric.utilities.types import _PATH, ReduceOp  # type: ignore[attr-defined]
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.constants import default_pg_timeout
from torch.optim import Optimizer

from lit_papers.local_sgd import internals, rank_state
from lit_papers.local_sgd.averaging import Groups, data_parallel_within, group_size
from lit_papers.local_sgd.checkpoints import how_to_resume, real_path
from lit_papers.local_sgd.fit import Fit, begin_fit
from lit_papers.local_sgd.handshake import Occasion, needs_all_ranks
from lit_papers.local_sgd.hooks import RoundHooks
from lit_papers.local_sgd.inventory import trained_parameters
from lit_papers.local_sgd.options import check_options, check_trainer, compare_with_saved, describe
from lit_papers.local_sgd.restarts import join_restarted
from lit_papers.local_sgd.round import Round, partition


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
    ``Timer``, ``ModelCheckpoint(train_time_interval=...)``, ``sync_batchnorm``. Learning rates that differ between the
    ranks, as ``ReduceLROnPlateau`` on an unreduced metric makes them, are told once.

    Args:
        sync_every: B, local optimizer steps a round, >= 1: after gradient accumulation; a step that a gradient scaler
            skips counts. With several optimizers (manual optimization) a batch in which any steps counts once.
        warmup_steps: so many first steps average gradients as DDP does (post-local SGD), >= 0.
        average_buffers: True: running statistics of normalisation layers are averaged, and other buffers (queues of
            keys) stay each rank's own; False: none is; or a function of a floating buffer's name and value that says
            which others are averaged too.
        average_optimizer_state: whether momentum and the like are averaged too, instead of staying local.
        sync_on_epoch_end: whether the end of an epoch ends the round.
        eval_weights: ``"average"``: validation during the fit runs on the mean of the ranks, and the local weights
            come back afterwards bit for bit; ``"local"``: each rank validates its own.
        uneven_inputs: what to do where ranks have different numbers of batches. ``"error"``: raise before the first
            step; ``"stop"``: end the epoch for all at the first averaging after some rank ran out; what needs all
            ranks in a batch is refused then.
        across_nodes_every: every how many rounds the average spans all nodes, >= 1; the rounds between average
            within each node (hierarchical local SGD). Ends of epochs and of training span all nodes.
        node_size: how many consecutive ranks count as a node; None for the processes of a machine.
        within_node: ``"local"``: every rank trains on its own between rounds; ``"ddp"``: the ranks of a node average
            gradients in every step, and rounds are between nodes; ``"ddp_find_unused_parameters_true"``: as Lightning's
            strategy of that name.
        outer_optimizer: from parameters to an optimizer that steps on the averaged change of the weights, such as
            ``functools.partial(torch.optim.SGD, lr=0.7, momentum=0.9, nesterov=True)`` (DiLoCo; SlowMo without
            Nesterov); None for plain averaging. It sees all weights as one flat tensor, or a fragment of them.
        compress: ``"bf16"``: the change since the last round is sent as bfloat16, with error feedback; None: weights.
        fragments: K, into how many parts the weights are cut, between tensors, each averaged at its own step of a
            round (Streaming DiLoCo): the most bytes at one time are about 1/K. At most ``sync_every``.
        rank_state: where a checkpoint keeps what each rank needs to go on bit for bit. ``"files"``: beside it, written
            by each rank; ``"gather"``: in it, through the first rank's memory; ``"none"``: nowhere.
        accelerator: this and the rest as for Lightning's ``DDPStrategy``.
        parallel_devices: devices of this machine.
        cluster_environment: who starts the processes.
        checkpoint_io: who writes checkpoints.
        precision_plugin: who casts.
        process_group_backend: ``"gloo"`` or ``"nccl"``; None for the usual one of the device.
        timeout: of a collective, of all groups; None for PyTorch's default of 30 minutes.
        start_method: how the processes of a machine start.

    Attributes:
        local_step: steps since the fit began, those of the warm-up included; continued on resume, as the next three.
        since_sync: local steps in the open round.
        n_syncs: averages of a round, or of a fragment, so far.
        bytes_communicated: payload this rank gave to averaging: rounds, warm-up gradients, evaluation and checkpoint
            averages; without the handshakes of a few bytes, and without what stays within a node of ``within_node``.
            0 for one process.
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
        average_buffers: bool | Callable[[str, Tensor], bool] = True,
        average_optimizer_state: bool = False,
        sync_on_epoch_end: bool = True,
        eval_weights: Literal["average", "local"] = "average",
        uneven_inputs: Literal["error", "stop"] = "error",
        across_nodes_every: int = 1,
        node_size: int | None = None,
        within_node: Literal["local", "ddp", "ddp_find_unused_parameters_true"] = "local",
        outer_optimizer: Callable[[Iterable[Tensor]], Optimizer] | None = None,
        compress: Literal["bf16"] | None = None,
        fragments: int = 1,
        rank_state: Literal["files", "gather", "none"] = "files",
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = None,
        start_method: Literal["popen", "spawn", "fork", "forkserver"] = "popen",
    ) -> None:
        internals.check_lightning()
        self.timeout = default_pg_timeout if timeout is None else timeout
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
            process_group_backend=process_group_backend,
            timeout=self.timeout,
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
        self.within_node = within_node
        self.outer_optimizer = outer_optimizer
        self.compress = compress
        self.fragments = fragments
        self.rank_state = rank_state
        check_options(self)
        self.track_drift = False
        self._round = self._new_round(None)
        self._fit: Fit | None = None
        self._loaded_from: tuple[str, bool | None] | None = None  # path and weights_only
        self._accumulates = False  # whether this backward pass does

    @property
    def local_step(self) -> int:
        """Steps since the fit began, those of the warm-up included."""
        return self._round.local_step

    @property
    def since_sync(self) -> int:
        """Local steps in the open round."""
        return self._round.since_sync

    @property
    def n_syncs(self) -> int:
        """Averages so far."""
        return self._round.n_syncs

    @property
    def bytes_communicated(self) -> int:
        """Payload that this rank gave to averages so far."""
        return self._round.bytes_communicated

    @property
    def drift(self) -> Tensor | None:
        """Distance and norm of the last average."""
        return self._round.drift

    # -- setting up ---------------------------------------------------------------------------------------------------

    def setup_environment(self) -> None:
        """Join the ranks as DDP does; a forked one with one thread, as OpenMP's are lost in a fork and waited for."""
        if self._start_method == "fork":
            torch.set_num_threads(1)
        super().setup_environment()

    def setup_distributed(self) -> None:
        """Make the process group as DDP does; that of a job that torchrun has restarted cannot meet the old one's."""
        self.set_world_ranks()
        backend = internals.process_group_backend(self)
        join_restarted(backend, self.root_device, self.global_rank, self.world_size, self.timeout)
        super().setup_distributed()

    def setup(self, trainer: Trainer) -> None:
        """Set up as DDP does, with our hooks around the callbacks."""
        RoundHooks.remove_from(trainer)
        if trainer.state.fn == TrainerFn.FITTING:
            self._round, self._accumulates = self._new_round(self.root_device), False
            self._fit = fit = begin_fit(self, self._round, trainer)
            moments = (self.start_training, self.start_validation)
            RoundHooks.add_to(trainer, fit.driver, fit.meetings, self.cluster_environment, *moments)
        super().setup(trainer)

    def _new_round(self, device: torch.device | None) -> Round:
        return Round(
            sync_every=self.sync_every,
            warmup_steps=self.warmup_steps,
            across_nodes_every=self.across_nodes_every,
            fragments=self.fragments,
            compress=self.compress,
            outer_optimizer=self.outer_optimizer,
            device=device,
        )

    @property
    def _module(self) -> LightningModule:
        assert self.lightning_module is not None, "Lightning connects the module first"  # noqa: S101
        return self.lightning_module

    @property
    def _this_fit(self) -> Fit:
        assert self._fit is not None, "set in setup"  # noqa: S101
        return self._fit

    def configure_ddp(self) -> None:
        """Start all ranks from the first rank's weights; only within a node of ``within_node`` is anything wrapped."""
        if group_size() == 1:
            return
        internals.sync_module_states(self._module)
        inventory = self._this_fit.inventory
        models = inventory.held_models()
        # one that is held apart may not be moved to the device yet, and the backend reaches no other
        reached = {
            name: all(tensor.device == self.root_device for tensor in (*model.parameters(), *model.buffers()))
            for name, model in models.items()
        }
        everywhere: list[dict[str, bool]] = [{}] * group_size()
        dist.all_gather_object(everywhere, reached)
        common = [name for name in models if all(name in theirs for theirs in everywhere)]  # some have one rank alone
        for name in common:
            if all(theirs[name] for theirs in everywhere):
                internals.sync_module_states(models[name])
        inventory.common_models = bool(common)
        if self.within_node != "local" or self.across_nodes_every > 1:
            size = self.num_processes if self.node_size is None else self.node_size
            self._round.groups = Groups.join(size, self.timeout)
        if self.within_node != "local" and group_size(self._round.groups.node) > 1:
            self.model = data_parallel_within(
                self._module,
                self._round.groups,
                self.determine_ddp_device_ids(),
                find_unused_parameters=self.within_node == "ddp_find_unused_parameters_true",
            )

    def process_dataloader(self, dataloader: object) -> object:
        """Set the sampler's epoch before workers draw from it: Lightning builds their iterator first."""
        trainer = self._module.trainer
        if trainer.state.fn == TrainerFn.FITTING:
            internals.set_sampler_epoch(trainer, dataloader)
        return dataloader

    def start_training(self, trainer: Trainer) -> None:
        """Check that all ranks are about to do the same; called before the first step.

        Raises:
            RuntimeError: they are not, or ``uneven_inputs="stop"`` is combined with what it cannot serve.
        """
        check_trainer(self, trainer)
        self._round.track_drift = self.track_drift
        partition(trained_parameters(self.optimizers), self.fragments)
        self._this_fit.meetings.begin(self.node_rank, lambda: how_to_resume(trainer))
        self._this_fit.inventory.watch(self.optimizers)
        if not self._round.has_begun:
            self._round.begin(trained_parameters(self.optimizers))
        self._this_fit.checkpoints.start_training()

    # -- training -----------------------------------------------------------------------------------------------------

    def optimizer_step(
        self,
        optimizer: Optimizer,
        closure: Callable[[], Any],
        model: LightningModule | torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> Any:
        """Step this rank's optimizer, and remember that this batch had a step."""
        self._this_fit.driver.stepped = True
        return Strategy.optimizer_step(self, optimizer, closure, model, **kwargs)

    @contextmanager
    def block_backward_sync(self) -> Generator[None, None, None]:
        """Keep the gradients of an accumulating backward pass local."""
        self._accumulates = True
        try:
            with super().block_backward_sync():
                yield
        finally:
            self._accumulates = False

    def post_backward(self, closure_loss: Tensor) -> None:
        """Average gradients in the warm-up: before unscaling and clipping, where DDP does."""
        super().post_backward(closure_loss)
        if self._round.in_warmup and not self._accumulates and group_size() > 1:
            self._round.average_gradients(trained_parameters(self.optimizers))

    def _need_all_ranks(self, what: str) -> None:
        """Refuse a collective in a batch that some rank may not have."""
        in_batch = self._fit is not None and self._fit.driver.in_batch
        if in_batch and self.uneven_inputs == "stop" and group_size() > 1:
            raise needs_all_ranks(what)

    def reduce(self, tensor: Tensor, group: Any | None = None, reduce_op: ReduceOp | str | None = "mean") -> Tensor:
        """Reduce over all ranks; an error, and no hang, in a batch that some rank may not have."""
        self._need_all_ranks("a reduction over the ranks (sync_dist=True)")
        return super().reduce(tensor, group, reduce_op)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Broadcast; an error, and no hang, in a batch that some rank may not have."""
        self._need_all_ranks("a broadcast")
        return super().broadcast(obj, src)

    def all_gather(self, tensor: Tensor, group: Any | None = None, sync_grads: bool = False) -> Tensor:
        """Gather; an error, and no hang, in a batch that some rank may not have."""
        self._need_all_ranks("a gathering")
        return super().all_gather(tensor, group, sync_grads)

    # -- evaluating and saving on the average -------------------------------------------------------------------------

    def start_validation(self) -> None:
        """Put the average of the ranks in place; before other callbacks, which may swap in theirs."""
        if self.eval_weights == "average":
            self._this_fit.stand_in.put(Occasion.EVALUATION)

    def on_validation_end(self) -> None:
        """Put this rank's own weights back; callbacks have theirs back, and saved while the average was in place."""
        super().on_validation_end()
        if self._fit is not None:
            self._fit.stand_in.put_back()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's state, of the average of all ranks; every rank must call it."""
        state_dict = super().lightning_module_state_dict
        return state_dict() if self._fit is None else self._fit.checkpoints.module_state(state_dict)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: Any = None) -> None:
        """Add what each rank needs to go on, then let the first rank write; every rank must call it."""
        path = real_path(filepath)
        if self._fit is not None:
            self._fit.checkpoints.complete(checkpoint, path, describe(self))
        super().save_checkpoint(checkpoint, filepath, storage_options=storage_options)
        if self.is_global_zero and checkpoint.get("local_sgd", {}).get("rank_state") == "files":
            rank_state.remove_side_files(path, but=checkpoint["local_sgd"]["id"])

    def remove_checkpoint(self, filepath: _PATH) -> None:
        """Remove a checkpoint with what the ranks keep beside it."""
        super().remove_checkpoint(filepath)
        if self.is_global_zero:
            rank_state.remove_side_files(str(filepath))

    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        """Load what the first rank wrote, and remember where the others' is."""
        self._loaded_from = (real_path(checkpoint_path), weights_only)
        return super().load_checkpoint(checkpoint_path, weights_only)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Resume: optimizers, and with as many processes as were saved all that is this rank's own."""
        saved = checkpoint.get("local_sgd")
        if saved is not None and self._fit is not None:  # else of another strategy
            if saved["version"] == rank_state.VERSION:
                in_mid_round = saved["world_size"] == group_size() and any(saved["steps_apart"])
                compare_with_saved(self, saved["options"], in_mid_round=in_mid_round)
            self._fit.checkpoints.load(cast(dict[str, Any], checkpoint), self._loaded_from)
            self._fit.driver.stepped = self._accumulates = False  # a learning-rate finder may have left in the middle
        super().load_optimizer_state_dict(checkpoint)

    # -- leaving ------------------------------------------------------------------------------------------------------

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the other ranks, but not after an exception: they will not come."""
        trainer = internals.trainer_of(self.lightning_module)
        if trainer is None or not trainer.interrupted:
            super().barrier(*args, **kwargs)

    def on_exception(self, exception: BaseException) -> None:
        """Leave the module with this rank's own weights, and say who is gone where a collective failed."""
        super().on_exception(exception)
        if self._fit is not None:
            self._fit.meetings.explain(exception)
            self._fit.stand_in.put_back()

    def teardown(self) -> None:
        """Take our hooks out of the trainer; first end a round that a run which was over was resumed in."""
        trainer = internals.trainer_of(self.lightning_module)
        if trainer is not None:
            if self._fit is not None and trainer.state.fn == TrainerFn.FITTING and not trainer.interrupted:
                self._fit.driver.end_training()  # as in `on_train_end`, which has no training that has nothing to do
            RoundHooks.remove_from(trainer)
        if self._fit is not None:
            self._fit.meetings.close()
        super().teardown()

"""Local SGD as a Lightning strategy: B optimizer steps on each rank, then the average of all ranks."""

import os
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from datetime import timedelta
from inspect import signature
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.fabric.utilities.types import _PATH, ReduceOp  # type: ignore[attr-defined]
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.distributed.constants import default_pg_timeout
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lit_papers.local_sgd import internals, rank_state
from lit_papers.local_sgd.averaging import Groups, group_size, numbers_in
from lit_papers.local_sgd.handshake import Greeting, Leaving, Occasion, differing_rates, exchange, rate_numbers
from lit_papers.local_sgd.hooks import RoundHooks
from lit_papers.local_sgd.internals import check_lightning
from lit_papers.local_sgd.inventory import Inventory, learning_rates, matching_state, trained_parameters
from lit_papers.local_sgd.options import check_options, check_trainer, compare_with_saved, describe
from lit_papers.local_sgd.peers import Peers
from lit_papers.local_sgd.round import Due, Round, partition

# torch 2.14 renamed it
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


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
        check_lightning()
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
        self._reset(None)

    def _reset(self, device: torch.device | None) -> None:
        """Forget an earlier fit."""
        self._round = Round(
            sync_every=self.sync_every,
            warmup_steps=self.warmup_steps,
            across_nodes_every=self.across_nodes_every,
            fragments=self.fragments,
            compress=self.compress,
            outer_optimizer=self.outer_optimizer,
            device=device,
        )
        self._inventory: Inventory | None = None
        self._resumed_from: tuple[str, bool | None] | None = None  # path and weights_only
        self._random_states: dict[str, Any] | None = None  # of a checkpoint of the middle of an epoch
        self._told: set[str] = set()  # what the user was warned of
        self._peers: Peers | None = None  # who is still there
        self.in_batch = False  # whether this rank is in a training batch
        self._stepped = False  # whether an optimizer stepped in this batch
        self._just_met = True  # whether all ranks are at the same batch, and nothing was broadcast since
        self._blocked = False  # whether this backward pass accumulates
        self._own_values: list[tuple[Tensor, Tensor]] | None = None  # while the average is in their place
        self._saved_state: Mapping[str, Any] = {}  # of the module, in the checkpoint that is being made
        self._saved_models: list[tuple[Tensor, Tensor]] = []  # callbacks' tensors and their averages, for the same
        self.requeue_asked = False  # whether this rank got SLURM's signal
        self.requeue_agreed = False  # whether all ranks know that some rank did

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

    def setup(self, trainer: Trainer) -> None:
        """Set up as DDP does, with our hooks around the callbacks."""
        RoundHooks.remove_from(trainer)
        if trainer.state.fn == TrainerFn.FITTING:
            resumed_from = self._resumed_from
            self._reset(self.root_device)
            self._resumed_from = resumed_from
            callbacks: list[Callback] = list(trainer.callbacks)  # type: ignore[attr-defined]
            self._inventory = Inventory(self._module, callbacks, self.average_buffers)
            RoundHooks.add_to(trainer, self)
        super().setup(trainer)

    def configure_ddp(self) -> None:
        """Start all ranks from the first rank's weights; only within a node of ``within_node`` is anything wrapped."""
        if group_size() == 1:
            return
        internals.sync_module_states(self._module)
        for model in self._state_of_rank.callback_models().values():
            internals.sync_module_states(model)
        if self.within_node != "local" or self.across_nodes_every > 1:
            size = self.num_processes if self.node_size is None else self.node_size
            self._round.groups = Groups.join(size, self.timeout)
        if self.within_node != "local" and group_size(self._round.groups.node) > 1:
            buffers: dict[str, Any] = {_SYNC_BUFFERS: False}  # they are averaged at the end of a round, as everywhere
            self.model = DistributedDataParallel(
                self._module,
                device_ids=self.determine_ddp_device_ids(),
                process_group=self._round.groups.node,
                **buffers,
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
        partition(self._parameters(), self.fragments)
        if group_size() > 1:
            self._peers = Peers(self.node_rank, lambda: how_to_resume(trainer))
        self._state_of_rank.watch(self.optimizers)
        if not self._round.has_begun:
            self._round.begin(self._parameters())
        if self._random_states is not None:  # the loaders have drawn a seed, which the saved run drew before
            if internals.goes_on_in_mid_epoch(trainer):
                rank_state.set_random_states(self._random_states)
            self._random_states = None

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
        """Keep the gradients of an accumulating backward pass local."""
        self._blocked = True
        try:
            with super().block_backward_sync():
                yield
        finally:
            self._blocked = False

    def post_backward(self, closure_loss: Tensor) -> None:
        """Average gradients in the warm-up: before unscaling and clipping, where DDP does."""
        super().post_backward(closure_loss)
        if self._round.in_warmup and not self._blocked and group_size() > 1:
            self._round.average_gradients(self._parameters())

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
        in_warmup = self._round.in_warmup
        self._round.count(stepped=stepped)
        if in_warmup:
            return self._end_warmup_batch(stepped, leaving)
        self._round.together = False
        if self.within_node != "local" and self._module.trainer.num_training_batches == float("inf"):
            # a rank that is out of data must say so before its node waits for its gradients
            self._greet(Occasion.STEP_WITHIN_NODE, 0, leaving, self._round.groups.node)
        stop = self.uneven_inputs == "stop"
        over = bool(leaving) and (stop or (self.sync_on_epoch_end and self._round.weights_apart))
        due = self._round.due(stepped=stepped, over=over)
        if due is not None:
            return self._end_round(leaving, due, over=over)
        return leaving

    def _end_warmup_batch(self, stepped: bool, leaving: Leaving) -> Leaving:
        if stepped:
            self._just_met = True
            if not self._round.in_warmup:
                self._round.begin(self._parameters())
        return self._greet(Occasion.WARMUP, 0, leaving)[0]  # small beside the gradients; streams may end apart

    def end_epoch(self) -> None:
        """End the round with the epoch, where its last batch did not."""
        if self._round.weights_apart and (self.sync_on_epoch_end or self.uneven_inputs == "stop"):
            self._end_round(Leaving.EPOCH, self._round.due(stepped=False, over=True), over=True)

    def end_training(self) -> None:
        """Make all ranks equal."""
        if self._round.weights_apart:
            due = self._round.due(stepped=False, over=True)
            self._end_round(Leaving.TRAINING, due, over=True, occasion=Occasion.TRAINING_END)
        elif group_size() > 1 and (self._round.batches_apart or self._round.models_apart):
            self._average_in_place(Occasion.TRAINING_END)
        self._round.batches_apart = self._round.models_apart = False

    def ranks_just_met(self) -> bool:
        """Whether all ranks are at the same batch; True once after each average over all of them."""
        met, self._just_met = self._just_met, False
        return met

    def _end_round(
        self, leaving: Leaving, due: Due | None, *, over: bool, occasion: Occasion = Occasion.ROUND
    ) -> Leaving:
        assert due is not None  # noqa: S101
        group = None if due.everywhere else self._round.groups.node
        several = group_size(group) > 1
        parameters = self._parameters()
        buffers = self._state_of_rank.statistics()
        state = matching_state(self.optimizers) if self.average_optimizer_state else []
        told = leaving
        if several:
            numbers = self._round.numbers(parameters, due) + numbers_in(buffers)
            told, state_is_alike = self._greet(occasion, numbers, leaving, group, numbers_in(state))
            over = over or (bool(told) and self.uneven_inputs == "stop")  # for all, where one is out of data
            if not state_is_alike:  # a scaler skipped the first step on some rank
                state = []
        alike = [*state, *self._state_of_rank.followers(self.optimizers)] if several else state
        models = self._state_of_rank.moving_models() if several and over else []
        self._round.end(parameters, due, alike=[*alike, *models], others=buffers)
        if over:
            self._round.models_apart = False
        if due.everywhere:
            self._just_met = True
        self._warn_of_own_buffers(several)
        return told

    def _greet(
        self,
        occasion: Occasion,
        numbers: int,
        leaving: Leaving = Leaving.NO,
        group: dist.ProcessGroup | None = None,
        state_numbers: int = 0,
    ) -> tuple[Leaving, bool]:
        """The handshake: who leaves most, and whether all have the same optimizer state to average."""
        if group_size(group) == 1:
            return leaving, True
        own = Greeting(
            occasion,
            self.n_syncs,
            numbers,
            self.local_step,
            leaving,
            state_numbers,
            self.requeue_asked,
            0
            if occasion in (Occasion.WARMUP, Occasion.STEP_WITHIN_NODE)
            else self._state_of_rank.look(self.optimizers),
            *rate_numbers(learning_rates(self.optimizers)),
        )
        wait = None if self._peers is None else self._peers.wait
        greetings = exchange(own, self.root_device, group, even=self.uneven_inputs == "error", wait=wait)
        if len({greeting.moved for greeting in greetings}) > 1:
            gathered: list[Any] = [None] * len(greetings)
            dist.all_gather_object(gathered, self._state_of_rank.moved, group=group)
            self._state_of_rank.moved.update(*gathered)
        if group is None:
            self.requeue_agreed = any(greeting.requeue for greeting in greetings)
        trouble = differing_rates(greetings)
        # schedulers of an epoch's end have stepped on the ranks that know of it
        if trouble is not None and len({greeting.leaving for greeting in greetings}) == 1:
            self._warn_once("learning rates", trouble)
        told = Leaving(max(greeting.leaving for greeting in greetings))
        return told, len({greeting.state_numbers for greeting in greetings}) == 1

    def _warn_once(self, what: str, message: str) -> None:
        if what not in self._told:
            self._told.add(what)
            rank_zero_warn(message)

    def _warn_of_own_buffers(self, several: bool) -> None:
        names = self._state_of_rank.moving_buffers() if several and self.average_buffers is not False else []
        if names:
            self._warn_once(
                "buffers",
                f"the buffers {', '.join(names)} change in training and stay each rank's own: only running statistics "
                "of normalisation layers are averaged. Checkpoints hold the first rank's. To average them too, pass "
                "LocalSGDStrategy(average_buffers=<a function of a buffer's name and value>)",
            )

    # -- what needs all ranks at one batch ----------------------------------------------------------------------------

    def _need_all_ranks(self, what: str) -> None:
        """Refuse a collective in a batch that some rank may not have."""
        if self.in_batch and self.uneven_inputs == "stop" and group_size() > 1:
            raise RuntimeError(
                f"uneven_inputs='stop' and {what} in a training batch exclude each other: ranks that ran out of data "
                "would never answer. It is asked for by self.log(..., on_step=True, sync_dist=True), Timer and the "
                "like: log without sync_dist, or with on_step=False, on_epoch=True"
            )

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

    @property
    def _module(self) -> LightningModule:
        assert self.lightning_module is not None, "Lightning connects the module first"  # noqa: S101
        return self.lightning_module

    @property
    def _state_of_rank(self) -> Inventory:
        assert self._inventory is not None, "set in setup"  # noqa: S101
        return self._inventory

    @property
    def _interrupted(self) -> bool:
        """Whether an exception ended training here: the other ranks are elsewhere, and would never answer."""
        trainer = internals.trainer_of(self.lightning_module)
        return trainer is not None and trainer.interrupted

    def _parameters(self) -> list[Tensor]:
        return trained_parameters(self.optimizers)  # anew each time: callbacks unfreeze layers during the fit

    def _differing(self, occasion: Occasion) -> tuple[list[Tensor], list[Tensor]]:
        """What is averaged, and has moved on some rank since all were equal; all ranks greet each other first.

        Returns:
            What is the same within a node that trains as one, and what is not.
        """
        if group_size() == 1 or self._inventory is None:
            return [], []
        weights = self._parameters() if self._round.weights_apart else []
        buffers = self._inventory.statistics() if self._round.batches_apart else []
        models_apart = self._round.models_apart and bool(self._inventory.callback_models())
        if not (self._round.weights_apart or self._round.batches_apart or models_apart):
            return [], []
        self._greet(occasion, numbers_in([*weights, *buffers]))
        followers = self._inventory.followers(self.optimizers) if self._round.batches_apart else []
        models = self._inventory.moving_models() if models_apart else []
        return [*weights, *followers, *models], buffers

    def _average_in_place(self, occasion: Occasion) -> None:
        self._round.average_in_place(*self._differing(occasion))

    def _put_average_in_place(self, occasion: Occasion) -> None:
        alike, others = self._differing(occasion)
        self._own_values = [(tensor, tensor.detach().clone()) for tensor in (*alike, *others)]
        self._round.average_in_place(alike, others)

    def _put_own_values_back(self) -> None:
        own_values, self._own_values = self._own_values, None
        for tensor, value in own_values or ():
            tensor.detach().copy_(value)

    def on_validation_start(self) -> None:
        """Put the average of the ranks in place; callbacks' and the module's hooks of this name ran before."""
        super().on_validation_start()
        if self._module.trainer.state.fn == TrainerFn.FITTING and self.eval_weights == "average":
            self._put_average_in_place(Occasion.EVALUATION)

    def on_validation_end(self) -> None:
        """Put this rank's own weights back; `ModelCheckpoint` saved before, while the average was in place."""
        super().on_validation_end()
        self._put_own_values_back()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's state, of the average of all ranks; every rank must call it."""
        self._saved_models = []
        if self._interrupted or self._own_values is not None or group_size() == 1:
            self._saved_state = state = super().lightning_module_state_dict()
            return state
        self._put_average_in_place(Occasion.CHECKPOINT)
        try:
            state = super().lightning_module_state_dict()
            if self._own_values:
                state = apply_to_collection(state, Tensor, torch.clone)  # type: ignore[unreachable]
                models = self._state_of_rank.callback_tensors().values()
                own = {id(tensor) for tensor, _ in self._own_values}
                self._saved_models = [(tensor, tensor.detach().clone()) for tensor in models if id(tensor) in own]
            self._saved_state = state
            return state
        finally:
            self._put_own_values_back()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: Any = None) -> None:
        """Add what each rank needs to go on, then let the first rank write; every rank must call it."""
        path = os.path.realpath(filepath) if "://" not in str(filepath) else str(filepath)
        if self._saved_models:  # callbacks were asked after the ranks' own weights came back
            averages = {(t.data_ptr(), t.shape): average for t, average in self._saved_models}
            checkpoint.update(
                apply_to_collection(dict(checkpoint), Tensor, lambda t: averages.get((t.data_ptr(), t.shape), t))
            )
        if "optimizer_states" in checkpoint and self._inventory is not None:  # not where only weights are saved
            checkpoint["local_sgd"] = self._resume_state(checkpoint, path)
        super().save_checkpoint(checkpoint, filepath, storage_options=storage_options)
        if self.is_global_zero and checkpoint.get("local_sgd", {}).get("rank_state") == "files":
            rank_state.remove_side_files(path, but=checkpoint["local_sgd"]["id"])
        self._saved_state, self._saved_models = {}, []

    def remove_checkpoint(self, filepath: _PATH) -> None:
        """Remove a checkpoint with what the ranks keep beside it."""
        super().remove_checkpoint(filepath)
        if self.is_global_zero:
            rank_state.remove_side_files(str(filepath))

    def _resume_state(self, checkpoint: dict[str, Any], path: str) -> dict[str, Any]:
        alone = group_size() == 1
        kept: dict[str, Any] = {"rank_state": "none"}
        if not alone and not self._interrupted:
            own = {id(tensor): value for tensor, value in self._own_values or ()}
            trainer = self._module.trainer
            pieces = (
                {}
                if self.rank_state == "none"
                else rank_state.own_pieces(
                    checkpoint, trainer, self._state_of_rank, self._round, lambda tensor: own.get(id(tensor), tensor)
                )
            )
            kept = rank_state.save(checkpoint, pieces, self._saved_state, self.rank_state, path, self.checkpoint_io)
        elif alone:
            kept["random"] = rank_state.random_states()
        return {
            "version": rank_state.VERSION,
            "sync_every": self.sync_every,
            "options": describe(self),
            "world_size": group_size(),
            "consistent": alone or not self._interrupted,
            **self._round.state_dict(),
            "anchors": self._round.anchors(self._parameters()),
            **kept,
        }

    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        """Load what the first rank wrote, and remember where the others' is."""
        path = os.path.realpath(checkpoint_path) if "://" not in str(checkpoint_path) else str(checkpoint_path)
        self._resumed_from = (path, weights_only)
        return super().load_checkpoint(checkpoint_path, weights_only)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Resume: optimizers, and with as many processes as were saved all that is this rank's own."""
        saved = checkpoint.get("local_sgd")
        if saved is None or self._inventory is None:  # of another strategy
            super().load_optimizer_state_dict(checkpoint)
            return
        same_ranks = saved["world_size"] == group_size() and saved["version"] == rank_state.VERSION
        if saved["version"] == rank_state.VERSION:
            compare_with_saved(self, saved["options"], in_mid_round=same_ranks and any(saved["steps_apart"]))
        self._round.load_counters(saved, same_ranks=same_ranks)
        if saved["version"] == rank_state.VERSION:
            self._round.load_anchors(self._parameters(), saved["anchors"] if same_ranks else (), saved["outer"])
        pieces = self._pieces_of_this_rank(saved)
        own = cast(dict[str, Any], checkpoint)  # Lightning loads its schedulers next
        if pieces is not None:
            index = saved["ranks"][self.global_rank]
            trainer = self._module.trainer
            rank_state.restore(pieces, index, own, trainer, self._state_of_rank, self._round)
            self._random_states = {place[1]: piece for place, piece in pieces.items() if place[0] == "random"}
        elif "random" in saved and group_size() == 1:
            self._random_states = saved["random"]
            rank_state.set_random_states(saved["random"])
        super().load_optimizer_state_dict(own)
        self._stepped = self._blocked = False  # a learning-rate finder may have left in the middle

    def _pieces_of_this_rank(self, saved: Mapping[str, Any]) -> rank_state.Pieces | None:
        """What is this rank's own in a checkpoint, or None, with a warning, where it has nothing for this run.

        Raises:
            RuntimeError: it belongs to the checkpoint and cannot be read; on all ranks where on one.
        """
        if group_size() == 1 and saved["world_size"] == 1:
            return None
        reason = rank_state.why_not_exact(saved, group_size(), self.rank_state)
        if reason is not None:
            rank_zero_warn(reason)
            return None
        assert self._resumed_from is not None  # noqa: S101
        path, weights_only = self._resumed_from
        pieces, trouble = None, None
        try:
            pieces = rank_state.load(
                saved,
                self.global_rank,
                path,
                lambda file: self.checkpoint_io.load_checkpoint(file, weights_only=weights_only),
            )
        except Exception as error:
            trouble = str(error)
        troubles: list[Any] = [None] * group_size()
        dist.all_gather_object(troubles, trouble)
        found = [each for each in troubles if each is not None]
        if found:
            raise RuntimeError("\n".join(found))
        return pieces

    # -- leaving ------------------------------------------------------------------------------------------------------

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the other ranks, but not after an exception: they will not come."""
        if not self._interrupted:
            super().barrier(*args, **kwargs)

    def on_exception(self, exception: BaseException) -> None:
        """Leave the module with this rank's own weights, and say who is gone where a collective failed."""
        super().on_exception(exception)
        failed = isinstance(exception, RuntimeError) and any(word in str(exception) for word in ("gloo", "NCCL"))
        if failed and self._peers is not None:
            exception.args = (f"{exception}\n{self._peers.explain(self._peers.lost())}",)
        self._put_own_values_back()

    def teardown(self) -> None:
        """Take our hooks out of the trainer."""
        trainer = internals.trainer_of(self.lightning_module)
        if trainer is not None:
            RoundHooks.remove_from(trainer)
        if self._peers is not None:
            self._peers.close()
            self._peers = None
        super().teardown()


def how_to_resume(trainer: Trainer) -> str:
    """Which checkpoint to go on from, for people."""
    found = [
        str(getattr(saver, "last_model_path", "") or getattr(saver, "best_model_path", ""))
        for saver in trainer.checkpoint_callbacks
    ]
    paths = [path for path in found if path]
    if not paths:
        return "No checkpoint was saved before: start again, with a ModelCheckpoint that saves more often"
    return f"Go on from the last checkpoint: trainer.fit(..., ckpt_path={paths[0]!r})"

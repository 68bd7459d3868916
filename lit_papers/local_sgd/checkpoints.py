"""A checkpoint of local SGD: what Lightning saves, of the average of all ranks, and what each rank needs to go on."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lit_papers.local_sgd import internals, rank_state
from lit_papers.local_sgd.averaging import group_size
from lit_papers.local_sgd.handshake import Occasion
from lit_papers.local_sgd.inventory import Inventory, trained_parameters
from lit_papers.local_sgd.rank_state import RankState
from lit_papers.local_sgd.round import Round
from lit_papers.local_sgd.stand_in import StandIn


class RankCheckpoints:
    """Saves and loads for one rank, in the order in which Lightning asks a strategy.

    Args:
        trainer: of this rank.
        rounds: where it is.
        inventory: of its module and callbacks.
        stand_in: the average, for the module's state.
        how: where the ranks' own state is kept.
        io: who writes.
    """

    def __init__(
        self, trainer: Trainer, rounds: Round, inventory: Inventory, stand_in: StandIn, how: RankState, io: CheckpointIO
    ) -> None:
        self._trainer = trainer
        self._round = rounds
        self._inventory = inventory
        self._stand_in = stand_in
        self._how = how
        self._io = io
        self._saved_state: Mapping[str, Any] = {}  # of the module, in the checkpoint that is being made
        self._saved_models: list[tuple[Tensor, Tensor]] = []  # callbacks' tensors and their averages, for the same
        self._random_states: dict[str, Any] | None = None  # to go on with, once the loaders have drawn their seed

    # -- saving -------------------------------------------------------------------------------------------------------

    def module_state(self, state_dict: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The module's state, of the average of all ranks; every rank must call it.

        Args:
            state_dict: asks the module.
        """
        self._saved_models = []
        if self._trainer.interrupted or self._stand_in.is_in_place or group_size() == 1:
            self._saved_state = state = state_dict()
            return state
        self._stand_in.put(Occasion.CHECKPOINT)
        try:
            state = state_dict()
            own = self._stand_in.own_values()
            if own:
                state = apply_to_collection(state, Tensor, lambda tensor: tensor.clone())
                kept = self._inventory.kept_tensors(self._trainer.optimizers)
                models = (*self._inventory.held_tensors().values(), *kept.values())
                self._saved_models = [(tensor, tensor.detach().clone()) for tensor in models if id(tensor) in own]
            self._saved_state = state
            return state
        finally:
            self._stand_in.put_back()

    def complete(self, checkpoint: dict[str, Any], path: str, options: dict[str, Any]) -> None:
        """Add to what Lightning is about to write what the ranks need; every rank must call it.

        Args:
            checkpoint: of this rank.
            path: where the first rank will write its own.
            options: of the strategy, in plain types.
        """
        if self._saved_models:  # callbacks were asked after the ranks' own weights came back
            averages = {(t.data_ptr(), t.shape): average for t, average in self._saved_models}
            checkpoint.update(
                apply_to_collection(dict(checkpoint), Tensor, lambda t: averages.get((t.data_ptr(), t.shape), t))
            )
        if "optimizer_states" in checkpoint:  # not where only weights are saved
            alone, consistent = group_size() == 1, group_size() == 1 or not self._trainer.interrupted
            checkpoint["local_sgd"] = {
                "version": rank_state.VERSION,
                "sync_every": options["sync_every"],
                "options": options,
                "world_size": group_size(),
                "consistent": consistent,
                **self._round.state_dict(),
                "anchors": self._round.anchors(trained_parameters(self._trainer.optimizers)),
                "rank_state": "none",
            }
            if alone:
                checkpoint["local_sgd"]["random"] = rank_state.random_states()
            elif consistent:
                checkpoint["local_sgd"].update(self._keep_pieces(checkpoint, path))
        self._saved_state, self._saved_models = {}, []

    def _keep_pieces(self, checkpoint: dict[str, Any], path: str) -> dict[str, Any]:
        if self._how == "none":
            return {}
        own = self._stand_in.own_values()
        pieces = rank_state.own_pieces(
            checkpoint, self._trainer, self._inventory, self._round, lambda tensor: own.get(id(tensor), tensor)
        )
        return rank_state.save(pieces, self._saved_state, self._how, path, self._io)

    # -- going on -----------------------------------------------------------------------------------------------------

    def load(self, checkpoint: dict[str, Any], loaded_from: tuple[str, bool | None] | None) -> None:
        """Go on where the saved run was; with as many processes each with all that is its own.

        Args:
            checkpoint: that Lightning has read on this rank; its optimizer and scheduler states, which are loaded
                next, are replaced by this rank's.
            loaded_from: its path, and ``weights_only`` for what lies beside it.

        Raises:
            RuntimeError: a part is missing, or the checkpoint is of other parameters; on all ranks where on one.
        """
        saved = checkpoint["local_sgd"]
        known = saved["version"] == rank_state.VERSION
        same_ranks = known and saved["world_size"] == group_size()
        self._round.load_counters(saved, same_ranks=same_ranks)
        if known:
            parameters = trained_parameters(self._trainer.optimizers)
            self._round.load_anchors(parameters, saved["anchors"] if same_ranks else (), saved["outer"])
        pieces = self._pieces_of_this_rank(saved, loaded_from)
        if pieces is not None:
            index = saved["ranks"][self._trainer.global_rank]
            rank_state.restore(pieces, index, checkpoint, self._trainer, self._inventory, self._round)
            self._random_states = {place[1]: piece for place, piece in pieces.items() if place[0] == "random"}
        elif "random" in saved and group_size() == 1:
            self._random_states = saved["random"]
            rank_state.set_random_states(saved["random"])

    def start_training(self) -> None:
        """Go on with the random streams of the middle of an epoch: setting up the loaders has drawn from them."""
        if self._random_states is not None and internals.goes_on_in_mid_epoch(self._trainer):
            rank_state.set_random_states(self._random_states)
        self._random_states = None

    def _pieces_of_this_rank(
        self, saved: Mapping[str, Any], loaded_from: tuple[str, bool | None] | None
    ) -> rank_state.Pieces | None:
        """What is this rank's own in a checkpoint, or None, with a warning, where it has nothing for this run."""
        if group_size() == 1 and saved["world_size"] == 1:
            return None
        reason = rank_state.why_not_exact(saved, group_size(), self._how)
        if reason is not None:
            rank_zero_warn(reason)
            return None
        assert loaded_from is not None  # noqa: S101
        path, weights_only = loaded_from
        pieces, trouble = None, None
        try:
            pieces = rank_state.load(
                saved,
                self._trainer.global_rank,
                path,
                lambda file: self._io.load_checkpoint(file, weights_only=weights_only),
            )
        except Exception as error:
            trouble = str(error)
        troubles: list[Any] = [None] * group_size()
        dist.all_gather_object(troubles, trouble)
        found = [each for each in troubles if each is not None]
        if found:
            raise RuntimeError("\n".join(found))
        return pieces


def real_path(path: _PATH) -> str:
    """A path without links, beside which the ranks' files lie; a URL as it is."""
    return str(path) if "://" in str(path) else os.path.realpath(path)


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

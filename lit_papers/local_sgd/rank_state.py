"""What a checkpoint keeps of each process, so that training goes on bit for bit where it stopped.

A state is cut into pieces, each by its place: a parameter, a buffer, one parameter's optimizer state, a random stream.
A piece that is what the checkpoint holds anyway, or what an earlier rank keeps, is not kept again.
"""

import hashlib
import pickle
import random
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities import move_data_to_device
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX

from lit_papers.local_sgd.averaging import group_size
from lit_papers.local_sgd.internals import set_loader_positions
from lit_papers.local_sgd.inventory import Inventory, trained_parameters
from lit_papers.local_sgd.round import Round

RankState = Literal["files", "gather", "none"]
Place = tuple[Any, ...]
Pieces = dict[Place, Any]
VERSION = 2
_CHECKPOINT = -1  # in place of a rank: the piece is in the checkpoint itself


def own_pieces(
    checkpoint: Mapping[str, Any],
    trainer: Trainer,
    inventory: Inventory,
    rounds: Round,
    local_value: Callable[[Tensor], Tensor],
) -> Pieces:
    """All that may differ between processes, of this one.

    Args:
        checkpoint: what Lightning is about to save on this process.
        trainer: of this process.
        inventory: of its module and callbacks.
        rounds: where it is.
        local_value: from a tensor to this process' value of it, while the average is in place.
    """
    pieces: Pieces = {}
    names = inventory.names()
    trained = trained_parameters(trainer.optimizers) if rounds.weights_apart else []
    for index, parameter in enumerate(trained):
        pieces["parameter", names.get(id(parameter), f"#{index}")] = local_value(parameter).detach()
    if rounds.batches_apart:
        for name, parameter in inventory.untrained(trainer.optimizers).items():
            pieces["parameter", name] = local_value(parameter).detach()
    for name, buffer in inventory.saved_buffers().items():
        pieces["buffer", name] = local_value(buffer).detach()
    for name, value in checkpoint["state_dict"].items():
        if name.rpartition(".")[2] == _EXTRA_STATE_KEY_SUFFIX:  # of `get_extra_state`: memories, counts
            pieces["extra", name] = value
    if rounds.models_apart:
        for name, tensor in inventory.held_tensors().items():
            pieces["callback", name] = local_value(tensor).detach()
        for name, tensor in inventory.kept_tensors(trainer.optimizers).items():
            pieces["kept", name] = local_value(tensor).detach()
    for index, state in enumerate(checkpoint["optimizer_states"]):
        for key, value in state.items():
            if key == "state":
                pieces |= {("optimizer", index, "state", parameter): each for parameter, each in value.items()}
            else:
                pieces["optimizer", index, key] = value
    pieces |= {("scheduler", index): state for index, state in enumerate(checkpoint["lr_schedulers"])}
    pieces["precision",] = trainer.precision_plugin.state_dict()
    pieces["loaders",] = checkpoint["loops"]["fit_loop"].get("combined_loader", [])
    pieces |= {("compression", name): owed for name, owed in rounds.own_state().items()}
    pieces |= {("random", name): state for name, state in random_states().items()}
    on_cpu: Pieces = move_data_to_device(pieces, "cpu")
    return on_cpu


def share_out(pieces: Pieces, state_dict: Mapping[str, Any]) -> tuple[list[dict[Place, int]], Pieces]:
    """Agree on who keeps which piece; every process must call it.

    Args:
        pieces: this process' own.
        state_dict: the module's as it is in the checkpoint.

    Returns:
        For each rank, the rank that keeps each of its pieces; and what this process is to keep.
    """
    rank, size = dist.get_rank(), group_size()
    digests = {place: _digest(piece) for place, piece in pieces.items()}
    in_checkpoint: dict[Place, bytes] = {}
    if rank == 0:
        for place in pieces:
            if place[0] in ("parameter", "buffer", "extra") and place[1] in state_dict:
                in_checkpoint[place] = _digest(state_dict[place[1]])
            elif place[0] in ("optimizer", "scheduler", "precision", "loaders"):
                in_checkpoint[place] = digests[place]
    gathered: list[Any] = [None] * size
    dist.all_gather_object(gathered, (digests, in_checkpoint))
    keepers = dict.fromkeys(gathered[0][1].items(), _CHECKPOINT)
    index = []
    for each, (theirs, _) in enumerate(gathered):
        index.append({place: keepers.setdefault((place, digest), each) for place, digest in theirs.items()})
    return index, {place: piece for place, piece in pieces.items() if index[rank][place] == rank}


def save(
    pieces: Pieces,
    state_dict: Mapping[str, Any],
    how: Literal["files", "gather"],
    path: str,
    io: CheckpointIO,
) -> dict[str, Any]:
    """Write or gather the pieces; every process must call it before the first one writes the checkpoint.

    Returns:
        What the checkpoint is to hold of them, complete on the first process.
    """
    index, kept = share_out(pieces, state_dict)
    gathered: list[Any] | None = [kept]
    name = [uuid.uuid4().hex]
    dist.broadcast_object_list(name, 0)
    if how == "gather":
        gathered = [None] * group_size() if dist.get_rank() == 0 else None
        dist.gather_object(kept, gathered)
    elif dist.get_rank() > 0 and kept:
        io.save_checkpoint({"pieces": kept}, side_file(path, name[0], dist.get_rank()))
    if how == "files":
        dist.barrier()  # the checkpoint appears when all that it needs is there
    return {"rank_state": how, "id": name[0], "ranks": index, "pieces": gathered}


def side_file(path: str, name: str, rank: int) -> str:
    """Where a process keeps its pieces, beside the checkpoint at ``path``."""
    return f"{path}.ranks/{name}-rank{rank}.pt"


def remove_side_files(path: str, *, but: str | None = None) -> None:
    """Delete what belongs to a checkpoint, or to earlier ones of its name: all but those called ``but``."""
    folder = f"{path}.ranks"
    files = get_filesystem(folder)
    if not files.exists(folder):
        return
    if but is None:
        files.rm(folder, recursive=True)
        return
    for file in files.ls(folder, detail=False):
        if not str(file).rsplit("/", 1)[-1].startswith(but):
            files.rm(file)


def why_not_exact(saved: Mapping[str, Any], world_size: int, wanted: RankState) -> str | None:
    """Why ranks do not go on from their own state; None where they can."""
    average = "training goes on from the averaged weights, with the optimizer state of the first rank on every rank"
    if not saved["consistent"]:
        return (
            "this checkpoint was saved after an exception and holds the weights of the first rank only: training "
            "goes on from those on every rank"
        )
    if saved["world_size"] != world_size:
        return f"this checkpoint is of {saved['world_size']} processes, now there are {world_size}: {average}"
    if saved["version"] != VERSION:
        return f"this checkpoint is of an earlier lit-papers, whose state of each rank is not read any more: {average}"
    if saved["rank_state"] == "none":
        return f"this checkpoint was saved with rank_state='none': {average}"
    if wanted == "none":
        return f"rank_state='none': {average}"
    return None


def load(saved: Mapping[str, Any], rank: int, path: str, load_file: Callable[[str], Any]) -> Pieces:
    """This process' pieces that are not in the checkpoint's own place.

    Raises:
        RuntimeError: a side file is missing; the message says which, and the ways out.
    """
    pieces: Pieces = {}
    index = saved["ranks"][rank]
    for keeper in sorted(set(index.values()) - {_CHECKPOINT}):
        if saved["rank_state"] == "gather" or keeper == 0:
            kept = saved["pieces"][keeper]
        else:
            file = side_file(path, saved["id"], keeper)
            try:
                kept = load_file(file)["pieces"]
            except FileNotFoundError:
                raise RuntimeError(
                    f"rank {rank} needs {file}, which is missing: a checkpoint is its file and the folder beside it, "
                    "so move both. To go on from the averaged weights, with the first rank's optimizer state on every "
                    "rank, pass LocalSGDStrategy(rank_state='none')"
                ) from None
        pieces |= {place: kept[place] for place, where in index.items() if where == keeper}
    return pieces


def restore(
    pieces: Pieces,
    index: Mapping[Place, int],
    checkpoint: dict[str, Any],
    trainer: Trainer,
    inventory: Inventory,
    rounds: Round,
) -> None:
    """Put one process' state in place; the checkpoint's own was loaded before, and schedulers are next.

    Args:
        pieces: from `load`.
        index: of this rank: places of all its pieces.
        checkpoint: whose optimizer and scheduler states are replaced by this process'.
        trainer: of this process.
        inventory: of its module and callbacks.
        rounds: to go on.

    Raises:
        RuntimeError: the checkpoint has other parameters than the module and its optimizers.
    """
    states = []
    for number, state in enumerate(checkpoint["optimizer_states"]):
        own = dict(state)
        if "state" in state:
            places = [place for place in index if place[:3] == ("optimizer", number, "state")]
            own["state"] = {place[3]: pieces.get(place, state["state"].get(place[3])) for place in places}
        own |= {key: pieces["optimizer", number, key] for key in state if ("optimizer", number, key) in pieces}
        states.append(own)
    checkpoint["optimizer_states"] = states
    checkpoint["lr_schedulers"] = [
        pieces.get(("scheduler", number), state) for number, state in enumerate(checkpoint["lr_schedulers"])
    ]
    names = inventory.names()
    trained = trained_parameters(trainer.optimizers)
    tensors: dict[Place, Tensor] = {
        **{("parameter", name): value for name, value in inventory.untrained(trainer.optimizers).items()},
        **{("parameter", names.get(id(value), f"#{number}")): value for number, value in enumerate(trained)},
        **{("buffer", name): value for name, value in inventory.saved_buffers().items()},
        **{("callback", name): value for name, value in inventory.held_tensors().items()},
        **{("kept", name): value for name, value in inventory.kept_tensors(trainer.optimizers).items()},
    }
    late = {place[1].partition(":")[0] for place in pieces if place[0] == "callback" and place not in tensors}
    if late:
        rank_zero_warn(
            f"the checkpoint has {', '.join(sorted(late))} of each rank, which is not there where training resumes and "
            "begins anew: make it before, in `setup` or `on_fit_start`"
        )
    for place, piece in pieces.items():
        if place[0] in ("kept", "callback") and place not in tensors:
            continue  # made later, or for a validation that is over
        if place[0] in ("parameter", "buffer", "callback", "kept"):
            if place not in tensors or tensors[place].shape != piece.shape:
                raise RuntimeError(
                    f"the checkpoint has the {place[0]} {place[1]} of shape {tuple(piece.shape)} of each rank, which "
                    "the module, its optimizers and the callbacks now do not have: resume what was saved"
                )
            tensors[place].detach().copy_(piece)
        elif place[0] == "extra":
            inventory.module.get_submodule(place[1].rpartition(".")[0]).set_extra_state(piece)
    if pieces.get(("precision",)):
        trainer.precision_plugin.load_state_dict(pieces["precision",])
    if pieces.get(("loaders",)):
        set_loader_positions(trainer, pieces["loaders",])
    rounds.load_own_state({place[1]: piece for place, piece in pieces.items() if place[0] == "compression"})
    set_random_states({place[1]: piece for place, piece in pieces.items() if place[0] == "random"})


def random_states() -> dict[str, Any]:
    """This process' random streams, in types that `torch.load` takes without executing code."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  # the stream that users' transforms draw from
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Go on with saved random streams."""
    if "python" in states:
        version, numbers, gauss = states["python"]
        random.setstate((version, tuple(numbers), gauss))
    if "numpy" in states:
        kind, keys, *rest = states["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    if "torch" in states:
        torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _digest(piece: Any) -> bytes:
    hashed = hashlib.blake2b(digest_size=16)
    _feed(hashed, piece)
    return hashed.digest()


def _feed(hashed: "hashlib.blake2b", piece: Any) -> None:
    if isinstance(piece, Tensor):
        dense = piece.detach().to_dense() if piece.layout != torch.strided else piece.detach()
        hashed.update(repr((piece.dtype, tuple(piece.shape))).encode())
        hashed.update(dense.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    elif isinstance(piece, Mapping):
        for key in piece:
            hashed.update(repr(key).encode())
            _feed(hashed, piece[key])
        hashed.update(b"}")
    elif isinstance(piece, (list, tuple)):
        for each in piece:
            _feed(hashed, each)
        hashed.update(b"]")
    else:
        try:
            hashed.update(pickle.dumps(piece))
        except Exception:  # what cannot be pickled is like nothing else
            hashed.update(uuid.uuid4().bytes)

"""The one error policy of the command line.

A mistake, which the user can mend, is one line and status 2. A bug, ours or the user's, keeps its traceback, as its
file and line are what helps. What ended by a signal has the status that shells and schedulers know it by.

Free of torch: exceptions of packages that may not be there are known by where they were raised.
"""

import dis
import errno
import sys
from collections.abc import Iterator
from types import CodeType, TracebackType

from lit_papers.extras import EXTRA_OF, with_install_command

MISTAKE, INTERRUPTED, TERMINATED = 2, 130, 143

# Whose errors are read as they stand. A frame of any other package is somebody's own code: unknown means traceback.
_KNOWN = {
    "lit_papers", "torch", "lightning", "lightning_fabric", "pytorch_lightning", "lightning_utilities", "torchmetrics",
    "jsonargparse", "yaml", "numpy", "fsspec", "matplotlib", "rich", "PIL", "torchvision", "torchaudio", "sklearn",
    "scipy", "cvxpy", "clarabel", "torch_geometric", "networkx", "lightly", "shapiq", "wandb", "tensorboard", "mlflow",
    "optuna", "sqlalchemy", "alembic",
}  # fmt: skip
# What a refusal is raised as: other types (KeyError, AttributeError, ...) are bugs wherever they come from.
_REFUSALS = (ValueError, TypeError, ImportError, RuntimeError, NotImplementedError, FloatingPointError)
# What torch's operators raise inside a layer that is given what it was not made for.
_OF_OPERATORS = (RuntimeError, IndexError)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LONGEST = 600


def mistake(error: BaseException) -> str | None:
    """What to tell the user of an error, in one line; None where it is a bug, which should keep its traceback.

    A mistake is what a package that we know refuses by a ``raise`` of its own. The same type may come up in the middle
    of an expression, as ``int("ten")`` does; that is a bug. The layers of torch leave refusing to its operators, which
    are no Python: an image of one channel to a network of three is a mistake too.

    Args:
        error: as caught.

    Returns:
        The line, or None.
    """
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return f"{_of(error)}: make room, or give another folder (--trainer.default_root_dir)"
    if any(_is_in_somebodys_code(link) for link in _chain(error)):
        return None
    frames = list(_frames(error))
    if any(_name(frame) == "torch.serialization" for frame in frames):
        return f"the checkpoint cannot be read, so it is damaged or none: {_of(error)}"
    if isinstance(error, OSError):
        return with_install_command(_of(error))  # a missing table may come with a package
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of memory: choose a smaller batch size or network ({_of(error)})"
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] in EXTRA_OF:
        return with_install_command(_of(error))
    if isinstance(error, _OF_OPERATORS) and (layer := _layer(frames)):
        return f"{_of(error)} (in {layer}): do the sizes of the model fit those of the data?"
    is_refusal = isinstance(error, _REFUSALS) or type(error).__name__ == "MisconfigurationException"
    if not is_refusal or not frames or not _raises(frames[-1]):
        return None
    return with_install_command(_of(error))


def raised_in_users_code(error: BaseException | None) -> BaseException | None:
    """Of an error and its causes, the one that passed through code which is neither ours nor of a package we know."""
    found = [link for link in _chain(error) if _is_in_somebodys_code(link)]
    return found[-1] if found else None


def _of(error: BaseException) -> str:
    """The message; on one line, unless it is one of ours, which may list what helps."""
    text = str(error).strip() or type(error).__name__
    if type(error).__module__.startswith("lit_papers."):
        return text
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()  # an exception that is raised anew may be the cause of its own context
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _frames(error: BaseException) -> Iterator[TracebackType]:
    entry = error.__traceback__
    while entry is not None:
        yield entry
        entry = entry.tb_next


def _name(entry: TracebackType) -> str:
    return str(entry.tb_frame.f_globals.get("__name__", ""))


def _is_in_somebodys_code(error: BaseException) -> bool:
    return any(_is_somebodys(entry) for entry in _frames(error)) or (
        isinstance(error, SyntaxError) and error.filename is not None and not _is_library(error.filename)
    )


def _is_somebodys(entry: TracebackType) -> bool:
    package = _name(entry).partition(".")[0]
    is_python = package in sys.stdlib_module_names and package != "__main__"
    return package not in _KNOWN and not is_python


def _layer(frames: list[TracebackType]) -> str | None:
    """The layer or function of torch.nn one of whose operators raised; what looks on at operators may be in between."""
    if not frames or _raises(frames[-1]):
        return None
    for entry in reversed(frames):
        if _name(entry).startswith("torch.nn."):
            owner = entry.tb_frame.f_locals.get("self")
            return entry.tb_frame.f_code.co_name if owner is None else type(owner).__name__
        if not _name(entry).startswith("torch."):
            return None
    return None


def _is_library(path: str) -> bool:
    return "site-packages" in path or path.startswith(sys.base_prefix) or path.startswith("<")


def _raises(entry: TracebackType) -> bool:
    """Whether the last thing that happened there is a ``raise``."""
    code: CodeType = entry.tb_frame.f_code
    return dis.opname[code.co_code[entry.tb_lasti]] == "RAISE_VARARGS"

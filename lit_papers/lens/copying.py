"""A copy of a stranger's module: with parameters of its own, and made although the module may hold anything."""

import contextlib
import copy
import functools
import types
from collections import OrderedDict
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from lit_papers.lens.facade import TrainerFacade, silence

_ATOMS = (
    type(None), bool, int, float, complex, str, bytes, type, range, types.BuiltinFunctionType, types.ModuleType,
    torch.dtype, torch.device, torch.Size,
)  # fmt: skip
# data are large, and read by the measurement itself; the others act on the world outside
_SHARED = (Dataset, DataLoader, Sampler, LightningDataModule, Logger)
_LONG = 1_000  # items of a container, beyond which it is data: a new container holds the same items


def copied(module: nn.Module, trainer: Trainer | None) -> tuple[nn.Module, list[str]]:
    """Copy a module attribute by attribute, in evaluation mode, bound to a facade of its trainer.

    A plain ``deepcopy`` fails on a stored loss (a tensor with history), a lock or an open file. Here such tensors are
    copied without their history; what cannot be copied at all is shared with the original, and named. Data sets,
    loaders, data modules and loggers that the module holds are shared, and so are the items of long lists.

    What ``torch.compile`` wrapped is copied as it was written. Hooks and other functions are copied where they close
    over a part of the module; what their closures point to outside of it is not.

    Args:
        module: the stranger's; it is not changed.
        trainer: that trains it, or None.

    Returns:
        The copy, and the dotted names of attributes that are shared because they cannot be copied.
    """
    facade = TrainerFacade(trainer)
    copier = _Copier()
    if trainer is not None:
        copier.known(trainer, facade)
    twin = copier.module(_as_written(module))
    for part in twin.modules():
        part.__dict__.pop("_compiled_call_impl", None)
        if isinstance(part, LightningModule):
            silence(part, facade)
    with torch.no_grad():
        twin.train(False)  # its own `train`: adapters merge their weights here
    return twin, copier.uncopied


def _as_written(module: nn.Module) -> nn.Module:
    written: nn.Module = getattr(module, "_orig_mod", module)
    return written


class _Copier:
    """Remembers what has been copied, so that tied weights stay tied and what refers to a part refers to its copy."""

    def __init__(self) -> None:
        self.uncopied: list[str] = []
        self._memo: dict[int, Any] = {}
        self._alive: list[Any] = []  # an id must not be given to another object meanwhile

    def known(self, original: Any, twin: Any) -> None:
        self._memo[id(original)] = twin
        self._alive.append(original)

    def module(self, root: nn.Module) -> nn.Module:
        parts = [(name, part) for name, part in root.named_modules() if not _is_wrapper(part)]
        for _, part in parts:
            if isinstance(part, torch.jit.ScriptModule):
                if id(part) not in self._memo:
                    self.known(part, copy.deepcopy(part))
            else:
                self.known(part, object.__new__(type(part)))
        for _, part in root.named_modules():
            if _is_wrapper(part):
                self.known(part, self._memo[id(_as_written(part))])
        for name, part in parts:
            if not isinstance(part, torch.jit.ScriptModule):
                self._fill(self._memo[id(part)], part, name)
        twin: nn.Module = self._memo[id(root)]
        return twin

    def _fill(self, twin: nn.Module, part: nn.Module, name: str) -> None:
        parametrized = _is_parametrized(part)
        state = dict(part.__dict__) if parametrized else part.__getstate__()  # type: ignore[no-untyped-call]
        state = {key: self.value(value, f"{name}.{key}".lstrip(".")) for key, value in state.items()}
        # torchmetrics wraps `update` and `compute` again in here
        twin.__dict__.update(state) if parametrized else twin.__setstate__(state)  # type: ignore[no-untyped-call]

    def value(self, value: Any, path: str) -> Any:
        if isinstance(value, (*_ATOMS, *_SHARED)):
            return value
        if id(value) in self._memo:
            return self._memo[id(value)]
        twin: Any
        if isinstance(value, Tensor):
            twin = self._tensor(value, path)
        elif isinstance(value, nn.Module):  # held outside of the tree, in a list for instance
            return self.module(value)
        elif isinstance(value, types.FunctionType):
            return self._function(value, path)
        elif type(value) is functools.partial:
            twin = functools.partial(
                self.value(value.func, path),
                *(self.value(each, path) for each in value.args),
                **{key: self.value(each, path) for key, each in value.keywords.items()},
            )
        elif isinstance(value, types.MethodType):
            twin = types.MethodType(value.__func__, self.value(value.__self__, path))
        elif isinstance(value, torch.Generator):
            twin = torch.Generator(value.device).set_state(value.get_state())
        elif type(value) in (list, set, tuple, dict, OrderedDict) and len(value) > _LONG:
            twin = copy.copy(value)
        elif type(value) is list:
            twin = []
            self.known(value, twin)  # it may hold itself
            twin += [self.value(item, path) for item in value]
        elif type(value) in (set, tuple):
            twin = type(value)(self.value(item, path) for item in value)
        elif type(value) in (dict, OrderedDict):
            twin = type(value)()
            self.known(value, twin)
            twin.update((key, self.value(item, path)) for key, item in value.items())
        elif _is_plain(value):
            twin = object.__new__(type(value))
            self.known(value, twin)
            twin.__dict__.update({key: self.value(item, f"{path}.{key}") for key, item in value.__dict__.items()})
        else:
            twin = self._other(value, path)
        self.known(value, twin)
        return twin

    def _tensor(self, tensor: Tensor, path: str) -> Tensor:
        if type(tensor) not in (Tensor, nn.Parameter):
            copied: Tensor = self._other(tensor, path)
            return copied
        with torch.no_grad():
            twin = tensor.detach().clone()
        if isinstance(tensor, nn.Parameter):
            twin = nn.Parameter(twin, tensor.requires_grad)
        return twin

    def _function(self, function: types.FunctionType, path: str) -> Any:
        """A function, made anew where it closes over a part of the network, which must then be the part's copy."""
        if not self._reaches(function, set()):
            return function
        cells = function.__closure__ or ()
        fresh = tuple(types.CellType() for _ in cells)
        twin = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, fresh)
        self.known(function, twin)
        twin.__dict__.update(function.__dict__)

        def carried(value: Any) -> Any:
            return self.value(value, path) if self._reaches(value, set()) else value

        for cell, new in zip(cells, fresh, strict=True):
            with contextlib.suppress(ValueError):  # an empty cell
                new.cell_contents = carried(cell.cell_contents)
        if function.__defaults__ is not None:
            twin.__defaults__ = tuple(carried(value) for value in function.__defaults__)
        if function.__kwdefaults__ is not None:
            twin.__kwdefaults__ = {key: carried(value) for key, value in function.__kwdefaults__.items()}
        return twin

    def _reaches(self, value: Any, seen: set[int]) -> bool:
        """Whether a value is what was copied, or a function or a short container that holds such a thing."""
        if id(value) in self._memo:
            return True
        if id(value) in seen:
            return False
        seen.add(id(value))
        inside: list[Any] = []
        if isinstance(value, types.MethodType):
            inside = [value.__self__]
        elif isinstance(value, types.FunctionType):
            inside = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
            for cell in value.__closure__ or ():
                with contextlib.suppress(ValueError):
                    inside.append(cell.cell_contents)
        elif isinstance(value, (list, tuple, dict)) and len(value) <= _LONG:
            inside = list(value.values() if isinstance(value, dict) else value)
        return any(self._reaches(each, seen) for each in inside)

    def _other(self, value: Any, path: str) -> Any:
        memo = dict(self._memo)  # a failure leaves half-made objects in it
        try:
            twin = copy.deepcopy(value, memo)
        except Exception:  # whatever a stranger's object raises: a lock, an open file
            self.uncopied.append(path)
            return value
        self._alive += memo.get(id(memo), [])  # what deepcopy kept alive
        memo.pop(id(memo), None)
        self._memo = memo
        return twin


def _is_plain(value: Any) -> bool:
    """Whether an object is made of its attributes alone, so that they can be copied one by one."""
    kind: Any = type(value)
    own = ("__new__", "__reduce__", "__reduce_ex__")
    says_how = ("__deepcopy__", "__setstate__", "__slots__", "__getnewargs__", "__getnewargs_ex__")
    states = getattr(kind, "__getstate__", None) is getattr(object, "__getstate__", None)
    return (
        hasattr(value, "__dict__")
        and states
        and all(getattr(kind, name) is getattr(object, name) for name in own)
        and not any(hasattr(kind, name) for name in says_how)
    )


def _is_wrapper(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules


def _is_parametrized(module: nn.Module) -> bool:
    """Whether ``torch.nn.utils.parametrize`` has made a class of its own for it, which refuses to be serialised."""
    return torch.nn.utils.parametrize.is_parametrized(module)

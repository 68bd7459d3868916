"""What the state of a process is: the one answer that averages, evaluation, checkpoints, resume and drift ask for."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer
from torchmetrics import Metric

from lit_papers.local_sgd.functional import squared_norm

_LIGHTNINGS = vars(LightningModule()).keys()  # attributes that every module has
_NO_HOLDERS = (str, int, float, type(None), Tensor, Optimizer, Trainer, type, ModuleType)
_MOST_HELD = 64  # of entries of a list or mapping that are looked into
AverageBuffers = bool | Callable[[str, Tensor], bool]


class Inventory:
    """The tensors of a module and of its callbacks, by what local SGD does with them.

    Args:
        module: that is trained.
        callbacks: of the trainer; modules that they or the module hold (moving averages of the weights) are state too.
        average_buffers: True for the running statistics of normalisation layers, False for none, or a predicate of
            a floating buffer's name and value for those and whichever else it says.

    Attributes:
        common_models: whether models were held on every process when the fit began.
    """

    def __init__(
        self, module: nn.Module, callbacks: Sequence[Callback] = (), average_buffers: AverageBuffers = True
    ) -> None:
        self.module = module
        self.callbacks = callbacks
        self.average_buffers = average_buffers
        self._moved: set[str] = set()
        self._lonely: set[str] = set()
        self.common_models = False
        self._seen: dict[str, Tensor] = {}

    # -- parameters ---------------------------------------------------------------------------------------------------

    def names(self) -> dict[int, str]:
        """From a parameter's identity to its name."""
        return {id(parameter): name for name, parameter in self.module.named_parameters()}

    def untrained(self, optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
        """Floating parameters of the module that are in no optimizer: frozen ones, and teachers moved by hand."""
        trained = {id(parameter) for parameter in trained_parameters(optimizers)}
        return {
            name: parameter
            for name, parameter in self.module.named_parameters()
            if id(parameter) not in trained and _can_be_averaged(parameter)
        }

    # -- buffers ------------------------------------------------------------------------------------------------------

    def statistics(self) -> list[Tensor]:
        """Buffers that are averaged, each once."""
        return _once(buffer for name, buffer in self._float_buffers() if self._is_averaged(name, buffer))

    def own_buffers(self) -> dict[str, Tensor]:
        """Floating buffers that stay each process' own."""
        return {name: buffer for name, buffer in self._float_buffers() if not self._is_averaged(name, buffer)}

    def saved_buffers(self) -> dict[str, Tensor]:
        """Buffers of any type that belong into a checkpoint."""
        found = {}
        for prefix, child in self.module.named_modules():
            for name, buffer in child.named_buffers(prefix, recurse=False):
                if name.rpartition(".")[2] not in child._non_persistent_buffers_set:
                    found[name] = buffer
        return found

    def _float_buffers(self) -> Iterator[tuple[str, Tensor]]:
        for name, buffer in self.module.named_buffers():
            if _can_be_averaged(buffer):
                yield name, buffer

    def _is_averaged(self, name: str, buffer: Tensor) -> bool:
        if self.average_buffers is False:
            return False
        owner, _, _ = name.rpartition(".")
        if isinstance(self.module.get_submodule(owner), _NormBase):
            return True
        return callable(self.average_buffers) and bool(self.average_buffers(name, buffer))

    # -- beside the module --------------------------------------------------------------------------------------------

    def held_models(self) -> dict[str, nn.Module]:
        """Modules that callbacks hold beside the trained one, and that it hides from its own parameters.

        They may be attributes, such as `EMAWeightAveraging`'s, in a list or mapping, or in an object: a teacher in a
        list is in no ``state_dict``.
        """
        inside = {id(module) for module in self.module.modules()}
        found, seen = {}, set[int]()
        for place, owner in self._owners():
            for name, value in _held(owner, seen):
                if isinstance(value, nn.Module) and not isinstance(value, Metric) and id(value) not in inside:
                    found[f"{place}.{name}"] = value
        return found

    def held_tensors(self) -> dict[str, Tensor]:
        """Floating parameters and buffers of those, where they are not the module's own."""
        own = {id(tensor) for tensor in (*self.module.parameters(), *self.module.buffers())}
        found = {}
        for place, model in self.held_models().items():
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                if _can_be_averaged(tensor) and id(tensor) not in own:
                    found[f"{place}:{name}"] = tensor
        return found

    def _owners(self) -> Iterator[tuple[str, object]]:
        """Who may hold something, by name: callbacks, and the module with its parts that are no plain layers."""
        for number, callback in enumerate(self.callbacks):
            yield f"{number}.{type(callback).__name__}", callback
        for name, module in self.module.named_modules():
            if not (isinstance(module, Metric) or type(module).__module__.startswith("torch.nn.")):
                yield ".".join(filter(None, ("module", name, type(module).__name__))), module

    def kept_tensors(self, optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
        """Floating tensors of copies of the weights that callbacks, and the module beside its parameters, keep.

        A copy is a list or mapping of tensors that has, in order, the shapes of all trained parameters: moving averages
        as people write them themselves. It may be an attribute's, or one of an object that is an attribute.
        """
        trained = {id(parameter) for parameter in trained_parameters(optimizers)}
        own = [*self.module.parameters(), *self.module.buffers()]
        shapes = [parameter.shape for parameter in self.module.parameters() if id(parameter) in trained]
        taken = {id(each) for tensor in own for each in (tensor, tensor.grad)}
        found: dict[str, Tensor] = {}
        seen: set[int] = set()
        for place, owner in self._owners():
            for name, collection in _held(owner, seen):
                if not _are_tensors(collection, most=len(own)):
                    continue
                tensors = collection if isinstance(collection, dict) else dict(enumerate(collection))
                if not shapes or not _follow(tensors.values(), shapes):
                    continue
                if taken.isdisjoint(map(id, tensors.values())):
                    found |= {f"{place}.{name}:{key}": each for key, each in tensors.items() if _can_be_averaged(each)}
        return found

    # -- what moves without an optimizer ------------------------------------------------------------------------------

    def watch(self, optimizers: Iterable[Optimizer]) -> None:
        """Remember values from which `moved` counts."""
        self._moved.clear()
        self._lonely.clear()
        self._seen = {name: _fingerprint(value) for name, value in self._watched(optimizers).items()}

    def look(self, optimizers: Iterable[Optimizer]) -> int:
        """Note what has moved; a number that is the same on processes where the same has."""
        for name, value in self._watched(optimizers).items():
            if name not in self._moved:
                now = _fingerprint(value)
                if not torch.equal(self._seen.setdefault(name, now), now):
                    self._moved.add(name)
        if not self._moved:
            return 0
        digest = hashlib.blake2b("\n".join(sorted(self._moved)).encode(), digest_size=7).digest()
        return int.from_bytes(digest, "little")

    @property
    def moved(self) -> set[str]:
        """Names of what has moved, as far as `look` saw or other processes told."""
        return self._moved

    def whereabouts(self, optimizers: Iterable[Optimizer]) -> tuple[set[str], set[str]]:
        """Names of what has moved, and of what could, on this process."""
        return self._moved, set(self._watched(optimizers))

    def agree(self, of_all: Sequence[tuple[set[str], set[str]]]) -> None:
        """Learn what has moved on any process, from all `whereabouts`; what only some have cannot be averaged."""
        self._moved.update(*(moved for moved, _ in of_all))
        self._lonely = {name for name in self._moved if not all(name in there for _, there in of_all)}

    @property
    def lonely(self) -> list[str]:
        """Names of what moves on some processes, and is not there on others."""
        return sorted(self._lonely)

    def followers(self, optimizers: Iterable[Optimizer]) -> list[Tensor]:
        """Parameters that move and are in no optimizer: teachers."""
        return self._moving(self.untrained(optimizers))

    def moving_copies(self, optimizers: Iterable[Optimizer]) -> list[str]:
        """Names of the copies of the weights that move."""
        names = [name for name in self.kept_tensors(optimizers) if name in self._moved and name not in self._lonely]
        return sorted({name.partition(":")[0] for name in names})

    def moving_models(self, optimizers: Iterable[Optimizer]) -> list[Tensor]:
        """What moves of the models that are held, and of copies of the weights."""
        trained = {id(parameter) for parameter in trained_parameters(optimizers)}
        moving = self._moving({**self.held_tensors(), **self.kept_tensors(optimizers)})
        return [tensor for tensor in moving if id(tensor) not in trained]

    def _moving(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        return _once(tensor for name, tensor in tensors.items() if name in self._moved and name not in self._lonely)

    def moving_buffers(self) -> list[str]:
        """Names of buffers that move and stay each process' own."""
        return sorted(name for name in self.own_buffers() if name in self._moved)

    def _watched(self, optimizers: Iterable[Optimizer]) -> Mapping[str, Tensor]:
        kept = self.kept_tensors(optimizers)
        return {**self.untrained(optimizers), **self.own_buffers(), **self.held_tensors(), **kept}


def trained_parameters(optimizers: Iterable[Optimizer]) -> list[Tensor]:
    """Parameters of all optimizers, each once, in the order of their groups.

    ``requires_grad`` would not do (toggling an optimizer flips it), nor would ``grad is not None`` (ranks differ).
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return _once(parameter for group in groups for parameter in group["params"])


def matching_state(optimizers: Iterable[Optimizer]) -> list[Tensor]:
    """Optimizer state that is one number per parameter, such as momentum; counters (``step``) are left out."""
    found: list[Tensor] = []
    for optimizer in optimizers:
        for parameter in trained_parameters([optimizer]):
            state = optimizer.state.get(parameter, {})
            for key in sorted(state, key=str):
                value = state[key]
                is_like = isinstance(value, Tensor) and value.is_floating_point() and value.shape == parameter.shape
                if is_like and key != "step":
                    found.append(value)
    return found


def learning_rates(optimizers: Iterable[Optimizer]) -> list[float]:
    """Of all parameter groups."""
    return [float(group["lr"]) for optimizer in optimizers for group in optimizer.param_groups if "lr" in group]


def _can_be_averaged(tensor: Tensor) -> bool:
    return (tensor.is_floating_point() or tensor.is_complex()) and not bool(nn.parameter.is_lazy(tensor))


def _held(owner: object, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Attributes by name, with those of objects among them, and with what short lists and mappings hold of objects.

    Args:
        owner: whose attributes.
        seen: identities of what was found before, which is not found again.
    """
    for name, value in vars(owner).items():
        if name not in _LIGHTNINGS:
            yield from _within(name, value, 2, seen)


def _within(path: str, value: Any, levels: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, _NO_HOLDERS) or id(value) in seen:
        return
    seen.add(id(value))
    yield path, value
    if not levels or isinstance(value, nn.Module):
        return
    entries: list[tuple[Any, Any]]
    if several := isinstance(value, (dict, list, tuple)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        entries = list(pairs) if len(value) <= _MOST_HELD else []
    else:
        entries = list(getattr(value, "__dict__", {}).items())  # a list, as another thread may add to them
    for key, each in entries:
        if not (several and isinstance(each, (dict, list, tuple))):  # people keep notes in them
            yield from _within(f"{path}.{key}", each, levels - 1, seen)


def _are_tensors(value: Any, most: int) -> bool:
    """Whether it is a list or mapping of so many tensors at most: memories may be long."""
    if not isinstance(value, (dict, list, tuple)) or not 0 < len(value) <= most:
        return False
    members = value.values() if isinstance(value, dict) else value
    return all(isinstance(member, Tensor) for member in members)


def _follow(tensors: Iterable[Tensor], shapes: Sequence[torch.Size]) -> bool:
    """Whether tensors have these shapes in this order, others between them aside."""
    found = iter(tensors)
    return all(any(tensor.shape == shape for tensor in found) for shape in shapes)


def _once(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


def _fingerprint(value: Tensor) -> Tensor:
    """Sum and squared norm to the last bit, int64, shape ``(2,)``: a copy to compare with would cost memory."""
    real = torch.view_as_real(value.detach()) if value.is_complex() else value.detach()
    both = [real.sum(dtype=torch.float64), squared_norm(real)]
    return torch.stack(both).view(torch.int64)

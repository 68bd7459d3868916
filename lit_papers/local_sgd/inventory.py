"""What the state of a process is: the one answer that averages, evaluation, checkpoints, resume and drift ask for."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer
from torchmetrics import Metric

from lit_papers.local_sgd.functional import squared_norm

AverageBuffers = bool | Callable[[str, Tensor], bool]


class Inventory:
    """The tensors of a module and of its callbacks, by what local SGD does with them.

    Args:
        module: that is trained.
        callbacks: of the trainer; modules that they hold (moving averages of the weights) are state too.
        average_buffers: True for the running statistics of normalisation layers, False for none, or a predicate of
            a floating buffer's name and value for those and whichever else it says.
    """

    def __init__(
        self, module: nn.Module, callbacks: Sequence[Callback] = (), average_buffers: AverageBuffers = True
    ) -> None:
        self.module = module
        self.callbacks = callbacks
        self.average_buffers = average_buffers
        self._moved: set[str] = set()
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

    # -- callbacks ----------------------------------------------------------------------------------------------------

    def callback_models(self) -> dict[str, nn.Module]:
        """Modules that callbacks hold beside the trained one, such as `EMAWeightAveraging`'s."""
        inside = {id(module) for module in self.module.modules()}
        found = {}
        for place, callback in enumerate(self.callbacks):
            for attribute, value in vars(callback).items():
                if isinstance(value, nn.Module) and not isinstance(value, Metric) and id(value) not in inside:
                    found[f"{place}.{type(callback).__name__}.{attribute}"] = value
        return found

    def callback_tensors(self) -> dict[str, Tensor]:
        """Floating parameters and buffers of those."""
        found = {}
        for place, model in self.callback_models().items():
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                if _can_be_averaged(tensor):
                    found[f"{place}:{name}"] = tensor
        return found

    # -- what moves without an optimizer ------------------------------------------------------------------------------

    def watch(self, optimizers: Iterable[Optimizer]) -> None:
        """Remember values from which `moved` counts."""
        self._moved.clear()
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

    def followers(self, optimizers: Iterable[Optimizer]) -> list[Tensor]:
        """Parameters that move and are in no optimizer: teachers."""
        return [value for name, value in self.untrained(optimizers).items() if name in self._moved]

    def moving_models(self) -> list[Tensor]:
        """What moves of the callbacks' models."""
        return [value for name, value in self.callback_tensors().items() if name in self._moved]

    def moving_buffers(self) -> list[str]:
        """Names of buffers that move and stay each process' own."""
        return sorted(name for name in self.own_buffers() if name in self._moved)

    def _watched(self, optimizers: Iterable[Optimizer]) -> Mapping[str, Tensor]:
        return {**self.untrained(optimizers), **self.own_buffers(), **self.callback_tensors()}


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


def _once(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


def _fingerprint(value: Tensor) -> Tensor:
    """Sum and squared norm to the last bit, int64, shape ``(2,)``: a copy to compare with would cost memory."""
    real = torch.view_as_real(value.detach()) if value.is_complex() else value.detach()
    both = [real.sum(dtype=torch.float64), squared_norm(real)]
    return torch.stack(both).view(torch.int64)

"""Synaptic intelligence: hold weights back that mattered to earlier tasks (Zenke et al. 2017)."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_papers.continual.methods.base import Learner, Method, Step, plain_loss

State = dict[str, Tensor]


class SI(Method):
    r"""A quadratic penalty on weights, each by what it contributed to the decrease of earlier losses.

    In each step a weight's contribution grows by :math:`\omega \mathrel{+}= g\,(\theta_{before} - \theta_{after})`,
    with the gradient g of the task's loss alone. At the end of a task :math:`\Omega \mathrel{+}= \omega / ((\theta -
    \theta^*)^2 + \xi)` and :math:`\theta^* = \theta`; the loss gets :math:`c \sum \Omega (\theta - \theta^*)^2`
    (Zenke et al., eq. 4 and 5).

    It also works alone, on any network, in any loop::

        si.begin_task(net, 0)
        for batch in batches:
            (loss(net, batch) + si.penalty(net)).backward()
            si.before_step(net, penalised=True)
            optimizer.step()
            si.after_step(net)
        si.end_task(net, 0)

    Args:
        strength: c, >= 0.
        damping: xi, > 0.
        omega: ``"path"``, as above; or ``"official"``, learning rate times squared gradient including the penalty's,
            as the authors' code has it; equal for plain SGD without a penalty.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self, strength: float = 1.0, damping: float = 1.0, omega: Literal["path", "official"] = "path"
    ) -> None:
        super().__init__()
        if strength < 0:
            raise ValueError(f"`strength` must be >= 0, got {strength}")
        if damping <= 0:
            raise ValueError(f"`damping` must be positive, got {damping}")
        if omega not in ("path", "official"):
            raise ValueError(f"`omega` must be 'path' or 'official', got {omega!r}")
        self.strength = strength
        self.damping = damping
        self.omega = omega
        self.importance: State = {}
        self._path: State = {}
        self._anchor: State = {}
        self._before: dict[str, tuple[Tensor, Tensor]] = {}

    def loss(self, learner: Learner, step: Step) -> Tensor:
        """The objective and the penalty."""
        penalty = self.penalty(learner.backbone)
        step.logs["penalty"] = penalty.detach()
        return plain_loss(learner, step) + penalty

    def penalty(self, net: nn.Module) -> Tensor:
        """The penalty on the network's weights, a scalar; 0 in the first task."""
        terms = [
            (self._of(self.importance, name, weight) * (weight - self._of(self._anchor, name, weight)).square()).sum()
            for name, weight in _trained(net)
            if name in self.importance
        ]
        if not terms:
            return torch.zeros((), device=next(net.parameters()).device)
        return self.strength * torch.stack(terms).sum()

    def begin_task(self, net: nn.Module, task: int) -> None:
        """Start counting contributions; the first task's weights become the first anchor."""
        for name, weight in _trained(net):
            self._anchor.setdefault(name, weight.detach().clone())
            self._path[name] = torch.zeros_like(weight)

    @torch.no_grad()
    def before_step(self, net: nn.Module, lr: float | None = None, penalised: bool = False) -> None:
        """Look at gradients and weights.

        Args:
            net: the network; its ``.grad`` is that of the task's loss, unless ``penalised``.
            lr: learning rate, for ``omega="official"``.
            penalised: the gradients contain the penalty's.

        Raises:
            ValueError: ``omega`` is ``"official"``, and there is no ``lr``.
        """
        if self.omega == "official" and lr is None:
            raise ValueError("`omega`='official' needs the learning rate: before_step(net, lr=...)")
        for name, weight in _trained(net):
            if weight.grad is None:
                continue
            gradient = weight.grad.detach().clone()
            if self.omega == "official":
                assert lr is not None  # noqa: S101
                self._grow(name, lr * gradient.square())
                continue
            if penalised and name in self.importance:
                away = weight - self._of(self._anchor, name, weight)
                gradient -= 2 * self.strength * self._of(self.importance, name, weight) * away
            self._before[name] = (gradient, weight.detach().clone())

    @torch.no_grad()
    def after_step(self, net: nn.Module) -> None:
        """Add what the step contributed."""
        for name, weight in _trained(net):
            if name in self._before:
                gradient, before = self._before.pop(name)
                self._grow(name, gradient * (before - weight))

    @torch.no_grad()
    def end_task(self, net: nn.Module, task: int) -> None:
        """Turn contributions into importance, and anchor the weights where they are."""
        for name, weight in _trained(net):
            moved = (weight - self._of(self._anchor, name, weight)).square()
            grown = self._of(self._path, name, weight) / (moved + self.damping)
            self.importance[name] = grown + (self._of(self.importance, name, weight) if name in self.importance else 0)
            self._anchor[name] = weight.detach().clone()
            self._path[name] = torch.zeros_like(weight)

    def _grow(self, name: str, contribution: Tensor) -> None:
        self._path[name] = self._of(self._path, name, contribution) + contribution

    def _of(self, state: State, name: str, like: Tensor) -> Tensor:
        if state[name].device != like.device:  # a checkpoint is loaded to the CPU
            state[name] = state[name].to(like.device)
        return state[name]

    def get_extra_state(self) -> dict[str, State]:
        """Importance, contributions and anchor, for ``state_dict``: they come with the network, not with us."""
        return {"importance": self.importance, "path": self._path, "anchor": self._anchor}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up what a ``state_dict`` has."""
        self.importance = dict(state["importance"])
        self._path = dict(state["path"])
        self._anchor = dict(state["anchor"])


def _trained(net: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, weight) for name, weight in net.named_parameters() if weight.requires_grad)

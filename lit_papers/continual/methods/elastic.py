"""Elastic weight consolidation: hold weights back by their Fisher information (Kirkpatrick et al. 2017)."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lit_papers.continual.methods.base import Learner, Method, Step, TaskData, evaluating, plain_loss

_GRADIENT_NUMBERS = 2**26  # held at a time


class EWC(Method):
    r"""A quadratic penalty on all weights, each by its Fisher information; the online form, of constant memory.

    At the end of each task :math:`F \leftarrow \gamma F + F_t` and :math:`\theta^* = \theta`; the loss gets
    :math:`\tfrac{\lambda}{2} \sum F (\theta - \theta^*)^2` (Kirkpatrick et al. 2017, eq. 3; Schwarz et al. 2018, eq. 8
    and 9). :math:`F_t` is the diagonal of the Fisher information itself, with the expectation over the classes that the
    network predicts, not the squared gradients of the labels; see `fisher_diagonal`. It needs labels.

    Args:
        strength: lambda, >= 0; 20 is Buzzega et al.'s (2020) 10 for split CIFAR-10, whose penalty has no half.
        decay: gamma, in [0, 1]; theirs.
        images: of each task, at random, from which the information is computed; at least 1, on all processes together.

    Raises:
        ValueError: an argument is out of its range.
    """

    needs_labels = True

    def __init__(self, strength: float = 20.0, decay: float = 1.0, images: int = 256) -> None:
        super().__init__()
        if strength < 0:
            raise ValueError(f"`strength` must be >= 0, got {strength}")
        if not 0 <= decay <= 1:
            raise ValueError(f"`decay` must be in [0, 1], got {decay}")
        if images < 1:
            raise ValueError(f"`images` must be at least 1, got {images}")
        self.strength = strength
        self.decay = decay
        self.images = images
        self.fisher: dict[str, Tensor] = {}
        self._anchor: dict[str, Tensor] = {}

    def loss(self, learner: Learner, step: Step) -> Tensor:
        """The objective and the penalty."""
        loss = plain_loss(learner, step)
        penalty = self.penalty(learner).to(loss.device)
        step.logs["penalty"] = penalty.detach()
        return loss + penalty

    def penalty(self, learner: Learner) -> Tensor:
        """The penalty on the weights, a scalar; 0 in the first task."""
        terms = []
        for name, weight in learner.named_parameters():
            if name in self.fisher:
                for state in (self.fisher, self._anchor):  # a checkpoint is loaded to the CPU
                    state[name] = state[name].to(weight.device)
                terms.append((self.fisher[name] * (weight - self._anchor[name]).square()).sum())
        return 0.5 * self.strength * torch.stack(terms).sum() if terms else torch.zeros(())

    def look_back(self, learner: Learner, task: TaskData) -> None:
        """Add the task's information, and anchor the weights where they are."""
        images, _ = task.sample(self.images)
        found, count = fisher_diagonal(learner, images), torch.tensor(float(len(images)), device=images.device)
        if dist.is_available() and dist.is_initialized():
            total = count.clone()
            dist.all_reduce(total)
            for value in found.values():  # every process has images of its own
                dist.all_reduce(value.mul_(count / total))
        for name, weight in learner.named_parameters():
            if name in found:
                old = self.fisher.get(name)
                self.fisher[name] = found[name] if old is None else self.decay * old.to(weight.device) + found[name]
                self._anchor[name] = weight.detach().clone()

    def get_extra_state(self) -> dict[str, Any]:
        """Information and anchor, for ``state_dict``: they come with the network, not with us."""
        return {"fisher": dict(self.fisher), "anchor": dict(self._anchor)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up what a ``state_dict`` has."""
        self.fisher, self._anchor = dict(state["fisher"]), dict(state["anchor"])


def fisher_diagonal(learner: Learner, images: Tensor) -> dict[str, Tensor]:
    r"""Diagonal of the Fisher information of a classifier's weights.

    .. math:: F_k = \tfrac1N \sum_n \sum_c p(c \mid x_n)\, (\partial \log p(c \mid x_n) / \partial \theta_k)^2

    In evaluation mode, without augmentation: batch norm knows no gradient of one image.

    Args:
        learner: from views to logits, when it is called.
        images: raw, ``(N, C, H, W)``.

    Returns:
        A tensor for each weight that trains, of its shape, >= 0; at least float32.
    """
    assert isinstance(learner, nn.Module)  # noqa: S101
    weights = {name: weight.detach() for name, weight in learner.named_parameters() if weight.requires_grad}
    # a sum of many small numbers: in the weights' precision, but not in half of it
    kinds = {name: torch.promote_types(weight.dtype, torch.float32) for name, weight in weights.items()}
    found = {name: torch.zeros_like(weight, dtype=kinds[name]) for name, weight in weights.items()}

    def log_likelihood(weights: dict[str, Tensor], view: Tensor, label: Tensor) -> Tensor:
        logits: Tensor = functional_call(learner, weights, (view[None],))
        return -nn.functional.cross_entropy(logits, label[None])

    each = vmap(grad(log_likelihood), in_dims=(None, 0, 0))
    at_once = max(1, _GRADIENT_NUMBERS // sum(weight.numel() for weight in weights.values()))
    with evaluating(learner), torch.no_grad():
        for view in torch.split(learner.plain(images), at_once):
            chances = learner(view).float().softmax(dim=1)  # (n, classes)
            for label, chance in enumerate(chances.unbind(dim=1)):
                gradients = each(weights, view, torch.full((len(view),), label, device=view.device))
                for name, gradient in gradients.items():
                    kind = kinds[name]
                    found[name] += torch.einsum("n,n...->...", chance.to(kind), gradient.to(kind).square())
    return {name: value / len(images) for name, value in found.items()}

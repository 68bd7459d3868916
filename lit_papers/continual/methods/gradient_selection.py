"""GSS: a memory whose gradients differ (Aljundi et al. 2019, the greedy variant)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lit_papers.continual.methods.base import Learner, Method, Step, evaluating

_COMPARED = 10  # images of memory that a candidate is compared with
_FIRST_SCORE = 0.1  # of a candidate when there is nothing to compare it with, as in Aljundi et al.'s code
_GRADIENT_NUMBERS = 2**26  # held at a time


class GradientBuffer(nn.Module):
    """Images with their labels, and a score of how much each resembled the others when it came.

    Args:
        size: images to keep, at least 1.

    Raises:
        ValueError: ``size`` is below 1.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"`size` of the buffer must be at least 1, got {size}")
        self.size = size
        self._data: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._data["scores"]) if self._data else 0

    @property
    def data(self) -> dict[str, Tensor]:
        """``images``, ``labels`` and ``scores``; empty when there are none."""
        return self._data

    def sample(self, n: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw ``n`` rows, or all if there are fewer, without replacement.

        Raises:
            RuntimeError: the buffer is empty.
        """
        if not len(self):
            raise RuntimeError("the buffer is empty: nothing was offered yet")
        rows = torch.randperm(len(self), generator=generator)[:n]
        return {name: field[rows.to(field.device)] for name, field in self._data.items()}

    def add(self, images: Tensor, labels: Tensor, scores: Tensor, generator: torch.Generator) -> None:
        """Offer rows one by one; in a full buffer one may replace a row that resembles the others more.

        Slot i is drawn in proportion to its score, and replaced with probability score_i / (score_i + score).
        """
        offered = {"images": images, "labels": labels, "scores": scores}
        free = self.size - len(self)
        for name, field in offered.items():
            old = self._data.get(name)
            new = field[:free]
            self._data[name] = new.clone() if old is None else torch.cat([old.to(new.device), new])
        mine = self._data["scores"].cpu().double() + 1e-12  # all may be 0
        for row in range(free, len(labels)):
            slot = int(torch.multinomial(mine, 1, generator=generator))
            score = float(scores[row])
            if torch.rand((), generator=generator) < mine[slot] / (mine[slot] + score):
                mine[slot] = score + 1e-12
                for name, field in offered.items():
                    self._data[name][slot] = field[row]

    def get_extra_state(self) -> dict[str, Tensor]:
        """The content, for ``state_dict``."""
        return {name: field.clone() for name, field in self._data.items()}  # rows are overwritten in place

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up the content of a ``state_dict``."""
        self._data = {name: field.clone() for name, field in state.items()}


class GSS(Method):
    """Gradient-based sample selection; needs labels, and one process.

    Each image is scored by the largest cosine of its gradient with those of a few random images of the memory, plus
    one; the memory prefers low scores. Training is on the current batch with a batch of memory. Gradients for scores
    are taken in evaluation mode, without augmentation: batch norm knows no gradient of one image.

    Args:
        buffer_size: images in memory, at least 1.
        seed: of the selection, at least 0.

    Raises:
        ValueError: an argument is out of its range.
    """

    needs_labels = True
    single_process = True

    def __init__(self, buffer_size: int = 256, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.buffer = GradientBuffer(buffer_size)

    def loss(self, learner: Learner, step: Step) -> Tensor:
        """The objective on current and replayed images together."""
        views, labels = learner.views(step.images, step), step.labels
        if len(self.buffer):
            drawn = self.buffer.sample(len(step.images), step.generator("memory"))
            memory = learner.views(drawn["images"].to(step.images.device), step, "memory ")
            views = tuple(torch.cat(pair) for pair in zip(views, memory, strict=True))
            labels = torch.cat([labels, drawn["labels"].to(labels.device)])
        outputs = tuple(learner.outputs(view) for view in views)
        step.outputs = outputs[0].detach()[: len(step.images)]
        return learner.task_loss(outputs, labels)

    def remember(self, learner: Learner, step: Step) -> None:
        """Score the images of the step and offer them to the memory."""
        drawn_by_step = step.generator("selection").initial_seed()
        generator = torch.Generator().manual_seed((drawn_by_step + self.seed) % 2**32)
        if len(self.buffer):
            drawn = self.buffer.sample(_COMPARED, generator)
            images, labels = drawn["images"].to(step.images.device), drawn["labels"].to(step.labels.device)
            scores = _similarity(learner, step.images, step.labels, images, labels) + 1
        else:
            scores = torch.full((len(step.images),), _FIRST_SCORE, device=step.images.device)
        self.buffer.add(step.images, step.labels, scores, generator)


def _similarity(learner: Learner, images: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor) -> Tensor:
    """Largest cosine of each image's gradient with those of the others, ``(N,)``."""
    with evaluating(learner):
        reference = torch.cat(list(_gradients(learner, others, other_labels)))  # (R, P)
        parts = [gradients @ reference.T for gradients in _gradients(learner, images, labels)]
    return torch.cat(parts).amax(dim=1)


def _gradients(learner: Learner, images: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """Normalised gradients of single images, in chunks of ``(n, P)``."""
    assert isinstance(learner, nn.Module)  # noqa: S101
    weights = {name: weight.detach() for name, weight in learner.named_parameters() if weight.requires_grad}

    def loss_of_one(weights: dict[str, Tensor], view: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(learner, weights, (view[None],))
        return nn.functional.cross_entropy(logits, label[None])

    each = vmap(grad(loss_of_one), in_dims=(None, 0, 0))
    at_once = max(1, _GRADIENT_NUMBERS // sum(weight.numel() for weight in weights.values()))
    views = learner.plain(images)
    for start in range(0, len(views), at_once):
        found = each(weights, views[start : start + at_once], labels[start : start + at_once])
        yield nn.functional.normalize(torch.cat([g.flatten(1) for g in found.values()], dim=1))

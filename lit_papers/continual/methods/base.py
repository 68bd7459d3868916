"""What a continual-learning method is: a loss of its own, and something to do around steps and tasks."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn


@dataclass
class Step:
    """One batch on its way through a training step.

    Attributes:
        images: as they came, uint8 or float, ``(N, C, H, W)``.
        labels: int64, ``(N,)``; a method without labels does not look at them.
        generator: from a purpose to a random generator of this step, process and purpose alone.
        outputs: what the learner made of the first view, ``(N, D)``, once the loss is known.
        logs: numbers to log beside the loss, by name.
    """

    images: Tensor
    labels: Tensor
    generator: Callable[[str], torch.Generator]
    outputs: Tensor | None = None
    logs: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskData:
    """The training images of a task, for a look back when it is over.

    Attributes:
        number: of the task, from 0.
        num_tasks: of the stream.
        classes: of the task.
        batches: reads all images in a fixed order, as raw images and labels, on every process.
        sample: this process' share of so many images at random, and their labels; of all, if there are fewer.
    """

    number: int
    num_tasks: int
    classes: list[int]
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]
    sample: Callable[[int], tuple[Tensor, Tensor]]


class Learner(Protocol):
    """What a method sees of the LightningModule that it works for."""

    backbone: nn.Module
    head: nn.Module

    def features(self, images: Tensor, task: int | None = None) -> Tensor:
        """Features ``(N, D)`` of raw images, as they are evaluated."""

    def views(self, images: Tensor, step: Step, purpose: str = "") -> tuple[Tensor, ...]:
        """Augmented views: two without labels, one with."""

    def plain(self, images: Tensor) -> Tensor:
        """Images as they are evaluated: scaled, not augmented."""

    def outputs(self, view: Tensor) -> Tensor:
        """Features ``(N, D)`` without labels, logits ``(N, C)`` with."""

    def task_loss(self, outputs: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        """The objective on one output for each view, a scalar."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters that are trained."""


_RENAMED = {"keep": "look_back(learner, task)", "samples_per_task": "task.sample(count) in look_back(learner, task)"}


class Method(nn.Module):
    """Base of the methods; as it stands it trains on and on, which is what `Finetune` does.

    All that a method must remember travels in its ``state_dict``.

    Raises:
        TypeError: a subclass has a hook under an old name, which nobody would call.
    """

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        for old, new in _RENAMED.items():
            if old in vars(cls):
                raise TypeError(f"{cls.__name__}.{old} is not called any more: it is {new} now")

    needs_labels = False
    needs_no_labels = False
    single_process = False

    def loss(self, learner: Learner, step: Step) -> Tensor:
        """Scalar loss of a batch; sets ``step.outputs``."""
        return plain_loss(learner, step)

    def prepare(self, backbone: nn.Module, example: Tensor, num_tasks: int) -> nn.Module:
        """The network to train, built once before training; ``example`` is a batch of its input."""
        return backbone

    def connect(self, learner: Learner) -> None:
        """Called once, when backbone and head are built: make parameters of your own."""

    def begin_task(self, net: nn.Module, task: int) -> None:
        """Called before the first step of each task."""

    def before_step(self, net: nn.Module, lr: float | None = None, penalised: bool = False) -> None:
        """Called between backward and the optimizer's step.

        Args:
            net: the network.
            lr: the optimizer's learning rate.
            penalised: whether the gradients contain that of the method's own penalty.
        """

    def after_step(self, net: nn.Module) -> None:
        """Called after the optimizer's step."""

    def remember(self, learner: Learner, step: Step) -> None:
        """Called last in each step: offer its images to the memory."""

    def end_task(self, net: nn.Module, task: int) -> None:
        """Called after the last step of each task."""

    def look_back(self, learner: Learner, task: TaskData) -> None:
        """Called after `end_task`: learn from the images of the finished task what must be kept of them."""

    def before_evaluation(self, learner: Learner, task: TaskData) -> None:
        """Called before each validation and test; ``task`` runs, or ended last."""

    def scores(self, features: Tensor, logits: Tensor) -> Tensor:
        """How much features ``(N, D)`` and logits ``(N, C)`` speak for each class, ``(N, C)``."""
        return logits


class Finetune(Method):
    """Trains on the current task and does nothing about the past; with ``multitask`` data, the upper bound."""


def plain_loss(learner: Learner, step: Step) -> Tensor:
    """The objective on the current batch alone."""
    outputs = tuple(learner.outputs(view) for view in learner.views(step.images, step))
    step.outputs = outputs[0].detach()
    return learner.task_loss(outputs, step.labels)


@contextmanager
def evaluating(learner: Learner | nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every submodule's own mode afterwards."""
    assert isinstance(learner, nn.Module)  # noqa: S101
    modes = [(module, module.training) for module in learner.modules()]
    learner.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode

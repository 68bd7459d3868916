"""Methods that hold on to the outputs of the network as it was: LwF (with labels) and CaSSLe (without)."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from lit_papers.continual.methods.base import Learner, Method, Step, TaskData, plain_loss
from lit_papers.continual.methods.frozen import FrozenCopy, batch_statistics


def distillation_loss(logits: Tensor, target_logits: Tensor, temperature: float = 2.0) -> Tensor:
    r"""Cross-entropy of softened outputs with softened targets (Li & Hoiem 2017, eq. 2 and 3).

    .. math:: -\tfrac1N \sum_n \sum_c \mathrm{softmax}(\hat z_n / T)_c \, \log \mathrm{softmax}(z_n / T)_c

    Args:
        logits: ``(N, C)``.
        target_logits: of the old network, ``(N, C)``; they get no gradient.
        temperature: T, > 0.

    Returns:
        Scalar tensor, >= 0.

    >>> distillation_loss(torch.zeros(1, 2), torch.zeros(1, 2))
    tensor(0.6931)
    """
    return nn.functional.cross_entropy(logits / temperature, (target_logits.detach() / temperature).softmax(dim=1))


class LwF(Method):
    """Learning without forgetting: on new images, answer as before about the old classes (Li & Hoiem 2017).

    The objective is over all classes with one head, as for all methods here; to it comes the `distillation_loss` over
    the classes of finished tasks. It needs labels, and no memory.

    Args:
        strength: weight of the old outputs, > 0; the authors' 1.
        temperature: > 0; the authors' 2.

    Raises:
        ValueError: an argument is out of its range.
    """

    needs_labels = True

    def __init__(self, strength: float = 1.0, temperature: float = 2.0) -> None:
        super().__init__()
        for name, value in (("strength", strength), ("temperature", temperature)):
            if value <= 0:
                raise ValueError(f"`{name}` must be positive, got {value}")
        self.strength = strength
        self.temperature = temperature
        self.old = FrozenCopy()
        self._classes: list[int] = []

    def loss(self, learner: Learner, step: Step) -> Tensor:
        """The objective, and the distance from the old outputs."""
        if self.old.empty:
            return plain_loss(learner, step)
        (view,) = learner.views(step.images, step)
        outputs = learner.outputs(view)
        step.outputs = outputs.detach()
        with torch.no_grad():
            before = self.old.of(nn.Sequential(learner.backbone, learner.head))(view)
        penalty = self.strength * distillation_loss(
            outputs[:, self._classes], before[:, self._classes], self.temperature
        )
        step.logs["penalty"] = penalty.detach()
        return learner.task_loss((outputs,), step.labels) + penalty

    def look_back(self, learner: Learner, task: TaskData) -> None:
        """Keep the network as it is."""
        self.old.take(nn.Sequential(learner.backbone, learner.head))
        self._classes = sorted({*self._classes, *task.classes})

    def get_extra_state(self) -> dict[str, Any]:
        """The classes of finished tasks, for ``state_dict``."""
        return {"classes": self._classes}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up what a ``state_dict`` has."""
        self._classes = list(state["classes"])


class CaSSLe(Method):
    r"""Distillation for continual learning without labels: from the new projections predict the old ones.

    To the objective on projections :math:`z^1, z^2` comes :math:`\tfrac12 (d(g(z^1), \bar z^1) + d(g(z^2), \bar z^2))`,
    where :math:`\bar z` are those of the network after the task before, g is a predictor of its own, and d is what the
    objective measures: SimSiam 2 less twice the cosine, Barlow Twins its own loss (Fini et al. 2022, eq. 5 to 7). As in
    the authors' code batch norm of the old network takes the statistics of each batch, and g is kept over tasks.
    Under DDP use the strategy ``ddp_find_unused_parameters_true``: g does not train in the first task.

    Args:
        strength: weight of the distillation, > 0; the authors' 1.
        hidden_dim: of the predictor's hidden layer, at least 1; the authors' 2048.

    Raises:
        ValueError: an argument is out of its range.
    """

    needs_no_labels = True

    def __init__(self, strength: float = 1.0, hidden_dim: int = 2048) -> None:
        super().__init__()
        if strength <= 0:
            raise ValueError(f"`strength` must be positive, got {strength}")
        if hidden_dim < 1:
            raise ValueError(f"`hidden_dim` must be at least 1, got {hidden_dim}")
        self.strength = strength
        self.hidden_dim = hidden_dim
        self.old = FrozenCopy()
        self.predictor: nn.Module | None = None

    def connect(self, learner: Learner) -> None:
        """Build the predictor, of the head's width."""
        width = cast(int, learner.head.projection_dim)
        self.predictor = nn.Sequential(
            nn.Linear(width, self.hidden_dim),
            nn.BatchNorm1d(self.hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(self.hidden_dim, width),
        )

    def loss(self, learner: Learner, step: Step) -> Tensor:
        """The objective, and the distance of predictions from the old projections."""
        if self.old.empty:
            return plain_loss(learner, step)
        assert self.predictor is not None  # noqa: S101
        head = cast(Any, learner.head)
        views = learner.views(step.images, step)
        outputs = [learner.outputs(view) for view in views]
        step.outputs = outputs[0].detach()
        projections = [head.projector(features) for features in outputs]
        before = batch_statistics(self.old.of(nn.Sequential(learner.backbone, head.projector)))
        with torch.no_grad():
            targets = [before(view) for view in views]
        pairs = zip(projections, targets, strict=True)
        distances = [head.distance(self.predictor(projection), target) for projection, target in pairs]
        penalty = self.strength * torch.stack(distances).mean()
        step.logs["penalty"] = penalty.detach()
        return cast(Tensor, head.compare(*projections)) + penalty

    def look_back(self, learner: Learner, task: TaskData) -> None:
        """Keep the network as it is."""
        self.old.take(nn.Sequential(learner.backbone, cast(nn.Module, learner.head.projector)))

"""iCaRL: exemplars chosen by herding, classes told by the nearest mean (Rebuffi et al. 2017)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lit_papers.continual.methods.base import Learner, Method, Step, TaskData
from lit_papers.continual.methods.frozen import FrozenCopy


def herd(features: Tensor, count: int) -> Tensor:
    """Choose samples whose running mean stays as close to the mean of all as one more can bring it.

    Args:
        features: ``(N, D)``, as they are compared.
        count: samples to choose; at most all N are.

    Returns:
        Their numbers in the order of the choice, int64 ``(min(count, N),)`` (Rebuffi et al., algorithm 4).

    >>> herd(torch.tensor([[0.0], [1.0], [4.0]]), 2)
    tensor([1, 2])
    """
    mean, total = features.mean(dim=0), torch.zeros_like(features[0])
    free = torch.zeros(len(features), device=features.device)
    chosen = []
    for number in range(1, min(count, len(features)) + 1):
        distance = (mean - (total + features) / number).square().sum(dim=1) + free
        nearest = int(distance.argmin())
        chosen.append(nearest)
        total = total + features[nearest]
        free[nearest] = torch.inf
    return torch.tensor(chosen)


class ICaRL(Method):
    """Incremental classifier and representation learning; needs labels, and one process.

    Training: a sigmoid for each class, and cross-entropy with the labels for new classes, with the outputs of the
    network as it was for old ones, on the batch and as many exemplars (the authors draw from the union). Memory: at the
    end of a task equally many exemplars of each class seen, by `herd`. Evaluation: the class of the nearest mean of
    exemplars' normalised features, so ``val/accuracy`` is not that of the head; while a task runs, its classes' means
    are those of the exemplars that it would leave.

    Args:
        buffer_size: exemplars of all classes together, at least 1; the authors' 2000.

    Raises:
        ValueError: an argument is out of its range, or (at the end of a task) it is below one a class.
    """

    needs_labels = True
    single_process = True

    def __init__(self, buffer_size: int = 2000) -> None:
        super().__init__()
        if buffer_size < 1:
            raise ValueError(f"`buffer_size` must be at least 1, got {buffer_size}")
        self.buffer_size = buffer_size
        self.old = FrozenCopy()
        self.exemplars: dict[int, Tensor] = {}  # raw images of each class, in the order of the choice
        self._means: dict[int, Tensor] = {}

    def loss(self, learner: Learner, step: Step) -> Tensor:
        """Binary cross-entropy, summed over classes."""
        (view,) = learner.views(step.images, step)
        labels = step.labels
        if self.exemplars:
            images, drawn = self._sample(len(step.images), step.generator("memory"))
            (memory,) = learner.views(images.to(view.device), step, "memory ")
            view, labels = torch.cat([view, memory]), torch.cat([labels, drawn.to(labels.device)])
        outputs = learner.outputs(view)
        step.outputs = outputs.detach()[: len(step.images)]
        targets = nn.functional.one_hot(labels, outputs.shape[1]).to(outputs.dtype)
        if not self.old.empty:
            with torch.no_grad():
                before = self.old.of(nn.Sequential(learner.backbone, learner.head))(view).sigmoid()
            classes = sorted(self.exemplars)
            targets[:, classes] = before[:, classes].to(targets.dtype)
        return nn.functional.binary_cross_entropy_with_logits(outputs, targets, reduction="sum") / len(labels)

    def _sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.tensor([label for label, images in self.exemplars.items() for _ in images])
        chosen = torch.randperm(len(labels), generator=generator)[:count]
        ends = torch.tensor([len(images) for images in self.exemplars.values()]).cumsum(0)
        which = torch.searchsorted(ends, chosen, right=True)
        groups = list(self.exemplars.values())
        inside = chosen - torch.cat([ends.new_zeros(1), ends])[which]
        pairs = zip(which.tolist(), inside.tolist(), strict=True)
        return torch.stack([groups[group][place] for group, place in pairs]), labels[chosen]

    def look_back(self, learner: Learner, task: TaskData) -> None:
        """Choose exemplars of the finished task, and give up some of the others."""
        classes = {*self.exemplars, *task.classes}
        each = self.buffer_size // len(classes)
        if not each:
            raise ValueError(f"`buffer_size`={self.buffer_size} leaves no exemplar for each of {len(classes)} classes")
        chosen = self._herded(learner, task, each)
        found: dict[int, list[Tensor]] = {label: [] for label in chosen}
        place = dict.fromkeys(chosen, 0)  # images of the class so far
        wanted = {label: {number: rank for rank, number in enumerate(rows)} for label, (rows, _) in chosen.items()}
        ranks: dict[int, list[int]] = {label: [] for label in chosen}
        for images, labels in task.batches():
            for image, label in zip(images, labels.tolist(), strict=True):
                if place[label] in wanted[label]:
                    found[label].append(image.clone())
                    ranks[label].append(wanted[label][place[label]])
                place[label] += 1
        for label, kept in found.items():
            self.exemplars[label] = torch.stack(kept)[torch.tensor(ranks[label]).argsort()]
        self.exemplars = {label: images[:each].clone() for label, images in self.exemplars.items()}
        self.old.take(nn.Sequential(learner.backbone, learner.head))

    def _herded(self, learner: Learner, task: TaskData, each: int) -> dict[int, tuple[list[int], Tensor]]:
        """For each class of a task: its exemplars' numbers among its images, and the mean of their features."""
        features, labels = _features(learner, task.batches())
        found = {}
        for label in torch.unique(labels).tolist():
            mine = features[labels == label]
            rows = herd(mine, each)
            found[label] = (rows.tolist(), mine[rows.to(mine.device)].mean(dim=0))
        return found

    def before_evaluation(self, learner: Learner, task: TaskData) -> None:
        """Compute the means of all classes."""
        self._means = {}
        if any(label not in self.exemplars for label in task.classes):
            each = max(1, self.buffer_size // len({*self.exemplars, *task.classes}))
            self._means = {label: mean for label, (_, mean) in self._herded(learner, task, each).items()}
        for label, images in self.exemplars.items():
            features, _ = _features(learner, [(images, torch.zeros(len(images)))])
            self._means[label] = features.mean(dim=0)

    def scores(self, features: Tensor, logits: Tensor) -> Tensor:
        """Less the distance from each class' mean; minus infinity for classes that were never seen."""
        if not self._means:
            return logits
        found = torch.full_like(logits, -torch.inf, dtype=torch.float32)
        means = torch.stack(list(self._means.values()))
        with torch.autocast(features.device.type, enabled=False):
            normalised = nn.functional.normalize(features.float())
            found[:, list(self._means)] = -torch.cdist(normalised, nn.functional.normalize(means))
        return found

    def get_extra_state(self) -> dict[str, Any]:
        """The exemplars, for ``state_dict``."""
        return {"exemplars": dict(self.exemplars)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up what a ``state_dict`` has."""
        self.exemplars = dict(state["exemplars"])


def _features(learner: Learner, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Normalised features ``(N, D)`` of raw images, and their labels."""
    pairs = [(nn.functional.normalize(learner.features(images).float()), labels) for images, labels in batches]
    features, labels = zip(*pairs, strict=True)
    return torch.cat(features), torch.cat(labels)

"""What features are worth: within a task, over all classes seen, and on other data than they were learned from.

One protocol for learners with labels and without: features are frozen, images are only scaled and normalised, a
classifier is made of training images and judged by those that validate. Within a task one is told which task an image
is of; over the tasks seen nobody says so, which is harder.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_papers.continual.knn import KNNClassifier
from lit_papers.continual.learner import ContinualLearner
from lit_papers.continual.probe import LinearProbe

Batches = Iterable[tuple[Tensor, Tensor]]


class FewShot(NamedTuple):
    """Accuracy from few labelled images.

    Attributes:
        accuracy: mean over trials, in [0, 1].
        error: standard error of that mean over trials; it does not tell how other test images would fare.
    """

    accuracy: float
    error: float


def features_of(module: ContinualLearner, batches: Batches, task: int | None = None) -> tuple[Tensor, Tensor]:
    """Frozen features of raw images.

    Args:
        module: the learner.
        batches: of raw images and labels.
        task: whose column of a progressive network; None is the newest.

    Returns:
        Features ``(N, D)`` and labels ``(N,)``, on the learner's device.

    Raises:
        ValueError: there are no images.
    """
    pairs = [(module.features(images, task), labels.to(module.device)) for images, labels in batches]
    if not pairs:
        raise ValueError("there are no images to evaluate")
    features, labels = zip(*pairs, strict=True)
    return torch.cat(features), torch.cat(labels)


def knn_accuracy(
    module: ContinualLearner, bank: Batches, query: Batches, k: int = 200, temperature: float = 0.1
) -> float:
    """Accuracy of the nearest-neighbour classifier on frozen features.

    Args:
        module: the learner; its newest column, if it has several.
        bank: batches of raw images and labels, which are the neighbours.
        query: batches to classify.
        k: neighbours; at most the whole bank is taken.
        temperature: of their weights.

    Returns:
        Share of queries that are classified right, in [0, 1].

    Raises:
        ValueError: bank or query has no images, or the features are not finite.
    """
    knn = KNNClassifier(k, temperature)
    knn.update(*features_of(module, bank))
    return _accuracy(knn, *features_of(module, query))


def knn_accuracy_seen(module: ContinualLearner, stream: Any, tasks: Sequence[int] | None = None) -> float:
    """Accuracy of nearest neighbours among the training images of all tasks seen, on their validation images.

    Args:
        module: the learner, whose ``knn_k`` and ``knn_temperature`` are taken.
        stream: a `TaskSequence`, or what has ``memory_dataloader`` and ``val_dataloader`` like it; set up.
        tasks: the tasks; None is all that the learner was trained on.

    Returns:
        Share of all their images that are classified right, in [0, 1].
    """
    tasks = _seen(module, stream) if tasks is None else list(tasks)
    k = len(tasks) if module.knn_k == "tasks_seen" else int(module.knn_k)
    knn = KNNClassifier(k, module.knn_temperature)
    knn.update(*_trained_on(module, stream, tasks))
    return _accuracy(knn, *_validated_on(module, stream, tasks))


def linear_probe_accuracy(
    module: ContinualLearner, stream: Any, tasks: Sequence[int] | None = None, c: float = 1.0
) -> float:
    """Accuracy of a linear probe on the training images of all tasks seen, on their validation images.

    Args:
        module: the learner.
        stream: a `TaskSequence`, or what has ``memory_dataloader`` and ``val_dataloader`` like it; set up.
        tasks: the tasks; None is all that the learner was trained on; one is the probe within that task.
        c: inverse strength of the probe's penalty, see `LinearProbe`.

    Returns:
        Share of all their images that are classified right, in [0, 1].
    """
    tasks = _seen(module, stream) if tasks is None else list(tasks)
    probe = LinearProbe(c).fit(*_trained_on(module, stream, tasks))
    return _accuracy(probe, *_validated_on(module, stream, tasks))


def few_shot_accuracy(
    module: ContinualLearner, stream: Any, shots: int = 5, trials: int = 20, seed: int = 0
) -> FewShot:
    """Transfer from few images: the class of the nearest mean of ``shots`` images of each class (Snell et al. 2017).

    Args:
        module: the learner; its newest column, if it has several.
        stream: the data, such as ``TaskSequence("mnist", num_tasks=1)``, set up; of all its tasks.
        shots: training images of each class, at least 1.
        trials: draws of them, at least 2.
        seed: of the draws.

    Returns:
        Mean accuracy on the validation images, and its standard error over the draws.

    Raises:
        ValueError: an argument is out of its range, or a class has too few images.
    """
    if shots < 1 or trials < 2:
        raise ValueError(f"`shots` must be at least 1 and `trials` at least 2, got {shots} and {trials}")
    tasks = list(range(stream.num_tasks))
    bank, labels = _trained_on(module, stream, tasks)
    query, truth = _validated_on(module, stream, tasks)
    bank, query = (torch.nn.functional.normalize(part) for part in (bank, query))
    classes = torch.unique(labels)
    rows = [(labels == label).nonzero().flatten().cpu() for label in classes]
    if min(len(row) for row in rows) < shots:
        raise ValueError(f"`shots`={shots}, but a class has {min(len(row) for row in rows)} training images")
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(trials):
        drawn = [row[torch.randperm(len(row), generator=generator)[:shots]] for row in rows]
        means = torch.stack([bank[few.to(bank.device)].mean(dim=0) for few in drawn])
        nearest = classes[torch.cdist(query, means).argmin(dim=1)]
        found.append((nearest == truth).double().mean().item())
    accuracy = torch.tensor(found)
    return FewShot(accuracy.mean().item(), (accuracy.std() / trials**0.5).item())


def out_of_distribution_accuracy(
    module: ContinualLearner, data: Any, shape: tuple[int, int, int], k: int = 200, temperature: float = 0.1
) -> float:
    """Accuracy on a data set from which nothing was learned, as in the paper's out-of-distribution table.

    Args:
        module: the learner.
        data: a stream of one task, such as ``TaskSequence("mnist", num_tasks=1)``, set up.
        shape: ``(C, H, W)`` of the images that the network was trained on: others are resized, grey ones repeated, and
            colours averaged.
        k: neighbours; at most all training images are taken.
        temperature: of their weights.

    Returns:
        Share of its test images that are classified right, in [0, 1].
    """
    (queries,) = data.test_dataloader()
    bank = data.memory_dataloader(0)
    return knn_accuracy(
        module,
        ((like(images, shape), labels) for images, labels in bank),
        ((like(images, shape), labels) for images, labels in queries),
        k,
        temperature,
    )


def like(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Bring raw images to the channels and pixels of others.

    Args:
        images: uint8, or float in [0, 1]; ``(N, C, H, W)``.
        shape: ``(C, H, W)`` wanted.

    Returns:
        Images of that shape: uint8, or float in [0, 1] where they were resized or averaged.

    Raises:
        ValueError: the number of channels cannot be changed so.

    >>> like(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), (3, 32, 32)).shape
    torch.Size([2, 3, 32, 32])
    """
    channels, height, width = shape
    if images.shape[1] != channels:
        if images.shape[1] == 1:
            images = images.expand(-1, channels, -1, -1)
        elif channels == 1:
            images = _floats(images).mean(dim=1, keepdim=True)
        else:
            raise ValueError(f"images of {images.shape[1]} channels cannot become images of {channels}")
    if images.shape[2:] != (height, width):
        images = torch.nn.functional.interpolate(_floats(images), (height, width), mode="bilinear", antialias=True)
    return images


def _floats(images: Tensor) -> Tensor:
    return images / 255 if images.dtype == torch.uint8 else images


def _seen(module: ContinualLearner, stream: Any) -> list[int]:
    return list(range(stream.num_tasks))[: max(module.tasks.task, 0) + 1]


def _trained_on(module: ContinualLearner, stream: Any, tasks: Sequence[int]) -> tuple[Tensor, Tensor]:
    return features_of(module, (batch for task in tasks for batch in stream.memory_dataloader(task)))


def _validated_on(module: ContinualLearner, stream: Any, tasks: Sequence[int]) -> tuple[Tensor, Tensor]:
    loaders = stream.val_dataloader()
    return features_of(module, (batch for task in tasks for batch in loaders[task]))


def _accuracy(classifier: KNNClassifier | LinearProbe, features: Tensor, truth: Tensor) -> float:
    return (classifier.predict(features) == truth).double().mean().item()

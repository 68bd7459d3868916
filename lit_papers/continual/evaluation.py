"""What features are worth on other data than they were learned from."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lit_papers.continual.knn import KNNClassifier
from lit_papers.continual.learner import ContinualLearner

Batches = Iterable[tuple[Tensor, Tensor]]


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
        RuntimeError: the bank is empty.
        ValueError: there is no query, or the features are not finite.
    """
    knn = KNNClassifier(k, temperature)
    for images, labels in bank:
        knn.update(module.features(images), labels.to(module.device))
    right = total = 0
    for images, labels in query:
        found = knn.predict(module.features(images))
        right += int((found == labels.to(module.device)).sum())
        total += len(labels)
    if not total:
        raise ValueError("`query` has no images")
    return right / total


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
        images: uint8 ``(N, C, H, W)``.
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
            images = images.float().mean(dim=1, keepdim=True) / 255
        else:
            raise ValueError(f"images of {images.shape[1]} channels cannot become images of {channels}")
    if images.shape[2:] != (height, width):
        pixels = images / 255 if images.dtype == torch.uint8 else images
        images = torch.nn.functional.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
    return images

"""What `reproduce` calls for this paper: networks of one seed that learned digits, and what their features are worth.

Learners and methods are those of every run; the loop around them is plain, as nothing here needs a Trainer: pairs of
scikit-learn's digits in turn, a fixed number of epochs each, with labels or without. The backbone has no batch norm,
and steps are many and small: after few and large ones a network with labels has not learned even its last pair, and
what it forgot of the others says nothing.
"""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_papers.continual.augmentations import SSLTransform
from lit_papers.continual.cnn import SmallCNN
from lit_papers.continual.knn import KNNClassifier
from lit_papers.continual.landscape import loss_landscape
from lit_papers.continual.learner import ContinualLearner
from lit_papers.continual.methods import LUMP, Finetune, Method, Step
from lit_papers.continual.module import SupervisedContinual, UnsupervisedContinual
from lit_papers.continual.similarity import layer_similarity

_METHODS: dict[str, type[Method]] = {"Finetune": Finetune, "LUMP": LUMP}
_PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
_EPOCHS = 8  # of each task
_BATCH_SIZE = 16
_LEARNING_RATE = 0.003
_LAYERS = ("stages.0", "stages.1")


class Digits(NamedTuple):
    """Images of some classes, uint8 ``(N, 1, 8, 8)``, and their classes, int64 ``(N,)``: to learn from, and others."""

    images: Tensor
    labels: Tensor
    other_images: Tensor
    other_labels: Tensor


def never_seen_classes(seed: int, labels: bool, method: str = "Finetune") -> dict[str, float]:
    """Accuracy of nearest neighbours on classes that were learned, and on classes that were not.

    Args:
        seed: of the network, its data and all draws.
        labels: whether it learned with labels.
        method: ``"Finetune"``, or without labels ``"LUMP"``.

    Returns:
        ``seen``, on the six classes of the stream, and ``never_seen``, on the other four; the untrained network's as
        ``seen_untrained`` and ``never_seen_untrained``.
    """
    found = {}
    for name, epochs in (("_untrained", 0), ("", _EPOCHS)):
        learner = _learned(seed, labels, method, tasks=_PAIRS[:3], epochs=epochs)
        found[f"seen{name}"] = _accuracy(learner, digits([0, 1, 2, 3, 4, 5], seed))
        found[f"never_seen{name}"] = _accuracy(learner, digits([6, 7, 8, 9], seed))
    return found


def similarity_of_two_seeds(seed: int, labels: bool) -> dict[str, float]:
    """Debiased linear CKA of the layers of two networks that learned the same stream from different starts.

    Args:
        seed: of the data and of the first network; the other's is 1000 more.
        labels: whether they learned with labels.

    Returns:
        ``first_stage`` and ``second_stage``, at most 1.
    """
    first, second = (_learned(start, labels, "Finetune", data_seed=seed) for start in (seed, seed + 1000))
    view = first.plain(digits(range(10), seed).other_images)
    similar = layer_similarity(first.backbone, second.backbone, view, _LAYERS, debiased=True).diagonal()
    return dict(zip(("first_stage", "second_stage"), similar.tolist(), strict=True))


def rise_around_the_weights(seed: int, labels: bool, span: float = 0.5) -> dict[str, float]:
    """How much worse the neighbours of an image become when the weights are moved: one quantity for every objective.

    Args:
        seed: of the network, its data and all draws.
        labels: whether it learned with labels.
        span: how far, along two filter-normalised directions (see `landscape.loss_landscape`).

    Returns:
        ``error`` of the nearest neighbours within the pair that was learned last, ``moved``, its mean over the eight
        points around the weights, and ``rise``, how much larger that is.
    """
    learner = _learned(seed, labels, "Finetune")
    last = digits(_PAIRS[-1], seed)

    def error(_: torch.nn.Module) -> Tensor:
        return torch.tensor(1 - _accuracy(learner, last))

    loss = loss_landscape(learner.backbone, error, steps=3, span=span, seed=seed).loss
    middle, around = loss[1, 1].item(), (loss.sum() - loss[1, 1]).item() / 8
    return {"error": middle, "moved": around, "rise": around - middle}


def digits(classes: Sequence[int], seed: int, train_share: float = 0.8) -> Digits:
    """Some classes of scikit-learn's digits, split at random.

    Raises:
        ImportError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits need scikit-learn: install lit-papers[data]") from error
    raw = load_digits()
    images = torch.from_numpy((raw.images * (255 / 16)).round().astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(raw.target.astype(np.int64))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))  # of all: pairs do not overlap
    border = round(train_share * len(order))
    parts = torch.split(order, [border, len(order) - border])
    wanted = torch.isin(labels, torch.tensor(list(classes)))
    first, rest = (part[wanted[part]] for part in parts)
    return Digits(images[first], labels[first], images[rest], labels[rest])


def _learned(
    seed: int,
    labels: bool,
    method: str,
    *,
    tasks: Sequence[Sequence[int]] = _PAIRS,
    epochs: int = _EPOCHS,
    data_seed: int | None = None,
) -> ContinualLearner:
    """A learner after a stream of pairs of digits, in evaluation mode."""
    torch.manual_seed(seed)
    backbone = SmallCNN(in_channels=1, width=16)
    transform = SSLTransform(8, (0.4, 1.0), flip_p=0.0, mean=(0.5,), std=(0.5,))
    chosen = _METHODS[method]()
    learner: ContinualLearner
    if labels:
        learner = SupervisedContinual(10, chosen, backbone, transform, lr=_LEARNING_RATE, seed=seed)
    else:
        learner = UnsupervisedContinual(chosen, backbone, "simsiam", 128, transform, lr=_LEARNING_RATE, seed=seed)
    optimizer = learner.configure_optimizers()
    learner.train()
    for number, classes in enumerate(tasks):
        data = digits(classes, seed if data_seed is None else data_seed)
        for epoch in range(number * epochs, (number + 1) * epochs):
            order = torch.randperm(len(data.labels), generator=_generator(seed, epoch, 0, "order"))
            # no rest: SimSiam's projector has batch norm, which takes no batch of one
            whole = order[: len(order) // _BATCH_SIZE * _BATCH_SIZE].view(-1, _BATCH_SIZE)
            for batch, rows in enumerate(whole):
                step = Step(
                    data.images[rows],
                    data.labels[rows],
                    lambda purpose, epoch=epoch, batch=batch: _generator(seed, epoch, batch, purpose),  # type: ignore[misc]
                )
                loss = chosen.loss(learner, step)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                chosen.after_step(learner.backbone)
                chosen.remember(learner, step)
    return learner.eval()


def _generator(seed: int, epoch: int, batch: int, purpose: str) -> torch.Generator:
    key = [seed, epoch, batch, zlib.crc32(purpose.encode())]
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def _accuracy(learner: ContinualLearner, data: Digits) -> float:
    """Share of the images that were not learned from whose neighbours among the others say what they are."""
    knn = KNNClassifier(20, 0.1)
    knn.update(learner.features(data.images), data.labels)
    return (knn.predict(learner.features(data.other_images)) == data.other_labels).double().mean().item()

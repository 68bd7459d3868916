"""Methods that replay a reservoir of the past: LUMP (Madaan et al.), ER, DER and DER++ (Buzzega et al. 2020)."""

import numpy as np
import torch
from torch import Tensor

from lit_papers.continual.buffer import ReservoirBuffer
from lit_papers.continual.methods.base import Learner, Method, Step, plain_loss


def mix(x: Tensor, memory: Tensor, lam: float) -> Tensor:
    r"""Interpolate images: :math:`\lambda x + (1 - \lambda) m` (Madaan et al., eq. 5).

    Args:
        x: images of now, ``(N, ...)``.
        memory: images of the past, of the same shape.
        lam: share of now, in [0, 1]; 1 gives ``x`` bit by bit.

    Returns:
        Mixed images, of the same shape.

    >>> mix(torch.ones(1), torch.zeros(1), 0.25)
    tensor([0.2500])
    """
    return x if lam == 1 else lam * x + (1 - lam) * memory


class LUMP(Method):
    r"""Lifelong unsupervised mixup: train on images of now mixed with images of the past, and on nothing else.

    In each step one share :math:`\lambda \sim \mathrm{Beta}(\alpha, \alpha)` is drawn for the batch, and one partner
    from memory for each image; both views of an image are mixed with two views of that partner (Madaan et al.,
    section 4.2). Only the first step of a run, before there is a memory, is plain. The authors re-augment one view of
    the partner and keep the other as it was stored; here both are augmented afresh.

    Args:
        alpha: of the Beta distribution, > 0; the authors use 0.4 everywhere.
        buffer_size: images in memory, at least 1.
        seed: of the reservoir.
        weight: a fixed share of now in [0, 1] instead of random ones; 1 trains bit by bit as `Finetune`.

    Raises:
        ValueError: an argument is out of its range.
    """

    needs_no_labels = True

    def __init__(self, alpha: float = 0.4, buffer_size: int = 256, seed: int = 0, weight: float | None = None) -> None:
        super().__init__()
        if alpha <= 0:
            raise ValueError(f"`alpha` must be positive, got {alpha}")
        if weight is not None and not 0 <= weight <= 1:
            raise ValueError(f"`weight` must be in [0, 1], got {weight}")
        self.alpha = alpha
        self.weight = weight
        self.buffer = ReservoirBuffer(buffer_size, seed)

    def loss(self, learner: Learner, step: Step) -> Tensor:
        """The objective on mixed views."""
        if not len(self.buffer):
            return plain_loss(learner, step)
        views = learner.views(step.images, step)
        memory = self.buffer.sample(len(step.images), step.generator("memory"))["images"].to(step.images.device)
        partners = learner.views(memory, step, "memory ")
        lam = self._share(step.generator("lambda"))
        outputs = tuple(learner.outputs(mix(x, m, lam)) for x, m in zip(views, partners, strict=True))
        step.logs["lambda"] = torch.tensor(lam)
        return learner.task_loss(outputs, step.labels)

    def _share(self, generator: torch.Generator) -> float:
        if self.weight is not None:
            return self.weight
        # torch's Beta takes no generator
        seed = int(torch.randint(2**62, (), generator=generator))
        return float(np.random.default_rng(seed).beta(self.alpha, self.alpha))

    def remember(self, learner: Learner, step: Step) -> None:
        """Offer the raw images to the reservoir."""
        self.buffer.add(images=step.images)


class ER(Method):
    """Experience replay: train on the batch and as many images of a reservoir, as one batch.

    As in Chaudhry et al. 2019 (*On tiny episodic memories*, algorithm 1) and Riemer et al. 2019; the loss is the mean
    over both halves.

    Args:
        buffer_size: images in memory, at least 1.
        seed: of the reservoir.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, buffer_size: int = 256, seed: int = 0) -> None:
        super().__init__()
        self.buffer = ReservoirBuffer(buffer_size, seed)

    def loss(self, learner: Learner, step: Step) -> Tensor:
        """The objective on current and replayed images together."""
        if not len(self.buffer):
            return plain_loss(learner, step)
        drawn = self.buffer.sample(min(len(step.images), len(self.buffer)), step.generator("memory"))
        views = learner.views(step.images, step)
        memory = learner.views(drawn["images"].to(step.images.device), step, "memory ")
        outputs = tuple(learner.outputs(torch.cat(pair)) for pair in zip(views, memory, strict=True))
        step.outputs = outputs[0].detach()[: len(step.images)]
        return learner.task_loss(outputs, torch.cat([step.labels, drawn["labels"].to(step.labels.device)]))

    def remember(self, learner: Learner, step: Step) -> None:
        """Offer the raw images and labels to the reservoir."""
        self.buffer.add(images=step.images, labels=step.labels)


class DER(Method):
    r"""Dark experience replay: keep the outputs of the past where they were.

    To the objective comes :math:`\alpha` times the mean squared distance of the outputs on replayed images from those
    that the network had when they were stored: backbone features without labels (Madaan et al., section 4.1), logits
    with them (Buzzega et al. 2020, eq. 6).

    Args:
        alpha: weight of the distance, > 0.
        buffer_size: images in memory, at least 1.
        seed: of the reservoir.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, alpha: float = 0.4, buffer_size: int = 256, seed: int = 0) -> None:
        super().__init__()
        if alpha <= 0:
            raise ValueError(f"`alpha` must be positive, got {alpha}")
        self.alpha = alpha
        self.buffer = ReservoirBuffer(buffer_size, seed)

    def loss(self, learner: Learner, step: Step) -> Tensor:
        """The objective, and the distance on as many replayed images as there are."""
        loss = plain_loss(learner, step)
        if not len(self.buffer):
            return loss
        drawn = self.buffer.sample(min(len(step.images), len(self.buffer)), step.generator("memory"))
        view = learner.views(drawn["images"].to(step.images.device), step, "memory ")[0]
        outputs = learner.outputs(view)
        penalty = self.alpha * (outputs.float() - drawn["outputs"].to(outputs.device)).square().mean()
        step.logs["penalty"] = penalty.detach()
        return loss + penalty

    def remember(self, learner: Learner, step: Step) -> None:
        """Offer the raw images with their outputs to the reservoir."""
        assert step.outputs is not None, "`loss` sets it"  # noqa: S101
        self.buffer.add(images=step.images, outputs=step.outputs.float())


class DERpp(DER):
    r"""Dark experience replay with labels, DER++.

    To DER's loss comes :math:`\beta` times the objective on a second draw of the memory, by its labels (Buzzega et al.
    2020, eq. 7). It needs labels.

    Args:
        alpha: weight of the distance of logits, > 0; the authors' 0.1 for split CIFAR-10 and a memory of 200.
        beta: weight of the replayed labels, > 0; the authors' 0.5.
        buffer_size: images in memory, at least 1.
        seed: of the reservoir.

    Raises:
        ValueError: an argument is out of its range.
    """

    needs_labels = True

    def __init__(self, alpha: float = 0.1, beta: float = 0.5, buffer_size: int = 256, seed: int = 0) -> None:
        super().__init__(alpha, buffer_size, seed)
        if beta <= 0:
            raise ValueError(f"`beta` must be positive, got {beta}")
        self.beta = beta

    def loss(self, learner: Learner, step: Step) -> Tensor:
        """DER's, and the objective on a second draw."""
        loss = super().loss(learner, step)
        if not len(self.buffer):
            return loss
        drawn = self.buffer.sample(min(len(step.images), len(self.buffer)), step.generator("labelled memory"))
        views = learner.views(drawn["images"].to(step.images.device), step, "labelled memory ")
        outputs = tuple(learner.outputs(view) for view in views)
        penalty = self.beta * learner.task_loss(outputs, drawn["labels"].to(step.labels.device))
        step.logs["penalty"] = step.logs["penalty"] + penalty.detach()
        return loss + penalty

    def remember(self, learner: Learner, step: Step) -> None:
        """Offer the raw images with their outputs and labels to the reservoir."""
        assert step.outputs is not None, "`loss` sets it"  # noqa: S101
        self.buffer.add(images=step.images, outputs=step.outputs.float(), labels=step.labels)

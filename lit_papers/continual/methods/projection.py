"""A-GEM: no step may increase the loss on a memory of the past (Chaudhry et al. 2019)."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lit_papers.continual.buffer import ReservoirBuffer
from lit_papers.continual.methods.base import Learner, Method, Step, TaskData, plain_loss


def project_gradient(grad: Tensor, reference: Tensor) -> Tensor:
    r"""Take out of a gradient what would increase the reference's loss.

    .. math:: g - \frac{g \cdot g_{ref}}{\|g_{ref}\|^2}\, g_{ref} \quad\text{if}\quad g \cdot g_{ref} < 0

    (Chaudhry et al. 2019, eq. 11.)

    Args:
        grad: of the current loss, ``(P,)``.
        reference: of the loss on the memory, ``(P,)``; 0 changes nothing.

    Returns:
        The gradient to follow, ``(P,)``.

    >>> project_gradient(torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0]))
    tensor([0.5000, 0.5000])
    """
    product = grad @ reference
    if product >= 0:
        return grad
    return grad - product / (reference @ reference) * reference


class AGEM(Method):
    """Averaged gradient episodic memory; needs labels.

    The memory gets an equal share of random images of each task when that ends, as they came.

    Args:
        buffer_size: images in memory, at least one a task.
        seed: of the draws.

    Raises:
        ValueError: an argument is out of its range.
    """

    needs_labels = True

    def __init__(self, buffer_size: int = 256, seed: int = 0) -> None:
        super().__init__()
        self.buffer = ReservoirBuffer(buffer_size, seed)
        self._reference: list[tuple[nn.Parameter, Tensor]] = []

    def loss(self, learner: Learner, step: Step) -> Tensor:
        """The objective; the gradient on a batch of memory is kept for `before_step`."""
        self._reference = self._memory_gradient(learner, step) if len(self.buffer) else []
        return plain_loss(learner, step)

    def _memory_gradient(self, learner: Learner, step: Step) -> list[tuple[nn.Parameter, Tensor]]:
        drawn = self.buffer.sample(min(len(step.images), len(self.buffer)), step.generator("memory"))
        views = learner.views(drawn["images"].to(step.images.device), step, "memory ")
        outputs = tuple(learner.outputs(view) for view in views)
        loss = learner.task_loss(outputs, drawn["labels"].to(step.labels.device))
        parameters = [weight for _, weight in learner.named_parameters() if weight.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        kept = [(weight, g) for weight, g in zip(parameters, gradients, strict=True) if g is not None]
        if dist.is_available() and dist.is_initialized():
            for _, gradient in kept:  # every process has drawn images of its own
                dist.all_reduce(gradient)
                gradient /= dist.get_world_size()
        return kept

    def before_step(self, net: nn.Module, lr: float | None = None, penalised: bool = False) -> None:
        """Project the gradients; after unscaling, before clipping."""
        pairs = [(weight.grad, reference) for weight, reference in self._reference if weight.grad is not None]
        self._reference = []
        if not pairs:
            return
        grad = torch.cat([gradient.flatten() for gradient, _ in pairs])
        reference = torch.cat([reference.flatten() for _, reference in pairs])
        projected = project_gradient(grad, reference)
        start = 0
        for gradient, _ in pairs:
            gradient.copy_(projected[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()

    def look_back(self, learner: Learner, task: TaskData) -> None:
        """Take an equal share of the memory in.

        Raises:
            ValueError: it has fewer images than there are tasks.
        """
        if self.buffer.size < task.num_tasks:
            raise ValueError(f"`buffer_size`={self.buffer.size} leaves no image for each of {task.num_tasks} tasks")
        images, labels = task.sample(self.buffer.size // task.num_tasks)
        self.buffer.add(images=images, labels=labels)

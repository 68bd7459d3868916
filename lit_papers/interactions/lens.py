"""Which orders of interaction a classifier encodes, at one moment."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_papers.accumulator import float64_device
from lit_papers.interactions import figures
from lit_papers.interactions.estimator import MultiOrderInteraction
from lit_papers.interactions.metrics import RelativeInteractionStrength
from lit_papers.interactions.players import FeaturePlayers, PatchGrid
from lit_papers.lens import Lens, Moment, Numbers, Subject, class_indices, tensors_in

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class InteractionLens(Lens):
    r"""Relative strength J of each order of interaction (Deng et al., ICLR 2022, section 3).

    Args:
        players: what is masked: patches of images or features of a table.
        n_samples: of the data, its first ones; a ``fast_dev_run`` takes one, right or wrong.
        only_correct: leave out samples that the network misclassifies, as the paper does (not before training).
        estimator: further arguments of `lit_papers.interactions.estimator.MultiOrderInteraction`.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "interactions"
    reads = "validation"

    def __init__(
        self, players: PatchGrid | FeaturePlayers, n_samples: int = 50, only_correct: bool = True, **estimator: Any
    ) -> None:
        if n_samples < 1:
            raise ValueError(f"`n_samples` must be at least 1, got {n_samples}")
        self.players = players
        self.n_samples = n_samples
        self.only_correct = only_correct
        self.estimator = estimator
        self.n_forwards = 0

    def check(self, subject: Subject) -> tuple[Tensor, Tensor]:
        """Read the samples, and see that the estimator takes its arguments."""
        self._estimator(subject.network)
        x, targets = subject.rows(1 if subject.trial else self.n_samples, wanted="samples")
        with subject.quiet(), subject.twin() as network, subject.precision():
            logits = _Logits(network)(x[:1])
        return x, class_indices(targets, logits.shape[1])

    def look(self, moment: Moment, prepared: tuple[Tensor, Tensor], history: Sequence[Mapping[str, Any]]) -> Numbers:
        """Strength of each order, over the samples of all processes.

        Raises:
            ValueError: the logits are not finite, or no sample is classified correctly.
        """
        x, y = prepared
        processes, subject = moment.processes, moment.subject
        device = float64_device(subject.device)
        metric = RelativeInteractionStrength(self._estimator(subject.network).orders).to(device)
        counts = torch.zeros(3, dtype=torch.float64)  # samples measured, not finite, forwards
        with processes.same_fate(), moment.network() as network, torch.autocast(x.device.type, enabled=False):
            estimator = self._estimator(_Logits(network))
            ids = torch.arange(processes.rank, len(y), processes.size, device=y.device)
            every = moment.untrained or subject.trial or not self.only_correct
            ids, finite = _chosen(estimator, x, y, ids, every)
            counts[1] = not finite
            if len(ids) and finite:
                result = estimator(x[ids], y[ids], ids.tolist())
                metric.update(result.interactions.to(device))
                counts[0], counts[2] = len(ids), result.n_forwards
        samples, broken, forwards = processes.sum(counts).tolist()
        self.n_forwards += int(forwards)
        if broken:
            raise ValueError("the logits are not finite (NaN or infinite)")
        if not samples:
            raise ValueError("no sample is classified correctly")
        if not metric.update_called:  # this process had no sample; torchmetrics would warn
            metric.update(torch.empty(0, len(metric.orders), dtype=torch.float64, device=device))
        computed = metric.compute()
        return self._numbers(
            metric.orders, computed["strength"].tolist(), computed["relative_strength"].tolist(), samples, forwards
        )

    def unknown(self, prepared: tuple[Tensor, Tensor]) -> Numbers:
        """NaN for every order."""
        orders = self._estimator(nn.Identity()).orders
        unknown = [math.nan] * len(orders)
        return self._numbers(list(orders), unknown, unknown, math.nan, math.nan)

    def figure(self, history: Sequence[Mapping[str, Any]]) -> "Figure":
        """J against order, S against order (log), and J as a map of orders by measured epochs."""
        return figures.strength(history, self.players.n_players)

    def _numbers(
        self, orders: list[int], strength: list[float], relative: list[float], samples: float, forwards: float
    ) -> Numbers:
        by_order = list(zip(orders, strength, relative, strict=True))
        largest = max(1, self.players.n_players - 2)
        total = sum(relative) or 1.0
        return {
            "orders": [float(m) for m in orders],
            "strength": strength,
            "relative_strength": relative,
            **{f"J/m{m}": j for m, _, j in by_order},
            **{f"S/m{m}": s for m, s, _ in by_order},
            "J_centroid": sum(m * j for m, _, j in by_order) / largest / total,
            "n_samples": float(samples),
            "n_forwards": float(forwards),
        }

    def _estimator(self, model: nn.Module) -> MultiOrderInteraction:
        return MultiOrderInteraction(model, self.players, **self.estimator)


def _chosen(estimator: MultiOrderInteraction, x: Tensor, y: Tensor, ids: Tensor, every: bool) -> tuple[Tensor, bool]:
    """Which samples to measure, and whether their logits are finite."""
    if not len(ids):
        return ids, True
    logits = torch.cat([estimator.model(x[part]) for part in torch.split(ids, estimator.batch_size)])
    finite = bool(torch.isfinite(logits).all())
    return (ids if every else ids[logits.argmax(dim=1) == y[ids]]), finite


class _Logits(nn.Module):
    """A stranger's module, of whose output only the logits are wanted."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        output = self.module(x)
        for tensor in tensors_in(output):
            if tensor.ndim == 2 and tensor.is_floating_point() and len(tensor) == len(x):
                return tensor
        raise TypeError(
            f"forward of {type(self.module).__name__} must return logits (N, C), alone or first among other tensors, "
            f"got {type(output).__name__}"
        )

"""What a network loses under attack and under masking, at one moment."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_papers.interactions.checks import whole_number
from lit_papers.interactions.evaluation import masking_curve, pgd_accuracy, structural_sensitivity
from lit_papers.interactions.outputs import call_network, two_logits
from lit_papers.interactions.players import PatchGrid
from lit_papers.interactions.samples import READ, balanced, labelled
from lit_papers.lens import Lens, Moment, Numbers, Subject
from lit_papers.plotting import STYLES, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRACTIONS = tuple(k / 10 for k in range(11))


class RobustnessLens(Lens):
    """Accuracy, accuracy under attack, and for images what masking costs (Deng et al., ICLR 2022, section 4).

    ``accuracy``, ``under_attack`` (`lit_papers.interactions.evaluation.pgd_accuracy`), and with ``players`` the lists
    ``masked_random`` and ``masked_border`` (accuracy at ``masked_share``) and ``area`` between them. The samples are
    drawn from all over the data under a fixed seed, and balanced over their classes.

    Args:
        eps: largest change of an input.
        step_size: change in the first steps; None leaves it to ``eps`` and ``steps``.
        steps: of the attack.
        restarts: random starts of the attack.
        n_samples: how many samples.
        players: patches that are masked; None masks nothing.
        baseline: what replaces masked patches.
        seed: of samples, starts and masks.

    Raises:
        ValueError: an argument is out of range.
        TypeError: a count is no integer.
    """

    name = "robustness"
    reads = "validation"

    def __init__(
        self,
        eps: float,
        step_size: float | None = None,
        steps: int = 100,
        restarts: int = 2,
        n_samples: int = 500,
        players: PatchGrid | None = None,
        baseline: float | Tensor = 0.0,
        seed: int = 0,
    ) -> None:
        self.eps = eps
        self.step_size = step_size
        self.steps = whole_number("steps", steps, least=0)
        self.restarts = whole_number("restarts", restarts, least=1)
        self.n_samples = whole_number("n_samples", n_samples, least=1)
        self.players = players
        self.baseline = baseline
        self.seed = seed

    def check(self, subject: Subject) -> tuple[Tensor, Tensor]:
        """Read and choose the samples."""
        first, _ = subject.rows(1, wanted="samples")
        with subject.quiet(), subject.twin() as network, subject.precision():
            classes = two_logits(call_network(network, first)).shape[1]
        distinct = min(classes, self.n_samples)
        x, targets = subject.rows(READ * self.n_samples, wanted="samples", scatter=self.seed, distinct=distinct)
        x, y = labelled(x, targets, classes)
        chosen = balanced(y, self.n_samples, self.seed).to(y.device)
        return x[chosen], y[chosen]

    def look(self, moment: Moment, prepared: tuple[Tensor, Tensor], history: Sequence[Mapping[str, Any]]) -> Numbers:
        """Attack and mask; the same samples on every process."""
        x, y = prepared
        with moment.network() as network, torch.autocast(x.device.type, enabled=False):
            numbers: Numbers = {
                "accuracy": pgd_accuracy(network, x, y, 0.0, steps=0),
                "under_attack": pgd_accuracy(
                    network, x, y, self.eps, self.step_size, self.steps, self._generator(), restarts=self.restarts
                ),
            }
            if self.players is not None:
                random, border = (
                    masking_curve(network, self.players, x, y, FRACTIONS, layout, self.baseline, self._generator())
                    for layout in ("random", "border")
                )
                numbers |= {
                    "masked_share": list(FRACTIONS),
                    "masked_random": random.tolist(),
                    "masked_border": border.tolist(),
                    "area": structural_sensitivity(FRACTIONS, random, border),
                }
        return numbers

    def figure(self, history: Sequence[Mapping[str, Any]]) -> "Figure":
        """Accuracy and accuracy under attack over epochs."""
        figure, (axis,) = new_figure(1, 1)
        epochs = [entry["epoch"] for entry in history]
        for style, (key, label) in zip(STYLES, (("accuracy", "clean"), ("under_attack", "under attack")), strict=False):
            axis.plot(epochs, [entry[key] for entry in history], label=label, **style)
        axis.set(xlabel="epoch", ylabel="accuracy", ylim=(0, 1.02))
        axis.legend()
        axis.grid(alpha=0.3)
        return figure

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

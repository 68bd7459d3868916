"""How far the head of a classifier is from the least-squares head of its features, whatever loss trained it."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_papers.lens import Lens, Moment, Numbers, Subject
from lit_papers.neural_collapse.functional import ClassStatistics, least_squares_classifier, mse_decomposition
from lit_papers.neural_collapse.lens import gather_statistics
from lit_papers.plotting import STYLES, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROUNDING = 1e-12  # of the loss without any weights
_KEYS = ("distance", "excess", "ls")


def least_squares_distance(stats: ClassStatistics, weight: Tensor) -> dict[str, Tensor]:
    r"""What lies between a head and the least-squares head :math:`W_{LS}` of its features, but for scale and bias.

    .. math:: d = \left\| \frac{\bar W}{\|\bar W\|_F} - \frac{W_{LS}}{\|W_{LS}\|_F} \right\|_F^2, \qquad
              e = \min_{s, b} \frac{L(s \bar W, b) - L_{LS}}{L_{LS}}

    with the rows of W centred, which no decision and no cross-entropy can see. Han, Papyan & Donoho, ICLR 2022, show
    that training by MSE keeps the head beside :math:`W_{LS}`; scale and bias are left out here, so that
    heads of other losses can be compared with it.

    Args:
        stats: statistics of ``C`` classes in ``d`` dimensions.
        weight: of the head, shape ``(C, d)``.

    Returns:
        Scalars ``distance`` in [0, 4], ``excess`` >= 0 (NaN where the least-squares loss is 0) and ``ls``, the loss of
        the least-squares head, per sample.

    Raises:
        ValueError: ``weight`` is not ``(C, d)``.

    >>> stats = ClassStatistics(torch.tensor([2, 2]), torch.tensor([[2.0], [-2.0]]), torch.tensor([[4.0]]))
    >>> found = least_squares_distance(stats, torch.tensor([[9.0], [3.0]]))
    >>> {key: round(value.item(), 6) for key, value in found.items()}
    {'distance': 0.0, 'excess': 0.0, 'ls': 0.05}
    """
    best, _ = least_squares_classifier(stats)
    mine = weight.to(best)
    mine = mine - mine.mean(dim=0)
    best = best - best.mean(dim=0)
    lengths = [torch.linalg.matrix_norm(each) for each in (mine, best)]
    distance = (mine / lengths[0] - best / lengths[1]).square().sum()
    shares = stats.counts / stats.counts.sum()
    center = shares @ stats.means
    unit = mine * (lengths[1] / lengths[0])  # at a scale where the parabola is well seen

    def parts(scale: float) -> dict[str, Tensor]:
        scaled = scale * unit
        return mse_decomposition(stats, scaled, shares - scaled @ center)

    none, once, twice = (parts(scale) for scale in (0.0, 1.0, 2.0))
    curvature = (none["perp"] - 2 * once["perp"] + twice["perp"]) / 2
    slope = once["perp"] - none["perp"] - curvature
    lowest = (none["perp"] - slope.square() / (4 * curvature)).clamp_min(0)
    least = once["ls"]
    is_rounding = least <= _ROUNDING * none["loss"]  # fewer samples than features fit exactly
    return {"distance": distance, "excess": torch.where(is_rounding, torch.nan, lowest / least), "ls": least}


class HeadLens(Lens):
    """Distance of the head from the least-squares head of the present features (see `least_squares_distance`).

    Where training minimises the MSE loss, `lit_papers.neural_collapse.lens.CentralPathLens` says more.
    """

    name = "head"

    def check(self, subject: Subject) -> None:
        """Have class statistics gathered, which other lenses share."""
        gather_statistics(subject)

    def look(self, moment: Moment, prepared: None, history: Sequence[Mapping[str, Any]]) -> Numbers:
        """``distance``, ``excess`` and ``ls``.

        Raises:
            ValueError: the features are not finite.
        """
        stats: ClassStatistics = moment.gathered(("class statistics", torch.float64))
        return {key: float(value) for key, value in least_squares_distance(stats, moment.head()[0]).items()}

    def unknown(self, prepared: None) -> Numbers:
        """NaN for every key."""
        return dict.fromkeys(_KEYS, math.nan)

    def figure(self, history: Sequence[Mapping[str, Any]]) -> "Figure":
        """Distance and excess against epoch."""
        figure, axes = new_figure(1, 2)
        titles = ("distance of directions [0 to 4]", "excess loss / least-squares loss")
        for axis, key, title in zip(axes, _KEYS[:2], titles, strict=True):
            axis.plot([e["epoch"] for e in history], [e.get(key, math.nan) for e in history], **STYLES[0])
            axis.set(xlabel="epoch", ylabel=title)
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
        return figure

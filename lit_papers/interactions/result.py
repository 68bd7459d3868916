"""What an estimate of multi-order interactions gives: the numbers, their errors, a curve, a file."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from lit_papers.interactions.functional import learning_strength
from lit_papers.interactions.strength import Magnitudes, StrengthCurve, strength_curve
from lit_papers.plotting import STYLES, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PER_SAMPLE = ("interactions", "cross_fitted", "se", "order_error", "unseen", "rounding", "n_contexts", "pairs")


@dataclass(frozen=True)
class InteractionResult:
    """Interactions of B samples, P pairs and M orders, on the CPU.

    Attributes:
        interactions: I^(m)(i, j), float64, ``(B, P, M)``.
        cross_fitted: magnitudes that are at most |I| on average, float64, ``(B, P, M)``; see
            `lit_papers.interactions.strength`.
        se: standard errors, float64, ``(B, P, M)``: 0 only where all contexts were evaluated, NaN where one cannot
            tell. Where the drawn contexts happen to agree it bounds what was not seen.
        order_error: standard errors of mean magnitudes over pairs, float64, ``(B, M)``.
        unseen: what contexts that were not drawn may add to them, float64, ``(B, M)``.
        rounding: what rounding does to an interaction, as a standard deviation, float64, ``(B,)``.
        n_contexts: evaluated contexts, int64, ``(B, P, M)``.
        pairs: int64, ``(B, P, 2)``.
        orders: m of each column.
        n_players: n.
        n_forwards: masked inputs that the network saw, over all samples.
    """

    interactions: Tensor
    cross_fitted: Tensor
    se: Tensor
    order_error: Tensor
    unseen: Tensor
    rounding: Tensor
    n_contexts: Tensor
    pairs: Tensor
    orders: list[int]
    n_players: int
    n_forwards: int

    @property
    def magnitudes(self) -> Magnitudes:
        """What each sample contributes to the strength of each order."""
        known = ~self.interactions.isnan()
        return Magnitudes(
            upper=self.interactions.abs().nansum(1),
            lower=self.cross_fitted.sum(1),
            number=known.sum(1).double(),
            error=self.order_error,
            unseen=self.unseen,
            noise=self.se.nanmean(1),
            rounding=self.rounding[:, None].expand(-1, len(self.orders)),
        )

    @property
    def curve(self) -> StrengthCurve:
        """Strength of each order with its errors."""
        return strength_curve(self.magnitudes)

    @property
    def strength(self) -> Tensor:
        """S^(m), corrected for noise, float64, ``(M,)``; NaN where noise and rounding hide it."""
        return self.curve.strength

    @property
    def relative_strength(self) -> Tensor:
        """J^(m), float64, ``(M,)``; it depends on which orders were measured. NaN where S is."""
        return self.curve.relative_strength

    @property
    def noise_floor(self) -> Tensor:
        """What a mean magnitude would be if all interactions were zero, by noise and rounding: float64, ``(M,)``."""
        return self.curve.noise_floor

    @property
    def relative_error(self) -> Tensor:
        """Standard error of J^(m) over samples, float64, ``(M,)``, by the jackknife; NaN for one sample."""
        return self.curve.relative_error

    def plot(self, ax: "Axes | None" = None, theory_players: int | None = None) -> "tuple[Figure, Axes]":
        """J against m / (n - 2): error bars over samples, a band for noise and rounding, and the noise floor.

        Orders that are not resolved have no point, only the band that ends where their J may be at most.

        Args:
            ax: to draw on; None for a new figure.
            theory_players: n of the theoretical curve F^(m), scaled to mean 1; None for none. Comparisons in the
                literature take fewer players than there are.

        Returns:
            Figure and axes.
        """
        if ax is None:
            figure, (ax,) = new_figure(1, 1)
        else:
            figure = cast("Figure", ax.get_figure(root=True))
        share = [order / max(self.n_players - 2, 1) for order in self.orders]
        curve = self.curve
        scale = curve.strength.nanmean()
        draw_band(ax, share, curve.relative_band)
        ax.errorbar(
            share, curve.relative_strength.tolist(), curve.relative_error.nan_to_num().tolist(), capsize=2,
            markersize=4, label="measured", **STYLES[0],
        )  # fmt: skip
        if scale > 0:
            floor = (curve.noise_floor / scale).tolist()
            ax.plot(share, floor, label="noise floor", **{**STYLES[1], "marker": ""})
        if theory_players is not None:
            theory = learning_strength(theory_players)
            at = torch.linspace(0, 1, len(theory)).tolist()
            ax.plot(
                at,
                (theory / theory.mean()).tolist(),
                label=f"theory, {theory_players} players",
                **{**STYLES[2], "marker": ""},
            )
        ax.set(xlabel="order m / (n - 2)", ylabel=r"relative strength $J^{(m)}$")
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3)
        ax.legend()
        return figure, ax

    def save(self, path: str | Path) -> None:
        """Write it to a file, as plain tensors."""
        torch.save(asdict(self), path)

    @staticmethod
    def load(path: str | Path) -> "InteractionResult":
        """Read what `save` wrote."""
        return InteractionResult(**torch.load(path, weights_only=True))

    @staticmethod
    def join(parts: "list[InteractionResult]") -> "InteractionResult":
        """The samples of several results, which have the same orders and players."""
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in _PER_SAMPLE}
        more: dict[str, Any] = {**joined, "n_forwards": sum(part.n_forwards for part in parts)}
        return replace(parts[0], **more)


def draw_band(ax: "Axes", place: "list[float]", band: Tensor) -> None:
    """Shade what noise and rounding leave open.

    Args:
        ax: to draw on.
        place: of each order.
        band: lower and upper ends, ``(2, M)``.
    """
    ax.fill_between(place, band[0].tolist(), band[1].tolist(), color="0.85", linewidth=0, zorder=0, label="95 % band")

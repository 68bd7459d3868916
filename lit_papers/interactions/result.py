"""What an estimate of multi-order interactions gives: the numbers, their errors, a curve, a file."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from lit_papers.interactions.functional import interaction_strength, learning_strength, relative_strength
from lit_papers.plotting import STYLES, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class InteractionResult:
    """Interactions of B samples, P pairs and M orders, on the CPU.

    Attributes:
        interactions: I^(m)(i, j), float64, ``(B, P, M)``.
        se: standard errors, float64, ``(B, P, M)``: 0 where all contexts were evaluated, NaN where one cannot tell.
        n_contexts: evaluated contexts, int64, ``(B, P, M)``.
        pairs: int64, ``(B, P, 2)``.
        orders: m of each column.
        n_players: n.
        n_forwards: masked inputs that the network saw, over all samples.
    """

    interactions: Tensor
    se: Tensor
    n_contexts: Tensor
    pairs: Tensor
    orders: list[int]
    n_players: int
    n_forwards: int

    @property
    def strength(self) -> Tensor:
        """S^(m), float64, ``(M,)``."""
        return interaction_strength(self.interactions)

    @property
    def relative_strength(self) -> Tensor:
        """J^(m), float64, ``(M,)``, of mean 1; it depends on which orders were measured."""
        return relative_strength(self.strength)

    @property
    def noise_floor(self) -> Tensor:
        """What S^(m) would be if all interactions were zero, float64, ``(M,)``: sqrt(2/pi) times the mean error."""
        floor: Tensor = (2 / torch.pi) ** 0.5 * self.se.reshape(-1, len(self.orders)).nanmean(0)
        return floor

    @property
    def relative_error(self) -> Tensor:
        """Standard error of J^(m) over samples, float64, ``(M,)``, by the jackknife; NaN for one sample."""
        samples = len(self.interactions)
        if samples < 2:
            return torch.full((len(self.orders),), torch.nan, dtype=torch.float64)
        each = self.interactions.abs().nanmean(1)  # (B, M)
        without = (each.nansum(0) - each.nan_to_num()) / (samples - 1)  # of all samples but one
        curves = without / without.mean(1, keepdim=True)
        spread = (curves - curves.mean(0)).square().sum(0) * (samples - 1) / samples
        return spread.sqrt()

    def plot(self, ax: "Axes | None" = None, theory_players: int | None = None) -> "tuple[Figure, Axes]":
        """J against m / (n - 2), with its error over samples and the noise floor.

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
        ax.errorbar(
            share, self.relative_strength.tolist(), self.relative_error.nan_to_num().tolist(), capsize=2, markersize=4,
            label="measured", **STYLES[0],
        )  # fmt: skip
        floor = self.noise_floor / self.strength.mean()
        if (floor > 0).any():
            ax.plot(share, floor.tolist(), label="if all were noise", **{**STYLES[1], "marker": ""})
        if theory_players is not None:
            theory = learning_strength(theory_players)
            at = torch.linspace(0, 1, len(theory)).tolist()
            curve = (theory / theory.mean()).tolist()
            ax.plot(at, curve, label=f"theory, {theory_players} players", **{**STYLES[2], "marker": ""})
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
        return InteractionResult(
            torch.cat([part.interactions for part in parts]),
            torch.cat([part.se for part in parts]),
            torch.cat([part.n_contexts for part in parts]),
            torch.cat([part.pairs for part in parts]),
            orders=parts[0].orders,
            n_players=parts[0].n_players,
            n_forwards=sum(part.n_forwards for part in parts),
        )

"""How far the ranks of local SGD had drifted apart, as a checkpoint shows it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_papers.lens import Lens, Moment, NotApplicable, Numbers, Subject
from lit_papers.local_sgd.functional import consensus_distance
from lit_papers.local_sgd.rank_state import VERSION, load
from lit_papers.plotting import STYLES, log_scale, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def checkpoint_drift(path: str | Path) -> dict[str, float]:
    r"""Consensus distance of the ranks whose weights a checkpoint of `LocalSGDStrategy` keeps.

    .. math:: \frac{1}{M} \sum_m \|x_m - \bar x\|^2

    Args:
        path: of the checkpoint; the folder of side files lies beside it.

    Returns:
        ``consensus_distance``, ``relative_consensus_distance`` (divided by the squared norm of the average, 0 if that
        is 0) and ``ranks``.

    Raises:
        ValueError: it keeps no weights of ranks.
        RuntimeError: a side file is missing.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    saved = content.get("local_sgd") if isinstance(content, Mapping) else None
    if saved is None:
        raise ValueError("it is not of LocalSGDStrategy, so it has the weights of one rank alone")
    if saved.get("version") != VERSION or saved.get("rank_state") not in ("files", "gather"):
        raise ValueError("it keeps no weights of single ranks (rank_state='none', or an earlier lit-papers)")
    average: dict[str, Tensor] = content["state_dict"]
    norm, distances = 0.0, []
    for rank in range(len(saved["ranks"])):
        pieces = load(saved, rank, str(path), lambda file: torch.load(file, map_location="cpu", weights_only=True))
        mine = {place[1]: piece for place, piece in pieces.items() if place[0] == "parameter"}
        distances.append(sum(float(consensus_distance(value, average[name])) for name, value in mine.items()))
        names = [place[1] for place in saved["ranks"][rank] if place[0] == "parameter"]
        norm = sum(float(average[name].double().square().sum()) for name in names)
    distance = sum(distances) / len(distances)
    return {
        "consensus_distance": distance,
        "relative_consensus_distance": distance / norm if norm > 0 else 0.0,
        "ranks": float(len(distances)),
    }


class RankDriftLens(Lens):
    """Drift of the ranks in checkpoints of a run (Yun, Rajput & Sra, ICLR 2022; see `checkpoint_drift`).

    Args:
        checkpoints: the k-th look is at the k-th.
    """

    name = "consensus"
    reads = None

    def __init__(self, checkpoints: Sequence[str | Path]) -> None:
        self.checkpoints = checkpoints

    def check(self, subject: Subject) -> None:
        """Refused where no checkpoint keeps weights of ranks."""
        if not self.checkpoints:
            raise NotApplicable("no checkpoint is given: pass those of a run with LocalSGDStrategy")
        try:
            checkpoint_drift(self.checkpoints[0])
        except (ValueError, RuntimeError) as error:
            raise NotApplicable(f"{Path(self.checkpoints[0]).name} shows no drift: {error}") from error

    def look(self, moment: Moment, prepared: None, history: Sequence[Mapping[str, Any]]) -> Numbers:
        """The numbers of `checkpoint_drift`.

        Raises:
            ValueError: this checkpoint keeps no weights of ranks.
        """
        return {**checkpoint_drift(self.checkpoints[len(history)])}

    def figure(self, history: Sequence[Mapping[str, Any]]) -> "Figure":
        """Drift against step, on a log scale."""
        figure, (axis,) = new_figure(1, 1)
        axis.plot([e["step"] for e in history], [e["consensus_distance"] for e in history], **STYLES[0])
        axis.set(xlabel="step", ylabel=r"drift $\frac{1}{M}\sum_m \|x_m - \bar{x}\|^2$")
        log_scale(axis)
        axis.grid(alpha=0.3)
        return figure

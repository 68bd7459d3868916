"""Which pairs of graphs a network tells apart, measured while it trains."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from lit_papers.callbacks.watching import Watch, renamed
from lit_papers.expressiveness.adapter import Level, Readout
from lit_papers.expressiveness.lens import SeparationLens
from lit_papers.expressiveness.separation import SeparationReport, Transform


class SeparationPower(Watch):
    """Logs how many pairs of graphs a graph network separates, beside what Weisfeiler-Leman tests could.

    Attach it to any LightningModule whose ``forward`` takes a PyG batch, or by name parts of one (``x, edge_index``)::

        trainer = Trainer(callbacks=[SeparationPower(GraphPairs("constructed").pairs)])

    After the chosen epochs, and when validating, a float64 copy of the network embeds relabelings of both
    graphs of each pair (`lit_papers.expressiveness.separation.separation_power`). Logged are ``separation/separated``,
    ``/total``, ``/unreliable``, ``/grey``, ``/control`` (the largest ratio between a graph and itself: the floor),
    ``separation/ceiling/<test>`` and ``separation/part/<part>``. Every process measures the same; the network, its mode
    and the random streams stay as they are. The call is tried once before the first step; nodes and edges of pairs that
    the network cannot read get the features of the first node and edge of the training data.

    Args:
        pairs: of graphs; None takes ``trainer.datamodule.pairs``.
        epochs: k to measure after every k-th epoch and after the last, or the list of epochs (counted from 1; 0 is the
            untrained network).
        relabelings: of each graph, at least 2.
        tests: whose ceilings are shown.
        readout: for networks with an output for each node.
        call: a function (module, batch) to the output, where ``forward`` is not what is to be called.
        transform: of PyG, run on each relabelled graph, such as positional encodings.
        level: ``graph``, or ``vertex`` or ``edge`` for pairs with ``at``.
        dtype: of the copy that is measured.
        name: prefix of keys and name of the figure; give each of several instances its own.
        every_n_epochs: the old name of ``epochs``, refused.

    Attributes:
        history: one dict a measured epoch, with ``epoch`` and the numbers as logged; kept in checkpoints.

    Raises:
        ValueError: an argument is out of range; `lit_papers.lens.NotApplicable`, before the first step, if there are
            no pairs.
    """

    def __init__(
        self,
        pairs: Sequence[Any] | None = None,
        epochs: int | Sequence[int] = 1,
        relabelings: int = 4,
        tests: Sequence[str] = ("cr", "2-fwl"),
        readout: Readout | None = None,
        *,
        call: Callable[[nn.Module, Any], Any] | None = None,
        transform: Transform | None = None,
        level: Level = "graph",
        dtype: torch.dtype = torch.float64,
        name: str | None = None,
        every_n_epochs: int | None = None,
    ) -> None:
        renamed(every_n_epochs)
        self._separation = SeparationLens(
            pairs, relabelings, tests, readout, call=call, transform=transform, level=level, dtype=dtype
        )
        super().__init__(self._separation, epochs=epochs, name=name)

    @property
    def report(self) -> SeparationReport | None:
        """The last one, with the status of each pair; None before the first."""
        return self._separation.report

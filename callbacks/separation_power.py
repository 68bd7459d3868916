"""Which pairs of graphs a network tells apart, measured while it trains."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_papers.expressiveness.separation import Readout, SeparationReport, pair_ceilings, separation_power
from lit_papers.plotting import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class SeparationPower(Callback):
    """Logs how many pairs of graphs a graph network separates, beside what Weisfeiler-Leman tests could.

    Attach it to any LightningModule whose ``forward`` takes a PyG batch, or ``x, edge_index`` (and ``batch``)::

        trainer = Trainer(callbacks=[SeparationPower(GraphPairs("constructed").pairs)])

    After every ``every_n_epochs`` epochs, and when validating, a float64 copy of the network embeds relabelings of both
    graphs of each pair (`lit_papers.expressiveness.separation.separation_power`). Logged are ``separation/separated``,
    ``/total``, ``/unreliable``, ``/grey``, ``separation/ceiling/<test>`` and ``separation/part/<part>``. Every process
    measures the same; the network, its mode and the random streams stay as they are.

    Args:
        pairs: of graphs; None takes ``trainer.datamodule.pairs``.
        every_n_epochs: measure after each epoch that it divides, at least 1.
        relabelings: of each graph, at least 2.
        tests: whose ceilings are shown.
        readout: for networks with an output for each node.
        prefix: of the logged keys.

    Attributes:
        report: the last one; None before the first.
        history: list of (epoch counted from 1, numbers as logged); kept in checkpoints.

    Raises:
        ValueError: an argument is out of range.
        MisconfigurationException: at the start, if there are no pairs.
    """

    def __init__(
        self,
        pairs: Sequence[Any] | None = None,
        every_n_epochs: int = 1,
        relabelings: int = 4,
        tests: Sequence[str] = ("cr", "2-fwl"),
        readout: Readout | None = None,
        prefix: str = "separation",
    ) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1; got {every_n_epochs}.")
        if relabelings < 2:
            raise ValueError(f"relabelings must be at least 2; got {relabelings}.")
        self.pairs = pairs
        self.every_n_epochs = every_n_epochs
        self.relabelings = relabelings
        self.tests = tuple(tests)
        self.readout: Readout | None = readout
        self.prefix = prefix
        self.report: SeparationReport | None = None
        self.history: list[tuple[int, dict[str, float]]] = []
        self._ceilings: dict[str, list[bool]] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the pairs, and what the tests can do with them: once, before any training."""
        if stage not in ("fit", "validate"):
            return
        if self.pairs is None:
            self.pairs = getattr(trainer.datamodule, "pairs", None)  # type: ignore[attr-defined]
        if not self.pairs:
            raise MisconfigurationException(
                "SeparationPower has no pairs of graphs: pass `pairs`, or use a data module that has them (GraphPairs)."
            )
        if self._ceilings is None:
            self._ceilings = pair_ceilings(self.pairs, self.tests)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure where this epoch is due."""
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs == 0:
            numbers = self._measure(pl_module)
            self.history.append((epoch, numbers))
            pl_module.log_dict(numbers, on_step=False, on_epoch=True, batch_size=1)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure in ``trainer.validate``; while fitting, the end of the epoch does."""
        if trainer.state.fn == "validate":
            pl_module.log_dict(self._measure(pl_module), batch_size=1)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the figure beside the logs."""
        if trainer.is_global_zero and self.report is not None:
            save_figure(self.plot()[0], trainer, "separation_power")

    def state_dict(self) -> dict[str, Any]:
        """The history, in plain types."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the history of the run that is resumed."""
        self.history = [(epoch, numbers) for epoch, numbers in state_dict["history"]]

    def _measure(self, module: LightningModule) -> dict[str, float]:
        assert self.pairs is not None, "Lightning calls setup first"  # noqa: S101
        with torch.compiler.set_stance("force_eager"):
            # the copy that it makes leaves the trainer behind
            self.report = separation_power(
                module, self.pairs, relabelings=self.relabelings, readout=self.readout, ceilings=self._ceilings
            )
        return self.report.as_metrics(self.prefix)

    def plot(self, ax: "Axes | None" = None) -> "tuple[Figure, Axes]":
        """Bars for each part of the last report: pairs separated and unreliable, and the tests' ceilings as lines.

        Args:
            ax: to draw on; None for a new figure.

        Raises:
            RuntimeError: nothing was measured yet.
        """
        if self.report is None:
            raise RuntimeError("nothing to plot: `report` is empty until the first measurement")
        if ax is None:
            figure, (ax,) = new_figure(1, 1)
        else:
            figure = cast("Figure", ax.get_figure(root=True))
        report = self.report
        parts = list(dict.fromkeys(report.parts))
        places = torch.arange(len(parts)).tolist()
        done = [report.per_part[part] for part in parts]
        status = list(zip(report.status, report.parts, strict=True))
        unknown = [status.count(("unreliable", part)) for part in parts]
        ax.bar(places, [report.parts.count(part) for part in parts], color="white", edgecolor="0.6", label="pairs")
        ax.bar(places, done, color="0.55", label="separated")
        ax.bar(places, unknown, bottom=done, color="white", edgecolor="black", hatch="//", label="unreliable")
        styles = (("black", "-"), ("tab:red", "--"), ("tab:blue", ":"), ("tab:green", "-."))
        for (colour, style), (test, counts) in zip(styles, report.ceiling_per_part.items(), strict=False):
            for place, part in zip(places, parts, strict=True):
                label = f"{test} can" if place == 0 else None
                ax.plot(
                    [place - 0.42, place + 0.42], [counts.get(part, 0)] * 2, color=colour, linestyle=style, label=label
                )
        ax.set_xticks(places, parts, rotation=20 if len(parts) > 3 else 0)
        ax.set(ylabel="pairs of graphs", xlabel="part")
        ax.legend(fontsize=8)
        return figure, ax

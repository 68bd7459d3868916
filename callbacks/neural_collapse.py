"""Neural collapse of any classifier, measured while it trains."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from lit_papers.callbacks.watching import Watch
from lit_papers.lens import Call, Unpack
from lit_papers.neural_collapse import figures
from lit_papers.neural_collapse.lens import CollapseLens
from lit_papers.neural_collapse.reservoir import LIMIT_BYTES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class NeuralCollapse(Watch):
    """Logs how far the last-layer features and the classifier have collapsed: NC1 to NC4 (Papyan et al. 2020).

    Attach it to any LightningModule that classifies::

        trainer = Trainer(callbacks=[NeuralCollapse()])

    After the chosen epochs it runs the training data through a copy of the network in evaluation mode, float64
    statistics in one pass, and logs ``neural_collapse/<key>`` for the keys of
    `lit_papers.neural_collapse.functional.neural_collapse_measures`, plus ``nc4_ncc_mismatch`` with its
    ``nc4_standard_error``, and ``train_error`` (share of wrong decisions on the data that are measured). Training is
    bit-identical with and without it. Where features are NaN it warns and records NaN.

    Args:
        dataloader: complete training data, un-augmented; or a dict of several by name, measured side by side. None:
            ``train_eval_dataloader()`` of the data module if there is one, else the samples that the training loader's
            sampler gives, with a warning that train-time transforms apply.
        classifier: the last ``nn.Linear`` or its dotted path. None: the one whose output the module's step gives to its
            loss beside the classes of the batch, or that ``forward`` returns.
        epochs: k to measure after every k-th epoch and after the last, or the list of epochs (counted from 1; 0 is the
            untrained network).
        ncc: also compare with the nearest class mean (NC4). For that the pass keeps features on the host, all where
            they fit into ``ncc_bytes``, else a uniform sample, whose standard error is recorded.
        center_classifier: subtract the mean row from the weight first; right for classifiers without bias.
        unpack: from a batch to ``(argument of forward, class indices)``. None understands pairs and mappings with
            the usual names.
        call: from ``(module, batch)`` to ``(logits, class indices)``, where they cannot be found.
        max_batches: most batches of a pass, over all processes.
        layers: dotted paths of layers before the last to measure in the same pass, or ``"all"`` blocks: logs
            ``neural_collapse/<layer>/<key>`` and draws a second figure, over depth.
        ncc_bytes: most memory for what NC4 keeps, on each process; 128 MiB hold CIFAR-10 of a ResNet-18.
        residual_dtype: ``"float32"`` for devices with slow float64; see `CollapseLens`.
        name: prefix of keys and name of the figure; give each of several instances its own.

    Raises:
        ValueError: an argument is out of range; `lit_papers.lens.NotApplicable`, before the first step, if the network
            or the data cannot be measured: the message names the argument that cures it.
        TypeError: ``classifier`` is neither module nor name, or the batch is of an unknown kind.
    """

    def __init__(
        self,
        dataloader: Any = None,
        classifier: str | nn.Module | None = None,
        epochs: int | Sequence[int] = 1,
        ncc: bool = True,
        center_classifier: bool = False,
        unpack: Unpack | None = None,
        call: Call | None = None,
        max_batches: int | None = None,
        name: str | None = None,
        layers: Sequence[str] | Literal["all"] | None = None,
        ncc_bytes: int = LIMIT_BYTES,
        residual_dtype: Literal["float64", "float32"] = "float64",
    ) -> None:
        super().__init__(
            CollapseLens(ncc, center_classifier, layers, ncc_bytes, residual_dtype),
            dataloader=dataloader,
            epochs=epochs,
            classifier=classifier,
            unpack=unpack,
            call=call,
            max_batches=max_batches,
            name=name,
        )
        self.layers = layers

    def plot(self, data: str | None = None) -> "Figure":
        """Six panels against epoch; several data sets share them.

        Args:
            data: name of one data set to draw alone; None draws all.

        Raises:
            RuntimeError: nothing was measured yet.
            ValueError: there are no data of that name.
        """
        return figures.collapse(self.histories(data))

    def plot_layers(self, data: str | None = None) -> "Figure":
        """Five panels against depth, of the layers that were measured; arguments and errors as for `plot`."""
        return figures.depth(self.histories(data))

    def figures(self) -> "dict[str, Figure]":
        """One figure for all data sets, and one over depth where layers were measured."""
        over_depth = {f"{self.name}_layers": self.plot_layers()} if self.layers is not None else {}
        return {self.name: self.plot(), **over_depth}

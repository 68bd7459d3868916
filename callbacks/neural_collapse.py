"""Neural collapse of any classifier, measured while it trains."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from lit_papers.callbacks.watching import Watch
from lit_papers.lens import Call, Unpack
from lit_papers.neural_collapse.lens import CollapseLens


class NeuralCollapse(Watch):
    """Logs how far the last-layer features and the classifier have collapsed: NC1 to NC4 (Papyan et al. 2020).

    Attach it to any LightningModule that classifies::

        trainer = Trainer(callbacks=[NeuralCollapse()])

    After the chosen epochs it runs the training data through a copy of the network in evaluation mode, float64
    statistics in one pass, and logs ``neural_collapse/<key>`` for the keys of
    `lit_papers.neural_collapse.functional.neural_collapse_measures`, plus ``nc4_ncc_mismatch`` and ``train_error``.
    Training is bit-identical with and without it. Where features are NaN it warns and records NaN.

    Args:
        dataloader: complete training data, un-augmented; or a dict of several by name, measured side by side. None:
            ``train_eval_dataloader()`` of the data module if there is one, else the samples that the training loader's
            sampler gives, with a warning that train-time transforms apply.
        classifier: the last ``nn.Linear`` or its dotted path. None: the one whose output the module's step gives to its
            loss beside the classes of the batch, or that ``forward`` returns.
        epochs: k to measure after every k-th epoch and after the last, or the list of epochs (counted from 1; 0 is the
            untrained network).
        ncc: also compare with the nearest class mean (NC4), which keeps the features of a pass on the host
            (4 N d bytes).
        center_classifier: subtract the mean row from the weight first; right for classifiers without bias.
        unpack: from a batch to ``(argument of forward, class indices)``. None understands pairs and mappings with
            the usual names.
        call: from ``(module, batch)`` to ``(logits, class indices)``, where they cannot be found.
        max_batches: most batches of a pass, over all processes.
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
    ) -> None:
        super().__init__(
            CollapseLens(ncc, center_classifier),
            dataloader=dataloader,
            epochs=epochs,
            classifier=classifier,
            unpack=unpack,
            call=call,
            max_batches=max_batches,
            name=name,
        )

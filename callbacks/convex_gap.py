"""How far a two-layer ReLU network in training is from the global optimum, with a certificate."""

from collections.abc import Sequence
from typing import Any

from lit_papers.callbacks.watching import Watch, renamed
from lit_papers.convex_relu.lens import ConvexGapLens, Mode
from lit_papers.convex_relu.losses import Loss
from lit_papers.lens import Call, Unpack


class ConvexGap(Watch):
    """Logs the distance of a two-layer ReLU network from the global optimum of its training objective.

    Training ``Linear -> ReLU -> Linear`` with weight decay has the value of a convex program (Wang, Lacotte &
    Pilanci, ICLR 2022). Its dual bounds what any network of any width could reach, whatever is trained here::

        trainer = Trainer(callbacks=[ConvexGap()])

    Before the first step a copy's training step is run at perturbed weights: its loss must be that of such a network,
    whatever else the settings say, and what it sums and decays gives beta. The rows that are trained on are read once.
    At each look one batch is run again.

    Measured are the chosen epochs and the last, with these keys, all prefixed ``convex_relu/`` and in units of the
    objective that sums over samples: ``objective``, ``lower_bound`` (the best so far), ``certified_gap`` = objective -
    lower_bound, ``sup_ratio`` (1 at the optimum), ``clarke_residual`` (0 at stationary points), ``balance_error``,
    ``active_neurons``, and ``problem_id``, which tells whether two bounds are of one problem. Mode `exact` adds
    ``optimum`` and ``gap`` = objective - optimum. Mode `bank` adds ``bank_optimum``, the convex program's value on the
    network's own patterns, and ``bank_gain`` = objective - bank_optimum, which its neurons could gain without new
    patterns. Where nothing can be measured (a network that has diverged) all are NaN.

    Args:
        mode: ``exact`` enumerates all patterns and solves for the optimum; ``bank`` solves on the network's own;
            ``relaxed`` solves nothing, and bounds; ``auto`` is exact where that takes a second or two, else relaxed.
        layers: names of the two ``nn.Linear``; None takes the module's only two. A hidden bias counts as a column of
            ones, and is decayed; an output bias is not; there may be several outputs (``relaxed`` only).
        beta: strength of the weight decay in the objective ``sum of losses + beta / 2 |weights|^2``. None finds it from
            the step's own penalty and the optimizer's coupled weight decay.
        loss: ``squared``, ``logistic`` or ``cross_entropy``; None finds out. Labels 0 and 1 are read as -1 and +1 by
            the logistic one, class indices as one-hot rows by the last.
        epochs: k to measure after every k-th epoch and after the last, or the list of epochs (counted from 1; 0 is the
            untrained network).
        max_patterns: most patterns to enumerate.
        seconds: for the bound before training, about.
        dataloader: the training data, if the trainer's own cannot be read; or a dict of several by name.
        unpack: from a batch to (argument of the network, targets), if batches are neither pairs nor usual mappings.
        call: from (module, batch) to (outputs, targets) of the two layers, for modules whose step has other losses too;
            it needs `beta`.
        name: prefix of keys and name of the figure; give each of several instances its own.
        every_n_epochs: the old name of ``epochs``, refused.

    Attributes:
        history: one dict a measured epoch, with ``epoch`` and the keys above without prefix; kept in checkpoints.

    Raises:
        ValueError: an argument is out of range; `lit_papers.lens.NotApplicable`, before the first step, if the network
            is no such network, if beta cannot be told, or if the training data cannot be read.
        TooManyPatternsError: before the first step, in mode ``exact``.
    """

    def __init__(
        self,
        mode: Mode = "auto",
        *,
        layers: Sequence[str] | None = None,
        beta: float | None = None,
        loss: Loss | None = None,
        epochs: int | Sequence[int] = 1,
        max_patterns: int = 50_000,
        seconds: float = 3.0,
        dataloader: Any = None,
        unpack: Unpack | None = None,
        call: Call | None = None,
        name: str | None = None,
        every_n_epochs: int | None = None,
    ) -> None:
        renamed(every_n_epochs)
        lens = ConvexGapLens(mode, layers=layers, beta=beta, loss=loss, max_patterns=max_patterns, seconds=seconds)
        super().__init__(lens, dataloader=dataloader, epochs=epochs, unpack=unpack, call=call, name=name)

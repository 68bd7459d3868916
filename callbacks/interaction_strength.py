"""Which orders of interaction a network encodes, measured while it trains."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from lit_papers.callbacks.watching import Watch, renamed
from lit_papers.interactions.lens import InteractionLens
from lit_papers.interactions.outputs import Respond
from lit_papers.interactions.players import Players
from lit_papers.lens import Unpack


class InteractionStrength(Watch):
    r"""Logs the relative strength J of each order of interaction while any classifier trains.

    Attach it to any LightningModule whose ``forward`` returns logits (N, C), or something that holds them::

        trainer = Trainer(callbacks=[InteractionStrength(PatchGrid(4), pairs="all", method="exact")])

    After the chosen epochs and after the last it takes ``n_samples`` samples of the validation set, balanced over
    classes, estimates their interactions with `lit_papers.interactions.estimator.MultiOrderInteraction`, and logs, for
    each order m, ``interactions/J/m{m}``, the raw strength ``interactions/S/m{m}`` (J is S divided by its mean over
    orders, so a network whose interactions all shrink keeps its J) and ``interactions/floor/m{m}``, what S would be if
    all were noise and rounding; J and S are NaN where they hide in it. Also ``interactions/J_centroid``
    :math:`= \sum m J / \sum J / (n - 2)` in [0, 1] with its standard error over samples
    ``interactions/J_centroid_error``, and ``interactions/J_middle``, the mean of J over the middle half of the orders
    (below 1 where there is a bottleneck), both over the orders that are resolved; and ``interactions/n_forwards``, the
    inputs sent to the network.
    J is U-shaped in trained networks, the paper's *representation bottleneck* (Deng et al., ICLR 2022, section 3); as
    averaging over contexts gives even noise such a shape, the network **is measured once before it is trained**, on all
    samples, as epoch 0: the control that every curve should be compared with.

    Training is bit-identical with and without it. Processes share the samples and record what one process records.
    Where no sample is classified correctly, or the logits are NaN or infinite, NaN is recorded with a reason.

    Args:
        players: what is masked: patches of images or features of a table.
        epochs: k to measure after every k-th epoch and after the last, or the list of epochs, counted from 1.
        n_samples: of the validation set, from all over it and of all classes; a ``fast_dev_run`` takes one, right or
            wrong.
        only_correct: leave out samples that the network misclassifies, as the paper does (not for the control).
        orders: m to measure, in 0..n-2; None takes all up to 16 players, else 13 over the whole range.
        pairs: of players, for each sample: so many drawn ones, ``"all"``, or the pairs, int64 ``(P, 2)``.
        n_contexts: for each pair and order, at least.
        method: ``"exact"`` (all :math:`2^n` maskings), ``"sampled"``, ``"auto"`` (the cheaper) or ``"paper"``.
        baseline: what replaces absent players; 0 is the mean of normalised data.
        batch_size: masked inputs in a forward pass.
        seed: of pairs and contexts; each sample has a random stream of its own.
        dataloader: samples in a fixed order, the same on every process, or a dict of several by name; None takes the
            validation set (the first, if there are several).
        respond: from (module, masked inputs) to logits ``(N, C)``; None calls ``forward``, whose output is logits or
            holds them: of several tensors those that ``validation_step`` or ``training_step`` takes for logits.
        unpack: from a batch to ``(argument of forward, class indices)``. None understands pairs and mappings with
            the usual names.
        name: prefix of keys and name of the figure; give each of several instances its own.
        every_n_epochs: the old name of ``epochs``, refused.

    Attributes:
        history: one dict a measured epoch, with ``epoch`` (0 is the control), ``orders``, ``strength``,
            ``relative_strength``, their bands (``_low``, ``_high``: noise of contexts and rounding) and errors
            (``_error``: over samples), ``noise_floor``, ``n_samples``, ``n_forwards`` and what is logged; kept in
            checkpoints.

    Raises:
        ValueError: before the first step, naming the argument: it is out of range, or there are no samples in a fixed
            order.
        TypeError: the batch is of an unknown kind.
    """

    always_untrained = True

    def __init__(
        self,
        players: Players,
        epochs: int | Sequence[int] = 1,
        n_samples: int = 50,
        only_correct: bool = True,
        orders: list[int] | None = None,
        pairs: int | Literal["all"] | Tensor = 200,
        n_contexts: int = 100,
        method: Literal["auto", "exact", "sampled", "paper"] = "auto",
        baseline: float | Tensor = 0.0,
        batch_size: int = 1024,
        seed: int = 0,
        dataloader: Any = None,
        respond: Respond | None = None,
        unpack: Unpack | None = None,
        name: str | None = None,
        every_n_epochs: int | None = None,
    ) -> None:
        renamed(every_n_epochs)
        lens = InteractionLens(
            players,
            n_samples,
            only_correct,
            respond,
            seed,
            orders=orders,
            pairs=pairs,
            n_contexts=n_contexts,
            method=method,
            baseline=baseline,
            batch_size=batch_size,
        )
        super().__init__(lens, dataloader=dataloader, epochs=epochs, unpack=unpack, name=name)

"""How thoroughly each lens of a diagnosis can look: its plans, the most thorough first, and what they take."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lit_papers.continual.network_lens import LayerSimilarityLens, LossSliceLens
from lit_papers.convex_relu.lens import ConvexGapLens
from lit_papers.diffstride.lens import StrideLens, stride_layers
from lit_papers.diffstride.network_lens import ConvertibleLens, CostLens
from lit_papers.interactions.estimator import PROBES, MultiOrderInteraction
from lit_papers.interactions.lens import InteractionLens
from lit_papers.interactions.players import FeaturePlayers, PatchGrid, Players
from lit_papers.lens import Lens, NotApplicable
from lit_papers.local_sgd.lens import RankDriftLens, checkpoint_drift
from lit_papers.neural_collapse.head import HeadLens
from lit_papers.neural_collapse.lens import CentralPathLens, CollapseLens

_MASKED_BYTES = 2**24  # of masked inputs in one pass
_PLAIN_FEATURES = 64  # of a table; more are grouped
_SECONDS_CONVEX = 3.0
_SECONDS_MASK = 1e-5  # of masking an input and counting its answer
_DOUBLE = 5.0  # times as long as in single precision convolutions take, of which CPUs have no fast ones in double


@dataclass
class Setting:
    """What is known of a network and its data before anything is chosen.

    Attributes:
        network: the stranger's.
        sample: one input, ``(1, ...)``, that ``forward`` answers; None where there is none: ``no_sample`` says why.
        no_sample: see there.
        forward: seconds that ``forward`` takes for a sample, in batches that suit it.
        slowness: seconds that pass for a second of computing, where others use the machine too.
        graphs: whether batches are of graphs.
        players: the user's, or None.
        pairs: of graphs, the user's, or None.
        lam: strength of the L2 term, the user's, or None.
        checkpoints: files that are looked at.
        seed: of all draws.
    """

    network: nn.Module
    sample: Tensor | None
    no_sample: str
    forward: float
    slowness: float = 1.0
    graphs: bool = False
    players: Players | None = None
    pairs: Sequence[Any] | None = None
    lam: float | None = None
    checkpoints: Sequence[Path] = ()
    seed: int = 0

    def one_sample(self) -> Tensor:
        """The sample.

        Raises:
            NotApplicable: there is none.
        """
        if self.sample is None:
            raise NotApplicable(self.no_sample)
        return self.sample


@dataclass(frozen=True)
class Plan:
    """One way to measure.

    Attributes:
        make: the lens.
        seconds: that a look takes, estimated, beside the pass over the data.
        note: what is less than in full; None for the first.
        once: seconds before the first look.
    """

    make: Callable[[], Lens]
    seconds: float = 0.02
    note: str | None = None
    once: float = 0.0


def collapse(setting: Setting) -> list[Plan]:
    """All blocks, or the last layer alone where no other gives a row for each sample."""
    return [
        Plan(lambda: CollapseLens(layers="all")),
        Plan(CollapseLens, note="the last layer alone, as no other gives a row for each sample"),
    ]


def central_path(setting: Setting) -> list[Plan]:
    """The lens, with the L2 term if it is given."""
    return [Plan(lambda: CentralPathLens("auto" if setting.lam is None else setting.lam))]


def head(setting: Setting) -> list[Plan]:
    """The lens."""
    return [Plan(HeadLens)]


def players_of(sample: Tensor, grid: int = 4) -> Players:
    """Who plays, by the shape of an input: cells of images, features of a table.

    Args:
        sample: ``(1, ...)``.
        grid: cells along each side of an image.

    Raises:
        NotApplicable: another shape, or tokens, for which a mask is needed that nobody can guess.

    >>> import torch
    >>> players_of(torch.zeros(1, 3, 32, 32)).n_players, players_of(torch.zeros(1, 13)).n_players
    (16, 13)
    """
    shape = tuple(sample.shape)
    if not sample.is_floating_point() and len(shape) == 4:
        raise NotApplicable(
            f"the images are {sample.dtype}, so 0 is not the mean of their pixels: pass `players`, PatchGrid({grid}), "
            "to replace absent parts by 0 all the same, or normalise the data before the network"
        )
    if not sample.is_floating_point():
        raise NotApplicable(
            "which token stands for an absent one is not known: pass `players`, "
            f"TokenPlayers({shape[-1]}, mask_token=...)"
        )
    if len(shape) == 4 and min(shape[2:]) >= 2:
        return PatchGrid((min(grid, shape[2]), min(grid, shape[3])))
    if len(shape) == 2 and shape[1] > 1:
        count = shape[1]
        if count <= _PLAIN_FEATURES:
            return FeaturePlayers(count)
        groups: list[list[int]] = [[] for _ in range(_PLAIN_FEATURES // 4)]
        for feature in range(count):
            groups[feature * len(groups) // count].append(feature)
        return FeaturePlayers(count, groups)
    raise NotApplicable(f"inputs of shape {shape[1:]} have no usual players: pass `players`")


def interactions(setting: Setting) -> list[Plan]:
    """Fewer samples, pairs and contexts, then fewer and larger players."""
    if setting.graphs:
        raise NotApplicable("the data are graphs, whose numbers of nodes differ: pass `players` for graphs of one size")
    sample = setting.one_sample()
    plans = []
    full = None
    # samples, pairs, contexts, cells along each side of an image; the first is what the callback does
    for n_samples, pairs, contexts, grid in (
        (50, 200, 100, 4), (30, 200, 60, 4), (20, 100, 50, 4), (12, 60, 30, 4), (6, 60, 30, 4), (50, 50, 30, 3),
        (20, 50, 30, 3), (10, 30, 20, 3), (6, 20, 10, 3), (4, 10, 10, 3), (4, 10, 10, 2), (2, 6, 5, 2),
    ):  # fmt: skip
        players = setting.players or players_of(sample, grid)
        batch_size = max(4, min(1024, _MASKED_BYTES // (sample.numel() * sample.element_size() or 1)))
        options: dict[str, Any] = {"pairs": pairs, "n_contexts": contexts, "batch_size": batch_size}
        forwards = MultiOrderInteraction(nn.Identity(), players, **options).estimate_forwards(1) * n_samples
        named = f"{n_samples} samples, {players.n_players} players, {pairs} pairs and {contexts} contexts"
        full = full or named
        plans.append(
            Plan(
                partial(InteractionLens, players, n_samples, seed=setting.seed, **options),
                forwards * (setting.forward + setting.slowness * _SECONDS_MASK)
                + n_samples * PROBES * _DOUBLE * setting.forward,
                None if named == full else f"{named} instead of {full}",
            )
        )
    return plans


def cost(setting: Setting) -> list[Plan]:
    """One sample."""
    setting.one_sample()
    return [Plan(CostLens, setting.slowness * 0.1 + 2 * setting.forward)]


def strides(setting: Setting) -> list[Plan]:
    """The strides that are learned, or a conversion."""
    if stride_layers(setting.network):
        return [Plan(StrideLens, setting.slowness * 0.1 + 2 * setting.forward)]
    if setting.one_sample().ndim not in (3, 4, 5):
        raise NotApplicable("inputs are no maps: strides are of convolutions and poolings")
    layers = [module for module in setting.network.modules() if not list(module.children())]
    if not any(hasattr(layer, "stride") for layer in layers):
        raise NotApplicable("there is no convolution and no pooling layer, so there are no strides")
    return [Plan(ConvertibleLens, once=setting.slowness * (1 + 0.08 * len(layers)) + 20 * setting.forward)]


def convex_gap(setting: Setting) -> list[Plan]:
    """Less time for the bound."""
    names = [name for name, module in setting.network.named_modules() if isinstance(module, nn.Linear)]
    if len(names) != 2:
        raise NotApplicable(
            f"the theory is of two linear layers, and there are {len(names)}: for two of them use "
            "lit_papers.convex_relu.lens.ConvexGapLens(layers=...)"
        )
    # beta is read from the training step; a network without one asks for it, which `ConvexGapLens` itself takes
    return [
        Plan(
            partial(ConvexGapLens, "relaxed", seconds=seconds),
            1.5 * seconds,
            None if seconds == _SECONDS_CONVEX else f"{seconds:g} s for the bound instead of {_SECONDS_CONVEX:g} s",
        )
        for seconds in (_SECONDS_CONVEX, 1.0, 0.3)
    ]


def separation(setting: Setting) -> list[Plan]:
    """Fewer pairs, and relabelings of each."""
    if not setting.graphs and setting.pairs is None:
        raise NotApplicable("the data are no graphs: batches have no `edge_index`")
    try:
        from lit_papers.datamodules.graph_pairs import GraphPairs
        from lit_papers.expressiveness.lens import SeparationLens
    except ImportError as error:  # of the extra
        raise NotApplicable(str(error)) from error
    pairs = setting.pairs or GraphPairs("atlas").pairs
    return [
        Plan(
            partial(SeparationLens, pairs[:count], relabelings),
            setting.slowness * (0.5 + 0.02 * len(pairs[:count]) * (1 + relabelings)),
            None if count is None else f"the first {count} of {len(pairs)} pairs",
        )
        for count, relabelings in ((None, 4), (10, 4), (4, 2))
    ]


def similarity(setting: Setting) -> list[Plan]:
    """Fewer samples."""
    setting.one_sample()
    return [
        Plan(
            partial(LayerSimilarityLens, count, seed=setting.seed),
            setting.slowness * 0.2 + count * setting.forward,
            None if count == 256 else f"{count} samples instead of 256",
        )
        for count in (256, 64, 24)
    ]


def loss_slice(setting: Setting) -> list[Plan]:
    """Fewer points and samples."""
    setting.one_sample()
    parameters = sum(parameter.numel() for parameter in setting.network.parameters())
    return [
        Plan(
            partial(LossSliceLens, count, steps, seed=setting.seed),
            setting.slowness * (0.1 + 3e-9 * steps**2 * parameters) + steps**2 * count * setting.forward,
            None if steps == 17 else f"{steps} x {steps} points and {count} samples instead of 17 x 17 and 256",
        )
        for steps, count in ((17, 256), (13, 128), (9, 64), (5, 32), (5, 8))
    ]


def consensus(setting: Setting) -> list[Plan]:
    """The checkpoints."""
    if not setting.checkpoints:
        raise NotApplicable("no checkpoint is given: pass those of a run with LocalSGDStrategy")
    try:
        checkpoint_drift(setting.checkpoints[0])
    except (ValueError, RuntimeError) as error:
        raise NotApplicable(f"{setting.checkpoints[0].name} shows no drift: {error}") from error
    return [Plan(partial(RankDriftLens, setting.checkpoints))]

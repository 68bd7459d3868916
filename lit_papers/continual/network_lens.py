"""Two looks at any network that continual learning made popular: similarity of layers, and a slice of the loss."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lit_papers.continual.landscape import Landscape, loss_landscape
from lit_papers.continual.similarity import debiased_cka, layer_features
from lit_papers.lens import Lens, Moment, NotApplicable, Numbers, Subject, class_indices, tensors_in
from lit_papers.lens.layers import Layer, chosen_layers, pooled
from lit_papers.plotting import STYLES, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GROUPS = 8  # of samples, each left out once, for standard errors


class LayerSimilarityLens(Lens):
    """Debiased linear CKA (Kornblith et al. 2019) of every layer with every other, and with itself at the first look.

    Madaan et al., ICLR 2022, compare networks so (section 5.3). Maps and tokens are averaged over their positions.

    Args:
        n_samples: drawn from all over the data; at least 16.
        layers: dotted paths, or ``"all"`` blocks, as in `lit_papers.neural_collapse.lens.CollapseLens`.
        seed: of the samples.

    Raises:
        ValueError: there are too few samples.
    """

    name = "similarity"
    reads = "validation"

    def __init__(self, n_samples: int = 256, layers: Sequence[str] | Literal["all"] = "all", seed: int = 0) -> None:
        if n_samples < 2 * _GROUPS:
            raise ValueError(f"n_samples must be at least {2 * _GROUPS}, got {n_samples}")
        self.n_samples = n_samples
        self.layers = layers
        self.seed = seed
        self._first: list[Tensor] = []  # grams of the first look

    def check(self, subject: Subject) -> tuple[Tensor, list[Layer]]:
        """Choose the layers and read the samples."""
        layers = chosen_layers(subject, self.layers)
        inputs, _ = subject.rows(self.n_samples, scatter=self.seed)
        if len(inputs) < 2 * _GROUPS:
            raise NotApplicable(f"similarity needs at least {2 * _GROUPS} samples, and there are {len(inputs)}")
        return inputs, layers

    def look(
        self, moment: Moment, prepared: tuple[Tensor, list[Layer]], history: Sequence[Mapping[str, Any]]
    ) -> Numbers:
        """Compare the layers.

        Returns:
            ``<layer>/similarity``, CKA with each layer in their order; ``<layer>/to_first`` with its standard error
            ``<layer>/to_first_error`` (over samples); ``to_first``, the mean of these; and ``neighbours``, the mean of
            layers that follow each other, with ``neighbours_error``.

        Raises:
            ValueError: outputs are not finite.
        """
        inputs, layers = prepared
        with moment.network() as network:
            found = layer_features(network, inputs, [layer.name for layer in layers])
        grams = [_gram(pooled(found[layer.name], layer.channels_first)) for layer in layers]
        if not history or not self._first:
            self._first = grams
        both = torch.stack([*grams, *self._first])  # (2 L, n, n)
        if not torch.isfinite(both).all():
            raise ValueError("the outputs of the layers are not finite")
        whole, without = debiased_cka(both), []
        places = torch.arange(len(inputs))
        for group in range(_GROUPS):
            kept = places % _GROUPS != group
            without.append(debiased_cka(both[:, kept][:, :, kept]))
        count = len(layers)
        errors = _jackknife(torch.stack(without))
        numbers: Numbers = {}
        for place, layer in enumerate(layers):
            numbers[f"{layer.name}/similarity"] = whole[place, :count].tolist()
            numbers[f"{layer.name}/to_first"] = float(whole[place, count + place])
            numbers[f"{layer.name}/to_first_error"] = float(errors[place, count + place])
        numbers["to_first"] = float(whole.diagonal(count).mean())
        if count > 1:
            next_to = [matrix[:count, :count].diagonal(1).mean() for matrix in (whole, *without)]
            numbers["neighbours"] = float(next_to[0])
            numbers["neighbours_error"] = float(_jackknife(torch.stack(next_to[1:])))
        return numbers

    def figure(self, history: Sequence[Mapping[str, Any]]) -> "Figure":
        """A heat map of the last entry, dark where layers are alike; over several, each layer against its first."""
        last = history[-1]
        names = [key.removesuffix("/similarity") for key in last if key.endswith("/similarity")]
        figure, axes = new_figure(1, 2 if len(history) > 1 else 1)
        side = max(3.4, 0.22 * len(names) + 1.2)
        figure.set_size_inches(side * len(axes) + 1, side)
        image = axes[0].imshow([last[f"{name}/similarity"] for name in names], cmap="Greys", vmin=0, vmax=1)
        for ticks in (axes[0].set_xticks, axes[0].set_yticks):
            ticks(range(len(names)), names, fontsize=7)
        axes[0].tick_params(axis="x", rotation=90)
        figure.colorbar(image, ax=axes[0], label="debiased linear CKA", shrink=0.8)
        if len(history) > 1:
            for place, name in enumerate(names):
                shade = 0.7 * place / max(len(names) - 1, 1)
                style = {**STYLES[place % len(STYLES)], "color": (shade, shade, shade)}
                axes[1].plot(
                    [e["step"] for e in history], [e[f"{name}/to_first"] for e in history], label=name, markersize=4,
                    **style,
                )  # fmt: skip
            axes[1].set(xlabel="step", ylabel="CKA with the first look")
            axes[1].legend(fontsize=7)
            axes[1].grid(alpha=0.3)
        return figure


def _gram(features: Tensor) -> Tensor:
    features = features.double().cpu()
    features = features - features.mean(dim=0)
    return features @ features.T


def _jackknife(without: Tensor) -> Tensor:
    """Standard error from the values without each group, which come first."""
    groups = len(without)
    return ((without - without.mean(0)).square().sum(0) * (groups - 1) / groups).sqrt()


class SliceData(NamedTuple):
    """What the loss is evaluated on.

    Attributes:
        inputs: ``(N, ...)``.
        targets: classes ``(N,)``.
        loss: ``"cross_entropy"`` or ``"mse"``.
    """

    inputs: Tensor
    targets: Tensor
    loss: str


class LossSliceLens(Lens):
    """The loss on a square around the weights, along two filter-normalised random directions (Li et al. 2018).

    Madaan et al., ICLR 2022, section 5.3, draw it to explain what is forgotten. The loss is the training's own where
    it is the MSE loss, else cross-entropy, per sample.

    Args:
        n_samples: drawn from all over the data.
        steps: points on each axis, 5, 9, 13, ...
        span: half the side of the square, in lengths of the filters, > 0.
        seed: of samples and directions.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "loss_slice"

    def __init__(self, n_samples: int = 128, steps: int = 13, span: float = 1.0, seed: int = 0) -> None:
        if steps < 5 or steps % 4 != 1:
            raise ValueError(f"steps must be 5, 9, 13, ..., so that middle and half lie on the grid; got {steps}")
        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, got {n_samples}")
        if span <= 0:
            raise ValueError(f"span must be positive, got {span}")
        self.n_samples = n_samples
        self.steps = steps
        self.span = span
        self.seed = seed

    def check(self, subject: Subject) -> SliceData:
        """Read the samples, and see that ``forward`` answers them with logits."""
        inputs, given = subject.rows(self.n_samples, scatter=self.seed)
        try:
            known = subject.training_loss()
        except ValueError:  # no head is known: the loss is of the outputs, whatever makes them
            known = None
        with subject.moment().network() as network:
            outputs = _logits(network, inputs[:8])
        targets = class_indices(given, outputs.shape[1])
        if bool(((targets < 0) | (targets >= outputs.shape[1])).any()):
            raise NotApplicable(f"a target is outside [0, {outputs.shape[1]}): pass `unpack` or other data")
        loss: Literal["mse", "cross_entropy"] = "mse" if known is not None and known.name == "mse" else "cross_entropy"
        if loss == "cross_entropy" and _are_distributions(outputs):
            raise NotApplicable(
                f"`forward` of {type(subject.network).__name__} returns probabilities, and the cross-entropy is of "
                "logits: let it return them (no softmax behind them)"
            )
        return SliceData(inputs, targets, loss)

    def look(self, moment: Moment, prepared: SliceData, history: Sequence[Mapping[str, Any]]) -> Numbers:
        """Evaluate the loss on the square.

        Returns:
            ``loss`` and its standard error ``loss_error`` over samples; ``rise_half`` and ``rise_whole``, by how much
            it is larger on the ring at half and at the whole ``span``, on average, with ``_spread``, the standard
            deviation along the ring; ``lowest``, the lowest point of the square less ``loss``; ``slice``, row by row.

        Raises:
            ValueError: the loss at the weights is not finite.
        """
        with moment.network() as network, torch.no_grad():
            each = _losses(_logits(network, prepared.inputs), prepared)
            if not torch.isfinite(each).all():
                raise ValueError("the loss at the weights is not finite")
            found = loss_landscape(
                network, lambda model: _losses(_logits(model, prepared.inputs), prepared).mean(), self.steps,
                self.span, self.seed,
            )  # fmt: skip
        middle = self.steps // 2
        loss = float(each.mean())
        numbers: Numbers = {
            "loss": loss,
            "loss_error": float(each.std() / len(each) ** 0.5) if len(each) > 1 else math.nan,
            "lowest": float(found.loss.min()) - float(found.loss[middle, middle]),
            "span": self.span,
        }
        away = (torch.arange(self.steps) - middle).abs()
        ring = torch.maximum(away[:, None], away[None, :])
        for name, radius in (("half", middle // 2), ("whole", middle)):
            values = found.loss[ring == radius].double() - found.loss[middle, middle]
            numbers |= {f"rise_{name}": float(values.mean()), f"rise_{name}_spread": float(values.std())}
        return {**numbers, "slice": found.loss.flatten().tolist()}

    def unknown(self, prepared: SliceData) -> Numbers:
        """NaN for what is logged."""
        rises = [f"rise_{name}{end}" for name in ("half", "whole") for end in ("", "_spread")]
        return dict.fromkeys(("loss", "loss_error", "lowest", *rises), math.nan)

    def figure(self, history: Sequence[Mapping[str, Any]]) -> "Figure":
        """Contours of the last slice."""
        last = next(entry for entry in reversed(history) if "slice" in entry)
        axis = torch.linspace(-last["span"], last["span"], round(len(last["slice"]) ** 0.5))
        return Landscape(axis, axis, torch.tensor(last["slice"]).reshape(len(axis), len(axis))).plot()


def _logits(network: nn.Module, inputs: Tensor) -> Tensor:
    found = [each for each in tensors_in(network(inputs)) if each.is_floating_point() and each.ndim == 2]
    logits = [each for each in found if len(each) == len(inputs) and each.shape[1] > 1]
    if len(logits) != 1:
        raise NotApplicable(
            f"`forward` of {type(network).__name__} returns {len(logits)} tensors that could be logits (N, C), and a "
            "loss is of one: wrap it into a module whose `forward` returns them"
        )
    return logits[0]


def _are_distributions(outputs: Tensor) -> bool:
    away = (outputs.double().sum(1) - 1).abs()
    return bool((outputs >= 0).all() and (away <= 8 * torch.finfo(outputs.dtype).eps * outputs.shape[1] ** 0.5).all())


def _losses(logits: Tensor, data: SliceData) -> Tensor:
    logits = logits.float()
    if data.loss == "mse":
        targets = nn.functional.one_hot(data.targets, logits.shape[1]).to(logits)
        return (logits - targets).square().mean(dim=1)
    return nn.functional.cross_entropy(logits, data.targets, reduction="none")

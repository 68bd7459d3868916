"""What a stranger's training step minimises: found by running it, not by reading settings.

The loss of ``Linear -> ReLU -> Linear`` on a batch is a known function of the weights. If a step's loss at several
perturbed weights is ``factor * sum of losses + penalty / 2 * |weights|^2``, with the same two numbers each time, then
the step computes nothing else: no skip connection, normalisation, dropout, scaling or second term. A hidden layer that
is scaled up, and the output layer down, must leave the losses as they are, which tells a ReLU from what is like it near
the present weights (ReLU6, a clipped or shifted one).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_papers.convex_relu.losses import LOSSES, Loss, loss_value
from lit_papers.convex_relu.networks import network_output

_TRIALS = 7
_SCALES, _SCALES_OF_HALF = (32.0, 256.0, 1 / 256), (16.0, 1 / 16)  # powers of two, which change no digit


class NotRecognised(ValueError):  # noqa: N818  # an answer, as NotApplicable is
    """The step's loss is not that of such a network."""


@dataclass(frozen=True)
class Recognised:
    """How a step's loss on a batch depends on the network.

    Attributes:
        loss: of the outputs.
        factor: of the sum of the samples' losses, on a batch of this size.
        penalty: of ``|weights|^2 / 2``, without the output bias; 0 if the step adds none.
        bias_penalty: of ``|output bias|^2 / 2``, which the objective leaves out; 0 if the step adds none.
        tolerance: relative, to which this was seen, by the precision of the network.
    """

    loss: Loss
    factor: float
    penalty: float
    bias_penalty: float
    tolerance: float

    def predicted(self, layers: "Layers", x: Tensor, y: Tensor) -> float:
        """The step's loss on a batch with the layers as they are now."""
        value = layers.loss(x, targets(y, self.loss, layers.num_outputs), self.loss)
        return self.factor * value + 0.5 * (self.penalty * layers.penalty() + self.bias_penalty * layers.bias_square())


class Layers:
    """Two linear layers, read as weight, alpha and bias in float64.

    Args:
        hidden: the first layer; a bias of it is one more column of its weight.
        output: the second layer.
    """

    def __init__(self, hidden: nn.Linear, output: nn.Linear) -> None:
        self.hidden, self.output = hidden, output

    @property
    def num_outputs(self) -> int:
        """Of the second layer, k."""
        return self.output.out_features

    @property
    def weight(self) -> Tensor:
        """(m, d), or (m, d + 1) with the hidden bias last."""
        weight = _read(self.hidden.weight)
        return weight if self.hidden.bias is None else torch.cat([weight, _read(self.hidden.bias)[:, None]], 1)

    @property
    def alpha(self) -> Tensor:
        """(m,), or (m, k) for k > 1."""
        alpha = _read(self.output.weight).T.contiguous()
        return alpha[:, 0] if self.num_outputs == 1 else alpha

    @property
    def bias(self) -> Tensor | None:
        """Output bias, () or (k,)."""
        shape = () if self.num_outputs == 1 else (-1,)
        return None if self.output.bias is None else _read(self.output.bias).reshape(shape)

    def inputs(self, x: Tensor) -> Tensor:
        """Samples (n, ...) as rows in float64, with a column of ones for a hidden bias."""
        rows = _read(x).flatten(1)
        return rows if self.hidden.bias is None else torch.cat([rows, rows.new_ones(len(rows), 1)], 1)

    def loss(self, x: Tensor, y: Tensor, loss: Loss) -> float:
        """Sum of the losses of samples with the layers as they are now."""
        return float(loss_value(network_output(self.inputs(x), self.weight, self.alpha, self.bias), y, loss))

    def penalty(self) -> float:
        """Squared norm of all weights but the output bias."""
        return float(self.weight.square().sum() + self.alpha.square().sum())

    def bias_square(self) -> float:
        """Squared norm of the output bias; 0 without one."""
        return 0.0 if self.bias is None else float(self.bias.square().sum())


def targets(y: Tensor, loss: Loss, num_outputs: int) -> Tensor:
    """A batch's targets as `Problem.of` takes them.

    Labels 0 and 1 are read as -1 and +1 under the logistic loss, class indices as one-hot rows under the cross-entropy.

    Raises:
        NotRecognised: they cannot be targets of that loss.
    """
    indices = y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y
    plain = _read(indices)
    if loss == "cross_entropy":
        if num_outputs == 1:
            raise NotRecognised("one output has no softmax")
        if plain.ndim == 1:
            if bool(((plain != plain.round()) | (plain < 0) | (plain >= num_outputs)).any()):
                raise NotRecognised("the targets are no class indices")
            return torch.nn.functional.one_hot(plain.long(), num_outputs).double()
        if plain.shape[1] != num_outputs or bool((plain < 0).any()):
            raise NotRecognised("the targets are no class probabilities")
        return plain
    if loss == "logistic":
        if num_outputs != 1 or plain.ndim != 1:
            raise NotRecognised("the logistic loss is of one output")
        if bool(((plain == 0) | (plain == 1)).all()):
            plain = 2 * plain - 1
        if not bool((plain.abs() == 1).all()):
            raise NotRecognised("the targets are no two labels")
        return plain
    if (num_outputs == 1 and plain.ndim != 1) or (num_outputs > 1 and plain.shape != (len(plain), num_outputs)):
        raise NotRecognised(f"targets of shape {tuple(y.shape)} are not those of {num_outputs} outputs")
    return plain


def recognise(
    step: Callable[[], Tensor],
    layers: Layers,
    x: Tensor,
    y: Tensor,
    losses: Sequence[Loss] = LOSSES,
) -> Recognised:
    """Run a step at perturbed weights, and find the loss and the numbers that explain all its values.

    Args:
        step: the training loss on the batch, a scalar, with the layers as they are when it is called.
        layers: of a copy of the network, which is perturbed.
        x: features of the batch, (B, ...).
        y: its targets.
        losses: that may be.

    Raises:
        NotRecognised: no loss explains them; says how far the nearest is off.
    """
    parameters = [*layers.hidden.parameters(), *layers.output.parameters()]
    generator = torch.Generator().manual_seed(0)
    kept = [parameter.detach().clone() for parameter in parameters]
    epsilon = torch.finfo(layers.hidden.weight.dtype).eps
    sizes = _sizes(layers, fine=epsilon < 1e-5)
    wanted: dict[Loss, Tensor] = {}
    reasons: dict[Loss, str] = {}
    for loss in losses:
        try:
            wanted[loss] = targets(y, loss, layers.num_outputs)
        except NotRecognised as error:
            reasons[loss] = str(error)
    if not wanted:
        raise NotRecognised("the targets fit no loss (" + "; ".join(f"{k}: {why}" for k, why in reasons.items()) + ")")
    seen: dict[Loss, list[tuple[float, float, float, float]]] = {loss: [] for loss in wanted}
    scaled: list[tuple[float, float, float]] = []  # scale, value of the step, penalty
    with torch.no_grad():
        try:
            for trial in range(_TRIALS):
                for parameter, before, size in zip(parameters, kept, sizes, strict=True):
                    noise = 0.3 * size * torch.randn(before.shape, generator=generator).to(before)
                    parameter.copy_(before if trial == 0 else (0.5 + 0.25 * trial) * before + noise)
                value = float(step())
                for loss, target in wanted.items():
                    terms = 0.5 * layers.penalty(), 0.5 * layers.bias_square()
                    seen[loss].append((value, layers.loss(x, target, loss), *terms))
            for scale in _SCALES if epsilon < 1e-5 else _SCALES_OF_HALF:  # of the last trial
                for parameter in layers.hidden.parameters():
                    parameter.mul_(scale)
                layers.output.weight.div_(scale)
                scaled.append((scale, float(step()), 0.5 * layers.penalty()))
                for parameter in layers.hidden.parameters():
                    parameter.div_(scale)
                layers.output.weight.mul_(scale)
        finally:
            for parameter, before in zip(parameters, kept, strict=True):
                parameter.copy_(before)
    tolerance = min(1e-6 + 30 * epsilon, 1e-3)  # a rougher look could take one network for another
    misfits: dict[Loss, float] = {}
    for loss, rows in seen.items():
        table = torch.tensor(rows, dtype=torch.float64)
        # without a penalty in the step's loss, with one, and with one of the output bias too
        for count in (1, 2) if layers.bias is None else (1, 2, 3):
            design = table[:, 1 : 1 + count]
            numbers = torch.linalg.lstsq(design, table[:, 0:1]).solution[:, 0]
            misfit = float((design @ numbers - table[:, 0]).abs().max() / table[:, 0].abs().max().clamp_min(1e-300))
            misfits[loss] = min(misfit, misfits.get(loss, float("inf")))
            if misfit <= tolerance and float(numbers[0]) > 0 and bool((numbers >= 0).all()):
                penalty, bias_penalty = (float(numbers[at]) if at < count else 0.0 for at in (1, 2))
                _check_scales(scaled, float(numbers[0]) * rows[-1][1] + bias_penalty * rows[-1][3], penalty, tolerance)
                factor = _plain(float(numbers[0]), len(x), layers.num_outputs, tolerance)
                return Recognised(loss, factor, penalty, bias_penalty, tolerance)
    told = [f"{loss}: {100 * misfit:.2g}% off" for loss, misfit in misfits.items()]
    told += [f"{loss}: {reason}" for loss, reason in reasons.items()]
    raise NotRecognised(
        "the training loss is not that of Linear -> ReLU -> Linear on these samples ("
        + "; ".join(told)
        + "): something "
        "else lies between input, layers, output and loss (a normalisation, dropout, a skip connection, a scaled "
        "output, another loss term, a penalty of a part of the weights)"
    )


def _sizes(layers: Layers, *, fine: bool) -> list[Tensor]:
    """How far each parameter is moved: by its own size.

    Biases and heads may begin at 0. These move by a share of what the others are, where the precision is fine enough
    to tell: a penalty that leaves them out would be taken for one that has them.
    """
    own = [[p.detach().square().mean().sqrt() for p in layer.parameters()] for layer in (layers.hidden, layers.output)]
    overall = 0.1 * max(float(size) for sizes in own for size in sizes)
    least = [max(1e-3, overall, *map(float, sizes)) if fine else 1e-3 for sizes in own]
    return [size.clamp_min(floor) for sizes, floor in zip(own, least, strict=True) for size in sizes]


def _check_scales(scaled: Sequence[tuple[float, float, float]], loss: float, penalty: float, tolerance: float) -> None:
    """Refuse what a ReLU is not: its positive homogeneity leaves the loss as it is at every scale of its input."""
    for scale, value, weights in scaled:
        expected = loss + penalty * weights
        if not abs(value - expected) <= 10 * tolerance * abs(expected):
            raise NotRecognised(
                "what lies between the layers is a ReLU only near the present weights: with the hidden layer times "
                f"{scale:g} and the output layer divided by it, the loss is {value:.6g} instead of {expected:.6g} (a "
                "ReLU6, a clipped or shifted one)"
            )


def _plain(factor: float, size: int, num_outputs: int, tolerance: float) -> float:
    """The factor of a mean or a sum that this one is up to rounding, or itself."""
    for scale in (1.0, 2.0, 0.5):
        for count in (1, size, size * num_outputs):
            if abs(factor * count / scale - 1) <= 10 * tolerance:
                return scale / count
    return factor


def _read(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)

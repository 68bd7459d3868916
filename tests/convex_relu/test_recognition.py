"""A step is known by its values: the networks that pass, and those that do not."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_papers.convex_relu.recognition import Layers, NotRecognised, recognise, targets
from tests.convex_relu.small import normal

mse = nn.functional.mse_loss


def network(outputs: int = 1, bias: bool = True, dtype: Any = torch.float32) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    return nn.Linear(3, 8, bias=bias, dtype=dtype), nn.Linear(8, outputs, bias=bias, dtype=dtype)


def stepped(loss: Callable[[Tensor], Tensor], layers: tuple[nn.Linear, nn.Linear], x: Tensor) -> Tensor:
    return loss(forward(*layers, x))


def forward(hidden: nn.Linear, output: nn.Linear, x: Tensor) -> Tensor:
    return output(hidden(x).relu())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_and_their_factors(bias: bool, dtype: torch.dtype) -> None:
    x = normal(12, 3).to(dtype)
    y, labels, classes = normal(12, seed=1).to(dtype), normal(12, seed=2) > 0, torch.arange(12) % 3
    rough = 1e-4
    cases: list[tuple[int, Tensor, Callable[[Tensor], Tensor], str, float]] = [
        (1, y, lambda z: mse(z[:, 0], y), "squared", 2 / 12),
        (1, y, lambda z: mse(z[:, 0], y, reduction="sum"), "squared", 2.0),
        (3, torch.stack([y, -y, y], 1), lambda z: mse(z, torch.stack([y, -y, y], 1)), "squared", 2 / 36),
        (
            1,
            labels,
            lambda z: nn.functional.binary_cross_entropy_with_logits(z[:, 0], labels.to(dtype)),
            "logistic",
            1 / 12,
        ),
        (3, classes, lambda z: nn.functional.cross_entropy(z, classes), "cross_entropy", 1 / 12),
    ]
    for outputs, target, loss, name, factor in cases:
        layers = network(outputs, bias, dtype)
        before = [parameter.clone() for layer in layers for parameter in layer.parameters()]
        found = recognise(partial(stepped, loss, layers, x), Layers(*layers), x, target)
        assert found.loss == name
        assert found.factor == pytest.approx(factor, rel=rough)
        assert found.penalty == pytest.approx(0, abs=rough)
        assert found.predicted(Layers(*layers), x, target) == pytest.approx(
            float(loss(forward(*layers, x)).detach()), rel=rough
        )
        after = [parameter for layer in layers for parameter in layer.parameters()]
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_penalty_in_the_loss() -> None:
    x, y, (hidden, output) = normal(12, 3).float(), normal(12, seed=1).float(), network(bias=False)

    def step() -> Tensor:
        penalty = hidden.weight.square().sum() + output.weight.square().sum()
        return mse(forward(hidden, output, x)[:, 0], y) / 2 + 0.35 * penalty

    found = recognise(step, Layers(hidden, output), x, y)
    assert (found.loss, found.factor) == ("squared", pytest.approx(1 / 12, rel=1e-4))
    assert found.penalty == pytest.approx(0.7, rel=1e-4)


def test_a_penalty_of_all_parameters_or_of_a_part() -> None:
    """Biases that begin at 0 count too: a penalty that leaves them out, or has them, is another one later."""
    x, y, layers = normal(12, 3).float(), normal(12, seed=1).float(), network()
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    with torch.no_grad():
        for bias in biases:
            bias.zero_()

    def step(decayed: list[Tensor]) -> Tensor:
        return mse(forward(*layers, x)[:, 0], y) + 0.05 * torch.stack([p.square().sum() for p in decayed]).sum()

    found = recognise(partial(step, [*weights, *biases]), Layers(*layers), x, y)
    assert found.penalty == pytest.approx(0.1, rel=1e-4)
    assert found.bias_penalty == pytest.approx(0.1, rel=1e-3)
    with torch.no_grad():
        biases[1].fill_(2.0)
    expected = float(step([*weights, *biases]).detach())
    assert found.predicted(Layers(*layers), x, y) == pytest.approx(expected, rel=1e-4)
    with torch.no_grad():
        biases[1].zero_()
    for part in (weights, weights[:1]):
        with pytest.raises(NotRecognised, match="a part of the weights"):
            recognise(partial(step, part), Layers(*layers), x, y)


@pytest.mark.parametrize(
    "twist",
    [
        lambda z, x: z + x.sum(1),
        lambda z, x: 10 * z + 3,
        lambda z, x: 2 * z,
        lambda z, x: z.sigmoid(),
        lambda z, x: nn.functional.dropout(z, 0.5),
        lambda z, x: (z - z.mean()) / z.std(),
        lambda z, x: z.abs(),
    ],
)
def test_what_is_something_else(twist: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, y, layers = normal(12, 3).float(), normal(12, seed=1).float(), network()
    with pytest.raises(NotRecognised, match=r"squared: .*% off.* something else lies between"):
        recognise(lambda: mse(twist(forward(*layers, x)[:, 0], x), y), Layers(*layers), x, y)


def test_targets() -> None:
    assert targets(torch.tensor([0, 1]), "logistic", 1).tolist() == [-1.0, 1.0]
    assert targets(torch.tensor([2, 0]), "cross_entropy", 3).tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    assert targets(torch.ones(4, 1), "squared", 1).shape == (4,)
    for y, loss, outputs in ((torch.ones(4, 2), "squared", 3), (torch.tensor([0.5]), "logistic", 1)):
        with pytest.raises(NotRecognised):
            targets(y, loss, outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("penalty", [0.0, 0.02])
@pytest.mark.parametrize("activation", ["relu6", "clipped", "relu"])
def test_what_is_a_relu_near_the_present_weights_alone(activation: str, penalty: float, dtype: torch.dtype) -> None:
    """At the usual units a ReLU6 never reaches its 6, and a bound would be of networks that it cannot be."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "relu6": nn.functional.relu6,
        "clipped": lambda z: z.clamp(0, 20),
        "relu": torch.relu,
    }
    x, y, (hidden, output) = normal(12, 3).to(dtype), normal(12, seed=1).to(dtype), network(dtype=dtype)
    layers = Layers(hidden, output)

    def step() -> Tensor:
        squares = sum(p.double().square().sum() for p in (*hidden.parameters(), output.weight))
        return mse(output(functions[activation](hidden(x)))[:, 0].double(), y.double()) + penalty * squares

    if activation == "relu":
        assert recognise(step, layers, x, y).penalty == pytest.approx(
            2 * penalty, abs=1e-2 if dtype is torch.bfloat16 else 1e-4
        )
    elif dtype is not torch.bfloat16:  # of which a step is run in double precision
        with pytest.raises(NotRecognised, match="a ReLU only near the present weights"):
            recognise(step, layers, x, y)

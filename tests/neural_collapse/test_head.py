"""The head against least squares: closed forms, invariances, and the lens."""

import pytest
import torch
from torch import nn

from lit_papers.neural_collapse.functional import class_statistics, least_squares_classifier, mse_decomposition
from lit_papers.neural_collapse.head import HeadLens, least_squares_distance


def statistics(classes: int = 3, features: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % classes
    return torch.randn(60, features, generator=generator).double() + 2 * torch.eye(classes, features)[y], y


def test_the_least_squares_head_is_at_no_distance_at_any_scale_and_shift() -> None:
    h, y = statistics()
    stats = class_statistics(h, y, 3)
    weight, _ = least_squares_classifier(stats)
    found = least_squares_distance(stats, 7 * weight + torch.ones(1, 5))
    assert found["distance"] == pytest.approx(0, abs=1e-12)
    assert found["excess"] == pytest.approx(0, abs=1e-10)
    assert least_squares_distance(stats, -weight)["distance"] == pytest.approx(4)


def test_excess_is_that_of_a_regression_on_the_logits() -> None:
    h, y = statistics()
    stats = class_statistics(h, y, 3)
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).double()
    found = least_squares_distance(stats, weight)
    centred = weight - weight.mean(0)
    targets = nn.functional.one_hot(y, 3).double()

    logits, wanted = (each - each.mean(0) for each in (h @ centred.T, targets))
    scale = (logits * wanted).sum() / logits.square().sum()
    best = float(0.5 * (scale * logits - wanted).square().sum(1).mean())
    least = float(mse_decomposition(stats, *least_squares_classifier(stats))["loss"])
    assert found["ls"] == pytest.approx(least)
    assert found["excess"] == pytest.approx((best - least) / least, rel=1e-9)


def test_the_lens_reads_features_and_head() -> None:
    h, y = statistics()
    head = nn.Linear(5, 3)
    numbers = HeadLens()(head, [(h.float(), y)])
    expected = least_squares_distance(class_statistics(h.float(), y, 3), head.weight.detach())
    assert numbers == pytest.approx({key: float(value) for key, value in expected.items()})
    figure = HeadLens().figure([{"epoch": 1, **numbers}])
    assert [axis.get_xlabel() for axis in figure.axes] == ["epoch", "epoch"]

"""Where multiply-adds go, and which strides could be learned, of networks whose counts are known."""

import pytest
import torch
from torch import nn

from lit_papers.diffstride.layers import DiffStride2d
from lit_papers.diffstride.network_lens import ConvertibleLens, CostLens
from lit_papers.lens import NotApplicable


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 3),
    )  # fmt: skip


LOADER = [(torch.zeros(2, 1, 16, 16), torch.tensor([0, 1]))]


def test_every_product_is_counted_in_its_layer() -> None:
    numbers = CostLens()(network(), LOADER)
    conv, linear = 9 * 4 * 8 * 8, 4 * 3
    assert numbers["gmacs"] == pytest.approx((conv + linear) / 1e9)
    assert numbers["0/gmacs"] == pytest.approx(conv / 1e9)
    assert numbers["5/gmacs"] == pytest.approx(linear / 1e9)
    assert {key: value for key, value in numbers.items() if key.endswith("/kept")} == {
        "0/kept": 1 / 4, "2/kept": 1 / 4, "3/kept": 1 / 16,
    }  # fmt: skip
    figure = CostLens().figure([numbers])
    assert figure.axes[0].get_xlabel() == "multiply-adds of a sample [millions]"
    assert len(figure.axes) == 2


def test_strides_that_could_be_learned_and_what_they_cost() -> None:
    numbers = ConvertibleLens()(network(), LOADER)
    assert numbers["layers"] == 2
    assert numbers["strides"] == 2
    assert numbers["0/stride"] == 2
    assert numbers["2/stride"] == 2
    assert numbers["cost_ratio"] == pytest.approx((9 * 4 * 16 * 16 + 12) / (9 * 4 * 8 * 8 + 12))  # runs at stride 1
    assert ConvertibleLens().figure([numbers]).axes[0].get_xlabel() == "stride that could be learned"


def test_refusals_say_why() -> None:
    with pytest.raises(NotApplicable, match="no convolution or pooling with a stride"):
        ConvertibleLens()(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(512, 2)), LOADER)
    with pytest.raises(NotApplicable, match="learned already"):
        ConvertibleLens()(nn.Sequential(DiffStride2d(2.0), nn.Flatten(), nn.LazyLinear(2)), LOADER)
    with pytest.raises(ValueError, match="nothing to count"):
        CostLens()(nn.Flatten(), LOADER)

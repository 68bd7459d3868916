"""Similarity of layers, slice of the loss and accuracy, of any network."""

import pytest
import torch
from torch import nn

from lit_papers.continual.landscape import loss_landscape
from lit_papers.continual.lens import AccuracyLens
from lit_papers.continual.network_lens import LayerSimilarityLens, LossSliceLens
from lit_papers.continual.similarity import debiased_cka, linear_cka
from lit_papers.lens import NotApplicable, Subject

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(64, 6, generator=GENERATOR), torch.arange(64) % 3
LOADER = [(X[:32], Y[:32]), (X[32:], Y[32:])]


def mlp() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def test_debiased_cka_of_grams_is_that_of_features() -> None:
    x, y = X, torch.randn(64, 9, generator=GENERATOR)
    found = debiased_cka(torch.stack([x @ x.T, y @ y.T]))
    assert found[0, 1] == pytest.approx(float(linear_cka(x, y, debiased=True)))
    assert found.diagonal().tolist() == pytest.approx([1, 1])
    with pytest.raises(ValueError, match="at least 4"):
        debiased_cka(torch.eye(3)[None])


def test_layers_are_compared_with_each_other_and_with_the_first_look() -> None:
    network, lens = mlp(), LayerSimilarityLens()
    subject = Subject(network, LOADER, reads="validation")
    prepared = lens.check(subject)
    first = lens.look(subject.moment(), prepared, [])
    with torch.no_grad():
        hidden, features = network[1](network[0](X)), network[:4](X)
    expected = float(linear_cka(hidden, features, debiased=True))
    assert first["1/similarity"][3] == pytest.approx(expected)
    assert first["3/similarity"][1] == pytest.approx(expected)
    assert first["to_first"] == pytest.approx(1)
    with torch.no_grad():
        network[2].weight.normal_()
        changed = float(linear_cka(features, network[:4](X), debiased=True))
    second = lens.look(subject.moment(), prepared, [first])
    assert second["1/to_first"] == pytest.approx(1)
    assert second["3/to_first"] == pytest.approx(changed)
    assert 0 < second["3/to_first_error"] < 1
    history = [{"step": 0, "epoch": 1, **first}, {"step": 5, "epoch": 2, **second}]
    assert [axis.get_xlabel() for axis in lens.figure(history).axes[:2]] == ["", "step"]


def test_a_slice_is_that_of_the_landscape_with_its_rings() -> None:
    network, lens = mlp(), LossSliceLens(64, steps=5)
    numbers = lens(network, LOADER)
    expected = loss_landscape(network, lambda model: nn.functional.cross_entropy(model(X), Y), 5, 1.0, 0).loss
    assert numbers["slice"] == pytest.approx(expected.flatten().tolist(), rel=1e-5)
    assert numbers["loss"] == pytest.approx(float(expected[2, 2]), rel=1e-5)
    each = nn.functional.cross_entropy(network(X), Y, reduction="none")
    assert numbers["loss_error"] == pytest.approx(float(each.std() / 8), rel=1e-5)
    border = torch.ones(5, 5, dtype=torch.bool)
    border[1:4, 1:4] = False
    assert numbers["rise_whole"] == pytest.approx(float(expected[border].mean() - expected[2, 2]), rel=1e-4)
    assert lens.figure([{"epoch": 1, **numbers}]).axes[0].get_title() == "loss"


def test_accuracy_with_its_error() -> None:
    network = mlp()
    numbers = AccuracyLens()(network, LOADER)
    share = float((network(X).argmax(1) == Y).double().mean())
    assert numbers == pytest.approx({"accuracy": share, "accuracy_error": (share * (1 - share) / 64) ** 0.5})


def test_refusals() -> None:
    with pytest.raises(ValueError, match="steps"):
        LossSliceLens(steps=6)
    with pytest.raises(ValueError, match="n_samples"):
        LayerSimilarityLens(4)
    with pytest.raises(NotApplicable, match="at least 16 samples"):
        LayerSimilarityLens()(mlp(), [(X[:9], Y[:9])])
    with pytest.raises(NotApplicable, match="outside"):
        LossSliceLens()(mlp(), [(X[:9], Y[:9] + 1)])
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(NotApplicable, match="returns probabilities"):
            LossSliceLens()(nn.Sequential(mlp(), nn.Softmax(1)).to(dtype), [(X.to(dtype), Y)])
    assert LossSliceLens(steps=5)(nn.Sequential(mlp(), nn.LogSoftmax(1)), LOADER)["loss"] > 0

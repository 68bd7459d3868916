"""Losses, CKA, landscapes and the network, against closed forms."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn

from lit_papers.continual.figures import feature_map_figure
from lit_papers.continual.landscape import filter_normalized_direction, loss_landscape
from lit_papers.continual.losses import BarlowTwins, SimSiam, barlow_twins_loss, simsiam_loss
from lit_papers.continual.probe import LinearProbe
from lit_papers.continual.resnet import ResNet
from lit_papers.continual.similarity import CKA, layer_features, layer_similarity, linear_cka


def orthonormal(rows: int, columns: int) -> torch.Tensor:
    """Centred orthonormal columns."""
    noise = torch.randn(rows, columns, dtype=torch.float64)
    return torch.linalg.qr(noise - noise.mean(0)).Q


def test_simsiam() -> None:
    z = torch.randn(5, 4)
    assert simsiam_loss(z, 2 * z, 3 * z, z).item() == pytest.approx(-1)
    assert simsiam_loss(z, z, -z, -z).item() == pytest.approx(1)
    p1, p2, z1, z2 = (torch.randn(5, 4, requires_grad=True) for _ in range(4))
    simsiam_loss(p1, p2, z1, z2).backward()
    assert z1.grad is None
    assert z2.grad is None
    assert p1.grad is not None


def test_barlow_twins() -> None:
    z = orthonormal(64, 6) * 8  # every column has unit variance
    assert barlow_twins_loss(z, z).item() == pytest.approx(0, abs=1e-6)
    assert barlow_twins_loss(z, -z).item() == pytest.approx(4 * 6, rel=1e-4)
    constant = torch.cat([z[:, :5], torch.ones(64, 1, dtype=torch.float64)], dim=1)
    assert barlow_twins_loss(constant, constant).item() == pytest.approx(1, rel=1e-4)
    repeated = z[:, :1].expand(-1, 2)
    assert barlow_twins_loss(repeated, repeated, lambda_param=0.1).item() == pytest.approx(0.2, rel=1e-3)


def test_heads_are_the_authors() -> None:
    head = SimSiam(512)
    projector = [512 * 2048 + 2048, 2048 * 2, 2048 * 2048 + 2048, 2048 * 2]
    predictor = [2048 * 512 + 512, 512 * 2, 512 * 2048 + 2048]
    assert [p.numel() for p in head.parameters()] == [
        512 * 2048, 2048, 2048, 2048, 2048 * 2048, 2048, 2048, 2048, 2048 * 512, 512, 512, 512, 512 * 2048, 2048,
    ]  # fmt: skip
    assert sum(p.numel() for p in head.parameters()) == sum(projector) + sum(predictor)
    assert sum(p.numel() for p in BarlowTwins(512).parameters()) == sum(projector)
    assert -1 <= SimSiam(4, 8, 4)(torch.randn(6, 4), torch.randn(6, 4)).item() <= 1
    assert BarlowTwins(4, 8)(torch.randn(6, 4), torch.randn(6, 4)).item() >= 0


def test_cka_identities() -> None:
    x = torch.randn(40, 7)
    rotation = torch.linalg.qr(torch.randn(7, 7)).Q
    assert linear_cka(x, x).item() == pytest.approx(1)
    assert linear_cka(x, 3 * x @ rotation + 5).item() == pytest.approx(1)
    basis = orthonormal(40, 9)
    assert linear_cka(basis, basis[:, :4]).item() == pytest.approx(math.sqrt(4 / 9))
    assert linear_cka(basis[:, :4], basis[:, 4:]).item() == pytest.approx(0, abs=1e-12)
    wide = torch.randn(6, 50)
    assert linear_cka(wide, wide[:, :3]).item() == pytest.approx(
        (torch.linalg.matrix_norm((wide - wide.mean(0)).T @ (wide[:, :3] - wide[:, :3].mean(0))) ** 2).item()
        / torch.linalg.matrix_norm((wide - wide.mean(0)).T @ (wide - wide.mean(0))).item()
        / torch.linalg.matrix_norm((wide[:, :3] - wide[:, :3].mean(0)).T @ (wide[:, :3] - wide[:, :3].mean(0))).item(),
        rel=1e-4,
    )


def test_debiased_cka_of_independent_samples_is_zero() -> None:
    x, y = torch.randn(2, 50, 2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert linear_cka(x, y).item() == pytest.approx(0.975, abs=0.005)
    assert abs(linear_cka(x, y, debiased=True).item()) < 0.05
    assert linear_cka(x, x, debiased=True).item() == pytest.approx(1)


def test_cka_of_batches_is_that_of_the_whole() -> None:
    x, y = torch.randn(90, 2, 3), torch.randn(90, 5)
    metric = CKA()
    for part in torch.arange(90).split(25):
        metric.update(x[part], y[part])
    assert metric.compute().item() == pytest.approx(linear_cka(x, y).item())
    merged = CKA()
    for name in ("n", "x", "y", "xx", "yy", "xy"):  # as two processes would be summed
        half = []
        for part in (slice(0, 40), slice(40, 90)):
            single = CKA()
            single.update(x[part], y[part])
            half.append(getattr(single, name))
        setattr(merged, name, half[0] + half[1])
    merged._update_count = 1
    assert merged.compute().item() == pytest.approx(linear_cka(x, y).item())
    with pytest.raises(ValueError, match="90 samples, but `y` has 5"):
        metric.update(x, y[:5])
    with pytest.raises(ValueError, match="90 samples, but `y` has 5"):
        linear_cka(x, y[:5])
    with pytest.raises(ValueError, match="at least 4"):
        linear_cka(x[:3], y[:3], debiased=True)


def test_layer_features_leave_no_trace() -> None:
    network = ResNet(1, 4, (1, 1))
    network.stages[1].eval()
    modes = [module.training for module in network.modules()]
    found = layer_features(network, torch.randn(3, 1, 8, 8), ["stages.0", "stages.2"])
    assert list(found) == ["stages.0", "stages.2"]
    assert found["stages.2"].shape == (3, 8, 4, 4)
    assert modes == [module.training for module in network.modules()]
    assert not any(module._forward_hooks for module in network.modules())
    with pytest.raises(ValueError, match=r"no submodule 'head'; it has stages"):
        layer_features(network, torch.randn(3, 1, 8, 8), ["head"])


def test_the_default_network_is_the_papers() -> None:
    network = ResNet()
    assert sum(p.numel() for p in network.parameters()) == 11_168_832
    assert network.num_features == 512
    assert len(network.stages) == 5
    with pytest.raises(ValueError, match="`blocks`"):
        ResNet(blocks=())


def test_directions_have_the_length_of_the_filters() -> None:
    network = ResNet(1, 4, (1,))
    direction = filter_normalized_direction(network, torch.Generator().manual_seed(0))
    for name, parameter in network.named_parameters():
        if parameter.dim() < 2:
            assert not direction[name].any()
        else:
            torch.testing.assert_close(direction[name].flatten(1).norm(dim=1), parameter.flatten(1).norm(dim=1))


def test_landscape_of_a_quadratic() -> None:
    model = nn.Linear(3, 2).double()
    target = torch.randn(2, 3, dtype=torch.float64)
    slice_ = loss_landscape(model, lambda m: (m.weight - target).square().sum(), steps=5, span=0.5, seed=4)
    generator = torch.Generator().manual_seed(4)
    first, second = (filter_normalized_direction(model, generator)["weight"] for _ in range(2))
    for i, a in enumerate(torch.linspace(-0.5, 0.5, 5)):
        for j, b in enumerate(torch.linspace(-0.5, 0.5, 5)):
            expected = (model.weight + a * first + b * second - target).square().sum()
            assert slice_.loss[i, j].item() == pytest.approx(expected.item(), rel=1e-5)
    assert slice_.plot().axes[0].get_xlabel()


@pytest.mark.parametrize("fails", [False, True])
def test_landscape_restores_the_network(fails: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model(torch.randn(8, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch, calls = torch.randn(8, 3), []

    def loss(network: nn.Module) -> torch.Tensor:
        calls.append(1)
        if fails and len(calls) > 4:
            raise RuntimeError("in the middle")
        return network(batch).square().sum()

    if fails:
        with pytest.raises(RuntimeError, match="in the middle"):
            loss_landscape(model, loss, steps=3)
    else:
        loss_landscape(model, loss, steps=3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_landscape_refuses_bad_arguments() -> None:
    for wrong in ({"steps": 1}, {"span": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            loss_landscape(nn.Linear(1, 1), lambda m: m.weight.sum(), **wrong)


def test_layers_of_two_networks_are_compared() -> None:
    torch.manual_seed(0)
    first, second, images = ResNet(1, 4, (1, 1)), ResNet(1, 4, (1, 1)), torch.randn(20, 1, 8, 8)
    layers = ["stages.0", "stages.2"]
    found = layer_similarity(first, second, images, layers)
    assert found.shape == (2, 2)
    left, right = (layer_features(net, images, layers) for net in (first, second))
    assert found[0, 1].item() == pytest.approx(linear_cka(left["stages.0"], right["stages.2"]).item())
    torch.testing.assert_close(layer_similarity(first, first, images, layers).diagonal(), torch.ones(2).double())


def test_feature_maps_are_drawn_strongest_first() -> None:
    maps = torch.zeros(2, 3, 4, 4)
    maps[1, 2] = 5.0
    drawn = feature_map_figure({"stem": maps, "stage": torch.randn(2, 8, 2, 2)}, sample=1, channels=4)
    assert len(drawn.axes) == 8
    assert drawn.axes[0].get_title() == "channel 2"
    assert drawn.axes[4].get_ylabel() == "stage"
    assert not drawn.axes[3].get_visible()
    with pytest.raises(ValueError, match="not maps"):
        feature_map_figure({"head": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match="`sample`"):
        feature_map_figure({"stem": maps}, sample=2)


def test_layers_are_seen_as_they_were() -> None:
    """Before later layers changed them in place; also in tuples, mappings and dataclasses."""

    @dataclasses.dataclass
    class Output:
        index: torch.Tensor
        hidden: torch.Tensor

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.relu = nn.BatchNorm1d(4), nn.ReLU(inplace=True)
            self.lstm, self.wrap = nn.LSTM(4, 4), Wrap()

        def forward(self, x: torch.Tensor) -> Any:
            out = self.norm(x)
            out += x
            out = self.relu(out)
            return self.wrap(self.lstm(out)[0])

    class Wrap(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return {"output": Output(torch.zeros(3, dtype=torch.int64), x), "other": x + 1}

    net, x = Block().eval(), torch.randn(6, 4)
    found = layer_features(net, x, ["norm", "relu", "lstm", "wrap"])
    torch.testing.assert_close(found["norm"], net.norm(x))
    torch.testing.assert_close(found["relu"], (net.norm(x) + x).relu())
    torch.testing.assert_close(found["lstm"], net.lstm((net.norm(x) + x).relu())[0])
    assert torch.equal(found["wrap"], found["lstm"])
    with pytest.raises(TypeError, match="without a tensor of floats"):
        layer_features(nn.Sequential(Silent()), x, ["0"])


class Silent(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return "nothing"


def test_the_probe_is_scikit_learns() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3 + 4
    features = torch.randn(300, 6, generator=generator) + torch.eye(6)[labels - 4]
    features[:, 5] = 3.7  # constant: it says nothing
    probe = LinearProbe(c=0.5).fit(features, labels)
    x = ((features - features.mean(0)) / features.std(0, correction=0)).nan_to_num(0, 0, 0)
    x[:, 5] = 0
    theirs = linear.LogisticRegression(C=0.5, tol=1e-8, max_iter=5000).fit(x.numpy(), labels.numpy())
    weights = torch.tensor(theirs.coef_).to(probe._weight)
    torch.testing.assert_close(probe._weight[:, :-1] - probe._weight[:, :-1].mean(0), weights - weights.mean(0),
                               atol=1e-3, rtol=0)  # fmt: skip
    assert probe.predict(features).tolist() == theirs.predict(x.numpy()).tolist()
    with pytest.raises(RuntimeError, match="`fit`"):
        LinearProbe().predict(features)
    for wrong in (features * torch.nan, features[:0]):
        with pytest.raises(ValueError, match="features"):
            LinearProbe().fit(wrong, labels[: len(wrong)])
    with pytest.raises(ValueError, match="`c`"):
        LinearProbe(c=0.0)

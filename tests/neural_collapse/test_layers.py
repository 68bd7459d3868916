"""The lens on chosen layers, on several data sets and within bounded memory, against features taken by hand."""

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_papers.callbacks import CentralPath, NeuralCollapse
from lit_papers.lens import NotApplicable
from lit_papers.neural_collapse.functional import (
    centered_class_means,
    class_statistics,
    effective_rank,
    equinorm,
    max_equiangularity,
    nearest_class_mean,
    variability_collapse,
)
from lit_papers.neural_collapse.lens import CollapseLens
from lit_papers.neural_collapse.models import build_network

pytestmark = pytest.mark.filterwarnings("ignore:measuring on the dataset of the training loader")


class Tokens(nn.Module):
    """Sequences (N, T, d) -> (N, T, d)."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x.flatten(2).transpose(1, 2))  # (N, 16, 6)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3)
        self.body = nn.Sequential(nn.ReLU(), nn.Dropout(), Tokens())
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean(dim=1))


class Module(LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.loss = nn.CrossEntropyLoss()

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        return self.loss(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def images(number: int = 60, seed: int = 0) -> TensorDataset:
    targets = torch.arange(number) % 3
    noise = torch.randn(number, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(noise + targets[:, None, None, None], targets)


def loader(data: TensorDataset | None = None) -> DataLoader:
    return DataLoader(images() if data is None else data, batch_size=16)


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network().eval()


def test_each_layer_has_the_numbers_of_its_pooled_output() -> None:
    net = network()
    found = CollapseLens(layers=["stem", "body.0", "body.2"])(net, loader())
    x, y = images().tensors
    with torch.no_grad():
        stem = net.stem(x)
        by_hand = {
            "stem": stem.mean(dim=(2, 3)),
            "body.0": stem.relu().mean(dim=(2, 3)),
            "body.2": net.body(stem).mean(dim=1),
        }
        decisions = net(x).argmax(dim=1)
    for name, features in by_hand.items():
        stats = class_statistics(features, y, 3)
        means = centered_class_means(stats)
        expected = {
            "nc1": variability_collapse(stats),
            "nc2_equinorm_means": equinorm(means),
            "nc2_max_angle_means": max_equiangularity(means),
            "effective_rank": effective_rank(stats),
            "nc4_ncc_mismatch": (nearest_class_mean(features, stats) != decisions).double().mean(),
        }
        for key, value in expected.items():
            assert found[f"{name}/{key}"] == pytest.approx(value.item(), rel=1e-4, abs=1e-6), (name, key)
    # the tokens are averaged over before the classifier, so their layer is that of the features
    assert found["body.2/nc1"] == pytest.approx(found["nc1"], rel=1e-4)
    assert found["nc4_standard_error"] == 0


def test_all_layers_are_the_blocks_that_run_beside_the_classifier() -> None:
    found = CollapseLens(layers="all", ncc=False)(network(), loader())
    assert [key.removesuffix("/nc1") for key in found if key.endswith("/nc1")] == ["stem", "body.0", "body.2"]
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))
    found = CollapseLens(layers="all")(mlp, loader())
    assert [key.removesuffix("/nc1") for key in found if key.endswith("/nc1")] == ["1", "2"]


@pytest.mark.filterwarnings("ignore:neural collapse. half or more of the spread")  # of two samples a class
def test_a_residual_network_has_its_stem_blocks_and_pooling() -> None:
    torch.manual_seed(0)
    net = build_network("resnet18", num_classes=3, input_shape=(1, 16, 16))
    data = TensorDataset(torch.randn(6, 1, 16, 16), torch.arange(6) % 3)
    found = CollapseLens(layers="all", ncc=False)(net, DataLoader(data, batch_size=6))
    names = [key.removesuffix("/nc1").rpartition(".net.")[2] for key in found if key.endswith("/nc1")]
    stages = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert [name for name in names if "layer" in name] == [name for name in names if name.endswith(tuple(stages))]
    assert len([name for name in names if "layer" in name]) == 8


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["stam"], "no layer 'stam'; near are.*'stem'"),
        (["unused"], "'unused' is not used"),
        (["stem", ""], "no layer ''"),
    ],
)
def test_layers_that_cannot_be_measured_are_refused_before_training(layers: list[str], message: str) -> None:
    module = Module(network())
    paths = [f"network.{name}" if name else "" for name in layers]
    with pytest.raises(
        NotApplicable,
        match=message.replace("'stam'", "'network.stam'")
        .replace("'stem'", "'network.stem'")
        .replace("'unused'", "'network.unused'"),
    ):
        fit(module, [NeuralCollapse(layers=paths)])
    assert all(torch.equal(a, b) for a, b in zip(module.network.parameters(), network().parameters(), strict=True))


def test_arguments_that_make_no_sense_are_refused() -> None:
    for layers in ("stem", []):
        with pytest.raises(ValueError, match="layers must be a list"):
            NeuralCollapse(layers=layers)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ncc_bytes must be at least 1, got 0"):
        NeuralCollapse(ncc_bytes=0)
    with pytest.raises(ValueError, match="residual_dtype must be one of float64, float32, got 'half'"):
        NeuralCollapse(residual_dtype="half")  # type: ignore[arg-type]


def fit(module: LightningModule, callbacks: list[Any], data: Any = None, **options: Any) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(accelerator="cpu", max_epochs=2, callbacks=callbacks, **{**quiet, **options})
    trainer.fit(module, loader() if data is None else data)
    return trainer


def test_training_data_validation_and_test_side_by_side_over_depth() -> None:
    """One pass for all layers and both callbacks; two figures; the training is that without callbacks."""
    torch.manual_seed(0)
    alone = Module(network())
    fit(alone, [])
    torch.manual_seed(0)
    guest = Module(network())
    loaders = {"train": loader(), "validation": loader(images(30, seed=1)), "test": loader(images(30, seed=2))}
    callback = NeuralCollapse(loaders, layers="all")
    trainer = fit(guest, [callback])
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), guest.parameters(), strict=True))
    entry = callback.history[-1]
    for data, features in loaders.items():
        numbers = CollapseLens(layers="all")(guest.network, features)
        for key, value in numbers.items():
            assert entry[f"{data}/{key}" if "/" not in key else f"{data}/network.{key}"] == pytest.approx(
                value, rel=1e-5
            )
    assert "neural_collapse/validation/network.stem/nc1" in trainer.callback_metrics
    figures = callback.figures()
    assert list(figures) == ["neural_collapse", "neural_collapse_layers"]
    texts = [text.get_text() for text in figures["neural_collapse"].axes[1].get_legend().get_texts()]
    assert texts == ["train", "validation", "test"]
    depth = figures["neural_collapse_layers"].axes[0]
    assert [label.get_text() for label in depth.get_xticklabels()] == ["stem", "body.0", "body.2", "features"]
    assert len(depth.lines) == 3
    assert len(callback.plot("test").axes[1].lines) == 1
    with pytest.raises(ValueError, match="no data of the name 'more'"):
        callback.plot_layers("more")


def test_a_network_that_breaks_down_has_nan_for_every_key_and_goes_on() -> None:
    class Diverging(Module):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                nn.init.constant_(self.network.stem.weight, math.nan)

    callback = NeuralCollapse(layers="all")
    with pytest.warns(UserWarning, match="NaN is recorded"):
        fit(Diverging(network()), [callback])
    first, last = callback.history
    assert all(math.isfinite(value) for value in first.values() if isinstance(value, float))
    assert first.keys() <= last.keys()
    assert all(math.isnan(value) for value in last.values() if isinstance(value, float))
    assert "non-finite" in last["reason"]
    assert callback.figures()


def test_the_features_of_a_pass_are_kept_within_their_limit() -> None:
    data = images(600)
    exact = CollapseLens()(network(), loader(data))
    lens = CollapseLens(ncc_bytes=100 * (6 * 4 + 8))
    sampled = lens(network(), loader(data))
    assert sampled["nc1"] == exact["nc1"]
    assert 0 < sampled["nc4_standard_error"] < 0.06
    assert sampled["nc4_ncc_mismatch"] * 100 == pytest.approx(round(sampled["nc4_ncc_mismatch"] * 100))
    assert abs(sampled["nc4_ncc_mismatch"] - exact["nc4_ncc_mismatch"]) < 4 * sampled["nc4_standard_error"]


def test_residuals_in_float32_say_the_same() -> None:
    exact = CollapseLens(layers=["stem"])(network(), loader())
    quick = CollapseLens(layers=["stem"], residual_dtype="float32")(network(), loader())
    assert quick == pytest.approx(exact, rel=1e-5, abs=1e-6)
    assert quick["nc1"] != exact["nc1"]
    both = [NeuralCollapse(residual_dtype="float32"), CentralPath()]
    fit(Module(network()), both)
    assert all(callback.history for callback in both)


def test_one_class_is_nan_with_a_reason() -> None:
    callback = NeuralCollapse(
        loader(TensorDataset(torch.randn(20, 1, 6, 6), torch.zeros(20, dtype=torch.int64))), layers="all"
    )
    with pytest.warns(UserWarning, match="at least two classes"):
        fit(Module(network()), [callback])
    assert "at least two classes" in callback.history[-1]["reason"]
    assert math.isnan(callback.history[-1]["nc1"])


def test_too_few_samples_are_said() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(36, 64), nn.Linear(64, 3))
    data = TensorDataset(torch.randn(12, 36), torch.arange(12) % 3)
    with pytest.warns(
        UserWarning, match="NC1 and CDNV come out at half or less of what they are: measure more samples"
    ):
        assert CollapseLens()(net, DataLoader(data, 4))["class_mean_noise"] > 0.5

"""The networks of the paper and the LightningModule that trains them."""

from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_papers.datamodules import Digits
from lit_papers.neural_collapse import PAPER_EPOCHS, ImageClassifier
from lit_papers.neural_collapse.models import NETWORKS, build_network

# the deepest of a family cost seconds and repeat the code path of the shallowest
DEEP = {"resnet101", "resnet152", "vgg16_bn", "vgg19_bn", "densenet161", "densenet169", "densenet201"}
SHAPES = [(1, 28, 28), (3, 32, 32)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in DEEP else n for n in NETWORKS])
def test_every_network_runs_forward_and_backward(name: str, shape: tuple[int, int, int]) -> None:
    network = build_network(name, num_classes=7, input_shape=shape)
    logits = network(torch.randn(2, *shape))
    logits.square().sum().backward()
    assert logits.shape == (2, 7)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", ["mlp", "convnet", "resnet18", "vgg11_bn", "densenet121"])
def test_every_network_ends_in_one_linear_with_bias(name: str) -> None:
    network = build_network(name, num_classes=10, input_shape=(1, 32, 32))
    with_bias = [m for m in network.modules() if isinstance(m, nn.Linear) and m.bias is not None]
    assert [(m.out_features, m.bias.shape) for m in with_bias] == [(10, (10,))]


def test_resnet18_is_the_small_image_variant() -> None:
    network = build_network("resnet18", num_classes=10, input_shape=(3, 32, 32))
    assert sum(p.numel() for p in network.parameters()) == 11_173_962
    maps: list[torch.Size] = []
    network.layer4.register_forward_hook(lambda *hooked: maps.append(hooked[2].shape))
    network(torch.zeros(1, 3, 32, 32))
    assert maps == [(1, 512, 4, 4)], "stride 1 and no pooling at the stem"


def test_mnist_is_padded_with_zeros() -> None:
    small = build_network("resnet18", num_classes=10, input_shape=(1, 28, 28)).eval()
    images = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(small(images), small[1](nn.functional.pad(images, (2, 2, 2, 2))))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet20", "num_classes": 10, "input_shape": (1, 32, 32)}, "choose one of mlp, convnet, resnet18"),
        ({"name": "mlp", "num_classes": 1, "input_shape": (1, 8, 8)}, "num_classes must be at least 2, got 1"),
        ({"name": "vgg11_bn", "num_classes": 10, "input_shape": (1, 8, 8)}, "needs images of at least 28 pixels"),
    ],
)
def test_bad_networks_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "hinge"}, "loss='hinge' is unknown; choose one of mse, ce"),
        ({"lr": 0.0}, "lr must be > 0"),
        ({"momentum": 1.0}, "momentum must be in"),
        ({"weight_decay": -1.0}, "weight_decay must be >= 0"),
        ({"network": "mpl"}, "network='mpl' is unknown"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageClassifier(**arguments)


def _trainer(**options: Any) -> Trainer:
    defaults: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    return Trainer(**{**defaults, "enable_progress_bar": False, "enable_model_summary": False, **options})


@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_losses_are_those_of_torch(loss: str) -> None:
    module = ImageClassifier(loss=loss).eval()
    images, targets = torch.randn(4, 1, 8, 8), torch.tensor([0, 3, 9, 1])
    logits = module(images)
    expected = (
        (logits - torch.eye(10)[targets]).square().mean() if loss == "mse" else nn.CrossEntropyLoss()(logits, targets)
    )
    torch.testing.assert_close(module._loss(logits, targets), expected)


@pytest.mark.parametrize(("epochs", "rates"), [(6, [1, 1, 0.1, 0.1, 0.01, 0.01]), (2, [1, 0.1]), (1, [1])])
def test_learning_rate_falls_after_each_third(epochs: int, rates: list[float]) -> None:
    seen: list[float] = []

    class Recorder(ImageClassifier):
        def on_train_epoch_start(self) -> None:
            seen.append(self.optimizers().param_groups[0]["lr"])

    data = DataLoader(TensorDataset(torch.randn(8, 1, 8, 8), torch.arange(8)), batch_size=4)
    _trainer(max_epochs=epochs).fit(Recorder(lr=1e-3), data)
    assert seen == pytest.approx([1e-3 * rate for rate in rates])


def test_data_that_do_not_fit_are_refused_before_training() -> None:
    with pytest.raises(ValueError, match=r"the data have input_shape=\(1, 8, 8\), the model input_shape=\(3, 32, 32\)"):
        _trainer(max_epochs=1).fit(ImageClassifier("convnet", input_shape=(3, 32, 32)), datamodule=Digits())


@pytest.mark.parametrize(
    ("shape", "classes"),
    [([1, 8, 8], 10), (np.array([1, 8, 8]), np.int64(10)), (torch.tensor([1, 8, 8]), torch.tensor(10)), (None, len)],
)
def test_data_say_what_they_are_in_any_type(shape: Any, classes: Any) -> None:
    class Own(LightningDataModule):
        input_shape, num_classes = shape, classes

        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(TensorDataset(torch.zeros(4, 1, 8, 8), torch.arange(4)), batch_size=4)

    _trainer(max_epochs=1).fit(ImageClassifier(), datamodule=Own())


def test_targets_that_are_no_classes_are_refused() -> None:
    data = DataLoader(TensorDataset(torch.zeros(4, 1, 8, 8), torch.tensor([1, 2, 3, 10])), batch_size=4)
    with pytest.raises(ValueError, match="classes from 0 to 9, int64"):
        _trainer(max_epochs=1).fit(ImageClassifier(), data)


def test_trains_logs_and_comes_back_from_its_checkpoint() -> None:
    data, module, trainer = Digits(), ImageClassifier(lr=0.3), _trainer(max_epochs=2)
    trainer.fit(module, datamodule=data)
    assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy"} <= trainer.callback_metrics.keys()
    assert trainer.callback_metrics["val/accuracy"] > 0.8
    (tested,) = trainer.test(module, datamodule=data, verbose=False)
    assert tested["test/accuracy"] == pytest.approx(trainer.callback_metrics["test/accuracy"].item())
    predictions = torch.cat(trainer.predict(module, datamodule=data))
    assert predictions.shape == (397,)
    trainer.save_checkpoint("digits.ckpt")
    again = ImageClassifier.load_from_checkpoint("digits.ckpt", weights_only=True).eval()
    images = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(again(images), module.eval()(images))


def test_takes_any_network() -> None:
    module = ImageClassifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    _trainer(max_epochs=1, limit_train_batches=1).fit(module, datamodule=Digits())
    assert "network" not in module.hparams


def test_paper_epochs() -> None:
    assert len(PAPER_EPOCHS) == 50
    assert PAPER_EPOCHS[0] == 1
    assert PAPER_EPOCHS[-1] == 350
    assert list(PAPER_EPOCHS) == sorted(set(PAPER_EPOCHS))

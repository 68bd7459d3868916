"""`CentralPath`: lam from the optimizer, reduction from the loss, and the split of the loss."""

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader

from lit_papers.callbacks import CentralPath
from lit_papers.neural_collapse.functional import class_statistics, mse_decomposition, snr_singular_values
from tests.callbacks.small import Small, fit, mlp, pairs

pytestmark = pytest.mark.filterwarnings("ignore:measuring on the dataset of the training loader")
PARTS = {"loss", "ls", "nc1", "nc23", "perp", "ratio", "lam"}


class _Groups(Small):
    """Decay by parameter group, by any optimizer."""

    def __init__(self, groups: Any, optimizer: Any = torch.optim.SGD) -> None:
        super().__init__(mlp())
        self.groups, self.optimizer_class = groups, optimizer

    def configure_optimizers(self) -> torch.optim.Optimizer:
        weight, bias = self.network[2].weight, self.network[2].bias
        groups = [
            {"params": list(self.network[0].parameters())},
            {"params": [weight], "weight_decay": self.groups[0]},
            {"params": [bias], "weight_decay": self.groups[1]},
        ]
        return self.optimizer_class(groups, lr=0.01)


@pytest.mark.parametrize("bias", [True, False])
def test_history_is_the_decomposition_of_the_trained_network(bias: bool) -> None:
    module, callback = Small(mlp(bias=bias), weight_decay=1e-2), CentralPath()
    trainer = fit(module, [callback])
    images, targets = pairs().tensors
    with torch.no_grad():
        stats = class_statistics(module.network[:2](images), targets, 3)
    head = module.network[2]
    expected = mse_decomposition(stats, head.weight, head.bias, 3 * 1e-2 / 2)
    entry = callback.history[-1]
    assert entry["lam"] == pytest.approx(0.015)
    for key, value in expected.items():
        assert entry[key] == pytest.approx(float(value), rel=1e-5)
    assert entry["ratio"] == pytest.approx(entry["perp"] / entry["ls"])
    assert entry["snr"] == pytest.approx(snr_singular_values(stats).tolist(), rel=1e-4)
    assert (entry["snr_max"], entry["snr_min"]) == (entry["snr"][0], entry["snr"][-1])
    logged = {key.removeprefix("central_path/") for key in trainer.callback_metrics}
    assert logged == entry.keys() - {"fit", "epoch", "step", "snr"}


def test_the_loss_is_the_one_that_is_minimised() -> None:
    """With nn.MSELoss() the recorded loss is C/2 times the criterion, plus the L2 term of SGD's decay."""
    module, callback = Small(mlp(), weight_decay=1e-2), CentralPath()
    fit(module, [callback], max_epochs=1)
    images, targets = pairs().tensors
    with torch.no_grad():
        data_loss = nn.functional.mse_loss(module(images), nn.functional.one_hot(targets, 3).float())
        head = module.network[2]
        decay = 0.5 * 1e-2 * (head.weight.square().sum() + head.bias.square().sum())
    assert callback.history[0]["loss"] == pytest.approx(float(3 / 2 * (data_loss + decay)), rel=1e-5)


def test_a_converged_head_is_on_the_path() -> None:
    """Only with the right lam does training the head alone to convergence drive the deviation to rounding."""
    module = Small(mlp().requires_grad_(False), weight_decay=1e-2, lr=0.5)
    module.network[2].requires_grad_(True)
    callback = CentralPath(epochs=3000)
    data = torch.utils.data.DataLoader(pairs(), batch_size=24)
    fit(module.double(), [callback], data, max_epochs=3000, precision="64-true")
    assert callback.history[-1]["ratio"] < 1e-12
    stats_lam = CentralPath(lam=1e-2 / 2)
    fit(module, [stats_lam], data, max_epochs=1, precision="64-true")
    assert stats_lam.history[-1]["ratio"] > 1e-4, "the wrong lam must show"


@pytest.mark.parametrize(
    ("loss", "reduction", "has_parts"),
    [
        (nn.MSELoss(), "auto", True),
        (nn.CrossEntropyLoss(), "auto", False),
        (nn.CrossEntropyLoss(), "mean", True),
        (nn.MSELoss(), None, False),
        (nn.MultiMarginLoss(), "auto", False),
    ],
)
def test_only_training_by_mse_has_a_path(loss: nn.Module, reduction: Any, has_parts: bool) -> None:
    callback = CentralPath(reduction=reduction)
    fit(Small(mlp(), loss), [callback])
    assert callback.history[-1].keys() == {"fit", "epoch", "step", "snr", "snr_max", "snr_min"} | (
        PARTS if has_parts else set()
    )
    assert len(callback.plot().axes) == (3 if has_parts else 1)


def test_batchmean_has_a_smaller_lam() -> None:
    callback = CentralPath(reduction="batchmean")
    fit(Small(mlp(), weight_decay=1e-2), [callback])
    assert callback.history[-1]["lam"] == pytest.approx(5e-3)


def test_a_summed_loss_needs_lam() -> None:
    module = Small(mlp(), nn.MSELoss(reduction="sum"), lr=1e-3)
    with pytest.raises(ValueError, match=r"reduction 'sum'.*pass `lam`"):
        fit(module, [CentralPath()])
    fit(module, [CentralPath(lam=0.1)])


def test_bias_without_decay_is_left_out() -> None:
    module, callback = _Groups((1e-2, 0.0)), CentralPath()
    fit(module, [callback])
    images, targets = pairs().tensors
    with torch.no_grad():
        stats = class_statistics(module.network[:2](images), targets, 3)
    head = module.network[2]
    expected = mse_decomposition(stats, head.weight, head.bias, 0.015, decay_bias=False)
    assert callback.history[-1]["ls"] == pytest.approx(float(expected["ls"]), rel=1e-5)


@pytest.mark.parametrize("decay", [(1e-2, 2e-2), (0.0, 1e-2)])
def test_weight_and_bias_that_decay_differently_are_refused(decay: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=f"decays by {decay[0]}, its bias by {decay[1]}"):
        fit(_Groups(decay), [CentralPath()])


def test_decoupled_decay_has_no_lam() -> None:
    callback = CentralPath()
    with pytest.warns(UserWarning, match="AdamW"):
        fit(_Groups((1e-2, 1e-2), torch.optim.AdamW), [callback])
    assert callback.history[-1]["lam"] == 0


def test_a_head_no_optimizer_trains() -> None:
    class Frozen(Small):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.network[0].parameters(), lr=0.1, weight_decay=1e-2)

    callback = CentralPath()
    with pytest.warns(UserWarning, match=r"no optimizer trains the classifier"):
        fit(Frozen(mlp()), [callback])
    assert callback.history[-1]["lam"] == 0


@pytest.mark.parametrize("arguments", [{"lam": -1.0}, {"lam": "automatic"}, {"reduction": "sum"}])
def test_arguments_are_checked(arguments: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        CentralPath(**arguments)


def test_a_singular_covariance_is_nan_and_drawn() -> None:
    network = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        network[0].bias[0] = -1e3  # a dead unit
    callback = CentralPath()
    fit(Small(network), [callback])
    assert all(math.isnan(value) for value in callback.history[-1]["snr"])
    assert math.isfinite(callback.history[-1]["ratio"])
    callback.plot()


def test_an_evaluation_knows_no_weight_decay(tmp_path: Any) -> None:
    class Validated(Small):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    for callback, known in ((CentralPath(), False), (CentralPath(lam=0.01), True)):
        trainer.callbacks = [callback]
        trainer.validate(Validated(mlp(), weight_decay=1e-2), DataLoader(pairs(), batch_size=8), verbose=False)
        assert ("ratio" in callback.evaluated) == known


@pytest.mark.parametrize("fn", ["validate", "test"])
def test_an_evaluation_after_a_fit_knows_the_decay_of_the_network_that_was_trained(fn: str) -> None:
    class Evaluated(Small):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

        test_step = validation_step

    module, callback, loader = Evaluated(mlp(), weight_decay=1e-2), CentralPath(), DataLoader(pairs(), batch_size=8)
    trainer = fit(module, [callback], loader)
    getattr(trainer, fn)(module, loader, verbose=False)  # in inference mode, which has no gradients
    for key in ("perp", "ratio", "lam"):
        assert callback.evaluated[key] == pytest.approx(callback.history[-1][key])
    getattr(trainer, fn)(Evaluated(mlp(), weight_decay=1e-2), loader, verbose=False)  # that this trainer did not train
    assert "ratio" not in callback.evaluated


def test_a_scaled_loss_scales_lam() -> None:
    class Halved(Small):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return 0.5 * super().training_step(batch, batch_idx) + self.network[0].weight.square().sum()

    callback = CentralPath()
    fit(Halved(mlp(), weight_decay=1e-2, lr=1e-3), [callback])
    assert callback.history[-1]["lam"] == pytest.approx(0.03)


@pytest.mark.parametrize("validated", [False, True])
def test_a_loss_that_changes_while_it_trains_is_read_again(validated: bool) -> None:
    class Changing(Small):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.current_epoch == 2:
                return nn.functional.cross_entropy(self(batch[0]), batch[1])
            return (self.current_epoch + 1) * super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

        def val_dataloader(self) -> Any:
            return DataLoader(pairs(), batch_size=8) if validated else []

    callback = CentralPath()
    fit(Changing(mlp(), weight_decay=1e-2, lr=1e-3), [callback], max_epochs=3)
    assert [entry["lam"] for entry in callback.history] == pytest.approx([0.015, 0.0075, math.nan], nan_ok=True)
    assert math.isnan(callback.history[2]["ratio"])


class _Step(Small):
    """A step of its own, from module, logits and one-hot rows to the loss."""

    def __init__(self, loss: Any, **sgd: Any) -> None:
        super().__init__(mlp(), **sgd)
        self.of = loss

    def training_step(self, batch: Any, batch_index: int) -> torch.Tensor:
        logits = self(batch[0])
        return self.of(self, logits, nn.functional.one_hot(batch[1], 3).float())


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda module, z, y: module.loss(z, 2 * y - 1), "not one-hot"),
        (lambda module, z, y: module.loss(z, 10 * y), "not one-hot"),
        (lambda module, z, y: module.loss(z, 0.9 * y + 0.1 / 3), "not one-hot"),
        (lambda module, z, y: module.loss(z, 0.3 * y + 0.7 * y.flip(0)), "not one-hot"),
        (lambda module, z, y: module.loss(z, y) + 1e-4 * module.network[2].weight.square().sum(), "beside the MSE"),
        (lambda module, z, y: nn.functional.mse_loss(z, y, weight=1 + y), "has weights"),
    ],
    ids=["centred", "scaled", "smoothed", "mixed", "penalty", "weighted"],
)
def test_no_split_of_a_loss_that_is_not_minimised(loss: Any, said: str) -> None:
    callback = CentralPath()
    with pytest.warns(UserWarning, match=f"CentralPath.*{said}"):
        fit(_Step(loss, weight_decay=1e-3), [callback], max_epochs=1)
    assert not PARTS & callback.history[-1].keys()


@pytest.mark.parametrize("optimizer", [torch.optim.LBFGS, torch.optim.Rprop])
def test_an_optimizer_without_decay_has_none(optimizer: Any) -> None:
    module, callback = Small(mlp()), CentralPath()
    module.configure_optimizers = lambda: optimizer(module.parameters(), lr=1e-3)  # type: ignore[method-assign]
    fit(module, [callback], max_epochs=1)
    assert callback.history[-1]["lam"] == 0


def test_a_frozen_classifier_does_not_decay() -> None:
    module, callback = Small(mlp(), weight_decay=1e-2), CentralPath()
    module.network[2].requires_grad_(False)
    with pytest.warns(UserWarning, match="no optimizer trains the classifier"):
        fit(module, [callback], max_epochs=1)
    assert callback.history[-1]["lam"] == 0


@pytest.mark.filterwarnings("ignore:.*no optimizer trains the classifier itself")
def test_spectral_norm_of_the_head_is_left_to_training() -> None:
    """Its weight, looked at in training mode, takes a step of the power iteration."""
    states = []
    for callbacks in ([], [CentralPath()]):
        torch.manual_seed(0)
        module = Small(mlp())
        torch.nn.utils.parametrizations.spectral_norm(module.network[2])
        fit(module, callbacks, max_epochs=1)
        states.append(torch.cat([value.flatten() for value in module.state_dict().values()]))
    assert torch.equal(*states)

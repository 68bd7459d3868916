"""What `NeuralCollapse` measures, when it measures, and what it says of input it cannot measure."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lit_papers.callbacks import CentralPath, NeuralCollapse
from lit_papers.lens import NotApplicable
from lit_papers.neural_collapse.functional import class_statistics, ncc_mismatch, neural_collapse_measures
from tests.callbacks.small import Small, fit, mlp, pairs

pytestmark = pytest.mark.filterwarnings("ignore:measuring on the dataset of the training loader")


def test_history_is_what_the_functions_say_of_the_trained_network() -> None:
    module, callback = Small(mlp()), NeuralCollapse()
    trainer = fit(module, [callback])
    images, targets = pairs().tensors
    with torch.no_grad():
        features = module.network[:2](images)
        logits = module(images)
    stats = class_statistics(features, targets, 3)
    expected = {key: float(value) for key, value in neural_collapse_measures(stats, module.network[2].weight).items()}
    expected |= {
        "nc4_ncc_mismatch": float(ncc_mismatch(features, logits, stats)),
        "nc4_standard_error": 0.0,  # nothing was left out
        "train_error": (logits.argmax(1) != targets).double().mean().item(),
    }
    when = {"fit": 0, "epoch": 2, "step": 6}
    assert callback.history[-1] == pytest.approx(expected | when, rel=1e-6)  # batches of 8 round as float32 does
    assert {key.removeprefix("neural_collapse/") for key in trainer.callback_metrics} == expected.keys()
    assert trainer.callback_metrics["neural_collapse/nc1"] == pytest.approx(expected["nc1"], rel=1e-5)


@pytest.mark.parametrize(
    ("epochs", "measured"),
    [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (7, [5]), ([1, 4], [1, 4]), ([0, 2], [0, 2]), ((9,), [])],
)
def test_measures_after_the_chosen_epochs(epochs: Any, measured: list[int]) -> None:
    callback = NeuralCollapse(epochs=epochs)
    fit(Small(mlp()), [callback], max_epochs=5)
    assert [entry["epoch"] for entry in callback.history] == measured


def test_measures_the_last_epoch_when_it_ends_early() -> None:
    class Loss(Small):
        def training_step(self, batch: Any, batch_index: int) -> Tensor:
            self.log("flat", 1.0, on_step=False, on_epoch=True)
            return super().training_step(batch, batch_index)

    callback = NeuralCollapse(epochs=50)
    stop = EarlyStopping("flat", patience=2, check_on_train_epoch_end=True)
    fit(Loss(mlp()), [callback, stop], max_epochs=50, logger=CSVLogger(Path.cwd()))
    assert [entry["epoch"] for entry in callback.history] == [3]
    assert "neural_collapse/nc1" in (Path.cwd() / "lightning_logs/version_0/metrics.csv").read_text()


def test_two_callbacks_share_one_pass() -> None:
    forwards = []
    module = Small(mlp())
    module.network.register_forward_hook(lambda network, *_: forwards.append(torch.is_grad_enabled()))
    loader = DataLoader(pairs(), batch_size=8)
    fit(module, [CentralPath(loader, lam=0.0, reduction="mean"), NeuralCollapse(loader, epochs=2)], max_epochs=4)
    assert forwards.count(False) == 1 + 4 * len(loader), "one probing batch, and one pass in each of four epochs"


def test_several_data_sets_side_by_side() -> None:
    loaders = {name: DataLoader(pairs(per_class=n), batch_size=8) for name, n in (("train", 8), ("test", 2))}
    callback, alone = NeuralCollapse(loaders), NeuralCollapse(loaders["test"], name="alone")
    trainer = fit(Small(mlp()), [callback, alone], logger=CSVLogger(Path.cwd(), name="logs"))
    last = callback.history[-1]
    assert last["test/nc1"] == alone.history[-1]["nc1"] != last["train/nc1"]
    assert trainer.callback_metrics["neural_collapse/test/nc1"] == pytest.approx(last["test/nc1"], rel=1e-6)
    drawn = {path.name for path in (Path.cwd() / "logs/version_0").glob("*.png")}
    assert drawn == {"neural_collapse.png", "alone.png"}  # both data sets in one figure
    with pytest.raises(ValueError, match="no data of the name 'valid': train, test"):
        callback.plot("valid")


def test_prefers_the_clean_loader_of_the_data_module() -> None:
    class Data(LightningDataModule):
        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(pairs(per_class=2), batch_size=2)

        def train_eval_dataloader(self) -> DataLoader[Any]:
            return DataLoader(pairs(per_class=5), batch_size=4)

    callback = NeuralCollapse(ncc=False)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[callback], logger=False, enable_checkpointing=False,
        enable_progress_bar=False,
    )  # fmt: skip
    data, module = Data(), Small(mlp())
    trainer.fit(module, datamodule=data)
    assert callback.history[-1] | {"fit": 0} == approx_of(module, pairs(per_class=5))


def approx_of(module: Small, data: TensorDataset) -> Any:
    images, targets = data.tensors
    with torch.no_grad():
        stats = class_statistics(module.network[:2](images), targets, 3)
        error = (module(images).argmax(1) != targets).double().mean().item()
    measures = neural_collapse_measures(stats, module.network[2].weight)
    numbers = {key: float(value) for key, value in measures.items()} | {"train_error": error}
    return pytest.approx(numbers | {"fit": 0, "epoch": 1, "step": 3}, rel=1e-5)


def test_finds_the_head_beside_an_auxiliary_one_of_the_same_shape() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.aux, self.head, self.after = (
                nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 3)
            )  # fmt: skip

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.body(x)
            logits, aux = self.head(h), self.aux(h)
            return logits.clone(), self.after(aux)

    callback, module = NeuralCollapse(), Small(TwoHeads())
    by_name = NeuralCollapse(classifier="network.head", name="by_name")
    fit(module, [callback, by_name])
    assert callback.history == by_name.history


def test_of_two_layers_with_the_same_output_the_last_is_the_head() -> None:
    network = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 3, bias=False))
    nn.init.eye_(network[1].weight)
    callback = NeuralCollapse()
    trainer = fit(Small(network, lr=1e-9), [callback], max_epochs=1)
    assert trainer.current_epoch == 1
    assert callback.history[-1]["nc3_self_duality"] == pytest.approx(_self_duality_of(network), rel=1e-4)


def _self_duality_of(network: nn.Sequential) -> float:
    images, targets = pairs().tensors
    with torch.no_grad():
        stats = class_statistics(network[0](images), targets, 3)
    return float(neural_collapse_measures(stats, network[1].weight)["nc3_self_duality"])


@pytest.mark.parametrize("classifier", ["network.2", "module"])
def test_takes_the_classifier_it_is_given(classifier: str) -> None:
    module = Small(mlp())
    callback = NeuralCollapse(classifier=module.network[2] if classifier == "module" else classifier)
    fit(module, [callback])
    assert len(callback.history) == 2


def test_a_compiled_head_is_found() -> None:
    torch.compiler.reset()
    network = mlp()
    network[2] = torch.compile(network[2], backend="eager")
    by_search, by_name = NeuralCollapse(), CentralPath(classifier="network.2")
    fit(Small(network), [by_search, by_name])
    assert len(by_search.history) == len(by_name.history) == 2
    assert not math.isnan(by_search.history[-1]["nc1"])


def test_something_follows_the_classifier() -> None:
    """Asked for by name its own output is measured; else nobody can tell whose logits these are."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> Tensor:
            return 3 * self.net(x)

    callback, module = NeuralCollapse(classifier="network.net.2"), Small(Scaled())
    fit(module, [callback])
    images, targets = pairs().tensors
    stats = class_statistics(module.network.net[:2](images).detach(), targets, 3)
    assert callback.history[-1]["nc1"] == pytest.approx(
        float(neural_collapse_measures(stats, module.network.net[2].weight)["nc1"]), rel=1e-5
    )
    with pytest.raises(
        ValueError, match=r"name the last layer with `classifier`; its linear layers: network.net.0, network.net.2"
    ):
        fit(Small(Scaled()), [NeuralCollapse()])


def test_unknown_classifier_names_the_candidates() -> None:
    with pytest.raises(ValueError, match=r"classifier='head' is no nn.Linear of Small .*network.0, network.2"):
        fit(Small(mlp()), [NeuralCollapse(classifier="head")])
    with pytest.raises(ValueError, match=r"classifier .Tanh. is no nn.Linear"):
        fit(Small(mlp()), [NeuralCollapse(classifier=nn.Tanh())])


def test_no_linear_head() -> None:
    network = nn.Sequential(nn.Unflatten(1, (5, 1, 1)), nn.Conv2d(5, 3, 1), nn.Flatten())
    with pytest.raises(ValueError, match=r"no nn.Linear makes.*linear layers: none"):
        fit(Small(network), [NeuralCollapse()])


def test_soft_targets() -> None:
    images, targets = pairs().tensors
    one_hot = nn.functional.one_hot(targets, 3).float()
    soft = TensorDataset(images, 0.9 * one_hot + 0.1 / 3)
    with pytest.raises(ValueError, match=r"one class index for each sample.*pass `unpack`"):
        fit(Small(mlp()), [NeuralCollapse()], soft)
    by_hand = NeuralCollapse(unpack=lambda batch: (batch[0], batch[1].argmax(1)))
    fit(Small(mlp()), [by_hand], soft)
    assert by_hand.history[-1]["num_classes_seen"] == 3
    exact = NeuralCollapse()
    fit(Small(mlp()), [exact], TensorDataset(images, one_hot))
    assert exact.history[-1]["num_classes_seen"] == 3


class _Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(zip(*pairs().tensors, strict=True))


def test_a_stream_is_read_as_it_is_trained_on() -> None:
    callback, given = NeuralCollapse(), NeuralCollapse(DataLoader(_Stream(), batch_size=8), name="given")
    module = Small(mlp())
    fit(module, [callback, given], DataLoader(_Stream(), batch_size=8), max_epochs=1)
    assert {key: callback.history[-1][key] for key in ("nc1", "train_error")} == pytest.approx(
        {key: given.history[-1][key] for key in ("nc1", "train_error")}
    )
    images, targets = pairs().tensors
    stats = class_statistics(module.network[:2](images).detach(), targets, 3)
    expected = float(neural_collapse_measures(stats, module.network[2].weight)["nc1"])
    assert callback.history[-1]["nc1"] == pytest.approx(expected, rel=1e-5)


def test_nan_features_are_recorded_as_nan_and_training_goes_on() -> None:
    class Breaks(Small):
        def on_train_epoch_end(self) -> None:
            if self.current_epoch == 0:
                with torch.no_grad():
                    self.network[0].weight[0, 0] = torch.nan  # from the second epoch on

    callbacks: list[Callback] = [NeuralCollapse(), CentralPath()]
    with pytest.warns(UserWarning, match="nothing measured after epoch 2: .*non-finite features"):
        trainer = fit(Breaks(mlp()), callbacks, max_epochs=3)
    assert trainer.current_epoch == 3
    for callback in callbacks:
        first, second, _ = callback.history
        assert first.keys() == second.keys() - {"reason"}
        assert "non-finite" in second["reason"]
        measured = second.keys() - {"fit", "epoch", "step", "snr", "reason"}
        assert all(math.isnan(second[key]) for key in measured)
        callback.plot()


def test_a_class_without_samples_is_left_out_with_one_warning() -> None:
    images, targets = pairs().tensors
    data = TensorDataset(images[targets != 1], targets[targets != 1])
    callback = NeuralCollapse()
    with pytest.warns(UserWarning, match="no sample has class 1: left out") as caught:
        fit(Small(mlp()), [callback], data, max_epochs=3)
    assert sum("no sample has class" in str(warning.message) for warning in caught) == 1
    assert callback.history[-1]["num_classes_seen"] == 2
    assert math.isfinite(callback.history[-1]["nc1"])


def test_a_single_class_is_recorded_as_nan() -> None:
    images, targets = pairs().tensors
    data = TensorDataset(images[targets == 1], targets[targets == 1])
    callback = NeuralCollapse()
    with pytest.warns(UserWarning, match="at least two classes"):
        fit(Small(mlp()), [callback], data)
    assert math.isnan(callback.history[-1]["nc1"])


@pytest.mark.parametrize(
    ("classes", "per_class", "features"), [(3, 1, 4), (5, 4, 2)], ids=["one sample each", "d < C-1"]
)
def test_small_but_legal(classes: int, per_class: int, features: int) -> None:
    callback, central = NeuralCollapse(), CentralPath()
    data = pairs(classes, per_class)
    fit(Small(mlp(classes, features)), [callback, central], DataLoader(data, batch_size=classes))
    assert callback.history[-1]["rank"] <= features
    assert math.isfinite(callback.history[-1]["nc1"])
    assert len(central.history[-1]["snr"]) == min(features, classes - 1)


def test_target_outside_the_classes() -> None:
    images, targets = pairs().tensors
    loader = DataLoader(TensorDataset(images, targets + 1), batch_size=8)
    with pytest.raises(ValueError, match=r"a target is 3, outside \[0, 3\)"):
        fit(Small(mlp()), [NeuralCollapse(loader)])


def test_a_checkpoint_of_another_model() -> None:
    fit(Small(mlp()), [NeuralCollapse()]).save_checkpoint("small.ckpt")
    trainer = Trainer(
        accelerator="cpu", max_epochs=3, callbacks=[NeuralCollapse()], logger=False, enable_progress_bar=False,
        enable_checkpointing=False,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match=r"size mismatch for network.0.weight"):
        trainer.fit(
            Small(mlp(features=9)), DataLoader(pairs(), batch_size=8), ckpt_path="small.ckpt", weights_only=True
        )


def test_a_batch_nobody_understands() -> None:
    images, targets = pairs().tensors
    with pytest.raises(ValueError, match="list of 3; pass `unpack`"):
        fit(Small(mlp()), [NeuralCollapse(DataLoader(TensorDataset(images, targets, targets), batch_size=8))])


def test_a_distributed_sampler_is_seen_through() -> None:
    """It pads and gives a part; what it is a part of is the data set."""
    sampler = torch.utils.data.DistributedSampler(pairs(), num_replicas=2, rank=0)
    callback, module = NeuralCollapse(DataLoader(pairs(), batch_size=8, sampler=sampler), ncc=False), Small(mlp())
    fit(module, [callback], max_epochs=1)
    assert callback.history[-1] == approx_of(module, pairs())


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (np.geomspace(1, 100, 3).round(), (1, 10, 100)),
        (np.int64(5), 5),
        (torch.tensor([1, 3]), (1, 3)),
        (torch.tensor(2), 2),
        ((2**k for k in range(3)), (1, 2, 4)),
    ],
)
def test_epochs_may_be_numbers_of_any_type(given: Any, meant: Any) -> None:
    assert NeuralCollapse(epochs=given).epochs == meant


def test_memory_may_be_written_with_an_exponent() -> None:
    callback = NeuralCollapse(ncc_bytes=2e9)  # type: ignore[arg-type]
    fit(Small(mlp()), [callback], max_epochs=1)
    assert "reason" not in callback.history[-1]


@pytest.mark.parametrize("loader", [pairs, LightningDataModule(), [DataLoader(pairs()), DataLoader(pairs())]])
def test_what_is_no_loader_is_refused_in_one_line(loader: Any) -> None:
    with pytest.raises(NotApplicable, match="`dataloader` must be a DataLoader"):
        fit(Small(mlp()), [NeuralCollapse(loader)])


@pytest.mark.parametrize("epochs", [0, -1, [], [-1, 3], [1.5], None, "all", np.zeros(0)])
def test_epochs_are_checked(epochs: Any) -> None:
    with pytest.raises(ValueError, match="epochs must"):
        NeuralCollapse(epochs=epochs)


def test_without_ncc_there_is_no_such_key() -> None:
    callback = NeuralCollapse(ncc=False)
    fit(Small(mlp()), [callback])
    assert "nc4_ncc_mismatch" not in callback.history[-1]


def test_the_figure_is_written_beside_the_logs() -> None:
    fit(Small(mlp()), [NeuralCollapse(), CentralPath()], logger=CSVLogger(Path.cwd(), name="logs"))
    for name in ("neural_collapse", "central_path"):
        assert (Path.cwd() / f"logs/version_0/{name}.png").stat().st_size > 10_000


def test_names_may_have_a_slash_or_be_numbers() -> None:
    callback = NeuralCollapse(
        {0: DataLoader(pairs(), batch_size=8), 1: DataLoader(pairs(), batch_size=8)}, name="my/nc"
    )
    trainer = fit(Small(mlp()), [callback], logger=CSVLogger(Path.cwd(), name="slash"))
    assert callback.history[-1]["0/nc1"] == callback.history[-1]["1/nc1"]
    assert "my/nc/0/nc1" in trainer.callback_metrics
    assert list(Path("slash").rglob("my/nc.png"))


def test_plot_needs_a_history() -> None:
    for callback in (NeuralCollapse(), CentralPath()):
        with pytest.raises(RuntimeError, match="history"):
            callback.plot()


def test_plot_has_a_panel_for_each_measure() -> None:
    callback = NeuralCollapse()
    fit(Small(mlp()), [callback])
    axes = callback.plot().axes
    assert len(axes) == 6
    assert all(axis.get_xlabel() == "epoch" and axis.get_ylabel() for axis in axes)


def test_the_stranger_runs_its_own_transfer_hooks() -> None:
    class Hooked(Small):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            images, targets = batch
            return (images + 100 if self.trainer.training else images), targets

    seen: list[float] = []
    module = Hooked(mlp())
    module.network[0].register_forward_pre_hook(
        lambda layer, x: seen.append(x[0].abs().max().item()) if not torch.is_grad_enabled() else None
    )
    fit(module, [NeuralCollapse()])
    assert seen, "the pass must run"
    assert max(seen) < 50, "augmentation of training must stay out"


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_true_precisions(precision: str) -> None:
    callback = NeuralCollapse()
    module: LightningModule = Small(mlp())
    fit(module, [callback, CentralPath()], precision=precision)
    assert math.isfinite(callback.history[-1]["nc1"])

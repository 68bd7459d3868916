"""The LightningModule under the real Trainer: what it logs, how its rate falls, resuming, and two processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lit_papers.interactions.losses import ORDER_BIAS
from lit_papers.interactions.models import MLP
from lit_papers.interactions.module import OrderBiasedClassifier
from lit_papers.interactions.players import FeaturePlayers


def loader(shuffle: bool = False, dtype: torch.dtype = torch.float32) -> DataLoader[Any]:
    """The sign of a product of two features, and eight that say nothing."""
    x = torch.randn(64, 10, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return DataLoader(TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long()), batch_size=16, shuffle=shuffle)


def classifier(bias: str = "mid", **options: Any) -> OrderBiasedClassifier:
    return OrderBiasedClassifier(MLP(10, depth=2, width=8), FeaturePlayers(10), **ORDER_BIAS[bias], **options)


def trainer(folder: Path, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": folder,
    }
    return Trainer(**{**defaults, **options})


@pytest.mark.parametrize("bias", ORDER_BIAS)
def test_what_is_logged(bias: str, tmp_path: Path) -> None:
    module, runner = classifier(bias), trainer(tmp_path)
    runner.fit(module, loader(), loader())
    logged = {key: value.item() for key, value in runner.callback_metrics.items()}
    parts = {f"train/loss_{mode}" for mode in ORDER_BIAS[bias]} | {"train/loss_cls"}
    assert logged.keys() == {"train/loss", "train/acc", "val/loss", "val/acc"} | parts
    assert logged["train/loss"] == pytest.approx(sum(logged[part] for part in parts), rel=1e-5)
    assert 0 <= logged["train/acc"] <= 1
    (tested,) = runner.test(module, loader(), verbose=False)
    assert tested["test/acc"] == pytest.approx(logged["val/acc"])
    predicted = torch.cat(runner.predict(module, loader()))
    truth = loader().dataset.tensors[1]
    assert (predicted == truth).float().mean().item() == pytest.approx(tested["test/acc"])


def test_both_losses_at_once_and_their_weights(tmp_path: Path) -> None:
    module = OrderBiasedClassifier(
        nn.Linear(10, 2), FeaturePlayers(10), encourage=(0.3, 0.7), penalize=(0.0, 0.5), encourage_weight=0.25,
        penalize_weight=4.0,
    )  # fmt: skip
    assert module.order_losses["encourage"].weight == 0.25
    assert module.order_losses["penalize"].weight == 4.0
    runner = trainer(tmp_path, max_epochs=1)
    runner.fit(module, loader())
    assert {"train/loss_encourage", "train/loss_penalize"} <= runner.callback_metrics.keys()


def test_without_a_bias_it_is_an_ordinary_classifier(tmp_path: Path) -> None:
    """The same weights as a module that has never heard of interactions, batch norm included."""

    class Ordinary(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 2))

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    seed_everything(0)
    ordinary = Ordinary()
    seed_everything(0)
    ours = OrderBiasedClassifier(Ordinary().net, lr_final_ratio=1.0)
    for module in (ordinary, ours):
        seed_everything(1)
        trainer(tmp_path).fit(module, loader(shuffle=True))
    torch.testing.assert_close(ours.backbone.state_dict(), ordinary.net.state_dict(), rtol=0, atol=0)


def test_the_rate_falls_geometrically_to_its_last_value(tmp_path: Path) -> None:
    rates = []

    class Watch(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer(tmp_path, max_epochs=5, callbacks=[Watch()]).fit(classifier(lr=0.1, lr_final_ratio=0.0625), loader())
    assert rates == pytest.approx([0.1, 0.05, 0.025, 0.0125, 0.00625])


@pytest.mark.parametrize("options", [{"max_epochs": 1}, {"max_epochs": -1, "max_steps": 3}])
def test_the_rate_stays_where_no_epoch_follows(options: dict[str, int], tmp_path: Path) -> None:
    runner = trainer(tmp_path, **options)
    runner.fit(classifier(lr=0.1), loader())
    assert runner.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1)


def test_resumed_is_uninterrupted(tmp_path: Path) -> None:
    class Seeded(Callback):
        """Draws of a step that do not depend on where the process began."""

        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, index: int) -> None:
            torch.manual_seed(trainer.global_step)

    def fit(module: LightningModule, **options: Any) -> None:
        saver = ModelCheckpoint(tmp_path / "saved", filename="{epoch}", save_top_k=-1)
        runner = trainer(tmp_path, max_epochs=4, enable_checkpointing=True, callbacks=[Seeded(), saver])
        runner.fit(module, loader(), **options)

    whole, again = classifier(), classifier()
    fit(whole)
    fit(again, ckpt_path=tmp_path / "saved/epoch=1.ckpt", weights_only=True)
    torch.testing.assert_close(again.state_dict(), whole.state_dict(), rtol=0, atol=0)
    loaded = OrderBiasedClassifier.load_from_checkpoint(
        tmp_path / "saved/epoch=3.ckpt", backbone=MLP(10, depth=2, width=8), players=FeaturePlayers(10)
    )
    torch.testing.assert_close(loaded.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert loaded.hparams["encourage"] == (0.3, 0.7)


@pytest.mark.parametrize("compiled", [False, True])
def test_batch_norm_counts_ordinary_batches_alone(compiled: bool, tmp_path: Path) -> None:
    seed_everything(0)
    net = nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    module = OrderBiasedClassifier(net, FeaturePlayers(10), encourage=(0.3, 0.7), penalize=(0.0, 0.5))
    torch.compiler.reset()
    trainer(tmp_path, max_epochs=3).fit(torch.compile(module, backend="eager") if compiled else module, loader())
    assert net[1].num_batches_tracked == 3 * 4


class InOrder(FeaturePlayers):
    """Masks the same players in each sample, as draws would differ between processes."""

    def __call__(self, x: torch.Tensor, keep: torch.Tensor, baseline: Any = 0.0) -> torch.Tensor:
        return super().__call__(x, (torch.arange(10) < keep[0].sum()).expand(len(x), 10), baseline)


class Shared(OrderBiasedClassifier):
    """Two processes that get halves of the batches of one."""

    def train_dataloader(self) -> DataLoader[Any]:
        data, processes = loader(dtype=torch.float64).dataset, self.trainer.world_size
        order = DistributedSampler(data, processes, self.trainer.global_rank, shuffle=False)
        return DataLoader(data, batch_size=16 // processes, sampler=order)


class Save(Callback):
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            torch.save(pl_module.state_dict(), f"{trainer.world_size}.pt")


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """DDP sees three passes through one network in a step, and still averages its gradients."""
    for processes in (1, 2):
        seed_everything(0)
        module = Shared(MLP(10, depth=2, width=8), InOrder(10), encourage=(0.3, 0.7)).double()
        strategy = DDPStrategy(process_group_backend="gloo", start_method="fork") if processes == 2 else "auto"
        trainer(tmp_path, devices=processes, strategy=strategy, precision="64-true", callbacks=[Save()]).fit(module)
    one, two = (torch.load(f"{processes}.pt", weights_only=True) for processes in (1, 2))
    torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"players": None, "encourage": (0.3, 0.7)}, "`encourage` masks players: pass `players`"),
        ({"players": None, "penalize": (0.3, 0.7)}, "`penalize` masks players: pass `players`"),
        ({"penalize": (0.7, 0.3)}, "r1=0.7 and r2=0.3"),
        ({"lr": 0.0}, "`lr` must be > 0, got 0.0"),
        ({"lr": float("nan")}, "`lr` must be > 0, got nan"),
        ({"momentum": 1.0}, r"`momentum` must be in \[0, 1\), got 1.0"),
        ({"weight_decay": -1.0}, "`weight_decay` must be >= 0, got -1.0"),
        ({"lr_final_ratio": 0.0}, r"`lr_final_ratio` must be in \(0, 1\], got 0.0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        OrderBiasedClassifier(**{"backbone": nn.Linear(4, 2), "players": FeaturePlayers(4), **arguments})

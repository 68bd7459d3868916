"""The classifier: parameter groups, mixup, both penalties, schedules, resuming, and two processes."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from lit_papers.diffstride import StridedClassifier
from lit_papers.diffstride.audio import WaveformCNN
from lit_papers.diffstride.functional import complexity_penalty
from lit_papers.diffstride.layers import CostCounter, DiffStride2d, DiffStride3d
from lit_papers.diffstride.resnet import PreActResNet
from lit_papers.diffstride.schedule import PiecewiseConstantLR


def network(**options: Any) -> PreActResNet:
    defaults: dict[str, Any] = {"widths": (4, 4, 8), "blocks_per_stage": 1, "strides": (1, 1, 2), "smoothness": 1}
    return PreActResNet(3, in_channels=1, **{**defaults, **options})


def loader(samples: int = 48, batch: int = 12) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(samples, 1, 12, 12, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(samples) % 3), batch_size=batch)


def trainer(**options: Any) -> Trainer:
    defaults: dict[str, Any] = {"accelerator": "cpu", "max_epochs": 2, "logger": False, "enable_progress_bar": False,
                                "enable_model_summary": False, "enable_checkpointing": False, "devices": 1}  # fmt: skip
    return Trainer(**{**defaults, **options})


def first_loss(module: StridedClassifier, batch: tuple[Tensor, Tensor]) -> Tensor:
    module.log = lambda *_, **__: None  # type: ignore[method-assign]  # there is no trainer
    return module.training_step(batch, 0)


def test_parameter_groups() -> None:
    module = StridedClassifier(network(), stride_lr=0.3)
    weights, norms, strides = module.parameter_groups()
    assert {id(p) for p in strides["params"]} == {id(layer.strides) for layer in module.stride_layers}
    assert (strides["lr"], strides["weight_decay"], norms["weight_decay"]) == (0.3, 0.0, 0.0)
    assert all(parameter.ndim == 1 for parameter in norms["params"])
    assert any(parameter is module.model.fc.bias for parameter in weights["params"])
    assert sum(len(group["params"]) for group in (weights, norms, strides)) == len(list(module.parameters()))
    optimizer = module.configure_optimizers()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-3, 0, 0]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1, 0.3]


def test_groups_without_members_are_left_out() -> None:
    assert len(StridedClassifier(nn.Linear(3, 2)).parameter_groups()) == 1
    module = StridedClassifier(network())
    for layer in module.stride_layers:
        layer.strides.requires_grad_(False)
    assert len(module.parameter_groups()) == 2


def test_loss_is_cross_entropy_and_the_weighted_penalty() -> None:
    module = StridedClassifier(network(), complexity_weight=0.5, label_smoothing=0.1).eval()
    images, targets = next(iter(loader()))
    plain = nn.functional.cross_entropy(module(images), targets, label_smoothing=0.1)
    area = complexity_penalty([layer.strides for layer in module.stride_layers])
    assert first_loss(module, (images, targets)).item() == pytest.approx((plain + 0.5 * area).item(), rel=1e-6)


def test_penalty_in_multiply_adds() -> None:
    module = StridedClassifier(network(), complexity_weight=1e3, complexity="macs").eval()
    images, targets = next(iter(loader()))
    with CostCounter(module.model) as counter:
        plain = nn.functional.cross_entropy(module(images), targets)
    loss = first_loss(module, (images, targets))
    assert loss.item() == pytest.approx(plain.item() + counter.macs / 1e6, rel=1e-6)
    loss.backward()
    assert all((layer.strides.grad < 0).all() for layer in module.stride_layers)  # descent makes strides larger


def test_sequences_count_with_one_axis() -> None:
    module = StridedClassifier(WaveformCNN(2, widths=(2, 2), strides=(4, 2)), complexity_weight=1.0)
    assert module._map_area().item() == pytest.approx(1 / 4 + 1 / 8)


@pytest.mark.parametrize("shared", [True, False])
def test_volumes_count_with_three_axes(shared: bool) -> None:
    module = StridedClassifier(nn.Sequential(DiffStride3d(2.0, shared_stride=shared)), complexity_weight=1.0)
    area = module._map_area()
    assert area.item() == pytest.approx(1 / 8)
    area.backward()
    assert module.model[0].strides.grad.sum().item() == pytest.approx(-3 / 16)


def test_a_baseline_has_no_complexity() -> None:
    module = StridedClassifier(network(pooling="strided"), complexity_weight=1.0, complexity="macs")
    run = trainer()
    run.fit(module, loader())
    assert run.callback_metrics["train/complexity"] == 0


def test_mixup_mixes_images_and_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    module = StridedClassifier(network(), mixup_alpha=0.2).eval()
    images, targets = next(iter(loader()))
    partner = torch.roll(torch.arange(len(targets)), 1)
    shares = torch.linspace(0.5, 1, len(targets))
    monkeypatch.setattr(module, "_mix", lambda samples: (shares, partner))
    each = shares.reshape(-1, 1, 1, 1)
    logits = module(each * images + (1 - each) * images[partner])
    rows = range(len(targets))
    entropy = [nn.functional.cross_entropy(logits[[row]], targets[[row]]).item() for row in rows]
    other = [nn.functional.cross_entropy(logits[[row]], targets[partner][[row]]).item() for row in rows]
    mixed = [share * one + (1 - share) * two for share, one, two in zip(shares.tolist(), entropy, other, strict=True)]
    expected = torch.tensor(mixed).mean()
    assert first_loss(module, (images, targets)).item() == pytest.approx(expected.item(), rel=1e-6)


def test_shares_of_mixup() -> None:
    seed_everything(0)
    module = StridedClassifier(nn.Linear(1, 2), mixup_alpha=1.0)
    shares, _ = module._mix(400)
    assert shares.shape == (400,)
    assert shares.min() >= 0.5
    assert shares.mean().item() == pytest.approx(0.75, abs=0.03)  # the larger part of a uniform division
    assert sorted(module._mix(4)[1].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_mixup_in_true_precision(precision: Any) -> None:
    run = trainer(precision=precision)
    run.fit(StridedClassifier(network(), mixup_alpha=0.2), loader())
    assert run.callback_metrics["train/loss"].isfinite()


def test_a_run_moves_strides_keeps_them_above_their_bound_and_logs() -> None:
    module = StridedClassifier(network(), stride_lr=1.0, complexity_weight=0.1)
    before = [layer.strides.detach().clone() for layer in module.stride_layers]
    run = trainer()
    run.fit(module, loader(), loader())
    assert any(not torch.equal(layer.strides, old) for layer, old in zip(module.stride_layers, before, strict=True))
    assert (module.model.stem_pool.strides >= 12 / 11 - 1e-6).all()  # n/(n - R)
    keys = {"train/loss", "train/accuracy", "train/complexity", "val/loss", "val/accuracy", "val/gmacs"}
    assert keys <= set(run.callback_metrics)
    run.test(module, loader(), verbose=False)
    assert {"test/loss", "test/accuracy"} <= set(run.callback_metrics)
    assert len(torch.cat(run.predict(module, loader()))) == 48


def test_schedules_by_step_and_by_epoch() -> None:
    for interval, rate in (("step", 0.1 * 0.5**8), ("epoch", 0.1 * 0.5**2)):
        module = StridedClassifier(
            network(), lr_scheduler=partial(StepLR, step_size=1, gamma=0.5), lr_interval=interval
        )
        run = trainer()
        run.fit(module, loader())
        assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(rate)


def test_the_official_schedule() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    schedule = PiecewiseConstantLR(optimizer, [400, 18_000, 32_000], [0.1, 1, 0.1, 0.01])
    rates = {}
    for step in range(32_002):
        rates[step] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
    for step, rate in ((0, 0.01), (399, 0.01), (400, 0.1), (17_999, 0.1), (18_000, 0.01), (32_000, 0.001)):
        assert rates[step] == pytest.approx(rate)
    with pytest.raises(ValueError, match="one more than"):
        PiecewiseConstantLR(optimizer, [1], [1.0])
    with pytest.raises(ValueError, match="must increase"):
        PiecewiseConstantLR(optimizer, [2, 1], [1.0, 1.0, 1.0])


def test_resuming_is_exact(tmp_path: Path) -> None:
    def module() -> StridedClassifier:
        seed_everything(1)
        return StridedClassifier(network(), stride_lr=0.5, complexity_weight=0.1)

    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole, resumed = module(), module()
    trainer(max_epochs=3, callbacks=[saver], enable_checkpointing=True).fit(whole, loader())
    trainer(max_epochs=3).fit(resumed, loader(), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_a_compiled_module_validates_what_the_eager_one_does() -> None:
    module: Any = StridedClassifier(nn.Sequential(nn.Flatten(), nn.Linear(144, 3)))
    compiled = torch.compile(module, backend="eager")
    eager, graph = (trainer().validate(each, loader(), verbose=False) for each in (module, compiled))
    assert eager[0]["val/gmacs"] == pytest.approx(144 * 3 / 1e9)
    assert graph[0] == pytest.approx(eager[0])


class Sinking(SGD):
    """Takes strides far below their bound."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for parameter in self.param_groups[-1]["params"]:
            parameter.data.sub_(10)
        return loss


def test_a_checkpoint_of_any_step_has_strides_above_their_bound(tmp_path: Path) -> None:
    """Callbacks save theirs before the module's ``on_train_batch_end``."""
    module = StridedClassifier(network(), optimizer=partial(Sinking, lr=0.01))
    saver = ModelCheckpoint(tmp_path, filename="step", every_n_train_steps=1)
    trainer(max_steps=1, callbacks=[saver], enable_checkpointing=True).fit(module, loader())
    saved = torch.load(tmp_path / "step.ckpt", weights_only=True)["state_dict"]
    assert all((layer.strides >= 1).all() for layer in module.stride_layers)
    torch.testing.assert_close(saved, module.state_dict(), rtol=0, atol=0)


class WriteStrides(Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        strides = [layer.strides.tolist() for layer in pl_module.stride_layers]
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps([trainer.global_step, strides]))


def test_two_processes_have_the_same_strides(tmp_path: Path) -> None:
    seed_everything(0)
    module = StridedClassifier(network(), stride_lr=0.5, complexity_weight=0.1, complexity="macs")
    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork", find_unused_parameters=True)
    run = trainer(devices=2, strategy=strategy, max_epochs=-1, max_steps=10, callbacks=[WriteStrides(tmp_path)])
    run.fit(module, loader(96))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first[0] == 10
    assert first[1][1] != [2.0, 2.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"complexity_weight": -1}, "`complexity_weight`"),
        ({"mixup_alpha": -0.1}, "`mixup_alpha`"),
        ({"label_smoothing": 1}, "`label_smoothing`"),
        ({"stride_lr": -1}, "`stride_lr`"),
        ({"complexity": "flops"}, "`complexity`"),
        ({"lr_interval": "batch"}, "`lr_interval`"),
        ({"match": "cost"}, "`match`"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StridedClassifier(nn.Linear(3, 2), **options)


def test_matched_sizes_are_those_a_checkpoint_goes_on_from(tmp_path: Path) -> None:
    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            return loader()

        def test_dataloader(self) -> Any:
            return loader()

    def module() -> StridedClassifier:
        return StridedClassifier(network(smoothness=4), match="sizes", stride_lr=0.1)

    first, run = module(), trainer()
    run.fit(first, datamodule=Data())
    run.save_checkpoint(tmp_path / "last.ckpt")
    images, _ = next(iter(loader()))
    assert [layer.smoothness for layer in first.stride_layers] != [layer.smoothness for layer in module().stride_layers]
    second = module()
    trainer().test(second, datamodule=Data(), ckpt_path=tmp_path / "last.ckpt", verbose=False, weights_only=False)
    assert torch.equal(first.eval()(images), second.eval()(images))
    with pytest.raises(ValueError, match="match='sizes' needs a data module"):
        trainer().fit(module(), loader())


@pytest.mark.slow
def test_a_stride_is_learned_where_fixed_ones_fail() -> None:
    """One class carries a wave of 8 periods: a stride of 5 leaves a twentieth of it, and learning brings it back."""

    def accuracy(learn: bool) -> tuple[float, float]:
        seed_everything(0)
        pool = DiffStride2d(5.0)
        pool.strides.requires_grad_(learn)
        conv = nn.Sequential(nn.Conv2d(1, 8, 5), nn.ReLU())
        head = nn.Linear(8, 2)
        weights = [*conv.parameters(), *head.parameters()]
        optimizer = torch.optim.Adam([{"params": weights, "lr": 0.01}, {"params": pool.parameters(), "lr": 0.02}])
        wave = torch.cos(2 * torch.pi * 8 * torch.arange(32) / 32)
        right = total = 0
        for step in range(300):
            targets = torch.randint(2, (64,))
            logits = head(
                conv(pool(torch.randn(64, 1, 32, 32) + targets[:, None, None, None] * wave)).square().mean((2, 3))
            )
            if step < 250:
                optimizer.zero_grad()
                nn.functional.cross_entropy(logits, targets).backward()
                optimizer.step()
            else:
                right += (logits.argmax(1) == targets).sum().item()
                total += 64
        return right / total, pool.strides[1].item()

    fixed, _ = accuracy(learn=False)
    learned, stride = accuracy(learn=True)
    assert learned > 0.98 > fixed
    assert stride < 3

"""The strides' callback in a project that has never heard of us, but uses our layer."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from lit_papers.callbacks import StrideComplexity
from lit_papers.diffstride import DiffStride1d
from lit_papers.lens import NotApplicable
from tests import guest

KEYS = {"pool/stride_w", "pool/map_w", "gmacs", "penalty"}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "compiled": {"compiled": True},
    "accumulated": {"accumulate_grad_batches": 4},
    "fast_dev_run": {"fast_dev_run": True},
    "max_steps": {"max_epochs": -1, "max_steps": 9},
}


class Striding(guest.ForeignModule):
    """Looks at its ten inputs as a sequence as well."""

    def __init__(self, random: bool = True) -> None:
        super().__init__(random)
        self.pool = DiffStride1d(1.6, 1.0)
        self.side = nn.Conv1d(1, guest.CLASSES, 3, padding=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, auxiliary, features = super().forward(images)
        return logits + self.side(self.pool(images[:, None])).square().mean(-1), auxiliary, features


@pytest.fixture(autouse=True)
def _strangers_have_our_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "ForeignModule", Striding)


def fitted(folder: Path, callback: StrideComplexity, **options: Any) -> Any:
    trainer = guest.foreign_trainer(folder, [callback], **options)
    trainer.fit(Striding(random=False))
    return trainer


@pytest.mark.parametrize("setting", SETTINGS)
def test_training_is_bit_identical(setting: str, tmp_path: Path) -> None:
    guest.check_leaves_no_trace(lambda: [StrideComplexity(every_n_steps=2)], tmp_path, **SETTINGS[setting])


def test_history_and_metrics(tmp_path: Path) -> None:
    callback = StrideComplexity(every_n_steps=3)
    trainer = fitted(tmp_path, callback)
    assert [entry["step"] for entry in callback.history] == list(range(0, trainer.global_step, 3))
    first = callback.history[0]
    assert set(first) == KEYS | {"fit", "epoch", "step"}
    assert first["pool/stride_w"] == pytest.approx(1.6)
    assert first["pool/map_w"] == 10  # 2 (ceil(10/3.2) + 1)
    assert first["penalty"] == pytest.approx(1 / 1.6)
    module = trainer.lightning_module
    linear = sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
    assert first["gmacs"] == pytest.approx((linear + 10 * module.side.weight.numel()) / 1e9)
    assert set(trainer.callback_metrics) >= {f"diffstride/{key}" for key in KEYS}
    assert callback.history[-1]["pool/stride_w"] != first["pool/stride_w"]


def test_loggers_get_every_measurement(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    callback = StrideComplexity(every_n_steps=2)
    fitted(tmp_path, callback, logger=logger, log_every_n_steps=50)
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("diffstride/gmacs")
    assert sum(bool(row.split(",")[column]) for row in rows[1:]) == len(callback.history)
    assert (Path(logger.log_dir) / "diffstride.png").stat().st_size > 10_000


def test_a_batch_that_the_training_step_skips_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Striding.training_step
    monkeypatch.setattr(
        Striding, "training_step", lambda self, batch, index: step(self, batch, index) if index else None
    )
    callback = StrideComplexity(every_n_steps=1)
    fitted(tmp_path, callback)
    assert min(entry["gmacs"] for entry in callback.history) > 0


def test_a_training_step_may_differentiate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As gradient penalties and adversarial training do, on an input that is a leaf."""

    class Penalised(Striding):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            images = images.clone().requires_grad_()
            outputs = super().forward(images)
            if not torch.is_grad_enabled():
                return outputs
            slope = torch.autograd.grad(outputs[0].sum(), images, create_graph=True)[0]
            return outputs[0] * (1 + 1e-3 * slope.square().mean()), *outputs[1:]

    monkeypatch.setattr(guest, "ForeignModule", Penalised)
    guest.check_leaves_no_trace(lambda: [StrideComplexity(every_n_steps=2)], tmp_path)


def test_layers_may_be_made_in_configure_model(tmp_path: Path) -> None:
    class Late(Striding):
        def __init__(self) -> None:
            super().__init__(random=False)
            del self.pool

        def configure_model(self) -> None:
            self.pool = DiffStride1d(1.6, 1.0)

    callback = StrideComplexity()
    guest.foreign_trainer(tmp_path, [callback]).fit(Late())
    assert callback.history


def test_once_a_step_under_accumulation(tmp_path: Path) -> None:
    callback = StrideComplexity(every_n_steps=1)
    trainer = fitted(tmp_path, callback, accumulate_grad_batches=2)
    assert [entry["step"] for entry in callback.history] == list(range(trainer.global_step))


def test_two_processes_record_what_one_does(tmp_path: Path) -> None:
    histories = []
    for processes in (1, 2):
        seed_everything(3)
        strategy = DDPStrategy(process_group_backend="gloo", start_method="fork") if processes == 2 else "auto"
        callbacks = [StrideComplexity(every_n_steps=2), guest.WriteHistories(tmp_path / f"of_{processes}")]
        trainer = guest.foreign_trainer(tmp_path, callbacks, devices=processes, strategy=strategy, precision="64-true")
        trainer.fit(Striding(random=False).double())
        histories += [json.loads(path.read_text())[0] for path in sorted((tmp_path / f"of_{processes}").glob("*.json"))]
    single, first, second = histories
    assert first == second
    assert len(single) == len(first)
    for ours, theirs in zip(first, single, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)


def test_a_resumed_history_is_the_uninterrupted_one(tmp_path: Path) -> None:
    seed_everything(3)
    whole = StrideComplexity(every_n_steps=2)
    saver = ModelCheckpoint(tmp_path / "saved", filename="{step}", save_top_k=-1, every_n_epochs=1)
    guest.foreign_trainer(tmp_path, [whole, saver]).fit(Striding(random=False))
    checkpoints = sorted((tmp_path / "saved").glob("*.ckpt"))
    assert len(checkpoints) == 3
    for checkpoint in checkpoints:
        resumed = StrideComplexity(every_n_steps=2)
        guest.foreign_trainer(tmp_path, [resumed]).fit(Striding(random=False), ckpt_path=checkpoint, weights_only=True)
        assert resumed.history == whole.history


def test_evaluating_an_earlier_checkpoint_keeps_the_history(tmp_path: Path) -> None:
    callback = StrideComplexity(every_n_steps=2)
    saver = ModelCheckpoint(tmp_path / "saved", filename="{step}", save_top_k=-1, every_n_epochs=1)
    trainer = guest.foreign_trainer(tmp_path, [callback, saver])
    trainer.fit(Striding(random=False))
    found, first = (
        list(callback.history),
        min((tmp_path / "saved").glob("*.ckpt"), key=lambda path: path.stat().st_mtime),
    )
    trainer.validate(ckpt_path=first, verbose=False, weights_only=True)
    assert callback.history == found
    fresh = StrideComplexity(every_n_steps=2)
    other = guest.foreign_trainer(tmp_path, [fresh])
    other.validate(Striding(random=False), ckpt_path=first, verbose=False, weights_only=True)
    assert fresh.history == found[: len(fresh.history)] != []


def test_an_exception_leaves_no_hook(tmp_path: Path) -> None:
    module = Striding()

    def fail(*_: Any) -> None:
        raise guest.InterruptionError

    ours = module.side.register_forward_hook(fail)
    with pytest.raises(guest.InterruptionError):
        guest.foreign_trainer(tmp_path, [StrideComplexity()], limit_val_batches=0).fit(module)
    ours.remove()
    assert guest.count_hooks(module) == 0


def test_a_stuck_stride_is_warned_of_once(tmp_path: Path) -> None:
    module = Striding(random=False)
    with torch.no_grad():
        module.pool.strides.fill_(7.0)
    message = r"pool no longer learns, on a map of size \(10,\): its strides are stuck"
    with pytest.warns(UserWarning, match=message) as caught:
        guest.foreign_trainer(tmp_path, [StrideComplexity(every_n_steps=1)]).fit(module)
    assert sum("are stuck" in str(warning.message) for warning in caught) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*are stuck")
        fitted(tmp_path, StrideComplexity(every_n_steps=1))


def test_a_module_without_our_layers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(NotApplicable, match="no DiffStride layer in ForeignModule"):
        guest.foreign_trainer(tmp_path, [StrideComplexity()]).fit(guest.ForeignModule())
    with pytest.raises(ValueError, match="every_n_steps"):
        StrideComplexity(every_n_steps=0)


def test_the_figure_shows_what_was_measured(tmp_path: Path) -> None:
    callback = StrideComplexity(every_n_steps=2)
    with pytest.raises(RuntimeError, match="nothing to plot"):
        callback.plot()
    fitted(tmp_path, callback)
    strides, sizes, cost = callback.plot().axes
    assert list(strides.lines[0].get_ydata()) == [entry["pool/stride_w"] for entry in callback.history]
    assert len(sizes.lines) == 1
    assert list(cost.lines[0].get_ydata()) == [entry["gmacs"] for entry in callback.history]

"""The distance from the global optimum, in projects of two-layer networks that have never heard of us."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lit_papers.callbacks import ConvexGap
from lit_papers.convex_relu import TwoLayerReLU
from lit_papers.convex_relu.arrangements import TooManyPatternsError
from lit_papers.convex_relu.landscape import global_optimality
from lit_papers.convex_relu.programs import ConvexSolveError
from tests import guest
from tests.convex_relu.small import load

COMMON = {
    "objective",
    "lower_bound",
    "certified_gap",
    "sup_ratio",
    "clarke_residual",
    "balance_error",
    "active_neurons",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "compiled": {"compiled": True},
    "accumulated": {"accumulate_grad_batches": 4},
    "clipped": {"gradient_clip_val": 0.1},
    "fast_dev_run": {"fast_dev_run": True},
    "max_steps": {"max_epochs": -1, "max_steps": 9},
}


class Stranger(guest.ForeignModule):
    """A two-layer network on the ten inputs, beside other layers; dict batches, integer targets."""

    def __init__(self, random: bool = True) -> None:
        super().__init__(random)
        self.net = nn.Sequential(nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 1, bias=False))

    def forward(self, images: Tensor) -> Any:
        return super().forward(images), self.net(images)[:, 0]

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        (logits, auxiliary, _), value = self(batch["image"])
        targets = nn.functional.one_hot(batch["label"], guest.CLASSES).to(logits.dtype)
        loss = self.loss(logits, targets) + self.loss(auxiliary, targets)
        return loss + self.loss(value, batch["label"].to(value.dtype))

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        self.log("foreign/value", self(batch["image"])[1].mean())


def gap(mode: Any = "relaxed", **options: Any) -> ConvexGap:
    return ConvexGap(mode, layers=["net.0", "net.2"], beta=0.5, **options)


@pytest.fixture
def _two_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "ForeignModule", Stranger)


@pytest.mark.usefixtures("_two_layers")
@pytest.mark.parametrize("setting", SETTINGS)
def test_training_is_bit_identical(setting: str, tmp_path: Path) -> None:
    guest.check_leaves_no_trace(lambda: [gap()], tmp_path, **SETTINGS[setting])


@pytest.mark.usefixtures("_two_layers")
def test_training_is_bit_identical_while_programs_are_solved(tmp_path: Path) -> None:
    guest.check_leaves_no_trace(lambda: [gap("bank", every_n_epochs=2)], tmp_path)


@pytest.mark.usefixtures("_two_layers")
def test_two_processes_record_what_one_does(tmp_path: Path) -> None:
    guest.check_two_processes(lambda: [gap()], tmp_path, tolerance=1e-6)


@pytest.mark.usefixtures("_two_layers")
@pytest.mark.parametrize("checkpointing", [{"every_n_epochs": 1}, {"save_on_train_epoch_end": True}])
def test_a_resumed_history_is_the_uninterrupted_one(checkpointing: dict[str, Any], tmp_path: Path) -> None:
    guest.check_resume(lambda: [gap()], tmp_path, checkpointing)


class Small(LightningModule):
    """Somebody's own regression."""

    def __init__(self, width: int = 6, decay: Any = 0.1, kind: Any = torch.optim.SGD, bias: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(3, width, bias=bias)
        self.second = nn.Linear(width, 1, bias=False)
        self.decay, self.kind = decay, kind

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())[:, 0]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        if isinstance(self.decay, float):
            return self.kind(self.parameters(), lr=0.02, weight_decay=self.decay)
        return self.kind(
            [{"params": [p], "weight_decay": d} for p, d in zip(self.parameters(), self.decay, strict=True)]
        )


def data(batch_size: int = 10) -> DataLoader[Any]:
    problem = load("gauss_n10_d3")
    return DataLoader(TensorDataset(problem["x"].float(), problem["y"].float()), batch_size=batch_size, shuffle=True)


def fitted(folder: Path, module: LightningModule, callback: ConvexGap, loader: Any = None, **options: Any) -> Any:
    seed_everything(0)
    trainer = guest.foreign_trainer(folder, [callback], **options)
    trainer.fit(module, data() if loader is None else loader)
    return trainer


def test_exact_mode_against_the_reference(tmp_path: Path) -> None:
    problem = load("gauss_n10_d3")
    callback = ConvexGap(every_n_epochs=2)  # auto: 92 patterns are few
    module = Small()
    trainer = fitted(tmp_path, module, callback, max_epochs=6)
    assert [entry["epoch"] for entry in callback.history] == [0, 2, 4, 5]
    assert set(callback.history[0]) == COMMON | {"epoch", "optimum", "gap"}
    assert set(trainer.callback_metrics) >= {f"convex_relu/{key}" for key in COMMON | {"optimum", "gap"}}
    last = callback.history[-1]
    assert last["optimum"] == pytest.approx(problem["objective"], rel=1e-6)  # float32 data
    # mean squared error with weight decay .1 over ten samples: beta = .5
    weights = module.first.weight.double(), module.second.weight[0].double()
    report = global_optimality(problem["x"].float(), problem["y"].float(), *weights, 0.5)
    assert last["objective"] == pytest.approx(report.objective, rel=1e-9)
    for entry in callback.history:
        assert entry["certified_gap"] >= entry["gap"] >= -1e-9
    bounds = [entry["lower_bound"] for entry in callback.history]
    assert bounds == sorted(bounds)


@pytest.mark.parametrize(("width", "solves"), [(50, True), (2, False)])
def test_wide_networks_get_there_and_narrow_ones_do_not(width: int, solves: bool, tmp_path: Path) -> None:
    """The narrowest optimum has four neurons."""
    callback = ConvexGap("exact", every_n_epochs=100)
    module = TwoLayerReLU(3, width, beta=0.5, lr=0.02)
    fitted(tmp_path, module, callback, max_epochs=2500)
    gaps = [entry["gap"] for entry in callback.history]
    assert min(gaps) >= -1e-9
    assert (gaps[-1] < 1e-5) == solves
    if not solves:
        assert min(gaps) > 1e-2


@pytest.mark.slow
def test_sgd_with_momentum_on_a_wide_strangers_network(tmp_path: Path) -> None:
    module, callback = Small(60), ConvexGap("exact", every_n_epochs=200)
    module.configure_optimizers = lambda: _decaying_sgd(module)  # type: ignore[method-assign]
    fitted(tmp_path, module, callback, max_epochs=12_000)
    gaps = [entry["gap"] for entry in callback.history]
    assert min(gaps) >= -1e-9
    assert gaps[-1] < 1e-5


def _decaying_sgd(module: nn.Module) -> Any:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02, momentum=0.9, weight_decay=0.1)
    return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12_000)]


def test_bank_mode(tmp_path: Path) -> None:
    callback = ConvexGap("bank", every_n_epochs=3)
    trainer = fitted(tmp_path, Small(), callback, max_epochs=7)
    assert set(callback.history[0]) == COMMON | {"epoch", "bank_optimum", "bank_gain"}
    for entry in callback.history:
        assert entry["bank_gain"] >= -1e-9
        assert entry["bank_optimum"] >= load("gauss_n10_d3")["objective"] - 1e-6
    assert "convex_relu/gap" not in trainer.callback_metrics


def test_auto_falls_back_to_the_bank(tmp_path: Path) -> None:
    callback = ConvexGap(max_patterns=91)
    fitted(tmp_path, Small(), callback, max_epochs=1)
    assert "bank_optimum" in callback.history[0]
    with pytest.raises(TooManyPatternsError):
        fitted(tmp_path, Small(), ConvexGap("exact", max_patterns=91))


def test_a_hidden_bias_is_a_column_of_ones(tmp_path: Path) -> None:
    callback, module = ConvexGap("relaxed"), Small(bias=True)
    fitted(tmp_path, module, callback, max_epochs=1)
    problem = load("gauss_n10_d3")
    x = torch.cat([problem["x"].float(), torch.ones(10, 1)], 1)
    weight = torch.cat([module.first.weight, module.first.bias[:, None]], 1)
    report = global_optimality(x, problem["y"].float(), weight, module.second.weight[0], 0.5)
    assert callback.history[0]["objective"] == pytest.approx(report.objective, rel=1e-9)


def test_labels_of_the_logistic_loss(tmp_path: Path) -> None:
    """0 and 1 are what a binary classifier has; its weight decay counts twice as much as under MSE."""
    x, y = load("gauss_n10_d3")["x"].float(), (load("gauss_n10_d3")["y"] > 0).float()
    callbacks = []
    for labels in (y, 2 * y - 1):
        callbacks.append(ConvexGap("relaxed", loss="logistic"))
        module = Small()
        loader = DataLoader(TensorDataset(x, labels), batch_size=10)
        module.training_step = lambda batch, batch_idx, module=module: 0 * module(batch[0]).sum()
        fitted(tmp_path, module, callbacks[-1], loader, max_epochs=1)
        with torch.no_grad():
            z = module(x)
            penalty = sum(float(p.double().square().sum()) for p in module.parameters())
        expected = float(nn.functional.softplus(-(2 * y - 1) * z).sum()) + 0.5 * 1.0 * penalty
        assert callbacks[-1].history[0]["objective"] == pytest.approx(expected, rel=1e-4)


def test_loggers_figure_and_early_stopping(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    callback = ConvexGap("exact", every_n_epochs=3)
    seed_everything(0)
    stop = EarlyStopping("convex_relu/gap", patience=0, min_delta=1e9, check_on_train_epoch_end=True, strict=False)
    trainer = guest.foreign_trainer(tmp_path, [callback, stop], logger=logger, max_epochs=9)
    trainer.fit(Small(), data())
    assert callback.history[-1]["epoch"] == trainer.current_epoch - 1
    assert (Path(logger.log_dir) / "convex_gap.png").stat().st_size > 10_000
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("convex_relu/gap")
    assert sum(bool(row.split(",")[column]) for row in rows[1:]) == len(callback.history)


def test_a_diverged_network_is_nan_and_goes_on(tmp_path: Path) -> None:
    module, callback = Small(), ConvexGap("relaxed")
    module.training_step = lambda batch, batch_idx: (
        module(batch[0]).sum() * (torch.nan if module.current_epoch else 0.0)
    )
    with pytest.warns(UserWarning, match="nothing measured after epoch 1"):
        fitted(tmp_path, module, callback, max_epochs=2)
    assert math.isfinite(callback.history[0]["objective"])
    assert all(math.isnan(callback.history[1][key]) for key in COMMON)


def test_a_solver_that_fails_in_the_middle_costs_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ConvexSolveError("none")

    monkeypatch.setattr("lit_papers.callbacks.convex_gap.solve_relu", fail)
    callback = ConvexGap("bank")
    with pytest.warns(UserWarning, match="no conic solver"):
        trainer = fitted(tmp_path, Small(), callback, max_epochs=2)
    assert trainer.current_epoch == 2
    assert math.isnan(callback.history[0]["bank_gain"])


class _Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.ones(3), torch.ones(()))] * 4)


class _Tanh(Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())[:, 0]


class _Scaled(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


class _Three(Small):
    def __init__(self) -> None:
        super().__init__()
        self.third = nn.Linear(2, 2)


class _OutputBias(Small):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(6, 1)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: _Tanh(), "not a ReLU"),
        (lambda: _Scaled(), "changes the samples"),
        (lambda: _Three(), r"3 linear layers \(first, second, third\)"),
        (lambda: _OutputBias(), r"must be nn.Linear\(6, 1, bias=False\)"),
        (lambda: Small(kind=torch.optim.AdamW), "decoupled weight decay"),
        (lambda: Small(decay=[0.1, 0.2]), r"weight decay \[0.1, 0.2\]"),
        (lambda: Small(decay=0.0), r"Pass `beta`"),
    ],
)
def test_networks_that_the_theory_does_not_cover(module: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        fitted(tmp_path, module(), ConvexGap("relaxed"))


def test_refused_data(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="dataset with a length"):
        fitted(tmp_path, Small(), ConvexGap("relaxed"), DataLoader(_Stream(), batch_size=2))
    wide = DataLoader(TensorDataset(torch.ones(4, 3), torch.ones(4, 2)), batch_size=4)
    with pytest.raises(MisconfigurationException, match="one number a sample, got 2"):
        fitted(tmp_path, Small(), ConvexGap("relaxed"), wide)
    with pytest.raises(MisconfigurationException, match=r"'nowhere' is no nn\.Linear"):
        fitted(tmp_path, Small(), ConvexGap("relaxed", layers=["first", "nowhere"]))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"mode": "approximate"}, "mode"),
        ({"loss": "hinge"}, "loss"),
        ({"layers": "net"}, "layers"),
        ({"layers": ["one"]}, "layers"),
        ({"beta": 0.0}, "beta"),
        ({"every_n_epochs": 0}, "every_n_epochs"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}"):
        ConvexGap(**arguments)


def test_plot_needs_a_history() -> None:
    with pytest.raises(RuntimeError, match="nothing to plot"):
        ConvexGap().plot()


def test_state_is_plain(tmp_path: Path) -> None:
    callback = ConvexGap("relaxed")
    saver = ModelCheckpoint(tmp_path, save_last=True)
    seed_everything(0)
    guest.foreign_trainer(tmp_path, [callback, saver], max_epochs=1).fit(Small(), data())
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["ConvexGap"]
    assert json.loads(json.dumps(state)) == {"history": callback.history}

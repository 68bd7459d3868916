"""The distance from the global optimum, in projects of two-layer networks that have never heard of us."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lit_papers.callbacks import ConvexGap
from lit_papers.convex_relu import TwoLayerReLU
from lit_papers.convex_relu.arrangements import TooManyPatternsError
from lit_papers.convex_relu.landscape import global_optimality
from lit_papers.lens import NotApplicable
from tests import guest
from tests.convex_relu.small import load

pytestmark = pytest.mark.filterwarnings("ignore:measuring on the dataset of the training loader")

COMMON = {
    "objective",
    "lower_bound",
    "certified_gap",
    "sup_ratio",
    "clarke_residual",
    "balance_error",
    "active_neurons",
    "problem_id",
}
WHEN = {"fit", "epoch", "step"}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "compiled": {"compiled": True, "max_epochs": 2},  # each look compiles a copy
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
    """The step of this stranger has two other losses: its outputs are shown by `call`."""
    return ConvexGap(mode, layers=["net.0", "net.2"], beta=0.5, call=shown, seconds=0.05, **options)


def shown(module: LightningModule, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return module(batch["image"])[1], batch["label"].to(torch.float32)


@pytest.fixture
def _two_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "ForeignModule", Stranger)


@pytest.mark.usefixtures("_two_layers")
@pytest.mark.parametrize("setting", SETTINGS)
def test_training_is_bit_identical(setting: str, tmp_path: Path) -> None:
    guest.check_leaves_no_trace(lambda: [gap()], tmp_path, **SETTINGS[setting])


@pytest.mark.usefixtures("_two_layers")
def test_training_is_bit_identical_while_programs_are_solved(tmp_path: Path) -> None:
    guest.check_leaves_no_trace(lambda: [gap("bank", epochs=2)], tmp_path)


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


class Labels(Small):
    """Two classes, whatever they are called."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        signs = 2 * (batch[1] > 0).to(batch[0].dtype) - 1
        return nn.functional.softplus(-signs * self(batch[0])).mean()


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
    callback = ConvexGap(epochs=2)  # auto: 92 patterns are few
    module = Small()
    trainer = fitted(tmp_path, module, callback, max_epochs=6)
    assert [entry["epoch"] for entry in callback.history] == [2, 4, 6]
    assert set(callback.history[0]) == COMMON | WHEN | {"optimum", "gap"}
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


@pytest.mark.parametrize(("width", "epochs", "solves"), [(50, 1250, True), (2, 300, False)])
def test_wide_networks_get_there_and_narrow_ones_do_not(width: int, epochs: int, solves: bool, tmp_path: Path) -> None:
    """The narrowest optimum has four neurons; where two stop is seen soon."""
    callback = ConvexGap("exact", epochs=50)
    module = TwoLayerReLU(3, width, beta=0.5, lr=0.03)
    fitted(tmp_path, module, callback, max_epochs=epochs)
    gaps = [entry["gap"] for entry in callback.history]
    assert min(gaps) >= -1e-9
    assert (gaps[-1] < 1e-5) == solves
    if not solves:
        assert min(gaps) > 1e-2


@pytest.mark.slow
def test_sgd_with_momentum_on_a_wide_strangers_network(tmp_path: Path) -> None:
    module, callback = Small(60), ConvexGap("exact", epochs=200)
    module.configure_optimizers = lambda: _decaying_sgd(module)  # type: ignore[method-assign]
    fitted(tmp_path, module, callback, max_epochs=12_000)
    gaps = [entry["gap"] for entry in callback.history]
    assert min(gaps) >= -1e-9
    assert gaps[-1] < 1e-5


def _decaying_sgd(module: nn.Module) -> Any:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02, momentum=0.9, weight_decay=0.1)
    return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12_000)]


def test_bank_mode(tmp_path: Path) -> None:
    callback = ConvexGap("bank", epochs=3)
    trainer = fitted(tmp_path, Small(), callback, max_epochs=7)
    assert set(callback.history[0]) == COMMON | WHEN | {"bank_optimum", "bank_gain"}
    for entry in callback.history:
        assert entry["bank_gain"] >= -1e-9
        assert entry["bank_optimum"] >= load("gauss_n10_d3")["objective"] - 1e-6
    assert "convex_relu/gap" not in trainer.callback_metrics


def test_auto_falls_back_to_a_bound(tmp_path: Path) -> None:
    callback = ConvexGap(max_patterns=91, seconds=0.05)
    fitted(tmp_path, Small(), callback, max_epochs=1)
    assert set(callback.history[0]) == COMMON | WHEN
    with pytest.raises(TooManyPatternsError):
        fitted(tmp_path, Small(), ConvexGap("exact", max_patterns=91))


def test_a_hidden_bias_is_a_column_of_ones(tmp_path: Path) -> None:
    callback, module = ConvexGap("relaxed", seconds=0.05), Small(bias=True)
    fitted(tmp_path, module, callback, max_epochs=1)
    problem = load("gauss_n10_d3")
    x = torch.cat([problem["x"].float(), torch.ones(10, 1)], 1)
    weight = torch.cat([module.first.weight, module.first.bias[:, None]], 1)
    report = global_optimality(x, problem["y"].float(), weight, module.second.weight[0], 0.5)
    assert callback.history[0]["objective"] == pytest.approx(report.objective, rel=1e-9)


def test_labels_of_the_logistic_loss(tmp_path: Path) -> None:
    """0 and 1 are what a binary classifier has; its weight decay counts twice as much as under MSE."""
    x, y = load("gauss_n10_d3")["x"].float(), (load("gauss_n10_d3")["y"] > 0).float()
    for labels in (y, 2 * y - 1):
        callback, module = ConvexGap("relaxed", seconds=0.05), Labels()
        fitted(tmp_path, module, callback, DataLoader(TensorDataset(x, labels), batch_size=10), max_epochs=1)
        with torch.no_grad():
            z = module(x)
            penalty = sum(float(p.double().square().sum()) for p in module.parameters())
        expected = float(nn.functional.softplus(-(2 * y - 1) * z).sum()) + 0.5 * 1.0 * penalty
        assert callback.history[0]["objective"] == pytest.approx(expected, rel=1e-4)


def test_loggers_figure_and_early_stopping(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    callback = ConvexGap("exact", epochs=3)
    seed_everything(0)
    stop = EarlyStopping("convex_relu/gap", patience=0, min_delta=1e9, check_on_train_epoch_end=True, strict=False)
    trainer = guest.foreign_trainer(tmp_path, [callback, stop], logger=logger, max_epochs=9)
    trainer.fit(Small(), data())
    assert callback.history[-1]["epoch"] == trainer.current_epoch
    assert (Path(logger.log_dir) / "convex_relu.png").stat().st_size > 10_000
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("convex_relu/gap")
    assert sum(bool(row.split(",")[column]) for row in rows[1:]) == len(callback.history)


class Changing(Small):
    """Something happens to its step after the first epoch."""

    what = "diverges"

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        loss = super().training_step(batch, batch_index)
        if not self.current_epoch:
            return loss
        return loss * {"diverges": math.nan, "doubles": 2, "decays": 1}[self.what]

    def on_train_epoch_start(self) -> None:
        if self.current_epoch and self.what == "decays":
            self.trainer.optimizers[0].param_groups[0]["weight_decay"] = 0.2


@pytest.mark.parametrize(
    ("what", "reason"),
    [("diverges", "diverged"), ("doubles", "another loss"), ("decays", "the weight decay is 0.2 now, and was 0.1")],
)
def test_what_cannot_be_measured_later_is_nan_and_training_goes_on(what: str, reason: str, tmp_path: Path) -> None:
    module, callback = Changing(), ConvexGap("relaxed", seconds=0.05)
    module.what = what
    with pytest.warns(UserWarning, match="nothing measured after epoch 2"):
        trainer = fitted(tmp_path, module, callback, max_epochs=3)
    assert trainer.current_epoch == 3
    assert math.isfinite(callback.history[0]["objective"])
    assert all(math.isnan(callback.history[1][key]) for key in COMMON)
    assert reason in callback.history[1]["reason"]


class Manual(Small):
    """Steps on the sum of two batches' losses."""

    automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        loss = super().training_step(batch, batch_index)
        self.manual_backward(loss)
        if batch_index % 2:
            self.optimizers().step()  # type: ignore[union-attr]
            self.optimizers().zero_grad()  # type: ignore[union-attr]
        return loss


def test_beta_of_manual_optimization_is_said_to_be_a_guess(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="optimisation is manual.*pass `beta`"):
        fitted(tmp_path, Manual(), ConvexGap("relaxed", seconds=0.05), max_epochs=1)


@pytest.mark.timeout(60)
def test_a_part_of_an_epoch_that_two_processes_share_is_one_of_each(tmp_path: Path) -> None:
    """Two of three batches on each process are four of six, not four of three."""
    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork")
    with pytest.raises(Exception, match="a part of a shuffled epoch is other samples each time"):
        fitted(tmp_path, Small(), ConvexGap("exact"), data(2), limit_train_batches=2, devices=2, strategy=strategy)


class _Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.ones(3), torch.ones(()))] * 4)


class _Twisted(Small):
    """Something else lies between the layers, or after them."""

    def __init__(self, between: Any = None, after: Any = None) -> None:
        super().__init__()
        self.between, self.after = between or nn.ReLU(), after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.second(self.between(self.first(x))))[:, 0]


class _Skip(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.sum(1)


class _Three(Small):
    def __init__(self) -> None:
        super().__init__()
        self.third = nn.Linear(2, 2)


class _Lion(torch.optim.SGD):
    """A class that nobody knows."""


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: _Twisted(nn.Tanh()), "something else lies between"),
        (lambda: _Twisted(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(6))), "something else lies between"),
        (lambda: _Twisted(nn.Sequential(nn.ReLU(), nn.Dropout(0.5))), "something else lies between"),
        (lambda: _Twisted(after=nn.Sigmoid()), "something else lies between"),
        (lambda: _Skip(), "something else lies between"),
        (lambda: _Three(), r"3 linear layers \(first, second, third\)"),
        (lambda: Small(kind=torch.optim.AdamW), "beta .* decoupled weight decay"),
        (lambda: Small(kind=_Lion), "beta does not follow from the weight decay of _Lion"),
        (lambda: Small(decay=[0.1, 0.2]), r"weight decay \[0.1, 0.2\]"),
        (lambda: Small(decay=0.0), r"Pass `beta`"),
    ],
)
def test_networks_that_the_theory_does_not_cover(module: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(NotApplicable, match=message):
        fitted(tmp_path, module(), ConvexGap("relaxed", seconds=0.05))


class Heads(LightningModule):
    """An ordinary head: biases, one or three outputs; no forward."""

    def __init__(self, outputs: int, loss: Any) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, outputs))
        self.loss = loss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        return self.loss(self.net(batch[0]).squeeze(1), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.02, weight_decay=0.1)


@pytest.mark.parametrize(
    ("outputs", "loss", "beta"),
    [(1, "mse_loss", 0.5), (3, "mse_loss", 1.5), (3, "cross_entropy", 1.0)],
)
@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_ordinary_heads(outputs: int, loss: str, beta: float, precision: Any, tmp_path: Path) -> None:
    problem = load("gauss_n10_d3")
    classes = torch.arange(10) % 3
    kinds = {"float": problem["y"].float(), "rows": nn.functional.one_hot(classes).float(), "classes": classes}
    y = kinds["float" if outputs == 1 else "rows" if loss == "mse_loss" else "classes"]
    module, callback = Heads(outputs, getattr(nn.functional, loss)), ConvexGap(epochs=30, seconds=0.2)
    loader = DataLoader(TensorDataset(problem["x"].float(), y), batch_size=5)
    fitted(tmp_path, module, callback, loader, max_epochs=60, precision=precision)
    module = module.double()
    with torch.no_grad():
        z = module.net(problem["x"].float().double()).squeeze(1)
        lost = getattr(nn.functional, loss)(z, y.double() if y.is_floating_point() else y, reduction="sum")
        weights = [p for name, p in module.named_parameters() if name != "net.2.bias"]
        true = float(lost * (0.5 if loss == "mse_loss" else 1.0) + beta / 2 * sum(p.square().sum() for p in weights))
    for entry in callback.history:
        assert 0 < entry["lower_bound"] < entry["objective"]
        assert entry["certified_gap"] == pytest.approx(entry["objective"] - entry["lower_bound"])
    assert callback.history[-1]["objective"] == pytest.approx(true, rel=1e-6)
    if outputs == 1:
        assert callback.history[-1]["gap"] >= -1e-9
    else:
        with pytest.raises(NotApplicable, match="mode='relaxed'"):
            fitted(tmp_path, module.float(), ConvexGap("exact"), loader, max_epochs=1)


def test_the_rows_that_are_trained_on(tmp_path: Path) -> None:
    problem = load("gauss_n10_d3")
    rows = TensorDataset(problem["x"].float(), problem["y"].float())
    optima = []
    for loader in (
        DataLoader(Subset(rows, range(6)), batch_size=3),
        DataLoader(rows, batch_size=3, sampler=SubsetRandomSampler(range(6))),
        DataLoader(rows, batch_size=3, sampler=[*range(6)]),
    ):
        callback = ConvexGap("exact")
        fitted(tmp_path, Small(), callback, loader, max_epochs=1)
        optima.append(callback.history[0]["optimum"])
    assert optima == [pytest.approx(optima[0], rel=1e-9)] * 3
    for sampler in (WeightedRandomSampler([1.0] * 10, 10), RandomSampler(rows, replacement=True), [0, 0, 1]):
        with pytest.raises(NotApplicable, match="pass `dataloader`"):
            fitted(tmp_path, Small(), ConvexGap("exact"), DataLoader(rows, batch_size=3, sampler=sampler))
    with pytest.raises(NotApplicable, match="limit_train_batches"):
        fitted(tmp_path, Small(), ConvexGap("exact"), data(2), limit_train_batches=2)
    callback = ConvexGap("exact", beta=0.5, dataloader=data(2))  # what the cure says
    fitted(tmp_path, Small(), callback, data(2), limit_train_batches=2, max_epochs=1)
    assert callback.history[-1]["optimum"] == pytest.approx(load("gauss_n10_d3")["objective"], rel=1e-6)


@pytest.mark.parametrize("where", ["global stream", "own stream", "counter", "batch hook"])
def test_rows_that_are_augmented_are_refused(where: str, tmp_path: Path) -> None:
    """One draw of an augmentation is not the data: its optimum bounds nothing that is trained."""
    problem = load("gauss_n10_d3")
    x, y = problem["x"].float(), problem["y"].float()

    class Augmented(TensorDataset):
        stream, read = torch.Generator(), 0

        def __getitem__(self, index: int) -> Any:
            self.read += 1
            noise = {
                "global stream": lambda: torch.randn(3),
                "own stream": lambda: torch.randn(3, generator=self.stream),
                "counter": lambda: torch.full((3,), float(self.read)),
            }
            return x[index] + 0.1 * noise.get(where, lambda: torch.zeros(3))(), y[index]

    class Hooked(Small):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return (batch[0] + 0.1 * torch.randn_like(batch[0]), batch[1]) if where == "batch hook" else batch

    loader = DataLoader(Augmented(x, y), batch_size=5)
    with pytest.raises(
        NotApplicable, match=r"other values when they are read again \(augmentation\).*pass `dataloader`"
    ):
        fitted(tmp_path, Hooked(), ConvexGap("exact"), loader, max_epochs=1)
    if where != "batch hook":
        clean = DataLoader(TensorDataset(x, y), batch_size=5)
        callback = ConvexGap("exact", dataloader=clean)
        fitted(tmp_path, Hooked(), callback, loader, max_epochs=1)
        assert callback.history[0]["optimum"] == pytest.approx(problem["objective"], rel=1e-6)


def test_an_attribute_called_beta_is_not_taken(tmp_path: Path) -> None:
    module, callback = Small(), ConvexGap("exact")
    module.beta = 0.999  # of somebody's moving average
    fitted(tmp_path, module, callback, max_epochs=1)
    assert callback.history[0]["optimum"] == pytest.approx(load("gauss_n10_d3")["objective"], rel=1e-6)


def test_a_bound_of_another_problem_is_none_here(tmp_path: Path) -> None:
    """A second fit, of the same module with other targets, begins with bounds of its own."""
    callback, module = ConvexGap("relaxed", seconds=0.05), Small()
    fitted(tmp_path, module, callback, max_epochs=1)
    smaller = TensorDataset(load("gauss_n10_d3")["x"].float(), 0.1 * load("gauss_n10_d3")["y"].float())
    fitted(tmp_path, module, callback, DataLoader(smaller, batch_size=10), max_epochs=1)
    first, second = callback.history
    assert first["problem_id"] != second["problem_id"]
    assert second["lower_bound"] < 0.02 * first["objective"]


def test_refused_data(tmp_path: Path) -> None:
    with pytest.raises(NotApplicable, match=r"DataLoader|other samples"):
        fitted(tmp_path, Small(), ConvexGap("relaxed", seconds=0.05), DataLoader(_Stream(), batch_size=2))
    wide = DataLoader(TensorDataset(torch.ones(4, 3), torch.ones(4, 2)), batch_size=4)
    with pytest.raises(NotApplicable, match="not those of 1 outputs"):
        fitted(tmp_path, Small(), ConvexGap("relaxed", seconds=0.05), wide)
    with pytest.raises(NotApplicable, match=r"'nowhere' is no nn\.Linear"):
        fitted(tmp_path, Small(), ConvexGap("relaxed", seconds=0.05, layers=["first", "nowhere"]))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"mode": "approximate"}, "mode"),
        ({"loss": "hinge"}, "loss"),
        ({"layers": "net"}, "layers"),
        ({"layers": ["one"]}, "layers"),
        ({"beta": 0.0}, "beta"),
        ({"epochs": 0}, "epochs"),
        ({"every_n_epochs": 2}, "`every_n_epochs` is called `epochs`"),
        ({"seconds": 0}, "seconds"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}"):
        ConvexGap(**arguments)


def test_plot_needs_a_history() -> None:
    with pytest.raises(RuntimeError, match="nothing to plot"):
        ConvexGap().plot()


def test_state_is_plain(tmp_path: Path) -> None:
    callback = ConvexGap("relaxed", seconds=0.05)
    saver = ModelCheckpoint(tmp_path, save_last=True)
    seed_everything(0)
    guest.foreign_trainer(tmp_path, [callback, saver], max_epochs=1).fit(Small(), data())
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"][callback.state_key]
    assert json.loads(json.dumps(state))["history"] == callback.history

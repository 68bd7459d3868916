"""What a diagnosis says of networks that nobody prepared for it, and that it leaves no trace."""

import random
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_papers.callbacks import CentralPath, InteractionStrength, NeuralCollapse
from lit_papers.diagnose import Report, diagnose
from lit_papers.diagnose.control import fresh_weights
from lit_papers.diagnose.datasets import Datasets
from lit_papers.diagnose.entries import ENTRIES
from lit_papers.diagnose.names import FORGETTING, NAMES
from lit_papers.diffstride.layers import DiffStride2d
from lit_papers.interactions.players import FeaturePlayers
from lit_papers.neural_collapse.lens import CollapseLens
from tests.diagnose.small import CLASSES, FEATURES, loaders, network, samples, trained

QUICK = ["collapse", "central_path", "head", "cost", "similarity"]


def state(model: nn.Module) -> dict[str, Any]:
    return {
        "tensors": {name: value.clone() for name, value in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "python": random.getstate(),
    }


@pytest.fixture(scope="module")
def whole() -> tuple[nn.Module, Report, dict[str, Any], dict[str, Any]]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = trained()
    model[1].eval()
    before = state(model)
    report = diagnose(model, *loaders(), minutes=10)
    return model, report, before, state(model)


def test_network_buffers_modes_and_streams_are_bit_identical(whole: Any) -> None:
    _, _, before, after = whole
    torch.testing.assert_close(after["tensors"], before["tensors"], rtol=0, atol=0)
    assert after["modes"] == before["modes"]
    assert torch.equal(after["torch"], before["torch"])
    assert after["numpy"] == before["numpy"]
    assert after["python"] == before["python"]


def test_every_lens_is_measured_or_says_why_not(whole: Any) -> None:
    _, report, _, _ = whole
    status = {finding.name: finding.status for finding in report.findings}
    assert list(status) == list(NAMES) == [*(entry.name for entry in ENTRIES), FORGETTING]
    applies = {"collapse", "central_path", "head", "interactions", "cost", "similarity", "loss_slice"}
    assert {name for name, how in status.items() if how == "measured"} == applies
    assert {how for name, how in status.items() if name not in applies} == {"does not apply"}
    for finding in report.findings:
        assert (finding.reason is None) == (finding.status == "measured"), finding.name
        assert bool(finding.shown) == (finding.status == "measured"), finding.name
    assert "two linear layers, and there are 3" in report["convex_gap"].reason


def test_numbers_are_those_of_the_lens_alone(whole: Any) -> None:
    model, report, _, _ = whole
    train, val = loaders()
    for data, loader in (("train", train), ("validation", val)):
        alone = CollapseLens(layers="all")(model, loader)
        found = report["collapse"].histories[data][-1]
        assert {key: found[key] for key in alone} == pytest.approx(alone, abs=1e-9, nan_ok=True)
    control, now = report["interactions"].histories["validation"]
    assert (control["epoch"], now["epoch"]) == (0, 1)
    assert control["strength"] != now["strength"]


class Task(LightningModule):
    """Trained by MSE with weight decay, so that the central path is all there."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self(batch[0]), nn.functional.one_hot(batch[1], CLASSES).float())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=1e-3)


class Look(Callback):
    def __init__(self, **options: Any) -> None:
        self.options = options

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.report = diagnose(pl_module, trainer=trainer, **self.options)


def fit(folder: Path, callbacks: list[Callback], **options: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=callbacks, **options,
    )  # fmt: skip
    trainer.fit(Task(), *loaders())
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_numbers_equal_the_callbacks_at_the_same_moment(tmp_path: Path) -> None:
    collapse, path = NeuralCollapse(layers="all"), CentralPath()
    strength = InteractionStrength(FeaturePlayers(FEATURES), name="interactions")
    look = Look(lenses=["collapse", "central_path", "interactions"], minutes=10)
    fit(tmp_path, [collapse, path, strength, look])
    for callback, name, data in (
        (collapse, "collapse", "train"), (path, "central_path", "train"), (strength, "interactions", "validation"),
    ):  # fmt: skip
        finding = look.report[name]
        assert finding.status == "measured", finding.reason
        assert finding.reduced is None
        found, expected = finding.histories[data][-1], callback.history[-1]
        assert (found["epoch"], found["step"]) == (expected["epoch"], expected["step"])
        numbers = {key: value for key, value in expected.items() if isinstance(value, float)}
        assert {key: found[key] for key in numbers} == pytest.approx(numbers, abs=1e-9, nan_ok=True)
    assert look.report["central_path"].shown[0].key == "loss"


def test_several_checkpoints_are_a_time_line(tmp_path: Path) -> None:
    model, paths = network(), []
    for place in range(3):
        paths.append(tmp_path / f"{place}.pt")
        torch.save({"state_dict": network(place).state_dict(), "global_step": 10 * (3 - place), "epoch": 2}, paths[-1])
    before = state(model)
    report = diagnose(model, *loaders(), checkpoints=paths, lenses=["collapse", "similarity"], minutes=10)
    torch.testing.assert_close(state(model)["tensors"], before["tensors"], rtol=0, atol=0)
    history = report["collapse"].histories["train"]
    assert [entry["step"] for entry in history] == [10, 20, 30]
    assert [entry["checkpoint"] for entry in history] == ["2.pt", "1.pt", "0.pt"]
    for entry, seed in zip(history, (2, 1, 0), strict=True):
        assert entry["nc1"] == pytest.approx(CollapseLens()(network(seed), loaders()[0])["nc1"], abs=1e-9)
    assert "Over the checkpoints" in report["collapse"].figures
    assert report["similarity"].histories["validation"][0]["to_first"] == pytest.approx(1)
    assert report["similarity"].histories["validation"][2]["to_first"] < 0.99
    assert "to_first" in [shown.key for shown in report["similarity"].shown]


def test_forgetting_of_several_sets_over_several_checkpoints(tmp_path: Path) -> None:
    paths = []
    for place, model in enumerate((trained(1), trained(3))):
        paths.append(tmp_path / f"{place}.pt")
        torch.save(model.state_dict(), paths[-1])
    sets = {"first": DataLoader(samples(30, 2), 10), "second": DataLoader(samples(30, 3), 10)}
    report = diagnose(network(), checkpoints=paths, evaluations=sets, lenses=["forgetting"])
    finding = report["forgetting"]
    assert finding.status == "measured", finding.reason
    x, y = samples(30, 3).tensors
    share = float((trained(3).eval()(x).argmax(1) == y).double().mean())
    assert finding.histories["second"][-1]["accuracy"] == pytest.approx(share)
    assert [shown.key for shown in finding.shown] == ["accuracy", "forgetting"]


class Raises(TensorDataset):
    def __getitem__(self, index: int) -> Any:
        raise OSError(f"no file {index}.png")


@pytest.mark.parametrize(
    ("model", "data", "status", "reason"),
    [
        (network(), (None, None), "does not apply", "pass a loader, `train`"),
        (network(), (DataLoader(Raises(torch.zeros(4, 6)), 2), None), "failed", "OSError: no file"),
        (network(), (DataLoader(TensorDataset(torch.zeros(4, 6)), 2), None), "does not apply", "pass `unpack`"),
        (network(), ([], None), "does not apply", "no batch"),
        (nn.Identity(), (loaders()[0], None), "does not apply", "cannot tell which linear layer"),
    ],
    ids=["no data", "a loader that raises", "no labels", "an empty loader", "no head"],
)  # fmt: skip
def test_what_cannot_be_measured_is_a_reason(model: Any, data: Any, status: str, reason: str) -> None:
    report = diagnose(model, *data, lenses=[*QUICK, "interactions", "loss_slice"], minutes=10)
    assert report["collapse"].status == status
    assert reason in report["collapse"].reason
    assert "Not measured here, and why" in report.html()
    assert all(finding.status != "measured" for finding in report.findings if finding.name in ("central_path", "head"))


def test_weights_that_are_not_finite_are_said_at_the_top() -> None:
    model = trained()
    with torch.no_grad():
        model[3].weight[0, 0] = torch.nan
    report = diagnose(model, *loaders(), lenses=[*QUICK, "interactions", "loss_slice"], minutes=10)
    assert "1 tensors of the network are not finite" in report.warnings[0]
    assert report["collapse"].status == report["interactions"].status == report["loss_slice"].status == "failed"
    assert "finite" in report["collapse"].reason
    assert report["cost"].status == "measured"


def test_arguments_are_refused_at_once(tmp_path: Path) -> None:
    model = network()
    with pytest.raises(ValueError, match="did you mean 'collapse'"):
        diagnose(model, lenses=["colapse"])
    with pytest.raises(ValueError, match="meta device, which have no values: load them first"):
        diagnose(network().to("meta"))
    with pytest.raises(ValueError, match="minutes"):
        diagnose(model, minutes=0)
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        diagnose("model")  # type: ignore[arg-type]
    other = tmp_path / "other.pt"
    torch.save(nn.Linear(2, 2).state_dict(), other)
    with pytest.raises(ValueError, match=r"of another model than Sequential: it lacks .*; it has besides weight, bias"):
        diagnose(model, checkpoints=[other])
    other.write_text("nothing")
    with pytest.raises(ValueError, match="no checkpoint, or a damaged one"):
        diagnose(model, checkpoints=[other])
    with pytest.raises(ValueError, match="no such file"):
        diagnose(model, checkpoints=[tmp_path / "none.ckpt"])


def test_images_of_integers_are_not_taken_for_tokens() -> None:
    class Scaling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))

        def forward(self, images: Tensor) -> Tensor:
            return self.net(images / 255)

    data = TensorDataset(torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8), torch.arange(12) % CLASSES)
    finding = diagnose(Scaling(), DataLoader(data, 6), lenses=["interactions"])["interactions"]
    assert finding.status == "does not apply"
    assert "the images are torch.uint8, so 0 is not the mean of their pixels: pass `players`" in (finding.reason or "")


def test_what_does_not_fit_into_the_time_is_left_out_and_said() -> None:
    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = trained()

        def forward(self, x: Tensor) -> Tensor:
            torch.sin(torch.ones(200_000 * len(x)))  # about a millisecond a sample
            return self.net(x)

    report = diagnose(Slow(), *loaders(), minutes=0.05)
    reduced = [finding for finding in report.findings if finding.reduced or finding.status == "left out"]
    assert reduced
    for finding in reduced:
        assert finding.reduced or "--minutes" in finding.reason or "no time" in finding.reason


class Clock:
    """Time that passes only where a test says so: the same on every machine."""

    now: ClassVar[float] = 0.0

    @classmethod
    def read(cls) -> float:
        cls.now += 1e-4
        return cls.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    monkeypatch.setattr(Clock, "now", 0.0)
    for name in ("perf_counter", "process_time"):
        monkeypatch.setattr(time, name, Clock.read)
    return Clock


class Tiring(nn.Module):
    """A network that takes long for each sample once so much time has passed, as on a hot or shared machine."""

    def __init__(self, after: float, seconds: float) -> None:
        super().__init__()
        self.net = trained()
        self.after, self.seconds = after, seconds

    def forward(self, x: Tensor) -> Tensor:
        Clock.now += len(x) * (self.seconds if Clock.now > self.after else 1e-4)
        return self.net(x)


@pytest.mark.parametrize("after", [0.1, 1.0, 3.0])
def test_the_time_is_kept_also_where_estimates_are_wrong(after: float, clock: type[Clock]) -> None:
    model = Tiring(after, 0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = diagnose(model, *loaders(), minutes=1)
    assert clock.now < 75
    less = [finding for finding in report.findings if finding.status == "left out" or finding.reduced]
    assert less, "not all of it fits"
    assert all("--minutes" in finding.reason or "no time" in finding.reason for finding in less if finding.reason)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_what_is_stopped_is_done_with_less(clock: type[Clock]) -> None:
    x, y = samples(2000).tensors
    report = diagnose(Tiring(0.2, 0.1), DataLoader(TensorDataset(x, y), 10), lenses=["collapse"], minutes=1)
    finding = report["collapse"]
    assert finding.status == "measured"
    assert "samples of the train data, drawn at random" in (finding.reduced or "")
    assert 30 < clock.now < 75


def test_accuracies_that_take_too_long_are_left_out(clock: type[Clock], tmp_path: Path) -> None:
    model = Tiring(0.2, 0.1)
    paths = [tmp_path / "0.pt", tmp_path / "1.pt"]
    for path in paths:
        torch.save(model.state_dict(), path)
    sets = {name: DataLoader(samples(900, seed), 10) for name, seed in (("first", 2), ("second", 3))}
    report = diagnose(model, checkpoints=paths, evaluations=sets, lenses=["forgetting"], minutes=1)
    assert clock.now < 75
    finding = report["forgetting"]
    assert (finding.status, finding.histories) == ("left out", {})
    assert "took longer than was thought and was stopped after 69 s: give more" in (finding.reason or "")


def test_a_part_of_sorted_data_has_all_classes() -> None:
    x, y = samples(900).tensors
    order = y.argsort()
    train = DataLoader(TensorDataset(x[order], y[order]), 9)
    model = trained().eval()
    subject = Datasets(model, {"train": train}, None, {}, seed=0).subject("train", 3)
    assert CollapseLens()(model, subject.loader, max_batches=3)["num_classes_seen"] == CLASSES


def test_the_control_has_fresh_weights_and_goes_without_trace() -> None:
    model = trained()
    before = state(model)
    with fresh_weights(model, 3) as missing:
        assert missing is None
        assert not torch.equal(model[0].weight, before["tensors"]["0.weight"])
        assert float(model[1].running_mean.abs().sum()) == 0
        first = model[0].weight.clone()
    torch.testing.assert_close(state(model)["tensors"], before["tensors"], rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before["torch"])
    with fresh_weights(model, 3):
        assert torch.equal(model[0].weight, first)

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

    with fresh_weights(Own(), 0) as missing:
        assert "reset_parameters" in missing


def test_a_forward_that_takes_something_else_is_a_reason() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.net(x * scale)

    def call(module: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        return module(batch[0], torch.ones(())), batch[1]

    report = diagnose(Two(), *loaders(), call=call, lenses=["collapse", "cost", "similarity", "loss_slice"])
    assert report["collapse"].status == "measured", report["collapse"].reason
    for name in ("cost", "similarity", "loss_slice"):
        assert "`forward` does not answer a single input (TypeError: " in report[name].reason


def test_strides_that_are_learned_already_are_shown() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), DiffStride2d((2.0, 1.5)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    data = DataLoader(TensorDataset(torch.randn(20, 1, 16, 16), torch.arange(20) % 2), 10)
    finding = diagnose(model, data, lenses=["strides"], minutes=10)["strides"]
    assert [shown.key for shown in finding.shown] == ["gmacs", "penalty"]
    assert finding.histories["train"][0]["1/stride_w"] == 1.5
    assert list(finding.figures) == ["Layers and their strides"]

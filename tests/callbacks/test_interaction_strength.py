"""InteractionStrength: what it records, of which samples, when, and what it refuses."""

import csv
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lit_papers.callbacks import InteractionStrength
from lit_papers.interactions.estimator import MultiOrderInteraction
from lit_papers.interactions.players import FeaturePlayers, PatchGrid
from lit_papers.interactions.samples import balanced
from lit_papers.lens import NotApplicable
from tests.callbacks.small import Small, fit, mlp, pairs

FEATURES = 5


class Project(Small):
    """Somebody's classifier with a validation loop; it begins with the same weights each time."""

    def __init__(self, network: nn.Module | None = None, **sgd: Any) -> None:
        torch.manual_seed(1)
        super().__init__(network or mlp(inputs=FEATURES), nn.CrossEntropyLoss(), **sgd)

    def validation_step(self, batch: Any, batch_index: int) -> None:
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def val_dataloader(self) -> Any:
        return DataLoader(pairs(inputs=FEATURES), batch_size=7)


def strength(**arguments: Any) -> InteractionStrength:
    defaults: dict[str, Any] = {"players": FeaturePlayers(FEATURES), "n_samples": 9, "pairs": "all", "method": "exact"}
    return InteractionStrength(**{**defaults, **arguments})


def chosen(wanted: int) -> tuple[Tensor, Tensor]:
    """The samples of three classes that are measured: read in a seeded order, then balanced."""
    x, y = pairs(inputs=FEATURES).tensors
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    places = order[balanced(y[order], wanted)]
    return x[places], y[places]


def train(callback: Callback, module: LightningModule | None = None, **options: Any) -> Trainer:
    seed_everything(1)
    return fit(module or Project(), [callback, *options.pop("callbacks", [])], **options)


def test_it_records_what_the_estimator_finds_of_the_same_samples() -> None:
    callback = strength(only_correct=False)
    module = Project()
    trainer = train(callback, module)
    x, y = chosen(9)
    assert torch.bincount(y).tolist() == [3, 3, 3]
    result = MultiOrderInteraction(module, FeaturePlayers(FEATURES), pairs="all", method="exact")(x, y)
    last = callback.history[-1]
    assert last["orders"] == [0, 1, 2, 3]
    assert last["strength"] == pytest.approx(result.interactions.abs().mean(dim=(0, 1)).tolist(), rel=1e-12)
    assert sum(last["relative_strength"]) == pytest.approx(4)
    assert (last["n_samples"], last["n_forwards"]) == (9, 9 * 2**FEATURES)
    logged = {key: value.item() for key, value in trainer.callback_metrics.items() if key.startswith("interactions")}
    assert last["noise_floor"] == pytest.approx(result.noise_floor.tolist(), rel=1e-12)
    for name in ("strength", "relative"):
        bands = getattr(result.curve, f"{name}_band").tolist()
        assert [last[f"{name}_low"], last[f"{name}_high"]] == [pytest.approx(band, rel=1e-12) for band in bands]
        assert last[f"{name}_error"] == pytest.approx(getattr(result.curve, f"{name}_error").tolist(), rel=1e-12)
    expected = {
        **{f"interactions/floor/m{m}": floor for m, floor in enumerate(last["noise_floor"])},
        **{f"interactions/J/m{m}": j for m, j in enumerate(last["relative_strength"])},
        **{f"interactions/S/m{m}": s for m, s in enumerate(last["strength"])},
        "interactions/J_centroid": sum(m * j for m, j in enumerate(last["relative_strength"])) / 4 / 3,
        "interactions/J_middle": sum(last["relative_strength"][1:3]) / 2,
        "interactions/J_centroid_error": centroid_error(result.interactions.abs().mean(dim=1)),
        "interactions/n_forwards": 9 * 2**FEATURES,
        "interactions/n_samples": 9,
    }
    assert logged == pytest.approx(expected, rel=1e-6)


def centroid_error(strengths: torch.Tensor) -> float:
    """Jackknife over the samples, of strengths ``(B, M)`` that are exact."""
    centroids = []
    for left_out in range(len(strengths)):
        mean = strengths[[place for place in range(len(strengths)) if place != left_out]].mean(0)
        centroids.append(sum(m * float(each) for m, each in enumerate(mean)) / float(mean.sum()) / 3)
    middle = sum(centroids) / len(centroids)
    return ((len(centroids) - 1) / len(centroids) * sum((each - middle) ** 2 for each in centroids)) ** 0.5


def test_the_control_is_the_untrained_network_with_all_samples() -> None:
    seed_everything(1)
    untrained = Project()
    x, y = chosen(9)
    assert torch.bincount(y).tolist() == [3, 3, 3]
    result = MultiOrderInteraction(untrained, FeaturePlayers(FEATURES), pairs="all", method="exact")(x, y)
    callback = strength()
    train(callback, untrained)
    control = callback.history[0]
    assert (control["epoch"], control["n_samples"]) == (0, 9)
    assert control["strength"] == pytest.approx(result.interactions.abs().mean(dim=(0, 1)).tolist(), rel=1e-12)
    assert [entry["epoch"] for entry in callback.history] == [0, 1, 2]


def test_a_network_that_is_evaluated_counts_as_trained() -> None:
    callback = strength(n_samples=12)
    fit_nothing = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(callbacks=[callback], **fit_nothing).validate(Project(mostly_class_0()), verbose=False)
    assert not callback.history
    assert callback.evaluated["n_samples"] == 4  # of the 12 it gets those of class 0 right


def mostly_class_0() -> nn.Linear:
    """Says class 0 to everything; a third of the samples are of it."""
    network = nn.Linear(FEATURES, 3)
    with torch.no_grad():
        network.weight.mul_(1e-3)
        network.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    return network


def test_misclassified_samples_are_left_out() -> None:
    callback = strength(n_samples=12)
    train(callback, Project(mostly_class_0(), lr=0.0))
    assert [entry["n_samples"] for entry in callback.history] == [12, 4, 4], "all, then those of class 0"


def test_nothing_right_records_nan_and_warns() -> None:
    class AllWrong(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 1e-3 + torch.tensor([0.0, 0.0, 0.0, 9.0])

    callback = strength()
    with pytest.warns(UserWarning, match="no sample is classified correctly") as warned:
        trainer = train(callback, Project(AllWrong(FEATURES, 4), lr=0.0), max_epochs=3)
    assert len([w for w in warned if "classified correctly" in str(w.message)]) == 3
    assert [entry["epoch"] for entry in callback.history] == [0, 1, 2, 3]
    assert callback.history[-1]["reason"] == "no sample is classified correctly"
    assert callback.history[-1].keys() == {*callback.history[0], "reason"}
    assert all(value != value for value in callback.history[-1]["strength"])
    assert trainer.callback_metrics["interactions/J/m0"].isnan()


def test_a_diverged_network_records_nan_and_training_goes_on() -> None:
    class Diverging(Project):
        def on_train_batch_end(self, *_: Any) -> None:
            nn.init.constant_(self.network[-1].bias, float("nan"))

    module, callback = Diverging(), strength()
    with pytest.warns(UserWarning, match="nothing measured after epoch 1: the logits are not finite"):
        trainer = train(callback, module)
    assert trainer.current_epoch == 2
    assert all(value != value for value in callback.history[-1]["relative_strength"])
    callback.plot()


@pytest.mark.parametrize(
    ("every", "options", "epochs"),
    [
        (1, {"max_epochs": 3}, [0, 1, 2, 3]),
        (2, {"max_epochs": 5}, [0, 2, 4, 5]),
        (2, {"max_epochs": 4, "check_val_every_n_epoch": 3}, [0, 2, 4]),
        (1, {"max_epochs": 2, "val_check_interval": 0.3}, [0, 1, 2]),
        (1, {"max_epochs": 2, "limit_val_batches": 0}, [0, 1, 2]),
        (1, {"max_epochs": 2, "num_sanity_val_steps": 0}, [0, 1, 2]),
        (1, {"max_epochs": -1, "max_steps": 5}, [0, 1, 2]),
        (3, {"max_epochs": 2, "fast_dev_run": True}, [0, 1]),
    ],
)
def test_when_it_measures(every: int, options: dict[str, Any], epochs: list[int]) -> None:
    callback = strength(epochs=every)
    train(callback, **options)
    assert [entry["epoch"] for entry in callback.history] == epochs


def test_the_last_epoch_counts_also_after_early_stopping() -> None:
    callback = strength(epochs=50)
    stop = EarlyStopping("accuracy", mode="max", patience=1, min_delta=2.0)
    trainer = train(callback, max_epochs=50, callbacks=[stop])
    assert 0 < trainer.current_epoch < 50
    assert [entry["epoch"] for entry in callback.history] == [0, trainer.current_epoch]


def test_another_callback_can_watch_it(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="interactions/J/m0", mode="min")
    train(strength(), callbacks=[best], enable_checkpointing=True)
    assert best.best_model_score is not None


def test_validating_alone_measures_nothing() -> None:
    callback = strength()
    trainer = train(callback, max_epochs=1)
    trainer.validate(Project(), verbose=False)
    assert [entry["epoch"] for entry in callback.history] == [0, 1]


def test_the_control_survives_a_resume_and_is_not_measured_on_trained_weights(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole = strength()
    train(whole, callbacks=[saver], enable_checkpointing=True, max_epochs=3)
    resumed, newcomer = strength(), strength(only_correct=False)
    for callback in (resumed, newcomer):
        trainer = Trainer(
            max_epochs=3, callbacks=[callback], logger=False, enable_progress_bar=False, accelerator="cpu",
            enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        if callback is newcomer:  # attached to a run that was not watched so far
            checkpoint = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
            checkpoint["callbacks"] = {}
            torch.save(checkpoint, tmp_path / "epoch=0.ckpt")
        data = DataLoader(pairs(inputs=FEATURES), batch_size=8)
        trainer.fit(Project(), data, ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True)
    assert repr(resumed.history) == repr(whole.history), "repr, as NaN does not equal itself"
    assert [entry["epoch"] for entry in newcomer.history] == [1, 2, 3]


def test_two_processes_with_fewer_samples_than_processes(tmp_path: Path) -> None:
    """The second process has nothing to do, and must not be missing where numbers are summed."""
    histories = []
    for processes in (1, 2):
        callback = strength(n_samples=1, only_correct=False)
        target = tmp_path / f"{processes}.pt"

        class Save(Callback):
            def on_fit_end(
                self, trainer: Trainer, pl_module: LightningModule, of: Any = callback, to: Path = target
            ) -> None:
                if trainer.global_rank == trainer.world_size - 1:
                    torch.save(of.history, to)

        strategy = DDPStrategy(process_group_backend="gloo", start_method="fork") if processes == 2 else "auto"
        train(
            callback, Project(lr=0.0), devices=processes, strategy=strategy, callbacks=[Save()], max_epochs=1,
        )  # fmt: skip
        histories.append([{**entry, "step": 0} for entry in torch.load(target, weights_only=True)])
    assert repr(histories[0]) == repr(histories[1])
    assert histories[1][0]["n_samples"] == 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("place", ["reading", "measuring"])
def test_a_failure_on_one_process_does_not_hang_the_other(place: str) -> None:
    class Disk(FeaturePlayers):
        def __call__(self, *arguments: Any) -> Tensor:
            fail_on_rank_1()
            return super().__call__(*arguments)

    def fail_on_rank_1(batch: Any = None) -> Any:
        if torch.distributed.get_rank() == 1:
            raise OSError("disk of rank 1")
        return batch

    callback = strength(unpack=fail_on_rank_1) if place == "reading" else strength(players=Disk(FEATURES))
    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork")
    with pytest.raises(Exception, match=r"disk of rank 1|failed on another process"):
        train(callback, devices=2, strategy=strategy)
    assert not multiprocessing.active_children()


def test_a_sample_is_named_by_its_place_among_the_chosen_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by its place among the correct ones, as its pairs and contexts are drawn from the name."""
    measured = []
    right = (chosen(12)[1] == 0).nonzero()[:, 0].tolist()

    class Recording(MultiOrderInteraction):
        def __call__(self, x: Tensor, y: Tensor, ids: Any = None) -> Any:
            measured.append(list(ids))
            return super().__call__(x, y, ids)

    monkeypatch.setattr("lit_papers.interactions.lens.MultiOrderInteraction", Recording)
    train(strength(n_samples=12), Project(mostly_class_0(), lr=0.0), max_epochs=1)
    assert measured == [list(range(12)), right]


def test_images_dict_batches_and_several_outputs() -> None:
    class Pictures(Project):
        def __init__(self) -> None:
            super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, 4)))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"mask": x, "logits": self.network(x), "again": self.network(x)}

        def training_step(self, batch: Any, _: int) -> Tensor:
            return self.loss(self(batch["image"])["logits"], batch["label"])

        def validation_step(self, batch: Any, _: int) -> None: ...

        def train_dataloader(self) -> Any:
            x = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(0))
            return DataLoader([{"image": a, "label": k % 4, "name": str(k)} for k, a in enumerate(x)], batch_size=4)

        val_dataloader = train_dataloader

    callback = strength(players=PatchGrid(2), only_correct=False)
    seed_everything(0)
    trainer = Trainer(
        max_epochs=1, callbacks=[callback], logger=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(Pictures())
    assert callback.history[-1]["orders"] == [0, 1, 2]


def test_a_batch_that_is_a_sentence_of_the_users_own() -> None:
    class Odd(Project):
        def training_step(self, batch: Any, index: int) -> Tensor:
            return super().training_step(batch[1:3], index)

        def validation_step(self, batch: Any, _: int) -> None: ...

        def val_dataloader(self) -> Any:
            x, y = pairs(inputs=FEATURES).tensors
            return DataLoader(TensorDataset(torch.arange(len(y)), x, y), batch_size=8)

    x, y = pairs(inputs=FEATURES).tensors
    data = DataLoader(TensorDataset(torch.arange(len(y)), x, y), batch_size=8)
    with pytest.raises(TypeError, match="pass `unpack`"):
        train(strength(), Odd(), data=data)
    callback = strength(unpack=lambda batch: (batch[1], batch[2]))
    train(callback, Odd(), data=data)
    assert len(callback.history) == 3


def test_soft_targets_and_nested_inputs_are_refused() -> None:
    x, y = pairs(inputs=FEATURES).tensors
    soft = DataLoader(TensorDataset(x, 0.9 * nn.functional.one_hot(y) + 0.1 / 3), batch_size=8)
    with pytest.raises(ValueError, match=r"one class index for each sample .* got torch.float32 of shape \(24, 3\)"):
        train(strength(dataloader=soft))
    nested = [((x, x), y)]
    with pytest.raises(TypeError, match=r"one tensor each, got \(tuple, Tensor\); pass `unpack`"):
        train(strength(dataloader=nested))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(pairs(inputs=FEATURES))


@pytest.mark.parametrize("batches", [0, 1.0])
def test_no_validation_set_needs_the_argument(batches: float) -> None:
    class Data(Project):
        def val_dataloader(self) -> Any:
            return []

    loader = DataLoader(pairs(inputs=FEATURES), batch_size=4)
    with pytest.raises(ValueError, match=r"no validation set.*pass `dataloader`"):
        train(strength(), Data(), limit_val_batches=batches)
    callback, usual = strength(dataloader=loader), strength()
    train(callback, Data(), limit_val_batches=0)
    train(usual, limit_val_batches=0)
    assert repr(callback.history) == repr(usual.history)


def test_a_stream_is_measured_as_it_comes() -> None:
    """On one process; several could not share it."""

    class Data(Project):
        def val_dataloader(self) -> Any:
            return DataLoader(Stream(), batch_size=8)

    callback = strength()
    train(callback, Data(), max_epochs=1)
    assert [entry["n_samples"] for entry in callback.history[:1]] == [9]


def test_several_validation_sets_and_shuffled_ones() -> None:
    """The first set counts, in its own order."""

    class Two(Project):
        def validation_step(self, batch: Any, batch_index: int, dataloader_idx: int = 0) -> None: ...

        def val_dataloader(self) -> Any:
            return [DataLoader(pairs(inputs=FEATURES), batch_size=7, shuffle=True), DataLoader(Stream())]

    two, usual = strength(), strength()
    train(two, Two())
    train(usual)
    assert two.history[0] == usual.history[0]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"epochs": 0}, "epochs"),
        ({"every_n_epochs": 1}, "epochs"),
        ({"n_samples": 0}, "`n_samples` must be at least 1, got 0"),
        ({"n_contexts": 0}, "n_contexts"),
        ({"orders": [4]}, "4"),
        ({"dataloader": []}, "`dataloader` has no sample"),
        ({"players": FeaturePlayers(4)}, r"`players` or `baseline` do not fit the samples: .* got \(1, 5\)"),
        ({"players": PatchGrid(2)}, "`players` or `baseline` do not fit the samples: images must have shape"),
        ({"baseline": torch.zeros(3)}, "`players` or `baseline` do not fit the samples: .* size of tensor"),
        ({"baseline": torch.zeros(7, 1, FEATURES)}, r"do not fit the samples: of one \(5,\) they make"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        train(strength(**arguments))


def test_players_of_other_samples_are_refused_before_the_first_step() -> None:
    module = Project()
    before = module.state_dict()["network.0.weight"].clone()
    with pytest.raises(NotApplicable, match="do not fit"):
        train(strength(players=FeaturePlayers(4)), module)
    assert torch.equal(module.state_dict()["network.0.weight"], before)


class OneLogit(Project):
    """Two classes and one output, as `binary_cross_entropy_with_logits` has it."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__(nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, 1)))

    def training_step(self, batch: Any, _: int) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(self(batch[0])[:, 0], batch[1].float().flatten() % 2)

    def validation_step(self, batch: Any, _: int) -> None: ...


@pytest.mark.parametrize("shape", [(24,), (24, 1)])
def test_the_targets_of_one_logit_are_floats(shape: tuple[int, ...]) -> None:
    x, y = pairs(inputs=FEATURES).tensors
    histories = []
    for targets in (y % 2, (y % 2).float().reshape(shape)):
        callback = strength(dataloader=DataLoader(TensorDataset(x, targets), batch_size=8), only_correct=False)
        train(callback, OneLogit())
        histories.append(callback.history)
    assert [entry["n_samples"] for entry in histories[0]] == [9, 9, 9]
    for integers, floats in zip(*histories, strict=True):
        assert floats["strength"] == integers["strength"]
        assert floats["noise_floor"] == integers["noise_floor"]


def test_a_forward_without_logits_is_told() -> None:
    class Loss(Project):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).sum()

        def training_step(self, batch: Any, _: int) -> Tensor:
            return self(batch[0])

        def validation_step(self, batch: Any, _: int) -> None: ...

    with pytest.raises(NotApplicable, match=r"the model.s output is a single number, but must have a row.*`respond`"):
        train(strength(), Loss())


def test_figure_and_logs_lie_in_the_folder_of_the_run(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="run", version="")
    train(strength(), logger=logger)
    assert (tmp_path / "run/interactions.png").stat().st_size > 10_000
    with (tmp_path / "run/metrics.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["interactions/J/m0"]]
    assert [row["step"] for row in rows] == ["0", "3", "6"], "the control, and the two epochs"


def test_plots_say_what_they_show() -> None:
    callback = strength()
    with pytest.raises(RuntimeError):
        callback.plot()
    train(callback, max_epochs=3)
    axis, raw, over_time = callback.plot().axes[:3]
    assert axis.get_xlabel() == "order of interaction m / (n - 2)"
    assert axis.get_ylabel() == "relative strength J"
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["95 % band of the last", "untrained", "after epoch 1", "after epoch 3"]
    curves = {line.get_label(): line for line in axis.lines}
    assert list(curves["untrained"].get_xdata()) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    lightness = [sum(curves[label].get_color()[:3]) for label in ("after epoch 1", "after epoch 3")]
    assert lightness == sorted(lightness, reverse=True), "grey tells the order of the epochs too"
    assert raw.get_ylabel() == "strength S [log-odds]"
    assert "noise floor" in [text.get_text() for text in raw.get_legend().get_texts()]
    assert over_time.get_xlabel() == "epoch (0 is untrained)"
    assert over_time.images[0].get_array().shape == (4, 4)


def test_its_arguments_can_stand_in_yaml() -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--callback", type=Callback)
    players = {"class_path": "lit_papers.interactions.players.PatchGrid", "init_args": {"grid": [2, 3]}}
    for pairs_ in ("all", 7):
        given = {
            "class_path": "lit_papers.callbacks.InteractionStrength",
            "init_args": {"players": players, "orders": [0, 2], "pairs": pairs_, "method": "paper"},
        }
        built = parser.instantiate_classes(parser.parse_object({"callback": given})).callback
        options = built.lens.estimator
        assert (built.lens.players.n_players, options["orders"], options["pairs"]) == (6, [0, 2], pairs_)


class _Sorted(IterableDataset[Any]):
    """Class after class, as files of a folder are streamed."""

    def __iter__(self) -> Any:
        x, y = pairs(per_class=100, inputs=FEATURES).tensors
        order = y.argsort(stable=True)
        yield from zip(x[order], y[order], strict=True)


class _Seen(FeaturePlayers):
    def __call__(self, x: Tensor, keep: Tensor, baseline: float | Tensor = 0.0) -> Tensor:
        self.__dict__.setdefault("rows", set()).add(tuple(x[0].tolist()))
        return super().__call__(x, keep, baseline)


@pytest.mark.parametrize("kind", ["stream", "batches", "rare"])
def test_the_samples_cover_the_classes_of_any_data(kind: str) -> None:
    x, y = pairs(per_class=100, inputs=FEATURES).tensors
    order = y.argsort(stable=True)
    x, y = x[order], y[order]
    rare = TensorDataset(x[:202], y[:202])
    loaders = {
        "stream": DataLoader(_Sorted(), batch_size=10),
        "batches": list(zip(x.split(10), y.split(10), strict=True)),
        "rare": DataLoader(rare, batch_size=10),
    }
    players = _Seen(FEATURES)
    train(strength(players=players, only_correct=False, dataloader=loaders[kind]), max_epochs=1)
    label = {tuple(row.tolist()): int(name) for row, name in zip(x, y, strict=True)}
    assert {label[row] for row in players.__dict__["rows"]} == {0, 1, 2}


@pytest.mark.parametrize("fn", ["validate", "test"])
def test_several_loaders_are_evaluated(fn: str) -> None:
    class Evaluated(Project):
        def validation_step(self, batch: Any, batch_index: int, dataloader_idx: int = 0) -> None:
            pass

        test_step = validation_step

    callback = strength(only_correct=False)
    trainer = Trainer(
        accelerator="cpu", callbacks=[callback], logger=False, enable_progress_bar=False, default_root_dir=Path.cwd()
    )
    loaders = [DataLoader(pairs(inputs=FEATURES), batch_size=7) for _ in range(2)]
    getattr(trainer, fn)(Evaluated(), loaders, verbose=False)
    for index in range(2):
        assert f"interactions/dataloader_idx_{index}/J_centroid" in trainer.callback_metrics

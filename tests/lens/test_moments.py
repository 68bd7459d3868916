"""When a watch looks, and what it keeps: fits after fits, evaluations, processes."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lit_papers.callbacks import CentralPath, InteractionStrength, NeuralCollapse
from lit_papers.interactions.players import FeaturePlayers
from lit_papers.lens import NotApplicable
from lit_papers.neural_collapse.lens import CollapseLens
from tests.lens.projects import BATCH, INPUTS, Gathering, LowRank, Plain, blobs
from tests.lens.test_projects import nc1_of

pytestmark = pytest.mark.filterwarnings("ignore:measuring on the dataset of the training loader")


def trainer(folder: Path, callbacks: list[Callback], **options: Any) -> Trainer:
    quiet: dict[str, Any] = {
        "logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False,
    }  # fmt: skip
    return Trainer(
        accelerator="cpu", default_root_dir=folder, callbacks=callbacks, **{"max_epochs": 2, **quiet, **options}
    )


def loader(seed: int = 0) -> DataLoader[Any]:
    return DataLoader(blobs(seed=seed), batch_size=BATCH)


# -- fits ---------------------------------------------------------------------------------------------------------


def test_a_fit_of_another_module_begins_anew(tmp_path: Path) -> None:
    callback = NeuralCollapse()
    for fold in (0, 1):
        module = Plain()
        trainer(tmp_path, [callback]).fit(module, loader(fold))
        assert [(entry["fit"], entry["epoch"]) for entry in callback.history] == [(0, 1), (0, 2)]
        assert callback.history[-1]["nc1"] == pytest.approx(nc1_of(module, *blobs(seed=fold).tensors), rel=1e-4)


def test_a_fit_of_the_same_module_goes_on(tmp_path: Path) -> None:
    callback, module = NeuralCollapse(), Plain()
    for task in (0, 1):
        trainer(tmp_path, [callback]).fit(module, loader(task))
    assert [(entry["fit"], entry["epoch"]) for entry in callback.history] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert callback.history[-1]["nc1"] == pytest.approx(nc1_of(module, *blobs(seed=1).tensors), rel=1e-4)


def test_a_copy_of_a_callback_measures_anew(tmp_path: Path) -> None:
    first = NeuralCollapse()
    trainer(tmp_path, [first]).fit(Plain(), loader())
    second, module = copy.deepcopy(first), Plain()
    trainer(tmp_path, [second]).fit(module, loader(1))
    assert [(entry["fit"], entry["epoch"]) for entry in second.history] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert second.history[-1]["nc1"] == pytest.approx(nc1_of(module, *blobs(seed=1).tensors), rel=1e-4)


def test_a_generator_is_refused_before_it_loses_a_batch(tmp_path: Path) -> None:
    module = Plain()
    with pytest.raises(NotApplicable, match=r"gives its batches once.*`dataloader`"):
        trainer(tmp_path, [NeuralCollapse()]).fit(module, (batch for batch in loader()))
    assert module.steps == 0


def test_a_named_head_has_the_targets_of_no_other(tmp_path: Path) -> None:
    """Its output is scaled before the loss, so that it is not recognised there."""

    class TwoTasks(Plain):
        def __init__(self, other: float) -> None:
            super().__init__()
            self.aux, self.other = torch.nn.Linear(*self.head.weight.shape[::-1]), other

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            h = self.body(batch[0])
            losses = torch.nn.functional.cross_entropy
            return losses(self.other * self.head(h), batch[1]) + losses(3 * self.aux(h), batch[2])

    x, y = blobs().tensors
    others = torch.arange(len(y)) // 2 % 3
    data = DataLoader(TensorDataset(x, y, others), batch_size=BATCH)
    module, callback = TwoTasks(1.0), NeuralCollapse(classifier="aux")
    trainer(tmp_path, [callback]).fit(module, data)
    assert callback.history[-1]["nc1"] == pytest.approx(nc1_of(module, x, others), rel=1e-4)
    with pytest.raises(NotApplicable, match=r"several targets.*`call`"):
        trainer(tmp_path, [NeuralCollapse(classifier="aux")]).fit(TwoTasks(2.0), data)


def test_a_named_layer_beside_an_adapter_is_told_apart_from_the_network(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="decides otherwise than the output of classifier='head.base'"):
        trainer(tmp_path, [NeuralCollapse(classifier="head.base")]).fit(LowRank(), loader())


def test_two_callbacks_of_one_name_are_refused(tmp_path: Path) -> None:
    module = Plain()
    with pytest.raises(NotApplicable, match="give each a `name`"):
        trainer(tmp_path, [NeuralCollapse(name="train"), CentralPath(name="train")]).fit(module, loader())
    assert module.steps == 0


def test_a_trainer_that_goes_on(tmp_path: Path) -> None:
    callback, module = NeuralCollapse(epochs=2), Plain()
    run = trainer(tmp_path, [callback])
    run.fit(module, loader())
    run.fit_loop.max_epochs = 4
    run.fit(module, loader())
    assert [entry["epoch"] for entry in callback.history] == [2, 4]


def test_the_untrained_network_is_measured_where_asked(tmp_path: Path) -> None:
    callback, module = NeuralCollapse(epochs=[0, 2]), Plain()
    untrained = nc1_of(module, *blobs().tensors)
    trainer(tmp_path, [callback]).fit(module.train(), loader())
    assert [(entry["epoch"], entry["step"]) for entry in callback.history] == [(0, 0), (2, 12)]
    assert callback.history[0]["nc1"] == pytest.approx(untrained, rel=1e-4)


def test_a_checkpoint_may_watch_a_measurement(tmp_path: Path) -> None:
    class Validated(Plain):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    saver = ModelCheckpoint(tmp_path, monitor="neural_collapse/nc1", save_top_k=1)
    run = trainer(tmp_path, [NeuralCollapse(), saver], enable_checkpointing=True)
    run.fit(Validated(), loader(), loader(1))
    assert saver.best_model_score == run.callback_metrics["neural_collapse/nc1"]


@pytest.mark.parametrize("loss", ["cross_entropy", "mse_loss"])
def test_labels_that_the_step_renumbers_are_those_of_the_step(loss: str, tmp_path: Path) -> None:
    class Renumbers(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.number = torch.tensor([2, 0, 1])

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            targets = self.number[batch[1]]
            if loss == "mse_loss":
                return torch.nn.functional.mse_loss(self(batch[0]), torch.eye(3)[targets])
            return torch.nn.functional.cross_entropy(self(batch[0]), targets)

    module, callback = Renumbers(), NeuralCollapse()
    trainer(tmp_path, [callback], max_epochs=8).fit(module, loader())
    x, y = blobs().tensors
    wrong = (module.eval()(x).argmax(1) != module.number[y]).double().mean().item()
    assert wrong < 0.5
    assert callback.history[-1]["train_error"] == pytest.approx(wrong)


def test_labels_that_the_step_renumbers_are_not_those_of_forward(tmp_path: Path) -> None:
    class Sharpens(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return torch.nn.functional.cross_entropy(self(batch[0]) / 0.5, torch.tensor([2, 0, 1])[batch[1]])

    with pytest.raises(NotApplicable, match=r"training_step renumbers.*Pass `call`"):
        trainer(tmp_path, [NeuralCollapse()]).fit(Sharpens(), loader())


@pytest.mark.parametrize("fn", ["validate", "test"])
def test_a_checkpoint_is_evaluated(fn: str, tmp_path: Path) -> None:
    class Evaluated(Plain):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("loss", torch.nn.functional.cross_entropy(self(batch[0]), batch[1]))

        test_step = validation_step

    module, first = Evaluated(), trainer(tmp_path, [])
    first.fit(module, loader())
    first.save_checkpoint(tmp_path / "net.ckpt")
    for given in (None, loader(1)):
        callback = NeuralCollapse(given)
        run = trainer(tmp_path, [callback])
        getattr(run, fn)(Evaluated(), loader(1), ckpt_path=tmp_path / "net.ckpt", verbose=False)
        right = pytest.approx(nc1_of(module, *blobs(seed=1).tensors), rel=1e-4)
        assert run.callback_metrics["neural_collapse/nc1"].item() == right
        assert callback.evaluated["nc1"] == right
        assert callback.history == []


def test_a_test_set_without_labels_is_tested_after_a_fit(tmp_path: Path) -> None:
    class Tested(Plain):
        def test_step(self, *arguments: Any) -> None:
            self.log("size", self(arguments[0][0]).abs().mean())

    unlabelled = DataLoader(TensorDataset(blobs().tensors[0]), batch_size=BATCH)
    module, callback = Tested(), NeuralCollapse()
    with pytest.raises(NotApplicable, match="pass `unpack`"):  # attached for this evaluation alone
        trainer(tmp_path, [NeuralCollapse()]).test(module, unlabelled, verbose=False)
    run = trainer(tmp_path, [callback])
    run.fit(module, loader())
    with pytest.warns(UserWarning, match="nothing measured in test: .*pass `unpack`"):
        (logged,) = run.test(module, unlabelled, verbose=False)
    assert logged.keys() == {"size"}
    with pytest.warns(UserWarning, match="nothing measured in test"):
        run.test(module, [loader(1), unlabelled], verbose=False)
    assert callback.evaluated["dataloader_idx_0/nc1"] == pytest.approx(nc1_of(module, *blobs(seed=1).tensors), rel=1e-4)


@pytest.mark.parametrize("fn", ["validate", "test"])
def test_the_evaluation_may_be_limited(fn: str, tmp_path: Path) -> None:
    class Evaluated(Plain):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

        test_step = validation_step

    callback, module = NeuralCollapse(), Evaluated()
    run = trainer(tmp_path, [callback], limit_val_batches=3, limit_test_batches=3)
    getattr(run, fn)(module, loader(1), verbose=False)
    rows = [tensor[: 3 * BATCH] for tensor in blobs(seed=1).tensors]
    assert callback.evaluated["nc1"] == pytest.approx(nc1_of(module, *rows), rel=1e-4)


def test_the_old_name_of_an_argument_tells_the_new_one() -> None:
    with pytest.raises(ValueError, match=r"`every_n_epochs` is called `epochs` now: pass epochs=3"):
        InteractionStrength(FeaturePlayers(INPUTS), every_n_epochs=3)


def test_a_refusal_comes_before_the_first_step(tmp_path: Path) -> None:
    module = Plain()
    with pytest.raises(NotApplicable, match="`dataloader`"):
        trainer(tmp_path, [NeuralCollapse()]).fit(module, {"a": loader(), "b": loader()})
    assert module.steps == 0
    with pytest.raises(ValueError, match="max_batches must be at least 1"):
        NeuralCollapse(max_batches=0)
    with pytest.raises(ValueError, match="name must be"):
        NeuralCollapse(name="")


# -- processes ----------------------------------------------------------------------------------------------------


class Numbered(IterableDataset[Any]):
    """A stream that shares itself out, unevenly: the first process gets two thirds."""

    def __iter__(self) -> Iterator[Any]:
        together = torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if together else 0
        x, y = blobs().tensors
        for index in range(len(y)):
            if not together or (index % 3 == 2) == bool(rank):
                yield x[index], y[index]


class Told(Callback):
    """Brings the history out of processes that end with the fit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = [callback.history for callback in trainer.callbacks if hasattr(callback, "history")]
        right = nc1_of(pl_module, *blobs().tensors)
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps([right, *found]))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(Numbered(), batch_size=BATCH),
        lambda: DataLoader(blobs(), batch_size=BATCH, shuffle=True),
        lambda: DataLoader(blobs(), batch_size=7),  # 6 batches: the last of one sample
        lambda: DataLoader(blobs(), batch_size=13),  # 3 batches: one process has none for the second round
    ],
    ids=["stream", "shuffled", "small last batch", "unequal batches"],
)
def test_two_processes_say_what_is_right(make: Any, tmp_path: Path) -> None:
    seed_everything(3, verbose=False)
    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork")
    callbacks: list[Callback] = [NeuralCollapse(), CentralPath(epochs=2, name="path"), Told(tmp_path)]
    streamed = isinstance(make().dataset, Numbered)
    run = trainer(
        tmp_path, callbacks, devices=2, strategy=strategy, precision="64-true", max_epochs=1,
        limit_train_batches=2 if streamed else 1.0,  # training itself needs equal numbers of steps
    )  # fmt: skip
    run.fit(Gathering().double(), make())
    (right, *first), (_, *second) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert not any("reason" in entry for entry in first[0])
    if not streamed:
        assert first[0][-1]["nc1"] == pytest.approx(right, rel=1e-6)


# -- without a trainer --------------------------------------------------------------------------------------------


def test_a_lens_needs_no_trainer() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(INPUTS, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).train()
    numbers = CollapseLens()(network, loader())
    assert network.training
    module = Plain()
    module.body, module.head = network[:2], network[2]
    assert numbers["nc1"] == pytest.approx(nc1_of(module, *blobs().tensors), rel=1e-5)
    in_place = CollapseLens()(network.train(), loader(), copy=False)
    assert network.training
    assert in_place == numbers
    by_call = CollapseLens()(module, loader(), call=lambda net, batch: (net(batch[0]), batch[1]))
    assert by_call == pytest.approx(numbers)
    with pytest.raises(NotApplicable, match="copy=False looks by `call` or `forward`"):
        CollapseLens()(module, loader(), copy=False)

"""The learners in a real Trainer: what they train, what they refuse, what they log."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from lit_papers.callbacks import Forgetting
from lit_papers.continual import SSLTransform, SupervisedContinual, UnsupervisedContinual
from lit_papers.continual.evaluation import (
    few_shot_accuracy,
    knn_accuracy,
    knn_accuracy_seen,
    like,
    linear_probe_accuracy,
    out_of_distribution_accuracy,
)
from lit_papers.continual.knn import KNNClassifier
from lit_papers.continual.methods import (
    AGEM,
    DER,
    ER,
    EWC,
    GSS,
    LUMP,
    PNN,
    SI,
    CaSSLe,
    DERpp,
    Finetune,
    ICaRL,
    LwF,
    Method,
)
from lit_papers.continual.methods.base import evaluating
from lit_papers.datamodules import TaskSequence
from tests.continual.small import pair, stream, supervised, trainer, transform, unsupervised


def trained(module: Any, folder: Path, **options: Any) -> Any:
    data = options.pop("data", None) or stream()
    trainer(folder, **options).fit(module, datamodule=data)
    return module


def weights(module: LightningModule) -> dict[str, torch.Tensor]:
    return {name: value for name, value in module.state_dict().items() if not name.startswith("method")}


def same(first: LightningModule, second: LightningModule) -> bool:
    pairs = zip(weights(first).values(), weights(second).values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("objective", ["simsiam", "barlow_twins"])
def test_lump_of_now_alone_is_finetuning(objective: str, tmp_path: Path) -> None:
    """Bit by bit, over 26 steps of three tasks, whatever the memory draws."""
    plain = trained(unsupervised(Finetune(), objective=objective), tmp_path)
    lump = trained(unsupervised(LUMP(weight=1.0, buffer_size=10), objective=objective), tmp_path)
    mixed = trained(unsupervised(LUMP(buffer_size=10), objective=objective), tmp_path)
    assert len(lump.method.buffer) == 10
    assert same(plain, lump)
    assert not same(plain, mixed)


def test_labels_are_never_read_without_them(tmp_path: Path) -> None:
    class Wrong(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
            batch[1].fill_(-7)

    plain = trained(unsupervised(LUMP()), tmp_path)
    spoilt = unsupervised(LUMP())
    trainer(tmp_path, [Wrong()]).fit(spoilt, datamodule=stream())
    assert same(plain, spoilt)


@pytest.mark.parametrize(
    "method",
    [Finetune, SI, PNN, DER, LUMP, AGEM, GSS, ER, DERpp, EWC, LwF, ICaRL, CaSSLe],
    ids=lambda method: method.__name__,
)
@pytest.mark.parametrize("make", [unsupervised, supervised])
def test_every_method_runs(make: Any, method: type[Method], tmp_path: Path) -> None:
    module, matrix = make(method()), Forgetting()
    if (method.needs_labels and make is unsupervised) or (method.needs_no_labels and make is supervised):
        with pytest.raises(MisconfigurationException, match=method.__name__):
            trainer(tmp_path).fit(module, datamodule=stream())
        return
    run = trainer(tmp_path, [matrix])
    run.fit(module, datamodule=stream())
    assert not matrix.matrix.isnan().any()
    assert (matrix.matrix >= 0).all()
    assert (matrix.matrix <= 1).all()
    logged = set(run.callback_metrics)
    assert {"train/loss", "val/knn_accuracy/dataloader_idx_2"} <= logged
    if make is supervised:
        assert {"val/accuracy/dataloader_idx_0", "val/task_accuracy/dataloader_idx_0"} <= logged
    assert ("train/penalty" in logged) == (method in (SI, DER, DERpp, EWC, LwF, CaSSLe))
    assert "val/knn_accuracy_seen/dataloader_idx_2" in logged
    assert ("train/lambda" in logged) == (method is LUMP)
    if hasattr(module.method, "buffer"):
        assert len(module.method.buffer) == {AGEM: 73}.get(method, 146)  # all images, offered once or in each epoch
    if method is PNN:
        assert matrix.forgetting == 0.0
        assert all(matrix.matrix[i:, i].unique().numel() == 1 for i in range(3))
    assert any(
        not torch.equal(a, b) for a, b in zip(weights(module).values(), weights(make(method())).values(), strict=False)
    )


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
@pytest.mark.parametrize("method", [Finetune, EWC])
def test_true_precision(method: type[Method], precision: Any, tmp_path: Path) -> None:
    """Features are float32 where weights are not: head and Fisher information meet both."""
    module, data = supervised(method()), stream()
    run = trainer(tmp_path, precision=precision)
    run.fit(module, datamodule=data)
    logged = run.validate(module, datamodule=data, verbose=False)
    images, labels = (torch.cat(parts) for parts in zip(*data.val_dataloader()[2], strict=True))
    with evaluating(module), torch.no_grad():
        right = module(module.plain(images)).argmax(1) == labels
    assert logged[2]["val/accuracy/dataloader_idx_2"] == pytest.approx(right.float().mean().item())
    if isinstance(module.method, EWC):
        assert min(torch.finfo(value.dtype).bits for value in module.method.fisher.values()) >= 32


def test_multitask_is_data_not_a_method(tmp_path: Path) -> None:
    module, matrix = unsupervised(), Forgetting()
    trainer(tmp_path, [matrix], check_val_every_n_epoch=1).fit(module, datamodule=stream(multitask=True, batch_size=7))
    assert matrix.matrix[:2].isnan().all()
    assert not matrix.matrix[2].isnan().any()
    assert matrix.forgetting == 0


def test_a_foreign_backbone_and_transform(tmp_path: Path) -> None:
    class Half(nn.Module):
        def forward(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
            noise = torch.rand(images.shape, generator=generator) if self.training else 0.5
            return images / 255 - 0.5 + 0.1 * noise

    backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU())
    module = trained(UnsupervisedContinual(LUMP(), backbone, projection_dim=4, transform=Half(), knn_k=3), tmp_path)
    assert module.features(torch.zeros(2, 1, 8, 8)).shape == (2, 9)
    assert module.head.projector.layers[0].in_features == 9


@pytest.mark.filterwarnings("ignore:.*overrides the configure_model")
@pytest.mark.parametrize("name", ["head", "columns", "predictor"])
@pytest.mark.parametrize("kind", [EMAWeightAveraging, StochasticWeightAveraging])
def test_weight_averaging_has_what_is_built_before_training(kind: type[Callback], name: str, tmp_path: Path) -> None:
    """It copies the module before that is set up, and pairs weights by their order."""
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU())
    module = {
        "head": lambda: SupervisedContinual(6, None, flat, transform=transform(), knn_k=3, lr=0.5),
        "columns": lambda: supervised(PNN(), lr=0.5),
        "predictor": lambda: unsupervised(CaSSLe(hidden_dim=4), lr=0.5),
    }[name]()
    validated: list[dict[str, torch.Tensor]] = []

    class Watch(Callback):
        def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
            validated.append({key: value.detach().clone() for key, value in module.named_parameters()})

    average = EMAWeightAveraging(decay=0.5) if kind is EMAWeightAveraging else StochasticWeightAveraging(0.1, 1)
    trainer(tmp_path, [Watch(), average], max_epochs=6).fit(module, datamodule=stream())
    if isinstance(average, StochasticWeightAveraging):
        assert [*dict(average._average_model.named_parameters())] == [*dict(module.named_parameters())]
        return
    torch.testing.assert_close(dict(module.named_parameters()), validated[-1])
    assert any(not torch.equal(validated[0][key], value) for key, value in validated[1].items() if "head" in key)


def test_features_are_those_of_evaluation(tmp_path: Path) -> None:
    module = trained(unsupervised(), tmp_path).train()
    modes = [submodule.training for submodule in module.modules()]
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    found = module.features(images)
    assert torch.equal(found, module.features(images))
    assert not found.requires_grad
    assert modes == [submodule.training for submodule in module.modules()]
    torch.testing.assert_close(found, copy.deepcopy(module).eval().backbone((images / 255 - 0.5) / 0.5))


def test_knn_of_as_many_as_tasks_seen(tmp_path: Path) -> None:
    module = unsupervised(knn_k="tasks_seen")
    seen: list[int] = []

    class Look(Callback):
        def on_validation_batch_end(self, trainer: Trainer, module: Any, *_: Any, dataloader_idx: int = 0) -> None:
            seen.extend(knn.k for knn in module._classifiers.values())

    trainer(tmp_path, [Look()]).fit(module, datamodule=stream())
    assert sorted(set(seen)) == [1, 2, 3]


class Break(Callback):
    """Makes the loss NaN at one step."""

    def __init__(self, epoch: int, step: int) -> None:
        self.at = (epoch, step)
        self.before: dict[str, Any] = {}

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == self.at:
            module.method.loss = lambda learner, step: next(learner.parameters()).sum() * torch.nan
            self.before = copy.deepcopy(module.state_dict())


SAVED = {
    "LUMP": lambda: unsupervised(LUMP(buffer_size=10)),
    "PNN": lambda: unsupervised(PNN()),
    "CaSSLe": lambda: unsupervised(CaSSLe(hidden_dim=8)),
    "ICaRL": lambda: supervised(ICaRL(buffer_size=12)),
    "a head built in setup": lambda: supervised(LwF(), backbone=nn.Sequential(nn.Flatten(), nn.Linear(64, 9))),
}


@pytest.mark.parametrize("name", SAVED)
def test_a_trained_network_loads_without_a_trainer(name: str, tmp_path: Path) -> None:
    module = SAVED[name]()
    run = trainer(tmp_path)
    run.fit(module, datamodule=stream(epochs_per_task=1))
    run.save_checkpoint(tmp_path / "last.ckpt")
    parts = SAVED[name]()
    arguments: dict[str, Any] = {name: getattr(parts, name) for name in ("method", "backbone", "transform", "knn_k")}
    if isinstance(module, SupervisedContinual):
        arguments["num_classes"] = 6
    else:
        arguments["projection_dim"] = 8
    loaded = type(module).load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True, **arguments)
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    for task in (0, None):
        assert torch.equal(loaded.features(images, task), module.features(images, task))
    assert (loaded.tasks.task, loaded.tasks.running) == (2, False)
    results = [trainer(tmp_path).validate(net, datamodule=stream(), verbose=False) for net in (module, loaded)]
    assert results[0] == results[1]


def test_a_second_fit_is_not_inert(tmp_path: Path) -> None:
    """The same stream once more: tasks begin again, on top of what the method knows."""
    si = trained(unsupervised(SI(strength=0.5)), tmp_path, data=stream(epochs_per_task=1))
    before = {name: value.clone() for name, value in si.method.importance.items()}
    trained(si, tmp_path, data=stream(epochs_per_task=1))
    assert any(not torch.equal(value, before[name]) for name, value in si.method.importance.items())
    agem = trained(supervised(AGEM(buffer_size=30)), tmp_path, data=stream(epochs_per_task=1))
    assert agem.method.buffer.seen == 30
    trained(agem, tmp_path, data=stream(epochs_per_task=1))
    assert agem.method.buffer.seen == 60


def test_one_fit_for_each_task_is_one_fit_for_all(tmp_path: Path) -> None:
    """Of plain SGD, whose state a new fit would lose; keys of random numbers count epochs of a fit, hence no views."""

    class Plain(nn.Module):
        def forward(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
            return images / 255

    def make() -> Any:
        return supervised(EWC(images=8), transform=Plain(), momentum=0.0)

    options: dict[str, Any] = {"epochs_per_task": 1, "batch_size": 40}  # a batch is a task: its order does not matter
    whole = trained(make(), tmp_path, data=stream(**options))
    module, data = make(), stream(fit_per_task=True, **options)
    heard: list[str] = []
    module.tasks.listen(lambda task: heard.append(f"begin {task}"), lambda task: heard.append(f"end {task}"))
    for _ in range(3):
        trainer(tmp_path).fit(module, datamodule=data)
    assert heard == ["begin 0", "end 0", "begin 1", "end 1", "begin 2", "end 2"]
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(module)[name], value, rtol=1e-4, atol=1e-5)
    for name, value in whole.method.fisher.items():
        torch.testing.assert_close(module.method.fisher[name], value, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("make", [unsupervised, supervised])
def test_accuracy_over_all_classes_seen(make: Any, tmp_path: Path) -> None:
    """What is logged, a function and the classifier by hand agree; the probe is scikit-learn's, within a point."""
    linear = pytest.importorskip("sklearn.linear_model")
    module, data = make(), stream(test_per_task=None)
    run = trainer(tmp_path)
    run.fit(module, datamodule=data)
    (train, test) = pair()
    knn = KNNClassifier(k=5)
    knn.update(module.features(train.tensors[0]), train.tensors[1])
    truth = test.tensors[1]
    found = (knn.predict(module.features(test.tensors[0])) == truth).float()
    for task in range(3):
        mine = torch.isin(truth, torch.tensor(data.classes(task)))
        logged = run.callback_metrics[f"val/knn_accuracy_seen/dataloader_idx_{task}"]
        assert logged.item() == pytest.approx(found[mine].mean().item())
    assert knn_accuracy_seen(module, data) == pytest.approx(found.mean().item())
    x = module.features(train.tensors[0]).double()
    x = ((x - x.mean(0)) / x.std(0, correction=0).clamp_min(1e-9)).numpy()
    theirs = linear.LogisticRegression(max_iter=1000).fit(x, truth.numpy()).score(x, truth.numpy())
    assert linear_probe_accuracy(module, data) == pytest.approx(theirs, abs=0.01)
    few = few_shot_accuracy(module, data, shots=3, trials=8)
    assert 0 < few.accuracy <= 1
    assert 0 <= few.error < 0.1
    with pytest.raises(ValueError, match="`shots`=10"):
        few_shot_accuracy(module, data, shots=10)


@pytest.mark.parametrize("method", [SI, DER])
def test_a_nan_loss_changes_nothing(method: type[Method], tmp_path: Path) -> None:
    module, breaks = unsupervised(method()), Break(epoch=1, step=2)
    with pytest.raises(FloatingPointError, match="task 0, epoch 1, step 2"):
        trainer(tmp_path, [breaks]).fit(module, datamodule=stream())
    found = module.state_dict()
    for name, value in breaks.before.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(found[name], value), name
    assert str(found["method._extra_state"] if method is SI else len(module.method.buffer))
    if method is SI:
        for name, state in breaks.before["method._extra_state"].items():
            assert all(torch.equal(found["method._extra_state"][name][key], value) for key, value in state.items())
    else:
        assert module.method.buffer.seen == breaks.before["method.buffer._extra_state"]["seen"]


def test_refusals(tmp_path: Path) -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(4, 1), torch.zeros(4)))
    with pytest.raises(MisconfigurationException, match="`task_of`"):
        trainer(tmp_path).fit(unsupervised(), loader)
    with pytest.raises(MisconfigurationException, match="accumulate_grad_batches"):
        trainer(tmp_path, accumulate_grad_batches=2).fit(unsupervised(), datamodule=stream())
    with pytest.raises(TypeError, match="stages"):
        trainer(tmp_path).fit(
            unsupervised(PNN(), backbone=nn.Sequential(nn.Flatten(), nn.Linear(64, 4))), datamodule=stream()
        )
    few = SupervisedContinual(4, backbone=supervised().backbone, transform=SSLTransform(8, mean=(0.0,), std=(1.0,)))
    with pytest.raises(ValueError, match="`num_classes`=4, but the tasks have labels 0 to 5"):
        trainer(tmp_path).fit(few, datamodule=stream())
    for wrong in ({"lr": 0.0}, {"objective": "other"}, {"projection_dim": 0}, {"knn_k": 0}, {"seed": -1},
                  {"knn_k": "all"}, {"knn_temperature": 0.0}):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(wrong)).removeprefix("knn_")):
            unsupervised(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`num_classes`"):
        SupervisedContinual(1)


def test_a_buffer_smaller_than_a_batch(tmp_path: Path) -> None:
    for module in (unsupervised(LUMP(buffer_size=2)), unsupervised(DER(buffer_size=2)), supervised(GSS(buffer_size=2))):
        trained(module, tmp_path)
        assert len(module.method.buffer) == 2


def test_short_runs(tmp_path: Path) -> None:
    trained(unsupervised(LUMP()), tmp_path, fast_dev_run=True)
    trained(unsupervised(DER()), tmp_path, precision="bf16-mixed")


def test_si_with_clipped_gradients_counts_the_task_alone(tmp_path: Path) -> None:
    module = trained(unsupervised(SI(strength=1.0)), tmp_path, gradient_clip_val=1.0, gradient_clip_algorithm="value")
    assert set(module.method.importance) == {name for name, _ in module.backbone.named_parameters()}
    assert all(value.isfinite().all() for value in module.method.importance.values())


class WriteOut(Callback):
    """Brings buffers and the matrix out of processes that end with the fit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: Trainer, module: Any) -> None:
        self.folder.mkdir(exist_ok=True)
        matrix = next(callback for callback in trainer.callbacks if isinstance(callback, Forgetting)).matrix
        state = {"buffer": dict(module.method.buffer.data), "matrix": matrix, "weights": weights(module)}
        torch.save(state, self.folder / f"{trainer.global_rank}.pt")


@pytest.mark.parametrize("name", ["LUMP", "DER", "AGEM"])
def test_two_processes_keep_the_same_memory(name: str, tmp_path: Path) -> None:
    """The images of one process' buffer, as the global batches are the same; and one model on both."""
    for processes in (1, 2):
        method = {"LUMP": LUMP, "DER": DER, "AGEM": AGEM}[name](buffer_size=12)
        make = supervised if name == "AGEM" else unsupervised
        strategy = DDPStrategy(process_group_backend="gloo", start_method="fork") if processes == 2 else "auto"
        run = trainer(
            tmp_path, [Forgetting(), WriteOut(tmp_path / str(processes))], devices=processes, strategy=strategy
        )
        run.fit(make(method), datamodule=stream(batch_size=12 // processes, train_per_task=20))
    one, first, second = (torch.load(tmp_path / name) for name in ("1/0.pt", "2/0.pt", "2/1.pt"))
    assert torch.equal(one["buffer"]["images"], first["buffer"]["images"])
    for key, value in first["buffer"].items():
        assert torch.equal(value, second["buffer"][key])
    for key, value in first["weights"].items():
        if "running" not in key:
            assert torch.equal(value, second["weights"][key]), key
    assert torch.equal(first["matrix"], second["matrix"])


def test_gss_refuses_several_processes(tmp_path: Path) -> None:
    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork")
    with pytest.raises(Exception, match="GSS selects its memory on one process"):
        trainer(tmp_path, devices=2, strategy=strategy).fit(supervised(GSS()), datamodule=stream())


def test_other_data_sets_are_judged_by_neighbours(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    module = trained(unsupervised(), tmp_path).eval()
    digits = TaskSequence("digits", num_tasks=1)
    digits.setup()
    found = out_of_distribution_accuracy(module, digits, (1, 8, 8))
    assert 0.3 < found <= 1
    (queries,) = digits.test_dataloader()
    assert found == knn_accuracy(module, digits.memory_dataloader(0), queries)
    with pytest.raises(ValueError, match="no images"):
        knn_accuracy(module, queries, [])
    assert like(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), (1, 16, 16)).shape == (1, 1, 16, 16)
    with pytest.raises(ValueError, match="4 channels"):
        like(torch.zeros(1, 4, 8, 8), (3, 8, 8))


@pytest.mark.parametrize("method", [Finetune, SI, PNN, DER], ids=lambda method: method.__name__)
def test_methods_with_the_other_objective(method: type[Method], tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.fit(unsupervised(method(), objective="barlow_twins"), datamodule=stream(epochs_per_task=1))
    assert run.callback_metrics["train/loss"].item() >= 0


def test_validating_first_gives_the_baseline(tmp_path: Path) -> None:
    module, matrix = unsupervised(), Forgetting()
    run = trainer(tmp_path, [matrix])
    run.validate(module, datamodule=stream(), verbose=False)
    assert len(matrix.baseline) == 3
    run.fit(module, datamodule=stream())
    assert matrix.forward_transfer == pytest.approx(
        sum(matrix.matrix[i - 1, i].item() - matrix.baseline[i] for i in (1, 2)) / 2, abs=1e-6
    )


class SameEverywhere(Callback):
    """Fails the fit of a process whose weights are not those of the first."""

    def on_fit_end(self, trainer: Trainer, module: Any) -> None:
        for name, weight in module.named_parameters():
            first = weight.detach().clone()
            torch.distributed.broadcast(first, src=0)
            assert torch.equal(first, weight), name


@pytest.mark.parametrize("method", [SI, PNN], ids=lambda method: method.__name__)
def test_other_methods_train_on_two_processes(method: type[Method], tmp_path: Path) -> None:
    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork", find_unused_parameters=method is PNN)
    run = trainer(tmp_path, [SameEverywhere()], devices=2, strategy=strategy)
    run.fit(unsupervised(method()), datamodule=stream(train_per_task=20))

"""The LightningModules through the real Trainer, in one process, against the recursion they stand for."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_papers.datamodules import Components, Digits, Sharded
from lit_papers.local_sgd.module import LocalSGDClassifier, ShufflingQuadratic
from lit_papers.local_sgd.samplers import RandomReshufflingSampler, WithReplacementSampler
from lit_papers.local_sgd.theory import HeterogeneousQuadratic, Quadratic, SkewedQuadratic, run_epoch


def trainer(**options: Any) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", enable_model_summary=False, **{**quiet, **options})


@pytest.mark.parametrize("sampling", ["reshuffle", "with_replacement"])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("function", [SkewedQuadratic(), Quadratic(mu=0.7)], ids=["skewed", "quadratic"])
def test_one_process_takes_the_steps_of_the_recursion(function: Any, batch_size: int, sampling: Any) -> None:
    step, epochs, components = 0.02, 5, 16
    module = ShufflingQuadratic(function, lr=step * batch_size, start=0.4)
    fit = trainer(max_epochs=epochs)
    fit.fit(module, datamodule=Components(components, batch_size, sampling, seed=3))

    x = torch.tensor([0.4], dtype=torch.float64)
    kind = RandomReshufflingSampler if sampling == "reshuffle" else WithReplacementSampler
    sampler = kind(range(components), 1, 0, seed=3, partition=False)
    orders = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        z = function.components(components, 1)[:, orders[-1]]  # (M, N), M = 1
        x = run_epoch(function, "minibatch", x, z[None], sync_every=batch_size, step_size=step)
    assert orders[0] != orders[1]
    assert abs(module.x.item() - x.item()) < 1e-12
    logged = fit.callback_metrics["local_sgd/suboptimality"].item()
    assert logged == pytest.approx(function.suboptimality(x).item(), rel=1e-6)


def test_the_parameter_is_in_double_precision() -> None:
    module = ShufflingQuadratic(SkewedQuadratic(), lr=0.1, start=1 / 3)
    assert module.x.dtype == torch.float64
    assert module.x.item() == 1 / 3
    assert "function" not in module.hparams


def test_a_checkpoint_brings_the_parameter_back() -> None:
    fit = trainer(max_epochs=1)
    module = ShufflingQuadratic(SkewedQuadratic(), lr=0.1, start=1.0)
    fit.fit(module, datamodule=Components(8))
    fit.save_checkpoint("quadratic.ckpt")
    again = ShufflingQuadratic.load_from_checkpoint("quadratic.ckpt", function=SkewedQuadratic(), weights_only=True)
    assert torch.equal(again.x, module.x)
    assert again.lr == 0.1


def test_machines_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`machines` must be a multiple of 2.* got 1"):
        trainer(max_epochs=1).fit(ShufflingQuadratic(HeterogeneousQuadratic(), lr=0.1), datamodule=Components(8))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ShufflingQuadratic(Quadratic(), lr=0.0), "`lr` must be > 0, got 0.0"),
        (lambda: LocalSGDClassifier(nn.Linear(2, 2), lr=-1.0), "`lr` must be > 0, got -1.0"),
        (lambda: LocalSGDClassifier(nn.Linear(2, 2), 0.1, momentum=1.0), r"`momentum` must be in \[0, 1\), got 1.0"),
        (lambda: LocalSGDClassifier(nn.Linear(2, 2), 0.1, weight_decay=-1.0), "`weight_decay` must be >= 0, got -1.0"),
    ],
)
def test_bad_arguments_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_classifier_steps_like_sgd() -> None:
    network = nn.Linear(3, 4)
    reference = nn.Linear(3, 4)
    reference.load_state_dict(network.state_dict())
    inputs, targets = torch.randn(8, 3), torch.arange(8) % 4
    module = LocalSGDClassifier(network, lr=0.5, momentum=0.9, weight_decay=0.01)
    trainer(max_epochs=3).fit(module, DataLoader(TensorDataset(inputs, targets), batch_size=8))
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.5, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(reference(inputs), targets).backward()
        optimizer.step()
    torch.testing.assert_close(network.weight, reference.weight)


def test_classifier_learns_digits_and_counts_right() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    data = Sharded(Digits())
    module, fit = LocalSGDClassifier(network, lr=0.1, momentum=0.9), trainer(max_epochs=5)
    fit.fit(module, datamodule=data)
    metrics = fit.callback_metrics
    assert {"train/loss", "val/loss", "val/accuracy"} <= metrics.keys()
    images, targets = next(iter(DataLoader(data.val_set, batch_size=397)))
    with torch.no_grad():
        right = (network.eval()(images).argmax(1) == targets).double().mean().item()
    assert metrics["val/accuracy"].item() == pytest.approx(right, abs=1e-6)
    assert right > 0.9
    (tested,) = fit.test(module, datamodule=data, verbose=False)
    assert tested["test/accuracy"] == pytest.approx(right, abs=1e-6)
    predicted = torch.cat(fit.predict(module, datamodule=data))
    assert (predicted == targets).double().mean().item() == pytest.approx(right, abs=1e-6)
    fit.save_checkpoint("digits.ckpt")
    again = LocalSGDClassifier.load_from_checkpoint("digits.ckpt", model=network, weights_only=True)
    assert again.momentum == 0.9

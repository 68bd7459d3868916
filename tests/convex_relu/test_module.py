"""The network that is trained with gradients, in the units of the convex program."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lit_papers.callbacks import ConvexGap
from lit_papers.convex_relu import TwoLayerReLU
from lit_papers.convex_relu.networks import objective
from tests.convex_relu.small import load, normal, solved


def trainer(folder: Path, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {"max_epochs": 3, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder}
    return Trainer(**{**defaults, **quiet, **options})


def loader(samples: int = 12, batch_size: int = 12, column: bool = False, signs: bool = False) -> DataLoader[Any]:
    y = normal(samples, seed=1).float()
    y = y.sign() if signs else y
    return DataLoader(TensorDataset(normal(samples, 3).float(), y[:, None] if column else y), batch_size=batch_size)


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_the_full_batch_loss_is_the_objective_over_n(loss: Any, column: bool, tmp_path: Path) -> None:
    seed_everything(0)
    module = TwoLayerReLU(3, 5, beta=0.7, loss=loss, optimizer="sgd", lr=1e-30)
    data = loader(column=column, signs=loss == "logistic")
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(module, data)
    x, y = data.dataset.tensors  # type: ignore[attr-defined]
    expected = objective(x, y.reshape(-1), module.hidden.weight, module.output.weight[0], 0.7, loss=loss) / 12
    assert float(fit.callback_metrics["train/loss"]) == pytest.approx(expected.item(), rel=1e-6)
    # and the penalties of batches add up to one
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(module, loader(batch_size=4, signs=loss == "logistic"))
    assert float(fit.callback_metrics["train/loss"]) == pytest.approx(expected.item(), rel=1e-6)


def test_the_rate_falls_to_zero_over_the_run(tmp_path: Path) -> None:
    for options in ({"max_epochs": 4}, {"max_epochs": -1, "max_steps": 12}):
        module = TwoLayerReLU(3, 5, beta=0.1)
        fit = trainer(tmp_path, **options)
        fit.fit(module, loader(batch_size=4))
        assert fit.global_step == 12
        assert fit.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
        assert fit.optimizers[0].param_groups[0]["weight_decay"] == 0


def test_from_solution(tmp_path: Path) -> None:
    problem = load("gauss_n10_d3")
    x, y, beta, solution = solved(problem)
    module = TwoLayerReLU.from_solution(solution, num_neurons=7, lr=0.5)
    assert module.hparams["lr"] == 0.5
    assert (module.beta, module.loss) == (beta, "squared")
    reached = objective(x, y, module.hidden.weight.double(), module.output.weight[0].double(), beta)
    assert float(reached) == pytest.approx(problem["objective"], rel=1e-6)
    assert TwoLayerReLU.from_solution(solution).hidden.out_features == 4
    with pytest.raises(ValueError, match="num_neurons=3"):
        TwoLayerReLU.from_solution(solution, num_neurons=3)
    zero = solved(load("beta_above_max"))[3]
    assert TwoLayerReLU.from_solution(zero)(x.float()).shape == (10,)


def test_evaluation_logs(tmp_path: Path) -> None:
    module = TwoLayerReLU(2, 2, beta=0.1, loss="logistic")
    with torch.no_grad():
        module.hidden.weight.copy_(torch.eye(2))
        module.output.weight.copy_(torch.tensor([[1.0, -1.0]]))
    x, y = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0], [0.0, 5.0]]), torch.tensor([1.0, -1.0, 1.0, 1.0])
    data = DataLoader(TensorDataset(x, y), batch_size=2)
    (logged,) = trainer(tmp_path).validate(module, data, verbose=False)
    assert logged["val/accuracy"] == 0.75
    expected = torch.nn.functional.softplus(-y * torch.tensor([2.0, -1.0, 2.0, -5.0])).mean()
    assert logged["val/loss"] == pytest.approx(float(expected))
    (tested,) = trainer(tmp_path).test(module, data, verbose=False)
    assert tested["test/accuracy"] == 0.75
    predicted = trainer(tmp_path).predict(module, data)
    assert torch.cat(predicted).tolist() == [2.0, -1.0, 2.0, -5.0]  # type: ignore[arg-type]


def test_resumed_training_is_the_uninterrupted_one(tmp_path: Path) -> None:
    def fitted(epochs: int, checkpoint: Path | None = None) -> Trainer:
        seed_everything(3)
        fit = trainer(tmp_path, max_epochs=epochs, enable_checkpointing=True)
        # the schedule is over four epochs in both
        module = TwoLayerReLU(3, 5, beta=0.1)
        module.configure_optimizers = lambda: torch.optim.Adam(module.parameters(), lr=0.01)  # type: ignore[method-assign]
        fit.fit(module, loader(batch_size=4), ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        return fit

    whole, half = fitted(4), fitted(2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed = fitted(4, tmp_path / "half.ckpt")
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)  # type: ignore[union-attr]


class _Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.ones(3), torch.ones(()))] * 4)


def test_a_checkpoint_is_validated_with_its_bound(tmp_path: Path) -> None:
    """In inference mode, where no gradient is taken, and without the training that knows the penalty's share."""

    class Data(LightningDataModule):
        def train_dataloader(self) -> DataLoader[Any]:
            return loader()

        val_dataloader = train_dataloader

    seed_everything(0)
    module, options = TwoLayerReLU(3, 5, beta=0.7, lr=0.1), {"enable_checkpointing": False}
    measured = []
    for network in (module, TwoLayerReLU(3, 5, beta=0.7)):
        network.load_state_dict(module.state_dict())
        gap = ConvexGap(mode="relaxed", seconds=0.1)
        if network is module:
            trainer(tmp_path, callbacks=[gap], **options).fit(network, Data())
            measured.append(gap.history[-1]["lower_bound"])
        else:
            (logged,) = trainer(tmp_path, callbacks=[gap], **options).validate(network, Data(), verbose=False)
            measured.append(logged["convex_relu/lower_bound"])
    assert measured[0] > 0
    assert measured[1] == pytest.approx(measured[0], rel=1e-3)


def test_streams_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="dataset with a length"):
        trainer(tmp_path).fit(TwoLayerReLU(3, 2, beta=0.1), DataLoader(_Stream(), batch_size=2))


@pytest.mark.parametrize("sampler", [SubsetRandomSampler(range(6)), [*range(6)]], ids=["sampler", "list"])
def test_the_penalty_is_shared_by_the_rows_that_are_drawn(sampler: Any, tmp_path: Path) -> None:
    seed_everything(0)
    module = TwoLayerReLU(3, 5, beta=0.7, optimizer="sgd", lr=1e-30)
    data = loader().dataset
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(module, DataLoader(data, batch_size=3, sampler=sampler))
    x, y = (part[:6] for part in data.tensors)  # type: ignore[attr-defined]
    expected = objective(x, y, module.hidden.weight, module.output.weight[0], 0.7) / 6
    assert float(fit.callback_metrics["train/loss"]) == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "batches", "rows"),
    [
        ({"batch_size": 4}, {"limit_train_batches": 2}, 8),
        ({"batch_size": 4, "shuffle": True}, {"limit_train_batches": 2}, 12),
        ({"batch_size": 4, "shuffle": True}, {"overfit_batches": 1}, 4),
        ({"batch_size": 5, "drop_last": True}, {}, 10),
        ({"batch_size": 5, "drop_last": True, "shuffle": True}, {}, 12),
        ({"batch_sampler": BatchSampler(SubsetRandomSampler(range(6)), 3, False)}, {}, 6),
    ],
)
def test_rows_that_no_epoch_reaches_take_no_share(
    options: dict[str, Any], batches: dict[str, Any], rows: int, tmp_path: Path
) -> None:
    module = TwoLayerReLU(3, 5, beta=0.7)
    trainer(tmp_path, max_epochs=1, **batches).fit(module, DataLoader(loader().dataset, **options))
    assert module._num_samples == rows


def test_a_second_fit_is_measured_on_its_own_data(tmp_path: Path) -> None:
    module = TwoLayerReLU(3, 5, beta=0.7)
    trainer(tmp_path, max_epochs=1).fit(module, loader(12))
    gap = ConvexGap("relaxed", seconds=0.05)
    trainer(tmp_path, max_epochs=1, callbacks=[gap]).fit(module, loader(6))
    weights = module.hidden.weight, module.output.weight[0]
    expected = objective(*loader(6).dataset.tensors, *weights, 0.7)  # type: ignore[attr-defined]
    assert gap.history[-1]["objective"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_sample_that_is_a_batch_is_refused(tmp_path: Path) -> None:
    x, y = loader().dataset.tensors  # type: ignore[attr-defined]
    with pytest.raises(MisconfigurationException, match="whose batches are drawn from it"):
        trainer(tmp_path).fit(TwoLayerReLU(3, 2, beta=0.1), DataLoader([(x, y)], batch_size=None))


def test_samplers_that_draw_other_rows_each_time_draw_on_all(tmp_path: Path) -> None:
    for sampler in (RandomSampler(range(12), num_samples=4), WeightedRandomSampler([1.0] * 12, 4)):
        module = TwoLayerReLU(3, 5, beta=0.7)
        trainer(tmp_path, max_epochs=1).fit(module, DataLoader(loader().dataset, batch_size=4, sampler=sampler))
        assert module._num_samples == 12


def test_targets_that_are_none_of_the_loss_are_refused(tmp_path: Path) -> None:
    x, y = torch.ones(4, 3), torch.tensor([0.0, 1.0, 1.0, 0.0])
    with pytest.raises(ValueError, match=r"-1 or \+1 .* got 0\. 0/1 labels"):
        trainer(tmp_path).fit(TwoLayerReLU(3, 2, beta=0.1, loss="logistic"), DataLoader(TensorDataset(x, y)))
    with pytest.raises(ValueError, match="one number a sample; got 2 for 1 "):
        trainer(tmp_path).fit(TwoLayerReLU(3, 2, beta=0.1), DataLoader(TensorDataset(x, x[:, :2])))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"in_features": 0}, "in_features"),
        ({"num_neurons": 0}, "num_neurons"),
        ({"beta": 0.0}, "beta"),
        ({"beta": float("nan")}, "beta"),
        ({"loss": "hinge"}, "loss"),
        ({"optimizer": "adamw"}, "optimizer"),
        ({"lr": 0.0}, "lr"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}"):
        TwoLayerReLU(**{"in_features": 2, "num_neurons": 2, "beta": 0.1, **arguments})

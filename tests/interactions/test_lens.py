"""The lens without a Trainer: which samples it chooses, and what it says of noise."""

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_papers.interactions.lens import InteractionLens
from lit_papers.interactions.players import FeaturePlayers
from lit_papers.lens import NotApplicable, Subject

N = 12


class Steep(nn.Module):
    """Log-odds of a steep sigmoid of a weighted sum."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(N, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(3 * (x @ self.weight))


def loader(labels: Tensor, **options: Any) -> DataLoader[Any]:
    x = torch.randn(len(labels), N, generator=torch.Generator().manual_seed(1)).sign()
    return DataLoader(TensorDataset(x, labels), **options)


@pytest.mark.parametrize("options", [{"batch_size": 16}, {"batch_size": 4, "shuffle": True}, {"batch_size": 1000}])
def test_data_that_lie_class_by_class_are_measured_in_all_classes(options: dict[str, Any]) -> None:
    labels = torch.arange(5).repeat_interleave(15)
    network = nn.Linear(N, 5)
    lens = InteractionLens(FeaturePlayers(N), n_samples=15)
    chosen = [lens.check(Subject(network, loader(labels, **options))) for _ in range(2)]
    assert torch.bincount(chosen[0][1], minlength=5).min() >= 2
    assert torch.equal(chosen[0][0], chosen[1][0])
    other = InteractionLens(FeaturePlayers(N), n_samples=15, seed=1).check(Subject(network, loader(labels, **options)))
    assert not torch.equal(chosen[0][0], other[0])


def test_noise_is_told_and_taken_out() -> None:
    data = loader(torch.zeros(24, dtype=torch.int64), batch_size=24)
    options: dict[str, Any] = {"n_samples": 24, "only_correct": False, "pairs": "all", "orders": [3, 5, 7]}
    exact = InteractionLens(FeaturePlayers(N), method="exact", **options)(Steep(), data)
    found = InteractionLens(FeaturePlayers(N), method="sampled", n_contexts=6, **options)(Steep(), data)
    for k in range(3):
        assert found["strength_low"][k] <= exact["strength"][k] <= found["strength_high"][k]
        assert found["relative_low"][k] <= exact["relative_strength"][k] <= found["relative_high"][k]
        assert found["noise_floor"][k] > 1000 * exact["noise_floor"][k] > 0
        assert found["strength_error"][k] > 0
    assert abs(found["strength"][1] / exact["strength"][1] - 1) < 0.25


def test_what_noise_hides_is_not_a_number() -> None:
    found = InteractionLens(FeaturePlayers(N), n_samples=4, only_correct=False, pairs="all", orders=[0, 5])(
        nn.Linear(N, 2), loader(torch.arange(8) % 2, batch_size=8)
    )
    assert all(value != value for value in (*found["strength"], *found["relative_strength"], found["J/m5"]))
    assert found["strength_high"][0] > 0, "what it may be at most"


class SeveralOutputs(LightningModule):
    """Logits behind an embedding of the same shape; only the step tells which is which."""

    def __init__(self, as_dict: bool) -> None:
        super().__init__()
        self.embed, self.head, self.as_dict = nn.Linear(N, 5), nn.Linear(5, 5), as_dict

    def forward(self, x: Tensor) -> Any:
        embedding = self.embed(x)
        logits = self.head(embedding.tanh())
        return {"embedding": embedding, "scores": logits} if self.as_dict else (embedding, logits)

    def validation_step(self, batch: Any, batch_index: int) -> None:
        returned = self(batch[0])
        self.log("loss", nn.functional.cross_entropy(returned["scores"] if self.as_dict else returned[1], batch[1]))


@pytest.mark.parametrize("as_dict", [False, True])
def test_of_several_outputs_the_logits_are_those_of_the_step(as_dict: bool) -> None:
    torch.manual_seed(0)
    module, data = SeveralOutputs(as_dict), loader(torch.arange(20) % 5, batch_size=20)
    options: dict[str, Any] = {"n_samples": 5, "only_correct": False, "pairs": "all", "method": "exact"}
    logits = nn.Sequential(module.embed, nn.Tanh(), module.head)
    expected = InteractionLens(FeaturePlayers(N), **options)(logits, data)
    assert InteractionLens(FeaturePlayers(N), **options)(module, data)["strength"] == expected["strength"]
    module.validation_step = lambda batch, batch_index: None  # type: ignore[method-assign]
    with pytest.raises(NotApplicable, match=r"2 tensors that could be logits.*: pass `respond`"):
        InteractionLens(FeaturePlayers(N), **options)(module, data)

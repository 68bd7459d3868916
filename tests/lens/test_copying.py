"""Copies of modules that hold anything: apart from the original, tied as it is tied, and the original untouched."""

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import TensorDataset

from lit_papers.lens.copying import copied


@dataclass
class Notes:
    """A plain object of a stranger's: it holds a loss with its history, and refers back."""

    losses: list[Tensor] = field(default_factory=list)
    module: Any = None
    data: Any = None


class Holder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 4), nn.Linear(4, 3)
        self.tied = nn.Linear(3, 4)
        self.tied.weight = self.encoder.weight
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.metric = torchmetrics.MeanMetric()
        self.rng, self.generator = np.random.default_rng(0), torch.Generator().manual_seed(3)
        self.lock = threading.Lock()
        self.notes = Notes([self.encoder(torch.ones(1, 3)).sum()], self, TensorDataset(torch.ones(5, 3)))
        self.parts = [self.encoder]
        self.bound = self.encoder.forward
        self.prototypes = torch.ones(2)
        self.itself: list[Any] = []
        self.itself.append(self.itself)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def test_what_is_copied_is_apart_and_what_belongs_together_stays_so() -> None:
    module = Holder().train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    twin, shared = copied(module, None)
    assert isinstance(twin, Holder)
    assert shared == ["lock"]
    assert not twin.training
    assert module.training
    assert twin.encoder.weight is twin.tied.weight is not module.encoder.weight
    assert twin.parts[0] is twin.encoder
    assert twin.notes.module is twin
    assert twin.bound.__self__ is twin.encoder
    assert twin.itself[0] is twin.itself
    assert twin.notes.data is module.notes.data, "data are shared"
    assert twin.notes.losses[0].grad_fn is None
    assert module.notes.losses[0].grad_fn is not None

    with torch.no_grad():
        for value in (*twin.parameters(), *twin.buffers(), twin.prototypes):
            value.add_(1)
    twin.metric.update(3.0)
    twin.rng.normal()
    torch.rand(1, generator=twin.generator)
    twin.notes.losses.append(torch.ones(()))
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert module.prototypes.tolist() == [1.0, 1.0]
    assert not module.metric.update_called
    assert module.rng.normal() == np.random.default_rng(0).normal()
    assert torch.rand(1, generator=module.generator) == torch.rand(1, generator=torch.Generator().manual_seed(3))
    assert len(module.notes.losses) == 1


@pytest.mark.parametrize(
    "network",
    [
        nn.LSTM(3, 4),
        weight_norm(nn.Linear(3, 4)),
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.ReLU())),
        nn.Sequential(torch.compile(nn.Linear(3, 4), backend="eager"), nn.BatchNorm1d(4)),
    ],
    ids=["recurrent", "parametrized", "attention", "scripted", "compiled"],
)
def test_copies_compute_what_the_original_computes(network: nn.Module) -> None:
    x = torch.randn(2, 5, 4) if isinstance(network, nn.TransformerEncoderLayer) else torch.randn(5, 3)
    twin, shared = copied(network, None)
    network.eval()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(twin(x), network(x), rtol=0, atol=0)
    assert shared == []
    assert {id(p) for p in twin.parameters()}.isdisjoint(id(p) for p in network.parameters())


def test_a_facade_can_be_read_and_does_nothing(tmp_path: Any) -> None:
    class Acts(Holder):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self(batch[0]).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.25)

    module = Acts()
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(TensorDataset(torch.ones(4, 3)), batch_size=2))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    twin, _ = copied(module, trainer)
    assert twin.trainer.global_step == 2
    assert twin.trainer.validating
    assert not twin.trainer.training
    optimizer = twin.optimizers()
    assert optimizer.param_groups[0]["lr"] == 0.25
    with optimizer.toggle_model():
        twin.manual_backward(torch.ones(()))
        optimizer.step()
        twin.lr_schedulers().step()
        twin.toggle_optimizer(optimizer)
    twin.log("anything", 1.0)
    twin.trainer.should_stop = True
    twin.trainer.save_checkpoint(tmp_path / "never.ckpt")
    twin.logger.experiment.add_scalar("a", 1)
    assert twin.all_gather(torch.ones(2)).tolist() == [1.0, 1.0]
    assert not trainer.should_stop
    assert not (tmp_path / "never.ckpt").exists()
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)

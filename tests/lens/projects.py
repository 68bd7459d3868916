"""Projects that are strange on purpose, each small: a module, its data, and what is right to say about it.

Three classes from six inputs. ``features(x)`` of a module is what its head gets, computed without any callback.
"""

import copy
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torchmetrics
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import EarlyStopping, WeightAveraging
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

CLASSES, INPUTS, FEATURES, ROWS, BATCH = 3, 6, 8, 36, 6


def blobs(rows: int = ROWS, seed: int = 0) -> TensorDataset:
    targets = torch.arange(rows) % CLASSES
    noise = torch.randn(rows, INPUTS, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(2 * torch.eye(CLASSES, INPUTS)[targets] + 0.5 * noise, targets)


class Plain(LightningModule):
    """What all others change one thing of."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(INPUTS, FEATURES), nn.ReLU())
        self.head = nn.Linear(FEATURES, CLASSES)
        self.steps = 0

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        return functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


@dataclass
class Project:
    """What is trained, and what a measurement of the training data must be about."""

    module: Callable[[], LightningModule] = Plain
    loader: Callable[[], Any] = lambda: DataLoader(blobs(), batch_size=BATCH)
    data: Callable[[], LightningDataModule] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list[Callback]] = list
    rows: Callable[[], tuple[Tensor, Tensor]] = lambda: blobs().tensors
    refused: str | None = None  # by callbacks that need the last layer; matches the message
    tolerance: float = 1e-4
    ends_as_measured: bool = True  # else the network is changed after its last measurement


# -- data ---------------------------------------------------------------------------------------------------------


class Drawing(Dataset[Any]):
    """Augments by streams of its own, of NumPy and of Python."""

    def __init__(self) -> None:
        self.clean, self.rng, self.coin = blobs(), np.random.default_rng(0), random.Random(0)

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, index: int) -> Any:
        x, y = self.clean[index]
        return x + 0.01 * self.coin.random() + torch.tensor(self.rng.normal(size=INPUTS) * 0.01).to(x), y


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(*blobs().tensors, strict=True))


class Position(IterableDataset[Any]):
    """Its own iterator, which knows how many passes there were."""

    def __init__(self) -> None:
        self.rows, self.next, self.passes = blobs(), 0, 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        return self

    def __next__(self) -> Any:
        if self.next == ROWS:
            self.next = 0
            raise StopIteration
        self.next += 1
        x, y = self.rows[self.next - 1]
        return x + 1e-6 * self.passes, y


class Seeded(Dataset[Any]):
    """Augments by the number of images so far, and by a stream of its class that is made when it is first needed."""

    stream: Any = None

    def __init__(self) -> None:
        self.rows, self.count = blobs(), 0

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> Any:
        self.count += 1
        if self.stream is None:
            self.stream = np.random.default_rng(0)
        x, y = self.rows[index]
        noise = torch.randn(INPUTS, generator=torch.Generator().manual_seed(self.count))
        return x + 0.01 * noise + 0.01 * float(self.stream.normal()), y


class Unending(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from blobs()


class Growing(LightningDataModule):
    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        return DataLoader(blobs(12 * (self.trainer.current_epoch + 1)), batch_size=BATCH)


class Endless:
    """A batch sampler without an end, as those that draw tasks."""

    def __iter__(self) -> Iterator[list[int]]:
        start = 0
        while True:
            yield [(start + i) % ROWS for i in range(BATCH)]
            start += BATCH


class Foreign:
    """A loader of another library: nothing but iterable."""

    def __iter__(self) -> Iterator[Any]:
        return iter(DataLoader(blobs(), batch_size=BATCH))


def half(rows: TensorDataset) -> tuple[Tensor, Tensor]:
    x, y = rows.tensors
    return x[: ROWS // 2], y[: ROWS // 2]


# -- modules ------------------------------------------------------------------------------------------------------


class Adapter(nn.Linear):
    """Low-rank factors that merge into the weight in ``train(False)`` and come apart in ``train(True)``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.weight.requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.zeros(outputs, 2))
        self.merged = False

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        if mode == self.merged:
            with torch.no_grad():
                self.weight += (1 if not mode else -1) * self.up @ self.down
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        whole = super().forward(x)
        return whole if self.merged else whole + functional.linear(functional.linear(x, self.down), self.up)


class Adapted(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.body[0], self.head = Adapter(INPUTS, FEATURES), Adapter(FEATURES, CLASSES)


class ByHook(Plain):
    """Features come by a hook that closes over the module; another hook counts calls; the network is a lambda."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(FEATURES)
        self.found: dict[str, Tensor] = {}
        self.calls = 0

        def keep(layer: nn.Module, arguments: Any, output: Tensor) -> None:
            self.found["h"] = output
            self.calls += 1

        self.norm.register_forward_hook(keep)
        self.net = lambda x: self.norm(self.body(x))

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.body(x))

    def forward(self, x: Tensor) -> Any:
        self.net(x)
        return self.head(self.found["h"])


class Spectral(Plain):
    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrizations.spectral_norm(self.head)


class Lazy(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LazyLinear(FEATURES), nn.ReLU())
        self.head = nn.LazyLinear(CLASSES)


class LowRankHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(FEATURES, CLASSES).requires_grad_(False)
        self.down = nn.Parameter(torch.randn(2, FEATURES))
        self.up = nn.Parameter(torch.zeros(CLASSES, 2))  # so that at first the base makes the logits

    def forward(self, h: Tensor) -> Tensor:
        return self.base(h) + h @ self.down.T @ self.up.T


class LowRank(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.head = LowRankHead()


class FrozenBackbone(Plain):
    """A batch norm that ``train()`` never puts into training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body.insert(1, nn.BatchNorm1d(FEATURES))

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.body.eval()
        return self


class Reassigning(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        return self.head(h)


class Counting(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.accuracy = torchmetrics.MeanMetric()

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        self.accuracy.update(logits.detach().mean())
        return logits

    def on_train_epoch_end(self) -> None:
        self.log("seen", self.accuracy.update_count, sync_dist=False)


class Averaging(Plain):
    """An exponential moving average, moved inside the step."""

    def __init__(self) -> None:
        super().__init__()
        self.ema = copy.deepcopy(self.body).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        with torch.no_grad():
            for slow, fast in zip(self.ema.parameters(), self.body.parameters(), strict=True):
                slow.lerp_(fast, 0.1)
        consistency = functional.mse_loss(self.body(batch[0]), self.ema(batch[0]))
        return super().training_step(batch, batch_idx) + 0.1 * consistency


class Storing(Plain):
    """Keeps losses with their history, a lock and an open file."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []
        self.lock, self.file = threading.Lock(), open(__file__)  # noqa: SIM115
        self.last: Any = None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        with self.lock:
            self.last = super().training_step(batch, batch_idx)
        self.losses.append(self.last)
        return self.last


class Mixing(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        x, y = batch
        order, share = torch.randperm(len(x)), 0.7
        target = share * functional.one_hot(y, CLASSES) + (1 - share) * functional.one_hot(y[order], CLASSES)
        return functional.cross_entropy(self(share * x + (1 - share) * x[order]), target)


class MicroBatches(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        parts = zip(batch[0].chunk(2), batch[1].chunk(2), strict=True)
        return sum(functional.cross_entropy(self(x), y) for x, y in parts) / 2


class TwoViews(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        x, y = batch
        return functional.cross_entropy(self(torch.cat([x, -x])), y.repeat(2))


class AsksTrainer(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        assert self.trainer.global_step >= 0
        self.trainer.progress_bar_callback  # noqa: B018
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return super().training_step(batch, batch_idx)


class EmbeddingFirst(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(FEATURES, 5), nn.Linear(5, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        return self.embed(self.body(x))

    def forward(self, x: Tensor) -> Any:
        embedding = self.features(x)
        return embedding, self.head(embedding)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        return functional.cross_entropy(self(batch[0])[1], batch[1])


class HeadTwice(Plain):
    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x)), self.head(self.body(-x))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        return functional.cross_entropy(self(batch[0])[0], batch[1])


class TwoHeads(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(FEATURES, CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        h = self.body(batch[0])
        return sum(functional.cross_entropy(head(h), batch[1]) for head in (self.head, self.aux))


class ScaledInPlace(Plain):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).mul_(3.0)


class Cosine(Plain):
    def forward(self, x: Tensor) -> Any:
        return 5 * functional.normalize(self.body(x)) @ functional.normalize(self.head.weight).T


class Convolution(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(FEATURES, CLASSES, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x)[..., None, None]).flatten(1)


class NoForward(Plain):
    forward = LightningModule.forward

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        return functional.cross_entropy(self.head(self.body(batch[0])), batch[1])


@dataclass(frozen=True)
class Output:
    loss: Tensor
    logits: Tensor


class Keywords(Plain):
    """Called as ``self(**batch)``; returns an object."""

    def forward(self, pixels: Tensor, weight: Tensor, labels: Tensor) -> Output:
        logits = self.head(self.body(pixels * weight))
        return Output(functional.cross_entropy(logits, labels), logits)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        return self(**batch).loss


class ReturnsDict(Plain):
    def forward(self, x: Tensor) -> Any:
        return {"embedding": self.body(x), "logits": super().forward(x)}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        return functional.cross_entropy(self(batch[0])["logits"], batch[1])


class ReturnsFrozen(ReturnsDict):
    """By a loss of its own hand, so that ``forward`` must show the logits."""

    def forward(self, x: Tensor) -> Any:
        return Output(torch.zeros(()), Plain.forward(self, x))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        chosen = self(batch[0]).logits.log_softmax(1).gather(1, batch[1][:, None])
        return -chosen.mean()


class Recurrent(Plain):
    """Makes a tensor in ``forward``, of the default type."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(INPUTS, FEATURES, batch_first=True)

    def features(self, x: Tensor) -> Tensor:
        return self.rnn(x[:, None], torch.zeros(1, len(x), FEATURES, device=x.device))[0][:, -1]

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x))


class Manual(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.clip_gradients(optimizer, 1.0)
        optimizer.step()


class AuxiliaryInTraining(Plain):
    """A second output that exists in training only, so that the step cannot run in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Any:
        h = self.body(x)
        return (self.head(h), self.aux(h)) if self.training else self.head(h)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        logits, aux = self(batch[0])
        return functional.cross_entropy(logits, batch[1]) + 0.3 * functional.cross_entropy(aux, batch[1])


class AugmentsOnDevice(Plain):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if not self.trainer.validating:
            return batch[0] + 5.0 * torch.randn_like(batch[0]), batch[1]
        return batch


class Gathering(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("mean_loss", self.all_gather(loss.detach()).mean())
        return loss


class HoldsItsData(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.data = blobs()

    def train_dataloader(self) -> Any:
        return DataLoader(self.data, batch_size=BATCH)


class StopsEarly(Plain):
    def on_train_epoch_end(self) -> None:
        self.log("flat", 1.0)


class BatchIgnored(Plain):
    """Masks samples by a label of -1."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        return functional.cross_entropy(self(batch[0]), batch[1], ignore_index=-1)


def masked() -> TensorDataset:
    x, y = blobs().tensors
    y = y.clone()
    y[::5] = -1
    return TensorDataset(x, y)


def kept_rows() -> tuple[Tensor, Tensor]:
    x, y = masked().tensors
    return x[y >= 0], y[y >= 0]


def keyword_rows() -> list[dict[str, Tensor]]:
    x, y = blobs().tensors
    return [{"pixels": a, "weight": torch.ones(()), "labels": b} for a, b in zip(x, y, strict=True)]


def keyword_loader() -> Any:
    def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        return {**batch, "weight": batch["weight"][:, None]}

    return DataLoader(keyword_rows(), batch_size=BATCH, collate_fn=collate)


def shuffled(**options: Any) -> Callable[[], Any]:
    return lambda: DataLoader(blobs(), batch_size=BATCH, shuffle=True, **options)


PROJECTS: dict[str, Project] = {
    "plain": Project(),
    "shuffled": Project(loader=shuffled()),
    "drop_last": Project(loader=lambda: DataLoader(blobs(), batch_size=5, shuffle=True, drop_last=True)),
    "persistent workers": Project(loader=shuffled(num_workers=1, persistent_workers=True)),
    "loader generator": Project(
        loader=lambda: DataLoader(blobs(), batch_size=BATCH, shuffle=True, generator=torch.Generator().manual_seed(1))
    ),
    "own streams": Project(loader=lambda: DataLoader(Drawing(), batch_size=BATCH, shuffle=True), tolerance=0.2),
    "subset sampler": Project(
        loader=lambda: DataLoader(blobs(), batch_size=BATCH, sampler=SubsetRandomSampler(range(ROWS // 2))),
        rows=lambda: half(blobs()),
    ),
    "weighted sampler": Project(
        loader=lambda: DataLoader(blobs(), batch_size=BATCH, sampler=WeightedRandomSampler([1.0] * ROWS, 4000)),
        options={"limit_train_batches": 700, "max_epochs": 1},
        tolerance=0.1,
    ),
    "endless batch sampler": Project(
        loader=lambda: DataLoader(blobs(), batch_sampler=Endless()), options={"limit_train_batches": 6}
    ),
    "stream": Project(loader=lambda: DataLoader(Stream(), batch_size=BATCH)),
    "position in the data": Project(loader=lambda: DataLoader(Position(), batch_size=BATCH)),
    "numbers in the data": Project(loader=lambda: DataLoader(Seeded(), batch_size=BATCH), tolerance=0.2),
    "unending": Project(
        loader=lambda: DataLoader(Unending(), batch_size=BATCH), options={"max_epochs": -1, "max_steps": ROWS // BATCH}
    ),
    "samples are batches": Project(
        loader=lambda: DataLoader(
            [tuple(t[i : i + 6] for t in blobs().tensors) for i in range(0, 36, 6)], batch_size=None
        )
    ),
    "foreign loader": Project(loader=Foreign),
    "growing data": Project(
        data=Growing, options={"reload_dataloaders_every_n_epochs": 1}, rows=lambda: blobs(24).tensors
    ),
    "limit_train_batches": Project(
        options={"limit_train_batches": 3}, rows=lambda: tuple(t[:18] for t in blobs().tensors)
    ),
    "overfit_batches": Project(options={"overfit_batches": 2}, rows=lambda: tuple(t[:12] for t in blobs().tensors)),
    "fast_dev_run": Project(options={"fast_dev_run": True}, rows=lambda: tuple(t[:6] for t in blobs().tensors)),
    "merging adapter": Project(Adapted),
    "by hook": Project(ByHook),
    "spectral norm": Project(Spectral),
    "lazy": Project(Lazy),
    "low rank beside the head": Project(LowRank, refused="no nn.Linear makes.*`call`"),
    "frozen backbone": Project(FrozenBackbone),
    "buffers reassigned": Project(Reassigning),
    "metric in forward": Project(Counting),
    "EMA in the step": Project(Averaging),
    "losses stored": Project(Storing),
    "mixup": Project(Mixing),
    "micro-batches": Project(MicroBatches),
    "two views": Project(TwoViews),
    "self.trainer in the step": Project(AsksTrainer),
    "embedding before logits": Project(EmbeddingFirst),
    "head used twice": Project(HeadTwice),
    "two heads": Project(TwoHeads, refused="'head', 'aux'; name one with `classifier`"),
    "scaled in place": Project(ScaledInPlace, refused="'head' is changed before it is used.*`classifier`"),
    "cosine head": Project(Cosine, refused="no nn.Linear makes.*`call`"),
    "convolution head": Project(Convolution, refused="no nn.Linear makes.*`call`"),
    "no forward": Project(NoForward),
    "forward(**batch)": Project(Keywords, loader=keyword_loader),
    "dict returned": Project(ReturnsDict),
    "frozen dataclass returned": Project(ReturnsFrozen),
    "64-true": Project(Recurrent, options={"precision": "64-true"}),
    "bf16-true": Project(Recurrent, options={"precision": "bf16-true"}, tolerance=0.1),
    "bf16-mixed": Project(Recurrent, options={"precision": "bf16-mixed"}, tolerance=0.1),
    "manual optimisation": Project(Manual),
    "auxiliary in training": Project(AuxiliaryInTraining),
    "augments on the device": Project(AugmentsOnDevice),
    "all_gather in the step": Project(Gathering),
    "holds its data": Project(HoldsItsData, loader=lambda: None),
    "early stopping": Project(
        StopsEarly,
        options={"max_epochs": 9},
        callbacks=lambda: [EarlyStopping("flat", patience=1, check_on_train_epoch_end=True)],
    ),
    "weight averaging": Project(callbacks=lambda: [WeightAveraging()], ends_as_measured=False),
    "label of -1": Project(BatchIgnored, loader=lambda: DataLoader(masked(), batch_size=BATCH), rows=kept_rows),
}

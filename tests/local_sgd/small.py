"""A small fit in several gloo processes, what each rank ended with, and the same in a plain PyTorch loop."""

from collections.abc import Callable
from copy import deepcopy
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_papers.local_sgd import LocalSGDStrategy, RandomReshufflingSampler

BATCH, BATCHES, EPOCHS = 4, 8, 2
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
}


def pairs(ranks: int = 2, batches: int = BATCHES) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    samples = ranks * batches * BATCH
    images = torch.randn(samples, 6, generator=generator)
    return TensorDataset(images, (images[:, :3] * 2 + torch.randn(samples, 3, generator=generator)).argmax(1))


def network(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(7)
    middle = [nn.BatchNorm1d(16)] if norm else []
    return nn.Sequential(nn.Linear(6, 16), *middle, nn.Tanh(), nn.Linear(16, 3))


class Classifier(LightningModule):
    def __init__(self, optimizer: str = "momentum", norm: bool = False, workers: int = 0) -> None:
        super().__init__()
        self.optimizer, self.workers = optimizer, workers
        self.network = network(norm)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return OPTIMIZERS[self.optimizer](self.parameters())

    def train_dataloader(self) -> Any:
        data = pairs(self.trainer.world_size)
        return DataLoader(data, BATCH, sampler=RandomReshufflingSampler(data), num_workers=self.workers)


class Validated(Classifier):
    """Also writes down the weights that it was validated with."""

    def validation_step(self, batch: Any, batch_index: int) -> None:
        self.log("val/loss", nn.functional.cross_entropy(self.network(batch[0]), batch[1]), sync_dist=True)

    def val_dataloader(self) -> Any:
        return DataLoader(pairs(self.trainer.world_size, 1), BATCH)


class Dump(Callback):
    """Writes what each rank ends with, out of processes that end with the fit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        strategy = trainer.strategy
        names = ("local_step", "since_sync", "n_syncs", "bytes_communicated", "drift")
        result = {
            "weights": pl_module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "global_step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "learning_rates": [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups],
            **{name: getattr(strategy, name, None) for name in names},
            **getattr(pl_module, "notes", {}),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.save(result, self.folder / f"rank_{trainer.global_rank}.pt")


def trainer(strategy: Any, processes: int = 2, callbacks: Any = (), **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": processes,
        "max_epochs": EPOCHS,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(type(callback).__name__ == "ModelCheckpoint" for callback in callbacks),
        "num_sanity_val_steps": 0,
    }
    return Trainer(strategy=strategy, callbacks=list(callbacks), **{**defaults, **options})


def local_sgd(**options: Any) -> LocalSGDStrategy:
    return LocalSGDStrategy(start_method="fork", process_group_backend="gloo", **options)


def fit(
    module: LightningModule,
    strategy: Any,
    processes: int = 2,
    callbacks: Any = (),
    ckpt_path: Path | None = None,
    folder: str = "ranks",
    **options: Any,
) -> list[dict[str, Any]]:
    """Train, and return what each rank ended with."""
    where = Path.cwd() / folder
    for old in where.glob("*.pt"):
        old.unlink()
    guests = [*callbacks, Dump(where)]
    trainer(strategy, processes, guests, **options).fit(module, ckpt_path=ckpt_path, weights_only=True)
    return [torch.load(path, weights_only=True) for path in sorted(where.glob("*.pt"))]


def plain_loop(
    optimizer: str,
    sync_every: int,
    *,
    ranks: int = 2,
    norm: bool = False,
    accumulate: int = 1,
    clip: float | None = None,
    warmup: int = 0,
    average_state: bool = False,
    sync_on_epoch_end: bool = True,
    epochs: int = EPOCHS,
    after_average: Callable[[list[Tensor]], None] | None = None,
    after_warmup: Callable[[list[Tensor]], None] | None = None,
    nodes: tuple[int, int] | None = None,
) -> tuple[list[nn.Sequential], list[torch.optim.Optimizer], int]:
    """Local SGD over so many models in one process; returns models, optimizers and the number of rounds.

    ``nodes`` is (ranks a node, rounds between averages over all nodes).
    """
    models = [network(norm) for _ in range(ranks)]
    optimizers = [OPTIMIZERS[optimizer](model.parameters()) for model in models]
    data = pairs(ranks)
    steps = since = rounds = within = 0

    def mean(group: list[int]) -> None:
        with torch.no_grad():
            lists = [[*m.parameters(), *(b for b in m.buffers() if b.is_floating_point())] for m in models]
            if average_state:
                keys = ("exp_avg", "exp_avg_sq", "momentum_buffer")
                for tensors, each in zip(lists, optimizers, strict=True):
                    tensors += [s[k] for s in each.state.values() for k in keys if k in s]
            for same in zip(*[lists[rank] for rank in group], strict=True):
                average = torch.stack(same).mean(0)
                for tensor in same:
                    tensor.copy_(average)

    def end_round(everywhere: bool) -> None:
        nonlocal since, rounds, within
        everywhere = everywhere or nodes is None or within + 1 >= nodes[1]
        within = 0 if everywhere else within + 1
        size = ranks if nodes is None or everywhere else nodes[0]
        for first in range(0, ranks, size):
            mean(list(range(first, first + size)))
        if after_average is not None:
            with torch.no_grad():
                weights = [p.clone() for p in models[0].parameters()]
            after_average(weights)
            for model in models:
                for parameter, weight in zip(model.parameters(), weights, strict=True):
                    parameter.data.copy_(weight)
        since, rounds = 0, rounds + 1

    for epoch in range(epochs):
        orders = []
        for rank in range(ranks):
            sampler = RandomReshufflingSampler(data, ranks, rank)
            sampler.set_epoch(epoch)
            orders.append(torch.tensor(list(sampler)).split(BATCH))
        for batch in range(len(orders[0])):
            last = batch + 1 == len(orders[0])
            for model, order in zip(models, orders, strict=True):
                images, targets = data[order[batch]]
                (nn.functional.cross_entropy(model(images), targets) / accumulate).backward()
            if (batch + 1) % accumulate and not last:
                continue
            if steps < warmup:
                for gradients in zip(*[[p.grad for p in m.parameters()] for m in models], strict=True):
                    average = torch.stack(gradients).mean(0)
                    for gradient in gradients:
                        gradient.copy_(average)
            for model, each in zip(models, optimizers, strict=True):
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                each.step()
                each.zero_grad()
            steps += 1
            if steps == warmup and after_warmup is not None:
                after_warmup([parameter.detach() for parameter in models[0].parameters()])
            if steps > warmup:
                since += 1
            if since >= sync_every or (since and last and sync_on_epoch_end):
                end_round(last)
    if since or within:
        end_round(True)
    elif warmup >= steps:
        mean(list(range(ranks)))
    return models, optimizers, rounds


def difference(ours: Any, theirs: Any) -> float:
    """Largest absolute difference of two state dicts, prefix of the module apart."""
    theirs = {key.removeprefix("network."): value for key, value in theirs.items()}
    ours = {key.removeprefix("network."): value for key, value in ours.items()}
    assert ours.keys() == theirs.keys()
    return max((ours[key].double() - theirs[key].double()).abs().max().item() for key in ours)


def same(ours: Any, theirs: Any) -> bool:
    return difference(deepcopy(ours), theirs) == 0


def together(work: Callable[[int], Any], processes: int = 2, seconds: float = 60) -> list[Any]:
    """Run a function of the rank in gloo processes without a Trainer; what it returns, by rank."""
    folder = Path.cwd()
    (folder / "store").unlink(missing_ok=True)
    mp.start_processes(_one_of, (work, processes, folder, seconds), processes, start_method="fork")
    return [torch.load(folder / f"answer_{rank}.pt", weights_only=False) for rank in range(processes)]


def _one_of(rank: int, work: Callable[[int], Any], processes: int, folder: Path, seconds: float) -> None:
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", store, timedelta(seconds=seconds), processes, rank)
    try:
        torch.save(work(rank), folder / f"answer_{rank}.pt")
    finally:
        dist.destroy_process_group()

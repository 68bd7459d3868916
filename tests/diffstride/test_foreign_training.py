"""A converted torchvision network in training, under two processes, with the callback and the penalty."""

import io
import json
import os
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lit_papers.callbacks import StrideComplexity
from lit_papers.diffstride import StridedClassifier
from lit_papers.diffstride.convert import convert_strides
from lit_papers.diffstride.lens import StrideLens, stride_layers
from lit_papers.lens import NotApplicable

BATCH, STEPS = 8, 100


class Photographs(Dataset[tuple[Tensor, int]]):
    """CIFAR-10 as JPEG files in a zip, in folders of their classes; read one by one, as strangers do."""

    def __init__(self, path: Path, number: int) -> None:
        archive = zipfile.ZipFile(path)
        names = sorted(name for name in archive.namelist() if "/train/" in name and name.endswith(".jpg"))
        classes = sorted({name.split("/")[-2] for name in names})
        chosen = np.random.default_rng(0).permutation(len(names))[:number]
        self.items = [(archive.read(names[i]), classes.index(names[i].split("/")[-2])) for i in chosen]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = pytest.importorskip("PIL.Image")
        content, target = self.items[index]
        pixels = np.asarray(image.open(io.BytesIO(content)).convert("RGB"))
        return torch.tensor(pixels).permute(2, 0, 1) / 127.5 - 1, target


class _WriteStrides(Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        layers = {name: layer.strides.tolist() for name, layer in stride_layers(pl_module).items()}
        history = [callback.history for callback in trainer.callbacks if isinstance(callback, StrideComplexity)]
        (self.folder / f"rank_{trainer.global_rank}.json").write_text(json.dumps([layers, *history]))


DATA = os.environ.get("LIT_PAPERS_DATA")  # before a fixture takes it away


def photographs() -> Path:
    path = Path(DATA or "data", "cifar10_jpeg.zip").absolute()
    if not path.is_file():
        pytest.skip("cifar10_jpeg.zip is not in $LIT_PAPERS_DATA")
    return path


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_torchvision_network_learns_cheaper_strides_under_two_processes(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    data = Photographs(photographs(), 2 * BATCH * STEPS)
    seed_everything(0)
    # without the pooling layer the largest map would be of 8 points, which become fewer at a stride of 4 alone
    original, stem = models.resnet18(num_classes=10), ["conv1"]
    network = convert_strides(original, data[0][0][None], exclude=stem, smoothness=1.0)
    sgd = partial(torch.optim.SGD, lr=0.02)
    module = StridedClassifier(network, complexity_weight=1.0, stride_lr=0.1, optimizer=sgd)
    trainer = Trainer(
        accelerator="cpu", devices=2, max_steps=STEPS, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        strategy=DDPStrategy(process_group_backend="gloo", start_method="fork"),
        callbacks=[StrideComplexity(every_n_steps=10), _WriteStrides(tmp_path)],
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, batch_size=BATCH, shuffle=True))
    (first, history), (second, other) = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert history == other
    assert [entry["step"] for entry in history] == list(range(0, STEPS, 10))
    costs = [entry["gmacs"] for entry in history]
    print(f"\nGMAC of a sample: {costs[0]:.4f} at step 0, {costs[-1]:.4f} at step {STEPS - 10}; strides {first}")
    assert costs[-1] < 0.95 * costs[0]


def small() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return convert_strides(network, torch.zeros(1, 3, 16, 16), smoothness=1.0)


def test_the_lens_sees_a_converted_network() -> None:
    data: Any = [(torch.zeros(3, 16, 16), 0)] * 4
    numbers = StrideLens()(small(), DataLoader(data, batch_size=2))
    assert numbers == {
        "0.pool/stride_h": 2.0, "0.pool/map_h": 10.0, "0.pool/stride_w": 2.0, "0.pool/map_w": 10.0,
        "gmacs": (4 * 27 * 256 + 12) / 1e9, "penalty": 0.25,
    }  # fmt: skip
    with pytest.raises(NotApplicable, match="no DiffStride layer in Linear"):
        StrideLens()(nn.Linear(3, 3), DataLoader(data, batch_size=2))

"""Small files in the formats of the real data sets."""

import gzip
import io
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lit_papers.locations import LAYOUTS


@pytest.fixture(autouse=True)
def _only_the_data_of_the_test(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LIT_PAPERS_DATA", raising=False)
    layout = replace(LAYOUTS["FashionMNIST"], system=tmp_path / "no-system-copy")
    monkeypatch.setitem(LAYOUTS, "FashionMNIST", layout)


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def write_idx() -> Callable[..., Path]:
    """Write an array of bytes as an IDX file, gzipped if its name says so."""

    def write(path: Path, array: np.ndarray) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = idx_bytes(np.asarray(array, dtype=np.uint8))
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        return path

    return write


@pytest.fixture
def idx_folder(write_idx: Callable[..., Path]) -> Callable[..., Path]:
    """Write the four files of MNIST with 20 training and 5 test images of each class."""

    def fill(folder: Path, ending: str = "") -> Path:
        draw = np.random.default_rng(0)
        for part, each in (("train", 20), ("t10k", 5)):
            labels = np.tile(np.arange(10), each)
            images = draw.integers(0, 256, (10 * each, 28, 28))
            images[:, 0, 0] = labels  # so that an image tells its class
            write_idx(folder / f"{part}-images-idx3-ubyte{ending}", images)
            write_idx(folder / f"{part}-labels-idx1-ubyte{ending}", labels)
        return folder

    return fill


def image_bytes(value: int, mode: str = "RGB", size: tuple[int, int] = (32, 32), kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new(mode, size, (value,) * len(mode) if mode in ("RGB", "RGBA", "CMYK", "LA") else value).save(content, kind)
    return content.getvalue()


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """An image file of one colour."""
    return image_bytes


@pytest.fixture
def write_tree(tmp_path: Path) -> Callable[..., Path]:
    """Write {name: content} as a folder, or as a .zip if its name says so."""

    def write(files: dict[str, bytes], root: str = "images") -> Path:
        path = tmp_path / root
        if path.suffix == ".zip":
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
            return path
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        return path

    return write


@pytest.fixture
def check_batches() -> Callable[..., None]:
    """Check what every image data module promises, at every stage."""

    def check(data, *, train: int, val: int, test: int) -> None:
        data.prepare_data()
        for stage in ("fit", "validate", "test", "predict", None):
            data.setup(stage)
        assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (train, val, test)
        loaders = [
            data.train_dataloader(),
            data.train_eval_dataloader(),
            data.test_dataloader(),
            data.predict_dataloader(),
        ]
        for loader in [*loaders, *([data.val_dataloader()] if val else [])]:
            images, targets = next(iter(loader))
            assert images.shape == (min(data.batch_size, len(loader.dataset)), *data.input_shape)
            assert images.dtype == torch.float32
            assert targets.shape == images.shape[:1]
            assert targets.dtype == torch.int64
            assert targets.min() >= 0
            assert targets.max() < data.num_classes
            image, target = loader.dataset[0]
            assert image.shape == data.input_shape
            assert isinstance(target, int)
        assert len(data.train_dataloader()) == train // data.batch_size
        seen = torch.cat([targets for _, targets in data.train_eval_dataloader()])
        torch.testing.assert_close(seen, data.train_set.targets)

    return check

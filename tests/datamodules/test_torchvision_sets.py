import hashlib
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision.datasets

from lit_papers.datamodules import CIFAR10, CIFAR100, STL10, SVHN, CorruptDataError, MissingDataError


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def pixels(labels, shape=(32, 32)):
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 3, *shape), dtype=np.uint8)
    images[:, 1, 2, 3] = labels  # so that an image tells its class, and a wrong axis order shows
    return images


def write_cifar(monkeypatch, folder, kind, label_key, num_classes, train_files, test_file, meta_file, meta_key):
    theirs = getattr(torchvision.datasets, kind)
    folder.mkdir(parents=True)
    sums = {}
    for name in (*train_files, test_file):
        labels = np.tile(np.arange(num_classes), 4)
        content = {"data": pixels(labels).reshape(len(labels), -1), label_key: labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = md5(folder / name)
    (folder / meta_file).write_bytes(pickle.dumps({meta_key: [str(i) for i in range(num_classes)]}))
    monkeypatch.setattr(theirs, "train_list", [[name, sums[name]] for name in train_files])
    monkeypatch.setattr(theirs, "test_list", [[test_file, sums[test_file]]])
    monkeypatch.setattr(theirs, "meta", {"filename": meta_file, "key": meta_key, "md5": md5(folder / meta_file)})


@pytest.fixture
def cifar10(monkeypatch, tmp_path):
    names = [f"data_batch_{i}" for i in range(1, 6)]
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(monkeypatch, folder, "CIFAR10", "labels", 10, names, "test_batch", "batches.meta", "label_names")
    return folder


@pytest.fixture
def cifar100(monkeypatch, tmp_path):
    folder = tmp_path / "cifar-100-python"
    write_cifar(monkeypatch, folder, "CIFAR100", "fine_labels", 100, ["train"], "test", "meta", "fine_label_names")
    return folder


@pytest.fixture
def svhn(monkeypatch, tmp_path):
    lists = {}
    for split, each in (("train", 10), ("test", 3)):
        labels = np.tile(np.arange(10), each)
        file = tmp_path / f"{split}_32x32.mat"
        stored = np.where(labels == 0, 10, labels)[:, None]  # SVHN calls the digit zero "10"
        scipy.io.savemat(file, {"X": pixels(labels).transpose(2, 3, 1, 0), "y": stored})
        lists[split] = ["http://nowhere", file.name, md5(file)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", lists)
    return tmp_path


@pytest.fixture
def stl10(monkeypatch, tmp_path):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    lists = {}
    for split, each in (("train", 10), ("test", 3)):
        labels = np.tile(np.arange(10, dtype=np.uint8), each)
        (folder / f"{split}_y.bin").write_bytes((labels + 1).tobytes())
        images = pixels(labels, (96, 96)).transpose(0, 1, 3, 2)  # column by column
        (folder / f"{split}_X.bin").write_bytes(images.tobytes())
        lists[split] = [[name, md5(folder / name)] for name in (f"{split}_X.bin", f"{split}_y.bin")]
    unlabelled = ["unlabeled_X.bin", "5242ba1fed5e4be9e1e742405eb56ca4"]
    monkeypatch.setattr(torchvision.datasets.STL10, "train_list", [*lists["train"], unlabelled])
    monkeypatch.setattr(torchvision.datasets.STL10, "test_list", lists["test"])
    return folder


def images_tell_their_class(data):
    for part in (data.train_set, data.val_set, data.test_set):
        assert part.images.dtype == torch.uint8
        assert part.images.is_contiguous()
        assert torch.equal(part.images[:, 1, 2, 3].long(), part.targets)


def test_cifar10(cifar10, check_batches):
    for root in (cifar10, cifar10.parent):
        data = CIFAR10(root, batch_size=16)
        check_batches(data, train=180, val=20, test=40)
        images_tell_their_class(data)
    assert (CIFAR10.num_classes, CIFAR10.input_shape) == (10, (3, 32, 32))


def test_cifar10_in_a_folder_of_another_name(cifar10, check_batches):
    renamed = cifar10.rename(cifar10.parent / "my_cifar")
    check_batches(CIFAR10(renamed, batch_size=16), train=180, val=20, test=40)


def test_cifar100(cifar100, check_batches):
    data = CIFAR100(cifar100.parent, batch_size=16)
    check_batches(data, train=300, val=100, test=400)
    images_tell_their_class(data)
    assert CIFAR100.num_classes == 100


def test_svhn(svhn, check_batches):
    data = SVHN(svhn, batch_size=16)
    check_batches(data, train=90, val=10, test=30)
    images_tell_their_class(data)


def test_stl10_needs_no_unlabelled_images(stl10, check_batches):
    data = STL10(stl10.parent, batch_size=16)
    check_batches(data, train=90, val=10, test=30)
    images_tell_their_class(data)
    assert STL10.input_shape == (3, 96, 96)


def test_normalisation_is_channel_by_channel(cifar10):
    data = CIFAR10(cifar10)
    data.setup()
    expected = data.test_set.images[:7] / 255 - torch.tensor(CIFAR10.mean).view(3, 1, 1)
    expected /= torch.tensor(CIFAR10.std).view(3, 1, 1)
    torch.testing.assert_close(next(iter(data.test_dataloader()))[0][:7], expected)


@pytest.mark.parametrize(
    ("kind", "fixture", "file"),
    [
        (CIFAR10, "cifar10", "data_batch_3"),
        (CIFAR10, "cifar10", "batches.meta"),
        (CIFAR100, "cifar100", "test"),
        (SVHN, "svhn", "test_32x32.mat"),
        (STL10, "stl10", "train_X.bin"),
    ],
)
def test_a_wrong_checksum_names_the_file(kind, fixture, file, request):
    folder = request.getfixturevalue(fixture)
    (folder / file).write_bytes((folder / file).read_bytes()[:-1])
    data = kind(folder)
    data.prepare_data()
    with pytest.raises(CorruptDataError, match=f"^{folder / file}: damaged"):
        data.setup()


def test_nothing_is_downloaded_unasked(tmp_path):
    for kind in (CIFAR10, CIFAR100, SVHN, STL10):
        with pytest.raises(MissingDataError, match=f"{kind.__name__} was not found"):
            kind(tmp_path).prepare_data()


def test_svhn_fetches_both_files(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        torchvision.datasets, "SVHN", lambda root, split, download: asked.append((root, split, download))
    )
    SVHN(tmp_path, download=True).prepare_data()
    assert asked == [(tmp_path, "train", True), (tmp_path, "test", True)]


@pytest.mark.parametrize("module", ["torchvision.datasets", "scipy.io"])
def test_a_missing_package_names_the_extra(module, svhn, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match="install `lit-papers\\[vision\\]`"):
        SVHN(svhn).setup()

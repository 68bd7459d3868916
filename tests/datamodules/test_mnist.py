import gzip
import shutil
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_papers.datamodules import MNIST, CorruptDataError, FashionMNIST, MissingDataError
from lit_papers.datamodules.mnist import read_idx
from lit_papers.locations import LAYOUTS

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("kind", [MNIST, FashionMNIST])
def test_batches(kind, ending, idx_folder, tmp_path, check_batches):
    idx_folder(tmp_path / LAYOUTS[kind.__name__].folders[0], ending)
    check_batches(kind(tmp_path, batch_size=32), train=180, val=20, test=50)
    assert (kind.num_classes, kind.input_shape) == (10, (1, 32, 32))


def test_images_keep_their_labels_and_get_a_black_border(idx_folder, tmp_path):
    data = MNIST(idx_folder(tmp_path))
    data.setup()
    for part in (data.train_set, data.val_set, data.test_set):
        assert torch.equal(part.images[:, 0, 2, 2].long(), part.targets)
    images = next(iter(data.train_eval_dataloader()))[0]
    for border in (images[..., :2], images[..., -2:], images[..., :2, :], images[..., -2:, :]):
        torch.testing.assert_close(border, torch.full_like(border, -0.1307 / 0.3081))
    inside = data.train_set.images[:128, :, 2:-2, 2:-2] / 255
    torch.testing.assert_close(images[..., 2:-2, 2:-2], (inside - 0.1307) / 0.3081)


def test_a_child_of_the_user_finds_the_same_files(idx_folder, tmp_path, check_batches):
    class Mine(MNIST):
        pass

    check_batches(Mine(idx_folder(tmp_path), batch_size=32), train=180, val=20, test=50)


def test_plain_files_win_over_gzipped_ones(idx_folder, write_idx, tmp_path):
    idx_folder(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.zeros(3))
    data = MNIST(tmp_path)
    data.setup()
    assert len(data.test_set) == 50


def test_no_validation_and_few_samples(idx_folder, tmp_path):
    data = MNIST(idx_folder(tmp_path), val_fraction=0, samples_per_class=7)
    data.setup()
    assert data.val_dataloader() == []
    assert data.train_set.targets.bincount().tolist() == [7] * 10


def test_missing_data_are_reported_before_anything_else(tmp_path):
    for call in (MNIST(tmp_path).prepare_data, MNIST(tmp_path).setup):
        with pytest.raises(MissingDataError, match="MNIST was not found"):
            call()


def damaged(tmp_path, match):
    data = MNIST(tmp_path)
    data.prepare_data()
    with pytest.raises(CorruptDataError, match=match):
        data.setup()


def test_a_gzipped_file_cut_short(idx_folder, tmp_path):
    file = idx_folder(tmp_path, ".gz") / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-5000])
    damaged(tmp_path, f"{file} is damaged or cut short")


def test_a_gzipped_file_with_a_flipped_bit(idx_folder, tmp_path):
    file = idx_folder(tmp_path, ".gz") / "t10k-images-idx3-ubyte.gz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    damaged(tmp_path, f"{file} is damaged")


def test_a_file_that_is_not_gzipped_after_all(idx_folder, tmp_path):
    file = idx_folder(tmp_path, ".gz") / "t10k-labels-idx1-ubyte.gz"
    file.write_bytes(gzip.decompress(file.read_bytes()))
    damaged(tmp_path, f"{file} is damaged")


def test_a_plain_file_cut_short(idx_folder, tmp_path):
    file = idx_folder(tmp_path) / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    damaged(tmp_path, f"{file} declares 200 x 28 x 28 = 156800 bytes but has 156799")


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"\0\0\x08\x03\0\0", b"\0\0\x0d\x03" + b"\0" * 12])
def test_a_file_that_is_no_idx_file(content, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(CorruptDataError, match=f"{file} is no IDX file of bytes in 3 dimensions"):
        read_idx(file, dimensions=3)


def test_labels_in_place_of_images(idx_folder, tmp_path):
    idx_folder(tmp_path)
    shutil.copy(tmp_path / "train-labels-idx1-ubyte", tmp_path / "train-images-idx3-ubyte")
    damaged(tmp_path, "it starts with 00 00 08 01, not with 00 00 08 03")


def test_images_and_labels_do_not_match(idx_folder, tmp_path):
    idx_folder(tmp_path)
    shutil.copy(tmp_path / "t10k-labels-idx1-ubyte", tmp_path / "train-labels-idx1-ubyte")
    damaged(tmp_path, "train-images-idx3-ubyte has 200 images, but .*train-labels-idx1-ubyte has 50 labels")


def test_labels_out_of_range(idx_folder, write_idx, tmp_path):
    write_idx(idx_folder(tmp_path) / "t10k-labels-idx1-ubyte", np.arange(50))
    damaged(tmp_path, "t10k-labels-idx1-ubyte has label 49; MNIST has the labels 0 to 9")


def test_no_images_at_all(idx_folder, write_idx, tmp_path):
    idx_folder(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.zeros(0))
    write_idx(tmp_path / "t10k-images-idx3-ubyte", np.zeros((0, 28, 28)))
    damaged(tmp_path, "has no label at all")


def test_images_of_another_size(idx_folder, write_idx, tmp_path):
    write_idx(idx_folder(tmp_path) / "train-images-idx3-ubyte", np.zeros((200, 20, 28)))
    damaged(tmp_path, "has images of 20 x 28 pixels instead of 28 x 28")


def test_the_sibling_under_the_same_file_names(idx_folder, write_idx, tmp_path):
    clothes = [9, 0, 0, 3, 0, 2, 7, 2, 5, 5, 0, 9, 5, 5, 7, 9]
    write_idx(idx_folder(tmp_path) / "train-labels-idx1-ubyte", np.resize(clothes, 200))
    damaged(tmp_path, "is FashionMNIST's, not MNIST's")
    FashionMNIST(tmp_path).setup()


def refuse(*_, **__):
    raise urllib.error.URLError("no network in tests")


def test_download_fills_root_and_only_if_needed(idx_folder, tmp_path, monkeypatch, check_batches):
    calls = []

    def download(root, download):
        calls.append(root)
        idx_folder(Path(root) / "MNIST" / "raw")

    monkeypatch.setattr("torchvision.datasets.MNIST", download)
    monkeypatch.setenv("LIT_PAPERS_DATA", str(tmp_path / "env"))
    for _ in range(2):
        check_batches(MNIST(tmp_path / "root", download=True, batch_size=32), train=180, val=20, test=50)
        check_batches(MNIST(download=True, batch_size=32), train=180, val=20, test=50)
    assert calls == [tmp_path / "root", tmp_path / "env"]


def test_nothing_is_downloaded_unasked(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.MNIST.download", lambda _: pytest.fail("downloaded unasked"))
    with pytest.raises(MissingDataError):
        MNIST(tmp_path).prepare_data()


def test_a_download_needs_a_folder():
    with pytest.raises(ValueError, match=r"no folder to put MNIST in: give `root` .* or set \$LIT_PAPERS_DATA"):
        MNIST(download=True).prepare_data()


def test_a_failed_download_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)
    with pytest.raises(RuntimeError, match=r"(?s)FashionMNIST could not be downloaded into .*no network in tests"):
        FashionMNIST(tmp_path, download=True).prepare_data()


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_debians_copy(check_batches):
    data = FashionMNIST(DEBIAN)
    check_batches(data, train=54000, val=6000, test=10000)
    inside = data.train_set.images[:, :, 2:-2, 2:-2] / 255
    assert inside.mean().item() == pytest.approx(data.mean[0], abs=1e-3)
    assert inside.std().item() == pytest.approx(data.std[0], abs=1e-3)
    assert data.train_set.targets.bincount().tolist() == [5400] * 10

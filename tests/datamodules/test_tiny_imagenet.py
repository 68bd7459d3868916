"""Tiny-ImageNet: the layout that is distributed, its re-arrangements, and what can be wrong with them."""

import pytest
import torch

from lit_papers.datamodules import CorruptDataError, MissingDataError, TinyImageNet
from lit_papers.locations import is_present

CLASSES = ("n01443537", "n01629819", "n01641577")
PER_CLASS = 4


@pytest.fixture
def official(picture):
    """{name: content} as distributed; the brightness of an image tells its class."""

    def build(prefix=""):
        files, lines = {f"{prefix}wnids.txt": "\n".join(CLASSES).encode()}, []
        for number, name in enumerate(CLASSES):
            files[f"{prefix}train/{name}/{name}_boxes.txt"] = b"boxes"
            for i in range(PER_CLASS):
                image = picture(80 * number, size=(64, 64), kind="JPEG")
                files[f"{prefix}train/{name}/images/{name}_{i}.JPEG"] = image
        for i in range(2 * len(CLASSES)):
            number = i % len(CLASSES)
            files[f"{prefix}val/images/val_{i}.JPEG"] = picture(80 * number, size=(64, 64), kind="JPEG")
            lines.append(f"val_{i}.JPEG\t{CLASSES[number]}\t0\t0\t62\t62")
        files[f"{prefix}val/val_annotations.txt"] = "\n".join(lines).encode() + b"\n"
        files[f"{prefix}test/images/test_0.JPEG"] = picture(1, size=(64, 64), kind="JPEG")
        return files

    return build


def tiny(root, **arguments):
    return TinyImageNet(root, mean=[0.5] * 3, std=[0.5] * 3, **{"batch_size": 3, **arguments})


@pytest.mark.parametrize("root", ["tiny", "tiny.zip"])
@pytest.mark.parametrize("prefix", ["", "tiny-imagenet-200/"])
def test_the_official_layout(root, prefix, official, write_tree, check_batches):
    data = tiny(write_tree(official(prefix), root))
    assert (data.num_classes, data.classes, data.input_shape) == (3, list(CLASSES), (3, 64, 64))
    check_batches(data, train=12, val=6, test=6)
    for loader in (data.train_eval_dataloader(), data.val_dataloader()):
        for images, targets in loader:
            brightness = (images * 0.5 + 0.5)[:, 0, 0, 0] * 255
            torch.testing.assert_close(brightness, 80.0 * targets, rtol=0, atol=4)  # JPEG


def test_class_folders(official, picture, write_tree, check_batches):
    files = {name: content for name, content in official().items() if not name.startswith(("val", "test"))}
    files |= {f"val/{name}/{i}.JPEG": picture(0, size=(64, 64)) for name in CLASSES for i in range(3)}
    check_batches(tiny(write_tree(files)), train=12, val=9, test=9)


def test_without_val_images_are_held_out(official, write_tree, check_batches):
    files = {name: content for name, content in official().items() if not name.startswith(("val", "test"))}
    check_batches(tiny(write_tree(files), val_fraction=0.25), train=9, val=3, test=3)


def test_the_first_classes_alone(official, write_tree, check_batches):
    root = write_tree(official())
    data = tiny(root, n_classes=2, samples_per_class=3)
    assert data.classes == list(CLASSES[:2])
    check_batches(data, train=6, val=4, test=4)
    with pytest.raises(ValueError, match=r"`n_classes`=4, but .* has 3 classes"):
        tiny(root, n_classes=4).setup()
    with pytest.raises(ValueError, match="`n_classes` must be at least 2, got 1"):
        tiny(root, n_classes=1)


def test_grey_images_are_turned_into_colour(official, picture, write_tree):
    files = official()
    files[f"train/{CLASSES[0]}/images/{CLASSES[0]}_0.JPEG"] = picture(0, mode="L", size=(64, 64), kind="JPEG")
    data = tiny(write_tree(files))
    data.setup()
    assert data.train_set[0][0].shape == (3, 64, 64)


def test_another_image_size(official, write_tree, check_batches):
    check_batches(tiny(write_tree(official()), image_size=32), train=12, val=6, test=6)


@pytest.mark.parametrize("root", ["tiny", "tiny.zip"])
def test_annotations_that_do_not_match_are_named(root, official, write_tree):
    files = official()
    text = files["val/val_annotations.txt"]
    where = "val_annotations.txt"
    files["val/val_annotations.txt"] = text.split(b"\n", 1)[1]
    with pytest.raises(CorruptDataError, match=f"{where}.* does not say which class val_0.JPEG is"):
        tiny(write_tree(files, root)).setup()
    files["val/val_annotations.txt"] = text + b"val_99.JPEG\tn01443537\t0\t0\t1\t1\n"
    with pytest.raises(CorruptDataError, match=f"{where}.* names val_99.JPEG, which is not among the 6 images"):
        tiny(write_tree(files, root)).setup()
    files["val/val_annotations.txt"] = b"val_0.JPEG\n"
    with pytest.raises(CorruptDataError, match=f"{where}.* must have lines of an image and its class"):
        tiny(write_tree(files, root)).setup()


def test_an_unknown_class_in_the_annotations(official, write_tree):
    files = official()
    files["val/val_annotations.txt"] = files["val/val_annotations.txt"].replace(CLASSES[1].encode(), b"n9")
    with pytest.raises(ValueError, match="has the class 'n9', which train/ lacks"):
        tiny(write_tree(files)).setup()


def test_a_damaged_image_is_named_as_it_lies(official, write_tree):
    files = official()
    files["val/images/val_1.JPEG"] = b"no image"
    data = tiny(write_tree(files))
    data.setup()
    with pytest.raises(CorruptDataError, match=r"val/images/val_1\.JPEG is not an intact image"):
        list(data.val_dataloader())


def test_workers_read_the_zip(official, write_tree):
    data = tiny(write_tree(official(), "tiny.zip"), num_workers=1)
    data.setup()
    assert sum(len(targets) for _, targets in data.val_dataloader()) == 6


def test_nothing_there(tmp_path):
    with pytest.raises(MissingDataError, match="there is nothing at"):
        TinyImageNet(tmp_path / "nowhere").setup()
    assert is_present("TinyImageNet", tmp_path / "nowhere") is False
    assert is_present("lit_papers.datamodules.TinyImageNet", tmp_path) is True

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from lit_papers.datamodules import CorruptDataError, ImageFolder, MissingDataError
from lit_papers.datamodules.file_tree import FileTree

CLASSES = ("cat", "dog", "eel")


@pytest.fixture
def tree(picture):
    """{name: content} of a data set in which the brightness of an image tells its class."""

    def build(prefix="", splits=("train/", "val/", "test/"), each=10):
        return {
            f"{prefix}{split}{name}/{i:02}.png": picture(100 * number + i)
            for split in splits
            for number, name in enumerate(CLASSES)
            for i in range(each)
        }

    return build


def brightness(images):
    return (images * 0.5 + 0.5)[:, 0, 0, 0] * 255


def grey_scale(root, **arguments):
    return ImageFolder(root, mean=[0.5] * 3, std=[0.5] * 3, **{"batch_size": 8, **arguments})


@pytest.mark.parametrize("root", ["images", "images.zip"])
@pytest.mark.parametrize("prefix", ["", "around/"])
def test_the_three_splits(root, prefix, tree, write_tree, check_batches):
    data = grey_scale(write_tree(tree(prefix), root))
    assert (data.num_classes, data.classes, data.input_shape) == (3, list(CLASSES), (3, 32, 32))
    check_batches(data, train=30, val=30, test=30)
    images, targets = next(iter(data.test_dataloader()))
    assert brightness(images).round().tolist() == list(range(8))
    assert targets.tolist() == [0] * 8


@pytest.mark.parametrize("root", ["images", "images.zip"])
@pytest.mark.parametrize("splits", [("",), ("train/",), ("around/",), ("around/train/",)])
def test_without_val_and_test_one_is_held_out(root, splits, tree, write_tree, check_batches):
    data = grey_scale(write_tree({**tree(splits=splits), "README.md": b"text"}, root), val_fraction=0.2)
    check_batches(data, train=24, val=6, test=6)
    assert not set(data.train_set.names) & set(data.val_set.names)
    assert data.val_set.targets.bincount().tolist() == [2, 2, 2]


def test_test_without_val(tree, write_tree, check_batches):
    check_batches(grey_scale(write_tree(tree(splits=("train/", "test/")))), train=27, val=3, test=30)


def test_val_without_test(tree, write_tree, check_batches):
    check_batches(grey_scale(write_tree(tree(splits=("train/", "val/")))), train=30, val=30, test=30)


def test_folder_and_zip_are_split_alike(tree, write_tree):
    files = tree(splits=("",))
    folder, archive = grey_scale(write_tree(files)), grey_scale(write_tree(files, "images.zip"))
    for data in (folder, archive):
        data.setup()
    assert folder.val_set.names == archive.val_set.names
    again = grey_scale(folder.root, seed=1)
    again.setup()
    assert again.val_set.names != folder.val_set.names


def test_samples_per_class(tree, write_tree):
    data = grey_scale(write_tree(tree()), samples_per_class=4)
    data.setup()
    assert data.train_set.targets.bincount().tolist() == [4, 4, 4]
    with pytest.raises(ValueError, match="`samples_per_class`=11, but class 0 has 10 images"):
        grey_scale(data.root, samples_per_class=11).setup()


def test_no_validation_leaves_nothing_to_test_on(tree, write_tree):
    data = grey_scale(write_tree(tree(splits=("",))), val_fraction=0)
    data.setup()
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match="ImageFolder has no test images, as `val_fraction`=0"):
        data.test_dataloader()


@pytest.mark.parametrize("root", ["images", "images.zip"])
def test_workers_serve_the_same_images(root, tree, write_tree):
    path = write_tree(tree(), root)
    alone, helped = grey_scale(path), grey_scale(path, num_workers=2)
    for data in (alone, helped):
        data.setup()
        data.train_set[0]  # opens the .zip before the workers are forked
    batches = zip(alone.train_eval_dataloader(), helped.train_eval_dataloader(), strict=True)
    assert all(torch.equal(ours[0], theirs[0]) for ours, theirs in batches)


@pytest.mark.parametrize("root", ["images", "images.zip"])
def test_a_module_can_be_sent_to_another_process(root, tree, write_tree):
    data = grey_scale(write_tree(tree(), root))
    data.setup()
    first = data.train_set[3][0]
    again = pickle.loads(pickle.dumps(data))  # noqa: S301
    assert torch.equal(again.train_set[3][0], first)


def test_a_forked_process_opens_the_zip_anew(write_tree, monkeypatch):
    files = FileTree(write_tree({"a/1.png": b"content"}, "images.zip"))
    ours = files._opened()
    assert files._opened() is ours
    child = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: child)
    assert files._opened() is not ours
    assert files.read("a/1.png") == b"content"


def test_images_are_resized_and_cropped_around_the_centre(write_tree):
    stripes = np.zeros((40, 80, 3), np.uint8)
    stripes[:, 20:60] = 255  # the middle half of a 2:1 image is what remains of it
    content = io.BytesIO()
    Image.fromarray(stripes).save(content, "PNG")
    data = grey_scale(write_tree({f"a/{i}.png": content.getvalue() for i in range(2)}), image_size=20)
    data.setup()
    image = data.train_set[0][0]
    assert image.shape == (3, 20, 20)
    assert image[:, :, 2:-2].min() == 1


def test_pixels_are_as_stored(write_tree):
    stored = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(stored).save(content, "PNG")
    data = ImageFolder(write_tree({f"a/{i}.png": content.getvalue() for i in range(2)}))
    data.setup()
    expected = stored.transpose(2, 0, 1) / 255 - np.array((0.485, 0.456, 0.406)).reshape(3, 1, 1)
    expected /= np.array((0.229, 0.224, 0.225)).reshape(3, 1, 1)
    np.testing.assert_allclose(data.train_set[0][0], expected, rtol=1e-5, atol=1e-6)


def test_grey_images(picture, write_tree):
    data = ImageFolder(write_tree({f"a/{i}.png": picture(i, "L") for i in range(4)}), channels=1, batch_size=2)
    data.setup()
    assert next(iter(data.train_dataloader()))[0].shape == (2, 1, 32, 32)


@pytest.mark.parametrize(("mode", "found"), [("L", "1 channel"), ("RGBA", "4 channels"), ("CMYK", "4 channels")])
def test_other_channels_need_permission(mode, found, picture, write_tree):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    path = write_tree({f"a/{i}.{kind.lower()}": picture(50, mode, kind=kind) for i in range(2)})
    data = ImageFolder(path)
    data.setup()
    with pytest.raises(ValueError, match=rf"a/.\.{kind.lower()} has {found}, but `channels`=3: set `convert: true`"):
        data.train_set[0]
    data = ImageFolder(path, convert=True)
    data.setup()
    assert data.train_set[0][0].shape == (3, 32, 32)


def test_a_palette_counts_as_colour(write_tree):
    content = io.BytesIO()
    Image.new("RGB", (32, 32), (255, 0, 0)).convert("P", palette=Image.Palette.ADAPTIVE).save(content, "PNG")
    data = grey_scale(write_tree({f"a/{i}.png": content.getvalue() for i in range(2)}))
    data.setup()
    assert data.train_set[0][0][:, 0, 0].tolist() == [1, -1, -1]


def test_sixteen_bits_are_refused(picture, write_tree):
    path = write_tree({f"a/{i}.png": picture(3000, "I;16") for i in range(2)})
    data = ImageFolder(path, channels=1, convert=True)
    data.setup()
    with pytest.raises(ValueError, match="more than 8 bits a channel"):
        data.train_set[0]


@pytest.mark.parametrize("root", ["images", "images.zip"])
def test_a_truncated_image(root, write_tree):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, "JPEG")
    path = write_tree({f"a/{i}.jpg": content.getvalue()[:-400] for i in range(2)}, root)
    data = grey_scale(path)
    data.setup()
    with pytest.raises(CorruptDataError, match=r"a/.\.jpg( in .*)? is not an intact image: .*truncated"):
        data.train_set[0]
    with pytest.raises(CorruptDataError, match="is not an intact image"):
        next(iter(data.train_eval_dataloader()))


def test_a_text_file_called_png(write_tree):
    data = grey_scale(write_tree({"a/1.png": b"Not found", "a/2.png": b""}))
    data.setup()
    with pytest.raises(CorruptDataError, match=r"a/.\.png is not an intact image"):
        data.train_set[0]


def test_a_damaged_member_of_a_zip(picture, write_tree):
    path = write_tree({"a/1.png": picture(1), "a/2.png": picture(2)}, "images.zip")
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        at = archive.infolist()[0].header_offset + 60
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptDataError, match=rf"a/1\.png in {path} is damaged: Bad CRC-32"):
        FileTree(path).read("a/1.png")


def test_a_zip_cut_short(tree, write_tree):
    path = write_tree(tree(), "images.zip")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptDataError, match=rf"{path} is neither a folder nor an intact \.zip"):
        grey_scale(path).prepare_data()


def test_nothing_there(tmp_path):
    for call in (ImageFolder(tmp_path / "no").prepare_data, ImageFolder(tmp_path / "no").setup):
        with pytest.raises(MissingDataError, match=f"there is nothing at {tmp_path}/no: point `root`"):
            call()
    with pytest.raises(MissingDataError, match="has no images in folders"):
        ImageFolder(tmp_path).setup()


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_train_lacks(split, tree, picture, write_tree):
    path = write_tree({**tree(), f"{split}/yak/1.png": picture(1)})
    with pytest.raises(ValueError, match=f"{split}/ of .* has the class 'yak', which train/ lacks"):
        ImageFolder(path).setup()


@pytest.mark.parametrize("root", ["images", "images.zip"])
def test_an_empty_class(root, tree, write_tree):
    path = write_tree({**tree(), "train/yak/readme.txt": b"no image"}, root)
    with pytest.raises(ValueError, match=r"train/yak( in .*)? has no images"):
        ImageFolder(path).setup()


def test_no_train(tree, write_tree):
    with pytest.raises(ValueError, match="has val/ and test/, but no train/"):
        ImageFolder(write_tree(tree(splits=("val/", "test/")))).setup()


def test_images_without_a_class(tree, picture, write_tree):
    path = write_tree({**tree(splits=("train/",)), "test/1.png": picture(1)})
    with pytest.raises(ValueError, match=r"test/ of .* has images, but none in a folder named after its class"):
        ImageFolder(path).setup()


@pytest.mark.parametrize("root", ["images", "images.zip"])
def test_hidden_files_and_deeper_folders(root, tree, picture, write_tree):
    files = {**tree(), "train/cat/more/x.JPEG": picture(7, kind="JPEG")}
    files |= {"__MACOSX/train/cat/._00.png": b"", "train/.cache/1.png": b"", "train/cat/.hidden.png": b""}
    data = grey_scale(write_tree(files, root))
    data.setup()
    assert data.train_set.targets.bincount().tolist() == [11, 10, 10]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "`image_size` must be at least 1, got 0"),
        ({"channels": 4}, "`channels` must be 1 .* or 3 .*, got 4"),
        ({"mean": [0.5]}, "`mean` must have one number for each of 3 channels"),
        ({"std": [0.5, 0.5, 0]}, "`std` must be positive"),
        ({"val_fraction": 1.0}, "`val_fraction` must be at least 0 and below 1, got 1.0"),
        ({"samples_per_class": 0}, "`samples_per_class` must be at least 1, got 0"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageFolder("anywhere", **arguments)


def forbid(path):
    """Shut a path to whoever runs the tests; root may read everything, so it becomes somebody else."""
    path.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    return lambda: os.seteuid(0) if is_root else None


@pytest.mark.parametrize("shut", ["cat/deeper", "cat", "cat/deeper/07.png"])
def test_what_may_not_be_read_is_an_error(shut, tree, picture, write_tree):
    """Left out, half a class would be missing from training, or a class would look empty."""
    content = {f"{name}/deeper/{i:02}.png": picture(i) for name in CLASSES for i in range(10)}
    root = write_tree(content, "images")
    for folder in (root, *root.parents):
        if folder.stat().st_uid == os.geteuid() and folder.name:
            folder.chmod(folder.stat().st_mode | 0o055)
    undo = forbid(root / shut)
    try:
        with pytest.raises(PermissionError, match=f"may not be read.*{root / shut}"):
            grey_scale(root).prepare_data()
    finally:
        undo()
        (root / shut).chmod(0o755)


@pytest.mark.parametrize("up", ["..", "../..", "."])
def test_a_link_to_a_folder_around_it_is_refused(up, tree, write_tree):
    """Followed, each image would be there hundreds of times."""
    root = write_tree(tree(splits=("",)), "images")
    (root / "cat" / "up").symlink_to(up)
    with pytest.raises(ValueError, match=f"{root / 'cat' / 'up'}.* is a link to a folder that it lies in"):
        grey_scale(root).prepare_data()


def test_links_to_elsewhere_are_followed(tree, write_tree, check_batches):
    root = write_tree(tree(splits=("",)), "images")
    (root / "dog").rename(root.parent / "elsewhere")
    (root / "dog").symlink_to(root.parent / "elsewhere")
    data = grey_scale(root, val_fraction=0.0)
    data.setup()
    assert data.train_set.targets.bincount().tolist() == [10, 10, 10]


def test_a_pipe_is_refused(tree, write_tree):
    root = write_tree(tree(splits=("",)), "images")
    os.mkfifo(root / "cat/pipe.png")
    with pytest.raises(ValueError, match=r"pipe.png is a pipe, socket or device"):
        grey_scale(root).prepare_data()


def test_images_that_are_not_read_are_told(tree, write_tree):
    root = write_tree(tree(splits=("",)), "images")
    (root / "cat/moving.GIF").write_bytes(b"GIF89a")
    with pytest.warns(UserWarning, match=r"1 images such as .*moving.GIF are left out"):
        grey_scale(root).prepare_data()


def test_a_link_to_nothing_is_refused(tree, write_tree):
    root = write_tree(tree(splits=("",)), "images")
    (root / "cat/gone.png").symlink_to("nowhere.png")
    with pytest.raises(ValueError, match=r"gone.png is a link to nothing"):
        grey_scale(root).prepare_data()

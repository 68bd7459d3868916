"""Images of any kind of data set, read when they are due."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from lit_papers.datamodules import TaskSequence
from lit_papers.datamodules.task_images import Pool, Varied, image_source, known_labels, pixels
from lit_papers.datamodules.task_stream import EvaluationBatches, TaskImages, TrainingBatches

LABELS = [label for label in range(4) for _ in range(10)]


class Made(Dataset[Any]):
    """Samples made when they are asked for, and counted; pixel (0, 0) is the number of the sample."""

    def __init__(self, make: Any = None, targets: Any = None, noise: bool = False) -> None:
        self.make, self.noise, self.reads = make, noise, 0
        if targets is not None:
            self.targets = targets

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        image = torch.zeros(3, 6, 5, dtype=torch.uint8)
        image[:, 0, 0] = index
        if self.noise:
            image[0, 1, 1:4] = torch.tensor([int(torch.randint(256, ())), np.random.randint(256), 7])  # noqa: NPY002
        return self.make(image, LABELS[index]) if self.make else (image, LABELS[index])


def stream(data: Any, **options: Any) -> TaskSequence:
    made = TaskSequence(**{"dataset": (data, data), "num_tasks": 2, "batch_size": 4, **options})
    made.setup()
    return made


def numbers(batches: Any) -> list[int]:
    return [int(image[0, 0, 0]) for images, _ in batches for image in images]


def test_setting_up_reads_a_few_samples_and_a_batch_its_own() -> None:
    data = Made(targets=LABELS)
    made = stream(data)
    assert data.reads < 20
    before = data.reads
    images, labels = next(iter(made.train_dataloader()))
    assert data.reads == before + 4
    assert images.shape == (4, 3, 6, 5)
    assert [LABELS[n] for n in images[:, 0, 0, 0].tolist()] == labels.tolist()
    assert numbers(made.memory_dataloader(1)) == list(range(20, 40))


def test_labels_that_differ_from_what_samples_have_are_not_believed() -> None:
    """As of a ``target_transform``; then all samples are read once."""
    liar = Made(targets=[3 - label for label in LABELS])
    assert stream(liar).classes(0) == [0, 1]
    assert numbers(stream(liar).memory_dataloader(0)) == list(range(20))
    changing = Made(targets=LABELS)
    made = stream(changing)
    changing.make = lambda image, label: (image, label ^ 1)
    with pytest.raises(ValueError, match="must not change"):
        next(iter(made.train_dataloader()))


HALVES = torch.arange(40) / 2
ONE_HOT = torch.nn.functional.one_hot(torch.tensor(LABELS))


@pytest.mark.parametrize("labels", [HALVES, ONE_HOT, torch.tensor(LABELS)[:, None], torch.full((40,), torch.nan)])
def test_labels_that_are_no_classes_are_refused(labels: torch.Tensor) -> None:
    """They were cut to whole numbers, or their places were taken for images'."""
    with pytest.raises(TypeError, match="labels must be whole numbers"):
        stream(TensorDataset(torch.zeros(40, 3, 4, 4), labels))


@pytest.mark.parametrize("label", [0.5, "cat", ONE_HOT[0], float("nan"), None])
def test_a_sample_whose_label_is_no_class_is_named(label: Any) -> None:
    for more in ({}, {"targets": [label] * 40}):
        with pytest.raises(TypeError, match="the label of a sample must be a whole number, got"):
            stream(Made(lambda image, _: (image, label), **more))


def test_labels_are_found_without_reading_images() -> None:
    tensors = TensorDataset(torch.zeros(40, 3, 4, 4), torch.tensor(LABELS))
    assert known_labels(tensors).tolist() == LABELS
    assert known_labels(Subset(Made(targets=LABELS), [39, 0])).tolist() == [3, 0]
    assert known_labels(ConcatDataset([tensors, Made(targets=np.array(LABELS))])).tolist() == 2 * LABELS
    assert known_labels(Made(targets=["cat"] * 40)) is None
    assert known_labels(Made()) is None


def picture(image: torch.Tensor, label: int) -> Any:
    pil = pytest.importorskip("PIL.Image")
    return {"img": pil.fromarray(image.permute(1, 2, 0).numpy()), "fine_label": label}


@pytest.mark.parametrize(
    "make",
    [
        picture,
        lambda image, label: {"image": image, "label": torch.tensor(label)},
        lambda image, label: (image.permute(1, 2, 0).numpy(), np.int64(label), "more"),
    ],
    ids=["PIL in a mapping", "mapping", "array"],
)
def test_samples_of_every_usual_form(make: Any) -> None:
    made = stream(Made(make))
    assert numbers(made.memory_dataloader(1)) == list(range(20, 40))
    assert made.memory_dataloader(0).data.images.shape == (20, 3, 6, 5)


@pytest.mark.packages
def test_rows_of_hugging_face() -> None:
    datasets = pytest.importorskip("datasets")
    pil = pytest.importorskip("PIL.Image")
    images = [pil.fromarray(np.full((6, 5, 3), number, dtype=np.uint8)) for number in range(40)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=4)})
    rows = datasets.Dataset.from_dict({"image": images, "label": LABELS}, features=features)
    made = stream(rows)
    assert numbers(made.memory_dataloader(1)) == list(range(20, 40))
    assert sorted(set(next(iter(made.train_dataloader()))[1].tolist())) == [0, 1]


def test_unpack_says_what_cannot_be_told() -> None:
    odd = Made(lambda image, label: {"image": image, "mask": image, "fine": label})
    with pytest.raises(TypeError, match="`unpack`"):
        stream(odd)
    assert stream(odd, unpack=lambda sample: (sample["image"], sample["fine"])).classes(1) == [2, 3]


def test_more_than_eight_bits_and_any_number_of_channels() -> None:
    levels = torch.arange(40 * 13 * 4, dtype=torch.int32).view(40, 13, 2, 2)
    deep = TensorDataset((levels * 31).to(torch.uint16), torch.tensor(LABELS))
    found = stream(deep).memory_dataloader(0).data.images
    torch.testing.assert_close(found, levels[:20] * 31 / 65535)
    dark = TensorDataset(torch.rand(40, 2, 3, 3) / 1000, torch.tensor(LABELS))
    assert torch.equal(stream(dark).memory_dataloader(0).data.images, dark.tensors[0][:20])


@pytest.mark.parametrize(
    ("image", "error", "says"),
    [
        (torch.zeros(3, 4, 4, dtype=torch.int64), TypeError, "int64"),
        (torch.full((3, 4, 4), 255.0), ValueError, r"\[0, 1\], got 255"),
        (torch.full((3, 4, 4), torch.nan), ValueError, r"\[0, 1\]"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), ValueError, "channels first"),
        (torch.zeros(4, 4, dtype=torch.uint8), TypeError, "C, H, W"),
        ("picture.png", TypeError, "C, H, W"),
    ],
)
def test_bad_images_are_refused_before_training(image: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        pixels(image)
    with pytest.raises(error, match=says):
        stream(Made(lambda made, label: (image, label), targets=LABELS))


def test_images_of_several_shapes_are_an_error_of_the_batch() -> None:
    mixed = Made(lambda image, label: (image[:, : 5 + int(image[0, 0, 0]) % 2], label), targets=LABELS)
    with pytest.raises(ValueError, match="one shape"):
        next(iter(stream(mixed).train_dataloader()))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_random_data_set_gives_the_same_images_to_a_resume_and_to_workers(workers: int) -> None:
    data = TaskImages(image_source(Made(targets=LABELS, noise=True)), torch.arange(40))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    whole = [images for images, _ in TrainingBatches(data, 8, seed=1, epoch=0)]
    assert not torch.equal(whole[0], next(iter(TrainingBatches(data, 8, seed=1, epoch=1)))[0])
    again = TrainingBatches(data, 8, seed=1, epoch=0, num_workers=workers)
    again.load_state_dict({"epoch": 0, "position": 2})
    assert all(torch.equal(a, b) for a, (b, _) in zip(whole[2:], again, strict=True))
    assert torch.equal(torch.get_rng_state(), before)  # training draws what it would have drawn
    assert len(list(EvaluationBatches(data, 16, num_workers=workers))) == 3


def test_a_pool_keeps_the_order_of_its_rows() -> None:
    first = image_source(Made(targets=LABELS))
    second = Varied(first, lambda images, task: images + 100, 1)
    pool = Pool([first, second])
    rows = torch.tensor([70, 3, 41, 0])
    assert pool.fetch(rows)[:, 0, 0, 0].tolist() == [130, 3, 101, 0]
    assert pool.labels[rows].tolist() == [3, 0, 0, 0]

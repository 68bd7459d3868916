"""Any labelled images as a stream of tasks, which one ``Trainer.fit`` trains on from the first to the last."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset

from lit_papers.datamodules.digits import Digits
from lit_papers.datamodules.image_folder import ImageFolder
from lit_papers.datamodules.images import ImageDataModule, LabelledImages, check_integer
from lit_papers.datamodules.mnist import MNIST, FashionMNIST
from lit_papers.datamodules.task_stream import EvaluationBatches, TaskImages, TrainingBatches
from lit_papers.datamodules.tiny_imagenet import TinyImageNet
from lit_papers.datamodules.torchvision_sets import CIFAR10, CIFAR100
from lit_papers.locations import LAYOUTS, MissingDataError, own_place

# not ImageDataModule[Any]: the command line would not build a child of a generic class
Source = str | LightningDataModule | tuple[Dataset[Any], Dataset[Any]]


class TaskSequence(LightningDataModule):
    """A stream of tasks, made of any labelled images: the classes in groups, or one data set after the other.

    One ``Trainer.fit`` trains on all tasks, ``epochs_per_task`` epochs each; ``max_epochs: -1`` is the whole stream. A
    resumed run goes on in the middle with the batches that the uninterrupted one would see. Batches are
    ``(images, labels)``: uint8 ``(B, C, H, W)`` and int64 ``(B,)``, the labels as they are in the data set.

    *Class-incremental*, where ``dataset`` is one: task i has the classes ``class_order[i * c : (i + 1) * c]``, and c is
    the number of classes over ``num_tasks``. *Domain-incremental*, where ``dataset`` is a list: task i is the i-th data
    set, with all its classes; images must be of one shape.

    Splits are those of the data module. The images that validate are its validation images or, where it holds none
    out (as under all names below), **the test images**, as is usual for streams.

    Args:
        dataset: ``"digits"``, ``"mnist"``, ``"fashion_mnist"``, ``"cifar10"`` (also as folders of images),
            ``"cifar100"`` or ``"tiny_imagenet"`` (the first 100 classes); one of our image data modules; a pair of
            training and test set of ``(image, label)``, with images uint8 or in [0, 1]; or a list of these.
        num_tasks: T, at least 1.
        epochs_per_task: at least 1.
        batch_size: images in a batch, on each process; at least 2.
        class_order: all classes in the order of the stream; None is ascending.
        multitask: train on all tasks at once, for ``epochs_per_task`` epochs, and evaluate each alone.
        root: of a data set that is given by name, as in its data module.
        train_per_task: train on the first images of each task, in the order of the files; None is all.
        test_per_task: likewise for validation and test.
        eval_batch_size: images in a batch that is evaluated.
        seed: of the order of images, at least 0.

    Attributes:
        num_classes: of all tasks together, after ``setup``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range, the number of tasks does not fit, ``class_order`` is no permutation
            of the classes, or a task has no images, or none of a class (all but the first at ``setup``).
        MissingDataError: the files were not found (at ``prepare_data`` and ``setup``), a FileNotFoundError.

    >>> data = TaskSequence("digits", num_tasks=5, batch_size=64)
    >>> data.setup()
    >>> data.classes(1), len(data.val_dataloader())
    ([2, 3], 5)
    """

    def __init__(
        self,
        dataset: Source | list[Source] = "digits",
        num_tasks: int = 5,
        epochs_per_task: int = 1,
        batch_size: int = 256,
        class_order: Sequence[int] | None = None,
        multitask: bool = False,
        root: str | Path | None = None,
        train_per_task: int | None = None,
        test_per_task: int | None = None,
        eval_batch_size: int = 512,
        seed: int = 0,
    ) -> None:
        super().__init__()
        least = {"num_tasks": 1, "epochs_per_task": 1, "batch_size": 2, "eval_batch_size": 1, "seed": 0}
        least |= {"train_per_task": 1, "test_per_task": 1}
        given = {
            "num_tasks": num_tasks, "epochs_per_task": epochs_per_task, "batch_size": batch_size, "seed": seed,
            "eval_batch_size": eval_batch_size, "train_per_task": train_per_task, "test_per_task": test_per_task,
        }  # fmt: skip
        for name, value in given.items():
            if value is not None:
                check_integer(name, value, least=least[name])
        if isinstance(dataset, list):
            if len(dataset) != num_tasks:
                raise ValueError(f"`num_tasks`={num_tasks}, but `dataset` lists {len(dataset)} data sets, one a task")
            if class_order is not None:
                raise ValueError("`class_order` is for one data set in groups of classes, but `dataset` is a list")
        self._sources = [_source(one, root) for one in (dataset if isinstance(dataset, list) else [dataset])]
        self._by_class = not isinstance(dataset, list)
        self.num_tasks = num_tasks
        self.epochs_per_task = epochs_per_task
        self.batch_size = batch_size
        self.class_order = class_order
        self.multitask = multitask
        self.train_per_task = train_per_task
        self.test_per_task = test_per_task
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self._classes: list[list[int]] = []
        self._train: list[TaskImages] = []
        self._val: list[TaskImages] = []
        self._test: list[TaskImages] = []
        self._warned: set[int] = set()

    @property
    def total_epochs(self) -> int:
        """Epochs of the whole stream."""
        return self.epochs_per_task * (1 if self.multitask else self.num_tasks)

    @property
    def num_classes(self) -> int:
        """How many classes the tasks have together, after ``setup``."""
        return len({label for task in range(self.num_tasks) for label in self.classes(task)})

    def classes(self, task: int) -> list[int]:
        """The labels of one task, in the order of the stream, after ``setup``."""
        self._check_loaded()
        return self._classes[task]

    def task_of(self, epoch: int) -> int:
        """The task that is trained in an epoch, both counted from 0; after the stream the last one."""
        return self.num_tasks - 1 if self.multitask else min(epoch // self.epochs_per_task, self.num_tasks - 1)

    def prepare_data(self) -> None:
        """Let data modules look for their files, or fetch them where they were told to."""
        for source in self._sources:
            if isinstance(source, ImageDataModule):
                source.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Read all images, once, and before training fit the trainer to the stream."""
        if not self._train:
            self._load()
        if stage == "fit" and self.trainer is not None:
            self._fit_trainer()

    def train_dataloader(self) -> TrainingBatches:
        """Shuffled batches of the task of the trainer's current epoch; of all tasks, if ``multitask``.

        Raises:
            ValueError: there are fewer than two images for each process.
        """
        self._check_loaded()
        epoch, rank, processes = 0, 0, 1
        if self.trainer is not None:
            epoch, rank, processes = self.trainer.current_epoch, self.trainer.global_rank, self.trainer.world_size
        task = self.task_of(epoch)
        data = _together(self._train) if self.multitask else self._train[task]
        if len(data) < 2 * processes:
            raise ValueError(f"task {task} has {len(data)} training images, but each process needs at least two")
        batches = TrainingBatches(data, self.batch_size, self.seed, epoch, rank, processes)
        if batches.dropped and task not in self._warned:
            self._warned.add(task)
            which = "all tasks together" if self.multitask else f"task {task}"
            rank_zero_warn(
                f"{which}: the last batch of each epoch has {batches.dropped} of {len(data)} images, too few for "
                "batch norm, and is left out; another `batch_size` would keep it"
            )
        return batches

    def val_dataloader(self) -> list[EvaluationBatches]:
        """For each task, the images that validate."""
        return self._evaluated(self._val)

    def test_dataloader(self) -> list[EvaluationBatches]:
        """For each task, the test images."""
        return self._evaluated(self._test)

    def memory_dataloader(self, task: int) -> EvaluationBatches:
        """The training images of one task in a fixed order, all of them on every process."""
        self._check_loaded()
        return EvaluationBatches(self._train[task], self.eval_batch_size)

    def _evaluated(self, tasks: list[TaskImages]) -> list[EvaluationBatches]:
        self._check_loaded()
        rank, processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        return [EvaluationBatches(task, self.eval_batch_size, rank, processes) for task in tasks]

    def _fit_trainer(self) -> None:
        trainer = self.trainer
        assert trainer is not None  # noqa: S101
        # Not `epochs_per_task`: after a resume Lightning counts from the epoch of the resume (its issue 21492), and
        # would train the next task on the images of the one before.
        trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
        wanted, total = trainer.fit_loop.max_epochs, self.total_epochs
        if wanted is None or wanted == -1 or wanted > total:
            trainer.fit_loop.max_epochs = total
        elif wanted < total and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(
                f"`max_epochs`={wanted} cuts the stream, which has {total} epochs: {self.num_tasks} tasks of "
                f"{self.epochs_per_task}; `max_epochs=-1` runs all of it"
            )
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback._every_n_train_steps:
                rank_zero_warn(
                    "a checkpoint of `every_n_train_steps` may fall on the last batch of an epoch; Lightning resumes "
                    "from it without the validation that was due, and wrongly if the next task has more batches. "
                    "Resume from another one, or use `save_on_train_epoch_end`"
                )

    def _load(self) -> None:
        splits = [_read(source) for source in self._sources]
        shapes = {tuple(images.images.shape[1:]) for parts in splits for images in parts}
        if len(shapes) > 1:
            raise ValueError(f"images of all tasks must be of one shape, got {' and '.join(map(str, sorted(shapes)))}")
        if self._by_class:
            self._classes = self._groups(_values(torch.cat([images.labels for images in splits[0]])))
            tasks = [[_of_classes(images, classes) for images in splits[0]] for classes in self._classes]
        else:
            tasks = splits
            self._classes = [_values(train.labels) for train, _, _ in splits]
        for task, parts in enumerate(tasks):
            for part, name in zip(parts, ("training", "validation", "test"), strict=True):
                if not len(part):
                    raise ValueError(f"task {task} (classes {self._classes[task]}) has no {name} images")
        self._train, self._val, self._test = (
            [
                self._first(parts[i], task, ("train_per_task", "test_per_task")[i > 0])
                for task, parts in enumerate(tasks)
            ]
            for i in range(3)
        )

    def _first(self, data: TaskImages, task: int, limit: str) -> TaskImages:
        count = getattr(self, limit)
        kept = TaskImages(data.images[:count], data.labels[:count])
        lost = sorted(set(_values(data.labels)) - set(_values(kept.labels)))
        if lost:  # as in folders, where one class comes after the other
            raise ValueError(
                f"`{limit}`={count} leaves task {task} without images of class {', '.join(map(str, lost))}, which come "
                "later in the files: keep more, or limit the data module instead (`samples_per_class`)"
            )
        return kept

    def _groups(self, labels: list[int]) -> list[list[int]]:
        order = labels if self.class_order is None else list(self.class_order)
        if sorted(order) != labels:
            raise ValueError(f"`class_order` must name each of the classes {labels} once, got {order}")
        if len(labels) % self.num_tasks:
            raise ValueError(f"`num_tasks`={self.num_tasks} does not divide the {len(labels)} classes")
        size = len(labels) // self.num_tasks
        return [order[i : i + size] for i in range(0, len(order), size)]

    def _check_loaded(self) -> None:
        if not self._train:
            raise RuntimeError("TaskSequence has not read its data yet: call `setup()`, or hand it to a Trainer")


def _cifar10(root: str | Path | None) -> ImageDataModule[Any]:
    place = own_place(root)
    layout = LAYOUTS["CIFAR10"]
    if place is None or not place.exists() or any(not layout.lacks(place / folder) for folder in layout.folders):
        return CIFAR10(root, val_fraction=0.0)
    return ImageFolder(place, image_size=32, val_fraction=0.0)


def _tiny_imagenet(root: str | Path | None) -> ImageDataModule[Any]:
    place = own_place(root)
    if place is None:
        raise MissingDataError(
            "Tiny-ImageNet was not found: point `root` (--data.root=PATH) at its folder tiny-imagenet-200 or .zip"
        )
    return TinyImageNet(place, n_classes=100, val_fraction=0.0)


# All hold nothing out: the test images validate.
_NAMES: dict[str, Callable[[str | Path | None], ImageDataModule[Any]]] = {
    "digits": lambda root: Digits(),
    "mnist": lambda root: MNIST(root, val_fraction=0.0),
    "fashion_mnist": lambda root: FashionMNIST(root, val_fraction=0.0),
    "cifar10": _cifar10,
    "cifar100": lambda root: CIFAR100(root, val_fraction=0.0),
    "tiny_imagenet": _tiny_imagenet,
}


def _source(source: Any, root: str | Path | None) -> ImageDataModule[Any] | tuple[Dataset[Any], Dataset[Any]]:
    if isinstance(source, str):
        if source not in _NAMES:
            raise ValueError(f"`dataset` must be one of {', '.join(_NAMES)}, a data module or a pair, got {source!r}")
        return _NAMES[source](root)
    if isinstance(source, ImageDataModule):
        return source
    if isinstance(source, tuple) and len(source) == 2:
        return source
    raise TypeError(
        f"`dataset` must be a name, one of our image data modules, a pair (train, test) or a list of these, got "
        f"{type(source).__name__}"
    )


def _read(source: ImageDataModule[Any] | tuple[Dataset[Any], Dataset[Any]]) -> list[TaskImages]:
    """Training, validation and test images."""
    if isinstance(source, ImageDataModule):
        source.setup()
        val = source.val_set if len(source.val_set) else source.test_set
        sets = [source.train_set, val, source.test_set]
    else:
        sets = [source[0], source[1], source[1]]
    read: dict[int, TaskImages] = {}
    for images in sets:
        if id(images) not in read:  # one set may serve twice
            read[id(images)] = _as_bytes(images)
    return [read[id(images)] for images in sets]


def _as_bytes(images: Any) -> TaskImages:
    if isinstance(images, LabelledImages):
        stored = images.fetch(list(range(len(images))))  # (N, C, H, W), uint8
        if images.white != 255:
            stored = (stored.float() * (255 / images.white)).round().to(torch.uint8)
        return TaskImages(stored, images.targets)
    if not len(images):
        raise ValueError("a data set of the pair is empty")
    samples = [images[i] for i in range(len(images))]
    pictures, labels = [_pixels(sample[0]) for sample in samples], [int(sample[1]) for sample in samples]
    return TaskImages(torch.stack(pictures), torch.tensor(labels))


def _pixels(image: Any) -> Tensor:
    if not isinstance(image, Tensor) or image.dim() != 3:
        raise TypeError(f"images must be tensors (C, H, W), got {getattr(image, 'shape', type(image).__name__)}")
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point() or image.min() < 0 or image.max() > 1:
        raise ValueError("images must be uint8, or floats in [0, 1]: normalising is the model's transform's part")
    return (image * 255).round().to(torch.uint8)


def _values(labels: Tensor) -> list[int]:
    return sorted(set(labels.tolist()))


def _of_classes(data: TaskImages, classes: list[int]) -> TaskImages:
    rows = torch.isin(data.labels, torch.tensor(classes))
    return TaskImages(data.images[rows], data.labels[rows])


def _together(tasks: list[TaskImages]) -> TaskImages:
    return TaskImages(torch.cat([task.images for task in tasks]), torch.cat([task.labels for task in tasks]))

"""Any labelled images as a stream of tasks, which one ``Trainer.fit`` trains on from the first to the last."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset

from lit_papers.datamodules.digits import Digits
from lit_papers.datamodules.image_folder import ImageFolder
from lit_papers.datamodules.images import ImageDataModule, check_integer
from lit_papers.datamodules.mnist import MNIST, FashionMNIST
from lit_papers.datamodules.task_images import ImageSource, Pool, Shifted, Unpack, Varied, image_source
from lit_papers.datamodules.task_protocol import blurred, class_groups_of, of_classes
from lit_papers.datamodules.task_stream import EvaluationBatches, TaskImages, TrainingBatches
from lit_papers.datamodules.tiny_imagenet import TinyImageNet
from lit_papers.datamodules.torchvision_sets import CIFAR10, CIFAR100
from lit_papers.locations import LAYOUTS, MissingDataError, own_place

# not ImageDataModule[Any]: the command line would not build a child of a generic class
Source = str | LightningDataModule | tuple[Dataset[Any], Dataset[Any]]
_SPLITS = ("training", "validation", "test")


class TaskSequence(LightningDataModule):
    """A stream of tasks, made of any labelled images: the classes in groups, or one domain after the other.

    One ``Trainer.fit`` trains on all tasks, ``epochs_per_task`` epochs each; ``max_epochs: -1`` is the whole stream. A
    resumed run goes on in the middle with the batches that the uninterrupted one would see. Batches are
    ``(images, labels)``: ``(B, C, H, W)``, uint8 or (of more than eight bits) float32 in [0, 1], and int64 ``(B,)``,
    the labels as they are in the data set. Images stay in their data set, and are read when a batch is due.

    *Class-incremental*, where ``dataset`` is one: the classes in groups, equal ones unless ``classes_per_task`` or
    ``class_groups`` says otherwise. *Domain-incremental*, where ``dataset`` is a list (task i is the i-th data set,
    with all its classes), or one data set under a ``domain_transform``.

    Splits are those of the data module. The images that validate are its validation images or, where it holds none
    out (as under all names below), **the test images**, as is usual for streams.

    Args:
        dataset: ``"digits"``, ``"mnist"``, ``"fashion_mnist"``, ``"cifar10"`` (also as folders of images),
            ``"cifar100"`` or ``"tiny_imagenet"`` (the first 100 classes); one of our image data modules; a pair of
            training and test set of samples; or a list of these. A sample is ``(image, label)`` or a mapping with
            these, its image a tensor ``(C, H, W)``, an array or a picture (PIL): uint8, uint16 or floats in [0, 1].
        num_tasks: T; None is one for each data set of a list or group of classes, else 5.
        epochs_per_task: at least 1.
        batch_size: images in a batch, on each process; at least 2.
        class_order: all classes in the order of the stream; None is ascending.
        classes_per_task: how many classes each task has, such as ``[4, 3, 3]``; None gives all the same number.
        class_groups: the classes of each task, in any order; classes in no group are left out.
        domain_transform: from images and the number of a task to its images, of the same shape and type, such as
            `PermutedPixels` or `RotatedImages`; every task then has all classes.
        separate_classes: in a list of data sets, count the labels of each on from those before.
        blurry: share of each class' training images that the other tasks see, in [0, 1) (Bang et al. 2021).
        multitask: train on all tasks at once, for ``epochs_per_task`` epochs, and evaluate each alone.
        fit_per_task: every ``Trainer.fit`` trains one task, the next one each time (`begin_task` names another).
        root: of a data set that is given by name, as in its data module.
        train_per_task: train on the first images of each task, in the order of the files; None is all.
        test_per_task: likewise for validation and test.
        eval_batch_size: images in a batch that is evaluated.
        num_workers: processes that read images, at least 0; 0 reads in the main one.
        unpack: from a sample to ``(image, label)``, where that is not plain.
        seed: of the order of images, at least 0.

    Attributes:
        num_classes: of all tasks together, after ``setup``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range, the tasks do not fit the classes or the images each other, or a task
            has no images, or none of a class (all but the first at ``setup``).
        MissingDataError: the files were not found (at ``prepare_data`` and ``setup``), a FileNotFoundError.

    >>> data = TaskSequence("digits", classes_per_task=[4, 3, 3], batch_size=64)
    >>> data.setup()
    >>> data.classes(1), len(data.val_dataloader())
    ([4, 5, 6], 3)
    """

    def __init__(
        self,
        dataset: Source | list[Source] = "digits",
        num_tasks: int | None = None,
        epochs_per_task: int = 1,
        batch_size: int = 256,
        class_order: Sequence[int] | None = None,
        classes_per_task: Sequence[int] | None = None,
        class_groups: Sequence[Sequence[int]] | None = None,
        domain_transform: Callable[[Tensor, int], Tensor] | None = None,
        separate_classes: bool = False,
        blurry: float = 0.0,
        multitask: bool = False,
        fit_per_task: bool = False,
        root: str | Path | None = None,
        train_per_task: int | None = None,
        test_per_task: int | None = None,
        eval_batch_size: int = 512,
        num_workers: int = 0,
        unpack: Unpack | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("num_tasks", num_tasks, 1), ("epochs_per_task", epochs_per_task, 1), ("batch_size", batch_size, 2),
            ("eval_batch_size", eval_batch_size, 1), ("train_per_task", train_per_task, 1),
            ("test_per_task", test_per_task, 1), ("num_workers", num_workers, 0), ("seed", seed, 0),
        ):  # fmt: skip
            if value is not None:
                check_integer(name, value, least=least)
        if not 0 <= blurry < 1:
            raise ValueError(f"`blurry` must be in [0, 1), got {blurry}")
        if multitask and fit_per_task:
            raise ValueError("`multitask` trains on all tasks in one fit, so `fit_per_task` does not fit")
        grouping = {"class_order": class_order, "classes_per_task": classes_per_task, "class_groups": class_groups}
        several = isinstance(dataset, list)
        for name, group in grouping.items():
            if group is not None and (several or domain_transform is not None):
                raise ValueError(f"`{name}` is for one data set in groups of classes, but here tasks are domains")
        if class_groups is not None and (class_order is not None or classes_per_task is not None):
            raise ValueError("`class_groups` says it all: leave out `class_order` and `classes_per_task`")
        if separate_classes and not several:
            raise ValueError("`separate_classes` is for a list of data sets")
        if several and domain_transform is not None:
            raise ValueError("`domain_transform` makes domains of one data set, but `dataset` is a list of them")
        told: dict[str, Any] = {"dataset": dataset if several else None, "classes_per_task": classes_per_task,
                "class_groups": class_groups}  # fmt: skip
        for name, listed in told.items():
            if listed is not None and num_tasks not in (None, len(listed)):
                what = "data sets, one a task" if name == "dataset" else "tasks"
                raise ValueError(f"`num_tasks`={num_tasks}, but `{name}` lists {len(listed)} {what}")
            if listed is not None:
                num_tasks = len(listed)
        self._sources = [_source(one, root) for one in (dataset if isinstance(dataset, list) else [dataset])]
        self._by_class = not several and domain_transform is None
        self.num_tasks = 5 if num_tasks is None else num_tasks
        self.epochs_per_task = epochs_per_task
        self.batch_size = batch_size
        self.class_order = class_order
        self.classes_per_task = classes_per_task
        self.class_groups = class_groups
        self.domain_transform = domain_transform
        self.separate_classes = separate_classes
        self.blurry = blurry
        self.multitask = multitask
        self.fit_per_task = fit_per_task
        self.train_per_task = train_per_task
        self.test_per_task = test_per_task
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.unpack = unpack
        self.seed = seed
        self._classes: list[list[int]] = []
        self._train: list[TaskImages] = []  # what is trained on; differs from the next if boundaries are blurry
        self._bank: list[TaskImages] = []
        self._val: list[TaskImages] = []
        self._test: list[TaskImages] = []
        self._fit_task, self._next_task = 0, 0
        self._warned: set[int] = set()

    @property
    def total_epochs(self) -> int:
        """Epochs of the whole stream; of one task, if each has a fit of its own."""
        return self.epochs_per_task * (1 if self.multitask or self.fit_per_task else self.num_tasks)

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
        if self.fit_per_task:
            return self._fit_task
        return self.num_tasks - 1 if self.multitask else min(epoch // self.epochs_per_task, self.num_tasks - 1)

    def begin_task(self, task: int) -> None:
        """Let the next fit train this task, where every fit trains one.

        Raises:
            ValueError: there is no such task, or one fit trains all of them.
        """
        if not self.fit_per_task:
            raise ValueError("`begin_task` is for streams with `fit_per_task=True`; here one fit trains all tasks")
        if not 0 <= task < self.num_tasks:
            raise ValueError(f"`task` must be in 0..{self.num_tasks - 1}, got {task}")
        self._next_task = task

    def prepare_data(self) -> None:
        """Let data modules look for their files, or fetch them where they were told to."""
        for source in self._sources:
            if isinstance(source, ImageDataModule):
                source.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Find out who has which label, once, and before training fit the trainer to the stream.

        Raises:
            ValueError: (with ``fit_per_task``) all tasks have had their fit.
        """
        if not self._train:
            self._load()
        if stage == "fit" and self.fit_per_task:
            if self._next_task >= self.num_tasks:
                raise ValueError(
                    f"all {self.num_tasks} tasks have had their fit (`fit_per_task`): `begin_task` names one to train"
                )
            self._fit_task = self._next_task
            self._next_task += 1
        if stage == "fit" and self.trainer is not None:
            self._fit_trainer()

    def state_dict(self) -> dict[str, Any]:
        """The task of this fit, where each has one of its own."""
        return {"fit_task": self._fit_task} if self.fit_per_task else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the task of the fit that is resumed; a checkpoint that is evaluated says nothing about the next."""
        evaluates = self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING
        if self.fit_per_task and "fit_task" in state and not evaluates:
            self._fit_task, self._next_task = state["fit_task"], state["fit_task"] + 1

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
        data = self._train[task]
        if self.multitask:
            data = TaskImages(data.source, torch.cat([one.rows for one in self._train]))
        if len(data) < 2 * processes:
            raise ValueError(f"task {task} has {len(data)} training images, but each process needs at least two")
        batches = TrainingBatches(data, self.batch_size, self.seed, epoch, rank, processes, self.num_workers)
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
        """The training images of one task in a fixed order, all of them on every process; of its own classes alone."""
        self._check_loaded()
        return EvaluationBatches(self._bank[task], self.eval_batch_size, num_workers=self.num_workers)

    def _evaluated(self, tasks: list[TaskImages]) -> list[EvaluationBatches]:
        self._check_loaded()
        rank, processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        return [EvaluationBatches(task, self.eval_batch_size, rank, processes, self.num_workers) for task in tasks]

    def _fit_trainer(self) -> None:
        trainer = self.trainer
        assert trainer is not None  # noqa: S101
        # Not `epochs_per_task`: after a resume Lightning counts from the epoch of the resume (its issue 21492), and
        # would train the next task on the images of the one before.
        trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
        wanted, total = trainer.fit_loop.max_epochs, self.total_epochs
        if self.fit_per_task:
            if wanted is None or wanted == -1:
                trainer.fit_loop.max_epochs = trainer.current_epoch + total
        elif wanted is None or wanted == -1 or wanted > total:
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
        read = [_read(source, self.unpack) for source in self._sources]
        if self.separate_classes:
            read = _separated(read)
        if self.domain_transform is not None:
            change = self.domain_transform
            read = [[Varied(split, change, task) for split in read[0]] for task in range(self.num_tasks)]
        _check_shapes(read)
        pools = [Pool([splits[which] for splits in read]) for which in range(3)]
        if self._by_class:
            labels = _values(torch.cat([pool.labels for pool in pools]))
            self._classes = class_groups_of(
                labels, self.num_tasks, self.class_order, self.classes_per_task, self.class_groups
            )
            tasks = [[of_classes(pool, classes) for pool in pools] for classes in self._classes]
        else:
            self._classes = [_values(splits[0].labels) for splits in read]
            tasks = [[_part(pool, task) for pool in pools] for task in range(self.num_tasks)]
        for task, parts in enumerate(tasks):
            for part, name in zip(parts, _SPLITS, strict=True):
                if not len(part):
                    raise ValueError(f"task {task} (classes {self._classes[task]}) has no {name} images")
        self._bank, self._val, self._test = (
            [
                self._first(parts[i], task, ("train_per_task", "test_per_task")[i > 0])
                for task, parts in enumerate(tasks)
            ]
            for i in range(3)
        )
        self._train = blurred(self._bank, self.blurry, self.seed) if self.blurry else self._bank

    def _first(self, data: TaskImages, task: int, limit: str) -> TaskImages:
        count = getattr(self, limit)
        kept = TaskImages(data.source, data.rows[:count])
        lost = sorted(set(_values(data.labels)) - set(_values(kept.labels)))
        if lost:  # as in folders, where one class comes after the other
            raise ValueError(
                f"`{limit}`={count} leaves task {task} without images of class {', '.join(map(str, lost))}, which come "
                "later in the files: keep more, or limit the data module instead (`samples_per_class`)"
            )
        return kept

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


def _source(source: Any, root: str | Path | None) -> ImageDataModule[Any] | tuple[Any, Any]:
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


def _read(source: ImageDataModule[Any] | tuple[Any, Any], unpack: Unpack | None) -> list[ImageSource]:
    """Sources of training, validation and test images."""
    if isinstance(source, ImageDataModule):
        source.setup()
        val = source.val_set if len(source.val_set) else source.test_set
        sets = [source.train_set, val, source.test_set]
    else:
        sets = [source[0], source[1], source[1]]
    made: dict[int, ImageSource] = {}
    for images in sets:
        if id(images) not in made:  # one set may serve twice
            made[id(images)] = image_source(images, unpack)
    return [made[id(images)] for images in sets]


def _separated(read: list[list[ImageSource]]) -> list[list[ImageSource]]:
    """Labels of each data set counted on from the largest before it."""
    found: list[list[ImageSource]] = []
    above = 0
    for splits in read:
        found.append([Shifted(split, above) for split in splits])
        above += 1 + max(int(split.labels.max()) for split in splits)
    return found


def _check_shapes(read: list[list[ImageSource]]) -> None:
    first = torch.zeros(1, dtype=torch.int64)
    examples = [split.fetch(first) for splits in read for split in splits if len(split.labels)]
    shapes = sorted({tuple(image.shape[1:]) for image in examples})
    if len(shapes) > 1:
        raise ValueError(f"images of all tasks must be of one shape, got {' and '.join(map(str, shapes))}")
    kinds = sorted({str(image.dtype) for image in examples})
    if len(kinds) > 1:
        raise ValueError(f"images of all tasks must be of one type, got {' and '.join(kinds)}")


def _part(pool: Pool, number: int) -> TaskImages:
    """The images of one of the pool's sources."""
    ends = [0, *pool.ends.tolist()]
    return TaskImages(pool, torch.arange(ends[number], ends[number + 1]))


def _values(labels: Tensor) -> list[int]:
    return sorted(set(labels.tolist()))

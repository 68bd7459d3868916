"""The stream: which images, in which order, on which process."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import TensorDataset

from lit_papers.datamodules import Digits, MissingDataError, TaskSequence
from lit_papers.datamodules.task_images import TensorImages
from lit_papers.datamodules.task_stream import TaskImages, TrainingBatches

pytestmark = pytest.mark.filterwarnings("ignore:.*the last batch of each epoch")


def pair(counts: dict[int, int], size: int = 4) -> tuple[TensorDataset, TensorDataset]:
    """Images whose first pixel is their number, so that each can be told."""
    labels = torch.tensor([label for label, count in counts.items() for _ in range(count)])
    images = torch.zeros(len(labels), 1, size, size, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(len(labels)) % 256
    images[:, 0, 0, 1] = torch.arange(len(labels)) // 256
    return TensorDataset(images, labels), TensorDataset(images, labels)


def stream(**options: Any) -> TaskSequence:
    data = TaskSequence(**{"dataset": pair({0: 6, 1: 7, 2: 8, 3: 9}), "num_tasks": 2, "batch_size": 4, **options})
    data.setup()
    return data


def numbers(batches: Any) -> list[int]:
    return [int(image[0, 0, 0]) for images, _ in batches for image in images]


def counted(samples: int) -> TaskImages:
    source = TensorImages(TensorDataset(torch.zeros(samples, 1, 2, 2, dtype=torch.uint8), torch.arange(samples)))
    return TaskImages(source, torch.arange(samples))


def test_classes_come_in_groups() -> None:
    data = stream()
    assert [data.classes(task) for task in range(2)] == [[0, 1], [2, 3]]
    assert data.num_classes == 4
    assert numbers(data.memory_dataloader(1)) == list(range(13, 30))
    assert [len(loader.data) for loader in data.val_dataloader()] == [13, 17]
    ordered = stream(class_order=[3, 0, 1, 2])
    assert ordered.classes(0) == [3, 0]
    assert numbers(ordered.memory_dataloader(0)) == [*range(6), *range(21, 30)]
    first = stream(train_per_task=10, test_per_task=9)
    assert first.memory_dataloader(1).data.labels.tolist() == [2] * 8 + [3] * 2
    assert [len(loader.data) for loader in first.test_dataloader()] == [9, 9]


def test_tasks_of_epochs() -> None:
    data = stream(epochs_per_task=3)
    assert [data.task_of(epoch) for epoch in (0, 2, 3, 5, 6, 100)] == [0, 0, 1, 1, 1, 1]
    assert stream(multitask=True, epochs_per_task=3).task_of(0) == 1
    assert (data.total_epochs, stream(multitask=True, epochs_per_task=3).total_epochs) == (6, 3)


def test_a_list_is_a_stream_of_domains() -> None:
    first, second = pair({0: 5, 1: 5}), pair({1: 4, 7: 6})
    data = TaskSequence([first, second], num_tasks=2, batch_size=4)
    data.setup()
    assert [data.classes(task) for task in range(2)] == [[0, 1], [1, 7]]
    assert data.num_classes == 3
    assert len(data.memory_dataloader(1).data) == 10
    with pytest.raises(ValueError, match="`num_tasks`=3, but `dataset` lists 2"):
        TaskSequence([first, second], num_tasks=3)
    with pytest.raises(ValueError, match="`class_order`"):
        TaskSequence([first, second], num_tasks=2, class_order=[0, 1])
    mixed = TaskSequence([first, pair({1: 4}, size=5)], num_tasks=2)
    with pytest.raises(ValueError, match="one shape"):
        mixed.setup()


def test_one_of_our_data_modules_is_taken_with_its_splits() -> None:
    theirs = Digits(samples_per_class=20)
    data = TaskSequence(theirs, num_tasks=5)
    data.setup()
    theirs.setup()
    assert sum(len(data.memory_dataloader(task).data) for task in range(5)) == len(theirs.train_set) == 200
    assert sum(len(loader.data) for loader in data.val_dataloader()) == len(theirs.val_set)
    assert int(data.memory_dataloader(0).data.images.max()) == 255  # digits have 16 levels
    assert data.memory_dataloader(0).data.images.dtype == torch.uint8


def test_groups_of_any_sizes_in_any_order() -> None:
    assert [stream(num_tasks=None, classes_per_task=[3, 1]).classes(task) for task in (0, 1)] == [[0, 1, 2], [3]]
    for groups in (np.array([[2, 3], [0, 1]]), [np.array([2, 3]), torch.tensor([0, 1])]):
        assert [stream(num_tasks=None, class_groups=groups).classes(task) for task in (0, 1)] == [[2, 3], [0, 1]]
    data = stream(num_tasks=None, class_groups=[[3], [0, 2]])  # class 1 is left out
    assert (data.num_tasks, data.classes(1), data.num_classes) == (2, [0, 2], 3)
    assert numbers(data.memory_dataloader(1)) == [*range(6), *range(13, 21)]
    both = stream(num_tasks=2, classes_per_task=[1, 3], class_order=[2, 0, 1, 3])
    assert both.classes(1) == [0, 1, 3]


def test_domains_of_one_data_set() -> None:
    data = stream(num_tasks=3, domain_transform=lambda images, task: images + 50 * task)
    assert [data.classes(task) for task in range(3)] == 3 * [[0, 1, 2, 3]]
    assert [numbers(data.memory_dataloader(task))[:2] for task in range(3)] == [[0, 1], [50, 51], [100, 101]]
    assert data.memory_dataloader(2).data.labels.tolist()[:7] == [0] * 6 + [1]


def test_data_sets_with_classes_of_their_own() -> None:
    data = TaskSequence([pair({0: 3, 1: 3}), pair({0: 4, 2: 4})], separate_classes=True)
    data.setup()
    assert (data.num_tasks, data.classes(0), data.classes(1)) == (2, [0, 1], [2, 4])
    assert data.memory_dataloader(1).data.labels.tolist() == [2] * 4 + [4] * 4


def test_blurred_boundaries_give_a_share_away() -> None:
    clear = stream(dataset=pair(dict.fromkeys(range(6), 20)), num_tasks=3)
    data = stream(dataset=pair(dict.fromkeys(range(6), 20)), num_tasks=3, blurry=0.2)
    own = []
    for task, images in enumerate(data._train):
        labels = images.labels
        own.append(sum(label in data.classes(task) for label in labels.tolist()))
        for other in set(range(3)) - {task}:
            assert sum(label in data.classes(other) for label in labels.tolist()) == 4  # 2 of 20 of each class
        assert numbers(data.memory_dataloader(task)) == numbers(clear.memory_dataloader(task))
    assert own == [32, 32, 32]
    everything = torch.cat([images.rows for images in data._train])
    assert sorted(everything.tolist()) == list(range(120))
    again = stream(dataset=pair(dict.fromkeys(range(6), 20)), num_tasks=3, blurry=0.2)
    assert all(torch.equal(a.rows, b.rows) for a, b in zip(data._train, again._train, strict=True))


def test_an_epoch_has_each_image_once_in_an_order_of_its_own() -> None:
    data = counted(22)
    epochs = [[y.tolist() for _, y in TrainingBatches(data, 4, seed=1, epoch=epoch)] for epoch in (0, 0, 1)]
    assert epochs[0] == epochs[1] != epochs[2]
    assert sorted(number for batch in epochs[0] for number in batch) == list(range(22))
    assert [len(batch) for batch in epochs[0]] == [4, 4, 4, 4, 4, 2]


@pytest.mark.parametrize("samples", [24, 27, 22])
def test_ranks_together_are_one_process(samples: int) -> None:
    data = counted(samples)
    single = [y for _, y in TrainingBatches(data, 8, seed=1, epoch=2)]
    ranks = [list(TrainingBatches(data, 4, seed=1, epoch=2, rank=rank, processes=2)) for rank in range(2)]
    together = [torch.cat([first[1], second[1]]) for first, second in zip(*ranks, strict=True)]
    assert all(torch.equal(one, both) for one, both in zip(single, together, strict=False))
    assert all(len(labels) >= 2 for rank in ranks for _, labels in rank)


def test_it_goes_on_where_it_was() -> None:
    data = counted(22)
    whole = TrainingBatches(data, 4, seed=1, epoch=0)
    batches, states = [], []
    for _, labels in whole:
        batches.append(labels.tolist())
        states.append(whole.state_dict())
    for done, state in enumerate(states[:-1], start=1):
        again = TrainingBatches(data, 4, seed=1, epoch=0)
        again.load_state_dict(state)
        assert [labels.tolist() for _, labels in again] == batches[done:]
    other = TrainingBatches(data, 4, seed=1, epoch=1)
    other.load_state_dict(states[2])
    assert len(list(other)) == 6


def test_evaluation_is_shared_without_padding() -> None:
    class Two:
        current_epoch, world_size = 0, 2

    data = stream()
    shares = []
    for rank in range(2):
        data.trainer = Two()  # type: ignore[assignment]
        data.trainer.global_rank = rank  # type: ignore[union-attr, misc]
        shares.append(numbers(data.val_dataloader()[1]))
    assert sorted(shares[0] + shares[1]) == list(range(13, 30))


def test_a_last_batch_of_one_is_dropped_with_one_warning() -> None:
    data = stream(dataset=pair({0: 3, 1: 2, 2: 3, 3: 3}))
    with pytest.warns(UserWarning, match="task 0: the last batch of each epoch has 1 of 5"):
        assert len(data.train_dataloader()) == 1
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(data.train_dataloader()) == 1


class Recorder(LightningModule):
    """Learns nothing and notes what it got."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[tuple[int, list[int]]] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, sorted(set(batch[1].tolist()))))
        return self.layer(torch.ones(1, 1)).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path: Path, **options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(**{**quiet, "accelerator": "cpu", "logger": False, "default_root_dir": tmp_path, **options})


@pytest.mark.parametrize("max_epochs", [-1, 50])
def test_one_fit_runs_the_whole_stream(max_epochs: int, tmp_path: Path) -> None:
    module = Recorder()
    trainer(tmp_path, max_epochs=max_epochs).fit(module, datamodule=stream(epochs_per_task=2))
    by_epoch = {epoch: {label for e, labels in module.seen if e == epoch for label in labels} for epoch in range(4)}
    assert by_epoch == {0: {0, 1}, 1: {0, 1}, 2: {2, 3}, 3: {2, 3}}
    steps = [sum(e == epoch for e, _ in module.seen) for epoch in range(4)]
    assert steps == [3, 3, 4, 4]  # 13 and 17 images in batches of 4; a last one alone is left out
    assert max(epoch for epoch, _ in module.seen) == 3


def test_a_fit_for_each_task(tmp_path: Path) -> None:
    """By trainers of their own, and by one trainer again and again; another task by name."""
    data, module = stream(epochs_per_task=2, fit_per_task=True), Recorder()
    for _ in range(2):
        trainer(tmp_path, max_epochs=-1).fit(module, datamodule=data)
    assert [epoch for epoch, _ in module.seen] == [0] * 3 + [1] * 3 + [0] * 4 + [1] * 4
    assert all(set(labels) <= {0, 1} for _, labels in module.seen[:6])
    assert all(set(labels) <= {2, 3} for _, labels in module.seen[6:])
    with pytest.raises(ValueError, match="`begin_task`"):
        trainer(tmp_path, max_epochs=1).fit(module, datamodule=data)
    data.begin_task(1)
    module.seen.clear()
    one = trainer(tmp_path, max_epochs=1)
    one.fit(module, datamodule=data)
    data.begin_task(0)
    one.fit_loop.max_epochs = 2
    one.fit(module, datamodule=data)
    assert [min(labels) < 2 for _, labels in module.seen] == 4 * [False] + 3 * [True]
    with pytest.raises(ValueError, match="`fit_per_task=True`"):
        stream().begin_task(0)


def test_evaluating_an_earlier_checkpoint_turns_no_stream_back(tmp_path: Path) -> None:
    class Evaluated(Recorder):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            pass

    data, module, path = stream(num_tasks=4, fit_per_task=True), Evaluated(), tmp_path / "first.ckpt"
    for task in range(3):
        run = trainer(tmp_path, max_epochs=-1)
        run.fit(module, datamodule=data)
        if task == 0:
            run.save_checkpoint(path)
        run.validate(module, datamodule=data, ckpt_path=path, verbose=False)
        assert module.seen[-1][1] == [task]


def test_multitask_mixes_the_tasks(tmp_path: Path) -> None:
    module = Recorder()
    trainer(tmp_path, max_epochs=-1).fit(module, datamodule=stream(multitask=True, batch_size=30))
    assert module.seen == [(0, [0, 1, 2, 3])]


def test_what_is_cut_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="`max_epochs`=3 cuts the stream, which has 4 epochs"):
        trainer(tmp_path, max_epochs=3).fit(Recorder(), datamodule=stream(epochs_per_task=2))
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=2)
    with pytest.warns(UserWarning, match="every_n_train_steps"):
        trainer(tmp_path, max_epochs=-1, callbacks=[saver], enable_checkpointing=True).fit(
            Recorder(), datamodule=stream()
        )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_tasks": 3}, "`num_tasks`=3 does not divide the 4 classes"),
        ({"train_per_task": 8}, "`train_per_task`=8 leaves task 1 without images of class 3"),
        ({"test_per_task": 6}, "`test_per_task`=6 leaves task 0 without images of class 1"),
        ({"class_order": [0, 1, 2]}, "`class_order`"),
        ({"num_tasks": None, "classes_per_task": [3, 2]}, "`classes_per_task`=.* sum to the 4"),
        ({"classes_per_task": [1, 1, 2]}, "`num_tasks`=2, but `classes_per_task` lists 3"),
        ({"class_groups": [[0, 1], [1]]}, "`class_groups`.*twice"),
        ({"class_groups": [[0], [9]]}, r"`class_groups`.*\[9\] are not among"),
        ({"class_groups": [[0], [1]], "class_order": [0, 1, 2, 3]}, "`class_groups` says it all"),
        ({"class_order": [0, 1, 2, 3], "domain_transform": lambda images, task: images}, "`class_order`.* domains"),
        ({"separate_classes": True}, "`separate_classes`"),
        ({"blurry": 1.0}, "`blurry`"),
        ({"multitask": True, "fit_per_task": True}, "`fit_per_task`"),
        ({"class_order": [0, 1, 2, 2]}, "`class_order`"),
        ({"dataset": (pair({0: 3, 1: 3})[0], pair({0: 3, 1: 3, 2: 3, 3: 3})[1])}, r"task 1 .* no training images"),
        ({"dataset": (pair({0: 3, 1: 3, 2: 3, 3: 3})[0], pair({0: 3, 1: 3})[1])}, r"task 1 .* no validation images"),
        ({"dataset": 2 * (TensorDataset(torch.full((4, 1, 2, 2), 2.0), torch.arange(4)),)}, r"\[0, 1\]"),
        ({"dataset": 2 * (TensorDataset(torch.zeros(0, 1, 2, 2), torch.zeros(0)),)}, "empty"),
    ],
)
def test_data_that_do_not_fit(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        stream(**options)


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="digits, mnist, fashion_mnist, cifar10, cifar100, tiny_imagenet"):
        TaskSequence("cifar11")
    with pytest.raises(TypeError, match="`dataset`"):
        TaskSequence(3)  # type: ignore[arg-type]
    for name in ("num_tasks", "epochs_per_task", "train_per_task", "eval_batch_size"):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1"):
            TaskSequence(**{name: 0})
    with pytest.raises(RuntimeError, match="setup"):
        TaskSequence().classes(0)
    for name in ("mnist", "cifar10", "cifar100"):
        with pytest.raises(MissingDataError, match=str(tmp_path)):
            TaskSequence(name, root=tmp_path / "none").prepare_data()
    with pytest.raises(MissingDataError, match="`root`"):
        TaskSequence("tiny_imagenet")
    with pytest.raises(MissingDataError, match="none"):
        TaskSequence("tiny_imagenet", root=tmp_path / "none").prepare_data()
    lonely = stream(dataset=pair({0: 1, 1: 4}), num_tasks=2)
    with pytest.raises(ValueError, match="task 0 has 1 training images"):
        lonely.train_dataloader()


def test_cifar10_may_be_folders_of_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("torchvision")
    for split, count in (("train", 3), ("test", 2)):
        for name in ("airplane", "cat"):
            folder = tmp_path / "cifar10" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image.new("RGB", (32, 32), (i, 0, 0)).save(folder / f"{i}.jpg")
    data = TaskSequence("cifar10", num_tasks=2, root=tmp_path)
    data.setup()
    assert [len(data.memory_dataloader(task).data) for task in range(2)] == [3, 3]
    assert [len(loader.data) for loader in data.test_dataloader()] == [2, 2]
    assert data.memory_dataloader(0).data.images.shape[1:] == (3, 32, 32)

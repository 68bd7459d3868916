"""Augmentation, reservoir, steps and neighbours beside what is usual.

Run with ``OMP_NUM_THREADS=1 pytest tests/benchmarks/test_continual.py -m benchmark -s``. Ratios are of medians over
interleaved rounds of one run.
"""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from lit_papers.continual import ResNet, UnsupervisedContinual
from lit_papers.continual.augmentations import SSLTransform
from lit_papers.continual.buffer import ReservoirBuffer
from lit_papers.continual.knn import knn_scores
from lit_papers.continual.methods import LUMP, Finetune, Step
from lit_papers.reproduce.measured import Cell
from tests.measuring import Keep

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]  # where others load the machine
ROUNDS, WARM_UP = 9, 2


def medians(candidates: dict[str, Callable[[], Any]]) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(WARM_UP + ROUNDS):
        for name, candidate in candidates.items():
            begin = time.process_time()
            candidate()
            if turn >= WARM_UP:
                seconds[name].append(time.process_time() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def times(other: float, ours: float) -> dict[str, Cell]:
    """Cells of a row: CPU time of the other, named in the row, and of ours."""
    return {"other [ms]": 1e3 * other, "ours [ms]": 1e3 * ours, "other / ours": other / ours}


@pytest.mark.parametrize(("size", "count", "least"), [(32, 256, 4.0), (224, 16, 1.5)])
def test_augmentation_beside_single_images_and_kornia(size: int, count: int, least: float, keep: Keep) -> None:
    """One view of each image, the authors' SimSiam augmentation: PIL one by one, kornia, ours."""
    transforms = pytest.importorskip("torchvision.transforms")
    kornia = pytest.importorskip("kornia.augmentation")
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    batched = SSLTransform(size)
    pictures = [transforms.ToPILImage()(image) for image in images]
    single = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, (0.2, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            transforms.RandomGrayscale(0.2),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    theirs = kornia.AugmentationSequential(
        kornia.RandomResizedCrop((size, size), scale=(0.2, 1.0)),
        kornia.RandomHorizontalFlip(),
        kornia.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        kornia.RandomGrayscale(p=0.2),
        kornia.Normalize(torch.tensor(mean), torch.tensor(std)),
    )
    seconds = medians(
        {
            "PIL": lambda: torch.stack([single(picture) for picture in pictures]),
            "kornia": lambda: theirs(images / 255),
            "ours": lambda: batched(images),
        }
    )
    ratios = [seconds[name] / seconds["ours"] for name in ("PIL", "kornia")]
    print(f"\n{size} px: {', '.join(f'{k} {1e3 * v / count:.2f} ms an image' for k, v in seconds.items())}, {ratios}")
    for peer, name in (("PIL", "PIL, image by image"), ("kornia", "kornia, a batch")):
        row = f"augment an image of {size} x {size}; {name}"
        keep("continual/speed", row, times(seconds[peer] / count, seconds["ours"] / count))
    assert ratios[0] >= least
    assert ratios[1] >= 2


class InPlace:
    """A plain reservoir, image by image (Vitter 1985, algorithm R)."""

    def __init__(self, slots: int, shape: tuple[int, ...]) -> None:
        self.rows, self.seen = torch.zeros(slots, *shape, dtype=torch.uint8), 0

    def add(self, images: torch.Tensor) -> None:
        for image in images:
            place = self.seen if self.seen < len(self.rows) else int(torch.randint(self.seen + 1, ()))
            if place < len(self.rows):
                self.rows[place] = image
            self.seen += 1


@pytest.mark.parametrize(("slots", "size"), [(5000, 32), (2000, 224)])
def test_the_reservoir_beside_one_in_place(slots: int, size: int, keep: Keep) -> None:
    """Batches of 64 images, when twice as many images as there are slots were offered."""
    ours, plain = ReservoirBuffer(slots), InPlace(slots, (3, size, size))
    images = torch.randint(256, (64, 3, size, size), dtype=torch.uint8)
    for _ in range(2 * slots // 64):
        ours.add(images=images)
        plain.add(images)
    seconds = medians({"in place": lambda: plain.add(images), "ours": lambda: ours.add(images=images)})
    ratio = seconds["ours"] / seconds["in place"]
    print(f"\n{slots} x {size} px: {', '.join(f'{k} {1e3 * v:.2f} ms' for k, v in seconds.items())}, {ratio:.2f}")
    row = f"offer 64 images to a full memory of {slots} x {size} px; a reservoir in place, image by image"
    keep("continual/speed", row, times(seconds["in place"], seconds["ours"]))
    assert ratio <= 2


def test_a_step_of_lump_beside_finetuning(keep: Keep) -> None:
    """Of a ResNet of width 16 on 64 images of 32 x 32, with 5000 full slots; it augments twice as many images."""
    pytest.importorskip("lightly")
    images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8)
    steps: dict[str, Callable[[], Any]] = {}
    for method in (Finetune(), LUMP(buffer_size=5000)):
        torch.manual_seed(0)
        module = UnsupervisedContinual(method, ResNet(3, 16), projection_dim=512)
        optimizer = module.configure_optimizers()
        if isinstance(method, LUMP):
            for _ in range(5000 // 64 + 1):
                method.buffer.add(images=images)

        def step(module: Any = module, method: Any = method, optimizer: Any = optimizer) -> None:
            now = Step(images, torch.zeros(64), lambda purpose: torch.Generator().manual_seed(len(purpose)))
            optimizer.zero_grad()
            method.loss(module, now).backward()
            optimizer.step()
            method.remember(module, now)

        steps[type(method).__name__] = step
    seconds = medians(steps)
    ratio = seconds["LUMP"] / seconds["Finetune"]
    print(f"\na step: {', '.join(f'{k} {1e3 * v:.0f} ms' for k, v in seconds.items())}, {ratio:.2f}")
    row = "LUMP's step with 5000 slots, ResNet of width 16, 64 images of 32 px; Finetune's"
    keep("continual/speed", row, times(seconds["Finetune"], seconds["LUMP"]))
    assert ratio <= 1.1


def one_hot_scores(query: torch.Tensor, bank: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """As lightly and the official code have it: normalised copies, the whole product, a one-hot tensor."""
    cosine = torch.nn.functional.normalize(query) @ torch.nn.functional.normalize(bank).T
    top, where = cosine.topk(200, dim=1)
    one_hot = torch.zeros(len(query) * 200, classes).scatter_(1, labels[where].view(-1, 1), 1.0)
    weights = (top / 0.1).exp()
    return (one_hot.view(len(query), -1, classes) * weights[:, :, None]).sum(dim=1)


def data(bank: int, queries: int, classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (bank,), generator=generator)
    centers = torch.randn(classes, 512, generator=generator)
    features = centers[labels] + 3 * torch.randn(bank, 512, generator=generator)
    return torch.randn(queries, 512, generator=generator) + centers[:1], features, labels


def test_neighbours_agree_and_are_as_fast(keep: Keep) -> None:
    query, bank, labels = data(10_000, 1000, 100)
    plain = one_hot_scores(query, bank, labels, 100).argmax(dim=1)
    assert torch.equal(knn_scores(query, bank, labels, 100).argmax(dim=1), plain)
    assert torch.equal(knn_scores(query, bank, labels, 100, max_bytes=2**20).argmax(dim=1), plain)
    seconds = medians(
        {
            "one-hot": lambda: one_hot_scores(query, bank, labels, 100),
            "streaming": lambda: knn_scores(query, bank, labels, 100),
        }
    )
    ratio = seconds["one-hot"] / seconds["streaming"]
    print(f"\nbank 10k, 1k queries: {', '.join(f'{k} {1e3 * v:.0f} ms' for k, v in seconds.items())}, {ratio:.2f}x")
    row = "neighbours: bank 10,000, 1000 queries, 100 classes; one-hot, as lightly has it"
    keep("continual/speed", row, times(seconds["one-hot"], seconds["streaming"]))
    assert ratio >= 0.9


_NEIGHBOURS = """\
from tests.benchmarks.test_continual import data, knn_scores, one_hot_scores
query, bank, labels = data(50_000, 256, 1000)
knn_scores(query[:2], bank[:300], labels[:300], 1000)
one_hot_scores(query[:2], bank[:300], labels[:300], 1000)
"""
_STREAM = """\
from lit_papers.datamodules import TaskSequence
from tests.benchmarks.test_continual import Generated
TaskSequence((Generated(40), Generated(40)), num_tasks=5).setup()  # what is loaded at the first time
images = Generated(20_000)
"""


class Generated(Dataset[tuple[torch.Tensor, int]]):
    """Images of 3 x 64 x 64 in ten classes, each made when it is asked for."""

    def __init__(self, number: int) -> None:
        self.targets = [index % 10 for index in range(number)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((3, 64, 64), index % 256, dtype=torch.uint8), self.targets[index]


def peak(call: str, setting: str = _NEIGHBOURS) -> float:
    """MB that a call needs at its peak beyond its data, in a process of its own."""
    code = (
        "import resource, torch\n"
        "torch.set_num_threads(1)\n"
        f"{setting}"
        "current = int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize() / 1024\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "pad = torch.ones(max(0, int(before - current)) * 256)\n"  # so that the peak so far is what is held now
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"{call}\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return float(done.stdout)


ROOT = __file__.rsplit("/tests/", 1)[0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and ru_maxrss in kilobytes")
def test_neighbours_need_a_quarter_of_the_memory(keep: Keep) -> None:
    """A bank of 50k x 512, 256 queries, 1000 classes."""
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plain = peak("one_hot_scores(query, bank, labels, 1000)")
    ours = peak("knn_scores(query, bank, labels, 1000, max_bytes=2**25)")
    print(f"\npeak beyond the data: one-hot {plain:.0f} MB, streaming {ours:.0f} MB, ratio {plain / ours:.1f}")
    cells: dict[str, Cell] = {"other [MB]": plain, "ours [MB]": ours, "other / ours": plain / ours}
    keep("continual/memory", "neighbours: bank 50,000, 256 queries, 1000 classes; one-hot", cells)
    assert ours <= plain / 4
    assert ours < 64


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and ru_maxrss in kilobytes")
def test_images_stay_in_their_data_set(keep: Keep) -> None:
    """A stream of 20 000 images is set up without a copy of their pixels."""
    copy = "held = torch.empty(20_000, 3, 64, 64, dtype=torch.uint8)\nfor i in range(20_000): held[i] = images[i][0]"
    copied = peak(copy, _STREAM)
    ours = peak("TaskSequence((images, images), num_tasks=5).setup()", _STREAM)
    print(f"\nset up 20 000 images of 3 x 64 x 64: a copy {copied:.0f} MB, ours {ours:.0f} MB")
    keep(
        "continual/memory",
        "a stream of 20,000 images of 3 x 64 x 64",
        {"a copy of them [MB]": copied, "ours [MB]": ours},
    )
    assert ours <= copied / 10

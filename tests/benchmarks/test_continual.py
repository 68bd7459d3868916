"""Augmentation beside the pipeline of single images, and the streaming neighbours beside the usual ones.

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

from lit_papers.continual.augmentations import SSLTransform
from lit_papers.continual.knn import knn_scores

pytestmark = pytest.mark.benchmark
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


def test_augmentation_beside_single_images() -> None:
    """Two views of 256 images of 32 x 32, the authors' SimSiam augmentation."""
    transforms = pytest.importorskip("torchvision.transforms")
    images = torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8)
    batched = SSLTransform(32)
    pictures = [transforms.ToPILImage()(image) for image in images]
    single = transforms.Compose(
        [
            transforms.RandomResizedCrop(32, (0.2, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            transforms.RandomGrayscale(0.2),
            transforms.ToTensor(),
            transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615)),
        ]
    )
    seconds = medians(
        {
            "one by one, PIL": lambda: [torch.stack([single(picture) for picture in pictures]) for _ in range(2)],
            "batched": lambda: [batched(images) for _ in range(2)],
        }
    )
    ratio = seconds["one by one, PIL"] / seconds["batched"]
    print(f"\ntwo views of 256 images: {', '.join(f'{k} {1e3 * v:.0f} ms' for k, v in seconds.items())}, {ratio:.1f}x")
    assert ratio >= 4


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


def test_neighbours_agree_and_are_as_fast() -> None:
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
    assert ratio >= 0.9


def peak(call: str) -> float:
    """MB that a call needs at its peak beyond its data, in a process of its own."""
    code = (
        "import resource, torch\n"
        "torch.set_num_threads(1)\n"
        "from tests.benchmarks.test_continual import data, knn_scores, one_hot_scores\n"
        "query, bank, labels = data(50_000, 256, 1000)\n"
        "knn_scores(query[:2], bank[:300], labels[:300], 1000)\n"
        "one_hot_scores(query[:2], bank[:300], labels[:300], 1000)\n"
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
def test_neighbours_need_a_quarter_of_the_memory() -> None:
    """A bank of 50k x 512, 256 queries, 1000 classes."""
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plain = peak("one_hot_scores(query, bank, labels, 1000)")
    ours = peak("knn_scores(query, bank, labels, 1000, max_bytes=2**25)")
    print(f"\npeak beyond the data: one-hot {plain:.0f} MB, streaming {ours:.0f} MB, ratio {plain / ours:.1f}")
    assert ours <= plain / 4
    assert ours < 64

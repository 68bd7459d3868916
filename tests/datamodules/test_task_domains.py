"""Domains of one data set: permuted, rotated."""

import pytest
import torch
from torch.utils.data import TensorDataset

from lit_papers.datamodules import PermutedPixels, RotatedImages, TaskSequence

IMAGES = torch.randint(256, (3, 2, 9, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_permutations_are_of_a_task_and_the_same_for_all_images_and_channels() -> None:
    permute = PermutedPixels(seed=3)
    assert torch.equal(permute(IMAGES, 0), IMAGES)
    marked = torch.arange(9 * 12).view(1, 1, 9, 12).expand(2, 3, -1, -1)
    found = permute(marked, 2).flatten(2)
    assert (found == found[:1, :1]).all()
    assert sorted(found[0, 0].tolist()) == list(range(9 * 12))
    assert torch.equal(found, PermutedPixels(seed=3)(marked, 2).flatten(2))
    for other in (permute(marked, 1), PermutedPixels(seed=4)(marked, 2)):
        assert not torch.equal(found, other.flatten(2))


def test_rotations_are_those_of_torchvision() -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    bilinear = pytest.importorskip("torchvision.transforms").InterpolationMode.BILINEAR
    rotate = RotatedImages([0.0, 30.0, 90.0, 180.0])
    assert torch.equal(rotate(IMAGES, 0), IMAGES)
    for task, angle in ((1, 30.0), (2, 90.0), (3, 180.0)):
        theirs = functional.rotate(IMAGES / 255, angle, bilinear)
        torch.testing.assert_close(rotate(IMAGES / 255, task), theirs, atol=2e-4, rtol=0)
        assert (rotate(IMAGES, task).float() - 255 * theirs).abs().max() <= 0.6  # rounded
    assert torch.equal(rotate(IMAGES, 3), IMAGES.flip(2, 3))


def test_angles_that_are_drawn() -> None:
    rotate = RotatedImages(seed=1)
    angles = [rotate.angle(task) for task in range(5)]
    assert angles[0] == 0
    assert len(set(angles)) == 5
    assert all(0 <= angle < 180 for angle in angles)
    assert angles == [RotatedImages(seed=1).angle(task) for task in range(5)]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="none for task 2"):
        RotatedImages([0.0, 1.0])(IMAGES, 2)
    for kind in (PermutedPixels, RotatedImages):
        with pytest.raises(ValueError, match="`seed`"):
            kind(seed=-1)
    data = TensorDataset(IMAGES, torch.arange(3) % 2)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        TaskSequence((data, data), num_tasks=2, domain_transform=lambda images, task: images.float()).setup()

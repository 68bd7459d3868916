import pytest
import torch

from lit_papers.datamodules.splits import check_split_arguments, split_by_class

TARGETS = torch.arange(200) % 4  # 50 of each class


def test_splits_are_stratified_disjoint_and_complete():
    train, val = split_by_class(TARGETS, val_fraction=0.1)
    assert TARGETS[val].bincount().tolist() == [5] * 4
    assert torch.cat([train, val]).sort().values.tolist() == list(range(200))
    assert train.tolist() == sorted(train.tolist())


def test_only_the_seed_decides():
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = split_by_class(TARGETS, val_fraction=0.1, seed=3)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(2)
    again = split_by_class(TARGETS, val_fraction=0.1, seed=3)
    other = split_by_class(TARGETS, val_fraction=0.1, seed=4)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_fewer_samples_are_a_subset_and_leave_validation_alone():
    many, val = split_by_class(TARGETS, val_fraction=0.2, samples_per_class=30)
    few, same = split_by_class(TARGETS, val_fraction=0.2, samples_per_class=10)
    assert TARGETS[few].bincount().tolist() == [10] * 4
    assert set(few.tolist()) < set(many.tolist())
    assert torch.equal(val, same)


def test_no_validation():
    train, val = split_by_class(TARGETS)
    assert len(val) == 0
    assert train.tolist() == list(range(200))


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_a_small_class_is_in_both_splits(fraction):
    train, val = split_by_class(torch.tensor([0, 0, 1, 1]), val_fraction=fraction)
    assert len(train) == len(val) == 2


def test_too_few_images():
    with pytest.raises(ValueError, match=r"class 1 has 1 image, which `val_fraction`=0\.5 cannot split"):
        split_by_class(torch.tensor([0, 0, 1]), val_fraction=0.5)
    with pytest.raises(ValueError, match=r"`samples_per_class`=50, but class 0 has 45 images to train on"):
        split_by_class(TARGETS, val_fraction=0.1, samples_per_class=50)


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
def test_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match="`val_fraction` must be at least 0 and below 1, got"):
        check_split_arguments(fraction, None)


@pytest.mark.parametrize("fraction", ["0.1", None, True])
def test_fraction_of_the_wrong_type(fraction):
    with pytest.raises(TypeError, match="`val_fraction` must be a number, got"):
        check_split_arguments(fraction, None)

import pickle

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Subset

from lit_papers.datamodules import Digits
from lit_papers.datamodules.images import ImageArrays, import_extra

IMAGES = torch.arange(6 * 3 * 2 * 2, dtype=torch.uint8).view(6, 3, 2, 2)
MEAN, STD = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)


@pytest.fixture
def data():
    return ImageArrays(IMAGES, torch.arange(6), MEAN, STD)


def test_normalisation(data):
    expected = (IMAGES / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(torch.stack([data[i][0] for i in range(6)]), expected)
    assert IMAGES[0, 0, 0, 1] == 1  # left as it was


def test_a_batch_is_its_samples(data):
    class OneByOne(torch.utils.data.Dataset):
        def __len__(self):
            return len(data)

        def __getitem__(self, index):
            return data[index]

    for dataset in (data, Subset(data, range(6))):
        for ours, theirs in zip(DataLoader(dataset, 4), DataLoader(OneByOne(), 4), strict=True):
            assert torch.equal(ours[0], theirs[0])
            assert torch.equal(ours[1], theirs[1])
            assert ours[1].dtype == torch.int64


def test_subset(data):
    part = data.subset(torch.tensor([4, 1]))
    assert part.targets.tolist() == [4, 1]
    assert torch.equal(part[0][0], data[4][0])
    assert len(data) == 6


def test_a_module_can_be_sent_to_another_process():
    data = Digits()
    data.setup()
    again = pickle.loads(pickle.dumps(data))  # noqa: S301
    assert torch.equal(again.train_set.images, data.train_set.images)


def test_workers_serve_the_same_batches():
    data = Digits(batch_size=200, num_workers=2)
    data.setup()
    alone = Digits(batch_size=200)
    alone.setup()
    assert data.val_dataloader().persistent_workers
    for ours, theirs in zip(data.val_dataloader(), alone.val_dataloader(), strict=True):
        assert torch.equal(ours[0], theirs[0])


def test_training_order_follows_the_global_seed_and_the_split_does_not():
    data = Digits()
    data.setup()
    batches = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        batches.append(next(iter(data.train_dataloader()))[0])
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


@pytest.mark.parametrize("name", ["batch_size", "seed", "num_workers"])
def test_integers_are_checked(name):
    with pytest.raises(TypeError, match=f"`{name}` must be an integer, got 1.0 \\(float\\)"):
        Digits(**{name: 1.0})
    with pytest.raises(TypeError, match=f"`{name}` must be an integer, got True"):
        Digits(**{name: True})
    with pytest.raises(ValueError, match=f"`{name}` must be at least ., got -1"):
        Digits(**{name: -1})


def test_a_batch_larger_than_the_data():
    data = Digits(batch_size=1401)
    data.setup()
    with pytest.raises(ValueError, match="`batch_size`=1401, but there are only 1400 training images"):
        data.train_dataloader()
    assert len(next(iter(data.train_eval_dataloader()))[0]) == 1400


def test_every_process_needs_a_batch():
    data = Digits(batch_size=200)
    data.setup()
    data.trainer = Trainer(accelerator="cpu", devices=8, strategy="ddp", logger=False)
    with pytest.raises(ValueError, match="`batch_size`=200 on each of 8 processes, but there are only 1400"):
        data.train_dataloader()


def test_reading_before_setup_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"Digits has not read its data yet: call `setup\(\)`"):
        Digits().train_dataloader()


def test_a_missing_package_names_the_extra():
    with pytest.raises(ImportError, match="install `lit-papers\\[vision\\]`"):
        import_extra("torchvision_of_another_planet", "vision")

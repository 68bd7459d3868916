import hashlib
import sys

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from lit_papers.datamodules import Digits


def test_batches(check_batches):
    check_batches(Digits(), train=1400, val=397, test=397)
    assert (Digits.num_classes, Digits.input_shape) == (10, (1, 8, 8))


def test_the_split_stays_what_it_was():
    data = Digits()
    data.setup()
    digest = hashlib.sha256(data.train_set.images.numpy().tobytes()).hexdigest()
    assert digest.startswith("d6437c3f3ade98b3")
    assert data.train_set.targets.bincount().tolist() == [140] * 10
    assert data.train_set.targets[:12].tolist() == [1, 2, 5, 6, 7, 8, 9, 0, 1, 3, 4, 5]
    other = Digits(seed=1)
    other.setup()
    assert not torch.equal(data.train_set.images, other.train_set.images)


def test_training_and_validation_share_no_image():
    data = Digits()
    data.setup()
    joined = torch.cat([data.train_set.images, data.val_set.images])
    assert len(torch.unique(joined.flatten(1), dim=0)) == 1797  # no two digits are the same, so none was drawn twice


def test_pixels_are_x_over_8_minus_1():
    data = Digits()
    data.setup()
    images = torch.stack([data.train_set[i][0] for i in range(100)])
    assert torch.equal(images, data.train_set.images[:100] / 8 - 1)
    assert (images.min(), images.max()) == (-1, 1)


@pytest.mark.parametrize("many", [0, 174])
def test_samples_out_of_range(many):
    with pytest.raises(ValueError, match=f"`samples_per_class` must be at (least|most) .*, got {many}"):
        Digits(samples_per_class=many)


def test_every_class_has_images_left_for_validation():
    data = Digits(samples_per_class=173)
    data.setup()
    assert data.val_set.targets.bincount(minlength=10).min() >= 1


def test_scikit_learn_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="install `lit-papers\\[data\\]`"):
        Digits().setup()


def test_a_trainer_uses_every_stage():
    class Classifier(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(64, 10)

        def forward(self, x):
            return self.layer(x.flatten(1))

        def training_step(self, batch, _):
            return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

        validation_step = test_step = training_step

        def predict_step(self, batch, _):
            return self(batch[0])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
        enable_model_summary=False,
    )
    model, data = Classifier(), Digits()
    trainer.fit(model, data)
    assert trainer.global_step == 20
    trainer.test(model, data, verbose=False)
    assert sum(len(part) for part in trainer.predict(model, data)) == 397

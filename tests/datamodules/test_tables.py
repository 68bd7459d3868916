"""The small tables of two-layer networks."""

import numpy as np
import pytest
import torch

from lit_papers.datamodules import BreastCancer, GaussianRegression


def test_breast_cancer() -> None:
    data = BreastCancer()
    data.setup("fit")
    x, y = data.train_set.tensors
    assert x.shape == (455, 31)
    assert x.dtype == y.dtype == torch.float32
    torch.testing.assert_close(x[:, :30].mean(0), torch.zeros(30), atol=1e-5, rtol=0)
    torch.testing.assert_close(x[:, :30].std(0, correction=0), torch.ones(30), atol=1e-5, rtol=0)
    assert (x[:, 30] == 1).all()
    test_x, test_y = data.test_set.tensors
    assert len(test_x) == 114
    assert set(y.tolist()) == set(test_y.tolist()) == {-1.0, 1.0}
    assert float((torch.cat([y, test_y]) == 1).sum()) == 357  # benign
    (batch,) = data.train_dataloader()
    assert batch[0].shape == (455, 31)
    assert len(next(iter(data.val_dataloader()))[1]) == 114
    again = BreastCancer()
    again.setup()
    assert torch.equal(again.train_set.tensors[0], x)
    other = BreastCancer(seed=1, batch_size=50)
    other.setup()
    assert not torch.equal(other.train_set.tensors[0], x)
    assert len(next(iter(other.train_dataloader()))[1]) == 50


def test_gaussian_regression() -> None:
    data = GaussianRegression()
    draw = np.random.default_rng(101)
    (x, y) = next(iter(data.train_dataloader()))
    expected = draw.standard_normal((10, 3))
    order = torch.cdist(x.double(), torch.from_numpy(expected)).argmin(1)
    assert order.sort().values.tolist() == list(range(10))
    torch.testing.assert_close(x, torch.from_numpy(expected).float()[order])
    torch.testing.assert_close(y, torch.from_numpy(draw.standard_normal(10)).float()[order])


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: BreastCancer(batch_size=0), "batch_size"),
        (lambda: BreastCancer(test_size=1), "test_size"),
        (lambda: BreastCancer(test_size=568), "test_size"),
        (lambda: BreastCancer(seed=-1), "seed"),
        (lambda: GaussianRegression(num_samples=0), "num_samples"),
        (lambda: GaussianRegression(num_features=0), "num_features"),
    ],
)
def test_bad_arguments(build, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        build()

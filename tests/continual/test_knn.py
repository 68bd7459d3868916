"""The streaming classifier beside scikit-learn's and the plain formula."""

import tracemalloc

import numpy as np
import pytest
import torch

from lit_papers.continual.knn import KNNClassifier, knn_scores


def plain(query: torch.Tensor, bank: torch.Tensor, labels: torch.Tensor, classes: int, k: int) -> torch.Tensor:
    """The formula as it is usually written, with a one-hot tensor (Q, k, C)."""
    cosine = torch.nn.functional.normalize(query) @ torch.nn.functional.normalize(bank).T
    top, where = cosine.topk(min(k, len(bank)), dim=1)
    one_hot = torch.nn.functional.one_hot(labels[where], classes)
    return (one_hot * ((top - 1) / 0.1).exp()[:, :, None]).sum(dim=1)


@pytest.fixture
def cloud() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 7
    centers = torch.randn(7, 16, generator=generator)
    bank = centers[labels] + 1.5 * torch.randn(300, 16, generator=generator)
    return torch.randn(90, 16, generator=generator), bank, labels


@pytest.mark.parametrize("max_bytes", [1, 2**12, 2**14, 2**28])
@pytest.mark.parametrize("k", [1, 20, 1000])
def test_chunks_do_not_matter(cloud: tuple[torch.Tensor, ...], max_bytes: int, k: int) -> None:
    query, bank, labels = cloud
    scores = knn_scores(query, bank, labels, 7, k=k, max_bytes=max_bytes)
    torch.testing.assert_close(scores, plain(query, bank, labels, 7, k))


def test_predictions_are_those_of_scikit_learn(cloud: tuple[torch.Tensor, ...]) -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    query, bank, labels = cloud
    theirs = neighbors.KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp(-distance / 0.1))
    ours = KNNClassifier(k=20)
    ours.update(bank[:100], labels[:100])
    ours.update(bank[100:], labels[100:])
    assert ours.predict(query).tolist() == theirs.fit(bank.numpy(), labels.numpy()).predict(query.numpy()).tolist()


def test_separate_clusters_are_all_told_apart() -> None:
    labels = torch.arange(200) % 5
    points = torch.eye(5, 12)[labels] * torch.rand(200, 1).add(0.5) + 0.01 * torch.randn(200, 12)
    knn = KNNClassifier()
    knn.update(points[:100], labels[:100])
    assert (knn.predict(points[100:]) == labels[100:]).all()


@pytest.mark.parametrize("labels", [[4, 5], [1500, 2000], [-3, 9]])
def test_labels_may_be_any_integers(labels: list[int]) -> None:
    knn = KNNClassifier(k=1)
    knn.update(torch.eye(2), torch.tensor(labels))
    assert knn.predict(torch.eye(2)).tolist() == labels
    assert knn.classes.tolist() == labels


def test_a_bank_of_one_and_of_equals() -> None:
    knn = KNNClassifier()
    knn.update(torch.ones(1, 3), torch.tensor([8]))
    assert knn.predict(torch.randn(5, 3)).tolist() == [8] * 5
    knn.update(torch.ones(1, 3), torch.tensor([2]))
    assert knn.predict(torch.ones(4, 3)).tolist() == [2] * 4
    knn.reset()
    with pytest.raises(RuntimeError, match="empty"):
        knn.predict(torch.ones(1, 3))


def test_half_precision_stays_finite() -> None:
    scores = knn_scores(torch.randn(6, 8).half(), torch.randn(40, 8).half(), torch.arange(40) % 4, 4, temperature=0.01)
    assert scores.isfinite().all()


def test_bad_input() -> None:
    knn = KNNClassifier()
    with pytest.raises(RuntimeError, match="empty"):
        knn.predict(torch.zeros(1, 2))
    with pytest.raises(RuntimeError, match="empty"):
        _ = knn.classes
    for value in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="finite"):
            knn.update(torch.tensor([[1.0, value]]), torch.tensor([0]))
    knn.update(torch.ones(2, 2), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="finite"):
        knn.predict(torch.tensor([[1.0, torch.nan]]))
    for labels in (torch.arange(3), torch.arange(2)[:, None], torch.ones(2), torch.ones(2, dtype=torch.bool)):
        with pytest.raises(ValueError, match="one for each of 2 features"):
            knn.update(torch.ones(2, 2), labels)
    with pytest.raises(ValueError, match="`labels` must be a tensor, got ndarray"):
        knn.update(torch.ones(2, 2), torch.arange(2).numpy())
    with pytest.raises(ValueError, match="must be floats"):
        knn.update(torch.ones(2, 2).long(), torch.arange(2))
    for wrong in ({"k": 0}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            KNNClassifier(**wrong)
        with pytest.raises(ValueError, match=next(iter(wrong))):
            knn_scores(torch.ones(1, 2), torch.ones(1, 2), torch.zeros(1).long(), 1, **wrong)
    with pytest.raises(ValueError, match="do not fit"):
        knn_scores(torch.ones(1, 3), torch.ones(1, 2), torch.zeros(1).long(), 1)


@pytest.mark.parametrize("temperature", [0.1, 1e-3, 1e-5])
def test_the_nearest_decides_at_a_low_temperature(temperature: float) -> None:
    knn = KNNClassifier(k=3, temperature=temperature)
    knn.update(torch.tensor([[0.0, 1.0], [0.0, -1.0], [0.6, 0.8]]), torch.tensor([0, 0, 7]))
    assert knn.predict(torch.tensor([[1.0, 0.0]])).tolist() == [7]


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e25, 1e30])
def test_features_of_any_scale(scale: float, cloud: tuple[torch.Tensor, ...]) -> None:
    queries, features, labels = cloud
    plain, scaled = KNNClassifier(k=5), KNNClassifier(k=5)
    plain.update(features, labels)
    scaled.update(features * scale, labels)
    assert torch.equal(scaled.predict(queries * scale), plain.predict(queries))


def test_zero_features_are_no_error() -> None:
    assert knn_scores(torch.zeros(1, 2), torch.eye(2), torch.tensor([0, 1]), 2).isfinite().all()


def test_python_keeps_nothing_of_a_prediction(cloud: tuple[torch.Tensor, ...]) -> None:
    query, bank, labels = cloud
    knn = KNNClassifier()
    knn.update(bank, labels)
    tracemalloc.start()
    for _ in range(3):
        knn.predict(query)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 100_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_search_is_in_single_precision_wherever_it_runs(dtype: torch.dtype) -> None:
    """Cosines behind a ReLU lie close together: half precision would not rank them."""
    generator = torch.Generator().manual_seed(0)
    bank = (5 + torch.randn(400, 16, generator=generator)).to(dtype)
    query, labels = (5 + torch.randn(50, 16, generator=generator)).to(dtype), torch.arange(400) % 7
    exact = knn_scores(query.double(), bank.double(), labels, 7, k=9)
    with torch.autocast("cpu", torch.bfloat16):
        found = knn_scores(query, bank, labels, 7, k=9)
        knn = KNNClassifier(k=9)
        knn.update(bank, labels)
        predicted = knn.predict(query)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact.double(), atol=1e-4, rtol=0)
    assert torch.equal(predicted, exact.argmax(dim=1))


def test_a_bank_that_grows_has_the_new_classes() -> None:
    knn = KNNClassifier(k=1)
    knn.update(torch.eye(3)[:2], torch.tensor([5, 3]))
    assert knn.classes.tolist() == [3, 5]
    assert knn.predict(torch.eye(3)[:1]).tolist() == [5]
    knn.update(torch.eye(3)[2:], torch.tensor([9]))
    assert knn.classes.tolist() == [3, 5, 9]
    assert knn.predict(torch.eye(3)).tolist() == [5, 3, 9]
    with pytest.raises(ValueError, match="does not fit the bank"):
        knn.predict(torch.eye(4))

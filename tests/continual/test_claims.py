"""The functions of the claims: one network each, small enough for seconds."""

import pytest
import torch

from lit_papers.continual import claims

pytest.importorskip("sklearn")


def test_the_digits_are_split_once_for_all_classes() -> None:
    whole, pair = claims.digits(range(10), seed=3), claims.digits([2, 3], seed=3)
    assert len(whole.labels) + len(whole.other_labels) == 1797
    assert whole.images.dtype == torch.uint8
    assert whole.images.max() == 255
    assert torch.equal(pair.labels, whole.labels[torch.isin(whole.labels, torch.tensor([2, 3]))])
    assert not torch.equal(claims.digits([2, 3], seed=4).labels[:40], pair.labels[:40])


def test_features_of_what_is_learned_and_of_what_is_not() -> None:
    """Ten classes of 8-pixel digits are easy: chance is 1/6 and 1/4, and untrained features are good already."""
    found = claims.never_seen_classes(seed=0, labels=False, method="LUMP")
    assert set(found) == {f"{kind}{when}" for kind in ("seen", "never_seen") for when in ("", "_untrained")}
    assert min(found.values()) > 0.9
    assert max(found.values()) <= 1


def test_networks_of_two_seeds_are_alike_where_the_images_are() -> None:
    found = claims.similarity_of_two_seeds(seed=0, labels=True)
    assert 0.7 < found["first_stage"] <= 1
    assert found["first_stage"] > found["second_stage"]


def test_weights_that_are_moved_are_put_back() -> None:
    near = claims.rise_around_the_weights(seed=0, labels=True, span=1e-6)
    assert near["rise"] == pytest.approx(0, abs=0.005)
    far = claims.rise_around_the_weights(seed=0, labels=True)
    assert far["error"] == near["error"]
    assert far["rise"] == pytest.approx(far["moved"] - far["error"])

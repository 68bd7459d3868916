"""The programs as scikit-learn estimators."""

import numpy as np
import pytest
from sklearn.datasets import make_moons
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from lit_papers.convex_relu.estimators import ConvexReLUClassifier, ConvexReLURegressor
from tests.convex_relu.small import load


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([ConvexReLURegressor(max_patterns=20), ConvexReLUClassifier(max_patterns=20)])
def test_scikit_learns_own_checks(estimator, check) -> None:
    check(estimator)


def test_the_regressor_is_globally_optimal() -> None:
    problem = load("gauss_n10_d3")
    x, y = problem["x"].numpy(), problem["y"].numpy()
    model = ConvexReLURegressor(problem["beta"], fit_intercept=False).fit(x, y)
    assert model.exact_
    assert model.objective_ == pytest.approx(problem["objective"], rel=1e-8)
    assert model.gap_ < 1e-8
    np.testing.assert_allclose(model.predict(x), problem["output"].numpy(), atol=1e-6)


def test_where_patterns_are_too_many_they_are_drawn() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.standard_normal((60, 5)), draw.standard_normal(60)
    first, second, other = (
        ConvexReLURegressor(max_patterns=30, random_state=seed).fit(x, y).objective_ for seed in (0, 0, 1)
    )
    assert first == second != other
    assert not ConvexReLURegressor(max_patterns=30).fit(x, y).exact_


def test_the_classifier_bends() -> None:
    x, y = make_moons(60, noise=0.1, random_state=0)
    scores = cross_val_score(ConvexReLUClassifier(0.1, random_state=0), x, np.array(["no", "yes"])[y], cv=3)
    assert scores.mean() > 0.9
    model = ConvexReLUClassifier(0.1, random_state=0).fit(x, y)
    np.testing.assert_allclose(model.predict_proba(x).sum(1), 1)
    assert (model.predict(x) == (model.decision_function(x) > 0)).all()


@pytest.mark.parametrize("labels", [[0, 1, 2, 0], [1, 1, 1, 1]])
def test_two_classes(labels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"binary|one class"):
        ConvexReLUClassifier().fit(np.eye(4), labels)

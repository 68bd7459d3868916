"""The programs as scikit-learn estimators."""

import numpy as np
import pytest
from sklearn.datasets import load_iris, make_moons
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from lit_papers.convex_relu.estimators import ConvexReLUClassifier, ConvexReLURegressor, ConvexReLURegressorCV
from tests.convex_relu.small import load


@pytest.mark.slow  # each check fits several times, and each fit is a search with a proof
@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [ConvexReLURegressor(max_patterns=20, max_iter=2, seconds=60), ConvexReLUClassifier(max_patterns=20, max_iter=2)]
)
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


def test_an_output_bias_is_free() -> None:
    """A constant added to the targets costs nothing, and neither does the constant alone."""
    problem = load("gauss_n10_d3")
    x, y = problem["x"].numpy(), problem["y"].numpy()
    near, far = (ConvexReLURegressor(0.5).fit(x, y + shift) for shift in (0.0, 1e3))
    assert near.exact_
    assert far.exact_
    assert far.objective_ == pytest.approx(near.objective_, rel=1e-7)
    np.testing.assert_allclose(far.predict(x), near.predict(x) + 1e3, rtol=0, atol=1e-3)
    value = 0.5 * np.square(far.predict(x) - y - 1e3).sum()
    value += 0.25 * (np.square(far.weight_).sum() + np.square(far.alpha_).sum())
    assert value == pytest.approx(far.objective_, rel=1e-10)  # a bias in float32 would be 1e-5 away
    constant = ConvexReLURegressor().fit(x, np.full(len(x), 3.7))  # whose mean is not 3.7 to the last bit
    assert constant.exact_
    assert constant.predict(x) == pytest.approx(np.full(len(x), 3.7), abs=1e-15)
    assert ConvexReLURegressor(0.5).fit(x, np.full(10, 7.0)).objective_ == 0
    assert near.objective_ < ConvexReLURegressor(0.5).fit(x, y + 0.0).objective_ * (1 + 1e-9)
    without = ConvexReLURegressor(0.5, fit_intercept=False).fit(np.hstack([x, np.ones((10, 1))]), y)
    assert near.objective_ < without.objective_


def test_the_units_of_targets_do_not_matter() -> None:
    problem = load("gauss_n10_d3")
    x, y = problem["x"].numpy(), problem["y"].numpy()
    scores = [ConvexReLURegressor(0.1 * c).fit(x, c * y).score(x, c * y) for c in (1.0, 1e-9, 1e9)]
    np.testing.assert_allclose(scores, scores[0], rtol=1e-9)


def test_where_patterns_are_too_many_it_searches_and_bounds() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.standard_normal((40, 4)), draw.standard_normal((40, 2))
    model = ConvexReLURegressor(3.0, max_patterns=10, seconds=3).fit(x, y)
    assert 0 < model.lower_bound_ < model.objective_
    assert model.gap_ == pytest.approx(model.objective_ - model.lower_bound_)
    assert not model.exact_
    assert model.predict(x).shape == (40, 2)
    # the search comes to where the exact solver does, on a problem that both can do
    small = load("gauss_n10_d3")
    x, y = small["x"].numpy(), small["y"].numpy()
    options = {"seconds": 300, "max_iter": 5}  # not by the clock of a machine that may be busy
    searched, solved = (ConvexReLURegressor(0.5, max_patterns=most, **options).fit(x, y) for most in (1, 1000))
    assert solved.objective_ <= searched.objective_ + 1e-9
    assert searched.objective_ <= solved.objective_ * (1 + 1e-6)
    assert searched.lower_bound_ <= solved.objective_ + 1e-9


def test_a_weight_of_two_is_two_copies() -> None:
    problem = load("gauss_n10_d3")
    x, y = problem["x"].numpy(), problem["y"].numpy()
    counts = np.array([2, 1, 0, 3, 1, 1, 2, 1, 1, 1])
    weighted = ConvexReLURegressor(0.5).fit(x, y, counts)
    copied = ConvexReLURegressor(0.5).fit(x.repeat(counts, 0), y.repeat(counts))
    assert weighted.objective_ == pytest.approx(copied.objective_, rel=1e-9)
    np.testing.assert_allclose(weighted.predict(x), copied.predict(x), atol=1e-6)
    labels = y > 0
    heavy = ConvexReLUClassifier(0.1, class_weight={False: 1.0, True: 3.0}).fit(x, labels)
    copied = ConvexReLUClassifier(0.1).fit(x.repeat(1 + 2 * labels, 0), labels.repeat(1 + 2 * labels))
    assert heavy.objective_ == pytest.approx(copied.objective_, rel=1e-6)
    mean = ConvexReLURegressor(0.05, beta_per_sample=True).fit(x, y)
    assert mean.objective_ == pytest.approx(ConvexReLURegressor(0.5).fit(x, y).objective_, rel=1e-9)


def test_a_warm_start_ends_where_a_cold_one_does() -> None:
    problem = load("gauss_n10_d3")
    x, y = problem["x"].numpy(), problem["y"].numpy()
    for most in (1, 1000):
        options = {"max_patterns": most, "seconds": 300, "max_iter": 5}
        model = ConvexReLURegressor(1.0, warm_start=True, **options).fit(x, y)
        warm = model.set_params(beta=0.5).fit(x, y).objective_
        cold = ConvexReLURegressor(0.5, **options).fit(x, y).objective_
        assert warm == pytest.approx(cold, rel=1e-6)


def test_cross_validation_chooses_along_the_path() -> None:
    draw = np.random.default_rng(0)
    x = draw.uniform(-1, 1, (24, 1))
    y = np.abs(x[:, 0]) + 0.05 * draw.standard_normal(24)
    model = ConvexReLURegressorCV(num_betas=5, cv=3).fit(x, y)
    assert model.mse_path_.shape == (5, 3)
    assert model.mse_path_.mean(1).min() == pytest.approx(
        model.mse_path_.mean(1)[model.betas_.tolist().index(model.beta_)]
    )
    assert model.betas_[0] > model.beta_  # the largest leaves a constant
    assert model.score(x, y) > 0.8
    np.testing.assert_allclose(model.mse_path_[0], [np.var(y)] * 3, rtol=0.8)


def test_classes() -> None:
    x, y = make_moons(40, noise=0.1, random_state=0)
    scores = cross_val_score(ConvexReLUClassifier(0.1, random_state=0), x, np.array(["no", "yes"])[y], cv=2)
    assert scores.mean() > 0.8
    model = ConvexReLUClassifier(0.1, random_state=0).fit(x, y)
    np.testing.assert_allclose(model.predict_proba(x).sum(1), 1)
    assert (model.predict(x) == (model.decision_function(x) > 0)).all()
    x, y = load_iris(return_X_y=True)
    model = ConvexReLUClassifier(0.5, seconds=3, random_state=0).fit(x, y)
    assert model.score(x, y) > 0.95
    np.testing.assert_allclose(model.predict_proba(x).sum(1), 1)
    assert 0 < model.lower_bound_ < model.objective_ < 150 * np.log(3)


def test_one_class_is_none() -> None:
    with pytest.raises(ValueError, match="one class"):
        ConvexReLUClassifier().fit(np.eye(4), [1, 1, 1, 1])


def moved(model: ConvexReLURegressor, scale: float, x: np.ndarray, y: np.ndarray, beta: float) -> float:
    """Objective of the same function on features times `scale`, at another beta."""
    weight = model.weight_ / np.append(np.full(x.shape[1], scale), 1.0)
    balance = np.sqrt(np.linalg.norm(weight, axis=1) / np.abs(model.alpha_))
    weight, alpha = weight / balance[:, None], model.alpha_ * balance
    outputs = np.maximum(np.hstack([scale * x, np.ones((len(x), 1))]) @ weight.T, 0) @ alpha
    residual = outputs - y - (outputs - y).mean()
    return 0.5 * np.square(residual).sum() + 0.5 * beta * (np.square(weight).sum() + np.square(alpha).sum())


@pytest.mark.parametrize("scale", [1e-3, 1e-9, 1e-12])
def test_bounds_hold_where_features_are_tiny_beside_the_bias(scale: float) -> None:
    """Their hyperplanes are too close to tell apart; neurons in between count all the same."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((14, 2))
    y = np.abs(x[:, 0]) + 0.3 * x[:, 1]
    model = ConvexReLURegressor(0.05 * scale, seconds=1).fit(scale * x, y)
    other = moved(ConvexReLURegressor(0.05).fit(x, y), scale, x, y, 0.05 * scale)
    assert model.lower_bound_ <= other * (1 + 1e-9)
    assert model.exact_ <= (model.objective_ <= other * (1 + 1e-6))


def test_features_far_from_zero_are_searched() -> None:
    """Where float64 cannot enumerate the patterns."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((14, 2)) + 1e6
    model = ConvexReLURegressor(1e-7, seconds=1).fit(x, x[:, 0] - 1e6)
    assert np.isfinite(model.objective_)
    assert model.lower_bound_ <= model.objective_


def test_a_path_of_betas_is_checked() -> None:
    x = np.linspace(-1, 1, 8)[:, None]
    for betas in ([], [0.1, -1.0], [np.nan]):
        with pytest.raises(ValueError, match="betas must be positive numbers, at least one"):
            ConvexReLURegressorCV(betas=betas, cv=2).fit(x, x[:, 0])
    assert ConvexReLURegressorCV(betas=0.1, cv=2).fit(x, x[:, 0]).beta_ == 0.1

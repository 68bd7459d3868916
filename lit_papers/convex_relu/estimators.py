"""Two-layer ReLU networks without training: scikit-learn estimators that solve the convex program."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
except ImportError as error:
    raise ImportError("these estimators need scikit-learn: pip install 'lit-papers[convex]'.") from error

from lit_papers.convex_relu.arrangements import (
    Arrangements,
    TooManyPatternsError,
    enumerate_arrangements,
    sample_arrangements,
)
from lit_papers.convex_relu.networks import network_output, to_network
from lit_papers.convex_relu.losses import Loss
from lit_papers.convex_relu.solvers import solve_relu


def _fit(model: Any, x: NDArray[np.float64], y: NDArray[np.float64], loss: Loss) -> None:
    """Solve for the network, and store it and its certificate on the estimator."""
    data = torch.from_numpy(_with_bias(model, x))
    arrangements: Arrangements
    try:
        arrangements = enumerate_arrangements(data, max_patterns=model.max_patterns)
    except TooManyPatternsError:
        seed = int(check_random_state(model.random_state).randint(2**31 - 1))
        generator = torch.Generator().manual_seed(seed)
        arrangements = sample_arrangements(data, model.max_patterns, generator=generator)
    solution = solve_relu(data, torch.from_numpy(y), model.beta, arrangements, loss=loss, tol=model.tol)
    weight, alpha = to_network(solution)
    model.weight_, model.alpha_ = weight.numpy(), alpha.numpy()
    model.objective_, model.gap_, model.exact_ = solution.objective, solution.gap, solution.exact


def _outputs(model: Any, x: ArrayLike) -> NDArray[np.float64]:
    check_is_fitted(model)
    data = torch.from_numpy(_with_bias(model, validate_data(model, x, dtype=np.float64, reset=False)))
    outputs: NDArray[np.float64] = network_output(
        data, torch.from_numpy(model.weight_), torch.from_numpy(model.alpha_)
    ).numpy()
    return outputs


def _with_bias(model: Any, x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.hstack([x, np.ones((len(x), 1))]) if model.fit_intercept else np.ascontiguousarray(x)


class ConvexReLURegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Least squares with a two-layer ReLU network, solved to a certified gap: no learning rate, no seeds to try.

    Minimises ``1/2 |f(x) - y|^2 + beta/2 (|weight|^2 + |alpha|^2)`` over networks of any width where the activation
    patterns can be enumerated, over networks on sampled patterns otherwise.

    Args:
        beta: strength of the weight decay, positive; the loss is a sum over samples.
        max_patterns: most patterns to enumerate; the number sampled where there are more.
        fit_intercept: append a column of ones, whose weights decay as all others.
        tol: certified relative gap to stop at.
        random_state: of the sampled patterns.

    Attributes:
        weight_: (m, d) hidden neurons, the intercept last; alpha_: (m,) output weights.
        objective_: value reached; gap_: certified distance from the program's optimum.
        exact_: all patterns were enumerated, so the network is globally optimal up to `gap_`.
        n_features_in_: number of features seen in ``fit``.

    >>> x = np.linspace(-1, 1, 9)[:, None]
    >>> model = ConvexReLURegressor(beta=1e-4).fit(x, np.abs(x[:, 0]))
    >>> bool(model.exact_), round(model.score(x, np.abs(x[:, 0])), 3)
    (True, 1.0)
    """

    def __init__(
        self,
        beta: float = 1.0,
        *,
        max_patterns: int = 500,
        fit_intercept: bool = True,
        tol: float = 1e-6,
        random_state: Any = None,
    ) -> None:
        self.beta = beta
        self.max_patterns = max_patterns
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> "ConvexReLURegressor":  # noqa: N803
        """Find the optimal network for samples (n, d) and targets (n,)."""
        x, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        _fit(self, x, np.asarray(y, dtype=np.float64), "squared")
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Outputs (n,) for samples (n, d)."""
        return _outputs(self, X)


class ConvexReLUClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Logistic regression with a two-layer ReLU network, solved to a certified gap; two classes.

    Arguments and attributes are those of `ConvexReLURegressor`, and ``classes_``, the two labels.
    """

    def __init__(
        self,
        beta: float = 1.0,
        *,
        max_patterns: int = 100,
        fit_intercept: bool = True,
        tol: float = 1e-6,
        random_state: Any = None,
    ) -> None:
        self.beta = beta
        self.max_patterns = max_patterns
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike) -> "ConvexReLUClassifier":  # noqa: N803
        """Find the optimal network for samples (n, d) and labels (n,) of two classes.

        Raises:
            ValueError: there are not two classes.
        """
        x, labels = validate_data(self, X, y, dtype=np.float64)
        labels = column_or_1d(labels, warn=True)
        check_classification_targets(labels)
        self.classes_, index = np.unique(labels, return_inverse=True)
        if len(self.classes_) > 2:
            raise ValueError(
                f"Only binary classification is supported. y has {len(self.classes_)} classes; wrap the estimator in "
                "sklearn.multiclass.OneVsRestClassifier."
            )
        if len(self.classes_) < 2:
            raise ValueError("y has one class; a classifier needs samples of two.")
        _fit(self, x, (2.0 * index - 1.0).astype(np.float64), "logistic")
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Outputs (n,): the log odds of the second class."""
        return _outputs(self, X)

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Probabilities (n, 2) of both classes."""
        second = torch.from_numpy(_outputs(self, X)).sigmoid().numpy()
        return np.stack([1 - second, second], 1)

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """Labels (n,)."""
        positive = _outputs(self, X) > 0
        labels: NDArray[Any] = self.classes_[positive.astype(int)]
        return labels

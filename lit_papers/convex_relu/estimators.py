"""Two-layer ReLU networks without a learning rate: scikit-learn estimators that say how far from optimal they are."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.model_selection import check_cv
    from sklearn.utils import check_random_state
    from sklearn.utils.class_weight import compute_sample_weight
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, column_or_1d, validate_data
except ImportError as error:
    raise ImportError("these estimators need scikit-learn: pip install 'lit-papers[convex]'.") from error

from lit_papers.convex_relu.arrangements import TooManyPatternsError, enumerate_arrangements
from lit_papers.convex_relu.descent import climb, search
from lit_papers.convex_relu.losses import Loss
from lit_papers.convex_relu.networks import network_output, to_network
from lit_papers.convex_relu.problem import Problem
from lit_papers.convex_relu.solvers import blocks_of, solve

Array = NDArray[np.float64]


class _ConvexReLU(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What the regressor and the classifier share: a problem, the solver that fits its size, and its certificate."""

    def __init__(
        self,
        beta: float = 1.0,
        *,
        beta_per_sample: bool = False,
        fit_intercept: bool = True,
        max_patterns: int = 1000,
        seconds: float = 10.0,
        max_iter: int = 50,
        tol: float = 1e-6,
        warm_start: bool = False,
        random_state: Any = None,
    ) -> None:
        self.beta = beta
        self.beta_per_sample = beta_per_sample
        self.fit_intercept = fit_intercept
        self.max_patterns = max_patterns
        self.seconds = seconds
        self.max_iter = max_iter
        self.tol = tol
        self.warm_start = warm_start
        self.random_state = random_state

    def _solve(self, x: Array, y: Array, loss: Loss, weights: Array) -> None:
        """Find the network for targets as `Problem.of` takes them, and store it with its certificate."""
        problem, data = self._problem(x, y, loss, weights)
        start = None
        if self.warm_start and hasattr(self, "weight_"):
            start = torch.from_numpy(self.weight_), torch.from_numpy(self.alpha_)
            if start[0].shape[1] != data.shape[1] or start[1].shape[1:] != problem.y.shape[1:]:
                start = None  # of other data
        weight, alpha, bias = self._optimum(problem, data, start)
        self.weight_: Array = weight.numpy()
        self.alpha_: Array = alpha.numpy()
        self.bias_ = bias.numpy() if bias.ndim else float(bias)
        # the proof, not the method, says whether this is the optimum
        self.exact_ = bool(self.gap_ <= self.tol * problem.at_zero * problem.unit)

    def _problem(self, x: Array, y: Array, loss: Loss, weights: Array) -> tuple[Problem, Tensor]:
        """The problem on distinct samples in a fixed order, so that a weight of two is the same as two copies."""
        columns = y.reshape(len(y), -1)
        rows, place = np.unique(np.hstack([x, columns])[weights > 0], axis=0, return_inverse=True)
        if len(rows) == 0:
            raise ValueError("sample_weight is zero for all samples.")
        shares = np.bincount(place.ravel(), weights[weights > 0])
        data = torch.from_numpy(self._with_bias(rows[:, : x.shape[1]]))
        beta = self.beta * float(shares.sum()) if self.beta_per_sample else self.beta
        equal = bool((shares == 1.0).all())
        problem = Problem.of(
            data,
            torch.from_numpy(rows[:, x.shape[1] :].copy()),
            beta,
            loss=loss,
            weights=None if equal else torch.from_numpy(shares),
            output_bias=self.fit_intercept,
        )
        return problem, data

    def _optimum(
        self, problem: Problem, data: Tensor, start: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Exactly where the patterns are few, by search with a bound otherwise."""
        if problem.num_outputs == 1:
            try:
                arrangements = enumerate_arrangements(data, max_patterns=self.max_patterns)
            except (TooManyPatternsError, ArithmeticError):
                pass  # float64 does not tell them apart: features far from zero for their spread, beside a bias
            else:
                begin = None if start is None else blocks_of(problem, arrangements, *start)
                solution = solve(problem, arrangements, tol=self.tol, start=begin)
                self.objective_, self.lower_bound_ = solution.objective, solution.lower_bound
                self.gap_, self.n_iter_ = solution.gap, 1
                return *to_network(solution), torch.tensor(solution.bias, dtype=torch.float64)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        generator = torch.Generator().manual_seed(seed)
        found = search(problem, seconds=self.seconds, max_iter=self.max_iter, start=start, generator=generator)
        self.objective_, self.lower_bound_, self.gap_ = found.objective, found.lower_bound, max(found.gap, 0.0)
        self.n_iter_ = found.rounds
        return found.weight, found.alpha, found.bias

    def _outputs(self, x: ArrayLike) -> Array:
        """Outputs (n,) or (n, k) of the network."""
        check_is_fitted(self)
        data = torch.from_numpy(self._with_bias(validate_data(self, x, dtype=np.float64, reset=False)))
        layers = torch.from_numpy(self.weight_), torch.from_numpy(self.alpha_)
        outputs: Array = network_output(data, *layers, torch.as_tensor(self.bias_, dtype=torch.float64)).numpy()
        return outputs

    def _with_bias(self, x: Array) -> Array:
        return np.hstack([x, np.ones((len(x), 1))]) if self.fit_intercept else np.ascontiguousarray(x)


class ConvexReLURegressor(RegressorMixin, _ConvexReLU):  # type: ignore[misc]
    """Least squares with a two-layer ReLU network, with a certified gap: no learning rate, no seeds to try.

    Minimises ``1/2 sum_k w_k |f(x_k) - y_k|^2 + beta/2 (|weight|^2 + |alpha|^2)`` over networks of any width: exactly
    where the activation patterns can be enumerated, and otherwise by a search that proves how far it may be from the
    optimum. Samples are weighted by ``sample_weight``; targets may have several columns.

    Args:
        beta: strength of the weight decay, positive; the loss is a sum over samples.
        beta_per_sample: `beta` is that of a mean over samples: it is multiplied by their number (their weights' sum).
        fit_intercept: a bias of each neuron, decayed as all other weights, and one of the output, which is not.
        max_patterns: most patterns to enumerate.
        seconds: of wall-clock time for the search, where there are more, about.
        max_iter: rounds of the search, in which neurons join; a bound that does not depend on the machine.
        tol: certified gap to stop at, relative to the loss of the best constant.
        warm_start: begin with the network of the last ``fit``.
        random_state: of the search's directions.

    Attributes:
        weight_: (m, d) hidden neurons, their bias last; alpha_: (m,) or (m, k) output weights; bias_: of the output.
        objective_: value reached; lower_bound_: certified for networks of any width; gap_: between the two.
        exact_: the gap is within `tol`: the network is globally optimal, by proof.
        n_iter_: rounds of the search; 1 where the program over all patterns was solved instead.
        n_features_in_: number of features seen in ``fit``.

    >>> x = np.linspace(-1, 1, 9)[:, None]
    >>> model = ConvexReLURegressor(beta=1e-4).fit(x, np.abs(x[:, 0]))
    >>> bool(model.exact_), round(model.score(x, np.abs(x[:, 0])), 3)
    (True, 1.0)
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> "ConvexReLURegressor":  # noqa: N803
        """Find the network for samples (n, d) and targets (n,) or (n, k)."""
        x, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, multi_output=True)
        weights = _check_sample_weight(sample_weight, x, ensure_non_negative=True)
        self._column = np.ndim(y) == 2 and np.shape(y)[1] == 1
        self._solve(x, np.asarray(y, dtype=np.float64), "squared", weights)
        return self

    def predict(self, X: ArrayLike) -> Array:  # noqa: N803
        """Outputs for samples (n, d), shaped as the targets of ``fit``."""
        outputs = self._outputs(X)
        return outputs[:, None] if self._column else outputs


class ConvexReLUClassifier(ClassifierMixin, _ConvexReLU):  # type: ignore[misc]
    """Logistic regression with a two-layer ReLU network, with a certified gap; softmax for more than two classes.

    Arguments and attributes are those of `ConvexReLURegressor`, and:

    Args:
        class_weight: None, ``"balanced"``, or a dict from labels to weights.

    Attributes:
        classes_: the labels.
    """

    def __init__(
        self,
        beta: float = 1.0,
        *,
        beta_per_sample: bool = False,
        class_weight: Any = None,
        fit_intercept: bool = True,
        max_patterns: int = 1000,
        seconds: float = 10.0,
        max_iter: int = 50,
        tol: float = 1e-6,
        warm_start: bool = False,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            beta,
            beta_per_sample=beta_per_sample,
            fit_intercept=fit_intercept,
            max_patterns=max_patterns,
            seconds=seconds,
            max_iter=max_iter,
            tol=tol,
            warm_start=warm_start,
            random_state=random_state,
        )
        self.class_weight = class_weight

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> "ConvexReLUClassifier":  # noqa: N803
        """Find the network for samples (n, d) and labels (n,).

        Raises:
            ValueError: there is one class only.
        """
        x, labels = validate_data(self, X, y, dtype=np.float64)
        labels = column_or_1d(labels, warn=True)
        check_classification_targets(labels)
        weights = _check_sample_weight(sample_weight, x, ensure_non_negative=True)
        if self.class_weight is not None:
            weights = weights * compute_sample_weight(self.class_weight, labels)
        self.classes_, index = np.unique(labels, return_inverse=True)
        if len(np.unique(index[weights > 0])) < 2:
            raise ValueError("y has one class; a classifier needs samples of two.")
        if len(self.classes_) == 2:
            self._solve(x, 2.0 * index.astype(np.float64) - 1.0, "logistic", weights)
        else:
            self._solve(x, np.eye(len(self.classes_))[index], "cross_entropy", weights)
        return self

    def decision_function(self, X: ArrayLike) -> Array:  # noqa: N803
        """Outputs: (n,), the log odds of the second of two classes, or (n, k)."""
        return self._outputs(X)

    def predict_proba(self, X: ArrayLike) -> Array:  # noqa: N803
        """Probabilities (n, k) of the classes."""
        outputs = torch.from_numpy(self._outputs(X))
        if outputs.ndim == 2:
            softmax: Array = outputs.softmax(1).numpy()
            return softmax
        second = outputs.sigmoid().numpy()
        return np.stack([1 - second, second], 1)

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """Labels (n,)."""
        outputs = self._outputs(X)
        index = outputs.argmax(1) if outputs.ndim == 2 else (outputs > 0).astype(int)
        labels: NDArray[Any] = self.classes_[index]
        return labels


def _falling(betas: Any) -> Array:
    """A path given by the user, the largest first."""
    path = np.sort(np.atleast_1d(np.asarray(betas, dtype=np.float64)).ravel())[::-1]
    if len(path) == 0 or not (path > 0).all():
        raise ValueError(f"betas must be positive numbers, at least one; got {betas}.")
    return path


class ConvexReLURegressorCV(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """`ConvexReLURegressor` along a path of betas, the best of which cross-validation chooses.

    The path falls from the smallest beta at which the network is zero, each network beginning where the last ended.

    Args:
        num_betas: of the path, evenly spaced in the logarithm.
        eps: smallest beta over the largest.
        betas: the path itself, instead; per sample.
        cv: folds, as scikit-learn takes them.
        fit_intercept: as in `ConvexReLURegressor`.
        max_patterns: as there.
        seconds: as there, for each fit.
        random_state: as there.

    Attributes:
        beta_: the chosen one, per sample; betas_: the path, falling.
        mse_path_: (betas, folds) mean squared errors on the samples left out.
        best_estimator_: fitted on all samples at `beta_`.
    """

    def __init__(
        self,
        *,
        num_betas: int = 8,
        eps: float = 1e-3,
        betas: Any = None,
        cv: Any = None,
        fit_intercept: bool = True,
        max_patterns: int = 1000,
        seconds: float = 2.0,
        random_state: Any = None,
    ) -> None:
        self.num_betas = num_betas
        self.eps = eps
        self.betas = betas
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.max_patterns = max_patterns
        self.seconds = seconds
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> "ConvexReLURegressorCV":  # noqa: N803
        """Choose beta, and find the network for samples (n, d) and targets (n,) or (n, k)."""
        x, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, multi_output=True)
        y = np.asarray(y, dtype=np.float64)
        self.betas_ = self._path(x, y) if self.betas is None else _falling(self.betas)
        errors: list[list[float]] = []
        for train, test in check_cv(self.cv).split(x, y):
            model = self._regressor()
            errors.append([])
            for beta in self.betas_:
                predicted = model.set_params(beta=beta).fit(x[train], y[train]).predict(x[test])
                errors[-1].append(float(((predicted - y[test]) ** 2).mean()))
        self.mse_path_ = np.array(errors).T
        chosen = int(self.mse_path_.mean(1).argmin())
        self.beta_ = float(self.betas_[chosen])
        self.best_estimator_ = self._regressor()
        for beta in self.betas_[: chosen + 1]:
            self.best_estimator_.set_params(beta=beta).fit(x, y)
        return self

    def predict(self, X: ArrayLike) -> Array:  # noqa: N803
        """Outputs for samples (n, d), shaped as the targets of ``fit``."""
        check_is_fitted(self)
        return self.best_estimator_.predict(validate_data(self, X, dtype=np.float64, reset=False))

    def _regressor(self) -> ConvexReLURegressor:
        return ConvexReLURegressor(
            beta_per_sample=True,
            fit_intercept=self.fit_intercept,
            max_patterns=self.max_patterns,
            seconds=self.seconds,
            warm_start=True,
            random_state=self.random_state,
        )

    def _path(self, x: Array, y: Array) -> Array:
        """Betas per sample from where no neuron has any correlation left with what a constant leaves over."""
        problem, _ = self._regressor()._problem(x, y, "squared", np.ones(len(x)))
        nu = problem.dual(torch.zeros_like(problem.y))
        nothing = problem.x.new_zeros(0, problem.x.shape[1])
        _, _, values = climb(problem.x, nu, torch.Generator().manual_seed(0), nothing)
        largest = float(values[0]) if len(values) else 1.0
        in_units = largest * problem.unit * problem.x_unit / problem.y_unit / len(x)
        return np.geomspace(in_units, self.eps * in_units, self.num_betas)

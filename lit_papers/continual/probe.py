"""The linear probe: multinomial logistic regression on frozen features, wherever they are."""

import torch
from torch import Tensor, nn

_STEPS = 200  # of L-BFGS, which mostly stops by its tolerance


class LinearProbe:
    r"""Logistic regression on standardised features, what scikit-learn's ``LogisticRegression`` finds.

    It minimises :math:`\sum_n \ell(W \tilde x_n + b, y_n) + \tfrac{1}{2C} \|W\|^2` by L-BFGS in float64, on the device
    of the features; :math:`\tilde x` has mean 0 and deviation 1 over the features it is fitted to, and a feature that
    is constant is left out.

    Args:
        c: inverse strength of the penalty, > 0; 1 is scikit-learn's.

    Raises:
        ValueError: ``c`` is not positive.

    >>> probe = LinearProbe().fit(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([4, 4, 7, 7]))
    >>> probe.predict(torch.tensor([[-1.0], [9.0]]))
    tensor([4, 7])
    """

    def __init__(self, c: float = 1.0) -> None:
        if c <= 0:
            raise ValueError(f"`c` must be positive, got {c}")
        self.c = c
        self._classes: Tensor | None = None

    def fit(self, features: Tensor, labels: Tensor) -> "LinearProbe":
        """Fit to features ``(N, D)`` and labels ``(N,)``, any integers.

        Raises:
            ValueError: they are empty, do not fit each other, or are not finite.
        """
        if features.dim() != 2 or len(features) != len(labels) or not len(labels):
            raise ValueError(
                f"features {tuple(features.shape)} and labels {tuple(labels.shape)} are not (N, D) and (N,)"
            )
        if not bool(torch.isfinite(features).all()):
            raise ValueError("features are not finite (NaN or infinite)")
        x = features.detach().double()
        self._mean = x.mean(dim=0)
        spread = x.std(dim=0, correction=0)
        floor = torch.finfo(features.dtype).eps * x.abs().amax(dim=0)  # below is rounding, not a feature
        self._scale = torch.where(spread > floor, 1 / spread.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
        x = (x - self._mean) * self._scale
        self._classes, numbers = torch.unique(labels.to(x.device), return_inverse=True)
        weight = x.new_zeros(len(self._classes), x.shape[1] + 1, requires_grad=True)  # the last column is the bias
        optimizer = torch.optim.LBFGS(
            [weight], max_iter=_STEPS, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(x @ weight[:, :-1].T + weight[:, -1], numbers)
            loss = loss + weight[:, :-1].square().sum() / (2 * self.c * len(x))
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False), torch.inference_mode(False):
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        self._weight = weight.detach()
        return self

    def predict(self, features: Tensor) -> Tensor:
        """Labels ``(N,)`` of features ``(N, D)``.

        Raises:
            RuntimeError: it was not fitted.
        """
        if self._classes is None:
            raise RuntimeError("the linear probe knows nothing yet: `fit` it first")
        x = (features.detach().double() - self._mean) * self._scale
        with torch.autocast(x.device.type, enabled=False):
            scores = x @ self._weight[:, :-1].T + self._weight[:, -1]
        return self._classes[scores.argmax(dim=1)]

r"""A lower bound for data of any size: the best dual variable of a relaxed constraint.

The dual constraint ``max_{|u| = 1} |nu^T (x u)_+| <= beta`` is hard in many dimensions. With ``(t)_+ = (t + |t|) / 2``
and

.. math::  t^2 / |x_k| \le |t| \le (a_k + t^2 / a_k) / 2  \quad\text{for } t = x_k \cdot u,\ |u| = 1,\ a_k > 0

it is implied by one on a quadratic function on the sphere, whose maximum is known (More and Sorensen, 1983). The bound
of a network's own dual variable, scaled down until it satisfies that, says little about large data. But any variable
will do: here it is the one that makes the bound largest, and the `a_k` with it.
"""

import time
from dataclasses import replace

import torch
from torch import Tensor

from lit_papers.convex_relu.losses import dual_value, loss_gradient, without_mean
from lit_papers.convex_relu.problem import Problem


def relaxed_bound(problem: Problem, nu: Tensor | None = None, *, seconds: float = 5.0, steps: int = 200) -> float:
    """Lower bound on the optimal value over networks of any width, in the problem's units.

    Args:
        problem: of any loss and any number of outputs.
        nu: a dual variable to begin with; None begins with that of the network without neurons.
        seconds: of wall-clock time.
        steps: most steps of gradient ascent.
    """
    with torch.inference_mode(False), torch.enable_grad():  # whoever validates is in inference mode
        return _climbed_bound(_ordinary(problem), None if nu is None else nu.clone(), seconds, steps)


def _ordinary(problem: Problem) -> Problem:
    """With tensors that may be differentiated through, which those made in inference mode may not."""
    weights = None if problem.weights is None else problem.weights.clone()
    return replace(problem, x=problem.x.clone(), y=problem.y.clone(), weights=weights)


def _climbed_bound(problem: Problem, nu: Tensor | None, seconds: float, steps: int) -> float:
    start = time.monotonic()
    begin = problem.dual(torch.zeros_like(problem.y)) if nu is None else nu
    relaxed = _Relaxation(problem, begin)
    # outputs, not duals, are what is moved: the gradient of the loss there is in the conjugate's domain
    outputs = _outputs_of(problem, begin).requires_grad_()
    climber = torch.optim.Adam([{"params": [outputs], "lr": 0.04}, {"params": [relaxed.logs], "lr": 0.04}])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(climber, max(1, steps))
    best = problem.bound(begin.detach(), relaxed.upper(begin).item())
    for _ in range(steps):
        if time.monotonic() - start > seconds:
            break
        climber.zero_grad()
        dual = loss_gradient(outputs, problem.y, problem.loss, problem.weights)
        if problem.output_bias:
            dual = without_mean(dual, problem.y, problem.loss, problem.weights)
        upper = relaxed.upper(dual)
        best = max(best, problem.bound(dual.detach(), upper.item()))
        share = (problem.beta / upper).clamp_max(1.0)
        value = dual_value(share * dual, problem.y, problem.loss, problem.weights)
        if not value.isfinite():
            break
        (-value / problem.at_zero).backward()  # type: ignore[no-untyped-call]
        if not all(each.grad is not None and each.grad.isfinite().all() for each in (outputs, relaxed.logs)):
            break  # at the edge of the domain, where log 0 is met; what was found before holds
        climber.step()
        schedule.step()
    return best


def _outputs_of(problem: Problem, nu: Tensor) -> Tensor:
    """Outputs whose dual variable is (nearly) `nu`."""
    each = nu if problem.weights is None else (nu.movedim(0, -1) / problem.weights).movedim(-1, 0)
    if problem.loss == "squared":
        return (problem.y + each).detach()
    if problem.loss == "logistic":
        return (-problem.y * torch.logit((-problem.y * each).clamp(1e-6, 1 - 1e-6))).detach()
    return (problem.y + each).clamp_min(1e-6).log().detach()


class _Relaxation:
    """Upper bounds on the dual norm, differentiable in the dual variable and in the `a_k`."""

    def __init__(self, problem: Problem, nu: Tensor) -> None:
        lengths = problem.x.norm(dim=1)
        there = lengths > 0
        self.there, self.x, self.lengths = there, problem.x[there], lengths[there]
        pulls = self._pulls(nu)
        # one number for all samples gives the bound of Cauchy and Schwarz
        spread = torch.linalg.eigvalsh(self._weighed(pulls.clamp_min(0)))[:, -1]
        common = (spread / pulls.clamp_min(0).sum(1).clamp_min(1e-300)).clamp_min(1e-12).sqrt()
        self.logs = common.log()[:, None].expand(pulls.shape).clone().requires_grad_()

    def _pulls(self, nu: Tensor) -> Tensor:
        """``-sign nu`` of each output and sign, (2k, n)."""
        columns = nu.reshape(len(nu), -1)[self.there].T
        return torch.cat([-columns, columns])

    def _weighed(self, rows: Tensor) -> Tensor:
        """``x^T diag(row) x`` of each row (b, n), one by one: together they would hold b copies of the data."""
        return torch.stack([self.x.T @ (row[:, None] * self.x) for row in rows])

    def upper(self, nu: Tensor) -> Tensor:
        """Upper bound on the dual norm of `nu`; its gradient is that of the maximising neurons, held fixed."""
        pulls = self._pulls(nu)
        rise, fall = pulls.clamp_min(0), (-pulls).clamp_min(0)
        widths = self.logs.exp()
        linear = pulls @ self.x  # (b, d)
        curved = rise / (2 * widths) - fall / self.lengths
        constant = 0.5 * (rise * widths).sum(1)
        with torch.no_grad():
            highest, neurons = largest_on_the_sphere(linear, self._weighed(curved))
        fixed = (linear * neurons).sum(1) + (curved * (neurons @ self.x.T).square()).sum(1)
        # the value is the certified one, the gradient that of the neurons
        each = 0.5 * (constant + fixed + (highest - fixed).detach()).clamp_min(0)
        up, down = each.tensor_split(2)
        norm: Tensor = torch.maximum(up, down).square().sum().clamp_min(1e-300).sqrt()
        return norm


def largest_on_the_sphere(linear: Tensor, quadratic: Tensor) -> tuple[Tensor, Tensor]:
    """Maximise ``linear . u + u . quadratic u`` over unit `u`, for many problems at once.

    Returns:
        Upper bounds (b,), tight up to rounding: values of the Lagrangian dual ``mu + sum_i l_i^2 / (4 (mu - e_i))``
        above the largest eigenvalue; and maximisers (b, d), near unit length.
    """
    values, vectors = torch.linalg.eigh(quadratic)
    parts = (vectors.transpose(1, 2) @ linear[:, :, None])[:, :, 0]
    size = parts.norm(dim=1)
    scale = (values.abs().amax(1) + size).clamp_min(1e-300)
    low, high = values[:, -1], values[:, -1] + size / 2
    for _ in range(25):  # where the derivative, 1 - |u(mu)|^2, is zero; any mu above gives a bound
        middle = (low + high) / 2
        length = (parts / (2 * (middle[:, None] - values)).clamp_min(1e-300)).square().sum(1)
        low, high = torch.where(length > 1, middle, low), torch.where(length > 1, high, middle)
    mu = high + 1e-14 * scale
    gaps = mu[:, None] - values
    upper = mu + (parts.square() / (4 * gaps)).sum(1)
    points = parts / (2 * gaps)
    # the hard case: what is missing to unit length goes along the last eigenvector
    missing = (1 - points.square().sum(1)).clamp_min(0).sqrt()
    points[:, -1] += torch.where(points[:, -1] < 0, -missing, missing)
    return upper, (vectors @ torch.nn.functional.normalize(points, dim=1)[:, :, None])[:, :, 0]

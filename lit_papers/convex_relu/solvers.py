"""Solvers of our own: of the gated program by second-order steps in the dual, of the ReLU program by active sets.

Neither ever holds an (n, d, p) tensor: the gated features `D_i x` only appear in the products
``z = rowsum((D U^T) * x)`` and ``(x * nu)^T D``, and the kernel of all of them is ``(x x^T) * (D D^T)``.
"""

import warnings

import torch
from torch import Tensor

from lit_papers.convex_relu.arrangements import Arrangements, check_arrangements
from lit_papers.convex_relu.certificates import dual_bound, price
from lit_papers.convex_relu.polish import polish
from lit_papers.convex_relu.problem import Loss, check_beta, check_features, check_targets
from lit_papers.convex_relu.programs import solve_relu_program
from lit_papers.convex_relu.solution import Blocks, ConvexSolution, certify, no_blocks

_FLOOR = 1e-10  # what float64 can certify
_BATCH = 20  # blocks that join the active set at once


def solve_gated(
    x: Tensor, y: Tensor, beta: float, arrangements: Arrangements, *, tol: float = 1e-6, max_iter: int = 60
) -> ConvexSolution:
    """Solve the gated program (squared loss) by an augmented Lagrangian in its n-dimensional dual.

    Each outer step minimises ``|nu|^2 / 2 + nu.y + 1 / (2 sigma) sum_i (|S_i| - sigma beta)_+^2`` with
    ``S = U - sigma x^T D nu`` by semismooth Newton steps, and takes the shrunken `S` as the next multipliers, which are
    the primal variable. Some ten outer and forty Newton steps, each a Cholesky factorisation of size n.

    Args:
        x: data, (n, d).
        y: targets, (n,).
        beta: strength of the weight decay, positive.
        arrangements: the patterns of the gates.
        tol: certified relative gap to stop at; below 1e-10 it is taken as that.
        max_iter: outer steps.

    Returns:
        The best point found; a RuntimeWarning tells its gap if that is above `tol`.

    Raises:
        ValueError: the data are malformed.
    """
    x, y, beta = _checked(x, y, beta, arrangements)
    solution = certify(x, y, beta, arrangements, no_blocks(x), status="optimal", gated=True)
    if solution.gap == 0:
        return solution
    # in units where data and targets have unit size, one schedule of sigma serves all problems
    x_size, y_size = x.square().mean().sqrt(), y.square().mean().sqrt()
    problem = _Gated(x / x_size, y / y_size, beta / float(x_size * y_size), arrangements.patterns)
    multipliers, nu, sigma = problem.zero(), -problem.y, 1.0
    best, best_gap = multipliers, float("inf")
    for outer in range(max_iter):
        nu = problem.newton(nu, multipliers, sigma, accuracy=max(10.0 ** -(outer + 2), 1e-12))
        multipliers = problem.shrink(nu, multipliers, sigma)
        objective, gap = problem.gap(multipliers)
        if gap < best_gap:
            best, best_gap = multipliers, gap
        scale = float(y_size) ** 2
        if gap * scale <= 0.9 * max(tol, _FLOOR) * max(1.0, objective * scale):
            break
        sigma *= 3.0
    return _gated_solution(x, y, beta, arrangements, best * (y_size / x_size), tol)


def solve_gated_fista(
    x: Tensor, y: Tensor, beta: float, arrangements: Arrangements, *, tol: float = 1e-6, max_iter: int = 20_000
) -> ConvexSolution:
    """Solve the gated program (squared loss) by FISTA with restarts: the plain first-order method.

    Arguments, result and errors are those of `solve_gated`; `max_iter` counts gradient steps.
    """
    x, y, beta = _checked(x, y, beta, arrangements)
    problem = _Gated(x, y, beta, arrangements.patterns)
    kernel = problem.kernel * (problem.gates @ problem.gates.T)
    step = 1.0 / float(torch.linalg.eigvalsh(kernel)[-1].clamp_min(torch.finfo(x.dtype).tiny))
    here = ahead = problem.zero()
    momentum = 1.0
    for iteration in range(max_iter):
        raised = ahead - step * problem.adjoint(problem.outputs(ahead) - y)
        norms = raised.norm(dim=0)
        following = raised * (1 - step * beta / norms.clamp_min(step * beta))
        if ((ahead - following) * (following - here)).sum() > 0:  # the momentum points uphill
            ahead, momentum = here, 1.0
            continue
        next_momentum = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = following + (momentum - 1) / next_momentum * (following - here)
        here, momentum = following, next_momentum
        if iteration % 20 == 0:
            objective, gap = problem.gap(here)
            if gap <= max(tol, _FLOOR) * max(1.0, objective):
                break
    return _gated_solution(x, y, beta, arrangements, here, tol)


def solve_relu(
    x: Tensor,
    y: Tensor,
    beta: float,
    arrangements: Arrangements,
    *,
    loss: Loss = "squared",
    tol: float = 1e-6,
    max_iter: int = 100,
) -> ConvexSolution:
    """Solve the ReLU program on a growing set of blocks.

    The conic solver sees only the active blocks; all others are priced by their correlation with the residual, the
    worst join, and blocks at zero leave. Ahead of one solve over all patterns where those are many and few are needed.

    Args:
        x: data, (n, d).
        y: targets, (n,).
        beta: strength of the weight decay, positive.
        arrangements: the patterns.
        loss: of the outputs.
        tol: certified relative gap to stop at; below 1e-10 it is taken as that.
        max_iter: restricted programs to solve.

    Returns:
        The best point found; a RuntimeWarning tells its gap if that is above `tol`.

    Raises:
        ValueError: the data are malformed.
        ConvexSolveError: no conic solver solves a restricted program.
        ImportError: cvxpy is not installed.
    """
    x, y, beta = _checked(x, y, beta, arrangements, loss)
    solution = certify(x, y, beta, arrangements, no_blocks(x), loss=loss, status="optimal")
    columns, nu = torch.zeros(0, dtype=torch.long), solution.dual
    for _ in range(max_iter):
        if solution.relative_gap <= max(tol, _FLOOR):
            break
        prices = price(x, nu, arrangements, beta, _BATCH)
        if len(prices.columns) == 0:
            break  # no block is worth adding: what gap is left is the conic solver's
        active = torch.cat([columns, prices.columns]).unique()  # type: ignore[no-untyped-call]
        restricted = Arrangements(arrangements.patterns[:, active], arrangements.gates[:, active], exact=False)
        inner = solve_relu_program(x, y, beta, restricted, loss=loss)
        nu = inner.dual
        blocks = Blocks.of(inner.weights)
        blocks = blocks._replace(columns=active[blocks.columns])
        candidate = certify(x, y, beta, arrangements, blocks, loss=loss, status=inner.status)
        if candidate.gap < solution.gap:
            solution = candidate
        columns = blocks.longer_than(1e-6).columns
    return _warned(polish(x, y, solution) if solution.gap > 0 else solution, tol)


class _Gated:
    """The gated program's operators, and the dual steps on them."""

    def __init__(self, x: Tensor, y: Tensor, beta: float, patterns: Tensor) -> None:
        self.x, self.y, self.beta = x, y, beta
        self.gates = patterns.to(x.dtype)
        self.kernel = x @ x.T

    def zero(self) -> Tensor:
        return self.x.new_zeros(self.x.shape[1], self.gates.shape[1])

    def outputs(self, vectors: Tensor) -> Tensor:
        """``sum_i D_i x u_i`` by whichever product is smaller."""
        if vectors.shape[1] < vectors.shape[0]:
            outputs: Tensor = ((self.x @ vectors) * self.gates).sum(1)
        else:
            outputs = ((self.gates @ vectors.T) * self.x).sum(1)
        return outputs

    def adjoint(self, nu: Tensor) -> Tensor:
        return (self.x * nu[:, None]).T @ self.gates

    def gap(self, vectors: Tensor) -> tuple[float, float]:
        """Objective and certified gap at a point."""
        nu = self.outputs(vectors) - self.y
        objective = float(0.5 * nu.square().sum() + self.beta * vectors.norm(dim=0).sum())
        return objective, objective - dual_bound(self.y, nu, float(self.adjoint(nu).norm(dim=0).max()), self.beta)

    def shrink(self, nu: Tensor, multipliers: Tensor, sigma: float) -> Tensor:
        raised = multipliers - sigma * self.adjoint(nu)
        threshold = sigma * self.beta
        shrunk: Tensor = raised * (1 - threshold / raised.norm(dim=0).clamp_min(threshold))
        return shrunk

    def newton(self, nu: Tensor, multipliers: Tensor, sigma: float, accuracy: float, max_steps: int = 50) -> Tensor:
        """Minimise the augmented dual over `nu` until its gradient is `accuracy` of the targets' norm."""
        threshold = sigma * self.beta

        def value(at: Tensor) -> Tensor:
            excess = ((multipliers - sigma * self.adjoint(at)).norm(dim=0) - threshold).clamp_min(0)
            height: Tensor = 0.5 * at.square().sum() + at @ self.y + excess.square().sum() / (2 * sigma)
            return height

        here = value(nu)
        for _ in range(max_steps):
            raised = multipliers - sigma * self.adjoint(nu)
            norms = raised.norm(dim=0)
            active = (norms > threshold).nonzero()[:, 0]
            kept = 1 - threshold / norms[active]
            shrunk = raised[:, active] * kept
            gates = self.gates[:, active]
            gradient = nu + self.y - (((self.x @ shrunk) * gates).sum(1) if len(active) else 0.0)
            if gradient.norm() <= accuracy * self.y.norm():
                break
            radial = gates * (self.x @ (raised[:, active] / norms[active])) * (1 - kept).sqrt()
            hessian = sigma * (self.kernel * ((gates * kept) @ gates.T) + radial @ radial.T)
            hessian.diagonal().add_(1.0)
            step = -torch.cholesky_solve(gradient[:, None], torch.linalg.cholesky(hessian))[:, 0]
            length = 1.0
            while length > 1e-8:
                following = value(nu + length * step)
                if following <= here + 1e-4 * length * (gradient @ step):
                    break
                length /= 2
            else:
                break  # rounding: no decrease can be seen any more
            nu, here = nu + length * step, following
        return nu


def _checked(
    x: Tensor, y: Tensor, beta: float, arrangements: Arrangements, loss: Loss = "squared"
) -> tuple[Tensor, Tensor, float]:
    x = check_features(x)
    y = check_targets(y, x, loss)
    check_arrangements(arrangements, x)
    return x, y, check_beta(beta)


def _gated_solution(
    x: Tensor, y: Tensor, beta: float, arrangements: Arrangements, vectors: Tensor, tol: float
) -> ConvexSolution:
    blocks = Blocks.of(vectors[None])
    return _warned(certify(x, y, beta, arrangements, blocks, status="optimal", gated=True), tol)


def _warned(solution: ConvexSolution, tol: float) -> ConvexSolution:
    if solution.relative_gap > max(tol, _FLOOR):
        warnings.warn(
            f"the solver stopped at a certified gap of {solution.gap:.2e} (relative {solution.relative_gap:.2e}), "
            f"above tol={tol:.0e}; raise max_iter or tol.",
            RuntimeWarning,
            stacklevel=3,
        )
    return solution

"""Solvers of our own: of the gated program by second-order steps in the dual, of the ReLU program by active sets.

Neither ever holds an (n, d, p) tensor: the gated features `D_i x` only appear in the products
``z = rowsum((D U^T) * x)`` and ``(x * nu)^T D``, and the kernel of all of them is ``(x x^T) * (D D^T)``.
"""

import warnings

import torch
from torch import Tensor

from lit_papers.convex_relu.arrangements import Arrangements, PatternIndex, check_arrangements
from lit_papers.convex_relu.certificates import Prices, price
from lit_papers.convex_relu.conic import solve_restricted
from lit_papers.convex_relu.losses import Loss
from lit_papers.convex_relu.polish import polish
from lit_papers.convex_relu.problem import Problem, check_features
from lit_papers.convex_relu.programs import single_output
from lit_papers.convex_relu.solution import Blocks, ConvexSolution, certify

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
    problem = _checked(x, y, beta, arrangements)
    solution = certify(problem, arrangements, Blocks.none(problem.x), status="optimal", gated=True)
    if solution.gap == 0:
        return solution
    # rows and targets of root mean square 1 serve one schedule of sigma best
    x_size, y_size = problem.x.square().mean().sqrt(), problem.y.square().mean().sqrt()
    scaled = problem.x / x_size, problem.y / y_size, problem.beta / float(x_size * y_size)
    operators = _Gated(*scaled, arrangements.patterns)
    multipliers, nu, sigma = operators.zero(), -operators.y, 1.0
    best, best_gap = multipliers, float("inf")
    goal = 0.9 * max(tol, _FLOOR) * float(0.5 * operators.y.square().sum())
    for outer in range(max_iter):
        nu = operators.newton(nu, multipliers, sigma, accuracy=max(10.0 ** -(outer + 2), 1e-12))
        multipliers = operators.shrink(nu, multipliers, sigma)
        gap = operators.gap(multipliers)
        if gap < best_gap:
            best, best_gap = multipliers, gap
        if gap <= goal:
            break
        sigma *= 3.0
    return _gated_solution(problem, arrangements, best * (y_size / x_size), tol)


def solve_gated_fista(
    x: Tensor, y: Tensor, beta: float, arrangements: Arrangements, *, tol: float = 1e-6, max_iter: int = 20_000
) -> ConvexSolution:
    """Solve the gated program (squared loss) by FISTA with restarts: the plain first-order method.

    Arguments, result and errors are those of `solve_gated`; `max_iter` counts gradient steps.
    """
    problem = _checked(x, y, beta, arrangements)
    operators = _Gated(problem.x, problem.y, problem.beta, arrangements.patterns)
    kernel = operators.kernel * (operators.gates @ operators.gates.T)
    step = 1.0 / float(torch.linalg.eigvalsh(kernel)[-1].clamp_min(torch.finfo(kernel.dtype).tiny))
    here = ahead = operators.zero()
    momentum, reach = 1.0, step * problem.beta
    for iteration in range(max_iter):
        raised = ahead - step * operators.adjoint(operators.outputs(ahead) - problem.y)
        following = raised * (1 - reach / raised.norm(dim=0).clamp_min(reach))
        if ((ahead - following) * (following - here)).sum() > 0:  # the momentum points uphill
            ahead, momentum = here, 1.0
            continue
        next_momentum = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = following + (momentum - 1) / next_momentum * (following - here)
        here, momentum = following, next_momentum
        if iteration % 20 == 0 and operators.gap(here) <= max(tol, _FLOOR) * problem.at_zero:
            break
    return _gated_solution(problem, arrangements, here, tol)


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

    The conic solver sees only the active blocks and the facets of their cones; all others are priced by their
    correlation with the residual, the worst join, and blocks at zero leave. The last point is refined to full
    precision on the faces of the cones.

    Args:
        x: data, (n, d).
        y: targets, (n,).
        beta: strength of the weight decay, positive.
        arrangements: the patterns.
        loss: of the outputs.
        tol: certified gap to stop at, relative to the loss of the network without neurons; below 1e-10 it is taken as
            that.
        max_iter: restricted programs to solve.

    Returns:
        The best point found; a RuntimeWarning tells its gap if that is above `tol`.

    Raises:
        ValueError: the data are malformed.
        ImportError: the conic solver is not installed.
    """
    problem = _checked(x, y, beta, arrangements, loss)
    return warned(solve(problem, arrangements, tol=tol, max_iter=max_iter), tol)


def solve(
    problem: Problem,
    arrangements: Arrangements,
    *,
    tol: float = 1e-6,
    max_iter: int = 100,
    start: Blocks | None = None,
) -> ConvexSolution:
    """`solve_relu` of a problem that is checked and scaled, with its weights and its output bias.

    Args:
        problem: with one output, of the data that the arrangements are of.
        arrangements: the patterns.
        tol: certified relative gap to stop at.
        max_iter: restricted programs to solve.
        start: blocks to begin with, such as those of a neighbouring beta.
    """
    tol = max(tol, _FLOOR)
    x, patterns = problem.x, arrangements.patterns
    index = PatternIndex(x, arrangements)
    blocks = (Blocks.none(x) if start is None else start).in_cones(x, patterns)
    active, lowest, status = blocks, float("inf"), "optimal"
    best: ConvexSolution | None = None
    for _ in range(max_iter):
        nu = problem.dual(blocks.outputs(x, patterns))
        joining = _reached(problem, nu, arrangements, index, active.keys(), tol)
        if len(joining.columns) == 0:  # only now is it worth while to look at all cones
            prices = price(x, nu, arrangements, least=problem.beta * (1 + _FLOOR))
            solution = certify(problem, arrangements, blocks, status=status, sup=prices.sup)
            if best is None or solution.value - solution.bound < best.value - best.bound:
                best = solution
            if best.relative_gap <= tol:
                break
            joining = _most_violated(prices, active.keys())
            if len(joining.columns) == 0:
                break  # what gap there is, is the conic solver's
        active = Blocks(*(torch.cat(pair) for pair in zip(active, joining, strict=True)))
        chosen = patterns[:, active.columns]
        vectors, status = solve_restricted(problem, chosen, active.signs, index.facets(active.columns))
        blocks = active._replace(vectors=vectors).longer_than(1e-8).in_cones(x, patterns)
        outputs = blocks.outputs(x, patterns)
        value = float(problem.value(outputs) + problem.beta * blocks.vectors.norm(dim=1).sum())
        if value < lowest * (1 - 1e-13):
            active = blocks.longer_than(1e-6)  # a block may only leave when the value has fallen: no cycles
        lowest = min(lowest, value)
    else:
        solution = certify(problem, arrangements, blocks, status=status)
        best = solution if best is None or solution.value < best.value else best
    return polish(best) if best is not None and best.relative_gap > 0 else best


def blocks_of(problem: Problem, arrangements: Arrangements, weight: Tensor, alpha: Tensor) -> Blocks:
    """A user's network as blocks of the program, to start from; neurons whose pattern is not there are left out."""
    weight, alpha = problem.scaled(weight, alpha)
    columns = PatternIndex(problem.x, arrangements).columns(problem.x @ weight.T > 0)
    there = (columns >= 0) & (alpha != 0)
    return Blocks(columns[there], alpha[there].sign(), alpha[there].abs()[:, None] * weight[there])


def _reached(
    problem: Problem,
    nu: Tensor,
    arrangements: Arrangements,
    index: PatternIndex,
    active: set[tuple[int, int]],
    tol: float,
) -> Blocks:
    """Blocks that a neuron with too much correlation lies in, found without projecting on a single cone.

    The direction ``x^T D nu`` of each pattern is a neuron, mostly of another pattern; what it reaches there counts.
    """
    x = problem.x
    units = torch.nn.functional.normalize(x.T @ (arrangements.patterns.to(x.dtype) * nu[:, None]), dim=0)
    inner = x @ torch.cat([-units, units], 1)  # with output signs +1 and -1
    signs = x.new_ones(inner.shape[1])
    signs[units.shape[1] :] = -1.0
    values = -signs * (nu @ inner.clamp_min(0))
    above = (values > problem.beta * (1 + 0.5 * tol)).nonzero()[:, 0]
    above = above[values[above].argsort(descending=True, stable=True)]
    columns, signs = index.columns(inner[:, above] > 0), signs[above]
    chosen: dict[tuple[int, int], int] = {}
    for place, key in enumerate(zip(columns.tolist(), signs.long().tolist(), strict=True)):
        if key[0] >= 0 and key not in active:
            chosen.setdefault(key, place)
        if len(chosen) == _BATCH:
            break
    places = list(chosen.values())
    return Blocks(columns[places], signs[places], x.new_zeros(len(places), x.shape[1]))


def _most_violated(prices: Prices, active: set[tuple[int, int]]) -> Blocks:
    """The first blocks in falling order that are not active, none with the best neuron of another.

    Active blocks are at their price up to the conic solver's accuracy; counted as violated, they would fill the batch.
    """
    chosen: list[int] = []
    for place, key in enumerate(zip(prices.columns.tolist(), prices.signs.long().tolist(), strict=True)):
        if key in active:
            continue
        near = (prices.vectors[chosen] - prices.vectors[place]).norm(dim=1) < 1e-6
        if bool((near & (prices.signs[chosen] == prices.signs[place])).any()):
            continue  # a neuron at the border of two cones
        chosen.append(place)
        if len(chosen) == _BATCH:
            break
    return Blocks(prices.columns[chosen], prices.signs[chosen], torch.zeros_like(prices.vectors[chosen]))


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

    def gap(self, vectors: Tensor) -> float:
        """Certified gap at a point."""
        nu = self.outputs(vectors) - self.y
        objective = float(0.5 * nu.square().sum() + self.beta * vectors.norm(dim=0).sum())
        size, sup = float(nu.square().sum()), float(self.adjoint(nu).norm(dim=0).max())
        if size == 0:
            return objective
        reach = self.beta / sup if sup > 0 else float("inf")
        step = max(-reach, min(reach, -float(nu @ self.y) / size))
        return objective - (-0.5 * step**2 * size - step * float(nu @ self.y))

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


def _checked(x: Tensor, y: Tensor, beta: float, arrangements: Arrangements, loss: Loss = "squared") -> Problem:
    problem = single_output(x, y, beta, loss)
    check_arrangements(arrangements, check_features(x))
    return problem


def _gated_solution(problem: Problem, arrangements: Arrangements, vectors: Tensor, tol: float) -> ConvexSolution:
    blocks = Blocks.of(vectors[None])
    return warned(certify(problem, arrangements, blocks, status="optimal", gated=True), tol)


def warned(solution: ConvexSolution, tol: float) -> ConvexSolution:
    """Pass a solution on, with a RuntimeWarning if its gap is above `tol`."""
    if solution.relative_gap > max(tol, _FLOOR):
        warnings.warn(
            f"the solver stopped at a certified gap of {solution.gap:.2e} (relative {solution.relative_gap:.2e}), "
            f"above tol={tol:.0e}; raise max_iter or tol.",
            RuntimeWarning,
            stacklevel=3,
        )
    return solution

"""The convex programs that training a two-layer ReLU network is, handed to a conic solver.

    min  loss( sum_i D_i x (v_i - w_i) ) + beta sum_i (|v_i| + |w_i|)     with v_i, w_i in the cone of pattern D_i

With all patterns its value is the smallest objective of any network of any width. The gated program drops the cones.
Solvers are never believed: points are moved into the cones, values recomputed, and gaps proven by duality.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_papers.convex_relu.arrangements import Arrangements, check_arrangements
from lit_papers.convex_relu.certificates import DualNorm, dual_bound, dual_norm
from lit_papers.convex_relu.losses import Loss
from lit_papers.convex_relu.polish import polish as polish_solution
from lit_papers.convex_relu.problem import Problem, check_features
from lit_papers.convex_relu.solution import Blocks, ConvexSolution, certify

__all__ = [
    "ConvexSolution",
    "ConvexSolveError",
    "DualNorm",
    "dual_bound",
    "dual_norm",
    "solve_gated_program",
    "solve_relu_program",
]

_ACCEPTED_GAP = 1e-6
_SOLVERS: dict[str, dict[str, Any]] = {
    "CLARABEL": {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11},
    "SCS": {"eps_abs": 1e-9, "eps_rel": 1e-9, "max_iters": 200_000},
}


class ConvexSolveError(RuntimeError):
    """No solver came near enough to the optimum for our certificate.

    Attributes:
        status: what the solvers said.
    """

    def __init__(self, status: str) -> None:
        super().__init__(
            f"no conic solver solved this program: {status}. Scale the columns of x to similar lengths, take fewer "
            "patterns, or try `solvers.solve_relu`."
        )
        self.status = status


def solve_relu_program(
    x: Tensor,
    y: Tensor,
    beta: float,
    arrangements: Arrangements,
    *,
    loss: Loss = "squared",
    polish: bool = True,
) -> ConvexSolution:
    """Solve the program over the given patterns with CLARABEL, or with SCS where that fails.

    Args:
        x: data, (n, d).
        y: targets, (n,); -1 and +1 under the logistic loss.
        beta: strength of the weight decay, positive.
        arrangements: the patterns; `enumerate_arrangements` for the global optimum.
        loss: of the outputs.
        polish: refine to full precision with Newton's method on the faces of the cones.

    Raises:
        ValueError: the data are malformed.
        ConvexSolveError: no solver reached a certified relative gap of 1e-6.
        ImportError: cvxpy is not installed.
    """
    problem = single_output(x, y, beta, loss)
    check_arrangements(arrangements, check_features(x))
    zero = certify(problem, arrangements, Blocks.none(problem.x), status="optimal")
    if zero.gap == 0:  # beta is at least as large as any neuron's correlation with the targets
        return zero
    cvxpy = _import_cvxpy()
    columns = torch.arange(len(arrangements)).repeat(2)
    signs = torch.ones(2 * len(arrangements), dtype=torch.float64)
    signs[len(arrangements) :] = -1.0
    patterns = arrangements.patterns[:, columns]
    vectors = cvxpy.Variable((problem.x.shape[1], len(columns)))
    inner = problem.x.numpy() @ vectors
    outputs = cvxpy.sum(cvxpy.multiply((patterns * signs).numpy(), inner), axis=1)
    penalty = cvxpy.sum(cvxpy.norm(vectors, 2, axis=0))
    there = (problem.x.norm(dim=1) > 0).nonzero()[:, 0].numpy()
    side = np.where(patterns.numpy(), 1.0, -1.0)
    cones = [cvxpy.multiply(side[there], inner[there]) >= 0]
    program = cvxpy.Problem(cvxpy.Minimize(_data_term(cvxpy, outputs, problem) + problem.beta * penalty), cones)

    def read(weights: Tensor, status: str) -> ConvexSolution:
        blocks = Blocks(columns, signs, weights).longer_than(1e-8).in_cones(problem.x, arrangements.patterns)
        solution = certify(problem, arrangements, blocks, status=status)
        return polish_solution(solution) if polish else solution

    return _solve(cvxpy, program, vectors, read)


def solve_gated_program(x: Tensor, y: Tensor, beta: float, arrangements: Arrangements) -> ConvexSolution:
    """Solve the gated program (squared loss): ``min loss(sum_i D_i x u_i) + beta sum |u_i|``, without cones.

    Its value is a lower bound of the ReLU program's on the same patterns, and a loose one. `solvers.solve_gated` does
    the same without a conic solver, and faster.

    Raises:
        ValueError: the data are malformed.
        ConvexSolveError: no solver reached a certified relative gap of 1e-6.
        ImportError: cvxpy is not installed.
    """
    problem = single_output(x, y, beta, "squared")
    check_arrangements(arrangements, check_features(x))
    zero = certify(problem, arrangements, Blocks.none(problem.x), status="optimal", gated=True)
    if zero.gap == 0:
        return zero
    cvxpy = _import_cvxpy()
    vectors = cvxpy.Variable((problem.x.shape[1], len(arrangements)))
    gates = arrangements.patterns.to(torch.float64).numpy()
    outputs = cvxpy.sum(cvxpy.multiply(gates, problem.x.numpy() @ vectors), axis=1)
    penalty = cvxpy.sum(cvxpy.norm(vectors, 2, axis=0))
    program = cvxpy.Problem(cvxpy.Minimize(_data_term(cvxpy, outputs, problem) + problem.beta * penalty))

    def read(weights: Tensor, status: str) -> ConvexSolution:
        blocks = Blocks(torch.arange(len(weights)), weights.new_ones(len(weights)), weights).longer_than(1e-8)
        return certify(problem, arrangements, blocks, status=status, gated=True)

    return _solve(cvxpy, program, vectors, read)


def single_output(x: Tensor, y: Tensor, beta: float, loss: Loss) -> Problem:
    """The problem of these data, if the convex program is of its kind.

    Raises:
        ValueError: the data are malformed, or there are several outputs.
    """
    problem = Problem.of(x, y, beta, loss=loss)
    if problem.num_outputs > 1:
        raise ValueError(
            f"y has {problem.num_outputs} columns: the programs over patterns are of one output. "
            "`descent.descend` trains networks of several, with a certified bound."
        )
    return problem


def _import_cvxpy() -> Any:
    try:
        import cvxpy
    except ImportError as error:
        raise ImportError("the convex programs need cvxpy: pip install 'lit-papers[convex]'.") from error
    return cvxpy


def _data_term(cvxpy: Any, outputs: Any, problem: Problem) -> Any:
    y = problem.y.numpy()
    if problem.loss == "squared":
        return 0.5 * cvxpy.sum_squares(outputs - y)
    return cvxpy.sum(cvxpy.logistic(cvxpy.multiply(-y, outputs)))


def _solve(cvxpy: Any, problem: Any, variable: Any, read: Callable[[Tensor, str], ConvexSolution]) -> ConvexSolution:
    """Try the solvers in turn until one's point has a small gap by our own certificate.

    `read` turns the variable's value, (k, d), and a solver's status into a certified solution.
    """
    said = []
    for solver, options in _SOLVERS.items():
        with warnings.catch_warnings():  # "Solution may be inaccurate": the certificate is our judge
            warnings.simplefilter("ignore", UserWarning)
            try:
                problem.solve(solver=solver, **options)
            except (cvxpy.SolverError, ValueError) as error:
                said.append(f"{solver}: {error}")
                continue
        if variable.value is None:
            said.append(f"{solver}: {problem.status}")
            continue
        solution = read(torch.from_numpy(variable.value.T.copy()), problem.status)
        if solution.relative_gap <= _ACCEPTED_GAP:
            return solution
        said.append(f"{solver}: {problem.status}, but {solution.gap:.2e} above our lower bound")
    raise ConvexSolveError("; ".join(said))

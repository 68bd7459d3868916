"""Solutions of the convex programs, each with a certificate computed here and never taken from a solver."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lit_papers.convex_relu.arrangements import Arrangements
from lit_papers.convex_relu.certificates import gated_norms, price
from lit_papers.convex_relu.cones import project_on_cones
from lit_papers.convex_relu.losses import Loss
from lit_papers.convex_relu.problem import Problem


class Blocks(NamedTuple):
    """The non-zero blocks of a program's variable, in the units of its problem.

    Attributes:
        columns: (k,) pattern of each block.
        signs: (k,) output sign of each, +1 or -1; +1 for gated blocks.
        vectors: (k, d).
    """

    columns: Tensor
    signs: Tensor
    vectors: Tensor

    @classmethod
    def none(cls, x: Tensor) -> "Blocks":
        """The zero solution."""
        return cls(torch.zeros(0, dtype=torch.long), x.new_zeros(0), x.new_zeros(0, x.shape[1]))

    @classmethod
    def of(cls, weights: Tensor) -> "Blocks":
        """Collect the non-zero blocks of weights (1 or 2, d, p)."""
        half, columns = (weights != 0).any(1).nonzero(as_tuple=True)
        return cls(columns, 1.0 - 2.0 * half.to(weights.dtype), weights[half, :, columns])

    def longer_than(self, tol: float) -> "Blocks":
        """Only the blocks that are longer than `tol` times the longest."""
        norms = self.vectors.norm(dim=1)
        return self.keep(norms > tol * norms.max()) if len(norms) else self

    def dense(self, num_patterns: int, *, gated: bool = False) -> Tensor:
        """The variable as (2, d, p), or (1, d, p) for gated blocks; blocks of one cone and sign are summed."""
        weights = self.vectors.new_zeros(1 if gated else 2, num_patterns, self.vectors.shape[1])
        weights.index_put_(((self.signs < 0).long(), self.columns), self.vectors, accumulate=True)
        return weights.transpose(1, 2).contiguous()

    def keep(self, chosen: Tensor) -> "Blocks":
        """Only some blocks, by mask or index."""
        return Blocks(self.columns[chosen], self.signs[chosen], self.vectors[chosen])

    def keys(self) -> set[tuple[int, int]]:
        """Pattern and sign of each block."""
        return set(zip(self.columns.tolist(), self.signs.long().tolist(), strict=True))

    def outputs(self, x: Tensor, patterns: Tensor) -> Tensor:
        """Outputs ``sum_i s_i D_i x v_i``, (n,), without bias."""
        gated = patterns[:, self.columns].to(x.dtype) * (x @ self.vectors.T)
        return gated @ self.signs

    def in_cones(self, x: Tensor, patterns: Tensor) -> "Blocks":
        """Move each block to the nearest point of its cone: interior-point solvers leave them by some 1e-8."""
        side = torch.where(patterns[:, self.columns].T, 1.0, -1.0).to(x.dtype)
        outside = (side * (self.vectors @ x.T) < 0).any(1)
        if not outside.any():
            return self
        vectors = self.vectors.clone()
        vectors[outside] = project_on_cones(vectors[outside], side[outside], x).points
        return self._replace(vectors=vectors)


@dataclass(frozen=True, eq=False)
class ConvexSolution:
    """A feasible point of a convex program, its value, and a proof of how good it is.

    What is named here is in units of the problem, which are those of size one; the properties are in the user's.

    Attributes:
        problem: that it solves.
        arrangements: the patterns of the program.
        blocks: the point.
        value: objective at the point, in the problem's units.
        bound: certified bound on the program's optimal value, in the problem's units.
        nu: gradient of the loss at the outputs, in the problem's units, (n,).
        status: what the solver said.
        gated: the program has no cones.
    """

    problem: Problem
    arrangements: Arrangements
    blocks: Blocks
    value: float
    bound: float
    nu: Tensor
    status: str
    gated: bool = False

    @property
    def weights(self) -> Tensor:
        """(2, d, p): vectors inside cone i of output sign +1 (index 0) and -1 (1); (1, d, p) if gated."""
        unit = self.problem.y_unit / self.problem.x_unit
        return unit * self.blocks.dense(len(self.arrangements), gated=self.gated)

    @property
    def bias(self) -> float:
        """The best output bias; 0 if the problem has none."""
        outputs = self.blocks.outputs(self.problem.x, self.arrangements.patterns)
        return float(self.problem.bias(outputs) * self.problem.y_unit + self.problem.y_shift)

    @property
    def beta(self) -> float:
        """Strength of the weight decay."""
        problem = self.problem
        return problem.beta * problem.unit * problem.x_unit / problem.y_unit

    @property
    def loss(self) -> Loss:
        """Of the outputs."""
        return self.problem.loss

    @property
    def objective(self) -> float:
        """Value of the program at `weights`."""
        return self.problem.unit * self.value

    @property
    def lower_bound(self) -> float:
        """Certified bound on the program's optimal value; one on training's only if `exact`."""
        return self.problem.unit * self.bound

    @property
    def dual(self) -> Tensor:
        """(n,) gradient of the loss at the outputs."""
        return self.problem.unit / self.problem.y_unit * self.nu

    @property
    def gap(self) -> float:
        """Certified distance from the program's optimal value, at least 0."""
        return self.problem.unit * max(self.value - self.bound, 0.0)

    @property
    def relative_gap(self) -> float:
        """`gap` relative to the loss of the network without neurons, whatever units the data have."""
        return max(self.value - self.bound, 0.0) / self.problem.at_zero if self.problem.at_zero > 0 else 0.0

    @property
    def exact(self) -> bool:
        """All patterns were there: the optimal value is that of training networks of any width."""
        return self.arrangements.exact and not self.gated


def certify(
    problem: Problem,
    arrangements: Arrangements,
    blocks: Blocks,
    *,
    status: str,
    gated: bool = False,
    sup: float | None = None,
) -> ConvexSolution:
    """Evaluate feasible blocks and bound the optimal value from the gradient at their outputs.

    `sup` is that gradient's dual norm over the patterns, where it is known already.
    """
    outputs = blocks.outputs(problem.x, arrangements.patterns)
    nu = problem.dual(outputs)
    if sup is None and gated:
        sup = float(gated_norms(problem.x, nu, arrangements.patterns).max())
    elif sup is None:
        # a gradient of norm beta is feasible as it is, so how far below it stays does not matter
        sup = price(problem.x, nu, arrangements, least=problem.beta * (1 - 1e-14)).sup
    value = float(problem.value(outputs) + problem.beta * blocks.vectors.norm(dim=1).sum())
    return ConvexSolution(problem, arrangements, blocks, value, problem.bound(nu, sup), nu, status, gated)

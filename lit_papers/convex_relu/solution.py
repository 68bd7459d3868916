"""Solutions of the convex programs, each with a certificate computed here and never taken from a solver."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lit_papers.convex_relu.arrangements import Arrangements
from lit_papers.convex_relu.certificates import dual_bound, dual_norm, gated_norms
from lit_papers.convex_relu.problem import Loss, loss_gradient, loss_value, project_on_cone


@dataclass(frozen=True)
class ConvexSolution:
    """A feasible point of a convex program, its value, and a proof of how good it is.

    Attributes:
        weights: (2, d, p): vectors inside cone i of the positive (index 0) and negative (1) output sign; (1, d, p) for
            the gated program, whose vectors are free.
        arrangements: the patterns of the program.
        beta: strength of the weight decay.
        loss: of the outputs.
        objective: value of the program at `weights`.
        lower_bound: certified bound on the program's optimal value; one on training's only if `exact`.
        dual: (n,) gradient of the loss at the outputs.
        status: what the solver said.
    """

    weights: Tensor
    arrangements: Arrangements
    beta: float
    loss: Loss
    objective: float
    lower_bound: float
    dual: Tensor
    status: str

    @property
    def gap(self) -> float:
        """Certified distance from the program's optimal value, at least 0."""
        return max(self.objective - self.lower_bound, 0.0)

    @property
    def relative_gap(self) -> float:
        """`gap` relative to the objective, or to 1 where that is larger."""
        return self.gap / max(1.0, abs(self.objective))

    @property
    def exact(self) -> bool:
        """All patterns were there: the optimal value is that of training networks of any width."""
        return self.arrangements.exact


class Blocks(NamedTuple):
    """The non-zero blocks of a program's variable.

    Attributes:
        columns: (k,) pattern of each block.
        signs: (k,) output sign of each, +1 or -1; +1 for gated blocks.
        vectors: (k, d).
    """

    columns: Tensor
    signs: Tensor
    vectors: Tensor

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

    def outputs(self, x: Tensor, patterns: Tensor) -> Tensor:
        """Outputs ``sum_i s_i D_i x v_i``, (n,)."""
        gated = patterns[:, self.columns].to(x.dtype) * (x @ self.vectors.T)
        return gated @ self.signs

    def in_cones(self, x: Tensor, patterns: Tensor) -> "Blocks":
        """Move each block to the nearest point of its cone: interior-point solvers leave them by some 1e-8."""
        side = torch.where(patterns[:, self.columns].T, 1.0, -1.0).to(x.dtype)
        margins = side * (self.vectors @ x.T)
        vectors = self.vectors.clone()
        for index in (margins < 0).any(1).nonzero()[:, 0].tolist():
            vectors[index] = project_on_cone(vectors[index], side[index][:, None] * x)
        return self._replace(vectors=vectors)


def certify(
    x: Tensor,
    y: Tensor,
    beta: float,
    arrangements: Arrangements,
    blocks: Blocks,
    *,
    loss: Loss = "squared",
    status: str,
    gated: bool = False,
) -> ConvexSolution:
    """Evaluate feasible blocks and bound the optimal value from the gradient at their outputs."""
    outputs = blocks.outputs(x, arrangements.patterns)
    nu = loss_gradient(outputs, y, loss)
    sup = float(gated_norms(x, nu, arrangements.patterns).max()) if gated else dual_norm(x, nu, arrangements).value
    return ConvexSolution(
        weights=blocks.dense(len(arrangements), gated=gated),
        arrangements=arrangements,
        beta=beta,
        loss=loss,
        objective=float(loss_value(outputs, y, loss) + beta * blocks.vectors.norm(dim=1).sum()),
        lower_bound=dual_bound(y, nu, sup, beta, loss=loss),
        dual=nu,
        status=status,
    )


def no_blocks(x: Tensor) -> Blocks:
    """The zero solution."""
    return Blocks(torch.zeros(0, dtype=torch.long), x.new_zeros(0), x.new_zeros(0, x.shape[1]))

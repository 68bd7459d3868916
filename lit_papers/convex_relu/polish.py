"""From an interior-point solution to full precision: Newton's method on the faces where the optimal neurons lie.

Optimal neurons tend to sit exactly on activation boundaries. Which samples a neuron is at the boundary of can be read
off an accurate solution; with those fixed to zero, what is left is smooth and Newton's method converges in a few steps.
"""

import torch
from torch import Tensor

from lit_papers.convex_relu.arrangements import Arrangements
from lit_papers.convex_relu.problem import Loss, loss_gradient, loss_value
from lit_papers.convex_relu.solution import Blocks, ConvexSolution, certify


def polish(x: Tensor, y: Tensor, solution: ConvexSolution, *, gated: bool = False) -> ConvexSolution:
    """Refine a solution; it is returned unchanged where that does not shrink its certified gap.

    Args:
        x: data, (n, d).
        y: targets, (n,).
        solution: an accurate solution, its blocks inside their cones.
        gated: its vectors are free (no cones).
    """
    best = solution
    for tol in (1e-4, 1e-5, 1e-6):
        blocks = Blocks.of(best.weights).longer_than(tol)
        if len(blocks.columns) == 0:
            break
        if gated:
            faces = [torch.eye(x.shape[1], dtype=x.dtype)] * len(blocks.columns)
        else:
            blocks, faces = _faces(x, blocks, tol)
        refined = _newton(x, y, best.beta, best.arrangements, blocks, faces, best.loss)
        if not gated:
            refined = refined.in_cones(x, best.arrangements.patterns)
        candidate = certify(
            x, y, best.beta, best.arrangements, refined, loss=best.loss, status=best.status, gated=gated
        )
        if candidate.gap < best.gap:
            best = candidate
        if best.relative_gap < 1e-13:
            break
    return best


def _faces(x: Tensor, blocks: Blocks, tol: float) -> tuple[Blocks, list[Tensor]]:
    """Sum blocks that lie in one face with one sign, and return an orthonormal basis of each face's span."""
    lengths = x.norm(dim=1)
    inner = blocks.vectors @ x.T
    scale = blocks.vectors.norm(dim=1, keepdim=True) * lengths
    sides = torch.where(inner.abs() <= tol * scale, 0.0, inner.sign())
    signatures, group = torch.unique(torch.cat([sides, blocks.signs[:, None]], 1), dim=0, return_inverse=True)
    vectors = blocks.vectors.new_zeros(len(signatures), x.shape[1]).index_add_(0, group, blocks.vectors)
    first = torch.stack([(group == index).nonzero()[0, 0] for index in range(len(signatures))])
    faces, kept = [], []
    for index, signature in enumerate(signatures):
        fixed = x[(signature[:-1] == 0) & (lengths > 0)]
        _, scale_, directions = torch.linalg.svd(fixed, full_matrices=True)
        rank = int((scale_ > 1e-10 * scale_.max()).sum()) if len(fixed) else 0
        basis = directions[rank:].T
        if basis.shape[1]:
            faces.append(basis)
            kept.append(index)
    return Blocks(blocks.columns[first[kept]], signatures[kept, -1], vectors[kept]), faces


def _newton(
    x: Tensor,
    y: Tensor,
    beta: float,
    arrangements: Arrangements,
    blocks: Blocks,
    faces: list[Tensor],
    loss: Loss,
    max_steps: int = 40,
) -> Blocks:
    gates = arrangements.patterns[:, blocks.columns].to(x.dtype)
    columns = [sign * gate[:, None] * (x @ face) for sign, gate, face in zip(blocks.signs, gates.T, faces, strict=True)]
    design = torch.cat(columns, 1)
    sizes = [face.shape[1] for face in faces]
    point = torch.cat([face.T @ vector for face, vector in zip(faces, blocks.vectors, strict=True)])

    def value(at: Tensor) -> Tensor:
        penalty = torch.stack([part.norm() for part in torch.split(at, sizes)]).sum()
        return loss_value(design @ at, y, loss) + beta * penalty

    here = value(point)
    for _ in range(max_steps):
        outputs = design @ point
        parts = torch.split(point, sizes)
        norms = [part.norm().clamp_min(torch.finfo(x.dtype).tiny) for part in parts]
        gradient = design.T @ loss_gradient(outputs, y, loss)
        gradient = gradient + beta * torch.cat([part / norm for part, norm in zip(parts, norms, strict=True)])
        bend = [
            beta / norm * (torch.eye(len(part), dtype=x.dtype) - torch.outer(part, part) / norm**2)
            for part, norm in zip(parts, norms, strict=True)
        ]
        curvature = design
        if loss == "logistic":
            margin = torch.sigmoid(-y * outputs)
            curvature = (margin * (1 - margin))[:, None] * design
        hessian = design.T @ curvature + torch.block_diag(*bend)  # type: ignore[no-untyped-call]
        # a positive-dimensional set of optima makes it singular: the shortest step will do
        step = -torch.linalg.lstsq(hessian, gradient[:, None], driver="gelsd").solution[:, 0]
        length = 1.0
        while length > 1e-10 and not value(point + length * step) <= here + 1e-4 * length * (gradient @ step):
            length /= 2
        following = value(point + length * step)
        if not following < here:
            if length > 0.5 and following <= here * (1 + 1e-15):
                point = point + length * step
            break
        point, here = point + length * step, following
    vectors = torch.stack([face @ part for face, part in zip(faces, torch.split(point, sizes), strict=True)])
    return blocks._replace(vectors=vectors)

"""From an interior-point solution to full precision: Newton's method on the faces where the optimal neurons lie.

Optimal neurons tend to sit exactly on activation boundaries. Which samples a neuron is at the boundary of can be read
off an accurate solution; with those fixed to zero, what is left is smooth and Newton's method converges in a few steps.
"""

import torch
from torch import Tensor

from lit_papers.convex_relu.certificates import Prices, price
from lit_papers.convex_relu.losses import loss_gradient, loss_value, per_row
from lit_papers.convex_relu.problem import Problem, import_scipy_optimize
from lit_papers.convex_relu.solution import Blocks, ConvexSolution, certify

_DONE = 5e-13  # relative gap: float64 certifies little more, and `optimal_set` asks for 1e-12


def polish(solution: ConvexSolution, *, done: float = _DONE) -> ConvexSolution:
    """Refine an accurate solution of the ReLU program; it is returned unchanged where its certified gap cannot shrink.

    Where the neurons lie is read off the solution at several tolerances, and off its dual variable: the best neurons of
    all cones show their boundaries exactly.

    Args:
        solution: of the ReLU program.
        done: relative gap to stop at.
    """
    best, problem, patterns = solution, solution.problem, solution.arrangements.patterns
    for tol, from_dual in ((1e-4, False), (1e-5, True), (1e-4, True), (1e-6, False), (1e-3, False), (1e-3, True)):
        if best.relative_gap < done:
            break
        blocks = _atoms(best, tol) if from_dual else best.blocks.longer_than(tol)
        if len(blocks.columns) == 0:
            continue
        blocks, faces = _faces(problem.x, blocks, 1e-9 if from_dual else tol)
        if not faces:
            continue
        refined = _newton(problem, patterns, blocks, faces).in_cones(problem.x, patterns)
        candidate = certify(problem, best.arrangements, refined, status=best.status)
        if candidate.value - candidate.bound < best.value - best.bound:
            best = candidate
    return best


def _atoms(solution: ConvexSolution, tol: float) -> Blocks:
    """The best neurons of the blocks within `tol` of beta, with masses that give the solution's outputs."""
    problem = solution.problem
    outputs = solution.blocks.outputs(problem.x, solution.arrangements.patterns)
    found = price(problem.x, solution.nu, solution.arrangements, least=problem.beta * (1 - tol))
    kept = distinct_neurons(found, problem.beta)
    fits = (problem.x @ found.vectors[kept].T).clamp_min(0) * found.signs[kept]
    masses = torch.from_numpy(import_scipy_optimize().nnls(fits.numpy(), outputs.numpy())[0]) if len(kept) else fits[0]
    blocks = Blocks(found.columns[kept], found.signs[kept], masses[:, None] * found.vectors[kept])
    return blocks.longer_than(1e-9)


def distinct_neurons(found: Prices, beta: float) -> list[int]:
    """The places of the neurons that are not next to a better one of the same sign.

    The neurons beside an optimal one fall short of beta by the square of their distance.
    """
    kept: list[int] = []
    for place, value in enumerate(found.values.tolist()):
        lack = max(0.0, 1 - value / beta)
        near = (found.vectors[kept] - found.vectors[place]).norm(dim=1) <= 1e-6 + 2 * (2 * lack) ** 0.5
        if not bool((near & (found.signs[kept] == found.signs[place])).any()):
            kept.append(place)
    return kept


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


def _newton(problem: Problem, patterns: Tensor, blocks: Blocks, faces: list[Tensor], max_steps: int = 40) -> Blocks:
    """Minimise over the coordinates of each block in its face, and the output bias."""
    x, y, beta = problem.x, problem.y, problem.beta
    gates = patterns[:, blocks.columns].to(x.dtype)
    columns = [sign * gate[:, None] * (x @ face) for sign, gate, face in zip(blocks.signs, gates.T, faces, strict=True)]
    sizes = [face.shape[1] for face in faces]
    parts = [face.T @ vector for face, vector in zip(faces, blocks.vectors, strict=True)]
    free = int(problem.output_bias)
    design = torch.cat([*columns, x.new_ones(len(x), free)], 1)
    point = torch.cat([*parts, x.new_zeros(free)])
    if free:
        point[-1] = problem.bias(design[:, :-1] @ point[:-1])

    def value(at: Tensor) -> Tensor:
        penalty = torch.stack([part.norm() for part in torch.split(at[: sum(sizes)], sizes)]).sum()
        return loss_value(design @ at, y, problem.loss, problem.weights) + beta * penalty

    here = value(point)
    for _ in range(max_steps):
        outputs = design @ point
        parts = list(torch.split(point[: sum(sizes)], sizes))
        norms = [part.norm().clamp_min(torch.finfo(x.dtype).tiny) for part in parts]
        gradient = design.T @ loss_gradient(outputs, y, problem.loss, problem.weights)
        gradient[: sum(sizes)] += beta * torch.cat([part / norm for part, norm in zip(parts, norms, strict=True)])
        bend = [
            beta / norm * (torch.eye(len(part), dtype=x.dtype) - torch.outer(part, part) / norm**2)
            for part, norm in zip(parts, norms, strict=True)
        ]
        curvature = design
        if problem.loss == "logistic":
            chance = torch.sigmoid(-y * outputs)
            curvature = (chance * (1 - chance))[:, None] * design
        if problem.weights is not None:
            curvature = per_row(problem.weights, curvature) * curvature
        flat = x.new_zeros(free, free)
        hessian = design.T @ curvature + torch.block_diag(*bend, flat)  # type: ignore[no-untyped-call]
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
    parts = list(torch.split(point[: sum(sizes)], sizes))
    return blocks._replace(vectors=torch.stack([face @ part for face, part in zip(faces, parts, strict=True)]))

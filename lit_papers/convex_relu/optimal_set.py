"""All globally optimal networks: a polytope of masses on a few optimal neurons.

The outputs and the dual variable are common to all optima. An *atom* is a unit neuron `q` with sign `s` and
``-s nu . (x q)_+ = beta``; no other neuron occurs in any optimum. A network is optimal exactly if it is balanced, its
neurons are atoms, and the masses `c` per atom lie in ``{c >= 0 : A c = outputs}`` with columns ``s (x q)_+`` of `A`. So
all optima are splits and permutations of the points of this polytope.
"""

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lit_papers.convex_relu.certificates import price
from lit_papers.convex_relu.losses import Loss
from lit_papers.convex_relu.polish import distinct_neurons, polish
from lit_papers.convex_relu.problem import Problem, check_network, import_scipy_optimize
from lit_papers.convex_relu.solution import ConvexSolution

_ATOM_DISTANCE = 1e-4


@dataclass(frozen=True)
class OptimalSet:
    """The set of all optimal networks of one training problem.

    Attributes:
        directions: (k, d) unit neurons that optima are made of.
        signs: (k,) their output signs.
        fits: (n, k) what unit mass on each adds to the outputs.
        output: (n,) outputs of every optimal network.
        total_mass: ``sum_j |u_j| |alpha_j|`` of every optimal network.
        problem: whose optima they are.
        accuracy: how far `output` may be from the exact one, relative to its norm.
    """

    directions: Tensor
    signs: Tensor
    fits: Tensor
    output: Tensor
    total_mass: float
    problem: Problem
    accuracy: float

    @property
    def beta(self) -> float:
        """Strength of the weight decay."""
        return self.problem.beta * self.problem.unit * self.problem.x_unit / self.problem.y_unit

    @property
    def loss(self) -> Loss:
        """Of the outputs."""
        return self.problem.loss

    @property
    def mass_unit(self) -> float:
        """A neuron's mass in the problem's units, in which linear programs are solved, times this is its mass."""
        return self.problem.y_unit / self.problem.x_unit

    @property
    def scaled(self) -> tuple[Tensor, Tensor]:
        """`fits` and `output` for shares of the total mass, and outputs of norm 1: linear programs have no units."""
        size = self.output.norm()
        if self.total_mass == 0 or size == 0:
            return self.fits / self.problem.x_unit, self.output / self.problem.y_unit
        return self.fits * (self.total_mass / size), self.output / size

    @cached_property
    def _largest(self) -> Tensor:
        """(k, k) row i: a point of the polytope with as much mass on atom i as possible."""
        optimize = import_scipy_optimize()
        fits, output = (part.numpy() for part in self.scaled)
        rows = []
        for index in range(len(self.signs)):
            cost = np.zeros(len(self.signs))
            cost[index] = -1.0
            answer = optimize.linprog(cost, A_eq=fits, b_eq=output, bounds=(0, None))
            # an output known to rounding can make a square system infeasible: the masses are unique there
            point = answer.x if answer.status == 0 else optimize.nnls(fits, output)[0]
            rows.append(self.total_mass * torch.from_numpy(point))
        return torch.stack(rows) if rows else self.fits.new_zeros(0, 0)

    @property
    def _possible(self) -> Tensor:
        """(k,) atoms that have mass in some optimum."""
        return self._largest.diagonal() > 1e-7 * self.total_mass

    @property
    def dimension(self) -> int:
        """Dimension of the polytope; 0 if there is one optimum up to splits and permutations."""
        possible = self._possible
        if not possible.any():
            return 0
        return int(possible.sum()) - _rank(self.fits[:, possible])

    @property
    def min_width(self) -> int:
        """Fewest neurons of any optimal network."""
        return int((self.minimal_masses() > 0).sum())

    def minimal_masses(self) -> Tensor:
        """Masses, (k,), of an optimum with the fewest neurons, by mixed-integer programming."""
        optimize = import_scipy_optimize()
        k = len(self.signs)
        if k == 0:
            return self.fits.new_zeros(0)
        fits, output = (part.numpy() for part in self.scaled)
        used = np.concatenate([np.zeros(k), np.ones(k)])
        limits = optimize.LinearConstraint(np.hstack([np.eye(k), -2 * np.eye(k)]), -np.inf, 0)
        slack = 1e-9 + self.accuracy
        for loosened in (slack, 10 * slack, 100 * slack):
            answer = optimize.milp(
                used,
                integrality=used,
                bounds=optimize.Bounds(0, np.concatenate([np.full(k, np.inf), np.ones(k)])),
                constraints=[
                    optimize.LinearConstraint(
                        np.hstack([fits, np.zeros_like(fits)]), output - loosened, output + loosened
                    ),
                    limits,
                ],
            )
            if answer.x is not None:
                break
        else:
            raise ArithmeticError(f"the mixed-integer program for the narrowest optimum failed: {answer.message}")
        support = answer.x[:k] > 1e-7
        masses = np.zeros(k)
        masses[support] = optimize.nnls(fits[:, support], output)[0]
        return self.total_mass * torch.from_numpy(masses)

    def vertices(self, *, max_atoms: int = 14) -> Tensor:
        """Vertices of the polytope, (v, k): the optima that cannot lose a neuron.

        Args:
            max_atoms: refuse more atoms, as all bases are tried.

        Raises:
            ValueError: there are more atoms than that.
        """
        k = len(self.signs)
        if k > max_atoms:
            raise ValueError(f"{k} atoms are more than max_atoms={max_atoms}; vertices are found by trying all bases.")
        if k == 0:
            return self.fits.new_zeros(1, 0)
        rank = _rank(self.fits)
        found: list[Tensor] = []
        for basis in itertools.combinations(range(k), rank):
            columns = self.fits[:, basis]
            if _rank(columns) < rank:
                continue
            part = torch.linalg.lstsq(columns, self.output[:, None], driver="gelsd").solution[:, 0]
            misfit = (columns @ part - self.output).norm()
            if misfit > 1e-6 * float(self.output.norm()) or part.min() < -1e-8 * self.total_mass:
                continue
            masses = self.fits.new_zeros(k)
            masses[list(basis)] = torch.where(part > 1e-8 * self.total_mass, part, 0.0)
            if all((masses - other).norm() > 1e-6 * self.total_mass for other in found):
                found.append(masses)
        return torch.stack(found) if found else self.fits.new_zeros(0, k)

    def sample_masses(self, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Random optima, (num_samples, k) masses: hit-and-run in the polytope, started in its interior.

        Neighbours are correlated; every tenth step is kept.
        """
        k = len(self.signs)
        if k == 0 or self.dimension == 0:
            return self.minimal_masses().expand(num_samples, k).clone()
        here = self._largest.mean(0)
        possible = self._possible
        _, _, directions = torch.linalg.svd(self.fits[:, possible], full_matrices=True)
        null = self.fits.new_zeros(k, self.dimension)
        null[possible] = directions[-self.dimension :].T
        kept = []
        for step in range(10 * num_samples):
            along = null @ torch.randn(self.dimension, dtype=here.dtype, generator=generator)
            moves = along.abs() > 1e-12
            limits = -here[moves] / along[moves]
            low, high = limits[along[moves] > 0].max(), limits[along[moves] < 0].min()
            here = here + (low + (high - low) * torch.rand((), dtype=here.dtype, generator=generator)) * along
            here = here.clamp_min(0)
            if step % 10 == 9:
                kept.append(here)
        return torch.stack(kept)

    def network(self, masses: Tensor | None = None, *, num_neurons: int | None = None) -> tuple[Tensor, Tensor]:
        """The balanced optimal network with these masses: weight (m, d) and alpha (m,).

        Args:
            masses: (k,), a point of the polytope; None takes a narrowest optimum.
            num_neurons: pad with zero neurons to this width.

        Raises:
            ValueError: the masses are not in the polytope, or `num_neurons` is too small.
        """
        masses = self.minimal_masses() if masses is None else torch.as_tensor(masses, dtype=torch.float64)
        if masses.shape != self.signs.shape or not self._fits(masses, 1e-6):
            raise ValueError(
                f"masses must be {len(self.signs)} non-negative numbers that reproduce the optimal outputs; take them "
                "from `vertices`, `sample_masses` or mixtures of those."
            )
        used = masses > 0
        roots = masses[used].sqrt()
        weight, alpha = roots[:, None] * self.directions[used], roots * self.signs[used]
        missing = 0 if num_neurons is None else num_neurons - len(alpha)
        if missing < 0:
            raise ValueError(f"num_neurons={num_neurons} is too few: this network has {len(alpha)} neurons.")
        return (
            torch.cat([weight, weight.new_zeros(missing, weight.shape[1])]),
            torch.cat([alpha, alpha.new_zeros(missing)]),
        )

    def contains(self, weight: Tensor, alpha: Tensor, *, tol: float = 1e-6) -> bool:
        """Whether a network is optimal: balanced, made of atoms (within 1e-4), with masses that fit.

        `tol` is relative to the total mass and to the norm of the outputs.
        """
        weight, alpha = check_network(self.directions, weight, alpha)
        norms = weight.norm(dim=1)
        masses = norms * alpha.abs()
        scale = max(self.total_mass, 1e-9 * self.mass_unit)  # where the optimum is zero, its problem sets the scale
        if ((norms - alpha.abs()).abs() > tol**0.5 * scale**0.5).any():
            return False
        there = masses > tol * scale
        units = weight[there] / norms[there, None]
        if len(units) and len(self.signs) == 0:
            return False
        totals = self.fits.new_zeros(len(self.signs))
        for unit, sign, mass in zip(units, alpha[there].sign(), masses[there], strict=True):
            distance = (self.directions - unit).norm(dim=1) + 4.0 * (self.signs != sign)
            nearest = int(distance.argmin())
            if distance[nearest] > _ATOM_DISTANCE:
                return False
            totals[nearest] += mass
        return self._fits(totals, tol)

    def _fits(self, masses: Tensor, tol: float) -> bool:
        if len(masses) == 0:
            return True
        misfit = float((self.fits @ masses - self.output).norm())
        return bool(masses.min() >= -tol * self.total_mass) and misfit <= (tol + 2 * self.accuracy) * float(
            self.output.norm()
        )


def optimal_set(x: Tensor, y: Tensor, solution: ConvexSolution, *, tol: float = 1e-6) -> OptimalSet:
    """Describe all optimal networks from one accurate solution of the program with all patterns.

    Args:
        x: data, (n, d).
        y: targets, (n,).
        solution: exact and accurate (`gap` far below `tol`).
        tol: relative distance from `beta` at which a neuron's correlation counts as optimal.

    Raises:
        ValueError: the solution is of other data, its patterns are not all of the data's, its gap is too large to tell
            atoms, or its networks have an output bias.
    """
    problem = solution.problem
    if Problem.of(x, y, solution.beta, loss=solution.loss).name != problem.name:
        raise ValueError(
            "solution: it is of another problem than x and y (with weights or an output bias, perhaps); solve with "
            "these data."
        )
    if not solution.exact:
        raise ValueError(
            "not all patterns were enumerated for this solution, so other optima may exist; solve with "
            "`enumerate_arrangements(x)`."
        )
    if solution.relative_gap > tol**2:
        raise ValueError(
            f"the solution's relative gap is {solution.relative_gap:.1e}, and to tell optimal neurons at tol={tol} "
            f"takes {tol**2:.0e}: solve with polish=True and a smaller tol; if it was, take "
            f"tol={solution.relative_gap**0.5:.0e} here."
        )
    # the gap is of second order in the neurons' errors: one that is small for a value is not for a direction
    solution = polish(solution, done=1e-15)
    outputs = solution.blocks.outputs(problem.x, solution.arrangements.patterns)
    found = price(problem.x, solution.nu, solution.arrangements, least=problem.beta * (1 - tol))
    kept = distinct_neurons(found, problem.beta)
    directions, signs = found.vectors[kept], found.signs[kept]
    return OptimalSet(
        directions=directions,
        signs=signs,
        fits=problem.x_unit * (problem.x @ directions.T).clamp_min(0) * signs,
        output=problem.y_unit * outputs,
        total_mass=problem.y_unit / problem.x_unit * float(solution.blocks.vectors.norm(dim=1).sum()),
        problem=problem,
        # the loss is strongly convex in the outputs: by the gap they are this near
        accuracy=(2 * max(solution.value - solution.bound, 0.0)) ** 0.5 / max(float(outputs.norm()), 1e-300),
    )


def _rank(matrix: Tensor) -> int:
    return int(torch.linalg.matrix_rank(matrix, rtol=1e-9))

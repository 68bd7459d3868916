"""Between networks and the convex program, and the set of all optima."""

import pytest
import torch

from lit_papers.convex_relu.arrangements import enumerate_arrangements, sample_arrangements
from lit_papers.convex_relu.networks import (
    balance,
    is_minimal,
    is_nearly_minimal,
    merge_neurons,
    network_output,
    objective,
    optimal_set,
    split_neuron,
    to_convex,
    to_network,
)
from lit_papers.convex_relu.programs import solve_relu_program
from lit_papers.convex_relu.solvers import solve_gated
from tests.convex_relu.small import EXACT, load, normal, solved


@pytest.mark.parametrize("seed", range(5))
def test_balance_split_and_merge_keep_the_function(seed: int) -> None:
    x, weight, alpha = normal(20, 4, seed=seed), normal(6, 4, seed=seed + 10), normal(6, seed=seed + 20)
    outputs = network_output(x, weight, alpha)
    penalty = weight.square().sum() + alpha.square().sum()
    balanced = balance(weight, alpha)
    torch.testing.assert_close(balanced[0].norm(dim=1), balanced[1].abs())
    torch.testing.assert_close(network_output(x, *balanced), outputs)
    assert balanced[0].square().sum() + balanced[1].square().sum() <= penalty
    split = split_neuron(*balanced, 2, [0.5, 0.2, 0.3])
    assert len(split[1]) == 8
    torch.testing.assert_close(network_output(x, *split), outputs)
    torch.testing.assert_close(split[0].square().sum(), balanced[0].square().sum())
    torch.testing.assert_close(split[1][2], balanced[1][2] * 0.5**0.5)
    assert is_nearly_minimal(x, *split)
    assert not is_minimal(x, *split)
    merged = merge_neurons(*split)
    assert len(merged[1]) == 6
    torch.testing.assert_close(network_output(x, *merged), outputs)
    torch.testing.assert_close(merged[1].abs().sort().values, balanced[1].abs().sort().values)


def test_merge_drops_zero_neurons_and_keeps_opposites_apart() -> None:
    weight = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [3.0, 1.0]]).double()
    alpha = torch.tensor([1.0, 2.0, -1.0, 1.0, 5.0, 0.0]).double()
    merged_weight, merged_alpha = merge_neurons(weight, alpha)
    found = torch.stack([merged_weight[:, 0], merged_alpha], 1)
    expected = torch.tensor([[-1.0, 1.0], [1.0, -1.0], [5.0**0.5, 5.0**0.5]]).double()
    torch.testing.assert_close(found[found[:, 0].argsort()], expected)
    nothing = merge_neurons(torch.zeros(2, 3), torch.zeros(2))
    assert [part.shape for part in nothing] == [(0, 3), (0,)]
    assert [part.shape for part in balance(torch.zeros(0, 3), torch.zeros(0))] == [(0, 3), (0,)]


@pytest.mark.parametrize("fractions", [[0.5, 0.6], [1.2, -0.2], [], [[1.0]]])
def test_bad_fractions(fractions: list[float]) -> None:
    with pytest.raises(ValueError, match=r"^fractions must be non-negative and sum to 1"):
        split_neuron(torch.ones(2, 2), torch.ones(2), 0, fractions)


@pytest.mark.parametrize("seed", range(5))
def test_a_networks_own_program_is_no_worse(seed: int) -> None:
    x, y = normal(12, 3, seed=seed), normal(12, seed=seed + 30)
    weight, alpha = normal(7, 3, seed=seed + 10), normal(7, seed=seed + 20)
    arrangements, weights = to_convex(x, weight, alpha)
    assert torch.equal(arrangements.patterns, x @ arrangements.gates > 0)
    outputs = (arrangements.patterns * (x @ (weights[0] - weights[1]))).sum(1)
    torch.testing.assert_close(outputs, network_output(x, weight, alpha))
    here = 0.5 * (outputs - y).square().sum() + 0.3 * weights.norm(dim=1).sum()
    assert here <= objective(x, y, weight, alpha, 0.3) + 1e-12
    assert solve_relu_program(x, y, 0.3, arrangements).objective <= here + 1e-9


def test_padding_and_its_errors() -> None:
    _, _, _, solution = solved(load("gauss_n8_d3"))
    weight, alpha = to_network(solution, num_neurons=9)
    assert weight.shape == (9, 3)
    assert not alpha[6:].any()
    with pytest.raises(ValueError, match=r"num_neurons=5 .* 6 neurons"):
        to_network(solution, num_neurons=5)
    gated = solve_gated(normal(9, 3), normal(9), 0.1, sample_arrangements(normal(9, 3), 5))
    with pytest.raises(ValueError, match="gated"):
        to_network(gated)


def test_minimality() -> None:
    x = torch.eye(2, dtype=torch.float64)
    one, other = torch.tensor([2.0, 1.0]), torch.tensor([1.0, 2.0])  # of one pattern, in two directions
    weight = torch.stack([one, other, torch.zeros(2)]).double()
    alpha = torch.tensor([5.0**0.5, 5.0**0.5, 0.0]).double()
    assert not is_minimal(x, weight, alpha)
    assert not is_nearly_minimal(x, weight, alpha)
    assert is_minimal(x, weight, alpha * torch.tensor([1.0, -1.0, 1.0]))
    assert not is_minimal(x, 2 * weight[:1], alpha[:1])  # not balanced
    assert is_minimal(x, torch.zeros(0, 2), torch.zeros(0))


@pytest.mark.parametrize("name", EXACT)
def test_optimal_sets_of_the_references(name: str) -> None:
    problem = load(name)
    x, y, beta, solution = solved(problem)
    optimal = optimal_set(x, y, solution)
    assert len(optimal.signs) == len(problem["atom_signs"])
    for direction, sign in zip(problem["atom_directions"], problem["atom_signs"], strict=True):
        assert ((optimal.directions - direction).norm(dim=1)[optimal.signs == sign]).min() < 1e-5
    assert optimal.min_width == problem["min_width"]
    assert len(optimal.vertices()) == problem.get("num_vertices", 1)
    assert optimal.total_mass == pytest.approx(problem["total_mass"], rel=1e-7)
    assert optimal.dimension == 0
    weight, alpha = optimal.network(num_neurons=9)
    assert float(objective(x, y, weight, alpha, beta)) == pytest.approx(problem["objective"], rel=1e-9)
    assert optimal.contains(weight, alpha)
    assert optimal.contains(problem["weight"], problem["alpha"])
    if len(problem["alpha"]):
        assert optimal.contains(*split_neuron(problem["weight"], problem["alpha"], 0, [0.25, 0.75]))
        assert not optimal.contains(1.01 * problem["weight"], problem["alpha"] / 1.01)
        assert not optimal.contains(problem["weight"], 1.001 * problem["alpha"])
    assert not optimal.contains(normal(3, x.shape[1]), normal(3))


def test_a_polytope_of_optima() -> None:
    """On the corners of a square, a constant is the sum of either pair of opposite neurons."""
    x = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]).double()
    y = torch.ones(4, dtype=torch.float64)
    optimal = optimal_set(x, y, solve_relu_program(x, y, 0.3, enumerate_arrangements(x)))
    vertices = optimal.vertices()
    assert optimal.dimension == 1
    assert optimal.min_width == 2
    assert len(vertices) == 2
    value = float(objective(x, y, *optimal.network(), 0.3))
    samples = optimal.sample_masses(50, generator=torch.Generator().manual_seed(0))
    assert (samples.min(0).values < 0.3 * optimal.total_mass / 2).all()
    assert (samples.max(0).values > 0.7 * optimal.total_mass / 2).all()
    for masses in (*samples, *vertices, vertices.mean(0)):
        weight, alpha = optimal.network(masses)
        assert optimal.contains(weight, alpha)
        assert float(objective(x, y, weight, alpha, 0.3)) == pytest.approx(value, rel=1e-9)
    with pytest.raises(ValueError, match="masses must be 4"):
        optimal.network(2 * vertices[0])
    with pytest.raises(ValueError, match="num_neurons=1"):
        optimal.network(num_neurons=1)
    with pytest.raises(ValueError, match="4 atoms are more than max_atoms=3"):
        optimal.vertices(max_atoms=3)


def test_optimal_sets_need_all_patterns_and_accuracy() -> None:
    problem = load("gauss_n10_d3")
    x, y, beta = problem["x"], problem["y"], problem["beta"]
    some = solve_relu_program(x, y, beta, sample_arrangements(x, 20, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="not all patterns were enumerated"):
        optimal_set(x, y, some)
    rough = solve_relu_program(x, y, beta, enumerate_arrangements(x), polish=False)
    if rough.relative_gap > 1e-12:
        with pytest.raises(ValueError, match="polish=True"):
            optimal_set(x, y, rough)


def test_bad_networks() -> None:
    x = normal(4, 2)
    with pytest.raises(ValueError, match=r"^weight must be \(neurons, 2\)"):
        to_convex(x, torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"^alpha must have one entry"):
        to_convex(x, torch.zeros(2, 2), torch.zeros(3))
    with pytest.raises(ValueError, match="diverged"):
        to_convex(x, torch.full((2, 2), torch.nan), torch.zeros(2))

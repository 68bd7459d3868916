"""Two-layer ReLU networks, and the way between them and points of the convex program.

A network has hidden rows `u_j` of `weight`, (m, d), and output weights `alpha`, (m,). The *mass* of a neuron is
``|u_j| |alpha_j|``: all that weight decay leaves of a neuron, besides its direction and sign, once it is balanced.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_papers.convex_relu.arrangements import Arrangements
from lit_papers.convex_relu.losses import Loss, loss_value
from lit_papers.convex_relu.optimal_set import OptimalSet, optimal_set
from lit_papers.convex_relu.problem import check_beta, check_features, check_network, fingerprint
from lit_papers.convex_relu.solution import Blocks, ConvexSolution

__all__ = [
    "OptimalSet",
    "balance",
    "is_minimal",
    "is_nearly_minimal",
    "merge_neurons",
    "network_output",
    "objective",
    "optimal_set",
    "split_neuron",
    "to_convex",
    "to_network",
]


def network_output(x: Tensor, weight: Tensor, alpha: Tensor, bias: Tensor | None = None) -> Tensor:
    """Outputs ``sum_j (x u_j)_+ alpha_j + bias``, (n,), or (n, k) for alpha (m, k); differentiable.

    The dtype is that of `x`.

    >>> network_output(torch.tensor([[1.0], [-1.0]]), torch.tensor([[2.0]]), torch.tensor([3.0]))
    tensor([6., 0.])
    """
    outputs = (x @ weight.to(x.dtype).T).relu() @ alpha.to(x.dtype)
    return outputs if bias is None else outputs + bias.to(x.dtype)


def objective(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    alpha: Tensor,
    beta: float,
    *,
    loss: Loss = "squared",
    bias: Tensor | None = None,
) -> Tensor:
    """Training objective ``loss(outputs) + beta/2 (|weight|^2 + |alpha|^2)``, a scalar; differentiable.

    Sums over samples, not means. The output bias is not decayed. The dtype is that of `x`.
    """
    penalty = weight.to(x.dtype).square().sum() + alpha.to(x.dtype).square().sum()
    return loss_value(network_output(x, weight, alpha, bias), y.to(x.dtype), loss) + 0.5 * check_beta(beta) * penalty


def to_network(solution: ConvexSolution, *, num_neurons: int | None = None, tol: float = 1e-7) -> tuple[Tensor, Tensor]:
    """Turn a point of the ReLU program into a balanced network with the same objective.

    ``v_i`` becomes ``(v_i / sqrt|v_i|, sqrt|v_i|)`` and ``w_i`` becomes ``(w_i / sqrt|w_i|, -sqrt|w_i|)``; neurons of
    one direction and sign are merged.

    Args:
        solution: of the ReLU program.
        num_neurons: pad with zero neurons to this width.
        tol: drop blocks shorter than this times the longest.

    Returns:
        weight (m, d) and alpha (m,).

    Raises:
        ValueError: `num_neurons` is smaller than the number of neurons, or the solution is of the gated program.
    """
    if solution.gated:
        raise ValueError("a solution of the gated program is no ReLU network; solve the ReLU program.")
    blocks = solution.blocks.longer_than(tol)
    lengths = blocks.vectors.norm(dim=1)
    # by way of units and masses: roots of masses of 1e-300 and less are none
    roots = (lengths * (solution.problem.y_unit / solution.problem.x_unit)).sqrt()
    weight, alpha = merge_neurons(blocks.vectors / lengths[:, None] * roots[:, None], blocks.signs * roots)
    return _pad(weight, alpha, num_neurons)


def to_convex(x: Tensor, weight: Tensor, alpha: Tensor) -> tuple[Arrangements, Tensor]:
    """Turn a network into a point of the program on its own patterns; its value there is at most the objective.

    Returns:
        The p patterns ``1[x u_j > 0]`` of the non-zero neurons, and weights (2, d, p): sums of ``|alpha_j| u_j`` over
        the neurons with one pattern and sign.
    """
    x = check_features(x)
    weight, alpha = check_network(x, weight, alpha)
    masses = weight.norm(dim=1) * alpha.abs()
    weight, alpha = weight[masses > 0], alpha[masses > 0]
    patterns, group = torch.unique(x @ weight.T > 0, dim=1, return_inverse=True)
    vectors = Blocks(group, alpha.sign(), alpha.abs()[:, None] * weight).dense(patterns.shape[1])
    # any neuron of a pattern shows where its cone is; their sum lies inside it
    gates = x.new_zeros(x.shape[1], patterns.shape[1]).index_add_(1, group, weight.T)
    return Arrangements(patterns, gates, exact=False, data=fingerprint(x)), vectors


def balance(weight: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Rescale each neuron so that both its layers have equal norm: the same function, the smallest weight decay.

    Neurons of zero mass become zero.
    """
    norms = weight.norm(dim=1)
    roots = (norms * alpha.abs()).sqrt()
    safe = torch.where(norms > 0, norms, 1.0)
    return weight * (roots / safe)[:, None], alpha.sign() * roots


def split_neuron(weight: Tensor, alpha: Tensor, index: int, fractions: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Split a neuron in several of one direction: the same function and objective.

    Copy k is the neuron times ``sqrt(fractions[k])`` in both layers; the first stays in place, the others are appended.

    Raises:
        ValueError: `fractions` are negative or do not sum to 1.
        IndexError: there is no such neuron.
    """
    shares = torch.as_tensor(fractions, dtype=weight.dtype)
    if shares.ndim != 1 or len(shares) == 0 or not (shares >= 0).all() or abs(float(shares.sum()) - 1) > 1e-6:
        raise ValueError(f"fractions must be non-negative and sum to 1; got {list(fractions)}.")
    roots = shares.sqrt()
    weight, alpha = weight.clone(), alpha.clone()
    parts_in, parts_out = roots[:, None] * weight[index], roots * alpha[index]
    weight[index], alpha[index] = parts_in[0], parts_out[0]
    return torch.cat([weight, parts_in[1:]]), torch.cat([alpha, parts_out[1:]])


def merge_neurons(weight: Tensor, alpha: Tensor, *, tol: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Balance, drop zero neurons, and merge neurons of one direction and sign: the same function, no more weight decay.

    Args:
        weight: hidden neurons, (m, d).
        alpha: output weights, (m,).
        tol: distance of unit directions that counts as one direction.
    """
    weight, alpha = balance(weight, alpha)
    roots = alpha.abs()
    weight, alpha, roots = weight[roots > 0], alpha[roots > 0], roots[roots > 0]
    units = weight / weight.norm(dim=1, keepdim=True)
    same = (torch.cdist(units, units, compute_mode="donot_use_mm_for_euclid_dist") <= tol) & (
        alpha.sign()[:, None] == alpha.sign()
    )
    leader = same.long().argmax(1) if len(units) else torch.zeros(0, dtype=torch.long, device=weight.device)
    leaders, group = leader.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    vectors = weight.new_zeros(len(leaders), weight.shape[1]).index_add_(0, group, roots[:, None] * weight)
    norms = vectors.norm(dim=1)
    return vectors / norms.sqrt()[:, None], alpha[leaders].sign() * norms.sqrt()


def is_minimal(x: Tensor, weight: Tensor, alpha: Tensor) -> bool:
    """The network is balanced, with at most one non-zero neuron for each pattern and sign."""
    keys, _ = _keys_and_units(x, weight, alpha)
    return _is_balanced(weight, alpha) and len(keys.unique(dim=0)) == len(keys)  # type: ignore[no-untyped-call]


def is_nearly_minimal(x: Tensor, weight: Tensor, alpha: Tensor) -> bool:
    """The network is balanced, and non-zero neurons of one pattern and sign all have one direction."""
    keys, units = _keys_and_units(x, weight, alpha)
    _, group = keys.unique(dim=0, return_inverse=True)  # type: ignore[no-untyped-call]
    same = group[:, None] == group
    return _is_balanced(weight, alpha) and bool((torch.cdist(units, units)[same] <= 1e-6).all())


def _keys_and_units(x: Tensor, weight: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    x = check_features(x)
    weight, alpha = check_network(x, weight, alpha)
    norms = weight.norm(dim=1)
    there = norms * alpha.abs() > 0
    units = weight[there] / norms[there, None]
    # optimal neurons lie on boundaries, where rounding would toss a coin for the bit
    on = x @ units.T > 1e-9 * x.norm(dim=1, keepdim=True)
    return torch.cat([on.T, (alpha[there] > 0)[:, None]], 1).long(), units


def _is_balanced(weight: Tensor, alpha: Tensor) -> bool:
    norms = weight.detach().norm(dim=1).double()
    return bool(((norms - alpha.detach().abs()).abs() <= 1e-6 * norms).all())


def _pad(weight: Tensor, alpha: Tensor, num_neurons: int | None) -> tuple[Tensor, Tensor]:
    if num_neurons is None:
        return weight, alpha
    if num_neurons < len(alpha):
        raise ValueError(f"num_neurons={num_neurons} is too few: this network has {len(alpha)} neurons.")
    missing = num_neurons - len(alpha)
    return torch.cat([weight, weight.new_zeros(missing, weight.shape[1])]), torch.cat([alpha, alpha.new_zeros(missing)])

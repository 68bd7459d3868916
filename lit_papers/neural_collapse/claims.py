"""What `reproduce` computes for this paper beside trainings: the loss taken apart, features on the central path."""

import torch

from lit_papers.neural_collapse.dynamics import central_path_closed_form, simulate_central_path
from lit_papers.neural_collapse.functional import class_statistics, mse_decomposition


def decomposition(
    seed: int,
    *,
    num_classes: int = 10,
    num_features: int = 32,
    samples: int = 2000,
    balanced: bool = True,
    trials: int = 20,
) -> dict[str, float]:
    """The loss of random classifiers on random features, summed up directly, beside the sum of its parts.

    Args:
        seed: of features and classifiers.
        num_classes: ``C``.
        num_features: ``d``.
        samples: of all classes together.
        balanced: classes of equal sizes, or of sizes up to ``C`` times apart.
        trials: how many classifiers, of scales from 1e-3 to 1e3.

    Returns:
        ``error``, the largest relative difference of the loss and ``L_NC1 + L_NC2/3 + L_perp``; ``least_part``, the
        smallest of the parts relative to the loss, which must not be negative.
    """
    draw = torch.Generator().manual_seed(seed)
    shares = torch.ones(num_classes) if balanced else torch.arange(1.0, num_classes + 1)
    targets = torch.multinomial(shares, samples, replacement=True, generator=draw)
    targets[:num_classes] = torch.arange(num_classes)
    means = torch.randn(num_classes, num_features, generator=draw, dtype=torch.float64)
    features = means[targets] + torch.randn(samples, num_features, generator=draw, dtype=torch.float64)
    stats = class_statistics(features, targets, num_classes)
    goal = torch.nn.functional.one_hot(targets, num_classes).double()
    error, least = 0.0, 1.0
    for scale in torch.logspace(-3, 3, trials).tolist():
        weight = scale * torch.randn(num_classes, num_features, generator=draw, dtype=torch.float64)
        bias = scale * torch.randn(num_classes, generator=draw, dtype=torch.float64)
        lam = scale**-2 * torch.rand((), generator=draw).item()
        loss = ((features @ weight.T + bias - goal).square().sum() / samples + lam * _square(weight, bias)) / 2
        parts = mse_decomposition(stats, weight, bias, lam)
        three = [float(parts[name]) for name in ("nc1", "nc23", "perp")]
        error = max(error, abs(sum(three) - loss.item()) / loss.item())
        least = min(least, *(part / loss.item() for part in three))
    return {"error": error, "least_part": least}


def _square(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return weight.square().sum() + bias.square().sum()


def central_path(
    seed: int, *, num_classes: int = 4, samples_per_class: int = 12, num_features: int = 8, last: float = 2000.0
) -> dict[str, float | list[float]]:
    """Features that follow the renormalised gradient flow, beside the closed form of their singular values.

    Args:
        seed: of the initial features, and of their ``C - 1`` singular values, from .1 to 3.
        num_classes: ``C``.
        samples_per_class: ``n``.
        num_features: ``d``.
        last: time at which the flow ends.

    Returns:
        ``simulated`` and ``predicted``, singular values at seven times, all in a row; ``excess_first`` and
        ``excess_last``, by how much the largest exceeds the smallest, relative to it.
    """
    draw = torch.Generator().manual_seed(seed)
    omega0 = (0.1 + 2.9 * torch.rand(num_classes - 1, generator=draw, dtype=torch.float64)).sort(descending=True).values
    times = torch.cat([torch.zeros(1), torch.logspace(0, torch.tensor(last).log10().item(), 6)]).double()
    path = simulate_central_path(omega0, times, num_classes, samples_per_class, num_features, generator=draw)
    predicted = central_path_closed_form(omega0, times, num_classes, samples_per_class)
    return {
        "simulated": path.omega.flatten().tolist(),
        "predicted": predicted.flatten().tolist(),
        "excess_first": float(path.omega[0, 0] / path.omega[0, -1]) - 1,
        "excess_last": float(path.omega[-1, 0] / path.omega[-1, -1]) - 1,
    }

"""What claims of this paper compute where no training run has it."""

import torch
from torch import Tensor
from torch.func import functional_call, jvp

from lit_papers.interactions.estimator import all_masks
from lit_papers.interactions.functional import efficiency_weights, exact_interactions, learning_strength, log_odds
from lit_papers.interactions.models import MLP


def gradient_of_each_order(
    seed: int, n_features: int = 10, depth: int = 5, width: int = 50, samples: int = 4, directions: int = 40
) -> dict[str, float | list[float]]:
    r"""How strongly the loss of an untrained network pulls at the interactions of each order, beside the theory.

    By efficiency the network's output is :math:`\sum_m w^{(m)} I^{(m)}` plus single effects, so order m takes part in a
    step of gradient descent with :math:`w^{(m)} \partial I^{(m)} / \partial W` (Deng et al., ICLR 2022, section 3). Its
    root mean square over pairs of players, samples and random directions in weight space is compared with
    `lit_papers.interactions.functional.learning_strength`, which takes the contexts' gradients to be independent.

    Args:
        seed: of weights, samples and directions.
        n_features: n, 4 to 14; all :math:`2^n` coalitions are evaluated.
        depth: linear layers of the network.
        width: of its hidden layers.
        samples: standard normal inputs.
        directions: in weight space.

    Returns:
        ``share`` (m / (n - 2)), ``measured`` and ``theory`` relative to order 0, ``correlation`` of their logarithms
        over orders, ``middle`` (the weakest order's measured strength) and ``middle_share`` (its m / (n - 2)).

    Raises:
        ValueError: ``n_features`` is out of range.
    """
    if not 4 <= n_features <= 14:
        raise ValueError(f"`n_features` must be from 4 to 14, got {n_features}")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MLP(n_features, 2, depth, width).double()
    weights = dict(model.named_parameters())
    masks = all_masks(n_features, 0, 2**n_features)
    pairs = torch.combinations(torch.arange(n_features))
    squares = torch.zeros(n_features - 1, dtype=torch.float64)
    for _ in range(samples):
        x = torch.randn(n_features, generator=generator, dtype=torch.float64)
        target = torch.randint(2, (), generator=generator).expand(len(masks))

        def values(parameters: dict[str, Tensor], x: Tensor = x, target: Tensor = target) -> Tensor:
            return log_odds(functional_call(model, parameters, (x * masks,)), target)

        for _ in range(directions):
            along = {
                name: torch.randn(weight.shape, generator=generator, dtype=torch.float64)
                for name, weight in weights.items()
            }
            derivative = jvp(values, (weights,), (along,))[1]
            # interactions are linear in the values, and so are their derivatives
            found = exact_interactions(derivative.detach())[pairs[:, 0], pairs[:, 1]]  # (P, M)
            squares += found.square().mean(0)
    measured = efficiency_weights(n_features) * (squares / (samples * directions)).sqrt()
    measured = measured / measured[0]
    theory = learning_strength(n_features)
    correlation = torch.corrcoef(torch.stack([measured.log(), theory.log()]))[0, 1]
    share = torch.arange(n_features - 1) / (n_features - 2)
    return {
        "share": share.tolist(),
        "measured": measured.tolist(),
        "theory": theory.tolist(),
        "correlation": correlation.item(),
        "middle": measured.min().item(),
        "middle_share": share[measured.argmin()].item(),
    }

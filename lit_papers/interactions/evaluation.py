"""What a bias towards an order of interaction costs or brings: robustness to attacks and to missing parts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn

from lit_papers.interactions.players import PatchGrid
from lit_papers.plotting import STYLES, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Layout = Literal["random", "border"]


# Our own dozen lines: torchattacks and foolbox refuse inputs outside fixed bounds, and standardised tables have none.
def pgd_accuracy(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    step_size: float = 0.01,
    steps: int = 100,
    generator: torch.Generator | None = None,
    batch_size: int = 1024,
) -> float:
    r"""Accuracy under untargeted projected gradient ascent on the cross-entropy (Madry et al., ICLR 2018).

    From a uniform random start, ``steps`` times
    :math:`x \leftarrow \Pi_{\|x - x_0\|_\infty \le \epsilon}(x + \text{step\_size} \cdot \text{sign} \nabla_x L)`.
    Nothing but ``eps`` bounds the attacked input, which is in the units of ``x``: standard deviations, where the data
    are standardised. The model is in evaluation mode meanwhile; its modes come back and no gradient is left in it.

    Args:
        model: from a batch to logits ``(B, C)``.
        x: samples, ``(N, ...)``, on the model's device.
        y: true classes, int64, ``(N,)``.
        eps: largest change of a number in ``x``, >= 0.
        step_size: change in one step, > 0.
        steps: how many steps, >= 0.
        generator: of the start, on the CPU; None draws from the global random state.
        batch_size: samples attacked at a time.

    Returns:
        Share of samples that the model still classifies correctly, in [0, 1].

    Raises:
        ValueError: an argument is out of its range, or ``x`` and ``y`` differ in length.

    >>> line = nn.Linear(1, 2, bias=False)
    >>> line.weight.data = torch.tensor([[-1.0], [1.0]])
    >>> pgd_accuracy(line, torch.tensor([[0.5], [1.5]]), torch.tensor([1, 1]), eps=1.0)  # 0.5 crosses the boundary
    0.5
    """
    _check_pairs(x, y)
    if not eps >= 0:
        raise ValueError(f"`eps` must be >= 0, got {eps}")
    if not step_size > 0:
        raise ValueError(f"`step_size` must be > 0, got {step_size}")
    if steps < 0:
        raise ValueError(f"`steps` must be >= 0, got {steps}")
    right = 0
    with _evaluating(model):
        for clean, target in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
            start = torch.rand(clean.shape, generator=generator, dtype=clean.dtype).to(clean.device)
            shift = eps * (2 * start - 1)
            for _ in range(steps):
                shift.requires_grad_()
                with torch.enable_grad():
                    loss = nn.functional.cross_entropy(model(clean + shift), target, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, shift)  # not backward(): parameters keep their gradients
                shift = (shift.detach() + step_size * gradient.sign()).clamp(-eps, eps)
            right += int((model(clean + shift).argmax(dim=1) == target).sum())
    return right / len(y)


def masking_curve(
    model: nn.Module,
    players: PatchGrid,
    x: Tensor,
    y: Tensor,
    fractions: Sequence[float],
    layout: Layout,
    baseline: float | Tensor = 0.0,
    generator: torch.Generator | None = None,
    batch_size: int = 1024,
) -> Tensor:
    r"""Accuracy on images of which more and more patches are masked.

    Per image one order of removal is drawn, of which :math:`\lfloor \text{fraction} \cdot n \rfloor` patches go:
    uniformly at random, or from the border inwards. Random masking breaks the structure of an object that masking
    the border keeps, so the area between both curves tells how much the model uses that structure.

    Args:
        model: from a batch to logits ``(B, C)``; in evaluation mode meanwhile.
        players: the patches.
        x: images, ``(N, C, H, W)``, on the model's device.
        y: true classes, int64, ``(N,)``.
        fractions: shares of patches to remove, each in [0, 1].
        layout: ``"random"``, or ``"border"`` for the patches farthest from the grid's centre first (Chebyshev
            distance; ties by the generator).
        baseline: what replaces removed patches.
        generator: of the order, on the CPU; None draws from the global random state.
        batch_size: masked images in a forward pass.

    Returns:
        Accuracy at each fraction, float64, ``(len(fractions),)``.

    Raises:
        ValueError: ``layout`` is unknown, a fraction is out of range, or ``x`` and ``y`` differ in length.
    """
    _check_pairs(x, y)
    if layout not in ("random", "border"):
        raise ValueError(f"layout={layout!r} is unknown; choose 'random' or 'border'")
    if not all(0 <= fraction <= 1 for fraction in fractions):
        raise ValueError(f"`fractions` must be in [0, 1], got {list(fractions)}")
    n = players.n_players
    keys = torch.rand(len(x), n, generator=generator)  # in [0, 1)
    if layout == "border":
        # distances are half integers, and a key below 1/2 only decides between equal ones
        keys = keys / 2 - _distance_from_centre(players)
    rank = keys.argsort(dim=1).argsort(dim=1).to(x.device)  # (N, n); 0 goes first
    right = []
    with _evaluating(model):
        for fraction in fractions:
            keep = rank >= math.floor(fraction * n + 1e-9)  # 0.29 * 100 is a little less than 29
            batches = zip(*(torch.split(tensor, batch_size) for tensor in (x, keep, y)), strict=True)
            right.append(sum(int((model(players(a, k, baseline)).argmax(dim=1) == b).sum()) for a, k, b in batches))
    return torch.tensor(right, dtype=torch.float64) / len(y)


def structural_sensitivity(fractions: Sequence[float], random: Tensor, border: Tensor) -> float:
    """The area between two masking curves, by the trapezoidal rule.

    Args:
        fractions: of removed patches, ascending, ``(K,)``.
        random: accuracy under random masking, ``(K,)``.
        border: accuracy under masking from the border inwards, ``(K,)``.

    Returns:
        In [0, 1]: mean absolute difference of accuracy, if ``fractions`` go from 0 to 1.

    >>> structural_sensitivity([0.0, 0.5, 1.0], torch.tensor([1.0, 0.25, 0.0]), torch.tensor([1.0, 0.5, 0.0]))
    0.125
    """
    difference = (random.double() - border.double()).abs()
    return torch.trapezoid(difference, torch.tensor(fractions, dtype=torch.float64)).item()


def plot_masking_curves(
    fractions: Sequence[float], random: Tensor, border: Tensor, ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """Both masking curves with the area between them.

    Args:
        fractions: of removed patches, ascending, ``(K,)``.
        random: accuracy under random masking, ``(K,)``.
        border: accuracy under masking from the border inwards, ``(K,)``.
        ax: to draw on; None for a new figure.

    Returns:
        Figure and axes.

    Raises:
        ImportError: matplotlib is missing.
    """
    if ax is None:
        figure, (ax,) = new_figure(1, 1)
    else:
        figure = cast("Figure", ax.get_figure(root=True))
    area = structural_sensitivity(fractions, random, border)
    ax.fill_between(fractions, random, border, color="0.85", label=f"area between: {area:.3f}")
    for accuracy, label, style in ((border, "from the border inwards", 0), (random, "at random", 1)):
        ax.plot(fractions, accuracy, label=label, markersize=4, **STYLES[style])
    ax.set(xlabel="share of patches masked", ylabel="accuracy", ylim=(0, None))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return figure, ax


def _distance_from_centre(players: PatchGrid) -> Tensor:
    """Chebyshev distance of each patch from the centre of the grid, in patches: (n,)."""
    row, column = (
        (torch.arange(size) - (size - 1) / 2).abs() for size in (players.rows, players.columns)
    )  # (rows,), (columns,)
    return torch.maximum(row[:, None], column[None, :]).flatten()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each submodule's own mode is what it was."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode  # .train() would overrule submodules that are frozen on their own


def _check_pairs(x: Tensor, y: Tensor) -> None:
    if len(x) != len(y):
        raise ValueError(f"there are {len(x)} samples in `x`, but {len(y)} classes in `y`")
    if not len(x):
        raise ValueError("`x` has no samples")

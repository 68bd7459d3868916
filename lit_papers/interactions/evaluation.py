"""What a bias towards an order of interaction costs or brings: robustness to attacks and to missing parts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn

from lit_papers.interactions.arguments import checked_labels
from lit_papers.interactions.functional import log_odds
from lit_papers.interactions.outputs import call_network, two_logits
from lit_papers.interactions.players import PatchGrid
from lit_papers.plotting import STYLES, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Layout = Literal["random", "border"]


# Our own few lines: torchattacks and foolbox refuse inputs outside fixed bounds, and standardised tables have none.
def pgd_accuracy(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    step_size: float | None = None,
    steps: int = 100,
    generator: torch.Generator | None = None,
    batch_size: int = 1024,
    restarts: int = 2,
) -> float:
    r"""Accuracy under untargeted projected gradient descent on the log-odds of the true class.

    From each of some uniform random starts, ``steps`` times
    :math:`x \leftarrow \Pi_{\|x - x_0\|_\infty \le \epsilon}(x - \alpha_t \operatorname{sign} \nabla_x v)`,
    where v are the log-odds of the logits divided by their standard deviation over classes on the clean sample. So
    neither a saturated softmax stops the attack, as it stops one on the cross-entropy (Madry et al., ICLR 2018), nor
    does the scale of the logits, which changes no decision, change the result. The step :math:`\alpha_t` is
    ``step_size`` in the first half and falls linearly to a tenth of it in the second. A sample that was misclassified
    once, clean or on the way, counts as such.

    Nothing but ``eps`` bounds the attacked input, which is in the units of ``x``: standard deviations, where the data
    are standardised. The model is in evaluation mode meanwhile; its modes come back and no gradient is left in it.

    Args:
        model: a network whose output is, or holds, logits ``(B, C)`` or one logit ``(B,)`` of two classes.
        x: samples, ``(N, ...)``, on the model's device.
        y: true classes, int64, ``(N,)``.
        eps: largest change of a number in ``x``, >= 0.
        step_size: change in the first steps, > 0; None for ``8 * eps / steps``, at most ``eps / 4``.
        steps: how many steps, >= 0.
        generator: of the starts, on the CPU; None draws from the global random state.
        batch_size: samples attacked at a time.
        restarts: random starts, >= 1; samples that one of them misled are not attacked again.

    Returns:
        Share of samples that the model still classifies correctly, in [0, 1].

    Raises:
        ValueError: an argument is out of its range, ``x`` and ``y`` differ in length, a label is none of the model's
            classes, or the logits of a clean sample are NaN or infinite.
        TypeError: ``y`` are no class indices, or ``x`` no floats.

    Warns:
        UserWarning: samples have no gradient on all their way, so that the attack could not find one that misleads:
            outputs that saturate (probabilities), or that are rounded.

    >>> line = nn.Linear(1, 2, bias=False)
    >>> line.weight.data = torch.tensor([[-1.0], [1.0]])
    >>> pgd_accuracy(line, torch.tensor([[0.5], [1.5]]), torch.tensor([1, 1]), eps=1.0)  # 0.5 crosses the boundary
    0.5
    """
    y = _checked(x, y)
    if not x.is_floating_point():
        raise TypeError(f"`x` must be floats, which an attack can change a little, got {x.dtype}")
    for name, value in (("eps", eps), ("step_size", step_size)):
        shape = tuple(getattr(value, "shape", ()))  # one for each channel, where images are normalised
        if math.prod(shape) != 1:
            raise ValueError(f"`{name}` must be one number, got {shape}: scale `x`, or let the model normalise it")
    if not eps >= 0:
        raise ValueError(f"`eps` must be >= 0, got {eps}")
    if step_size is not None and not step_size > 0:
        raise ValueError(f"`step_size` must be > 0, got {step_size}")
    if steps < 0:
        raise ValueError(f"`steps` must be >= 0, got {steps}")
    if restarts < 1:
        raise ValueError(f"`restarts` must be at least 1, got {restarts}")
    first = min(eps / 4, 8 * eps / max(steps, 1)) if step_size is None else step_size
    right = blind = 0
    with _evaluating(model):
        for clean, target in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
            logits = _logits(model, clean, target)
            spread = logits.std(dim=1, correction=0)  # (B,)
            spread = torch.where(spread > 0, spread, torch.ones_like(spread))
            robust = logits.argmax(dim=1) == target  # (B,)
            for _ in range(restarts):
                # drawn for all samples, so that what one of them meets does not depend on the others
                start = torch.rand(clean.shape, generator=generator, dtype=clean.dtype).to(clean.device)
                left = robust.nonzero()[:, 0]
                shift = eps * (2 * start[left] - 1)
                robust[left], stood = _withstand(
                    model, clean[left], target[left], spread[left], shift, eps, first, steps
                )
            right += int(robust.sum())
            blind += int(stood.sum())
    if blind and eps and steps:
        warnings.warn(
            f"{blind} of {right} samples that withstand the attack have no gradient at all, so the accuracy under "
            "attack may be far too high: let the model return logits (no softmax or sigmoid behind them)",
            stacklevel=2,
        )
    return right / len(y)


def _withstand(
    model: nn.Module, clean: Tensor, target: Tensor, spread: Tensor, shift: Tensor, eps: float, first: float, steps: int
) -> tuple[Tensor, Tensor]:
    """Which samples are never misclassified on the way, and which of these never had a gradient: bool, ``(B,)``."""
    robust = torch.ones_like(target, dtype=torch.bool)
    stood = torch.ones_like(robust)
    for step in range(steps + 1):
        if not robust.any():
            break
        shift.requires_grad_()
        with torch.enable_grad():
            logits = two_logits(call_network(model, clean + shift))
            value = log_odds(logits / spread[:, None], target).sum()
        robust &= logits.argmax(dim=1) == target
        if step == steps:
            break
        (gradient,) = torch.autograd.grad(value, shift)  # not backward(): parameters keep their gradients
        stood &= (gradient == 0).flatten(1).all(1)
        decay = min(1.0, 1.9 - 1.8 * step / steps)  # 1 in the first half, then linearly to 0.1
        shift = (shift.detach() - first * decay * gradient.sign()).clamp(-eps, eps)
    return robust, stood & robust


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
        ValueError: ``layout`` is unknown, a fraction is out of range, ``x`` and ``y`` differ in length, a label is none
            of the model's classes, or logits are NaN or infinite.
        TypeError: ``y`` are no class indices, or ``players`` have no border.
    """
    y = _checked(x, y)
    if layout == "border" and not isinstance(players, PatchGrid):
        raise TypeError(f"layout='border' is of the cells of a PatchGrid, got {type(players).__name__}")
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
            right.append(
                sum(int((_logits(model, players(a, k, baseline), b).argmax(1) == b).sum()) for a, k, b in batches)
            )
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


def _logits(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Logits of a batch; whatever NaN are and classes that are none would count as right or wrong."""
    logits = two_logits(call_network(model, x))
    if bool((logits.isnan() | logits.isposinf()).any()):  # -inf is what masks a class out
        raise ValueError("the model's output is NaN or infinite")
    outside = y[(y < 0) | (y >= logits.shape[1])]
    if len(outside):
        raise ValueError(f"label {int(outside[0])} is outside 0 to {logits.shape[1] - 1}")
    return logits


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


def _checked(x: Tensor, y: Tensor) -> Tensor:
    """Class indices, one for each sample."""
    if not isinstance(x, Tensor):
        raise TypeError(f"`x` must be a tensor of samples, got {type(x).__name__}")
    if len(x) != len(y):
        raise ValueError(f"there are {len(x)} samples in `x`, but {len(y)} classes in `y`")
    if not len(x):
        raise ValueError("`x` has no samples")
    return checked_labels(y)

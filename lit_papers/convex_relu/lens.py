"""How far a two-layer ReLU network is from the global optimum of its training objective, at one moment."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lit_papers.convex_relu.arrangements import (
    Arrangements,
    TooManyPatternsError,
    enumerate_arrangements,
    network_arrangements,
)
from lit_papers.convex_relu.landscape import clarke_residual, global_optimality
from lit_papers.convex_relu.problem import Loss, check_beta, check_features, check_targets
from lit_papers.convex_relu.programs import ConvexSolveError
from lit_papers.convex_relu.solvers import solve_relu
from lit_papers.lens import Lens, Moment, NotApplicable, Numbers, Subject
from lit_papers.lens.weight_decay import decay_of
from lit_papers.plotting import STYLES, log_scale, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Mode = Literal["auto", "exact", "bank", "relaxed"]

_COMMON = (
    "objective",
    "lower_bound",
    "certified_gap",
    "sup_ratio",
    "clarke_residual",
    "balance_error",
    "active_neurons",
)
_EXTRA = {"exact": ("optimum", "gap"), "bank": ("bank_optimum", "bank_gain"), "relaxed": ()}
_FLOAT32_ZERO = 1e-5  # a float32 neuron on a boundary misses it by this much
_LARGEST_BANK = 2_000_000  # constraints' entries, n x d x p, that a conic solver takes in seconds


class Prepared(NamedTuple):
    """What stays the same in a fit."""

    x: Tensor
    y: Tensor
    beta: float
    layers: tuple[str, str]
    mode: Literal["exact", "bank", "relaxed"]
    arrangements: Arrangements | None
    optimum: float | None


class ConvexGapLens(Lens):
    """Distance of ``Linear -> ReLU -> Linear(1)`` from the global optimum (Wang, Lacotte & Pilanci, ICLR 2022).

    Args:
        mode: ``exact`` enumerates all patterns and solves for the optimum; ``bank`` solves on the network's own;
            ``relaxed`` solves nothing; ``auto`` is exact where `max_patterns` allow it, bank otherwise.
        layers: names of the two ``nn.Linear``; None takes the module's only two.
        beta: strength of the weight decay in the objective ``sum of losses + beta / 2 |weights|^2``.
        loss: ``squared`` or ``logistic``.
        max_patterns: most patterns to enumerate.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "convex_relu"

    def __init__(
        self,
        mode: Mode = "auto",
        *,
        layers: Sequence[str] | None = None,
        beta: float | None = None,
        loss: Loss = "squared",
        max_patterns: int = 50_000,
    ) -> None:
        if mode not in ("auto", "exact", "bank", "relaxed"):
            raise ValueError(f"mode must be 'auto', 'exact', 'bank' or 'relaxed'; got {mode!r}.")
        if loss not in ("squared", "logistic"):
            raise ValueError(f"loss must be 'squared' or 'logistic'; got {loss!r}.")
        if layers is not None and (isinstance(layers, str) or len(layers) != 2):
            raise ValueError(f"layers must name the hidden and the output layer; got {layers!r}.")
        self.mode = mode
        self.layers = layers
        self.beta = None if beta is None else check_beta(beta)
        self.loss: Loss = loss
        self.max_patterns = max_patterns

    def check(self, subject: Subject) -> Prepared:
        """Check the network, read the data, and in exact mode solve for the optimum."""
        names = _find_layers(subject.network, self.layers)
        inputs, targets = subject.rows(wanted="samples")
        _check_layout(subject, inputs[:256], names)
        hidden, _ = _layers(subject.network, names)
        x, y = _as_problem(inputs, targets, self.loss, hidden)
        beta = check_beta(self.beta if self.beta is not None else self._infer_beta(subject, names, len(x)))
        arrangements, optimum = None, None
        mode: Literal["exact", "bank", "relaxed"] = "bank" if self.mode == "auto" else self.mode
        if self.mode in ("auto", "exact"):
            try:
                arrangements = enumerate_arrangements(x, max_patterns=self.max_patterns)
            except TooManyPatternsError:
                if self.mode == "exact":
                    raise
            else:
                mode = "exact"
                optimum = solve_relu(x, y, beta, arrangements, loss=self.loss).objective
                rank_zero_info(f"ConvexGap: the global optimum over {len(arrangements)} patterns is {optimum:.6g}")
        return Prepared(x, y, beta, names, mode, arrangements, optimum)

    def look(self, moment: Moment, prepared: Prepared, history: Sequence[Mapping[str, Any]]) -> Numbers:
        """Objective, the best bound of this problem so far, and what lies between.

        Raises:
            ValueError: nothing can be measured (a network that has diverged).
        """
        x, y, beta, names, mode, arrangements, optimum = prepared
        with moment.network() as network:
            weight, alpha = _weights(*_layers(network, names))
        try:
            report = global_optimality(x, y, weight, alpha, beta, arrangements, loss=self.loss)
            bounds = [entry["lower_bound"] for entry in history if math.isfinite(entry["lower_bound"])]
            lower_bound = max([report.lower_bound, *bounds])
            masses = weight.norm(dim=1) * alpha.abs()
            numbers: Numbers = {
                "objective": report.objective,
                "lower_bound": lower_bound,
                "certified_gap": report.objective - lower_bound,
                "sup_ratio": report.sup_ratio,
                "clarke_residual": clarke_residual(x, y, weight, alpha, beta, loss=self.loss, zero_tol=_FLOAT32_ZERO),
                "balance_error": report.balance_error,
                "active_neurons": float((masses > 1e-6 * masses.max()).sum()),
            }
            if optimum is not None:
                numbers |= {"optimum": optimum, "gap": report.objective - optimum}
            if mode == "bank":
                bank = network_arrangements(x, weight)
                if len(bank) * x.numel() > _LARGEST_BANK:
                    bank = network_arrangements(x, weight, flip_tol=0.0)
                best = solve_relu(x, y, beta, bank, loss=self.loss).objective
                numbers |= {"bank_optimum": best, "bank_gain": report.objective - best}
        except ConvexSolveError as error:
            raise ValueError(str(error)) from error
        return numbers

    def unknown(self, prepared: Prepared) -> Numbers:
        """NaN for every key."""
        return dict.fromkeys((*_COMMON, *_EXTRA[prepared.mode]), math.nan)

    def figure(self, history: Sequence[Mapping[str, Any]]) -> "Figure":
        """Distance from the optimum on a log scale, and the largest correlation over beta, against the epoch."""
        figure, (distance, ratio) = new_figure(1, 2)
        epochs = [entry["epoch"] for entry in history]
        shown = {"gap": "objective - optimum", "certified_gap": "objective - certified bound"}
        shown["bank_gain"] = "objective - optimum on own patterns"
        for style, (key, label) in zip(STYLES, shown.items(), strict=False):
            if key in history[-1]:
                heights = [entry.get(key, math.nan) for entry in history]
                distance.plot(epochs, heights, markersize=3, label=label, **style)
        log_scale(distance)
        distance.set(xlabel="epoch", ylabel="distance (units of the objective)")
        distance.legend()
        ratio.plot(epochs, [entry["sup_ratio"] for entry in history], markersize=3, **STYLES[0])
        ratio.axhline(1.0, color="grey", linestyle=":", linewidth=1)
        ratio.set(xlabel="epoch", ylabel=r"$\max_u |\nu^T (X u)_+|\; /\; \beta$")
        log_scale(ratio)
        for axes in (distance, ratio):
            axes.grid(alpha=0.3)
        return figure

    def _infer_beta(self, subject: Subject, names: tuple[str, str], size: int) -> float:
        beta = getattr(subject.network, "beta", None)
        if isinstance(beta, (int, float)):
            return float(beta)
        optimizers = [] if subject.trainer is None else subject.trainer.optimizers
        found = [decay_of(p, optimizers) for layer in _layers(subject.network, names) for p in layer.parameters()]
        decays = {decay.strength for decay in found if decay is not None}
        decoupled = any(decay.decoupled for decay in found if decay is not None)
        if len(decays) != 1 or decoupled or not max(decays) > 0:
            told = "decoupled weight decay" if decoupled else f"weight decay {sorted(decays) or 'of no optimizer'}"
            raise NotApplicable(
                f"ConvexGap: beta cannot be told from {told}. Pass `beta`: with the loss summed over samples, the "
                "objective is loss + beta / 2 |weights|^2."
            )
        return max(decays) * size * (0.5 if self.loss == "squared" else 1.0)


def _find_layers(module: nn.Module, names: Sequence[str] | None) -> tuple[str, str]:
    named = {name.replace("_orig_mod.", ""): layer for name, layer in module.named_modules()}
    if names is None:
        found = [name for name, layer in named.items() if isinstance(layer, nn.Linear)]
        if len(found) != 2:
            raise NotApplicable(
                f"ConvexGap: {type(module).__name__} has {len(found)} linear layers ({', '.join(found) or 'none'}), "
                "not two; name the hidden and the output layer with `layers`."
            )
        names = found
    for name in names:
        if not isinstance(named.get(name), nn.Linear):
            raise NotApplicable(f"ConvexGap: layers={list(names)}, but {name!r} is no nn.Linear there.")
    hidden, output = (cast(nn.Linear, named[name]) for name in names)
    has_bias = "bias" in dict(output.named_parameters())
    if output.out_features != 1 or has_bias or output.in_features != hidden.out_features:
        raise NotApplicable(
            f"ConvexGap: the output layer {names[1]!r} must be nn.Linear({hidden.out_features}, 1, bias=False), the "
            f"network that the theory is of; it is {output}. Name another with `layers`."
        )
    return names[0], names[1]


def _layers(network: nn.Module, names: tuple[str, str]) -> tuple[nn.Linear, nn.Linear]:
    named = {name.replace("_orig_mod.", ""): layer for name, layer in network.named_modules()}
    return cast(nn.Linear, named[names[0]]), cast(nn.Linear, named[names[1]])


def _weights(hidden: nn.Linear, output: nn.Linear) -> tuple[Tensor, Tensor]:
    """Copies of both layers on the CPU in float64, the hidden bias as a last column."""
    weight = hidden.weight.detach().to("cpu", torch.float64, copy=True)
    if hidden.bias is not None:
        weight = torch.cat([weight, hidden.bias.detach().to("cpu", torch.float64)[:, None]], 1)
    return weight, output.weight.detach()[0].to("cpu", torch.float64, copy=True)


def _as_problem(inputs: Tensor, targets: Tensor, loss: Loss, hidden: nn.Linear) -> tuple[Tensor, Tensor]:
    x = inputs.flatten(1).to("cpu", torch.float64)
    y = targets.to("cpu", torch.float64).reshape(len(targets), -1)
    if y.shape[1] != 1:
        raise NotApplicable(f"ConvexGap: targets must be one number a sample, got {y.shape[1]} each; pass `unpack`.")
    y = y[:, 0]
    if loss == "logistic" and bool(((y == 0) | (y == 1)).all()):
        y = 2 * y - 1
    if hidden.bias is not None:
        x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    return check_features(x), check_targets(y, x, loss)


def _check_layout(subject: Subject, inputs: Tensor, names: tuple[str, str]) -> None:
    """Run some samples, and see that the hidden layer gets them as they are, and the output layer its ReLU."""
    seen: dict[str, Tensor] = {}
    with subject.quiet(), subject.twin() as network, subject.precision():
        hidden, output = _layers(network, names)
        hooks = [
            hidden.register_forward_hook(lambda _, given, out: seen.update(x=given[0], inner=out.clone())),
            output.register_forward_hook(lambda _, given, out: seen.update(active=given[0])),
        ]
        try:
            network(inputs)
        finally:
            for hook in hooks:
                hook.remove()
    if "active" not in seen or "x" not in seen:
        raise NotApplicable("ConvexGap: forward does not run both layers; name the right ones in `layers`.")
    given = inputs.to(seen["x"]).flatten(1)
    if seen["x"].shape != given.shape or not torch.allclose(seen["x"].flatten(1), given, rtol=1e-2):
        raise NotApplicable(
            "ConvexGap: something changes the samples before the hidden layer: the theory does not cover that; name "
            "others in `layers`."
        )
    if not torch.allclose(seen["active"], seen["inner"].relu(), rtol=1e-2):
        raise NotApplicable("ConvexGap: what lies between the two `layers` is not a ReLU alone.")

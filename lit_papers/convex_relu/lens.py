"""How far a two-layer ReLU network is from the global optimum of its training objective, at one moment."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lit_papers.convex_relu import figures
from lit_papers.convex_relu.arrangements import (
    Arrangements,
    TooManyPatternsError,
    enumerate_arrangements,
    network_arrangements,
)
from lit_papers.convex_relu.landscape import report, stationarity
from lit_papers.convex_relu.losses import LOSSES, Loss, check_loss, loss_value
from lit_papers.convex_relu.problem import Problem, check_beta
from lit_papers.convex_relu.recognition import Layers, NotRecognised, Recognised, recognise, targets
from lit_papers.convex_relu.relaxation import relaxed_bound
from lit_papers.convex_relu.rows import check_rows_stay, check_values_stay, number_of_rows, pair
from lit_papers.convex_relu.solvers import solve
from lit_papers.lens import Lens, Moment, NotApplicable, Numbers, Subject
from lit_papers.lens import data as readings
from lit_papers.lens.routes import step_arguments
from lit_papers.lens.weight_decay import Decay, decay_of

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
    "problem_id",
)
_EXTRA = {"exact": ("optimum", "gap"), "bank": ("bank_optimum", "bank_gain"), "relaxed": ()}
_FLOAT32_ZERO = 1e-5  # a float32 neuron on a boundary misses it by this much
_LARGEST_BANK = 2_000_000  # constraints' entries, n x d x p, that a conic solver takes in seconds
_CHEAP = 2000  # patterns whose program is solved in a second or two
_CURE = "Pass `beta`: with the loss summed over samples, the objective is loss + beta / 2 |weights|^2."
# operations a second, of one core, in small steps and in large matrices: a budget in operations is the same everywhere
_OPERATIONS, _DENSE = 4e8, 3e10
_LONGEST = 4  # times the seconds, that looking for a bound may take before its first step


@dataclass(frozen=True)
class Prepared:
    """What stays the same in a fit.

    Attributes:
        problem: of the rows that are trained on.
        layers: names of the two.
        mode: what is measured.
        recognised: how a step's loss depends on the layers.
        decays: of weights and hidden bias, that beta follows from; None where it was given.
        batch: one, as the module gets it, on which this is seen again at each look.
        arrangements: all patterns, in mode `exact`.
        optimum: the global one, in mode `exact`.
        bound: certified before training.
        x: the rows, which patterns of a network are of.
        loader: that they were read from.
        size: of its data set, None where that is not known.
    """

    problem: Problem
    layers: tuple[str, str]
    mode: Literal["exact", "bank", "relaxed"]
    recognised: Recognised
    decays: list[Decay | None] | None
    batch: Any
    arrangements: Arrangements | None
    optimum: float | None
    bound: float
    x: Tensor
    loader: Any
    size: int | None

    @property
    def number(self) -> float:
        """The problem's fingerprint as a number that a history can hold: bounds of another problem are none here."""
        return float(int(self.problem.name[:12], 16))


class ConvexGapLens(Lens):
    """Distance of ``Linear -> ReLU -> Linear`` from the global optimum (Wang, Lacotte & Pilanci, ICLR 2022).

    Args:
        mode: ``exact`` enumerates all patterns and solves for the optimum; ``bank`` solves on the network's own;
            ``relaxed`` solves nothing, and bounds; ``auto`` is exact where that is cheap, relaxed otherwise.
        layers: names of the two ``nn.Linear``; None takes the module's only two.
        beta: strength of the weight decay in the objective ``sum of losses + beta / 2 |weights|^2``.
        loss: of the outputs; None finds out.
        max_patterns: most patterns to enumerate.
        seconds: about, for the bound before training.

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
        loss: Loss | None = None,
        max_patterns: int = 50_000,
        seconds: float = 3.0,
    ) -> None:
        if mode not in ("auto", "exact", "bank", "relaxed"):
            raise ValueError(f"mode must be 'auto', 'exact', 'bank' or 'relaxed'; got {mode!r}.")
        if layers is not None and (isinstance(layers, str) or len(layers) != 2):
            raise ValueError(f"layers must name the hidden and the output layer; got {layers!r}.")
        if not seconds > 0:
            raise ValueError(f"seconds must be positive; got {seconds}.")
        self.mode = mode
        self.layers = layers
        self.beta = None if beta is None else check_beta(beta)
        self.loss: Loss | None = None if loss is None else check_loss(loss)
        self.max_patterns = max_patterns
        self.seconds = seconds

    def check(self, subject: Subject) -> Prepared:
        """See what a training step minimises, read the rows that are trained on, and bound or find their optimum."""
        if not subject.copy:
            raise NotApplicable("ConvexGap: copy=False is no way to run a step at other weights: take copy=True")
        names = _find_layers(subject.network, self.layers)
        if not subject.trial:
            check_rows_stay(subject)
        rows, given = subject.rows(wanted="samples")
        if not (rows.isfinite().all() and given.isfinite().all()):
            raise NotApplicable("ConvexGap: a sample or its target is NaN or infinite, so there is no objective")
        if not subject.trial:
            check_values_stay(subject)
        with subject.quiet():
            batch = subject.to_device(readings.first_batch(subject.loader))
        recognised = self._recognise(subject, names, batch)
        layers = Layers(*_layers(subject.network, names))
        x, y = layers.inputs(rows), targets(given, recognised.loss, layers.num_outputs)
        beta, decays = self.beta, None
        if beta is None:
            decays = _decays(subject, names)
            beta = self._beta_of(subject, decays, recognised, batch, len(x))
        problem = Problem.of(x, y, beta, loss=recognised.loss, output_bias=layers.bias is not None)
        mode, arrangements, optimum, bound = self._mode(problem, x), None, None, 0.0
        if mode == "exact":
            arrangements = enumerate_arrangements(x, max_patterns=self.max_patterns)
            solution = solve(problem, arrangements)
            optimum, bound = solution.objective, solution.lower_bound
            rank_zero_info(f"ConvexGap: the global optimum over {len(arrangements)} patterns is {optimum:.6g}")
        else:
            steps = _steps(problem, self.seconds)
            bound = 0.0 if steps is None else problem.unit * relaxed_bound(problem, seconds=math.inf, steps=steps)
        size = number_of_rows(subject.loader)
        return Prepared(
            problem, names, mode, recognised, decays, batch, arrangements, optimum, bound, x, subject.loader, size
        )  # fmt: skip

    def look(self, moment: Moment, prepared: Prepared, history: Sequence[Mapping[str, Any]]) -> Numbers:
        """Objective, the best bound of this problem so far, and what lies between.

        Raises:
            ValueError: nothing can be measured (a network that has diverged, or whose step computes another loss now).
        """
        problem = prepared.problem
        _check_same_rows(moment.subject, prepared)
        _check_same_decays(moment.subject, prepared)
        weight, alpha, bias = self._seen_again(moment.subject, prepared)
        now = report(problem, weight, alpha, prepared.arrangements, bias=bias)
        known = [entry["lower_bound"] for entry in history if entry.get("problem_id") == prepared.number]
        lower_bound = max([now.lower_bound, prepared.bound, *known])
        scale = problem.unit * (problem.x_unit / problem.y_unit) ** 0.5
        masses = weight.norm(dim=1) * alpha.reshape(len(alpha), -1).norm(dim=1)
        numbers: Numbers = {
            "objective": now.objective,
            "lower_bound": lower_bound,
            "certified_gap": now.objective - lower_bound,
            "sup_ratio": now.sup_ratio,
            "clarke_residual": scale * stationarity(problem, weight, alpha, bias=bias, zero_tol=_FLOAT32_ZERO),
            "balance_error": now.balance_error,
            "active_neurons": float((masses > 1e-6 * masses.max()).sum()),
            "problem_id": prepared.number,
        }
        if prepared.optimum is not None:
            numbers |= {"optimum": prepared.optimum, "gap": now.objective - prepared.optimum}
        if prepared.mode == "bank":
            bank = network_arrangements(prepared.x, weight)
            if len(bank) * prepared.x.numel() > _LARGEST_BANK:
                bank = network_arrangements(prepared.x, weight, flip_tol=0.0)
            best = solve(problem, bank).objective
            numbers |= {"bank_optimum": best, "bank_gain": now.objective - best}
        return numbers

    def unknown(self, prepared: Prepared) -> Numbers:
        """NaN for every key."""
        return dict.fromkeys((*_COMMON, *_EXTRA[prepared.mode]), math.nan)

    def figure(self, history: Sequence[Mapping[str, Any]]) -> "Figure":
        """Distance from the optimum on a log scale, and the largest correlation over beta, against the epoch."""
        return figures.plot_gap(history)

    def _mode(self, problem: Problem, x: Tensor) -> Literal["exact", "bank", "relaxed"]:
        if problem.num_outputs > 1:
            if self.mode in ("exact", "bank"):
                raise NotApplicable(
                    f"ConvexGap: mode={self.mode!r} is of one output, the network has {problem.num_outputs}: take "
                    "mode='relaxed'"
                )
            return "relaxed"
        if self.mode != "auto":
            return self.mode
        try:
            enumerate_arrangements(x, max_patterns=min(self.max_patterns, _CHEAP))
        except TooManyPatternsError:
            return "relaxed"
        return "exact"

    def _recognise(self, subject: Subject, names: tuple[str, str], batch: Any) -> Recognised:
        """Run the step, in float64 if it can, and see what it computes."""
        losses = LOSSES if self.loss is None else (self.loss,)
        reason = "there was nothing to run"
        for doubled in (True, False):
            with subject.quiet(), subject.twin() as network:
                network.train()
                try:
                    step, layers, x, y = self._step(subject, network, names, batch, doubled)
                    return recognise(step, layers, x, y, losses)
                except NotRecognised as error:
                    raise NotApplicable(
                        f"ConvexGap: {error}. Name other `layers`, or take another network: the theory does not "
                        "cover this one."
                    ) from error
                except NotApplicable:
                    raise
                except Exception as error:  # a stranger's step; the other precision may suit it
                    reason = f"{type(error).__name__}: {error}"
        raise NotApplicable(
            f"ConvexGap: neither `training_step` nor `forward` can be run on a batch ({reason}): pass `call`, a "
            "function from (module, batch) to (outputs, targets)"
        )

    def _step(
        self, subject: Subject, network: nn.Module, names: tuple[str, str], batch: Any, doubled: bool
    ) -> tuple[Any, Layers, Tensor, Tensor]:
        """What gives the loss of a batch with the network as it is, its layers, and the batch's rows."""
        if doubled:
            network.double()
            batch = apply_to_collection(batch, Tensor, lambda t: t.double() if t.is_floating_point() else t)
        layers = Layers(*_layers(network, names))
        x, y = pair(batch, subject.unpack)
        if subject.call is not None:
            y = subject.call(network, batch)[1]
        by_step = _has_step(subject)

        def stepped() -> Any:
            returned = cast(Any, network).training_step(*step_arguments(cast(Any, network).training_step, batch))
            loss = returned.get("loss") if isinstance(returned, Mapping) else returned
            if not isinstance(loss, Tensor):
                raise ValueError("`training_step` returns no loss")
            return loss

        def called() -> Tensor:
            outputs = network(x) if subject.call is None else subject.call(network, batch)[0]
            loss = self.loss or "squared"
            wanted = targets(y, loss, layers.num_outputs)
            outputs = outputs.detach().to("cpu", torch.float64)
            return loss_value(outputs.reshape(wanted.shape), wanted, loss) / len(wanted)

        def step() -> Any:
            with nullcontext() if doubled else subject.precision():
                return stepped() if by_step else called()

        return step, layers, x, y

    def _seen_again(self, subject: Subject, prepared: Prepared) -> tuple[Tensor, Tensor, Tensor | None]:
        """The layers as they are now, if one batch shows that the step computes what it did before training."""
        failure: Exception | None = None
        for doubled in (True, False):
            with subject.quiet(), subject.twin() as network:
                layers = Layers(*_layers(network, prepared.layers))
                seen = layers.weight, layers.alpha, layers.bias
                precision = 1e-5 + 100 * torch.finfo(layers.hidden.weight.dtype).eps
                if not (seen[0].isfinite().all() and seen[1].isfinite().all()):
                    raise ValueError("weight and alpha must be finite; this network has diverged.")
                network.train()
                try:
                    step, layers, x, y = self._step(subject, network, prepared.layers, prepared.batch, doubled)
                    value = float(step())
                except Exception as error:  # as in `check`
                    failure = error
                    continue
                expected = prepared.recognised.predicted(layers, x, y)
                size = max(abs(expected), 1e-3 * prepared.recognised.factor * prepared.problem.unit)
                if not abs(value - expected) <= precision * size:
                    raise ValueError(
                        f"the training step computes another loss than before training ({value:.6g} on a batch, not "
                        f"{expected:.6g}): a bound would be of another problem"
                    )
                return seen
        raise ValueError(f"the training step cannot be run any more: {failure}")

    def _beta_of(
        self, subject: Subject, decays: list[Decay | None], recognised: Recognised, batch: Any, size: int
    ) -> float:
        """Strength of the decay in the objective, which sums over samples: the step's penalty and the optimizer's."""
        strengths = {0.0 if decay is None else decay.strength for decay in decays}
        decoupled = any(decay.decoupled for decay in decays if decay is not None)
        if len(strengths) != 1 or decoupled or not max(strengths) + recognised.penalty > 0:
            told = "decoupled weight decay" if decoupled else f"weight decay {sorted(strengths)}"
            if not _optimizers(subject):
                told = "the weight decay of no optimizer (nothing is trained here)"
            raise NotApplicable(f"ConvexGap: beta cannot be told from {told} of weights and hidden bias. {_CURE}")
        if max(strengths) > 0 and not cast(LightningModule, subject.network).automatic_optimization:
            rank_zero_warn(
                "ConvexGap: optimisation is manual, and beta is taken as if each optimizer step were on the loss of "
                "one batch as `training_step` returns it; where losses are accumulated or scaled, pass `beta`"
            )
        rows, _ = pair(batch, subject.unpack)
        return (max(strengths) + recognised.penalty) * size / (recognised.factor * len(rows))


def _steps(problem: Problem, seconds: float) -> int | None:
    """How many steps of ascent take about so long; None where to begin takes much longer, and looks alone bound."""
    n, d = problem.x.shape
    step = problem.num_outputs * d * d * (4 * n + 16 * d) / _DENSE  # products, and eigenvectors
    if 2 * step > _LONGEST * seconds:
        return None
    cost = 4 * problem.num_outputs * n * d * d + 2e6  # each step's overhead counts too
    return int(min(200, max(seconds * _OPERATIONS / cost, min(10, 2 * seconds / max(step, 1e-9)))))


def _optimizers(subject: Subject) -> list[torch.optim.Optimizer]:
    return [] if subject.trainer is None else subject.trainer.optimizers


def _decays(subject: Subject, names: tuple[str, str]) -> list[Decay | None]:
    """What the optimizers do to both weights and the hidden bias, as they are set now."""
    if not _has_step(subject):
        raise NotApplicable(f"ConvexGap: beta cannot be told without a training step. {_CURE}")
    hidden, output = _layers(subject.network, names)
    decayed = [hidden.weight, output.weight, *([] if hidden.bias is None else [hidden.bias])]
    try:
        return [decay_of(parameter, _optimizers(subject)) for parameter in decayed]
    except NotApplicable as error:
        kinds = ", ".join(type(optimizer).__name__ for optimizer in _optimizers(subject))
        raise NotApplicable(f"ConvexGap: beta does not follow from the weight decay of {kinds}. {_CURE}") from error


def _has_step(subject: Subject) -> bool:
    """Whether the loss is seen from a training step; otherwise it is of the outputs of `call` or ``forward``."""
    network = subject.network
    return subject.call is None and isinstance(network, LightningModule) and is_overridden("training_step", network)


def _check_same_rows(subject: Subject, prepared: Prepared) -> None:
    """Loaders may be made anew, and data sets grow, while a network trains."""
    loader = subject.loader
    if loader is prepared.loader and number_of_rows(loader) == prepared.size:
        return
    rows, _ = subject.rows(wanted="samples")
    x = Layers(*_layers(subject.network, prepared.layers)).inputs(rows)
    if x.shape != prepared.x.shape or not torch.equal(x, prepared.x):
        raise ValueError("the training data are others than before training: a bound would be of another problem")


def _check_same_decays(subject: Subject, prepared: Prepared) -> None:
    """Weight decay may have a schedule; a layer that is frozen meanwhile has none, and the objective stays."""
    if prepared.decays is None:
        return
    for before, now in zip(prepared.decays, _decays(subject, prepared.layers), strict=True):
        if now is not None and now != before:
            was = 0.0 if before is None else before.strength
            raise ValueError(
                f"the weight decay is {now.strength:g} now, and was {was:g} before training: a bound would be of "
                "another problem (pass `beta` for one of your own)"
            )


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
    if output.in_features != hidden.out_features:
        raise NotApplicable(
            f"ConvexGap: {names[1]!r} takes {output.in_features} features, and {names[0]!r} gives "
            f"{hidden.out_features}: name two layers that follow each other with `layers`."
        )
    return names[0], names[1]


def _layers(network: nn.Module, names: tuple[str, str]) -> tuple[nn.Linear, nn.Linear]:
    named = {name.replace("_orig_mod.", ""): layer for name, layer in network.named_modules()}
    return cast(nn.Linear, named[names[0]]), cast(nn.Linear, named[names[1]])

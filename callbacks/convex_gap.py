"""How far a two-layer ReLU network in training is from the global optimum, with a certificate."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import move_data_to_device, rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lit_papers.callbacks.guest import Unpack, unpack_batch, untouched
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
from lit_papers.plotting import STYLES, log_scale, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PREFIX = "convex_relu/"
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


class _Problem(NamedTuple):
    """What stays the same in a fit."""

    x: Tensor
    y: Tensor
    beta: float
    arrangements: Arrangements | None
    optimum: float | None


class ConvexGap(Callback):
    """Logs the distance of a two-layer ReLU network from the global optimum of its training objective.

    Training ``Linear -> ReLU -> Linear(1)`` with weight decay has the value of a convex program (Wang, Lacotte &
    Pilanci, ICLR 2022). Its dual bounds what any network of any width could reach, whatever is trained here::

        trainer = Trainer(callbacks=[ConvexGap(loss="squared")])

    The training set is read once, at the start, by indexing its dataset. Epochs are counted from 0; measured are epochs
    0, k, 2k, ... and the last, with these keys, all prefixed ``convex_relu/`` and in units of the objective that sums
    over samples: ``objective``, ``lower_bound`` (the best so far), ``certified_gap`` = objective - lower_bound,
    ``sup_ratio`` (1 at the optimum), ``clarke_residual`` (0 at stationary points), ``balance_error``, and
    ``active_neurons``. Mode `exact` adds ``optimum`` and ``gap`` = objective - optimum. Mode `bank` adds
    ``bank_optimum``, the convex program's value on the network's own patterns, and ``bank_gain`` = objective -
    bank_optimum, which its neurons could gain without new patterns. Where nothing can be measured (a network that has
    diverged) all are NaN. Every process measures for itself, without communication.

    Args:
        mode: ``exact`` enumerates all patterns and solves for the optimum; ``bank`` solves on the network's own;
            ``relaxed`` solves nothing; ``auto`` is exact where `max_patterns` allow it, bank otherwise.
        layers: names of the two ``nn.Linear``; None takes the module's only two. A hidden bias counts as a column of
            ones.
        beta: strength of the weight decay in the objective ``sum of losses + beta / 2 |weights|^2``. None takes the
            module's attribute ``beta``; or the optimizer's weight decay wd, where the loss is a mean: n wd / 2 for
            ``MSELoss`` and n wd for the logistic loss.
        loss: ``squared`` or ``logistic``; labels 0 and 1 are read as -1 and +1 by the latter.
        every_n_epochs: k, at least 1.
        max_patterns: most patterns to enumerate.
        unpack: from a batch to (argument of the network, targets), if batches are neither pairs nor usual mappings.

    Attributes:
        history: one dict a measured epoch, with ``epoch`` and the keys above without prefix; kept in checkpoints.

    Raises:
        ValueError: an argument is out of range.
        MisconfigurationException: at the start of training, if the network is no such network, if beta cannot be
            told, or if the training data have no length.
        TooManyPatternsError: at the start of training, in mode ``exact``.
    """

    def __init__(
        self,
        mode: Literal["auto", "exact", "bank", "relaxed"] = "auto",
        *,
        layers: Sequence[str] | None = None,
        beta: float | None = None,
        loss: Loss = "squared",
        every_n_epochs: int = 1,
        max_patterns: int = 50_000,
        unpack: Unpack | None = None,
    ) -> None:
        if mode not in ("auto", "exact", "bank", "relaxed"):
            raise ValueError(f"mode must be 'auto', 'exact', 'bank' or 'relaxed'; got {mode!r}.")
        if loss not in ("squared", "logistic"):
            raise ValueError(f"loss must be 'squared' or 'logistic'; got {loss!r}.")
        if layers is not None and (isinstance(layers, str) or len(layers) != 2):
            raise ValueError(f"layers must name the hidden and the output layer; got {layers!r}.")
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1; got {every_n_epochs}.")
        self.mode = mode
        self.layers = layers
        self.beta = None if beta is None else check_beta(beta)
        self.loss: Loss = loss
        self.every_n_epochs = every_n_epochs
        self.max_patterns = max_patterns
        self.unpack = unpack or unpack_batch
        self.history: list[dict[str, Any]] = []
        self._problem: _Problem | None = None
        self._network: tuple[nn.Linear, nn.Linear] | None = None
        self._measured_mode = "relaxed"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the network, read the data, and in exact mode solve for the optimum: before any training is lost."""
        hidden, output = self._network = _find_layers(pl_module, self.layers)
        x, y = _read(trainer, pl_module, self.unpack, self.loss, hidden, output)
        beta = check_beta(self.beta if self.beta is not None else _infer_beta(trainer, pl_module, self))
        arrangements, optimum = None, None
        self._measured_mode = "bank" if self.mode == "auto" else self.mode
        if self.mode in ("auto", "exact"):
            try:
                arrangements = enumerate_arrangements(x, max_patterns=self.max_patterns)
            except TooManyPatternsError:
                if self.mode == "exact":
                    raise
            else:
                self._measured_mode = "exact"
                optimum = solve_relu(x, y, beta, arrangements, loss=self.loss).objective
                rank_zero_info(f"ConvexGap: the global optimum over {len(arrangements)} patterns is {optimum:.6g}")
        self._problem = _Problem(x, y, beta, arrangements, optimum)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure where this epoch is due."""
        epoch = trainer.current_epoch
        if (epoch % self.every_n_epochs == 0 or _is_last_epoch(trainer)) and self._missing(epoch):
            pl_module.log_dict(self._measure(epoch), on_step=False, on_epoch=True, batch_size=1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the last epoch if it turned out only now to be the last (early stopping after our hook)."""
        epoch = trainer.current_epoch - 1
        if epoch >= 0 and self._missing(epoch):
            logged = self._measure(epoch)
            for logger in trainer.loggers:  # between epochs `self.log` would count the numbers into the next one
                logger.log_metrics({**logged, "epoch": epoch}, step=trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the figure beside the logs."""
        if trainer.is_global_zero and self.history:
            save_figure(self.plot(), trainer, "convex_gap")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the data and the network."""
        if stage == "fit":
            self._problem = self._network = None

    def state_dict(self) -> dict[str, Any]:
        """The history, in plain types; the running bound is in its last entry."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the history of the run that is resumed."""
        self.history = state_dict["history"]

    def _missing(self, epoch: int) -> bool:
        return not any(entry["epoch"] == epoch for entry in self.history)

    def _measure(self, epoch: int) -> dict[str, float]:
        try:
            numbers = self._numbers()
        except (ValueError, ConvexSolveError) as error:
            rank_zero_warn(f"ConvexGap: nothing measured after epoch {epoch}: {error} NaN is recorded.")
            numbers = dict.fromkeys((*_COMMON, *_EXTRA[self._measured_mode]), math.nan)
        self.history.append({"epoch": epoch, **numbers})
        return {_PREFIX + key: value for key, value in numbers.items()}

    def _numbers(self) -> dict[str, float]:
        assert self._problem is not None, "Lightning calls on_train_start first"  # noqa: S101
        assert self._network is not None  # noqa: S101
        x, y, beta, arrangements, optimum = self._problem
        weight, alpha = _weights(*self._network)
        report = global_optimality(x, y, weight, alpha, beta, arrangements, loss=self.loss)
        bounds = [entry["lower_bound"] for entry in self.history if math.isfinite(entry["lower_bound"])]
        lower_bound = max([report.lower_bound, *bounds])
        masses = weight.norm(dim=1) * alpha.abs()
        numbers = {
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
        if self._measured_mode == "bank":
            bank = network_arrangements(x, weight)
            if len(bank) * x.numel() > _LARGEST_BANK:
                bank = network_arrangements(x, weight, flip_tol=0.0)
            best = solve_relu(x, y, beta, bank, loss=self.loss).objective
            numbers |= {"bank_optimum": best, "bank_gain": report.objective - best}
        return numbers

    def plot(self) -> "Figure":
        """Distance from the optimum on a log scale, and the largest correlation over beta, against the epoch.

        Raises:
            RuntimeError: nothing was measured yet.
        """
        if not self.history:
            raise RuntimeError("nothing to plot: `history` is empty until the first epoch ends")
        figure, (distance, ratio) = new_figure(1, 2)
        epochs = [entry["epoch"] for entry in self.history]
        shown = {"gap": "objective - optimum", "certified_gap": "objective - certified bound"}
        shown["bank_gain"] = "objective - optimum on own patterns"
        for style, (key, label) in zip(STYLES, shown.items(), strict=False):
            if key in self.history[-1]:
                heights = [entry[key] for entry in self.history]
                distance.plot(epochs, heights, markersize=3, label=label, **style)
        log_scale(distance)
        distance.set(xlabel="epoch", ylabel="distance (units of the objective)")
        distance.legend()
        ratio.plot(epochs, [entry["sup_ratio"] for entry in self.history], markersize=3, **STYLES[0])
        ratio.axhline(1.0, color="grey", linestyle=":", linewidth=1)
        ratio.set(xlabel="epoch", ylabel=r"$\max_u |\nu^T (X u)_+|\; /\; \beta$")
        log_scale(ratio)
        for axes in (distance, ratio):
            axes.grid(alpha=0.3)
        return figure


def _find_layers(module: LightningModule, names: Sequence[str] | None) -> tuple[nn.Linear, nn.Linear]:
    named = dict(module.named_modules())
    if names is None:
        found = [name for name, layer in named.items() if isinstance(layer, nn.Linear)]
        if len(found) != 2:
            raise MisconfigurationException(
                f"ConvexGap: {type(module).__name__} has {len(found)} linear layers ({', '.join(found) or 'none'}), "
                "not two; name the hidden and the output layer with `layers`."
            )
        names = found
    for name in names:
        if not isinstance(named.get(name), nn.Linear):
            raise MisconfigurationException(f"ConvexGap: layers={list(names)}, but {name!r} is no nn.Linear there.")
    hidden, output = (cast(nn.Linear, named[name]) for name in names)
    has_bias = "bias" in dict(output.named_parameters())
    if output.out_features != 1 or has_bias or output.in_features != hidden.out_features:
        raise MisconfigurationException(
            f"ConvexGap: the output layer {names[1]!r} must be nn.Linear({hidden.out_features}, 1, bias=False), the "
            f"network that the theory is of; it is {output}."
        )
    return hidden, output


def _weights(hidden: nn.Linear, output: nn.Linear) -> tuple[Tensor, Tensor]:
    """Copies of both layers on the CPU in float64, the hidden bias as a last column."""
    weight = hidden.weight.detach().to("cpu", torch.float64, copy=True)
    if hidden.bias is not None:
        weight = torch.cat([weight, hidden.bias.detach().to("cpu", torch.float64)[:, None]], 1)
    return weight, output.weight.detach()[0].to("cpu", torch.float64, copy=True)


def _read(
    trainer: Trainer, module: LightningModule, unpack: Unpack, loss: Loss, hidden: nn.Linear, output: nn.Linear
) -> tuple[Tensor, Tensor]:
    """Read the training set, and make sure that the network sees it as it is."""
    loader: Any = trainer.train_dataloader
    try:
        dataset, size = loader.dataset, len(loader.dataset)
    except (AttributeError, TypeError):
        raise MisconfigurationException(
            "ConvexGap needs one training loader over a dataset with a length, which it can read by indexing."
        ) from None
    inputs, targets = [], []
    with untouched(trainer, module):
        for start in range(0, size, 256):
            samples = [dataset[index] for index in range(start, min(start + 256, size))]
            batch = unpack(loader.collate_fn(samples))
            if start == 0:
                _check_layout(module, batch[0], hidden, output)
            inputs.append(batch[0].detach().flatten(1).to("cpu", torch.float64))
            targets.append(batch[1].detach().to("cpu", torch.float64).reshape(len(samples), -1))
    x, y = torch.cat(inputs), torch.cat(targets)
    if y.shape[1] != 1:
        raise MisconfigurationException(f"ConvexGap: targets must be one number a sample, got {y.shape[1]} each.")
    y = y[:, 0]
    if loss == "logistic" and bool(((y == 0) | (y == 1)).all()):
        y = 2 * y - 1
    if hidden.bias is not None:
        x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    return check_features(x), check_targets(y, x, loss)


def _check_layout(module: LightningModule, inputs: Any, hidden: nn.Linear, output: nn.Linear) -> None:
    """Run one batch, and see that the hidden layer gets it as it is, and the output layer its ReLU."""
    seen: dict[str, Tensor] = {}
    hooks = [
        hidden.register_forward_hook(lambda _, given, out: seen.update(x=given[0], inner=out)),
        output.register_forward_hook(lambda _, given, out: seen.update(active=given[0])),
    ]
    try:
        module(move_data_to_device(inputs, module.device))
    finally:
        for hook in hooks:
            hook.remove()
    if "active" not in seen or "x" not in seen:
        raise MisconfigurationException("ConvexGap: forward does not run both layers; name the right ones in `layers`.")
    given = inputs.to(seen["x"]).flatten(1)
    if seen["x"].shape != given.shape or not torch.allclose(seen["x"].flatten(1), given, rtol=1e-2):
        raise MisconfigurationException(
            "ConvexGap: something changes the samples before the hidden layer: the theory does not cover that."
        )
    if not torch.allclose(seen["active"], seen["inner"].relu(), rtol=1e-2):
        raise MisconfigurationException("ConvexGap: what lies between the two layers is not a ReLU alone.")


def _infer_beta(trainer: Trainer, module: LightningModule, callback: ConvexGap) -> float:
    beta = getattr(module, "beta", None)
    if isinstance(beta, (int, float)):
        return float(beta)
    hidden, output = _find_layers(module, callback.layers)
    layers = {id(parameter) for layer in (hidden, output) for parameter in layer.parameters()}
    decays, decoupled = set(), False
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            if any(id(parameter) in layers for parameter in group["params"]):
                decays.add(float(group.get("weight_decay", 0.0)))
                decoupled |= isinstance(optimizer, torch.optim.AdamW) or bool(group.get("decoupled_weight_decay"))
    if len(decays) != 1 or decoupled or not max(decays) > 0:
        told = "decoupled weight decay" if decoupled else f"weight decay {sorted(decays) or 'of no optimizer'}"
        raise MisconfigurationException(
            f"ConvexGap: beta cannot be told from {told}. Pass `beta`: with the loss summed over samples, the "
            "objective is loss + beta / 2 |weights|^2."
        )
    size = len(cast(Any, trainer.train_dataloader).dataset)
    return max(decays) * size * (0.5 if callback.loss == "squared" else 1.0)


def _is_last_epoch(trainer: Trainer) -> bool:
    steps_are_up = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return trainer.should_stop or steps_are_up or trainer.current_epoch + 1 == trainer.max_epochs

"""Which orders of interaction a network encodes, measured while it trains."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DistributedSampler

from lit_papers.callbacks.first_samples import first_samples
from lit_papers.callbacks.guest import Unpack, unpack_batch, untouched
from lit_papers.callbacks.heads import tensors_in
from lit_papers.interactions.estimator import MultiOrderInteraction
from lit_papers.interactions.metrics import RelativeInteractionStrength
from lit_papers.interactions.players import FeaturePlayers, PatchGrid
from lit_papers.plotting import STYLES, log_scale, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class InteractionStrength(Callback):
    r"""Logs the relative strength J of each order of interaction while any classifier trains.

    Attach it to any LightningModule whose ``forward`` returns logits (N, C), alone or first among other tensors::

        trainer = Trainer(callbacks=[InteractionStrength(PatchGrid(4), pairs="all", method="exact")])

    After every ``every_n_epochs`` epochs and after the last it takes the first ``n_samples`` samples of the validation
    set, estimates their interactions with `lit_papers.interactions.estimator.MultiOrderInteraction`, and logs, for each
    order m, ``interactions/J/m{m}`` and the raw strength ``interactions/S/m{m}`` (J is S divided by its mean over
    orders, so a network whose interactions all shrink keeps its J), ``interactions/J_centroid``
    :math:`= \sum m J / \sum J / (n - 2)` in [0, 1], and ``interactions/n_forwards``, the inputs sent to the network.
    J is U-shaped in trained networks, the paper's *representation bottleneck* (Deng et al., ICLR 2022, section 3); as
    averaging over contexts gives even noise such a shape, the network **is measured once before it is trained**, on all
    samples, as epoch 0: the control that every curve should be compared with.

    Training is bit-identical with and without it. Processes share the samples and record what one process records.
    Where no sample is classified correctly nothing is recorded, and where the logits are NaN or infinite, NaN is.

    Args:
        players: what is masked: patches of images or features of a table.
        every_n_epochs: measure after each epoch that it divides.
        n_samples: of the validation set, its first ones; a ``fast_dev_run`` takes one, right or wrong.
        only_correct: leave out samples that the network misclassifies, as the paper does (not for the control).
        orders: m to measure, in 0..n-2; None takes all up to 16 players, else 13 over the whole range.
        pairs: of players, for each sample: so many drawn ones, ``"all"``, or the pairs, int64 ``(P, 2)``.
        n_contexts: for each pair and order, at least.
        method: ``"exact"`` (all :math:`2^n` maskings), ``"sampled"``, ``"auto"`` (the cheaper) or ``"paper"``.
        baseline: what replaces absent players; 0 is the mean of normalised data.
        batch_size: masked inputs in a forward pass.
        seed: of pairs and contexts; each sample has a random stream of its own.
        dataloader: samples in a fixed order, the same on every process; None takes the validation set (the first,
            if there are several), without shuffling.
        unpack: from a batch to ``(argument of forward, class indices)``. None understands pairs and mappings with
            the usual names.

    Attributes:
        history: one dict a measured epoch, with ``epoch`` (1-based; 0 is the control), ``orders``, ``strength``,
            ``relative_strength``, ``n_samples`` and ``n_forwards``; kept in checkpoints.

    Raises:
        ValueError: at the start of fit, naming the argument: it is out of range, or there are no samples in a fixed
            order.
        TypeError: the batch is of an unknown kind, or has no class indices.
    """

    def __init__(
        self,
        players: PatchGrid | FeaturePlayers,
        every_n_epochs: int = 1,
        n_samples: int = 50,
        only_correct: bool = True,
        orders: list[int] | None = None,
        pairs: int | Literal["all"] | Tensor = 200,
        n_contexts: int = 100,
        method: Literal["auto", "exact", "sampled", "paper"] = "auto",
        baseline: float | Tensor = 0.0,
        batch_size: int = 1024,
        seed: int = 0,
        dataloader: Any = None,
        unpack: Unpack | None = None,
    ) -> None:
        for name, number in (("every_n_epochs", every_n_epochs), ("n_samples", n_samples)):
            if number < 1:
                raise ValueError(f"`{name}` must be at least 1, got {number}")
        self.players = players
        self.every_n_epochs = every_n_epochs
        self.n_samples = n_samples
        self.only_correct = only_correct
        self.orders = orders
        self.pairs = pairs
        self.n_contexts = n_contexts
        self.method = method
        self.baseline = baseline
        self.batch_size = batch_size
        self.seed = seed
        self.dataloader = dataloader
        self.unpack = unpack or unpack_batch
        self.history: list[dict[str, Any]] = []
        self._samples: tuple[Tensor, Tensor] | None = None
        self._seconds = 0.0
        self._forwards = 0
        self._warned = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse wrong arguments before anything runs."""
        if stage == "fit":
            self._estimator(pl_module)
            if isinstance(getattr(self.dataloader, "sampler", None), DistributedSampler):
                raise ValueError("`dataloader` must not have a DistributedSampler: the samples are shared out here")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the samples; measure the control, or after a resume an epoch whose measurement was not saved."""
        self._seconds, self._forwards = 0.0, 0
        wanted = 1 if _fast_dev_run(trainer) else self.n_samples
        with _same_fate(trainer), untouched(trainer, pl_module):
            self._samples = first_samples(trainer, wanted, self.dataloader, self.unpack)
        if trainer.global_step == 0:
            self._measure_between_epochs(trainer, pl_module, 0)
            return
        epoch, at_its_end = trainer.current_epoch, _epoch_is_over(trainer) or not trainer.fit_loop.restarted_mid_epoch
        if epoch > 0 and at_its_end and epoch % self.every_n_epochs == 0:
            self._measure_between_epochs(trainer, pl_module, epoch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure at the end of a due epoch, in time for callbacks that watch validation metrics."""
        if not trainer.sanity_checking and trainer.state.fn == "fit" and _epoch_is_over(trainer):
            self._measure_if_due(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure a due epoch at whose end there was no validation."""
        self._measure_if_due(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the last epoch if it turned out only now to be the last (early stopping)."""
        if trainer.current_epoch > 0:
            self._measure_between_epochs(trainer, pl_module, trainer.current_epoch)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the figure beside the logs and tell what measuring cost."""
        if trainer.is_global_zero and self.history:
            figure, (relative, raw, over_time) = new_figure(1, 3)
            self.plot(relative)
            self.plot(raw, raw=True)
            self.plot_map(over_time)
            save_figure(figure, trainer, "interaction_strength")
        rank_zero_info(f"interactions: {self._forwards:,} forwards in {self._seconds:.1f} s")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the samples."""
        if stage == "fit":
            self._samples = None

    def state_dict(self) -> dict[str, Any]:
        """The history, in plain types."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the history of the run that is resumed."""
        self.history = state_dict["history"]

    def plot(self, ax: "Axes | None" = None, raw: bool = False) -> "tuple[Figure, Axes]":
        """J against order, a curve for each measured epoch: the darker the later, and the control dashed.

        Args:
            ax: to draw on; None for a new figure.
            raw: draw S, the strength before it is divided by its mean, on a logarithmic axis.

        Returns:
            Figure and axes.

        Raises:
            RuntimeError: nothing was measured yet.
        """
        figure, ax = self._axes(ax)
        key = "strength" if raw else "relative_strength"
        trained = [entry for entry in self.history if entry["epoch"] > 0]
        for entry in self.history:
            if entry["epoch"] == 0:
                ax.plot(self._places(entry), entry[key], label="untrained", markersize=4, **STYLES[1])
        for entry, color in zip(trained, _shades(len(trained)), strict=True):
            first_or_last = entry is trained[0] or entry is trained[-1]
            label = f"after epoch {entry['epoch']}" if first_or_last else None
            marker = "o" if entry is trained[-1] else None
            ax.plot(self._places(entry), entry[key], color=color, label=label, marker=marker, markersize=4)
        ax.set(
            xlabel="order of interaction m / (n - 2)", ylabel="strength S [log-odds]" if raw else "relative strength J"
        )
        if raw:
            log_scale(ax)
        else:
            ax.axhline(1.0, color="0.6", linewidth=0.8, zorder=0)
            ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3, which="both")
        ax.legend(fontsize=8)
        return figure, ax

    def plot_map(self, ax: "Axes | None" = None) -> "tuple[Figure, Axes]":
        """J as a map of orders by measured epochs, light to dark.

        Args:
            ax: to draw on; None for a new figure.

        Returns:
            Figure and axes.

        Raises:
            RuntimeError: nothing was measured yet.
        """
        figure, ax = self._axes(ax)
        table = [entry["relative_strength"] for entry in self.history]
        image = ax.imshow(list(zip(*table, strict=True)), origin="lower", aspect="auto", cmap="Greys")
        every = max(1, len(table) // 8)  # more labels would run into each other
        ax.set_xticks(range(0, len(table), every), [str(entry["epoch"]) for entry in self.history[::every]])
        orders = self.history[-1]["orders"]
        ax.set_yticks(range(len(orders)), [str(m) for m in orders])
        ax.set(xlabel="epoch (0 is untrained)", ylabel=f"order of interaction m (n - 2 = {self._largest_order})")
        figure.colorbar(image, ax=ax, label="relative strength J")
        return figure, ax

    @property
    def _largest_order(self) -> int:
        return self.players.n_players - 2

    def _places(self, entry: dict[str, Any]) -> list[float]:
        return [m / max(1, self._largest_order) for m in entry["orders"]]

    def _axes(self, ax: "Axes | None") -> "tuple[Figure, Axes]":
        if not self.history:
            raise RuntimeError("nothing to plot: `history` is empty until the first measured epoch")
        if ax is None:
            figure, (ax,) = new_figure(1, 1)
            return figure, ax
        return cast("Figure", ax.get_figure(root=True)), ax

    def _estimator(self, model: nn.Module) -> MultiOrderInteraction:
        return MultiOrderInteraction(
            model,
            self.players,
            orders=self.orders,
            pairs=self.pairs,
            n_contexts=self.n_contexts,
            method=self.method,
            baseline=self.baseline,
            batch_size=self.batch_size,
            seed=self.seed,
        )

    def _missing(self, epoch: int) -> bool:
        return not any(entry["epoch"] == epoch for entry in self.history)

    def _measure_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if (epoch % self.every_n_epochs == 0 or _is_last_epoch(trainer)) and self._missing(epoch):
            logged = self._measure(trainer, pl_module, epoch)
            pl_module.log_dict(logged, on_step=False, on_epoch=True, sync_dist=trainer.world_size > 1, batch_size=1)

    def _measure_between_epochs(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        logged = self._measure(trainer, pl_module, epoch) if self._missing(epoch) else {}
        if logged:
            for logger in trainer.loggers:  # `self.log` would count it into the next epoch, or is refused
                logger.log_metrics(logged, step=trainer.global_step)

    def _measure(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> dict[str, float]:
        """Record the strength of each order, the same on every process; returns what to log."""
        started = time.perf_counter()
        estimator = self._estimator(_Logits(pl_module))
        # Apple's GPUs have no float64
        device = torch.device("cpu") if pl_module.device.type == "mps" else pl_module.device
        metric = RelativeInteractionStrength(estimator.orders).to(device)
        counts = torch.zeros(3, dtype=torch.float64, device=device)  # samples measured, not finite, forwards
        with _same_fate(trainer), untouched(trainer, pl_module):
            x, y, ids, finite = self._share(trainer, estimator.model, epoch)
            counts[1] = not finite
            if len(ids) and finite:
                result = estimator(x, y, ids)
                metric.update(result.interactions.to(device))
                counts[0], counts[2] = len(ids), result.n_forwards
        samples, broken, forwards = (int(count) for count in trainer.strategy.reduce(counts, reduce_op="sum").tolist())
        self._forwards += forwards
        self._seconds += time.perf_counter() - started
        if broken:
            rank_zero_warn(f"InteractionStrength: the logits are not finite after epoch {epoch}; NaN is recorded")
            strength = relative = [float("nan")] * len(estimator.orders)
        elif not samples:
            self._warn_once(f"no sample is classified correctly after epoch {epoch}: nothing is recorded")
            return {}
        else:
            if not metric.update_called:  # this process had no sample; torchmetrics would warn
                metric.update(torch.empty(0, len(estimator.orders), dtype=torch.float64, device=device))
            computed = metric.compute()
            strength, relative = computed["strength"].tolist(), computed["relative_strength"].tolist()
        self.history.append(
            {
                "epoch": epoch,
                "orders": list(estimator.orders),
                "strength": strength,
                "relative_strength": relative,
                "n_samples": samples,
                "n_forwards": forwards,
            }
        )
        by_order = list(zip(estimator.orders, strength, relative, strict=True))
        centroid = sum(m * j for m, _, j in by_order) / max(1, self._largest_order)
        return {
            **{f"interactions/J/m{m}": j for m, _, j in by_order},
            **{f"interactions/S/m{m}": s for m, s, _ in by_order},
            "interactions/J_centroid": centroid / (sum(j for _, _, j in by_order) or 1.0),
            "interactions/n_forwards": float(forwards),
        }

    def _share(self, trainer: Trainer, model: nn.Module, epoch: int) -> tuple[Tensor, Tensor, list[int], bool]:
        """Samples of this process with their classes and global indices, and whether their logits are finite."""
        assert self._samples is not None, "read when training starts"  # noqa: S101
        x, y = self._samples
        ids = torch.arange(trainer.global_rank, len(y), trainer.world_size, device=y.device)
        if not len(ids):
            return x[ids], y[ids], [], True
        with torch.autocast(x.device.type, enabled=False):
            logits = torch.cat([model(x[part]) for part in torch.split(ids, self.batch_size)])
        if self.only_correct and epoch > 0 and not _fast_dev_run(trainer):
            ids = ids[logits.argmax(dim=1) == y[ids]]
        return x[ids], y[ids], ids.tolist(), bool(torch.isfinite(logits).all())

    def _warn_once(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            rank_zero_warn(f"InteractionStrength: {message}")


class _Logits(nn.Module):
    """A stranger's module, of whose output only the logits are wanted."""

    def __init__(self, module: LightningModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        output = self.module(x)
        for tensor in tensors_in(output):
            if tensor.ndim == 2 and tensor.is_floating_point() and len(tensor) == len(x):
                return tensor
        raise TypeError(
            f"forward of {type(self.module).__name__} must return logits (N, C), alone or first among other tensors, "
            f"got {type(output).__name__}"
        )


@contextmanager
def _same_fate(trainer: Trainer) -> Iterator[None]:
    """Raise on every process what was raised on one, which alone would leave the others waiting for it.

    Raises:
        Exception: what the body raised; RuntimeError on the other processes.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if not trainer.strategy.reduce_boolean_decision(failure is None, all=True):
        raise failure or RuntimeError("measuring failed on another process; its error tells why")


def _shades(count: int) -> list[Any]:
    """Colours of the epochs, light to dark, so that grey tells their order too."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.85 * (1 - k / (count - 1)) if count > 1 else 0.0) for k in range(count)]


def _fast_dev_run(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # Lightning sets it in a connector


def _epoch_is_over(trainer: Trainer) -> bool:
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def _is_last_epoch(trainer: Trainer) -> bool:
    steps_are_up = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return trainer.should_stop or steps_are_up or trainer.current_epoch + 1 == trainer.max_epochs

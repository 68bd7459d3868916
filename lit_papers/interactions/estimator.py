"""Multi-order interactions of any network, exactly or from sampled contexts, within a budget."""

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol, get_args

import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from torch import Tensor, nn

from lit_papers.interactions import sampling
from lit_papers.interactions.functional import PAPER_RATIOS, exact_interactions, log_odds, orders_from_ratios
from lit_papers.interactions.players import PatchGrid
from lit_papers.interactions.result import InteractionResult

Method = Literal["auto", "exact", "sampled", "paper"]
_LARGEST_EXACT = 24
_FORWARDS = 4  # for a context on its own


class Players(Protocol):
    """What an input consists of: `PatchGrid`, `FeaturePlayers`, or a class of yours."""

    n_players: int

    def __call__(self, x: Tensor, keep: Tensor, baseline: float | Tensor = 0.0) -> Tensor:
        """A batch in which the players that are not kept are replaced."""

    def candidate_pairs(self) -> Tensor:
        """The pairs i < j among which pairs are drawn, int64, ``(Q, 2)``."""


class MultiOrderInteraction:
    """Estimates the interactions of pairs of players at each order (Deng et al., ICLR 2022, section 2).

    Called on samples, it returns an `InteractionResult`. A sample's result depends on ``seed`` and its id alone, not on
    the batch or process that it is in; global random streams, modes and buffers of ``model`` are as before.

    The sampler is unbiased. It cuts contexts from permutations and lets each serve all pairs that it does not touch,
    which takes fewer passes than contexts of each pair's own; orders with at most ``n_contexts`` contexts are
    enumerated, and equal coalitions are evaluated once. Standard errors know that contexts of one permutation
    depend on each other.

    Args:
        model: from a batch to logits ``(B, C)``; evaluated in eval mode, without autocast.
        players: what the parts of an input are.
        orders: m, from 0 to n - 2; None for all up to 16 players, else the paper's 13 shares of n - 2.
        pairs: so many for each sample, drawn among ``players.candidate_pairs()`` (all, if there are fewer); ``"all"``
            pairs i < j; or pairs, int64, ``(P, 2)``.
        n_contexts: K, contexts for each pair and order; fewer only where no more exist.
        method: ``"exact"`` evaluates all ``2**n`` coalitions (n <= 24); ``"sampled"``; ``"auto"`` is exact where that
            costs no more than four passes a context; ``"paper"`` is the authors' procedure: independent contexts,
            nothing reused, their orders with repeats, on a `PatchGrid` their pairs.
        baseline: replaces absent players; broadcasts against one sample.
        value_fn: from logits ``(B, C)`` in float64 and labels ``(B,)`` to values ``(B,)``.
        batch_size: masked inputs in a pass.
        seed: of all draws.
        max_forwards: refuse calls that could need more masked inputs than this; None for any number.
        progress: show a bar, on the first process.

    Raises:
        ValueError: an argument is out of its range.

    >>> from lit_papers.interactions.players import FeaturePlayers
    >>> class Product(nn.Module):  # a logit that is there only if both features are
    ...     def forward(self, x):
    ...         return torch.stack([x[:, 0] * x[:, 1], torch.zeros(len(x))], dim=1)
    >>> estimate = MultiOrderInteraction(Product(), FeaturePlayers(3), pairs="all")
    >>> estimate(torch.ones(1, 3), torch.tensor([0])).interactions[0, 0]
    tensor([1., 1.], dtype=torch.float64)
    """

    def __init__(
        self,
        model: nn.Module,
        players: Players,
        *,
        orders: Sequence[int] | None = None,
        pairs: int | Literal["all"] | Tensor = 200,
        n_contexts: int = 100,
        method: Method = "auto",
        baseline: float | Tensor = 0.0,
        value_fn: Callable[[Tensor, Tensor], Tensor] = log_odds,
        batch_size: int = 1024,
        seed: int = 0,
        max_forwards: int | None = None,
        progress: bool = False,
    ) -> None:
        if method not in get_args(Method):
            raise ValueError(f"`method` must be one of {', '.join(get_args(Method))}, got {method!r}")
        for name, value in (("n_contexts", n_contexts), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        n = players.n_players
        if method == "exact" and n > _LARGEST_EXACT:
            raise ValueError(f"method='exact' takes 2**n passes and at most {_LARGEST_EXACT} players, got n={n}")
        self.model = model
        self.players = players
        self.orders = _checked_orders(orders, n, method)
        self.pairs = _checked_pairs(pairs, n)
        self.n_contexts = n_contexts
        self.baseline = baseline
        self.value_fn = value_fn
        self.batch_size = batch_size
        self.seed = seed
        self.max_forwards = max_forwards
        self.progress = progress
        self._n_pairs = self._count_pairs(method)
        self.method: Method = method
        if method == "auto":
            naive = _FORWARDS * self._n_pairs * n_contexts * len(self.orders)
            self.method = "exact" if n <= _LARGEST_EXACT and 2**n <= naive else "sampled"

    def _count_pairs(self, method: Method) -> int:
        if not isinstance(self.pairs, int):
            return len(self.pairs)
        grid = self.players
        near = method == "paper" and isinstance(grid, PatchGrid)
        candidates = PatchGrid((grid.rows, grid.columns), radius=2) if near and isinstance(grid, PatchGrid) else grid
        return min(self.pairs, len(candidates.candidate_pairs()))

    def estimate_forwards(self, n_samples: int = 1) -> int:
        """How many masked inputs a call will need: exact, but an upper bound for the sampler.

        Args:
            n_samples: B.
        """
        n = self.players.n_players
        if self.method == "exact":
            return int(n_samples * 2**n)
        contexts = [
            self.n_contexts if self.method == "paper" else min(self.n_contexts, math.comb(n - 2, order))
            for order in self.orders
        ]
        naive = _FORWARDS * self._n_pairs * sum(contexts)
        return n_samples * (naive if self.method == "paper" else min(naive, 2**n))

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        ids: Sequence[int] | Tensor | None = None,
        *,
        partial: str | Path | None = None,
    ) -> InteractionResult:
        """Estimate the interactions in some samples.

        Args:
            x: inputs, ``(B, ...)``, on the device of ``model``.
            y: their labels, int64, ``(B,)``.
            ids: of the samples, which decide on their random streams; None for 0 to B - 1.
            partial: a file that keeps finished samples; a call that was cut short goes on from it, with the same
                result as an uninterrupted one. It is refused for another call.

        Returns:
            Interactions and their errors.

        Raises:
            ValueError: lengths differ, a label is no class, the network's output is not finite, the budget is too
                small, or ``partial`` is of another call.
        """
        if len(x) != len(y):
            raise ValueError(f"`x` has {len(x)} samples, but `y` has {len(y)} labels")
        names = list(range(len(x))) if ids is None else [int(each) for each in ids]
        if len(names) != len(x):
            raise ValueError(f"`ids` has {len(names)} entries for {len(x)} samples")
        if not len(x):
            raise ValueError("`x` is empty: there is no sample to explain")
        needed = self.estimate_forwards(len(x))
        if self.max_forwards is not None and needed > self.max_forwards:
            raise ValueError(
                f"this could need {needed:,} masked inputs, more than `max_forwards`={self.max_forwards:,}: lower "
                "`pairs`, `n_contexts`, the number of `orders` or of samples"
            )
        parameter = next(self.model.parameters(), None)
        if parameter is not None and parameter.dtype == torch.bfloat16:
            warnings.warn(
                "the model is in bfloat16: differences of four outputs are wrong by about 30 % there; convert it to "
                "float32 first",
                stacklevel=2,
            )
        file = _PartialFile(partial, self._fingerprint(x, y, names)) if partial is not None else None
        found = {} if file is None else file.read()
        bar = Progress(
            *Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn(),
            disable=not self.progress or getattr(rank_zero_only, "rank", 0) != 0,
        )  # fmt: skip
        with bar, _evaluating(self.model, x.device):
            task = bar.add_task("samples", total=len(x), completed=len(found))
            for place, name in enumerate(names):
                if place in found:
                    continue
                found[place] = self._explain(x[place : place + 1], y[place : place + 1], name)
                if file is not None:
                    file.write(found)
                bar.advance(task)
        return InteractionResult.join([found[place] for place in range(len(names))])

    def _explain(self, x: Tensor, y: Tensor, name: int) -> InteractionResult:
        generator = torch.Generator().manual_seed(_stream(self.seed, name))
        pairs = self._draw_pairs(generator)
        n = self.players.n_players
        if self.method == "exact":
            values = self._values(x, y, name, lambda start, stop: _all_masks(n, start, stop), 2**n)
            everything = exact_interactions(values)[pairs[:, 0], pairs[:, 1]][:, self.orders]  # (P, M)
            contexts = torch.tensor([math.comb(n - 2, order) for order in self.orders]).expand(len(pairs), -1)
            return self._result(everything, torch.zeros_like(everything), contexts, pairs, 2**n)
        plan = self._plan(pairs, generator)
        coalitions, place = plan.coalitions(pairs, generator, reuse=self.method != "paper")
        values = self._values(x, y, name, coalitions.masks, len(coalitions))
        nothing, first, second, both = values[place]  # (E,) each
        estimates, errors, contexts = _average(both - first - second + nothing, plan, len(pairs), len(self.orders))
        return self._result(estimates, errors, contexts, pairs, len(coalitions))

    def _plan(self, pairs: Tensor, generator: torch.Generator) -> sampling.Plan:
        n, contexts = self.players.n_players, self.n_contexts
        parts = []
        for index, order in enumerate(self.orders):
            if self.method == "paper":
                parts.append(sampling.independent(n, pairs, order, index, contexts, generator))
            elif math.comb(n - 2, order) <= contexts:
                parts.append(sampling.enumerated(n, pairs, order, index))
            else:
                parts.append(sampling.blocks(n, pairs, order, index, contexts, generator))
        return sampling.Plan.join(parts)

    def _draw_pairs(self, generator: torch.Generator) -> Tensor:
        if not isinstance(self.pairs, int):
            return self.pairs
        if self.method == "paper" and isinstance(self.players, PatchGrid):
            return sampling.clamped_neighbours(self.players.rows, self.players.columns, self.pairs, generator)
        candidates = self.players.candidate_pairs()
        return candidates[torch.randperm(len(candidates), generator=generator)[: self.pairs]]

    def _values(self, x: Tensor, y: Tensor, name: int, masks: Callable[[int, int], Tensor], number: int) -> Tensor:
        """Values of all coalitions, float64, ``(number,)``, reduced at once: logits of a thousand classes are large."""
        values = []
        for start in range(0, number, self.batch_size):
            keep = masks(start, min(start + self.batch_size, number)).to(x.device)
            logits = self.model(self.players(x, keep, self.baseline))
            if not torch.isfinite(logits).all():
                raise ValueError(f"the model's output for sample {name} is NaN or infinite under some mask")
            values.append(self.value_fn(logits.double(), y.expand(len(keep))))
        return torch.cat(values).cpu()

    def _result(
        self, estimates: Tensor, errors: Tensor, contexts: Tensor, pairs: Tensor, forwards: int
    ) -> InteractionResult:
        return InteractionResult(
            estimates[None], errors[None], contexts[None], pairs[None], self.orders, self.players.n_players, forwards
        )

    def _fingerprint(self, x: Tensor, y: Tensor, names: list[int]) -> str:
        """Of everything that a result depends on."""
        digest = hashlib.sha256()
        pairs = self.pairs if isinstance(self.pairs, int) else self.pairs.tolist()
        settings = (self.method, self.orders, pairs, self.n_contexts, self.seed, self.players.n_players, names)
        digest.update(repr(settings).encode())
        for tensor in (*self.model.state_dict().values(), x, y, torch.as_tensor(self.baseline)):
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


class _PartialFile:
    """Finished samples on disk."""

    def __init__(self, path: str | Path, fingerprint: str) -> None:
        self.path = Path(path)
        self.fingerprint = fingerprint

    def read(self) -> dict[int, InteractionResult]:
        if not self.path.exists():
            return {}
        content = torch.load(self.path, weights_only=True)
        if content["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"{self.path} is of another call: the model, samples or settings differ. Delete it, or pass another "
                "`partial`"
            )
        return {place: InteractionResult(**fields) for place, fields in content["samples"].items()}

    def write(self, found: dict[int, InteractionResult]) -> None:
        samples = {place: vars(result) for place, result in found.items()}
        beside = self.path.with_name(self.path.name + ".new")
        torch.save({"fingerprint": self.fingerprint, "samples": samples}, beside)
        os.replace(beside, self.path)  # a run that is killed meanwhile leaves the old file whole


@contextmanager
def _evaluating(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode, no gradients, full precision; afterwards each submodule's mode is as before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for module, training in modes:
            module.training = training


def _average(differences: Tensor, plan: sampling.Plan, pairs: int, orders: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means over contexts, their standard errors, and the number of contexts, ``(P, M)`` each.

    Contexts of one permutation are dependent, so the error is that of sums over permutations (cluster-robust).
    """
    cell = plan.pair * orders + plan.order
    cells = pairs * orders
    count = torch.bincount(cell, minlength=cells)
    mean = differences.new_zeros(cells).index_add_(0, cell, differences) / count
    clusters = int(plan.cluster.max()) + 2
    cluster, place = torch.unique(cell * clusters + plan.cluster + 1, return_inverse=True)
    sums = differences.new_zeros(len(cluster)).index_add_(0, place, differences - mean[cell])
    owner = cluster // clusters
    number = torch.bincount(owner, minlength=cells).double()
    squares = differences.new_zeros(cells).index_add_(0, owner, sums.square())
    error = (squares * number / (number - 1)).sqrt() / count  # 0/0, so NaN, for one permutation
    complete = torch.zeros(cells, dtype=torch.bool)
    complete[cell[plan.cluster < 0]] = True
    error[complete] = 0.0
    return mean.view(pairs, orders), error.view(pairs, orders), count.view(pairs, orders)


def _all_masks(n: int, start: int, stop: int) -> Tensor:
    return (torch.arange(start, stop)[:, None] >> torch.arange(n)) & 1 == 1


def _stream(seed: int, name: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "big")


def _checked_orders(orders: Sequence[int] | None, n: int, method: Method) -> list[int]:
    if orders is None:
        if method == "paper":
            return [int((n - 2) * ratio) for ratio in PAPER_RATIOS]
        return list(range(n - 1)) if n <= 16 else orders_from_ratios(n)
    for order in orders:
        if not 0 <= order <= n - 2:
            raise ValueError(f"order {order} is outside 0 to {n - 2}, for {n} players")
    if not orders:
        raise ValueError("`orders` is empty")
    return list(orders) if method == "paper" else sorted(set(orders))


def _checked_pairs(pairs: int | str | Tensor, n: int) -> int | Tensor:
    if isinstance(pairs, str):
        if pairs != "all":
            raise ValueError(f"`pairs` must be a number, 'all' or a tensor, got {pairs!r}")
        return torch.combinations(torch.arange(n))
    if isinstance(pairs, Tensor):
        if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs):
            raise ValueError(f"`pairs` must have shape (P, 2), got {tuple(pairs.shape)}")
        for i, j in pairs.tolist():
            if i == j or not (0 <= i < n and 0 <= j < n):
                raise ValueError(f"pair ({i}, {j}) must be of two different players from 0 to {n - 1}")
        return pairs.cpu()
    if pairs < 1:
        raise ValueError(f"`pairs` must be at least 1, got {pairs}")
    return pairs

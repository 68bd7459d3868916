"""Multi-order interactions of any network, exactly or from sampled contexts, within a budget."""

import copy
import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from torch import Tensor, nn

from lit_papers.interactions import inputs, sampling
from lit_papers.interactions.arguments import Method, checked_labels, checked_orders, checked_pairs, sample_names
from lit_papers.interactions.averages import Averages, average
from lit_papers.interactions.checks import whole_number
from lit_papers.interactions.functional import exact_interactions, log_odds
from lit_papers.interactions.outputs import Respond, ValueFunction, call_network, look_like_probabilities, two_logits
from lit_papers.interactions.partial import PartialFile
from lit_papers.interactions.players import PatchGrid, Players
from lit_papers.interactions.result import InteractionResult
from lit_papers.interactions.rounding import Rounding

_LARGEST_EXACT = 24
_FORWARDS = 4  # for a context on its own
PROBES = 12  # masked inputs of a sample that are computed in another precision, or compared with a partial file
_FEWEST_CONTEXTS = 5  # with fewer, errors could not be told
_COUNTED = 4  # samples whose plans are counted while a budget is sought


class MultiOrderInteraction:
    """Estimates the interactions of pairs of players at each order (Deng et al., ICLR 2022, section 2).

    Called on samples, it returns an `InteractionResult`. A sample's result depends on ``seed`` and its id alone, not on
    the batch or process that it is in; global random streams, modes and buffers of ``model`` are as before.

    The sampler is unbiased. It cuts contexts from permutations and lets each serve all pairs that it does not touch,
    which takes fewer passes than contexts of each pair's own; orders with at most ``n_contexts`` contexts are
    enumerated, and equal coalitions are evaluated once. Standard errors know that contexts of one permutation
    depend on each other.

    Args:
        model: a network whose output is, or holds, logits ``(B, C)``, one logit ``(B,)`` of two classes, or whatever
            ``value_fn`` takes; evaluated in eval mode, without autocast.
        players: what the parts of an input are.
        orders: m, from 0 to n - 2; None for all up to 16 players, else the paper's 13 shares of n - 2.
        pairs: so many for each sample, drawn among ``players.candidate_pairs()`` (all, if there are fewer); ``"all"``
            pairs i < j; or pairs themselves, ``(P, 2)``.
        n_contexts: K, contexts for each pair and order; fewer only where no more exist.
        method: ``"exact"`` evaluates all ``2**n`` coalitions (n <= 24); ``"sampled"``; ``"auto"`` is exact where that
            costs no more than four passes a context; ``"paper"`` is the authors' procedure: independent contexts,
            nothing reused, their orders with repeats, on a `PatchGrid` their pairs.
        baseline: replaces absent players; broadcasts against one sample.
        value_fn: from outputs in float64 and labels to values ``(B,)``; None for `functional.log_odds` of the logits,
            `outputs.prediction` for regression.
        respond: from model and masked inputs to what the model returns; None for ``model(inputs)``, with a mapping as
            keywords and a tuple as positional arguments.
        batch_size: masked inputs in a pass.
        seed: of all draws.
        max_forwards: refuse calls that need more masked inputs than this; None for any number.
        seconds: about how long a call may take. The speed of the network is measured first, then contexts, at last
            pairs are reduced until the plan fits; a call that does not fit even so is refused. None for any time.
        progress: show a bar, on the first process.

    Raises:
        ValueError: an argument is out of its range.
        TypeError: a count is no integer.

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
        model: Any,
        players: Players,
        *,
        orders: Sequence[int] | None = None,
        pairs: int | Literal["all"] | Tensor | Sequence[Sequence[int]] = 200,
        n_contexts: int = 100,
        method: Method = "auto",
        baseline: float | Tensor = 0.0,
        value_fn: ValueFunction | None = None,
        respond: Respond | None = None,
        batch_size: int = 1024,
        seed: int = 0,
        max_forwards: int | None = None,
        seconds: float | None = None,
        progress: bool = False,
    ) -> None:
        if method not in get_args(Method):
            raise ValueError(f"`method` must be one of {', '.join(get_args(Method))}, got {method!r}")
        n = players.n_players
        if method == "exact" and n > _LARGEST_EXACT:
            raise ValueError(f"method='exact' takes 2**n passes and at most {_LARGEST_EXACT} players, got n={n}")
        if seconds is not None and not seconds > 0:
            raise ValueError(f"`seconds` must be > 0, got {seconds}")
        self.model = model
        self.players = players
        self.orders = checked_orders(orders, n, method)
        self.pairs = checked_pairs(pairs, n)
        self.n_contexts = whole_number("n_contexts", n_contexts, least=1)
        self.baseline = baseline
        self.value_fn = value_fn
        self.respond = respond
        self.batch_size = whole_number("batch_size", batch_size, least=1)
        self.seed = whole_number("seed", seed, least=0)
        self.max_forwards = None if max_forwards is None else whole_number("max_forwards", max_forwards, least=1)
        self.seconds = seconds
        self.progress = progress
        self._warned = False
        self._may_sample = method != "exact"
        self.method: Method = method
        if method == "auto":
            naive = _FORWARDS * self._n_pairs() * n_contexts * len(self.orders)
            self.method = "exact" if n <= _LARGEST_EXACT and 2**n <= naive else "sampled"

    def _n_pairs(self) -> int:
        if not isinstance(self.pairs, int):
            return len(self.pairs)
        grid = self.players
        if self.method == "paper" and isinstance(grid, PatchGrid):
            grid = PatchGrid((grid.rows, grid.columns), radius=2)
        return min(self.pairs, len(grid.candidate_pairs()))

    def estimate_forwards(self, n_samples: int = 1, ids: Sequence[int] | Tensor | None = None) -> int:
        """How many masked inputs a call needs: what it will use, counted from its plan without the network.

        Not counted are a dozen inputs of each sample in another precision, which tell what rounding does, and another
        dozen with ``partial``.

        Args:
            n_samples: B.
            ids: of the samples, as in the call; None for 0 to B - 1.
        """
        return self._count(sample_names(ids, n_samples))

    def _count(self, names: list[int]) -> int:
        if self.method == "exact":
            return int(len(names) * 2**self.players.n_players)
        if self.method == "paper":
            return len(names) * _FORWARDS * self._n_pairs() * self.n_contexts * len(self.orders)
        return sum(len(self._plan(name)[2]) for name in names)

    def __call__(
        self,
        x: Any,
        y: Tensor,
        ids: Sequence[int] | Tensor | None = None,
        *,
        partial: str | Path | None = None,
    ) -> InteractionResult:
        """Estimate the interactions in some samples.

        Args:
            x: inputs, ``(B, ...)``, on the device of ``model``; a mapping or tuple of them, or a list of graphs, where
                ``players`` take such.
            y: their labels, int64, ``(B,)``; of any kind that ``value_fn`` takes.
            ids: of the samples, which decide on their random streams; None for 0 to B - 1.
            partial: a file that keeps finished samples; a call that was cut short goes on from it, with the same
                result as an uninterrupted one. It is refused for another call.

        Returns:
            Interactions and their errors.

        Raises:
            ValueError: lengths differ, a label is no class, the network's output is not finite or has other rows, the
                budget is too small, or ``partial`` is of another call.
            TypeError: labels are no class indices, or the network's output has no tensor.
        """
        samples = inputs.count(x)
        if isinstance(y, Tensor) and not y.ndim:
            raise ValueError("`y` is a single number, but must have one label for each sample: pass `y[None]`")
        if samples != len(y):
            raise ValueError(f"`x` has {samples} samples, but `y` has {len(y)} labels")
        if not samples:
            raise ValueError("`x` is empty: there is no sample to explain")
        names = sample_names(ids, samples)
        y = checked_labels(y) if self.value_fn is None else y
        if partial is not None and self.seconds is not None:
            raise ValueError("`partial` needs the same contexts in each call: pass `n_contexts` instead of `seconds`")
        if self.max_forwards is not None and (needed := self._count(names)) > self.max_forwards:
            raise ValueError(
                f"this needs {needed:,} masked inputs, more than `max_forwards`={self.max_forwards:,}: lower "
                "`pairs`, `n_contexts`, the number of `orders` or of samples"
            )
        _warn_of_bfloat16(self.model)
        with _evaluating(self.model, inputs.device_of(x)):
            plan = self if self.seconds is None else self._within_seconds(x, y, names)
            return plan._explain_all(x, y, names, partial)

    def _explain_all(self, x: Any, y: Tensor, names: list[int], partial: str | Path | None) -> InteractionResult:
        rounding = Rounding(self.model)
        file = None if partial is None else self._partial_file(partial, x, y, names)
        found = {} if file is None else file.read()
        bar = Progress(
            *Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn(),
            disable=not self.progress or getattr(rank_zero_only, "rank", 0) != 0,
        )  # fmt: skip
        with bar:
            task = bar.add_task("samples", total=len(names), completed=len(found))
            for place, name in enumerate(names):
                if place in found:
                    continue
                found[place] = self._explain(inputs.take(x, place), y[place : place + 1], name, rounding)
                if file is not None:
                    file.write(found)
                bar.advance(task)
        return InteractionResult.join([found[place] for place in range(len(names))])

    def _explain(self, x: Any, y: Tensor, name: int, rounding: Rounding) -> InteractionResult:
        n = self.players.n_players
        if self.method == "exact":
            pairs = self._draw_pairs(torch.Generator().manual_seed(_stream(self.seed, name)))
            values, error = self._measure(x, y, name, lambda start, stop: all_masks(n, start, stop), 2**n, rounding)
            everything = exact_interactions(values)[pairs[:, 0], pairs[:, 1]][:, self.orders]  # (P, M)
            contexts = torch.tensor([math.comb(n - 2, order) for order in self.orders]).expand(len(pairs), -1)
            nothing = torch.zeros_like(everything)
            found = Averages(everything, everything.abs(), nothing, contexts, nothing[0], nothing[0])
            return self._result(found, pairs, error, 2**n)
        pairs, plan, coalitions, place = self._plan(name)
        values, error = self._measure(x, y, name, coalitions.masks, len(coalitions), rounding)
        found = average(values[place], plan, len(pairs), len(self.orders), error)
        return self._result(found, pairs, error, len(coalitions))

    def _result(self, found: Averages, pairs: Tensor, rounding: float, forwards: int) -> InteractionResult:
        return InteractionResult(
            interactions=found.interactions[None],
            cross_fitted=found.cross_fitted[None],
            se=found.error[None],
            order_error=found.order_error[None],
            unseen=found.unseen[None],
            rounding=torch.tensor([rounding], dtype=torch.float64),
            n_contexts=found.contexts[None],
            pairs=pairs[None],
            orders=self.orders,
            n_players=self.players.n_players,
            n_forwards=forwards,
        )

    def _plan(self, name: int) -> tuple[Tensor, sampling.Plan, sampling.Coalitions, Tensor]:
        """Pairs, contexts, coalitions, and where each context finds its four: all that a sample's name decides."""
        generator = torch.Generator().manual_seed(_stream(self.seed, name))
        pairs = self._draw_pairs(generator)
        n, contexts = self.players.n_players, self.n_contexts
        parts = []
        for index, order in enumerate(self.orders):
            if self.method == "paper":
                parts.append(sampling.independent(n, pairs, order, index, contexts, generator))
            elif math.comb(n - 2, order) <= contexts:
                parts.append(sampling.enumerated(n, pairs, order, index))
            else:
                parts.append(sampling.blocks(n, pairs, order, index, contexts, generator))
        plan = sampling.Plan.join(parts)
        return pairs, plan, *plan.coalitions(pairs, generator, reuse=self.method != "paper")

    def _draw_pairs(self, generator: torch.Generator) -> Tensor:
        if not isinstance(self.pairs, int):
            return self.pairs
        if self.method == "paper" and isinstance(self.players, PatchGrid):
            return sampling.clamped_neighbours(self.players.rows, self.players.columns, self.pairs, generator)
        candidates = self.players.candidate_pairs()
        return candidates[torch.randperm(len(candidates), generator=generator)[: self.pairs]]

    def _measure(
        self, x: Any, y: Tensor, name: int, masks: Callable[[int, int], Tensor], number: int, rounding: Rounding
    ) -> tuple[Tensor, float]:
        """Values of all coalitions, float64, ``(number,)``, and what rounding does to a difference of four of them.

        Outputs become values at once: logits of a thousand classes are large.
        """
        values, rounded = [], 0.0
        for start in range(0, number, self.batch_size):
            keep = masks(start, min(start + self.batch_size, number))
            outputs = self._outputs(self.model, self._masked(x, keep))
            found = self._value(outputs, y, len(keep))
            if not torch.isfinite(found).all():  # -inf is what masks a class out
                raise ValueError(f"the model's output for sample {name} is NaN or infinite under some mask")
            if self.value_fn is None and not start and look_like_probabilities(outputs):
                self._warn_of_probabilities()
            if outputs.is_floating_point():
                rounded = max(rounded, self._last_place(outputs, y))
            values.append(found)
        found = torch.cat(values).cpu()
        probes = torch.linspace(0, number - 1, min(number, PROBES)).long().tolist()
        keep = torch.cat([masks(probe, probe + 1) for probe in probes])

        def respond(network: Any, dtype: torch.dtype) -> Tensor:
            outputs = self._outputs(network, inputs.in_precision(self._masked(x, keep), dtype))
            return self._value(outputs, y, len(keep)).cpu()

        return found, rounding.measure(rounded, found[probes], respond)

    def _masked(self, x: Any, keep: Tensor) -> Any:
        return self.players(x, keep.to(inputs.device_of(x)), self.baseline)

    def _outputs(self, network: Any, masked: Any) -> Tensor:
        return call_network(network, masked, self.respond)

    def _value(self, outputs: Tensor, y: Tensor, rows: int) -> Tensor:
        if not outputs.ndim or len(outputs) != rows:
            raise ValueError(
                f"the model's output has shape {tuple(outputs.shape)}, but must have a row for {rows} inputs"
            )
        labels = y.expand(rows, *y.shape[1:])
        if self.value_fn is None:
            return log_odds(two_logits(outputs).double(), labels)
        values = self.value_fn(outputs.double(), labels)
        if values.shape != (rows,):
            raise ValueError(f"`value_fn` must give one value for each of {rows} inputs, got {tuple(values.shape)}")
        return values

    def _last_place(self, outputs: Tensor, y: Tensor) -> float:
        """Unit in the last place of what a value is made of: the logits of classes that are masked out do not count."""
        if self.value_fn is None and len(outputs):
            logits = two_logits(outputs)
            index = y.expand(len(logits))[:, None]
            if bool(((index >= 0) & (index < logits.shape[1])).all()):
                outputs = torch.cat([logits.gather(1, index), logits.scatter(1, index, -math.inf).amax(1, True)])
        return torch.finfo(outputs.dtype).eps * outputs.abs().max().item()

    def _random_masks(self, rows: int) -> Tensor:
        """Coalitions of all sizes, with nobody and everybody among them: bool, ``(rows, n)``."""
        generator = torch.Generator().manual_seed(_stream(self.seed, -1))
        share = torch.linspace(-0.1, 1.1, rows)[:, None]
        return torch.rand(rows, self.players.n_players, generator=generator) < share

    def _warn_of_probabilities(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "the model's outputs look like probabilities, of which log-odds make no sense: let it return logits, "
                "or pass `value_fn`",
                stacklevel=6,
            )

    def _within_seconds(self, x: Any, y: Tensor, names: list[int]) -> "MultiOrderInteraction":
        """This call, or one with fewer contexts and pairs that takes no longer than allowed."""
        assert self.seconds is not None  # noqa: S101
        begin = time.perf_counter()
        speed = self._speed(inputs.take(x, 0), y[:1])
        allowed = int(0.8 * speed * (self.seconds - (time.perf_counter() - begin))) - PROBES * len(names)
        plan = copy.copy(self)
        plan.batch_size = max(1, min(self.batch_size, math.ceil(speed * self.seconds / 20)))
        if plan._count_roughly(names) <= allowed:
            return plan
        if plan.method == "exact" and self._may_sample:
            plan.method = "sampled"
        while plan.method != "exact":
            plan.n_contexts = min(_FEWEST_CONTEXTS, self.n_contexts)
            if plan._count_roughly(names) <= allowed:
                return self._fill(plan, names, allowed)
            if not isinstance(plan.pairs, int) or plan.pairs == 1:
                break
            plan.pairs = plan._n_pairs() // 2 or 1
        needed = plan._count_roughly(names)
        raise ValueError(
            f"`seconds`={self.seconds:g} is enough for {max(allowed, 0):,} masked inputs at {speed:,.0f} a second, but "
            f"{needed:,} are the least: allow more, or measure fewer samples or `orders`"
        )

    def _fill(self, plan: "MultiOrderInteraction", names: list[int], allowed: int) -> "MultiOrderInteraction":
        """Give a plan that fits as many contexts as still fit."""
        low, high = plan.n_contexts, self.n_contexts
        while high > low:
            plan.n_contexts = (low + high + 1) // 2
            low, high = (plan.n_contexts, high) if plan._count_roughly(names) <= allowed else (low, plan.n_contexts - 1)
        plan.n_contexts = low
        warnings.warn(
            f"`seconds`={self.seconds:g} is enough for {plan._n_pairs()} pairs with {low} contexts, instead of "
            f"{self._n_pairs()} with {self.n_contexts}",
            stacklevel=4,
        )
        return plan

    def _count_roughly(self, names: list[int]) -> int:
        counted = names[:_COUNTED] if self.method == "sampled" else names
        return self._count(counted) * len(names) // len(counted)

    def _speed(self, x: Any, y: Tensor) -> float:
        """Masked inputs a second."""
        assert self.seconds is not None  # noqa: S101
        rows, taken = min(4, self.batch_size), 0.0
        self._respond_once(x, y, rows)  # a first call may set things up
        while True:
            begin = time.perf_counter()
            self._respond_once(x, y, rows)
            taken = time.perf_counter() - begin
            if taken > self.seconds / 20 or rows >= self.batch_size:
                return rows / taken
            rows = min(2 * rows, self.batch_size)

    def _respond_once(self, x: Any, y: Tensor, rows: int) -> None:
        outputs = self._outputs(self.model, self._masked(x, self._random_masks(rows)))
        self._value(outputs, y, rows).cpu()  # waits for a GPU

    def _partial_file(self, path: str | Path, x: Any, y: Tensor, names: list[int]) -> PartialFile:
        pairs = self.pairs if isinstance(self.pairs, int) else self.pairs.tolist()
        settings = (self.method, self.orders, pairs, self.n_contexts, self.seed, self.players.n_players, names)
        keep, values, rounded = self._random_masks(PROBES), [], 0.0
        for place in range(len(names)):
            outputs = self._outputs(self.model, self._masked(inputs.take(x, place), keep))
            rounded = max(rounded, self._last_place(outputs, y[place : place + 1]))
            values.append(self._value(outputs, y[place : place + 1], len(keep)).cpu())
        # another thread count or device rounds otherwise, by some units in the last place of each layer
        known = [*inputs.tensors_in(x), y]
        if isinstance(self.model, nn.Module):
            known += list(self.model.parameters())
        return PartialFile(path, settings, known, torch.stack(values), 64 * rounded)


@contextmanager
def _evaluating(model: Any, device: torch.device) -> Iterator[None]:
    """Eval mode, no gradients, full precision; afterwards each submodule's mode is as before."""
    modes = [(module, module.training) for module in model.modules()] if isinstance(model, nn.Module) else []
    for module, _ in modes:
        module.training = False
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for module, training in modes:
            module.training = training


def _warn_of_bfloat16(model: Any) -> None:
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if parameter is not None and parameter.dtype == torch.bfloat16:
        warnings.warn(
            "the model is in bfloat16: differences of four outputs are wrong by about 30 % there; convert it to "
            "float32 first",
            stacklevel=3,
        )


def all_masks(n: int, start: int, stop: int) -> Tensor:
    """Coalitions by their numbers, of which bit k says whether player k is there: bool, ``(stop - start, n)``."""
    return (torch.arange(start, stop)[:, None] >> torch.arange(n)) & 1 == 1


def _stream(seed: int, name: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "big")

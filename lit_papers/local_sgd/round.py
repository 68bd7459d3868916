"""Where one process is in the rounds of local SGD, and what happens to its tensors when one ends."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lit_papers.local_sgd.averaging import Bucket, Groups, group_size, measure_drift, numbers_in
from lit_papers.local_sgd.compression import CompressedMean
from lit_papers.local_sgd.outer import OuterOptimizer, OuterStep


class Due(NamedTuple):
    """What is averaged now: which fragments of the weights, and whether over all processes or this node's."""

    fragments: tuple[int, ...]
    everywhere: bool


class Round:
    """The counters of local SGD, and the averages; it knows tensors and process groups, and no Trainer.

    Args:
        sync_every: B, local steps a round.
        warmup_steps: first steps, in which gradients are averaged instead.
        across_nodes_every: every how many rounds an average spans all nodes.
        fragments: K, parts of the weights that are averaged one after the other within a round.
        compress: ``"bf16"`` to send changes as bfloat16; None to send weights as they are.
        outer_optimizer: steps on the averaged change, each fragment's on its own; None for plain averaging.
        device: that processes communicate from.

    Attributes:
        local_step: steps so far.
        since_sync: steps in the open round.
        n_syncs: averages so far.
        rounds_within_node: rounds since the last average over all nodes.
        steps_apart: by fragment, steps since it was the same on all processes.
        batches_apart: whether there was a batch since; buffers move in batches without a step too.
        models_apart: whether there was a batch since the callbacks' models were the same on all processes.
        track_drift: whether to measure ``drift``.
        drift: see `measure_drift`; of the last average.
    """

    def __init__(
        self,
        *,
        sync_every: int,
        warmup_steps: int = 0,
        across_nodes_every: int = 1,
        fragments: int = 1,
        compress: Literal["bf16"] | None = None,
        outer_optimizer: OuterOptimizer | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.sync_every = sync_every
        self.warmup_steps = warmup_steps
        self.across_nodes_every = across_nodes_every
        self.fragments = fragments
        self.compress = compress
        self.outer_optimizer = outer_optimizer
        self.groups = Groups()
        self.local_step = self.since_sync = self.n_syncs = self.rounds_within_node = 0
        self.steps_apart = [0] * fragments
        self.batches_apart = self.models_apart = False
        self.track_drift = False
        self.drift: Tensor | None = None
        self._bucket = Bucket(device)
        self._sent_before = 0  # by the run that this one resumes
        self._anchors: list[Tensor] = []
        self._outer: list[OuterStep] = []
        self._compressors = [CompressedMean() for _ in range(fragments)] if compress else []

    # -- counting -----------------------------------------------------------------------------------------------------

    @property
    def in_warmup(self) -> bool:
        """Whether gradients are averaged in this step."""
        return self.local_step < self.warmup_steps

    @property
    def weights_apart(self) -> bool:
        """Whether trained weights may differ between processes."""
        return any(self.steps_apart)

    @property
    def bytes_communicated(self) -> int:
        """Payload that this process gave to averages so far."""
        compressed = sum(compressor.bytes_sent for compressor in self._compressors)
        return self._sent_before + self._bucket.bytes_sent + compressed

    def count(self, *, stepped: bool) -> None:
        """One more batch of this process; in the warm-up steps leave weights together."""
        self.batches_apart = self.models_apart = True
        if stepped:
            self.local_step += 1
            if self.local_step > self.warmup_steps:
                self.since_sync += 1
                self.steps_apart = [steps + 1 for steps in self.steps_apart]

    @property
    def everything(self) -> Due:
        """What is averaged where a round ends before its time: all fragments, over all nodes."""
        return Due(tuple(range(self.fragments)), everywhere=True)

    def due(self, *, stepped: bool, over: bool) -> Due | None:
        """What is averaged after this batch.

        Args:
            stepped: whether it had an optimizer step.
            over: whether the round ends here whatever its count.
        """
        if over:
            return self.everything
        ends = [-(-self.sync_every * (part + 1) // self.fragments) for part in range(self.fragments)]
        parts = tuple(part for part, end in enumerate(ends) if self.since_sync == end)
        if self.since_sync >= self.sync_every:  # sync_every may be smaller than in the run that is resumed
            parts = (self.fragments - 1,)
        if not stepped or not parts:
            return None
        return Due(parts, self.across_nodes_every == 1 or self.rounds_within_node + 1 >= self.across_nodes_every)

    # -- averaging ----------------------------------------------------------------------------------------------------

    def begin(self, parameters: Sequence[Tensor]) -> None:
        """Start from weights that all processes share; again at the end of a warm-up."""
        if self.outer_optimizer is None and not self._compressors:
            return
        parts = partition(parameters, self.fragments)
        if not self._anchors:
            self._anchors = [self._bucket.fill(part).clone() for part in parts]
            if self.outer_optimizer is not None:
                self._outer = [OuterStep(self.outer_optimizer, anchor) for anchor in self._anchors]
        for anchor, part in zip(self._anchors, parts, strict=True):
            anchor.detach().copy_(self._bucket.fill(part))

    @property
    def has_begun(self) -> bool:
        """Whether `begin` was called, or a state loaded."""
        return bool(self._anchors)

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace gradients by their mean over all processes."""

        def mean(flat: Tensor) -> None:
            self._mean(flat, flat.numel(), everywhere=True)

        self._bucket.average_gradients(parameters, mean)

    def numbers(self, parameters: Sequence[Tensor], due: Due) -> int:
        """How many numbers of the trained weights are averaged."""
        parts = partition(parameters, self.fragments)
        return sum(numbers_in(parts[part]) for part in due.fragments)

    def end(
        self, parameters: Sequence[Tensor], due: Due, *, alike: Sequence[Tensor] = (), others: Sequence[Tensor] = ()
    ) -> None:
        """Average what is due in place and count the round.

        Args:
            parameters: all trained weights.
            due: from `due`.
            alike: what else is averaged at the end of a round and is, like weights, the same within a node that
                trains as one: optimizer state, teachers.
            others: what else is averaged at the end of a round, and differs within a node too: buffers.

        Raises:
            RuntimeError: parameters joined or left the optimizers since the anchors were set.
        """
        parts = partition(parameters, self.fragments)
        drift = torch.zeros(2, dtype=torch.float64)
        for part in due.fragments:
            with_rest = part == self.fragments - 1
            drift = drift + self._average_part(
                part, parts[part], [*alike] if with_rest else [], [*others] if with_rest else [], due.everywhere
            ).to(drift)
            if due.everywhere:
                self.steps_apart[part] = 0
        if self.track_drift:
            self.drift = drift
        self.n_syncs += 1
        if self.fragments - 1 in due.fragments:
            self.since_sync = 0
            if due.everywhere:
                self.batches_apart = False
        self.rounds_within_node = 0 if due.everywhere else self.rounds_within_node + 1

    def average_in_place(self, alike: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        """Average over all processes without ending a round: for evaluation, checkpoints and the end."""
        tensors = [*alike, *others]
        if tensors:
            flat = self._bucket.fill(tensors)
            self._mean(flat, numbers_in(alike), everywhere=True)
            self._bucket.spread(tensors, flat)

    def _average_part(
        self, part: int, weights: list[Tensor], alike: list[Tensor], others: list[Tensor], everywhere: bool
    ) -> Tensor:
        tensors = [*weights, *alike, *others]
        flat = self._bucket.fill(tensors)
        own, rest = flat[: numbers_in(weights)], flat[numbers_in(weights) :]
        anchor = self._anchor(part, own)
        if anchor is not None and self._compressors and group_size() > 1:
            own.sub_(anchor)
            self._mean_of_change(own, part)
            own.add_(anchor)
            self._mean(rest, numbers_in(alike), everywhere)
        else:
            self._mean(flat, numbers_in([*weights, *alike]), everywhere)
        group = None if everywhere else self.groups.node
        drift = measure_drift(weights, own, group) if self.track_drift else torch.zeros(2)
        if self._outer and everywhere:
            self._outer[part].step(own)
        elif anchor is not None:
            anchor.copy_(own)
        self._bucket.spread(tensors, flat)
        return drift

    def _anchor(self, part: int, weights: Tensor) -> Tensor | None:
        if not self._anchors:
            return None
        anchor = self._anchors[part].detach()
        if anchor.shape != weights.shape:
            raise RuntimeError(
                f"outer_optimizer and compress follow {anchor.numel()} trained numbers, now there are "
                f"{weights.numel()}: parameters cannot join or leave the optimizers during the fit"
            )
        return anchor

    @property
    def _nodes_are_one(self) -> bool:
        """Whether the processes of a node hold the same weights, as each averages gradients within it."""
        return self.groups.across is not None and self.across_nodes_every == 1

    def _mean(self, flat: Tensor, alike: int, everywhere: bool) -> None:
        """``alike``: how many first numbers are the same within a node."""
        if self._nodes_are_one:
            if alike:
                self._bucket.mean_over_nodes(flat[:alike], self.groups)
            self._bucket.mean(flat[alike:])
        else:
            self._bucket.mean(flat, None if everywhere else self.groups.node)

    def _mean_of_change(self, change: Tensor, part: int) -> None:
        compressor = self._compressors[part]
        if self._nodes_are_one:
            self._bucket.mean_over_nodes(change, self.groups, lambda share: compressor(share, self.groups.across))
        else:
            compressor(change)

    # -- saving -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What is the same on all processes: counters, the outer optimizers, anchors where weights do not tell them."""
        return {
            "local_step": self.local_step,
            "since_sync": self.since_sync,
            "n_syncs": self.n_syncs,
            "rounds_within_node": self.rounds_within_node,
            "steps_apart": list(self.steps_apart),
            "batches_apart": self.batches_apart,
            "models_apart": self.models_apart,
            "bytes_communicated": self.bytes_communicated,
            "outer": [outer.optimizer.state_dict() for outer in self._outer],
        }

    def anchors(self, parameters: Sequence[Tensor]) -> list[Tensor | None]:
        """By fragment, what a round started from; None where the weights are still that."""
        if not self._anchors:
            return []
        parts = partition(parameters, self.fragments)
        kept = [
            apart > 0 or not torch.equal(self._bucket.fill(part), anchor.detach())
            for part, anchor, apart in zip(parts, self._anchors, self.steps_apart, strict=True)
        ]
        return [anchor.detach().cpu() if keep else None for anchor, keep in zip(self._anchors, kept, strict=True)]

    def own_state(self) -> dict[str, Tensor]:
        """What this process alone knows: what its compression owes."""
        found = [(part, each) for part, compressor in enumerate(self._compressors) for each in compressor.state()]
        return {f"{part}.{name}": tensor for part, (name, tensor) in found}

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        """Go on owing what `own_state` said."""
        for key, tensor in state.items():
            part, name = key.split(".")
            setattr(self._compressors[int(part)], name, tensor.clone())

    def load_counters(self, state: dict[str, Any], *, same_ranks: bool) -> None:
        """Go on counting; with another number of processes a new round begins."""
        self.local_step, self.n_syncs = state["local_step"], state["n_syncs"]
        self._sent_before = state["bytes_communicated"] - (self.bytes_communicated - self._sent_before)
        self.since_sync = self.rounds_within_node = 0
        self.steps_apart = [0] * self.fragments
        self.batches_apart = self.models_apart = False
        if same_ranks:
            self.since_sync, self.rounds_within_node = state["since_sync"], state["rounds_within_node"]
            self.batches_apart, self.models_apart = state["batches_apart"], state["models_apart"]
            apart = state["steps_apart"]
            self.steps_apart = list(apart) if len(apart) == self.fragments else [max(apart)] * self.fragments

    def load_anchors(
        self, parameters: Sequence[Tensor], anchors: Sequence[Tensor | None], outer: Sequence[dict[str, Any]]
    ) -> None:
        """Set the anchors, before this process' own weights replace the average in ``parameters``."""
        self._anchors, self._outer = [], []
        self.begin(parameters)
        for anchor, saved in zip(self._anchors, anchors, strict=False):
            if saved is not None:
                self._check(anchor, saved)
                anchor.detach().copy_(saved)
        for step, state in zip(self._outer, outer, strict=False):
            step.optimizer.load_state_dict(state)

    def _check(self, anchor: Tensor, saved: Tensor) -> None:
        if anchor.shape != saved.shape:
            raise RuntimeError(
                f"the checkpoint's outer_optimizer or compress follows {saved.numel()} trained numbers, now there are "
                f"{anchor.numel()}"
            )


def partition(tensors: Sequence[Tensor], parts: int) -> list[list[Tensor]]:
    """Cut a list of tensors into consecutive parts of about as many numbers each.

    Raises:
        RuntimeError: a part would be empty.

    >>> [[len(tensor) for tensor in part] for part in partition([torch.zeros(n) for n in (2, 2, 3, 1, 4)], 3)]
    [[2, 2], [3, 1], [4]]
    """
    if parts == 1:
        return [list(tensors)]
    found: list[list[Tensor]] = [[] for _ in range(parts)]
    total, before = numbers_in(tensors), 0
    for tensor in tensors:
        numbers = numbers_in([tensor])
        found[min(parts - 1, (2 * before + numbers) * parts // max(1, 2 * total))].append(tensor)
        before += numbers
    if not all(found):
        raise RuntimeError(
            f"fragments={parts} are more than {len(tensors)} trained tensors of {total} numbers can be cut into "
            "evenly: take fewer"
        )
    return found

"""Which orders of interaction a classifier encodes, at one moment."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_papers.interactions import figures
from lit_papers.interactions.checks import whole_number
from lit_papers.interactions.estimator import MultiOrderInteraction
from lit_papers.interactions.outputs import Respond, call_network, place_of, two_logits
from lit_papers.interactions.players import Players
from lit_papers.interactions.samples import READ, balanced, labelled
from lit_papers.interactions.strength import Magnitudes, jackknife_error, strength_curve
from lit_papers.lens import Lens, Moment, NotApplicable, Numbers, Subject, unpack_batch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MIDDLE = 0.25  # orders so near to half of n - 2, as a share of it, are the middle ones


class Samples(NamedTuple):
    """What is measured in a whole fit.

    Attributes:
        x: inputs, ``(B, ...)``.
        y: class indices, int64, ``(B,)``.
        place: of the logits among several outputs of the network; None where they can be told.
    """

    x: Tensor
    y: Tensor
    place: Any


class InteractionLens(Lens):
    r"""Relative strength J of each order of interaction (Deng et al., ICLR 2022, section 3), with bands for noise.

    The samples are drawn from all over the data under a fixed seed, and balanced over their classes: data in folders
    lie class by class.

    Args:
        players: what is masked: patches of images, features of a table, tokens, ...
        n_samples: how many samples; a ``fast_dev_run`` takes one, right or wrong.
        only_correct: leave out samples that the network misclassifies, as the paper does (not before training).
        respond: from (network, masked inputs) to logits ``(N, C)``; None calls the network's ``forward``. Of several
            outputs it takes those that the network's own ``validation_step`` or ``training_step`` takes for logits.
        seed: of samples, pairs and contexts.
        estimator: further arguments of `lit_papers.interactions.estimator.MultiOrderInteraction`.

    Raises:
        ValueError: an argument is out of range.
        TypeError: a count is no integer.
    """

    name = "interactions"
    reads = "validation"

    def __init__(
        self,
        players: Players,
        n_samples: int = 50,
        only_correct: bool = True,
        respond: Respond | None = None,
        seed: int = 0,
        **estimator: Any,
    ) -> None:
        self.players = players
        self.n_samples = whole_number("n_samples", n_samples, least=1)
        self.only_correct = only_correct
        self.respond = respond
        self.seed = seed
        self.estimator = estimator
        self.n_forwards = 0

    def check(self, subject: Subject) -> Samples:
        """Read and choose the samples, and see that estimator and network take what they get."""
        self._estimator(subject.network)
        wanted = 1 if subject.trial else self.n_samples
        logits, place = self._first_logits(subject, subject.rows(1, wanted="samples")[0])
        distinct = min(logits.shape[1], wanted)
        x, targets = subject.rows(READ * wanted, wanted="samples", scatter=self.seed, distinct=distinct)
        x, y = labelled(x, targets, logits.shape[1])
        chosen = balanced(y, wanted, self.seed).to(y.device)
        self._first_logits(subject, self._masked_once(x[chosen[:1]]), place)
        return Samples(x[chosen], y[chosen], place)

    def look(self, moment: Moment, prepared: Samples, history: Sequence[Mapping[str, Any]]) -> Numbers:
        """Strength of each order, over the samples of all processes.

        Raises:
            ValueError: the logits are not finite, or no sample is classified correctly.
        """
        x, y, place = prepared
        processes, subject = moment.processes, moment.subject
        orders = self._estimator(subject.network).orders
        shares = torch.zeros(len(y), len(Magnitudes._fields), len(orders), dtype=torch.float64)  # a row a sample
        counts = torch.zeros(2, dtype=torch.float64)  # not finite, forwards
        with processes.same_fate(), moment.network() as network, torch.autocast(x.device.type, enabled=False):
            estimator = self._estimator(network, place)
            ids = torch.arange(processes.rank, len(y), processes.size, device=y.device)
            every = moment.untrained or subject.trial or not self.only_correct
            ids, finite = self._chosen(network, prepared, ids, every, estimator.batch_size)
            counts[0] = not finite
            if len(ids) and finite:
                result = estimator(x[ids], y[ids], ids.tolist())
                shares[ids.cpu()] = torch.stack(result.magnitudes, dim=1)
                counts[1] = result.n_forwards
        broken, forwards = processes.sum(counts).tolist()
        shares = processes.sum(shares)
        self.n_forwards += int(forwards)
        if broken:
            raise ValueError("the logits are not finite (NaN or infinite)")
        measured = shares[shares[:, Magnitudes._fields.index("number")].any(1)]
        if not len(measured):
            raise ValueError("no sample is classified correctly")
        return self._numbers(orders, Magnitudes(*measured.unbind(1)), float(forwards))

    def unknown(self, prepared: Samples) -> Numbers:
        """NaN for every order."""
        orders = self._estimator(nn.Identity()).orders
        nothing = torch.full((1, len(orders)), math.nan, dtype=torch.float64)
        return self._numbers(orders, Magnitudes(*[nothing] * len(Magnitudes._fields)), math.nan) | {
            "n_samples": math.nan
        }

    def figure(self, history: Sequence[Mapping[str, Any]]) -> "Figure":
        """J against order, S against order (log), and J as a map of orders by measured epochs."""
        return figures.strength(history, self.players.n_players)

    def _numbers(self, orders: list[int], rows: Magnitudes, forwards: float) -> Numbers:
        curve = strength_curve(rows)
        largest = max(1, self.players.n_players - 2)
        place = torch.tensor(orders, dtype=torch.float64)
        centroid, samples = _centroid(place / largest, curve.relative_strength), len(rows.number)
        without = [
            _centroid(place / largest, strength_curve(Magnitudes(*(part[kept] for part in rows))).relative_strength)
            for kept in (~torch.eye(samples, dtype=torch.bool) if samples > 1 else ())
        ]
        error = jackknife_error(torch.stack(without)) if without else torch.tensor(math.nan)
        middle = ~curve.relative_strength.isnan() & ((place / largest - 0.5).abs() <= _MIDDLE)
        by_order: Numbers = {}
        for key, values in (("J", curve.relative_strength), ("S", curve.strength), ("floor", curve.noise_floor)):
            by_order |= {f"{key}/m{m}": value for m, value in zip(orders, values.tolist(), strict=True)}
        return {
            "orders": place.tolist(),
            "strength": curve.strength.tolist(),
            "strength_low": curve.strength_band[0].tolist(),
            "strength_high": curve.strength_band[1].tolist(),
            "strength_error": curve.strength_error.tolist(),
            "relative_strength": curve.relative_strength.tolist(),
            "relative_low": curve.relative_band[0].tolist(),
            "relative_high": curve.relative_band[1].tolist(),
            "relative_error": curve.relative_error.tolist(),
            "noise_floor": curve.noise_floor.tolist(),
            **by_order,
            "J_centroid": centroid.item(),
            "J_middle": curve.relative_strength[middle].mean().item(),
            "J_centroid_error": error.item(),
            "n_samples": float(len(rows.number)),
            "n_forwards": forwards,
        }

    def _estimator(self, model: nn.Module, place: Any = None) -> MultiOrderInteraction:
        respond = functools.partial(self._logits, place=place)
        return MultiOrderInteraction(model, self.players, seed=self.seed, respond=respond, **self.estimator)

    def _logits(self, network: nn.Module, x: Any, place: Any = None) -> Tensor:
        return two_logits(call_network(network, x, self.respond, place))

    def _masked_once(self, x: Tensor) -> Any:
        """A sample without its players and with all of them: players and baseline must be those of such samples."""
        keep = torch.tensor([[False], [True]], device=x.device).expand(2, self.players.n_players)
        try:
            masked = self.players(x, keep, self.estimator.get("baseline", 0.0))
        except Exception as error:  # players may be a stranger's too
            raise NotApplicable(f"`players` or `baseline` do not fit the samples: {error}") from error
        if isinstance(masked, Tensor) and masked.shape[1:] != x.shape[1:]:
            raise NotApplicable(
                f"`players` or `baseline` do not fit the samples: of one {tuple(x.shape[1:])} they make "
                f"{tuple(masked.shape[1:])}"
            )
        return masked

    def _first_logits(self, subject: Subject, x: Any, place: Any = None) -> tuple[Tensor, Any]:
        """Logits of some samples, and their place among several outputs."""
        with subject.quiet(), subject.twin() as network, subject.precision():
            try:
                try:
                    return self._logits(network, x, place), place
                except TypeError:  # no tensor, or several
                    place = self._place_by_route(subject, network)
                    if place is None:
                        raise
                    return self._logits(network, x, place), place
            except Exception as error:  # whatever a stranger's code raises
                raise NotApplicable(
                    f"`forward` of {type(network).__name__} does not answer an input with logits ({error}): pass "
                    "`respond`, a function from (module, masked inputs) to logits"
                ) from error

    def _place_by_route(self, subject: Subject, network: nn.Module) -> Any:
        """Which of several outputs the network's own step takes for logits; None where it does not say."""
        if self.respond is not None:
            return None
        try:
            seen = subject.first_seen()
        except (ValueError, TypeError):  # no step, or one that nothing can be told from
            return None
        inputs, _ = (subject.unpack or unpack_batch)(seen.batch)
        return place_of(network(inputs), seen.outputs)

    def _chosen(
        self, network: nn.Module, samples: Samples, ids: Tensor, every: bool, batch_size: int
    ) -> tuple[Tensor, bool]:
        """Which samples to measure, and whether their logits are finite."""
        if not len(ids):
            return ids, True
        logits = torch.cat(
            [self._logits(network, samples.x[part], samples.place) for part in torch.split(ids, batch_size)]
        )
        finite = not bool((logits.isnan() | logits.isposinf()).any())  # -inf is what masks a class out
        return (ids if every else ids[logits.argmax(dim=1) == samples.y[ids]]), finite


def _centroid(place: Tensor, relative: Tensor) -> Tensor:
    """Of the orders that are resolved, in [0, 1]; NaN where none is."""
    known = ~relative.isnan()
    return (place * relative)[known].sum() / relative[known].sum()

"""How the logits of a stranger's network are got from a batch, and the features that they are made of."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from lit_papers.lens.batches import Unpack, belongs_to, class_indices, follows_from, tensors_in, unpack_batch
from lit_papers.lens.linears import LinearCall, is_affine, linear_calls, linear_layers, maker_of
from lit_papers.lens.losses import EnoughSeen, LossWatch
from lit_papers.lens.refusal import NotApplicable

Call = Callable[[Any, Any], tuple[Any, Any]]
Kind = Literal["call", "validation_step", "training_step", "forward"]


@dataclass(frozen=True)
class Route:
    """A way through a network that was found once and can be gone again.

    Attributes:
        kind: what is called.
        head: dotted path of the last ``nn.Linear``; its output is what the route calls logits.
        turn: which of the head's calls it is, from 0, where it is called several times.
        loss: which of the known losses that a step calls has the targets; None where targets come from elsewhere.
        ignore_index: class index of samples that this loss leaves out.
        classes: rows of the head's weight.
        features: its columns; a lazy layer of the network itself does not know them yet.
    """

    kind: Kind
    head: str
    turn: int
    loss: int | None
    ignore_index: int | None
    classes: int
    features: int


@dataclass(frozen=True)
class Seen:
    """What one batch showed.

    Attributes:
        features: input of the head, ``(N, d)``.
        outputs: logits ``(N, C)``, as the head made them.
        targets: class indices, int64 ``(N,)``.
        batch: as the module got it.
        layers: output of each layer that was asked for besides, by dotted path.
    """

    features: Tensor
    outputs: Tensor
    targets: Tensor
    batch: Any
    layers: dict[str, Tensor]


@dataclass(frozen=True)
class _Sight:
    """Outputs beside targets, as a call showed them."""

    outputs: Tensor
    targets: Any
    loss: int | None = None
    ignore_index: int | None = None


def find_route(
    network: nn.Module, batch: Any, *, call: Call | None, unpack: Unpack | None, classifier: str | None
) -> Route:
    """Try ``call``; else the module's ``validation_step``, its ``training_step``, and ``forward``: the first that fits.

    A route fits if its targets belong to the batch or are its labels renumbered, if batch, features and targets have
    as many rows, and if the outputs are W h + b of one linear layer. A given ``unpack`` says how ``forward`` is called,
    and so goes first.

    Args:
        network: the evaluation copy.
        batch: a batch as the module gets it.
        call: from (module, batch) to (logits, targets).
        unpack: from a batch to (argument of ``forward``, targets).
        classifier: dotted path of the head, or None to find it.

    Raises:
        NotApplicable: none fits, or one fits in several ways; the message has what was tried, and what to pass.
        TypeError: ``unpack`` or the batch is of an unknown kind.
    """
    if call is not None:
        kinds: list[Kind] = ["call"]
    elif unpack is not None:
        kinds = ["forward"]
    else:
        steps: list[Kind] = ["validation_step", "training_step"]
        kinds = [kind for kind in steps if isinstance(network, LightningModule) and is_overridden(kind, network)]
        kinds.append("forward")
    tried: list[str] = []
    renumbers: Kind | None = None
    for kind in kinds:
        if kind == "forward" and unpack is None and renumbers is not None:
            tried.append(f"forward goes with the labels of the batch, which {renumbers} renumbers")
            continue
        try:
            with linear_calls(network) as linears, LossWatch() as watch:
                sights = _sights(kind, network, batch, call, unpack, watch)
        except Exception as error:  # whatever a stranger's code raises where no trainer trains it
            if kind in ("call", "forward") and (call is not None or unpack is not None):
                raise
            tried.append(f"{kind} raised {type(error).__name__}: {error}")
            continue
        route = _choose(kind, network, linears, sights, watch, batch, classifier, tried)
        if route is not None:
            return route
        if kind in ("validation_step", "training_step") and _renumbered(sights, batch):
            renumbers = kind
    raise NotApplicable(
        f"cannot tell which linear layer of {type(network).__name__} makes the logits that belong to the classes of a "
        f"batch ({'; '.join(tried)}). Pass `call`, a function from (module, batch) to (logits, class indices), or name "
        f"the last layer with `classifier`; its linear layers: {', '.join(linear_layers(network)) or 'none'}"
    )


def follow(
    route: Route, network: nn.Module, batch: Any, *, call: Call | None, unpack: Unpack | None, layers: tuple[str, ...]
) -> Seen:
    """Go a route again.

    Raises:
        ValueError: this time the targets do not belong to the batch, or a target is no class; the message names what
            to pass.
    """
    inside: dict[str, Tensor] = {}
    hooks = [network.get_submodule(name).register_forward_hook(_keeper(inside, name)) for name in layers]
    try:
        with linear_calls(network, only=route.head) as linears, LossWatch(enough=route.loss) as watch:
            sights = _sights(route.kind, network, batch, call, unpack, watch)
    finally:
        for hook in hooks:
            hook.remove()
    sight = next((sight for sight in sights if sight.loss == route.loss), None)
    if sight is None or len(linears) <= route.turn:
        raise ValueError(f"{route.kind} no longer calls {route.head!r} and the loss that it did; pass `call`")
    in_batch = tensors_in(batch)
    known = route.loss is None or belongs_to(sight.targets, in_batch)
    if not known and not follows_from(sight.targets, in_batch, sure=False):
        raise ValueError(f"the targets of {route.kind} no longer are those of the batch; pass `call`")
    return _seen(linears[route.turn], sight, batch, inside)


def _seen(linear: LinearCall, sight: _Sight, batch: Any, inside: dict[str, Tensor]) -> Seen:
    classes = int(linear.layer.weight.shape[0])
    targets = class_indices(sight.targets, classes)
    features, outputs = linear.features, linear.values
    if len(targets) != len(features):
        raise ValueError(f"{len(features)} rows of features for {len(targets)} targets; pass `call`")
    if sight.ignore_index is not None:
        kept = targets != sight.ignore_index
        if not bool(kept.all()):
            features, outputs, targets = features[kept], outputs[kept], targets[kept]
            inside = {name: value[kept] for name, value in inside.items()}
    outside = targets[(targets < 0) | (targets >= classes)]
    if len(outside):
        raise NotApplicable(
            f"a target is {int(outside[0])}, outside [0, {classes}); pass `unpack` or `call` that leaves such samples "
            "out, or a `dataloader` without them"
        )
    return Seen(features, outputs, targets, batch, inside)


def _sights(
    kind: Kind, network: nn.Module, batch: Any, call: Call | None, unpack: Unpack | None, watch: LossWatch
) -> list[_Sight]:
    """Run a call, and pair the outputs that it shows with targets."""
    if kind == "call":
        assert call is not None  # noqa: S101
        pair = call(network, batch)
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], Tensor)):
            raise NotApplicable(f"`call` must return a pair (logits, class indices), got {type(pair).__name__}")
        return [_Sight(*pair)]
    if kind == "forward":
        inputs, targets = (unpack or unpack_batch)(batch)
        returned = tensors_in(network(inputs))
        return [_Sight(tensor, targets) for tensor in returned if tensor.is_floating_point()]
    step = getattr(network, kind)
    try:
        step(*step_arguments(step, batch))
    except EnoughSeen:
        pass
    except Exception:  # after its loss a step may do what cannot be done here, such as loss.backward()
        if not watch.calls:
            raise
    return [
        _Sight(found.outputs, found.targets, index, found.ignore_index)
        for index, found in enumerate(watch.calls)
        if isinstance(found.outputs, Tensor) and isinstance(found.targets, Tensor)
    ]


def step_arguments(step: Callable[..., Any], batch: Any) -> list[Any]:
    """The batch, and 0 for its index if the step takes one."""
    return [batch, 0, 0][: _places(getattr(step, "__func__", step), bound=hasattr(step, "__func__"))]


@functools.lru_cache(maxsize=64)
def _places(step: Callable[..., Any], bound: bool) -> int:
    """How many of (batch, index of the batch, index of the loader) a step takes by position."""
    places = [p for p in inspect.signature(step).parameters.values() if p.kind is not p.KEYWORD_ONLY][bound:]
    variadic = any(place.kind is place.VAR_POSITIONAL for place in places)
    required = sum(place.default is place.empty and place.kind is not place.VAR_KEYWORD for place in places)
    return 2 if variadic else max(1, min(3, required))


def _choose(
    kind: Kind,
    network: nn.Module,
    linears: list[LinearCall],
    sights: list[_Sight],
    watch: LossWatch,
    batch: Any,
    classifier: str | None,
    tried: list[str],
) -> Route | None:
    """The one way in which a call shows logits beside the classes of the batch; None, and why, if there is none."""
    if kind in ("validation_step", "training_step"):
        in_batch = tensors_in(batch)
        fitting = [sight for sight in sights if belongs_to(sight.targets, in_batch)] or [
            sight for sight in sights if follows_from(sight.targets, in_batch)
        ]
        if not fitting:
            tried.append(f"{kind} shows no known loss" if not sights else f"no loss of {kind} has the batch's targets")
            return None
        sights = fitting
    wanted = [linear for linear in linears if classifier in (None, linear.name)]
    if classifier is not None and not wanted:
        tried.append(f"{kind} does not use classifier={classifier!r}")
        return None
    found: dict[tuple[str, int], tuple[LinearCall, _Sight]] = {}
    changed = None
    for sight in sights:
        linear = maker_of(watch.origin(sight.outputs), wanted)
        if linear is not None and is_affine(linear, watch.origin(sight.outputs)):
            found.setdefault((linear.name, linear.turn), (linear, sight))
        elif linear is not None:
            changed = linear.name
    if not found and classifier is not None and sights:
        # named by hand: its own output, whatever is done with it afterwards, beside targets that no other head has
        left = [sight for sight in sights if maker_of(watch.origin(sight.outputs), linears) is None] or sights
        if any(not _same(sight.targets, left[0].targets) for sight in left):
            raise NotApplicable(
                f"{kind} of {type(network).__name__} has several targets, and the output of classifier={classifier!r} "
                "is changed before it meets its own: pass `call`, a function from (module, batch) to (logits, class "
                "indices)"
            )
        found = {(linear.name, linear.turn): (linear, left[0]) for linear in wanted}
        if any(_decides_otherwise(linear, watch.origin(left[0].outputs)) for linear in wanted):
            rank_zero_warn(
                f"{type(network).__name__} decides otherwise than the output of classifier={classifier!r} alone (an "
                "adapter beside it?): errors are of that output"
            )
    if kind == "call" and len(found) > 1:
        found = dict([next(iter(found.items()))])  # twins of equal values
    fits = {key: pair for key, pair in found.items() if _rows(pair[0].features) == _rows(pair[1].targets)}
    if len(fits) > 1:
        names = ", ".join(f"{name!r}" + (f" (call {turn + 1})" if turn else "") for name, turn in fits)
        raise NotApplicable(
            f"{kind} of {type(network).__name__} shows several outputs that may be the logits, of the linear layers "
            f"{names}; name one with `classifier`, or pass `call`, a function from (module, batch) to (logits, class "
            "indices)"
        )
    if not fits:
        tried.append(_why_not(kind, found, changed, sights))
        return None
    ((linear, sight),) = fits.values()
    if linear.layer.weight.shape[0] < 2:
        raise NotApplicable(
            f"{linear.name!r} yields one logit, and needed is one for each class; pass `call`, a function from "
            "(module, batch) to (logits, class indices), of a network with two outputs"
        )
    _seen(linear, sight, batch, {})  # refuses what is no class
    classes, features = linear.layer.weight.shape
    return Route(kind, linear.name, linear.turn, sight.loss, sight.ignore_index, classes, features)


def _renumbered(sights: list[_Sight], batch: Any) -> bool:
    """Whether a step compares with other classes than those that the batch has, made of them."""
    in_batch = tensors_in(batch)
    return not any(belongs_to(sight.targets, in_batch) for sight in sights) and any(
        follows_from(sight.targets, in_batch) for sight in sights
    )


def _decides_otherwise(linear: LinearCall, outputs: Tensor) -> bool:
    alike = outputs.ndim == 2 and outputs.shape == linear.values.shape
    return alike and not torch.equal(outputs.argmax(1), linear.values.argmax(1))


def _same(targets: Any, others: Any) -> bool:
    if isinstance(targets, Tensor) and isinstance(others, Tensor):
        return targets.shape == others.shape and bool((targets == others).all())
    return targets is others


def _why_not(
    kind: Kind, found: dict[tuple[str, int], tuple[LinearCall, _Sight]], changed: str | None, sights: list[_Sight]
) -> str:
    for linear, sight in found.values():
        if linear.features.ndim != 2:
            return f"{kind}: the logits must be (N, C), but {linear.name!r} yields {tuple(linear.values.shape)}"
        return f"{kind}: {_rows(linear.features)} rows of features for {_rows(sight.targets)} targets"
    if changed is not None:
        return f"{kind}: the output of {changed!r} is changed before it is used, so it is not W h + b"
    shapes = ", ".join(str(tuple(sight.outputs.shape)) for sight in sights) or "nothing"
    return f"{kind} shows {shapes}, which no nn.Linear makes (a convolution or cosine head must be one to be measured)"


def _rows(value: Any) -> int | None:
    """Rows of features (N, d), or of targets (N,), (N, 1) or (N, C)."""
    return len(value) if isinstance(value, Tensor) and value.ndim in (1, 2) else None


def _keeper(inside: dict[str, Tensor], name: str) -> Callable[..., None]:
    def keep(layer: nn.Module, arguments: Any, output: Any) -> None:
        tensors = tensors_in(output)
        if not tensors:
            raise ValueError(f"layer {name!r} returns no tensor")
        inside[name] = tensors[0].detach().clone()  # an in-place layer behind it may change it

    return keep

"""Learnable strides for networks that somebody else wrote."""

import copy
import difflib
import itertools
from collections.abc import Callable, Iterable, Sequence

import sympy
import torch
from torch import Tensor, nn

from lit_papers.diffstride.calls import MapSize
from lit_papers.diffstride.destrided import (
    accept_original_checkpoints,
    called_strides,
    make_fit,
    make_strides_learnable,
    record_input_size,
    record_output_size,
)
from lit_papers.diffstride.following import CannotFollowError, Event, Trail, follow
from lit_papers.diffstride.functional import Variant
from lit_papers.diffstride.layers import DiffStride, DiffStride1d, DiffStride2d, DiffStride3d

Choice = Iterable[str] | Callable[[str], bool]


def convert_strides(
    model: nn.Module,
    example: Tensor,
    *,
    include: Choice | None = None,
    exclude: Choice = (),
    smoothness: float = 4.0,
    variant: Variant = "symmetric",
) -> nn.Module:
    """A copy of a convolutional network in which every stride is learnable.

    Each convolution, max and average pooling in one to three dimensions with a stride above 1, as a layer or as a call
    in the network's code, runs at stride 1 and is followed by a `DiffStride2d` (1d, 3d) that begins at that stride.
    Maps that meet, however, must have the same size: their strides are shared, as in the paper's residual blocks;
    and maps that are enlarged again, as in the decoder of a U-Net, take the size of what they meet. Which these are is
    found by running the network with unknown sizes, and tried by running it at other strides.

    All weights are kept, with their names: the copy loads checkpoints of the original. The outputs are new ones, as
    maps have n/S + 2R points now: train on. A stem at full resolution is most of the cost: ``exclude`` it to keep it.

    Args:
        model: the network; it is not changed.
        example: an input ``(N, C, *size)`` that it takes.
        include: names of layers or of modules around them (``"layer3"``), or a predicate of a layer's name; None for
            all. A call is named after the module that makes it, ``"mixed6a.max_pool2d_0"``.
        exclude: likewise; these keep their strides.
        smoothness: R of all layers, >= 1e-3.
        variant: ``"symmetric"`` or ``"official"``.

    Returns:
        The converted copy. A converted layer has its stride as a child: ``conv.pool.strides`` beside ``conv.weight``.

    Raises:
        ValueError: there is no stride to learn, a name is unknown, the network cannot be copied or followed, maps meet
            whose strides cannot be shared, or it does not run at other strides, as where a map is flattened into a
            linear layer.

    >>> from torchvision.models import resnet18
    >>> model = convert_strides(resnet18(weights=None), torch.zeros(1, 3, 64, 64), exclude=["conv1", "maxpool"])
    >>> model.layer2[0].conv1.pool is model.layer2[0].downsample[0].pool
    True
    """
    if hasattr(model, "_orig_mod"):
        raise ValueError("the network is compiled: convert it as it was before, and compile the copy")
    original = model
    try:
        model = copy.deepcopy(model)
    except RuntimeError as error:
        raise ValueError(
            f"{type(model).__name__} cannot be copied, as it holds a tensor with history: give it the weight norm of "
            "torch.nn.utils.parametrizations, and detach what its steps keep"
        ) from error
    if any(isinstance(layer, DiffStride) for layer in model.modules()):
        raise ValueError(f"{type(model).__name__} has learnable strides already: convert the original")
    wanted = _chooser(model, include, exclude)
    axes = example.ndim - 2
    if axes not in (1, 2, 3):
        raise ValueError(f"`example` must have shape (N, C, *size) with 1 to 3 sizes, got {tuple(example.shape)}")
    try:
        trail = follow(model, example, wanted)
    except CannotFollowError as error:
        raise ValueError(
            f"{type(model).__name__} cannot be followed ({error}): put DiffStride layers into it by hand, or leave "
            "out what fails"
        ) from error
    groups = _groups(trail)
    if not any(event.kind == "learnable" for event in trail.events):
        raise ValueError(
            f"{type(model).__name__} has no convolution or pooling with a stride above 1 that was asked for"
        )
    _build(model, trail, groups, smoothness, variant)
    accept_original_checkpoints(model)
    _try(original, model, example)
    return model


def _chooser(model: nn.Module, include: Choice | None, exclude: Choice) -> Callable[[str], bool]:
    names = [name for name, _ in model.named_modules() if name]
    included = None if include is None else _predicate("include", include, names)
    excluded = _predicate("exclude", exclude, names)
    return lambda name: (included is None or included(name)) and not excluded(name)


def _predicate(argument: str, choice: Choice, names: Sequence[str]) -> Callable[[str], bool]:
    if not isinstance(choice, Iterable):
        return choice
    chosen = [choice] if isinstance(choice, str) else list(choice)
    for name in chosen:
        # a call is known only when it runs: its module must be there
        if name not in names and name.rpartition(".")[0] not in ("", *names):
            _unknown(argument, name, names)
        if name not in names and not any(kind in name.rpartition(".")[2] for kind in ("pool", "conv")):
            _unknown(argument, name, names)
    return lambda name: any(name == each or name.startswith(f"{each}.") for each in chosen)


def _unknown(argument: str, name: str, names: Sequence[str]) -> None:
    near = difflib.get_close_matches(name, names, 3)
    hint = f"; near are {', '.join(near)}" if near else ""
    raise ValueError(f"`{argument}` names {name!r}, which is no module of the network{hint}")


class _Groups:
    """Which events' maps must have one size, by union and find."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._leader = {event: event for event in events}
        self.square: set[Event] = set()  # whose height and width meet

    def find(self, event: Event) -> Event:
        while self._leader[event] is not event:
            event = self._leader[event]
        return event

    def unite(self, first: Event, second: Event) -> bool:
        first, second = self.find(first), self.find(second)
        self._leader[second] = first
        return first is not second

    def members(self, event: Event) -> list[Event]:
        """In the order of running."""
        return [each for each in self._leader if self.find(each) is self.find(event)]


def _groups(trail: Trail) -> _Groups:
    """Tie what torch found equal; then what must be equal for that."""
    groups = _Groups(trail.events)
    of = {symbol: (event, axis) for event in trail.events for axis, symbol in enumerate(event.after, -event.axes)}

    def tie(first: sympy.Expr, second: sympy.Expr) -> bool:
        (one, axis), (other, other_axis) = of[first], of[second]
        if axis != other_axis:
            groups.square.update((one, other))
        return groups.unite(one, other)

    seen: dict[sympy.Expr, sympy.Expr] = {}
    for symbol in of:
        tie(seen.setdefault(trail.canonical(symbol), symbol), symbol)
    for left, right in trail.equal:
        _tie_equation(left, right, of, tie)
    changed = True
    while changed:  # what meets went through equal numbers of strides, each of which must give equal sizes
        changed = False
        for event in trail.events:
            for other in groups.members(event)[1:]:
                if event.kind == other.kind == "learnable" and event.axes == other.axes:
                    for left, right in zip(event.before, other.before, strict=True):
                        changed |= _tie_equation(trail.canonical(left), trail.canonical(right), of, tie)
    return groups


def _tie_equation(
    left: sympy.Expr,
    right: sympy.Expr,
    of: dict[sympy.Expr, tuple[Event, int]],
    tie: Callable[[sympy.Expr, sympy.Expr], bool],
) -> bool:
    """Tie symbol by symbol where both sides have the same form, such as h w on a flattened map."""
    if left == right:
        return False
    first = sorted((each for each in left.free_symbols if each in of), key=_place(of))
    second = sorted((each for each in right.free_symbols if each in of), key=_place(of))
    if len(first) != len(second):
        return False
    swapped = left.subs(dict(zip(first, second, strict=True)), simultaneous=True)
    if sympy.simplify(swapped - right) != 0:
        return False
    changed = False
    for one, other in zip(first, second, strict=True):
        changed |= tie(one, other)
    return changed


def _place(of: dict[sympy.Expr, tuple[Event, int]]) -> Callable[[sympy.Expr], tuple[int, int]]:
    order = {event: index for index, (event, _) in enumerate(of.values())}
    return lambda symbol: (order[of[symbol][0]], of[symbol][1])


def _build(model: nn.Module, trail: Trail, groups: _Groups, smoothness: float, variant: Variant) -> None:
    """Put learnable strides where the trail has learnable events, and let enlarged maps fit."""
    pools: dict[Event, DiffStride] = {}
    done: set[nn.Module] = set()
    for event in trail.events:
        if event.kind != "learnable":
            continue
        group = groups.members(event)
        _check_group(event, group)
        pool = pools.get(groups.find(event))
        if pool is None and event.call is None and event.owner in done:
            pool = pools[groups.find(event)] = event.owner.pool  # a layer that is used twice, as on pairs of images
        if pool is None:
            pool = _pool_of(event, any(each in groups.square for each in group), smoothness, variant)
            parameter = next(event.owner.parameters(), None)
            pool = pools[groups.find(event)] = pool if parameter is None else pool.to(parameter.device)
        if event.call is not None:
            called_strides(event.owner).pools[event.call.key] = pool
        elif event.owner not in done:
            done.add(event.owner)
            make_strides_learnable(event.owner, pool, event.extra)
        elif event.owner.pool is not pool:
            raise ValueError(f"{event.name} is used at several places of the network whose strides are not the same")
    for event in trail.events:
        group = groups.members(event)
        if event.kind != "enlarging" or group[0] is event or (event.owner in done and event.call is None):
            continue
        size = _recorder(group[0])
        if event.call is not None:
            called_strides(event.owner).fits[event.call.key] = size
        else:
            done.add(event.owner)
            make_fit(event.owner, size)


def _check_group(event: Event, group: Sequence[Event]) -> None:
    for other in group:
        if other.kind in ("input", "fixed"):
            raise ValueError(
                f"the map behind {event.name} meets that of {other.name}, whose size is not learned: "
                f"exclude=[{event.name!r}] keeps both as they are"
            )
        if other.kind == "learnable" and (other.strides != event.strides or other.axes != event.axes):
            raise ValueError(
                f"{event.name} and {other.name} meet, but have different strides: {event.strides}, {other.strides}"
            )


def _pool_of(event: Event, square: bool, smoothness: float, variant: Variant) -> DiffStride:
    strides, square = event.strides, square and len(set(event.strides)) == 1
    if event.axes == 1:
        return DiffStride1d(strides[0], smoothness, variant=variant)
    if event.axes == 2:
        return DiffStride2d((strides[0], strides[1]), smoothness, shared_stride=square, variant=variant)
    if variant == "official":
        raise ValueError(f"{event.name} has three axes: `variant`='official' has none for them")
    return DiffStride3d((strides[0], strides[1], strides[2]), smoothness, shared_stride=square)


def _recorder(event: Event) -> MapSize:
    if event.kind == "input":
        return record_input_size(event.owner, event.axes)
    if event.call is not None:
        return called_strides(event.owner).records.setdefault(event.call.key, MapSize())
    return record_output_size(event.owner, event.axes)


@torch.no_grad()
def _try(original: nn.Module, model: nn.Module, example: Tensor) -> None:
    """Run a copy at its strides and at others: all moved, then each layer's alone, one axis up and one down.

    Only the first run has values; the others are on the meta device, where only shapes are computed.
    """
    with torch.random.fork_rng(devices=[]):
        real = copy.deepcopy(model).eval()
        _run(real, example, {})
        try:
            shapes, images = copy.deepcopy(real).to("meta"), example.to("meta")
            _run(shapes, images, {})
        except (ValueError, NotImplementedError):  # it mixes devices, or has an operation without shapes
            shapes, images = real, example
        in_training = _trains_on(original, images)
        layers = list(dict.fromkeys(layer for layer in shapes.modules() if isinstance(layer, DiffStride)))
        moved: dict[DiffStride, Sequence[float]] = dict.fromkeys(layers, (1.37,))
        alone: list[dict[DiffStride, Sequence[float]]] = [{layer: (1.31, 0.77)} for layer in layers]
        for factors in (moved, *alone):
            _run(shapes, images, factors)
        if in_training is not None:
            _run(shapes.train(), in_training, {})
            _run(shapes.train(), in_training, moved)


def _trains_on(original: nn.Module, images: Tensor) -> Tensor | None:
    """An input that the original takes in training mode: batch norm refuses a single sample of one point."""
    original = copy.deepcopy(original).to(images.device).train()
    for tried in (images, torch.cat([images, images])):
        try:
            original(tried)
        except Exception:  # noqa: S112 - the network's own code
            continue
        return tried
    return None


def _run(model: nn.Module, images: Tensor, factors: dict[DiffStride, Sequence[float]]) -> None:
    before = {layer: layer.known_strides for layer in factors}
    for layer, each in factors.items():
        cycle = itertools.cycle(each)
        _move(layer, [max(stride * next(cycle), 1.0) for stride in before[layer]])
    try:
        model(images)
    except Exception as error:  # the network's own code
        layers = [layer for layer in model.modules() if isinstance(layer, DiffStride)]
        strides = [[round(stride, 2) for stride in layer.known_strides] for layer in layers]
        mode = "training" if model.training else "evaluation"
        raise ValueError(
            f"the converted network cannot run at the strides {strides} in {mode} mode: {error}. "
            "Leave out layers whose maps need a fixed size with `exclude`"
        ) from error
    finally:
        for layer, values in before.items():
            _move(layer, values)


def _move(layer: DiffStride, strides: list[float]) -> None:
    layer.known_strides = strides
    if not layer.strides.is_meta:
        layer.strides.copy_(layer.strides.new_tensor(strides))

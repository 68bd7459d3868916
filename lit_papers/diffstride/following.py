"""Which maps of a network meet: one run in which the size behind every stride is an unknown of its own.

The run is on fake tensors, which have shapes and no values, and the sizes are symbols. Whatever the network does with
its maps, adds, stacks, reshapes, or hands to a kernel, torch checks shapes, and notes which symbols it took as equal.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import sympy
import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.overrides import TorchFunctionMode

from lit_papers.diffstride.calls import Call, bind, per_axis_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
MAXIMA = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
STRIDED = (*CONVOLUTIONS, *AVERAGES, *MAXIMA)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

Kind = Literal["input", "learnable", "fixed", "enlarging"]


@dataclass(eq=False)
class Event:
    """One thing that gives maps a new size: a strided layer or call, an enlarging one, or the input itself.

    Attributes:
        kind: what happens to it: made learnable, left as it is, or (enlarging ones) made to fit what they meet.
        name: qualified name of the layer; of a call, that of the module that makes it, and which of its calls it is.
        owner: the layer, or the module that makes the call.
        call: None for a layer.
        strides: of each axis.
        extra: points that a strided layer needs behind the map's end to give, at stride 1, as many as it gets.
        before: size of its input, as expressions of the symbols.
        after: its own symbols.
    """

    kind: Kind
    name: str
    owner: Any
    call: Call | None
    strides: tuple[float, ...]
    extra: tuple[int, ...]
    before: list[sympy.Expr]
    after: list[sympy.Expr]

    @property
    def axes(self) -> int:
        """How many axes it resizes."""
        return len(self.after)


@dataclass
class Trail:
    """What a run has shown.

    Attributes:
        events: in the order of running, the input first.
        equal: pairs of expressions that torch took as equal.
        canonical: the expression that stands for an expression now.
    """

    events: list[Event] = field(default_factory=list)
    equal: list[tuple[sympy.Expr, sympy.Expr]] = field(default_factory=list)
    canonical: Callable[[sympy.Expr], sympy.Expr] = lambda expression: expression


class CannotFollowError(Exception):
    """The network does something with a map's size, or its values, that no symbol can stand for."""


@torch.no_grad()
def follow(model: nn.Module, example: Tensor, wanted: Callable[[str], bool]) -> Trail:
    """Run a network on an input of the example's shape, with symbols for sizes.

    Args:
        model: run in evaluation mode, and not changed.
        example: ``(N, C, *size)``.
        wanted: of a layer's or call's name, whether it becomes learnable.

    Raises:
        CannotFollowError: the network looks at values or computes with sizes in a way that cannot be followed.
        ValueError: a strided layer that is wanted returns indices.
    """
    follower = _Follower(model, ShapeEnv(duck_shape=False), wanted)
    handles = [
        handle
        for name, module in model.named_modules(remove_duplicate=True)
        for handle in (
            module.register_forward_pre_hook(follower.enter(name), prepend=True),
            module.register_forward_hook(follower.leave, always_call=True),
        )
    ]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # kernels in C++ that are made of others take no symbols: without the dispatcher interpolation and padding fail
        fake = FakeTensorMode(allow_non_fake_inputs=True, shape_env=follower.env)
        with enable_python_dispatcher(), fake, follower:
            size = follower.fresh([int(n) for n in example.shape[2:]])
            follower.trail.events.append(
                Event("input", "the input", model, None, (1.0,) * len(size), (0,) * len(size), [], _expressions(size))
            )
            image = torch.empty((*example.shape[:2], *size), dtype=example.dtype, device=example.device)
            output = model(image)
            follower.expect_full_size(output, list(example.shape[2:]))
    except ValueError:
        raise
    except Exception as error:  # the network's own code runs: anything can come
        raise CannotFollowError(f"{type(error).__name__}: {_first_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return follower.finish()


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")


def _expressions(size: Any) -> list[sympy.Expr]:
    return [n.node.expr if isinstance(n, torch.SymInt) else sympy.Integer(n) for n in size]


class _Follower(TorchFunctionMode):
    """Gives each resized map fresh symbols; knows which module is running."""

    def __init__(self, model: nn.Module, env: ShapeEnv, wanted: Callable[[str], bool]) -> None:
        super().__init__()
        self.model, self.env, self.wanted = model, env, wanted
        self.trail = Trail()
        self._running: list[tuple[str, nn.Module, dict[str, int]]] = []
        self._silent = 0  # inside a layer that is an event as a whole
        self._count = 0

    def fresh(self, hints: list[int]) -> list[Any]:
        """Symbols for sizes that are these in the network as it is; at least 2, as one point fits everything."""
        symbols = []
        for hint in hints:
            self._count += 1
            source = ConstantSource(f"size{self._count}")
            hint = max(hint, 2)
            symbol = self.env.create_symbol(hint, source=source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
            symbols.append(self.env.create_symintnode(symbol, hint=hint, source=source))
        return symbols

    def enter(self, name: str) -> Callable[..., None]:
        """A pre-hook of the module of this name."""

        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._running.append((name, module, {}))
            self._silent += self._is_event(module)

        return hook

    def leave(self, module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        """A hook of every module."""
        name, _, _ = self._running.pop()
        if not self._is_event(module):
            return None
        self._silent -= 1
        if not isinstance(output, Tensor):
            if output is not None and self.wanted(name):
                raise ValueError(
                    f"{name} returns the indices of its maxima, which a learned stride does not have: leave it out "
                    f"with exclude=[{name!r}], together with what uses them"
                )
            return None
        if isinstance(module, STRIDED):
            strides = per_axis_of(module.stride, _axes_of(module))
            kind: Kind = "learnable" if self.wanted(name) else "fixed"
            extra = self._extra(module, inputs[0]) if kind == "learnable" else (0,) * len(strides)
        else:
            strides, kind, extra = (1.0,) * _axes_of(module), "enlarging", (0,) * _axes_of(module)
        return self._resized(Event(kind, name, module, None, strides, extra, [], []), inputs[0], output)

    def _is_event(self, module: Any) -> bool:
        if isinstance(module, STRIDED):
            return bool(max(per_axis_of(module.stride, _axes_of(module))) > 1)
        return isinstance(module, TRANSPOSED)

    def _extra(self, module: Any, input: Tensor) -> tuple[int, ...]:
        """How many points it gives too few at stride 1; by running it, as its class may pad by itself."""
        stride, module.stride = module.stride, 1 if not isinstance(module, CONVOLUTIONS) else (1,) * _axes_of(module)
        if isinstance(module, nn.AvgPool1d):
            module.stride = (1,)
        ceil, module.ceil_mode = getattr(module, "ceil_mode", False), False
        self._silent += 1
        try:
            output = module.forward(input)
        finally:
            module.stride = stride
            module.ceil_mode = ceil
            self._silent -= 1
        axes = _axes_of(module)
        return tuple(int(n - m) for n, m in zip(input.shape[-axes:], output.shape[-axes:], strict=True))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at each call of a function that may resize a map."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if self._silent or not self._running:
            return output
        bound = bind(func, args, kwargs)
        if bound is None:
            return output
        owner_name, owner, counts = self._running[-1]
        key = f"{bound.function}_{counts.get(bound.function, 0)}"
        name = f"{owner_name}.{key}" if owner_name else key
        enlarging = bound.function == "interpolate"
        learnable = not enlarging and self.wanted(name)
        # at run time a module sees the calls of all modules inside it that are not handled there
        for _, _, each in self._running if not (learnable or enlarging) else self._running[-1:]:
            each[bound.function] = each.get(bound.function, 0) + 1
        if learnable and not isinstance(output, Tensor):
            raise ValueError(
                f"{owner_name or 'the network'} asks {bound.function} for indices, which a learned stride does not "
                f"have: leave it out with exclude=[{name!r}]"
            )
        kind: Kind = "enlarging" if enlarging else "learnable" if learnable else "fixed"
        call = Call(bound.function, key, bound.axes)
        event = Event(kind, name, owner, call, bound.strides, (0,) * bound.axes, [], [])
        return self._resized(event, args[0], output)

    def _resized(self, event: Event, input: Tensor, output: Tensor) -> Tensor:
        axes = len(event.strides)
        hints = [_hint(n) for n in output.shape[-axes:]]
        size = self.fresh(hints)
        event.before = _expressions(input.shape[-axes:])
        event.after = _expressions(size)
        self.trail.events.append(event)
        return output.new_empty((*output.shape[:-axes], *size))

    def expect_full_size(self, output: Any, size: list[int]) -> None:
        """A map that comes out as large as the input went in has to stay so: there are targets of this size."""
        (whole, *_) = self.trail.events
        enlarged = [
            [self.env.replace(symbol) for symbol in event.after]
            for event in self.trail.events
            if event.kind == "enlarging"
        ]
        for tensor in _tensors(output):
            found = list(tensor.shape[-len(size) :])
            expressions = [self.env.replace(each) for each in _expressions(found)]
            if expressions in enlarged and tensor.ndim == len(size) + 2 and [_hint(n) for n in found] == size:
                self.trail.equal += list(zip(expressions, whole.after, strict=True))

    def finish(self) -> Trail:
        """The trail, with what torch has noted."""
        for guard in self.env.guards:
            if isinstance(guard.expr, sympy.Eq):
                self.trail.equal.append((guard.expr.lhs, guard.expr.rhs))
        self.trail.canonical = lambda expression: self.env.replace(expression)
        return self.trail


def _hint(size: Any) -> int:
    hint: Any = size.node.hint if isinstance(size, torch.SymInt) else size
    return int(hint)


def _axes_of(module: Any) -> int:
    kinds = (CONVOLUTIONS, AVERAGES, MAXIMA, TRANSPOSED)
    return next(axes for axes in (1, 2, 3) if isinstance(module, tuple(kind[axes - 1] for kind in kinds)))


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for each in output.values():
            yield from _tensors(each)
    elif isinstance(output, (list, tuple)):
        for each in output:
            yield from _tensors(each)

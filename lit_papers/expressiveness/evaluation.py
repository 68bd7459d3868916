"""The value of an expression on a batch of graphs: guarded aggregations on edges, the rest densely."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_papers.expressiveness.bounds import Bound, bound
from lit_papers.expressiveness.expressions import (
    Addition,
    Aggregate,
    Constant,
    Edge,
    Equal,
    Expression,
    Function,
    Label,
    Product,
    natural_order,
    parse,
)
from lit_papers.expressiveness.graph_batch import GraphBatch, read_graphs
from lit_papers.expressiveness.minimisation import minimise


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x == 0, 0.0, 1.0 / torch.where(x == 0, 1.0, x))


def _rsqrt(x: Tensor) -> Tensor:
    return torch.where(x == 0, 0.0, torch.where(x == 0, 1.0, x).rsqrt())


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
    "sin": torch.sin,
    "sqrt": torch.sqrt,
    "rsqrt": _rsqrt,
    "inv": _inverse,
}
"""Functions that every expression may use; ``rsqrt`` and ``inv`` are 0 at 0."""


class _Value(NamedTuple):
    """Values with named axes.

    Attributes:
        names: of the axes.
        tensor: (B, n, ..., n, c), one axis of n for each name.
    """

    names: tuple[str, ...]
    tensor: Tensor


def evaluate(
    e: Expression,
    data: Any,
    functions: Mapping[str, Callable[..., Tensor]] | None = None,
    *,
    max_elements: int = 2**27,
) -> Tensor:
    """Evaluate an expression on each graph of a batch; differentiable.

    Args:
        e: the expression; it is minimised first, and common sub-expressions are computed once.
        data: PyG ``Data`` or ``Batch`` of undirected graphs. ``data.x`` gives the dtype (float32 without).
        functions: more functions, or others in place of `FUNCTIONS`. They get tensors that broadcast against each
            other in all axes but the last, which holds channels.
        max_elements: refuse intermediates with more numbers.

    Returns:
        (B, c) for closed expressions; (N, c) for one free index, in PyG's order; (B, n, ..., n, c) for more, padded
        with 0, its axes in the natural order of the names. An aggregation over nothing is 0.

    Raises:
        KeyError: a function is unknown.
        IndexError: a channel of the features does not exist.
        MemoryError: an intermediate is too large; told before it is allocated.
        ValueError: the graphs are directed.
    """
    graphs = read_graphs(data)
    run = _Evaluation(graphs, {**FUNCTIONS, **(functions or {})}, max_elements)
    value = run.value(minimise(e))
    names = sorted(e.free, key=natural_order)
    dense = run.dense(value, tuple(names)).tensor
    if len(names) == 0:
        return dense
    if len(names) == 1:
        return dense[graphs.owner, graphs.position]
    real = run.mask(tuple(names))
    return dense * real[..., None]


class _Evaluation:
    """One evaluation; values of sub-expressions are kept."""

    def __init__(self, graphs: GraphBatch, functions: Mapping[str, Callable[..., Tensor]], max_elements: int) -> None:
        self.graphs, self.functions, self.max_elements = graphs, functions, max_elements
        floating = graphs.x is not None and graphs.x.is_floating_point()
        self.dtype = graphs.x.dtype if floating and graphs.x is not None else torch.float32
        self.known: dict[Expression, _Value] = {}
        self.present = graphs.mask

    def value(self, e: Expression) -> _Value:
        if e not in self.known:
            self.known[e] = self.compute(e)
        return self.known[e]

    def compute(self, e: Expression) -> _Value:
        graphs = self.graphs
        if isinstance(e, Constant):
            return _Value((), torch.full((graphs.num_graphs, 1), e.value, dtype=self.dtype, device=graphs.owner.device))
        if isinstance(e, Label):
            return _Value((e.x,), graphs.pad(self.features(e.channel)))
        if isinstance(e, Equal):
            if e.x == e.y:
                return _Value((e.x,), (self.present & (not e.negated)).to(self.dtype)[..., None])
            self.check((e.x, e.y), 1)
            same = torch.eye(graphs.width, dtype=torch.bool, device=graphs.owner.device) != e.negated
            return _Value((e.x, e.y), same.expand(graphs.num_graphs, -1, -1).to(self.dtype)[..., None])
        if isinstance(e, Edge):
            self.check((e.x, e.y), 1)
            adjacency = graphs.adjacency().to(self.dtype)
            if e.x == e.y:
                return _Value((e.x,), adjacency.diagonal(dim1=1, dim2=2)[..., None])
            return _Value((e.x, e.y), adjacency[..., None])
        if isinstance(e, Addition):
            return self.pointwise(lambda *terms: sum(terms[1:], terms[0]), [self.value(term) for term in e.terms])
        if isinstance(e, Product):
            return self.contract([self.value(factor) for factor in e.factors], None)
        if isinstance(e, Function):
            return self.pointwise(self.function(e.name), [self.value(argument) for argument in e.arguments])
        if isinstance(e, Aggregate):
            return self.aggregate(e)
        raise TypeError(f"{type(e).__name__} is no expression")

    def function(self, name: str) -> Callable[..., Tensor]:
        if name not in self.functions:
            raise KeyError(f"unknown function {name!r}; pass it in `functions` (known: {', '.join(self.functions)})")
        return self.functions[name]

    def features(self, channel: int | None) -> Tensor:
        x = self.graphs.x
        if x is None:
            raise IndexError("the expression reads node features, but the graphs have no x")
        x = x.to(self.dtype)
        if channel is None:
            return x
        if channel >= x.shape[1]:
            raise IndexError(f"P{channel} reads channel {channel}, but x has {x.shape[1]} channels, counted from 0")
        return x[:, channel : channel + 1]

    def mask(self, names: tuple[str, ...]) -> Tensor:
        """(B, n, ...) which tuples are of real nodes."""
        real = torch.ones(self.graphs.num_graphs, *[1] * len(names), dtype=torch.bool, device=self.present.device)
        for axis in range(len(names)):
            shape = [self.graphs.num_graphs, *[1] * len(names)]
            shape[axis + 1] = self.graphs.width
            real = real & self.present.view(shape)
        return real

    def check(self, names: tuple[str, ...], channels: int) -> None:
        size = self.graphs.num_graphs * self.graphs.width ** len(names) * channels
        if size > self.max_elements:
            raise MemoryError(
                f"an intermediate with indices {', '.join(names)} and {channels} channels would have {size:,} numbers, "
                f"more than max_elements={self.max_elements:,}; take fewer or smaller graphs."
            )

    def dense(self, value: _Value, names: tuple[str, ...]) -> _Value:
        """Order the axes as `names`, with one of full length for each."""
        tensor = self.broadcastable(value, names)
        shape = [self.graphs.width if name not in value.names else -1 for name in names]
        return _Value(names, tensor.expand(-1, *shape, -1) if names else tensor)

    def pointwise(self, function: Callable[..., Tensor], values: list[_Value]) -> _Value:
        names = tuple(sorted(set().union(*(value.names for value in values)), key=natural_order))
        self.check(names, max(value.tensor.shape[-1] for value in values))
        aligned = [self.broadcastable(value, names) for value in values]
        shape = (self.graphs.num_graphs, *[self.graphs.width] * len(names))
        result = function(*aligned)
        return _Value(names, result.expand(*shape, result.shape[-1]))

    def broadcastable(self, value: _Value, names: tuple[str, ...]) -> Tensor:
        """Order the axes as `names`, those that are missing of length 1."""
        order = [value.names.index(name) for name in names if name in value.names]
        tensor = value.tensor.permute(0, *(axis + 1 for axis in order), value.tensor.ndim - 1)
        for axis, name in enumerate(names):
            if name not in value.names:
                tensor = tensor.unsqueeze(axis + 1)
        return tensor

    def contract(self, values: list[_Value], summed: str | None) -> _Value:
        """Multiply values, and sum one index out over real nodes: one einsum, which never holds the product."""
        names = tuple(sorted(set().union(*(value.names for value in values)), key=natural_order))
        channels = max(value.tensor.shape[-1] for value in values)
        kept = tuple(name for name in names if name != summed)
        self.check(kept, channels)
        operands: list[Any] = []
        place = {name: index + 2 for index, name in enumerate(names)}
        for value in values:
            wide = value.tensor.shape[-1] == channels
            operands += [
                value.tensor if wide else value.tensor[..., 0],
                [0, *(place[name] for name in value.names), *([1] if wide else [])],
            ]
        if summed is not None:
            operands += [self.present.to(self.dtype), [0, place[summed]]] if summed in place else []
        result = torch.einsum(*operands, [0, *(place[name] for name in kept), 1])
        if summed is not None and summed not in place:
            result = result * self.graphs.sizes.view(-1, *[1] * (result.ndim - 1)).to(self.dtype)
        return _Value(kept, result)

    def aggregate(self, e: Aggregate) -> _Value:
        factors = list(e.body.factors) if isinstance(e.body, Product) else [e.body]
        guard = e.guard
        if guard is None and e.kind == "sum":
            guard = next((f for f in factors if isinstance(f, Edge) and e.index in f.free and f.x != f.y), None)
            if guard is not None:
                factors.remove(guard)
        if guard is not None:
            other = guard.y if guard.x == e.index else guard.x
            if all(factor.free <= {e.index, other} and not self.needs_pairs(factor) for factor in factors):
                return self.over_neighbours(e, factors, other)
            if e.guard is None:
                factors.append(guard)
        if e.kind == "sum":
            values = [self.value(factor) for factor in factors] + ([self.value(e.guard)] if e.guard else [])
            return self.contract(values, e.index)
        return self.dense_aggregate(e)

    def needs_pairs(self, e: Expression) -> bool:
        """Whether an expression has atoms of two indices outside of its aggregations, which edges do not hold."""
        if isinstance(e, (Edge, Equal)):
            return e.x != e.y
        if isinstance(e, Aggregate):
            return len(e.free) > 1
        return any(self.needs_pairs(child) for child in e.children)

    def over_neighbours(self, e: Aggregate, factors: list[Expression], other: str) -> _Value:
        """Aggregate on edges: source is the index that stays, target the one that goes."""
        source, target = self.graphs.edges
        ends = {other: source, e.index: target}
        message: Tensor | None = None
        for factor in factors:
            value = self.at_edges(factor, ends)
            message = value if message is None else message * value
        if message is None:
            message = torch.ones(len(source), 1, dtype=self.dtype, device=source.device)
        message = message.expand(len(source), -1)
        n = self.graphs.num_nodes
        if e.kind == "sum":
            result = message.new_zeros(n, message.shape[1]).index_add_(0, source, message)
        else:
            kind = {"mean": "mean", "max": "amax", "min": "amin"}[e.kind]
            index = source[:, None].expand_as(message)
            result = message.new_zeros(n, message.shape[1]).scatter_reduce(0, index, message, kind, include_self=False)
        return _Value((other,), self.graphs.pad(result))

    def at_edges(self, e: Expression, ends: Mapping[str, Tensor]) -> Tensor:
        """Values (E, c) of an expression in the ends of edges."""
        if len(e.free) <= 1:
            value = self.value(e)
            if not value.names:
                return value.tensor[self.graphs.owner[self.graphs.edges[0]]]
            node = ends[value.names[0]]
            return value.tensor[self.graphs.owner[node], self.graphs.position[node]]
        parts = [self.at_edges(child, ends) for child in e.children]
        if isinstance(e, Function):
            return self.function(e.name)(*parts)
        result = parts[0]
        for part in parts[1:]:
            result = result + part if isinstance(e, Addition) else result * part
        return result

    def dense_aggregate(self, e: Aggregate) -> _Value:
        """Mean, maximum or minimum over all nodes, or over neighbours of a value of more indices."""
        names = tuple(sorted(e.body.free | {e.index} | (e.guard.free if e.guard else set()), key=natural_order))
        body = self.value(e.body)
        self.check(names, body.tensor.shape[-1])
        tensor = self.dense(body, names).tensor
        there = self.mask(names)
        if e.guard is not None:
            there = there & self.dense(self.value(e.guard), names).tensor[..., 0].bool()
        there = there.expand(tensor.shape[:-1])[..., None]
        axis = names.index(e.index) + 1
        kept = tuple(name for name in names if name != e.index)
        count = there.sum(axis)
        if e.kind == "mean":
            result = torch.where(there, tensor, 0.0).sum(axis) / count.clamp_min(1)
        else:
            worst = float("-inf") if e.kind == "max" else float("inf")
            filled = torch.where(there, tensor, worst)
            result = filled.amax(axis) if e.kind == "max" else filled.amin(axis)
        return _Value(kept, torch.where(count > 0, result, 0.0))


class ExpressionModule(nn.Module):
    """An expression as a layer or network; functions that are modules are trained with it.

    Args:
        expression: or its text.
        functions: by name, beside `FUNCTIONS`.
    """

    def __init__(
        self, expression: Expression | str, functions: Mapping[str, Callable[..., Tensor]] | None = None
    ) -> None:
        super().__init__()
        self.expression = parse(expression) if isinstance(expression, str) else expression
        functions = dict(functions or {})
        self.modules_by_name = nn.ModuleDict({k: f for k, f in functions.items() if isinstance(f, nn.Module)})
        self._plain = {name: f for name, f in functions.items() if not isinstance(f, nn.Module)}

    @property
    def bound(self) -> Bound:
        """What the expression can tell apart at most."""
        return bound(self.expression)

    def forward(self, data: Any) -> Tensor:
        """`evaluate` on a PyG ``Data`` or ``Batch``."""
        return evaluate(self.expression, data, {**self._plain, **self.modules_by_name})

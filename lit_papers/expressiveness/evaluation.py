"""The value of an expression on a batch of graphs: guarded aggregations on edges, the rest densely.

Nothing is padded. Values of one index are rows for nodes, (N, c); values of more are rows for tuples of real nodes,
those of graphs of one size next to each other, so that a product of matrices is one `einsum` for all graphs of a size.
Functions therefore see what is there alone, whatever the company of a graph.
"""

import copy
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
    EdgeLabel,
    Equal,
    Expression,
    Function,
    Label,
    Matrix,
    Product,
    factors_of,
    natural_order,
    postorder,
)
from lit_papers.expressiveness.graph_batch import GraphBatch, read_graphs
from lit_papers.expressiveness.matrices import compute_matrix
from lit_papers.expressiveness.minimisation import minimise
from lit_papers.expressiveness.parsing import parse


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


def _counts(e: Expression) -> frozenset[Expression]:
    """Parts that count, or are made of counts and features with differences that count."""
    plain: set[Expression] = set()
    featured: set[Expression] = set()
    for part in postorder(e):
        if isinstance(part, (Function, Matrix)) or not all(child in plain for child in part.children):
            continue
        plain.add(part)
        if isinstance(part, (Label, EdgeLabel)) or any(child in featured for child in part.children):
            featured.add(part)
    # in two indices no inequality is expanded, and features are summed as they are elsewhere
    return frozenset(part for part in plain if part.summation_depth and (part not in featured or part.width > 2))


class _Value(NamedTuple):
    """Values with named indices.

    Attributes:
        names: of the indices, in natural order.
        rows: (B, c) for graphs without names, (N, c) for nodes in PyG's order with one, (T, c) for tuples with more:
            size by size, graph by graph, the last index fastest.
    """

    names: tuple[str, ...]
    rows: Tensor


class _Size(NamedTuple):
    """The graphs of one size.

    Attributes:
        size: n, their number of nodes.
        graphs: (G,) their places in the batch.
        nodes: (G, n) their nodes.
    """

    size: int
    graphs: Tensor
    nodes: Tensor


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
        data: PyG ``Data`` or ``Batch``. ``data.x`` gives the dtype (float32 without); ``edge_type`` the relations of
            ``E[r]``, ``edge_attr`` and ``edge_weight`` the channels of ``Q``. What is counted, without functions, is
            counted in float64 and rounded at the end.
        functions: more functions, or others in place of `FUNCTIONS`. They get tensors (rows, channels), as many rows in
            each, and return as many: rows are graphs, nodes, edges or tuples of nodes, whatever the arguments are of.
            One that has the name of a `Matrix` gets (G, n, n) numbers of edges, and returns the matrices (G, n, n).
        max_elements: refuse intermediates with more numbers.

    Returns:
        (B, c) for closed expressions; (N, c) for one free index, in PyG's order; (B, n, ..., n, c) for more, padded
        with 0, its axes in the natural order of the names. An aggregation over nothing is 0.

    Raises:
        KeyError: a function is unknown.
        IndexError: a channel or relation does not exist.
        MemoryError: an intermediate is too large; told before it is allocated.
        ValueError: a function returns another number of rows than it got, or the graphs cannot be read.
    """
    graphs = read_graphs(data)
    smallest = minimise(e)
    run = _Evaluation(graphs, {**FUNCTIONS, **(functions or {})}, max_elements)
    if run.device.type != "mps":  # which has no float64
        run.counts = _counts(smallest)
    for part in postorder(smallest):  # from the inside out, so that no depth of layers is a depth of calls
        if len(part.free) <= 1:
            run.value(part)
    names = tuple(sorted(e.free, key=natural_order))
    rows = run.expand(run.value(smallest), names)
    return rows if len(names) <= 1 else run.padded(rows, len(names))


class _Evaluation:
    """One evaluation; values of sub-expressions are kept."""

    def __init__(self, graphs: GraphBatch, functions: Mapping[str, Callable[..., Tensor]], max_elements: int) -> None:
        self.graphs, self.functions, self.max_elements = graphs, functions, max_elements
        floating = graphs.x is not None and graphs.x.is_floating_point()
        self.dtype = graphs.x.dtype if floating and graphs.x is not None else torch.float32
        self.device = graphs.owner.device
        self.known: dict[Expression, _Value] = {}
        self.counts: frozenset[Expression] = frozenset()  # what is computed by `exact`
        self.exact: _Evaluation | None = None
        self.sizes = []
        for size in torch.unique(graphs.sizes).tolist():
            of_size = (graphs.sizes == size).nonzero()[:, 0]
            nodes = graphs.ptr[of_size, None] + torch.arange(size, device=self.device)
            self.sizes.append(_Size(size, of_size, nodes))

    def value(self, e: Expression) -> _Value:
        if e not in self.known:
            self.known[e] = self.counted(e) if e in self.counts else self.compute(e)
        return self.known[e]

    def counted(self, e: Expression) -> _Value:
        """Counts in float64: they grow beyond what float32 has digits for, and are differences of such numbers."""
        if self.exact is None:
            self.exact = copy.copy(self)
            self.exact.dtype, self.exact.known, self.exact.counts = torch.float64, {}, frozenset()
        value = self.exact.value(e)
        return value._replace(rows=value.rows.to(self.dtype))

    def compute(self, e: Expression) -> _Value:
        match e:
            case Constant():
                full = torch.full((self.graphs.num_graphs, 1), e.value, dtype=self.dtype, device=self.device)
                return _Value((), full)
            case Label():
                return _Value((e.x,), self.channels(self.graphs.x, e.channel, "P", "x"))
            case Equal():
                return self.pair(e.x, e.y, lambda group: self.same(group, e.negated))
            case Edge():
                weights = self.edge_weights(e.relation)
                return self.pair(e.x, e.y, lambda group: self.scattered(group, weights))
            case EdgeLabel():
                features = self.channels(self.graphs.attributes, e.channel, "Q", "edge_attr")
                return self.pair(e.x, e.y, lambda group: self.scattered(group, features))
            case Matrix():
                return self.pair(e.x, e.y, lambda group: self.matrix(group, e.name))
            case Addition():
                return self.pointwise(lambda *terms: sum(terms[1:], terms[0]), [self.value(t) for t in e.terms])
            case Product():
                return self.contract([self.value(factor) for factor in e.factors], None)
            case Function():
                return self.pointwise(self.function(e.name), [self.value(argument) for argument in e.arguments])
            case Aggregate():
                return self.aggregate(e)
        raise TypeError(f"{type(e).__name__} is no expression")

    def function(self, name: str) -> Callable[..., Tensor]:
        if name not in self.functions:
            raise KeyError(f"unknown function {name!r}; pass it in `functions` (known: {', '.join(self.functions)})")
        function = self.functions[name]

        def checked(*arguments: Tensor) -> Tensor:
            result = function(*arguments)
            if result.ndim != 2 or len(result) != len(arguments[0]):
                raise ValueError(
                    f"the function {name!r} got {len(arguments[0])} rows and returned {tuple(result.shape)}; it must "
                    "return (rows, channels), a row for each that it gets."
                )
            return result

        return checked

    def channels(self, values: Tensor | None, channel: int | None, atom: str, key: str) -> Tensor:
        """Columns of features."""
        if values is None:
            raise IndexError(f"the expression reads {atom}, but the graphs have no {key}")
        values = values.to(self.dtype)
        if channel is None:
            return values
        if channel >= values.shape[1]:
            raise IndexError(
                f"{atom}{channel} reads channel {channel}, but {key} has {values.shape[1]} channels, counted from 0"
            )
        return values[:, channel : channel + 1]

    def edge_weights(self, relation: int | None) -> Tensor:
        """(E, 1) how many edges each pair has."""
        graphs = self.graphs
        counts = graphs.counts if relation is None else graphs.of_relation(relation)
        if counts is None:
            return torch.ones(graphs.edges.shape[1], 1, dtype=self.dtype, device=self.device)
        return counts.to(self.dtype)[:, None]

    def pair(self, x: str, y: str, dense: Callable[[_Size], Tensor]) -> _Value:
        """An atom of two indices from its matrices, (G, n, n, c), or its diagonal where they are one."""
        if x == y:
            return _Value((x,), self.to_rows([dense(g).diagonal(dim1=1, dim2=2).mT for g in self.sizes], 1))
        names = tuple(sorted((x, y), key=natural_order))
        self.check(names, 1)
        found = [dense(group) for group in self.sizes]
        return _Value(names, self.to_rows(found if names == (x, y) else [d.transpose(1, 2) for d in found], 2))

    def same(self, group: _Size, negated: bool) -> Tensor:
        equal = torch.eye(group.size, dtype=torch.bool, device=self.device) != negated
        return equal.to(self.dtype).expand(len(group.graphs), -1, -1)[..., None]

    def scattered(self, group: _Size, values: Tensor) -> Tensor:
        """(G, n, n, c) matrices with values of edges."""
        graphs = self.graphs
        place = torch.full((graphs.num_graphs,), -1, device=self.device)
        place[group.graphs] = torch.arange(len(group.graphs), device=self.device)
        source, target = graphs.edges
        mine = place[graphs.owner[source]]
        inside = mine >= 0
        dense = values.new_zeros(len(group.graphs), group.size, group.size, values.shape[1])
        spot = (mine[inside], graphs.position[source[inside]], graphs.position[target[inside]])
        return dense.index_put(spot, values[inside])

    def matrix(self, group: _Size, name: str) -> Tensor:
        counts = self.scattered(group, self.edge_weights(None))[..., 0]
        computed = self.functions[name](counts) if name in self.functions else compute_matrix(name, counts)
        return computed.to(self.dtype)[..., None]

    def check(self, names: tuple[str, ...], channels: int) -> None:
        size = sum(len(group.graphs) * group.size ** len(names) for group in self.sizes) * channels
        if size > self.max_elements:
            raise MemoryError(
                f"an intermediate with indices {', '.join(names)} and {channels} channels would have {size:,} numbers, "
                f"more than max_elements={self.max_elements:,}; take fewer or smaller graphs."
            )

    def to_rows(self, dense: list[Tensor], order: int) -> Tensor:
        """Rows from (G, n, ..., n, c) for each size."""
        if order >= 2:
            return torch.cat([values.reshape(-1, values.shape[-1]) for values in dense])
        width = dense[0].shape[-1] if dense else 1
        if order == 0:
            index = torch.cat([group.graphs for group in self.sizes])
        else:
            index = torch.cat([group.nodes.flatten() for group in self.sizes])
        rows = torch.cat([values.reshape(-1, width) for values in dense])
        return torch.empty_like(rows).index_copy(0, index, rows)

    def to_dense(self, value: _Value) -> list[Tensor]:
        """(G, n, ..., n, c) for each size."""
        rows, order = value.rows, len(value.names)
        if order == 0:
            return [rows[group.graphs] for group in self.sizes]
        if order == 1:
            return [rows[group.nodes] for group in self.sizes]
        counts = [len(group.graphs) * group.size**order for group in self.sizes]
        shapes = [(len(group.graphs), *[group.size] * order, rows.shape[1]) for group in self.sizes]
        return [part.reshape(shape) for part, shape in zip(torch.split(rows, counts), shapes, strict=True)]

    def expand(self, value: _Value, names: tuple[str, ...]) -> Tensor:
        """Rows for all of `names`, which are in natural order: constant in those that are missing."""
        if value.names == names:
            return value.rows
        if len(names) == 1:
            return value.rows[self.graphs.owner]
        spread = []
        for group, dense in zip(self.sizes, self.to_dense(value), strict=True):
            for axis, name in enumerate(names):
                if name not in value.names:
                    dense = dense.unsqueeze(axis + 1)
            spread.append(dense.expand(-1, *[group.size] * len(names), -1))
        return self.to_rows(spread, len(names))

    def padded(self, rows: Tensor, order: int) -> Tensor:
        """(B, n, ..., n, c) from rows of tuples, 0 where a graph has no such node."""
        graphs = self.graphs
        result = rows.new_zeros(graphs.num_graphs, *[graphs.width] * order, rows.shape[1])
        dense = self.to_dense(_Value(("",) * order, rows))
        for group, values in zip(self.sizes, dense, strict=True):
            missing = [graphs.width - group.size] * order
            padding = [0, 0, *(amount for gap in missing for amount in (0, gap))]
            result = result.index_copy(0, group.graphs, nn.functional.pad(values, padding))
        return result

    def pointwise(self, function: Callable[..., Tensor], values: list[_Value]) -> _Value:
        names = tuple(sorted(set().union(*(value.names for value in values)), key=natural_order))
        self.check(names, max(value.rows.shape[-1] for value in values))
        return _Value(names, function(*(self.expand(value, names) for value in values)))

    def contract(self, values: list[_Value], summed: str | None) -> _Value:
        """Multiply values, and sum one index out: one einsum for each size, which never holds the product."""
        names = tuple(sorted(set().union(*(value.names for value in values)), key=natural_order))
        channels = max(value.rows.shape[-1] for value in values)
        kept = tuple(name for name in names if name != summed)
        self.check(kept, channels)
        if summed is None and len(names) <= 1:
            first, *others = (self.expand(value, names) for value in values)
            for other in others:
                first = first * other
            return _Value(names, first)
        place = {name: index + 2 for index, name in enumerate(names)}
        results = []
        for group, *dense in zip(self.sizes, *(self.to_dense(value) for value in values), strict=True):
            operands: list[Any] = []
            for value, tensor in zip(values, dense, strict=True):
                wide = tensor.shape[-1] == channels
                operands += [
                    tensor if wide else tensor[..., 0],
                    [0, *(place[name] for name in value.names), *([1] if wide else [])],
                ]
            result = torch.einsum(*operands, [0, *(place[name] for name in kept), 1])
            results.append(result if summed is None or summed in place else result * group.size)
        return _Value(kept, self.to_rows(results, len(kept)))

    def aggregate(self, e: Aggregate) -> _Value:
        factors = list(factors_of(e.body))
        guard = e.guard
        if guard is None and e.kind == "sum":
            guard = next((f for f in factors if isinstance(f, Edge) and e.index in f.free and f.x != f.y), None)
            if guard is not None:
                factors.remove(guard)
        if guard is not None:
            pair = guard.free
            if all(factor.free <= pair and self.on_edges(factor, guard) for factor in factors):
                return self.over_neighbours(e, factors, guard)
            if e.guard is None:
                factors.append(guard)
        if e.kind == "sum":
            values = [self.value(factor) for factor in factors] + ([self.value(e.guard)] if e.guard else [])
            return self.contract(values, e.index)
        return self.dense_aggregate(e)

    def on_edges(self, e: Expression, guard: Edge) -> bool:
        """Whether all that an expression reads of two indices at once stands on the edges of the guard."""
        if len(e.free) <= 1:
            return True  # a value of nodes
        if isinstance(e, (Edge, EdgeLabel)):
            return (e.x, e.y) == (guard.x, guard.y)
        if isinstance(e, (Equal, Matrix, Aggregate)):
            return isinstance(e, Equal)
        return all(self.on_edges(child, guard) for child in e.children)

    def over_neighbours(self, e: Aggregate, factors: list[Expression], guard: Edge) -> _Value:
        """Aggregate on edges, to the index that stays from the one that goes."""
        other = guard.y if guard.x == e.index else guard.x
        weights = self.edge_weights(guard.relation)
        chosen = None if guard.relation is None else weights[:, 0] > 0
        ends = {guard.x: self.graphs.edges[0], guard.y: self.graphs.edges[1]}
        if chosen is not None:
            ends, weights = {name: nodes[chosen] for name, nodes in ends.items()}, weights[chosen]
        stays = ends[other]
        message = torch.ones_like(weights)
        for factor in factors:
            message = message * self.at_edges(factor, ends, chosen)
        plain = self.graphs.counts is None and guard.relation is None
        n = self.graphs.num_nodes
        index = stays[:, None].expand_as(message)
        zeros = message.new_zeros(n, message.shape[1])
        if e.kind in ("sum", "mean"):
            result = zeros.index_add(0, stays, message if plain else message * weights)
            if e.kind == "mean":
                total = weights.new_zeros(n, 1).index_add(0, stays, weights)
                result = result / torch.where(total > 0, total, 1.0)
            return _Value((other,), result)
        result = zeros.scatter_reduce(0, index, message, {"max": "amax", "min": "amin"}[e.kind], include_self=False)
        return _Value((other,), result)

    def at_edges(self, e: Expression, ends: Mapping[str, Tensor], chosen: Tensor | None) -> Tensor:
        """Values (E, c) of an expression in the ends of edges."""
        source = next(iter(ends.values()))
        if len(e.free) <= 1:
            value = self.value(e)
            rows = ends[value.names[0]] if value.names else self.graphs.owner[source]
            return value.rows[rows]
        match e:
            case Edge():
                weights = self.edge_weights(e.relation)
                return weights if chosen is None else weights[chosen]
            case EdgeLabel():
                features = self.channels(self.graphs.attributes, e.channel, "Q", "edge_attr")
                return features if chosen is None else features[chosen]
            case Equal():
                return ((ends[e.x] == ends[e.y]) != e.negated).to(self.dtype)[:, None]
        parts = [self.at_edges(child, ends, chosen) for child in e.children]
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
        self.check(names, body.rows.shape[-1])
        values = self.to_dense(_Value(names, self.expand(body, names)))
        ones = [torch.ones_like(dense[..., :1]) for dense in values]
        weights = ones if e.guard is None else self.to_dense(_Value(names, self.expand(self.value(e.guard), names)))
        axis = names.index(e.index) + 1
        results = []
        for dense, weight in zip(values, weights, strict=True):
            if e.kind == "mean":
                total = weight.sum(axis)
                results.append((dense * weight).sum(axis) / torch.where(total > 0, total, 1.0))
                continue
            if dense.shape[axis] == 0:
                results.append(dense.sum(axis))
                continue
            there = weight > 0
            worst = float("-inf") if e.kind == "max" else float("inf")
            filled = torch.where(there, dense, worst)
            extreme = filled.amax(axis) if e.kind == "max" else filled.amin(axis)
            results.append(torch.where(there.any(axis), extreme, 0.0))
        kept = tuple(name for name in names if name != e.index)
        return _Value(kept, self.to_rows(results, len(kept)))


class ExpressionModule(nn.Module):
    """An expression as a layer or network; functions that are modules are trained with it.

    A network that is compiled runs it in Python.

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
        # a dict refuses the names of its own methods, such as update
        trained = {name: f for name, f in functions.items() if isinstance(f, nn.Module)}
        self._keys = {name: f"{name}_" if hasattr(nn.ModuleDict, name) else name for name in trained}
        self.modules_by_name = nn.ModuleDict({self._keys[name]: f for name, f in trained.items()})
        self._plain = {name: f for name, f in functions.items() if not isinstance(f, nn.Module)}

    @property
    def bound(self) -> Bound:
        """What the expression can tell apart at most."""
        return bound(self.expression)

    # it goes by the sizes of each batch's graphs, and dynamo fails on the tree of frozen dataclasses
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, data: Any) -> Tensor:
        """`evaluate` on a PyG ``Data`` or ``Batch``."""
        trained = {name: self.modules_by_name[key] for name, key in self._keys.items()}
        return evaluate(self.expression, data, {**self._plain, **trained})

"""Expressions: syntax, bounds, minimisation and values."""

import json
import random
import subprocess
import sys

import pytest
import torch
from torch_geometric.nn import ChebConv, GATConv, GCNConv, GINConv, SAGEConv, SGConv

from lit_papers.cli import main
from lit_papers.expressiveness import evaluation
from lit_papers.expressiveness.architectures import architecture, available
from lit_papers.expressiveness.graphs import atlas, make_graph, named_pair
from lit_papers.expressiveness.tensor_language import (
    Aggregate,
    Constant,
    Edge,
    Equal,
    Expression,
    ExpressionError,
    ExpressionModule,
    Function,
    Label,
    bound,
    evaluate,
    minimise,
    parse,
)
from lit_papers.expressiveness.weisfeiler_leman import colour_refinement, graph_hash
from tests.expressiveness.small import batch, featured


def cycle(*names: str) -> str:
    return "*".join(f"E({a},{b})" for a, b in zip(names, (*names[1:], names[0]), strict=True))


def summed(body: str, *names: str) -> str:
    for name in names:
        body = f"sum[{name}]({body})"
    return body


GRID = "*".join(
    f"E(v{3 * i + j},v{3 * a + b})"
    for i in range(3)
    for j in range(3)
    for a, b in ((i, j + 1), (i + 1, j))
    if a < 3 and b < 3
)
GIN = "mlp(P(x) + sum[y](E(x,y)*P(y)))"
# text, names before and after, summation depth after, bound: the paper's examples
TABLE = [
    ("sum[x2](sum[x3](E(x1,x2)*E(x2,x3)))", 3, 2, 2, "cr^(2)"),
    ("sum[x2](sum[x3](sum[x4](E(x1,x2)*E(x2,x3)*E(x3,x4)*P0(x4))))", 4, 2, 3, "cr^(3)"),
    ("sum[x2](sum[x3](E(x1,x2)*E(x1,x3)*E(x2,x3)))", 3, 3, 2, "vwl_2^(2)"),
    (summed(cycle(*"abcd"), *"abcd"), 4, 3, None, "gwl_2^(inf)"),
    (summed(cycle(*"abcd") + "*E(a,c)*E(b,d)", *"abcd"), 4, 4, None, "gwl_3^(inf)"),
    (summed(GRID, *(f"v{i}" for i in range(9))), 9, 4, None, "gwl_3^(inf)"),
    (summed("E(a,b)*E(a,c)*E(a,d)", *"abcd"), 4, 2, 2, "gcr^(1)"),
    ("sum[x2](E(x1,x2)*relu(sum[x3](relu(E(x1,x2)+E(x2,x3)+E(x1,x3)))))", 3, 3, 2, "vwl_2^(2)"),
    (GIN, 2, 2, 1, "cr^(1)"),
    ("mlp(P(x) + sum[y](E(x,y)*P(y)) + sum[y](P(y)))", 2, 2, 1, "vwl_1^(1)"),
    (f"sum[x]({GIN})", 2, 2, 2, "gcr^(1)"),
    ("rsqrt(sum[y](E(x,y)))*sum[y](E(x,y)*rsqrt(sum[x](E(y,x)))*P(y))", 2, 2, 2, "cr^(2)"),
    ("E(x,y)", 2, 2, 0, "wl_2^(0)"),
    ("mean[y|E(x,y)](P(y))", 2, 2, 1, "cr^(1)"),
    ("max[y](P(y))*P(x)", 2, 1, 1, "vwl_1^(1)"),
    ("sum[x2](sum[x3](1[x2=x3]*E(x1,x2)*P0(x3)))", 3, 2, 1, "cr^(1)"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "before", "after", "depth", "expected"), TABLE)
def test_bounds_of_the_papers_examples(text: str, before: int, after: int, depth: int | None, expected: str) -> None:
    e = parse(text)
    found = bound(e)
    assert len(e.indices) == before
    assert found.num_indices == after
    assert str(found) == expected
    assert depth is None or found.summation_depth == depth
    assert found.expression == minimise(e)
    assert found.expression is not None
    assert found.expression.is_guarded == found.guarded == (found.test == "cr" and found.level == "vertex")
    plain = evaluate_as_written(e, graphs := featured(), {"mlp": torch.tanh})
    torch.testing.assert_close(evaluate(e, graphs, {"mlp": torch.tanh}), plain, rtol=1e-10, atol=1e-10)


def evaluate_as_written(e: Expression, graphs, functions=None) -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "minimise", lambda e: e)
        return evaluate(e, graphs, functions)


def random_expression(draw: random.Random, names: list[str], depth: int) -> Expression:
    if depth == 0 or draw.random() < 0.2:
        x, y = draw.choice(names), draw.choice(names)
        atoms = [Label(0, x), Label(None, x), Edge(x, y), Equal(x, y), Equal(x, y, negated=True), Constant(0.5)]
        return draw.choice(atoms)
    kind = draw.random()
    if kind < 0.4:
        return random_expression(draw, names, depth - 1) * random_expression(draw, names, depth - 1)
    if kind < 0.55:
        return random_expression(draw, names, depth - 1) - random_expression(draw, names, depth - 1)
    if kind < 0.65:
        return Function(draw.choice(["tanh", "relu"]), (random_expression(draw, names, depth - 1),))
    index = draw.choice("xyzw")
    body = random_expression(draw, sorted({*names, index}), depth - 1)
    others = [name for name in names if name != index]
    guard = Edge(index, draw.choice(others)) if others and draw.random() < 0.5 else None
    return Aggregate(draw.choice(["sum"] * 5 + ["mean", "max", "min"]), index, body, guard)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(6))
def test_random_expressions(seed: int) -> None:
    """Minimised and printed expressions have the value of the written one; names never increase."""
    draw, graphs = random.Random(seed), featured(6, seed=seed)
    for index in range(40):
        e = random_expression(draw, [["x"], ["x", "y"]][index % 2], 5)
        smallest = minimise(e)
        assert len(smallest.indices) <= len(e.indices)
        value = evaluate_as_written(e, graphs)
        torch.testing.assert_close(evaluate(e, graphs), value, rtol=1e-8, atol=1e-8, msg=str(e))
        read = parse(str(e))
        assert parse(str(read)) == read
        torch.testing.assert_close(evaluate(read, graphs), value, rtol=1e-8, atol=1e-8, msg=str(e))


def guarded(draw: random.Random, x: str, depth: int) -> Expression:
    """A random expression of the guarded fragment."""
    if depth == 0:
        return draw.choice([Constant(0.7), Label(0, x)])
    y = "y" if x == "x" else "x"
    around = Aggregate("sum", y, Edge(x, y) * guarded(draw, y, depth - 1))
    return Function("tanh", (guarded(draw, x, depth - 1) * around + around * 0.3,))


def test_guarded_expressions_never_exceed_colour_refinement() -> None:
    graphs = batch(*atlas(6))
    graphs.x = graphs.x.double()
    for seed in range(6):
        rounds = 1 + seed % 3
        e = guarded(random.Random(seed), "x", rounds)
        assert str(bound(e)) == f"cr^({rounds})"
        colours = colour_refinement(graphs, rounds=rounds).colours
        values = evaluate(e, graphs)[:, 0]
        for colour in colours.unique():
            same = values[colours == colour]
            assert float(same.max() - same.min()) <= 1e-9


def test_three_names_never_exceed_two_folklore() -> None:
    pair = batch(*named_pair("shrikhande-rook"))
    pair.x = pair.x.double()
    assert len(set(graph_hash(pair, "2-fwl").tolist())) == 1
    draw = random.Random(0)
    for _ in range(30):
        e = random_expression(draw, ["x", "y", "z"], 4)
        for name in sorted(e.free):
            e = Aggregate("sum", name, e)
        found = bound(e)
        if found.num_indices <= 3:
            first, second = evaluate(e, pair)
            torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-6)


def test_homomorphism_counts() -> None:
    pair = batch(*named_pair("shrikhande-rook"))
    assert evaluate(parse(summed(cycle(*"abcd"), *"abcd")), pair).flatten().tolist() == [1536, 1536]
    assert evaluate(parse(summed("E(a,b)*E(a,c)*E(a,d)", *"abcd")), pair).flatten().tolist() == [3456, 3456]
    adjacency = torch.zeros(16, 16)
    adjacency[pair[0].edge_index[0], pair[0].edge_index[1]] = 1
    assert evaluate(parse(summed(cycle(*"abc"), *"abc")), pair)[0] == torch.trace(adjacency @ adjacency @ adjacency)


def test_shapes() -> None:
    graphs = featured(4)
    assert evaluate(parse("sum[x](P(x))"), graphs).shape == (graphs.num_graphs, 2)
    assert evaluate(parse("P(x)"), graphs).shape == (graphs.num_nodes, 2)
    assert torch.equal(evaluate(parse("P(x)"), graphs), graphs.x)
    pairs = evaluate(parse("E(x2,x10)*P0(x2)"), graphs)
    assert pairs.shape == (graphs.num_graphs, 6, 6, 1)
    assert torch.equal(pairs[0, :, :, 0].sum(1) != 0, (pairs[0] != 0).any(1)[:, 0])  # x2 comes before x10
    assert not pairs[2].any()  # the empty graph
    assert evaluate(parse("3"), graphs).flatten().tolist() == [3.0] * graphs.num_graphs
    assert evaluate(parse("sum[x](1)"), graphs).flatten().tolist() == graphs.ptr.diff().tolist()
    assert evaluate(parse("E(x,x)"), graphs).sum() == 1  # the self-loop
    assert not evaluate(parse("max[y|E(x,y)](P(y))"), make_graph(2, [])).any()  # over nothing
    inverse = evaluate(parse("inv(sum[y](E(x,y))) + rsqrt(sum[y](E(x,y)))"), make_graph(2, []))
    assert not inverse.any()


def test_gradients() -> None:
    graphs = featured(4)
    graphs.x.requires_grad_()
    e = parse("sum[x](tanh(P(x)*sum[y|E(x,y)](P(y)) - mean[z](P(z))))")
    evaluate(e, graphs).sum().backward()
    found = graphs.x.grad.clone()
    graphs.x.grad = None
    evaluate_as_written(e, graphs).sum().backward()
    torch.testing.assert_close(found, graphs.x.grad)


def layers(seed: int = 0):
    torch.manual_seed(seed)
    return featured(8)


def test_gin_is_pygs() -> None:
    graphs, mlp = layers(), torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)).double()
    e = architecture("gin").expression
    expected = GINConv(mlp)(graphs.x, graphs.edge_index)
    torch.testing.assert_close(evaluate(e, graphs, {"mlp1": mlp}), expected, rtol=1e-12, atol=1e-12)


def without_loops(graphs):
    """Its self-loop would be one loop for PyG, which adds a remaining one, and two for the formula."""
    keep = graphs.edge_index[0] != graphs.edge_index[1]
    graphs = graphs.clone()
    graphs.edge_index = graphs.edge_index[:, keep]
    return graphs


def test_gcn_is_pygs() -> None:
    graphs = without_loops(layers())
    conv = GCNConv(2, 3).double()
    torch.nn.init.normal_(conv.bias)
    functions = {"linear1": conv.lin, "update1": lambda values: values + conv.bias}
    found = evaluate(architecture("gcn").expression, graphs, functions)
    torch.testing.assert_close(found, conv(graphs.x, graphs.edge_index), rtol=1e-12, atol=1e-12)
    (first,) = torch.autograd.grad(found.square().sum(), conv.lin.weight)
    (second,) = torch.autograd.grad(conv(graphs.x, graphs.edge_index).square().sum(), conv.lin.weight)
    torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("aggr", ["mean", "sum", "max"])
def test_sage_is_pygs(aggr: str) -> None:
    graphs, conv = layers(), SAGEConv(2, 3, aggr=aggr).double()
    functions = {"self1": conv.lin_r, "neighbours1": conv.lin_l, "activation1": lambda values: values}
    found = evaluate(architecture("sage", aggr=aggr).expression, graphs, functions)
    torch.testing.assert_close(found, conv(graphs.x, graphs.edge_index), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("hops", [1, 3])
def test_sgc_is_pygs(hops: int) -> None:
    graphs, conv = without_loops(layers()), SGConv(2, 3, K=hops).double()
    found = evaluate(architecture("sgc", hops=hops).expression, graphs, {"linear1": conv.lin})
    torch.testing.assert_close(found, conv(graphs.x, graphs.edge_index), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_chebyshev_is_pygs(order: int) -> None:
    graphs, conv = without_loops(layers()), ChebConv(2, 3, K=order + 1).double()
    functions = {f"linear1_{degree}": linear for degree, linear in enumerate(conv.lins)}
    functions["update1"] = lambda values: values + conv.bias
    found = evaluate(architecture("cheb", order=order).expression, graphs, functions)
    torch.testing.assert_close(found, conv(graphs.x, graphs.edge_index), rtol=1e-12, atol=1e-12)


def test_gat_is_pygs() -> None:
    graphs, conv = without_loops(layers()), GATConv(2, 3).double()

    def score(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        raw = (own * conv.att_dst[0, 0]).sum(-1, keepdim=True) + (other * conv.att_src[0, 0]).sum(-1, keepdim=True)
        return torch.nn.functional.leaky_relu(raw, 0.2)

    functions = {"linear1": conv.lin, "score1": score, "update1": lambda values: values + conv.bias}
    found = evaluate(architecture("gat").expression, graphs, functions)
    torch.testing.assert_close(found, conv(graphs.x, graphs.edge_index), rtol=1e-10, atol=1e-10)


BOUNDS = {
    "basic": "cr^(2)", "sage": "cr^(2)", "gin": "cr^(2)", "gine": "cr^(2)", "pna": "cr^(2)", "rgcn": "cr^(2)",
    "gat": "cr^(2)", "gcn": "cr^(3)", "sgc": "cr^(5)", "cheb": "cr^(5)", "walk": "cr^(4)", "cayley": "cr^(11)",
    "egin": "vwl_1^(2)", "gps": "vwl_1^(2)", "kgnn": "vwl_1^(2)", "ign": "vwl_1^(4)", "gsn": "vwl_2^(4)",
    "idgnn": "vwl_2^(2)", "nested": "vwl_2^(3)", "esan": "vwl_2^(5)", "sswl": "vwl_2^(3)", "kpgnn": "vwl_2^(4)",
    "i2gnn": "vwl_3^(4)", "edge_transformer": "vwl_2^(2)", "ppgn": "vwl_2^(2)", "fgnn": "vwl_2^(2)",
    "local2fwl": "vwl_2^(2)", "simplicial": "vwl_2^(3)",
}  # fmt: skip


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_of_architectures(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(BOUNDS) == set(available())
    found = architecture(name, layers=2)
    assert str(found.bound) == BOUNDS[name]
    assert bound(found.expression) == found.bound
    readout = architecture(name, layers=2, readout=True).bound
    assert readout.level == "graph"
    assert str(readout).startswith("gcr" if found.bound.k == 1 else "gwl")
    assert main(["expressiveness", name, "--layers", "2"]) == 0
    printed = capsys.readouterr().out
    assert f"bound: {BOUNDS[name]}\n" in printed
    assert f"test: {found.bound.literature_name}\n" in printed


def test_options_of_architectures() -> None:
    assert str(architecture("fgnn", k=3, readout=True).bound) == "gwl_3^(inf)"
    assert str(architecture("fgnn", k=1, layers=2, readout=True).bound) == "gcr^(2)"
    assert str(architecture("ign", order=3, layers=1).bound) == "vwl_2^(3)"  # a sum over triples is three sums
    assert str(architecture("fgnn", layers=1).bound) == "vwl_1^(1)"  # one layer sees the tuples (v, u) and (u, v)
    assert str(architecture("fgnn", layers=1, readout=True).bound) == "gwl_2^(inf)"
    assert str(architecture("nested", layers=2, hops=2).bound) == "vwl_2^(4)"
    assert str(architecture("gsn", pattern="clique", size=4).bound) == "vwl_3^(4)"
    assert str(architecture("gps", encoding="walk8").bound) == "vwl_2^(5)"
    assert str(architecture("gps", encoding="resistance", readout=True).bound) == "gwl_2^(inf)"
    assert str(architecture("kgnn", k=3, layers=2).bound) == "vwl_2^(2)"
    assert architecture("fgnn", layers=2).bound.literature_name == "2-WL (folklore) = 3-WL (oblivious)"
    assert architecture("gin").tight
    for arguments, message in (
        ({"name": "mlp"}, "unknown architecture 'mlp'"),
        ({"name": "gin", "layers": 0}, "layers"),
        ({"name": "gin", "hops": 2}, "gin has no option hops"),
        ({"name": "kgnn", "k": 1}, "k of kgnn must be at least 2"),
        ({"name": "sage", "aggr": "median"}, "aggr of sage"),
        ({"name": "gsn", "pattern": "star"}, "pattern of gsn"),
        ({"name": "ign", "order": 4}, "order of ign must be at most 3"),
        ({"name": "gps", "encoding": "fourier"}, "unknown matrix 'fourier'"),
    ):
        with pytest.raises(ValueError, match=message):
            architecture(**arguments)


@pytest.mark.timeout(30)
def test_deep_networks_do_not_explode() -> None:
    found = architecture("gin", layers=20)
    assert str(found.bound) == "cr^(20)"
    assert hash(found.expression) == hash(architecture("gin", layers=20).expression)
    assert evaluate(found.expression, featured(2), {f"mlp{t}": torch.tanh for t in range(1, 21)}).isfinite().all()


def test_modules() -> None:
    graphs, linear = layers(), torch.nn.Linear(2, 3).double()
    module = ExpressionModule("lin(P(x) + sum[y|E(x,y)](P(y)))", {"lin": linear, "unused": torch.relu})
    assert list(module.parameters()) == list(linear.parameters())
    assert str(module.bound) == "cr^(1)"
    assert module(graphs).shape == (graphs.num_nodes, 3)
    network = torch.nn.Sequential(module, torch.nn.ReLU())
    assert torch.equal(torch.compile(network, backend="eager")(graphs), network(graphs))


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("sum[x](", 7), ("E(x)", 3), ("P(x) P(y)", 5), ("foo", 3), ("E(x,y", 5), ("1[x<y]", 3), ("3..2", 0), ("", 0),
        ("2 +", 3), ("sum[x|E(y,z)](P(x))", 0), ("sum[x|E(x,x)](P(x))", 0), ("f()", 2), ("1e400", 0), ("(P(x)", 5),
        ("P(x))", 4), ("P(2)", 2), ("sum[](P(x))", 4), ("P(x)^y", 5), ("P(x)/0", 5), ("E[a](x,y)", 2),
        ("M[foo](x,y)", 1),
        ("sum[x,y|E(x,y)](P(x))", 7),
    ],
)  # fmt: skip
def test_malformed_text(text: str, position: int) -> None:
    with pytest.raises(ExpressionError, match=f"at position {position} of"):
        parse(text)


def test_bad_input() -> None:
    graphs = featured(3)
    with pytest.raises(KeyError, match="unknown function 'magic'"):
        evaluate(parse("magic(P(x))"), graphs)
    with pytest.raises(IndexError, match="P7 reads channel 7, but x has 2"):
        evaluate(parse("P7(x)"), graphs)
    with pytest.raises(MemoryError, match=r"indices .* max_elements=100"):
        evaluate(parse("E(a,b)*E(b,c)"), graphs, max_elements=100)
    with pytest.raises(ExpressionError, match="one of sum, mean, max, min"):
        Aggregate("median", "x", Label(0, "x"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'wrong' got \d+ rows and returned \(1, 2\)"):
        evaluate(parse("wrong(P(x))"), graphs, {"wrong": lambda values: values[:1]})
    for text in ("E[1](x,y)", "Q(x,y)"):
        with pytest.raises(IndexError, match=r"edge_type|edge_attr"):
            evaluate(parse(text), graphs)


@pytest.mark.parametrize("arguments", [["sum[x](E(x,"], ["mlp"], ["gin", "--hops", "2"], ["P(x)", "--layers", "2"]])
def test_the_command_refuses_with_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["expressiveness", *arguments]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_command_on_expressions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["expressiveness", "sum[x2](sum[x3](E(x1,x2)*E(x2,x3)))"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "expression: sum[x2](E(x1,x2)*sum[x1](E(x2,x1)))",
        "index variables: 2",
        "summation depth: 2",
        "guarded: yes",
        "bound: cr^(2)",
        "test: 1-WL",
        "by: theorem 4.3",
    ]
    assert main(["expressiveness", "E(x,y)", "--readout"]) == 0
    assert "bound: gcr^(1)" in capsys.readouterr().out


def test_shared_parts_have_names(capsys: pytest.CaptureFixture[str]) -> None:
    """Each layer uses the one below twice: its text would double with each, and grows by the same."""
    lengths = []
    for layers in (4, 8, 12):
        assert main(["expressiveness", "gcn", "--layers", str(layers)]) == 0
        lengths.append(len(capsys.readouterr().out))
    assert lengths[2] - lengths[1] < 1.3 * (lengths[1] - lengths[0])
    assert main(["expressiveness", "gcn", "--layers", "3", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["bound"] == "cr^(4)"
    text = facts["expression"]
    for definition in reversed(facts["where"]):  # put back, it is the expression
        name, body = definition.split(" = ", 1)
        text = text.replace(name, body)
    assert parse(text) == architecture("gcn", layers=3).bound.expression


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("sum[x,y](E(x,y))", "sum[x](sum[y](E(x,y)))"),
        ("P(x)/4", "P(x)*0.25"),
        ("P(x)/P0(x)", "P(x)*inv(P0(x))"),
        ("-P(x)^2", "-1*P(x)*P(x)"),
        ("(P(x) + 1)^2*2", "((P(x) + 1)*(P(x) + 1))*2"),
        ("P(x)^0", "1"),
    ],
)
def test_short_forms(short: str, long: str) -> None:
    assert parse(short) == parse(long)


def test_the_command_in_a_process() -> None:
    command = [sys.executable, "-m", "lit_papers", "expressiveness", "ppgn", "--readout"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "test: 2-WL (folklore) = 3-WL (oblivious)" in done.stdout

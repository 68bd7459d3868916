"""``python -m lit_papers expressiveness TEXT``: what an expression or an architecture can tell apart."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lit_papers.expressiveness.architectures import ARCHITECTURES, architecture, available
from lit_papers.expressiveness.bounds import Bound, bound
from lit_papers.expressiveness.expressions import Aggregate, Expression, natural_order, postorder
from lit_papers.expressiveness.parsing import parse

_SHORT = 24  # characters of a shared part that is written out each time


def main(arguments: Sequence[str]) -> int:
    """Print a report, one fact a line, or all as JSON.

    Returns:
        0, or 2 after one line on stderr for bad input.
    """
    parser = argparse.ArgumentParser(
        prog="python -m lit_papers expressiveness",
        description="Say what a graph network can tell apart, by Weisfeiler-Leman tests.",
        epilog=f"architectures: {', '.join(available())}; expressions: relu(P(x) + sum[y|E(y,x)](P(y)))",
    )
    parser.add_argument("text", metavar="TEXT", help="an expression, or the name of an architecture")
    parser.add_argument("--layers", type=int, help="of an architecture (default 1)")
    parser.add_argument("--readout", action="store_true", help="sum over all nodes, or tuples, at the end")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    names = sorted({option for plan in ARCHITECTURES.values() for option in plan.options})
    for option in names:
        having = [name for name in available() if option in ARCHITECTURES[name].options]
        kind = type(ARCHITECTURES[having[0]].options[option])
        parser.add_argument(f"--{option}", type=kind, help=f"of {', '.join(having)}")
    given = parser.parse_args(list(arguments))
    options = {key: getattr(given, key) for key in names if getattr(given, key) is not None}
    try:
        if given.text in available():
            layers = 1 if given.layers is None else given.layers
            found = architecture(given.text, layers=layers, readout=given.readout, **options)
            title = f"{found.name}, {found.layers} layer{'s' * (found.layers > 1)}"
            facts = {"architecture": title, **_facts(found.bound, found.source)}
            facts.update(tight="yes" if found.tight else "not known to be", literature=found.literature)
        elif "(" not in given.text and "[" not in given.text:
            raise ValueError(f"unknown architecture {given.text!r}; known are {', '.join(available())}.")
        elif options or given.layers is not None:
            raise ValueError(f"{', '.join(['layers', *options])}: options of architectures, not of expressions.")
        else:
            expression = parse(given.text)
            if given.readout:
                for index in sorted(expression.free):
                    expression = Aggregate("sum", index, expression)
            facts = _facts(bound(expression), None)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return 0
    for name, fact in facts.items():
        if name == "where":
            for line in fact:
                print(f"  where {line}")
        else:
            print(f"{name}: {fact}")
    return 0


def definitions(e: Expression) -> tuple[str, list[str]]:
    """An expression in which parts that occur more than once have a name, and what these are, the innermost first.

    Layers that use each other twice would double the text with each layer; so it grows by the same with each.

    >>> definitions(parse("f(sum[y](E(x,y)*g(P(y))*h(P(y)) ), g(P(y)))"))
    ('f(sum[y](E(x,y)*g(P(y))*h(P(y))), g(P(y)))', [])
    """
    parts = list(postorder(e))
    uses = Counter(child for part in parts for child in dict.fromkeys(part.children))
    written: dict[Expression, str] = {}
    named: list[str] = []
    for part in parts:
        text = part.text([written[child] for child in part.children])
        if uses[part] > 1 and len(text) > _SHORT:
            name = f"h{len(named) + 1}({','.join(sorted(part.free, key=natural_order))})"
            named.append(f"{name} = {text}")
            text = name
        written[part] = text
    return written[e], named


def _facts(found: Bound, source: str | None) -> dict[str, Any]:
    text, named = definitions(found.expression)
    return {
        "expression": text,
        **({"where": named} if named else {}),
        "index variables": found.num_indices,
        "summation depth": found.summation_depth,
        "guarded": "yes" if found.guarded else "no",
        "bound": str(found),
        "test": found.literature_name,
        "by": source or found.theorem,
    }

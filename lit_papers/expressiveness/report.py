"""``python -m lit_papers expressiveness TEXT``: what an expression or an architecture can tell apart."""

import argparse
import sys
from collections.abc import Sequence

from lit_papers.expressiveness.architectures import architecture, available
from lit_papers.expressiveness.bounds import Bound, bound
from lit_papers.expressiveness.expressions import Aggregate
from lit_papers.expressiveness.parsing import parse


def main(arguments: Sequence[str]) -> int:
    """Print a report, one fact a line.

    Returns:
        0, or 2 after one line on stderr for bad input.
    """
    parser = argparse.ArgumentParser(
        prog="python -m lit_papers expressiveness",
        description="Say what a graph network can tell apart, by Weisfeiler-Leman tests.",
        epilog=f"architectures: {', '.join(available())}; expressions: relu(P(x) + sum[y|E(x,y)](P(y)))",
    )
    parser.add_argument("text", metavar="TEXT", help="an expression, or the name of an architecture")
    parser.add_argument("--layers", type=int, help="of an architecture (default 1)")
    parser.add_argument("--readout", action="store_true", help="sum over all nodes at the end")
    for option, text in (
        ("k", "of fgnn and kgnn"), ("order", "of cheb, walk, ign and cayley"), ("hops", "of sgc"),
        ("dimension", "of simplicial"), ("iterations", "of cayley"),
    ):  # fmt: skip
        parser.add_argument(f"--{option}", type=int, help=text)
    given = parser.parse_args(list(arguments))
    options = {key: getattr(given, key) for key in ("k", "order", "hops", "dimension", "iterations")}
    options = {key: value for key, value in options.items() if value is not None}
    try:
        if given.text in available():
            found = architecture(given.text, layers=given.layers or 1, readout=given.readout, **options)
            _print(
                found.bound, f"{found.name}, {found.layers} layer{'s' * (found.layers > 1)}", found.source, found.tight
            )
        elif "(" not in given.text and "[" not in given.text:
            raise ValueError(f"unknown architecture {given.text!r}; known are {', '.join(available())}.")
        elif options or given.layers is not None:
            raise ValueError(f"{', '.join(['layers', *options])}: options of architectures, not of expressions.")
        else:
            expression = parse(given.text)
            if given.readout:
                for index in sorted(expression.free):
                    expression = Aggregate("sum", index, expression)
            _print(bound(expression), None, None, None)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _print(found: Bound, name: str | None, source: str | None, tight: bool | None) -> None:
    if name is not None:
        print(f"architecture: {name}")
    print(f"expression: {found.expression or 'none: the bound is a theorem on the architecture'}")
    print(f"index variables: {found.num_indices}")
    print(f"summation depth: {found.summation_depth}")
    print(f"guarded: {'yes' if found.guarded else 'no'}")
    print(f"bound: {found}")
    print(f"test: {found.literature_name}")
    print(f"by: {source or found.theorem}")
    if tight is not None:
        print(f"tight: {'yes' if tight else 'not known to be'}")

"""Tensor language in one place: expressions, parser, minimisation, bounds and evaluation.

>>> e = parse("relu(P(x) + sum[y|E(x,y)](P(y)))")
>>> print(bound(e))
cr^(1)
"""

from lit_papers.expressiveness.bounds import Bound, bound
from lit_papers.expressiveness.evaluation import FUNCTIONS, ExpressionModule, evaluate
from lit_papers.expressiveness.expressions import (
    Addition,
    Aggregate,
    Constant,
    Edge,
    Equal,
    Expression,
    ExpressionError,
    Function,
    Label,
    Product,
    parse,
)
from lit_papers.expressiveness.minimisation import minimise

__all__ = [
    "FUNCTIONS",
    "Addition",
    "Aggregate",
    "Bound",
    "Constant",
    "Edge",
    "Equal",
    "Expression",
    "ExpressionError",
    "ExpressionModule",
    "Function",
    "Label",
    "Product",
    "bound",
    "evaluate",
    "minimise",
    "parse",
]

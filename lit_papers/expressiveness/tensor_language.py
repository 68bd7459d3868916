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
    EdgeLabel,
    Equal,
    Expression,
    ExpressionError,
    Function,
    Label,
    Matrix,
    Product,
)
from lit_papers.expressiveness.matrices import MATRICES
from lit_papers.expressiveness.minimisation import minimise
from lit_papers.expressiveness.parsing import parse

__all__ = [
    "FUNCTIONS",
    "MATRICES",
    "Addition",
    "Aggregate",
    "Bound",
    "Constant",
    "Edge",
    "EdgeLabel",
    "Equal",
    "Expression",
    "ExpressionError",
    "ExpressionModule",
    "Function",
    "Label",
    "Matrix",
    "Product",
    "bound",
    "evaluate",
    "minimise",
    "parse",
]

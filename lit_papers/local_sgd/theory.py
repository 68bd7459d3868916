"""The paper's theory in one place: lower-bound functions, simulator, predictions (Yun, Rajput & Sra, ICLR 2022)."""

from lit_papers.local_sgd.lower_bound_functions import (
    HeterogeneousQuadratic,
    LowerBoundFunction,
    Quadratic,
    SkewedQuadratic,
    UnlikeSkewedQuadratic,
)
from lit_papers.local_sgd.predictions import exact_suboptimality, fit_loglog_slope, theorem_step_size, upper_bound
from lit_papers.local_sgd.simulator import Algorithm, Sampling, draw_order, run_epoch, simulate

__all__ = [
    "Algorithm",
    "HeterogeneousQuadratic",
    "LowerBoundFunction",
    "Quadratic",
    "Sampling",
    "SkewedQuadratic",
    "UnlikeSkewedQuadratic",
    "draw_order",
    "exact_suboptimality",
    "fit_loglog_slope",
    "run_epoch",
    "simulate",
    "theorem_step_size",
    "upper_bound",
]

"""Problems that the tests of this paper share."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_papers.convex_relu.arrangements import Arrangements, enumerate_arrangements
from lit_papers.convex_relu.programs import solve_relu_program
from lit_papers.convex_relu.solution import ConvexSolution

REFERENCE = Path(__file__).parent / "reference"
EXACT = (
    "two_points_1d",
    "rank1_n9",
    "identity_n4",
    "gauss_n8_d3",
    "gauss_n10_d3",
    "gauss_n12_d4",
    "line_bias_n8",
    "beta_above_max",
)


def load(name: str) -> dict[str, Any]:
    """A reference problem: arrays as tensors, numbers as floats."""
    with np.load(REFERENCE / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) if file[key].ndim else file[key].item() for key in file}


def solved(problem: dict[str, Any]) -> tuple[Tensor, Tensor, float, ConvexSolution]:
    x, y, beta = problem["x"], problem["y"], problem["beta"]
    return x, y, beta, solve_relu_program(x, y, beta, enumerate_arrangements(x))


def sampled(problem: dict[str, Any]) -> Arrangements:
    return Arrangements(problem["patterns"], problem["gates"], exact=False)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

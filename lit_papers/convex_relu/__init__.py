"""The hidden convex landscape of two-layer ReLU networks (Wang, Lacotte & Pilanci, ICLR 2022)."""

from lit_papers.convex_relu.arrangements import Arrangements, enumerate_arrangements
from lit_papers.convex_relu.module import TwoLayerReLU
from lit_papers.convex_relu.solution import ConvexSolution

__all__ = ["Arrangements", "ConvexSolution", "TwoLayerReLU", "enumerate_arrangements"]

"""Measurements that attach to any Lightning project as callbacks."""

from lit_papers.callbacks.central_path import CentralPath
from lit_papers.callbacks.consensus_distance import ConsensusDistance
from lit_papers.callbacks.convex_gap import ConvexGap
from lit_papers.callbacks.diagnosis import Diagnosis
from lit_papers.callbacks.forgetting import Forgetting
from lit_papers.callbacks.interaction_strength import InteractionStrength
from lit_papers.callbacks.neural_collapse import NeuralCollapse
from lit_papers.callbacks.separation_power import SeparationPower
from lit_papers.callbacks.stride_complexity import StrideComplexity

__all__ = [
    "CentralPath",
    "ConsensusDistance",
    "ConvexGap",
    "Diagnosis",
    "Forgetting",
    "InteractionStrength",
    "NeuralCollapse",
    "SeparationPower",
    "StrideComplexity",
]

"""Methods against forgetting, to choose by one argument of the LightningModules."""

from lit_papers.continual.methods.base import Finetune, Learner, Method, Step
from lit_papers.continual.methods.gradient_selection import GSS
from lit_papers.continual.methods.progressive import PNN, ProgressiveColumns
from lit_papers.continual.methods.projection import AGEM, project_gradient
from lit_papers.continual.methods.replay import DER, LUMP, mix
from lit_papers.continual.methods.synaptic import SI

__all__ = [
    "AGEM",
    "DER",
    "GSS",
    "LUMP",
    "PNN",
    "SI",
    "Finetune",
    "Learner",
    "Method",
    "ProgressiveColumns",
    "Step",
    "mix",
    "project_gradient",
]

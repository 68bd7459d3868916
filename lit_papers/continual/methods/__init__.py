"""Methods against forgetting, to choose by one argument of the LightningModules."""

from lit_papers.continual.methods.base import Finetune, Learner, Method, Step, TaskData
from lit_papers.continual.methods.distillation import CaSSLe, LwF, distillation_loss
from lit_papers.continual.methods.elastic import EWC, fisher_diagonal
from lit_papers.continual.methods.exemplars import ICaRL, herd
from lit_papers.continual.methods.gradient_selection import GSS
from lit_papers.continual.methods.progressive import PNN, ProgressiveColumns
from lit_papers.continual.methods.projection import AGEM, project_gradient
from lit_papers.continual.methods.replay import DER, ER, LUMP, DERpp, mix
from lit_papers.continual.methods.synaptic import SI

__all__ = [
    "AGEM",
    "DER",
    "ER",
    "EWC",
    "GSS",
    "LUMP",
    "PNN",
    "SI",
    "CaSSLe",
    "DERpp",
    "Finetune",
    "ICaRL",
    "Learner",
    "LwF",
    "Method",
    "ProgressiveColumns",
    "Step",
    "TaskData",
    "distillation_loss",
    "fisher_diagonal",
    "herd",
    "mix",
    "project_gradient",
]

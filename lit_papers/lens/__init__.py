"""How a stranger's network is looked at, whatever is measured: data, layers, calls, and no trace afterwards."""

from lit_papers.lens.batches import Unpack, class_indices, tensors_in, unpack_batch
from lit_papers.lens.lens import Lens, Numbers
from lit_papers.lens.processes import Processes
from lit_papers.lens.refusal import NotApplicable
from lit_papers.lens.routes import Call, Seen
from lit_papers.lens.subject import Moment, Subject
from lit_papers.lens.training import TrainingLoss

__all__ = [
    "Call",
    "Lens",
    "Moment",
    "NotApplicable",
    "Numbers",
    "Processes",
    "Seen",
    "Subject",
    "TrainingLoss",
    "Unpack",
    "class_indices",
    "tensors_in",
    "unpack_batch",
]
